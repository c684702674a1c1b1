use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Blocking, CACHE_BYTES, Failure};

pub struct Fjall {
    database: Database,
    keyspace: Keyspace,
}

impl Fjall {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let database = Database::builder(path.join("fjall")).cache_size(CACHE_BYTES as u64).open()?;
        let keyspace =
            database.keyspace("keyspace", || KeyspaceCreateOptions::default().expect_point_read_hits(true))?;
        Ok(Self { database, keyspace })
    }
}

impl Blocking for Fjall {
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        self.keyspace.insert(key, value)?;
        if durable {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let Some(value) = self.keyspace.get(key)? else { return Ok(false) };
        show(&value);
        Ok(true)
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}
