use std::path::Path;

use super::{Blocking, CACHE_BYTES, Failure};

pub struct Sled(sled::Db);

impl Sled {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let config = sled::Config::new().path(path.join("sled")).cache_capacity(CACHE_BYTES as u64);
        Ok(Self(config.mode(sled::Mode::HighThroughput).open()?))
    }
}

impl Blocking for Sled {
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure> {
        self.0.insert(key, value)?;
        if durable {
            self.0.flush()?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let Some(value) = self.0.get(key)? else { return Ok(false) };
        show(&value);
        Ok(true)
    }

    fn settle(&self) -> Result<(), Failure> {
        self.0.flush()?;
        Ok(())
    }
}
