use std::path::Path;

use surrealkv::{Durability, Error, Mode, Tree, TreeBuilder};

use super::{Awaited, CACHE_BYTES, Failure};

/// One awaited transaction per put. Gets use the synchronous interface, which the authors call the fast path.
pub struct Surrealkv(Tree);

impl Surrealkv {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let builder = TreeBuilder::new().with_path(path.join("surrealkv"));
        Ok(Self(builder.with_block_cache_capacity(CACHE_BYTES as u64).build()?))
    }
}

impl Awaited for Surrealkv {
    type Value = Vec<u8>;

    async fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        loop {
            let mut writing = self.0.begin_with_mode(Mode::WriteOnly)?;
            writing.set_durability(if durable { Durability::Immediate } else { Durability::Eventual });
            writing.set(key, value)?;
            match writing.commit().await {
                // Two concurrent puts of the same key conflict: one of them retries.
                Err(Error::TransactionWriteConflict | Error::TransactionRetry) => {}
                committed => return Ok(committed?),
            }
        }
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.0.begin_with_mode(Mode::ReadOnly)?.get(key)?)
    }

    async fn close(&self) -> Result<(), Failure> {
        Ok(self.0.close().await?)
    }
}
