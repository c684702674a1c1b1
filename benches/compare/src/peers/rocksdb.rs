use std::path::Path;

use rocksdb::{BlockBasedOptions, Cache, DB, Options, WriteOptions};

use super::{Blocking, CACHE_BYTES, Failure};

pub struct Rocksdb(DB);

impl Rocksdb {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.increase_parallelism(2);
        options.set_write_buffer_size(64 << 20);
        Ok(Self(DB::open(&options, path.join("rocksdb"))?))
    }
}

impl Blocking for Rocksdb {
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        let mut options = WriteOptions::default();
        options.set_sync(durable);
        Ok(self.0.put_opt(key, value, &options)?)
    }

    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let Some(value) = self.0.get_pinned(key)? else { return Ok(false) };
        show(&value);
        Ok(true)
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.0.flush_wal(true)?)
    }
}
