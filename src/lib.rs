//! An embedded, durable key-value store for Linux services that await their storage.
//!
//! A store is a directory with an append-only log and an index of every key in memory. Writes are awaited, not blocked
//! on; writers that wait for the disk at the same time share one sync; what was acknowledged survives what its
//! [`Durability`] says. Underneath are io_uring and a few threads of the store's own, so that any executor will do, or
//! none.
//!
//! ```
//! # fn main() -> ringcask::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("sessions");
//! # pollster::block_on(async {
//! use ringcask::{Batch, Durability, PutOptions, Store};
//!
//! let store = Store::open(&path).await?;
//!
//! // On stable storage when it resolves. A thousand tasks that do this share a few syncs.
//! store.put("session:7", "alice").await?;
//!
//! // In the store's buffer when it resolves: no system call, a second at most until it is durable.
//! let buffered = PutOptions::new().durability(Durability::Buffered);
//! let version = store.put_with("hits", "1", buffered).await?;
//! store.wait_durable(version).await?;
//!
//! // All or nothing, across crashes too.
//! let mut batch = Batch::new();
//! batch.put("balance:a", "90").put("balance:b", "110").delete("session:7");
//! store.write(batch).await?;
//!
//! assert_eq!(store.get("balance:a").await?.as_deref(), Some(&b"90"[..]));
//! assert_eq!(store.get("session:7").await?, None);
//! store.close().await
//! # })
//! # }
//! ```
//!
//! # What is promised
//!
//! - **Durability has three levels**, named after where the record is when the future resolves: [`Durability`]. What a
//!   crash takes from the lower ones is always a suffix of the log, never a hole.
//! - **No dirty reads**: nobody sees a `Synced` write before it is on stable storage. After a write has resolved,
//!   everybody sees it.
//! - **A failed write says what it is**: [`Error::outcome`] is *not applied* (now and for ever) or *unknown* (the store
//!   takes no more writes; reopening decides). A failed sync is never retried.
//! - **Dropping a future is safe**; what it means is written at each method.
//! - **Damage is found and told apart**: a torn end of the log is cut off at the next open, any other bad byte is
//!   [`ErrorKind::Corrupt`] with segment and offset, and costs the records it touches. One flipped bit in the last group
//!   before a kill or a power cut reads as a torn end, though, and takes the group with it, acknowledged or not:
//!   [`RecoveryReport::truncated_bytes`] tells that something was cut.
//! - **io_uring where it is allowed, threads where it is not**, with the same guarantees; [`Stats::engine`] says which.
//!
//! # Limits
//!
//! Keys have 1 to 65,535 bytes ([`MAX_KEY_LEN`]), values up to [`MAX_VALUE_LEN`], batches up to 1 GiB. Every key is in
//! memory. There are no range queries. One process at a time has a directory open. Up to 2^32 − 1 segments are created
//! in the life of a store.
//!
//! # Where to go on
//!
//! [`Store`] for what one can do, [`Builder`] for the options, [`Stats`] and [`RecoveryReport`] for what the store tells.

// `testing` re-exports the `pub` items of `format`, `io` and `seeded_bug`. In builds without that module the lint would report
// all of them; builds with it still find a `pub` that should be `pub(crate)`.
#![cfg_attr(not(feature = "__testing"), allow(unreachable_pub))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "ringcask runs on Linux only: its I/O is built on io_uring and on system calls that other systems do not have"
);

pub use bytes;

mod batch;
mod cache;
mod commit;
mod compaction;
mod error;
mod format;
mod io;
mod keydir;
mod maintenance;
mod options;
mod read;
mod recovery;
mod seeded_bug;
mod segment;
mod stats;
mod store;
mod sync;
#[cfg(feature = "__testing")]
#[doc(hidden)]
pub mod testing;
mod trace;

pub use batch::Batch;
pub use error::{Error, ErrorKind, Outcome, Result};
pub use options::{Builder, CompactOptions, Compaction, Durability, Engine, MAX_KEY_LEN, MAX_VALUE_LEN};
pub use options::{PutOptions, Recovery, WritePath};
pub use stats::{CompactionReport, Damage, RecoveryReport, SegmentStats, Stats, Version};
pub use store::Store;
pub use store::futures::{Close, Compact, Delete, Get, Open, Put, Sync, WaitDurable, Write};
pub use store::multi_get::MultiGet;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
