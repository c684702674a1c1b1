use std::path::Path;

use ringcask::bytes::Bytes;
use ringcask::{Durability, Store};

use super::{Awaited, CACHE_BYTES, Failure};

/// ringcask with default options, except for a cache as large as that of every peer. A put that need not be durable is
/// `Buffered`, or `Written` if `open` asks for it: most peers hand an unsynced put to the kernel before they return.
pub struct Ringcask {
    store: Store,
    relaxed: Durability,
}

impl Ringcask {
    pub async fn open(path: &Path, written: bool) -> Result<Self, Failure> {
        let store = Store::builder(path.join("ringcask")).cache_bytes(CACHE_BYTES as u64).open().await?;
        let relaxed = if written { Durability::Written } else { Durability::Buffered };
        Ok(Self { store, relaxed })
    }
}

impl Awaited for Ringcask {
    type Value = Bytes;

    async fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        let level = if durable { Durability::Synced } else { self.relaxed };
        self.store.put(key, value).durability(level).await?;
        Ok(())
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        Ok(self.store.get(key).await?)
    }

    async fn close(&self) -> Result<(), Failure> {
        Ok(self.store.close().await?)
    }
}
