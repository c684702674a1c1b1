use std::fs;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, WithTls};

use super::{Blocking, Failure};

/// LMDB through heed, with one transaction per put.
pub struct Lmdb {
    env: Env<WithTls>,
    database: Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    pub fn open(path: &Path, durable: bool) -> Result<Self, Failure> {
        let path = path.join("lmdb");
        fs::create_dir_all(&path)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(64 << 30).max_readers(2048);
        // SAFETY: no other process maps the files of this fresh directory. Without syncs a crash of the machine may
        // damage them, but they are never opened after a crash.
        let env = unsafe {
            if !durable {
                options.flags(EnvFlags::NO_SYNC);
            }
            options.open(&path)?
        };
        let writing = env.write_txn()?;
        let created = env.create_databases_and_commit(writing, |opener, writing| {
            opener.create_database(writing, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let database = created.unwrap_commit();
        Ok(Self { env, database })
    }
}

impl Blocking for Lmdb {
    fn put(&self, key: &[u8], value: &[u8], _durable: bool) -> Result<(), Failure> {
        let mut writing = self.env.write_txn()?;
        self.database.put(&mut writing, key, value)?;
        Ok(writing.commit()?)
    }

    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let reading = self.env.read_txn()?;
        let Some(value) = self.database.get(&reading, key)? else { return Ok(false) };
        show(value);
        Ok(true)
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.env.force_sync()?)
    }
}

impl Drop for Lmdb {
    fn drop(&mut self) {
        // Lets the same directory be opened again with other flags.
        self.env.clone().prepare_for_closing();
    }
}
