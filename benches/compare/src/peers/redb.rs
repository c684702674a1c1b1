use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use super::{Blocking, CACHE_BYTES, Failure};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("table");

/// One transaction per put: redb has no other way to make a single put durable.
pub struct Redb(Database);

impl Redb {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path.join("redb"))?;
        let writing = database.begin_write()?;
        writing.open_table(TABLE)?;
        writing.commit()?;
        Ok(Self(database))
    }
}

impl Blocking for Redb {
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        let mut writing = self.0.begin_write()?;
        writing.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        writing.open_table(TABLE)?.insert(key, value)?;
        Ok(writing.commit()?)
    }

    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        let Some(value) = table.get(key)? else { return Ok(false) };
        show(value.value());
        Ok(true)
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.0.begin_write()?.commit()?)
    }
}
