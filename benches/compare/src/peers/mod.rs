//! The stores that are compared, each at its best settings for what is asked of it.

pub mod baseline;
mod fjall;
mod lmdb;
mod redb;
mod ringcask;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sled;
mod surrealkv;

use std::path::Path;
use std::sync::Arc;

pub use baseline::{TokioFs, TokioUring};
pub use ringcask::Ringcask;
pub use surrealkv::Surrealkv;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What every cache of a store may take, ours too: more than the data, so that reads are of memory.
pub const CACHE_BYTES: usize = 2 << 30;

/// A store whose calls return when they are done.
pub trait Blocking: Send + Sync {
    /// `durable`: returns when the record is on stable storage.
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure>;
    /// Shows the value, without a copy where the store has none to make; whether there is one.
    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure>;
    /// Makes everything durable, so that what follows does not pay for it.
    fn settle(&self) -> Result<(), Failure>;
}

/// A store that is awaited.
pub trait Awaited: Send + Sync + 'static {
    type Value: AsRef<[u8]> + Send;
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> impl Future<Output = Result<(), Failure>> + Send;
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Self::Value>, Failure>> + Send;
    /// Makes everything durable, and stops in good order.
    fn close(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Whom to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Ringcask,
    /// With puts that are in the kernel's hands when they return, as most peers' unsynced ones are.
    RingcaskWritten,
    Redb,
    Fjall,
    Lmdb,
    Sled,
    Surrealkv,
    #[cfg(feature = "rocksdb")]
    Rocksdb,
    /// The same log, as small as it can honestly be, on `tokio-uring`.
    TokioUring,
    /// The same on `tokio::fs`.
    TokioFs,
}

pub const PEERS: &[Peer] = &[
    Peer::Ringcask,
    Peer::RingcaskWritten,
    Peer::Redb,
    Peer::Fjall,
    Peer::Lmdb,
    Peer::Sled,
    Peer::Surrealkv,
    #[cfg(feature = "rocksdb")]
    Peer::Rocksdb,
    Peer::TokioUring,
    Peer::TokioFs,
];

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ringcask => "ringcask",
            Self::RingcaskWritten => "ringcask-written",
            Self::Redb => "redb",
            Self::Fjall => "fjall",
            Self::Lmdb => "lmdb",
            Self::Sled => "sled",
            Self::Surrealkv => "surrealkv",
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => "rocksdb",
            Self::TokioUring => "log-tokio-uring",
            Self::TokioFs => "log-tokio-fs",
        }
    }

    /// Whether it is somebody else's store. Baselines show what the ring buys, and are none.
    pub fn is_rival(self) -> bool {
        !matches!(self, Self::Ringcask | Self::RingcaskWritten | Self::TokioUring | Self::TokioFs)
    }

    /// Its `flush` is not one that can be relied on (spacejam/sled#1351), so durable puts are not compared with it.
    pub fn syncs(self) -> bool {
        self != Self::Sled
    }

    /// Opens a store that blocks; `None` for those that are awaited. Its puts will all be durable, or none.
    pub fn open_blocking(self, path: &Path, durable: bool) -> Result<Option<Arc<dyn Blocking>>, Failure> {
        Ok(Some(match self {
            Self::Redb => Arc::new(redb::Redb::open(path)?),
            Self::Fjall => Arc::new(fjall::Fjall::open(path)?),
            Self::Lmdb => Arc::new(lmdb::Lmdb::open(path, durable)?),
            Self::Sled => Arc::new(sled::Sled::open(path)?),
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => Arc::new(rocksdb::Rocksdb::open(path)?),
            Self::Ringcask | Self::RingcaskWritten | Self::Surrealkv | Self::TokioUring | Self::TokioFs => {
                return Ok(None);
            }
        }))
    }
}
