//! An embedded key-value store for async Rust services on Linux.
//!
//! A store is a directory with an append-only log and an index of every key in memory. Writes are durable by default, and
//! writers that wait for the disk at the same time share one sync. The store waits for the disk on its own threads, with
//! io_uring where it is permitted, so any executor will do, or none.
//!
//! ```
//! # fn main() -> ringcask::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("sessions");
//! # pollster::block_on(async {
//! use ringcask::{Batch, Durability, Store};
//!
//! let store = Store::open(&path).await?;
//!
//! // On stable storage when it resolves. A thousand tasks that do this share a few syncs.
//! store.put("session:7", "alice").await?;
//!
//! // In the store's memory when it resolves, without a system call, and durable within a second.
//! let version = store.put("hits", "1").durability(Durability::Buffered).await?;
//! store.wait_durable(version).await?;
//!
//! // All or nothing, even after a crash.
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
//! # Guarantees
//!
//! - **Three levels of durability**, named for where the record is when the future resolves: [`Durability`]. A crash loses only
//!   the end of the log, never a write in its middle.
//! - **No dirty reads.** No one sees a `Synced` write before it is on stable storage. After a write has resolved, everyone sees
//!   it.
//! - **Exact errors.** [`Error::outcome`] of a failed write is *not applied*, for good, or *unknown*: then the store takes no
//!   more writes, and reopening it decides. A failed sync is never retried.
//! - **Dropping a future is safe.** Each method says what it means.
//! - **Damage is an error.** An open cuts off a torn end of the log. Any other bad byte is [`ErrorKind::Corrupt`], with file and
//!   offset, and affects only the records it touches. One exception: damage in the last group before a kill or a power loss
//!   looks like a torn end. Then the group is lost, acknowledged or not, and [`RecoveryReport::truncated_bytes`] shows that
//!   something was cut.
//! - **io_uring where it is permitted, threads where it is not**, with the same guarantees. [`Stats::engine`] says which.
//!
//! # Limits
//!
//! Keys have 1 to 65,535 bytes ([`MAX_KEY_LEN`]), values up to [`MAX_VALUE_LEN`], batches up to 1 GiB. All keys are in memory.
//! There are no range queries. One process at a time can have a directory open. A store creates at most 2^32 − 1 segments in its
//! life.
//!
//! # Where to go on
//!
//! [`Store`] has the operations, [`Builder`] the options, [`futures`] what each operation resolves to, [`Stats`] and
//! [`RecoveryReport`] what a store reports about itself.
//!
//! # Features
//!
//! - `tracing`: events for operators, such as a fallback to threads, a torn tail or a failed compaction.
//! - `serde`: `Serialize` for [`Stats`] and the reports.

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
pub use options::{Compaction, Durability, Engine, MAX_KEY_LEN, MAX_VALUE_LEN};
pub use options::{Recovery, TimeOfDay, WritePath};
pub use stats::{ActiveEngine, CompactionReport, Damage, RecoveryReport, SegmentStats, Stats, Version};
pub use store::futures;
pub use store::{Builder, Store};

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
