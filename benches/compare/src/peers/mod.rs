//! The compared stores, each with its best settings for the workload.

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

/// Cache size of every store, ringcask included. It exceeds the data size, so reads come from memory.
pub const CACHE_BYTES: usize = 2 << 30;

/// A store with blocking calls.
pub trait Blocking: Send + Sync {
    /// If `durable`, returns when the record is on stable storage.
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> Result<(), Failure>;
    /// Passes the value to `show`, without a copy where the store needs none. Returns whether the key exists.
    fn get(&self, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure>;
    /// Makes everything durable, so that the next workload does not pay for it.
    fn settle(&self) -> Result<(), Failure>;
}

/// A store with async calls.
pub trait Awaited: Send + Sync + 'static {
    type Value: AsRef<[u8]> + Send;
    fn put(&self, key: &[u8], value: &[u8], durable: bool) -> impl Future<Output = Result<(), Failure>> + Send;
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Self::Value>, Failure>> + Send;
    /// Makes everything durable and shuts down cleanly.
    fn close(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// A store to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Ringcask,
    /// With `Written` puts: the kernel has the data when they return, as with the unsynced puts of most peers.
    RingcaskWritten,
    Redb,
    Fjall,
    Lmdb,
    Sled,
    Surrealkv,
    #[cfg(feature = "rocksdb")]
    Rocksdb,
    /// A minimal log store on `tokio-uring`.
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

    /// Whether this is an existing store to compare with. The baselines are not: they show what the engine contributes.
    pub fn is_rival(self) -> bool {
        !matches!(self, Self::Ringcask | Self::RingcaskWritten | Self::TokioUring | Self::TokioFs)
    }

    /// Whether durable puts are compared. sled's `flush` is not reliable (spacejam/sled#1351).
    pub fn syncs(self) -> bool {
        self != Self::Sled
    }

    /// Opens a blocking store, or returns `None` for an async one. Its puts are either all durable or all not.
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
