//! The handle: each operation as a method that returns a named future.
//!
//! To follow a put, read on from here: `put` prepares the record, [`futures`] offers it to the log when it is polled, and
//! `commit` does the rest. [`core`] holds the parts of an open store and shuts it down.

mod builder;
pub(crate) mod core;
pub mod futures;
mod multi_get;
mod open;
mod pool;
mod report;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use crate::batch::{Batch, check_key, check_value_len};
use crate::commit::Prepared;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Durability;
use crate::stats::{RecoveryReport, Stats, Version};
use crate::sync::sharded::{Sharded, Share};

pub use builder::Builder;
pub(crate) use core::Core;
use futures::{Close, Compact, Delete, Get, Put, Sync, WaitDurable, Write, WriteInner, WriteOp};
use multi_get::MultiGet;
use open::Open;
use pool::pooled_buffer;

/// An open store: a directory, a log, and an index of every key in memory.
///
/// Clones are cheap and refer to the same store. Any number of tasks on any executor can share it, and so can threads without
/// one: the futures need no runtime, no reactor and no timer.
///
/// Dropping the last clone writes and syncs what was accepted, seals the log and unlocks the directory. It blocks the dropping
/// thread until then and cannot report an error; [`close`](Store::close) does not block and reports it. On one of the store's
/// own threads, where a waker may drop a task that owns the store, the drop does not wait.
///
/// # Forks
///
/// A handle works only in the process that opened the store. In a child of `fork`, every future resolves to
/// [`Forked`](ErrorKind::Forked), the other methods answer as for an empty store, and none of them takes a lock that a thread
/// of the parent may have held. The child inherits the lock on the directory and keeps it until it ends or executes another
/// program. If the parent ends first, the directory stays [`Locked`](ErrorKind::Locked) until then.
///
/// # Examples
///
/// ```
/// # fn main() -> ringcask::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # pollster::block_on(async {
/// let store = ringcask::Store::open(dir.path().join("db")).await?;
/// let version = store.put("answer", "42").await?; // on stable storage from here on
/// assert_eq!(store.get("answer").await?.as_deref(), Some(&b"42"[..]));
/// assert!(store.durable_version() >= version);
/// assert!(store.delete("answer").await?);
/// assert_eq!(store.get("answer").await?, None);
/// store.close().await
/// # })
/// # }
/// ```
#[derive(Clone)]
pub struct Store(Arc<Handle>);

/// Closes the store when the last clone goes.
struct Handle {
    core: Arc<Core>,
    /// What futures hold.
    shares: Sharded<Share<Core>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A forked child has copies of the parent's files and none of its threads: it leaves everything alone.
        if !self.core.is_forked() {
            self.core.close_blocking();
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path()).field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let shares = Sharded::shares(&core);
        Self(Arc::new(Handle { core, shares }))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    fn share(&self) -> Share<Core> {
        self.0.shares.mine().clone()
    }

    /// Returns the options for opening the store in the directory `path`.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// Resolves to the store in the directory `path`, opened with default options and created if it is missing.
    ///
    /// The open recovers what an earlier process left: everything acknowledged as durable is there, and a torn end of the log is
    /// cut off. [`recovery_report`](Store::recovery_report) says what was found.
    ///
    /// # Errors
    ///
    /// - [`Locked`](ErrorKind::Locked) if another handle has the directory open, in this process or another.
    /// - [`Corrupt`](ErrorKind::Corrupt) if acknowledged bytes are damaged or missing; see [`Recovery`](crate::Recovery).
    /// - [`IncompatibleFormat`](ErrorKind::IncompatibleFormat) if a newer version wrote the directory.
    /// - [`InvalidConfig`](ErrorKind::InvalidConfig) if an option is outside its range.
    /// - [`Unsupported`](ErrorKind::Unsupported) if the required engine is not available.
    /// - [`NoSpace`](ErrorKind::NoSpace) or [`Io`](ErrorKind::Io) if the operating system refuses an operation.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. After it, the open continues without the caller, and the store is closed as soon
    /// as it is open.
    pub fn open(path: impl AsRef<Path>) -> Open {
        Self::builder(path).open()
    }

    /// Resolves to the value of `key`, or `None` if it has none.
    ///
    /// Completes in the first poll if the value is in memory: in the log's buffer, the store's cache
    /// ([`Builder::cache_bytes`]) or, in most cases, the page cache. Otherwise it waits for the engine. Every read from a file
    /// verifies the record's checksum and key.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](ErrorKind::Corrupt) if the record is damaged, with its file and offset: never a wrong value, and never `None`.
    /// [`InvalidInput`](ErrorKind::InvalidInput) or [`TooLarge`](ErrorKind::TooLarge) if the key's length is outside the limits,
    /// [`Io`](ErrorKind::Io), [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// A get changes nothing. If it is dropped while it waits, the engine finishes the read and discards the result.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// store.put("answer", "42").await?;
    /// assert_eq!(store.get("answer").await?.as_deref(), Some(&b"42"[..]));
    /// assert_eq!(store.get("question").await?, None);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    pub fn get(&self, key: impl AsRef<[u8]>) -> Get {
        Get::new(self.share(), key.as_ref())
    }

    /// Resolves to the values of many keys, in the order of the keys, with `None` for a key that has no value.
    ///
    /// Reads that must wait for the disk are submitted to the kernel together. The keys are not read at one point in time: of a
    /// batch that is written meanwhile, some values may be older and some newer. All values are in memory at the same time. A
    /// key may occur more than once.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get). The first error ends the whole call.
    ///
    /// # Cancel safety
    ///
    /// As for [`get`](Self::get).
    ///
    /// # Examples
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # pollster::block_on(async {
    /// let store = ringcask::Store::open(dir.path()).await?;
    /// store.put("a", "1").await?;
    /// store.put("b", "2").await?;
    /// let values = store.multi_get(["b", "none", "a"]).await?;
    /// assert_eq!(values, [Some("2".into()), None, Some("1".into())]);
    /// # store.close().await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> MultiGet {
        MultiGet::new(self.share(), keys)
    }

    /// Stores `value` under `key`, replaces any earlier value, and resolves to the write's version.
    ///
    /// `key` has 1 to [`MAX_KEY_LEN`](crate::MAX_KEY_LEN) bytes. `value` has up to [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN) bytes
    /// and may be empty.
    ///
    /// # Durability
    ///
    /// The store's, or that of [`Put::durability`]; see [`Durability`]. Once the future has resolved, every
    /// `get` in every task sees this write or a later one. No one sees a `Synced` write before it is on stable storage.
    ///
    /// # Errors
    ///
    /// [`Error::outcome`] says whether the write is certainly not applied or may be there after a reopen.
    ///
    /// - [`TooLarge`](ErrorKind::TooLarge), [`InvalidInput`](ErrorKind::InvalidInput) if a length is outside its limit.
    /// - [`NoSpace`](ErrorKind::NoSpace) if the disk is full. The write is not applied, and the store accepts writes again when
    ///   there is space.
    /// - [`Poisoned`](ErrorKind::Poisoned) after a failed sync, [`Closed`](ErrorKind::Closed) after a close.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before its first poll does nothing. A write that was accepted continues without the caller. A write
    /// that still waits for room in the buffer ([`Builder::staging_bytes`]) is not accepted and does not happen.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::Durability;
    ///
    /// let mut last = store.put("page:0", "seen").durability(Durability::Buffered).await?;
    /// for page in 1..100 {
    ///     last = store.put(format!("page:{page}"), "seen").durability(Durability::Buffered).await?;
    /// }
    /// store.wait_durable(last).await?; // all hundred are on stable storage
    /// assert_eq!(store.len(), 100);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Put {
        let (key, value) = (key.as_ref(), value.as_ref());
        Put(self.write_one(key, value.len(), false, || Prepared::put(pooled_buffer(), key, value)))
    }

    /// Stores `value` like [`put`](Store::put) and resolves to the write's version. A value of 64 KiB or more is shared with the
    /// store until it is written, instead of copied.
    pub fn put_bytes(&self, key: impl AsRef<[u8]>, value: Bytes) -> Put {
        let key = key.as_ref();
        let len = value.len();
        Put(self.write_one(key, len, false, || Prepared::put_bytes(pooled_buffer(), key, value)))
    }

    /// A write of one record, which `prepare` makes.
    fn write_one(&self, key: &[u8], value_len: usize, must_exist: bool, prepare: impl FnOnce() -> Prepared) -> WriteOp {
        let durability = self.core().options.durability;
        let max_value_bytes = self.core().options.max_value_bytes;
        let checked = check_key(key).and_then(|()| check_value_len(value_len, max_value_bytes));
        let op = checked.map(|()| {
            if durability == Durability::Buffered {
                self.core().prefetch(key);
            }
            prepare()
        });
        WriteOp::new(self.share(), durability, must_exist, op)
    }

    /// Deletes `key` and resolves to whether it existed. If it did not, nothing is written.
    ///
    /// Durability, errors and cancel safety are those of [`put`](Store::put). On a full disk, deletes continue as long as the
    /// reserve lasts; see [`Builder::reserve_bytes`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// store.put("session", "alice").await?;
    /// assert!(store.delete("session").await?);
    /// assert!(!store.delete("session").await?, "it is already deleted");
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[doc(alias = "remove")]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Delete {
        let key = key.as_ref();
        Delete(self.write_one(key, 0, true, || Prepared::tombstone(pooled_buffer(), key)))
    }

    /// Applies `batch` as a whole and resolves to the version of its last operation. After a crash all of it is there or none,
    /// and no `get` sees a part of it.
    ///
    /// A batch takes up to 1 GiB of log. Durability, errors and cancel safety are those of [`put`](Store::put). An error about
    /// one operation names its index. An empty batch does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::Batch;
    ///
    /// store.put("balance:a", "100").await?;
    /// let mut batch = Batch::new();
    /// batch.put("balance:a", "90").put("balance:b", "10").delete("pending");
    /// let version = store.write(batch).await?;
    /// assert!(store.durable_version() >= version);
    /// assert_eq!(store.get("balance:b").await?.as_deref(), Some(&b"10"[..]));
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    pub fn write(&self, batch: Batch) -> Write {
        let core = self.share();
        if batch.is_empty() {
            return Write(WriteInner::Empty(core));
        }
        let durability = core.options.durability;
        let op = batch.check(core.options.max_value_bytes).map(|()| Prepared::batch(&batch));
        Write(WriteInner::Op(WriteOp::new(core, durability, false, op)))
    }

    /// Returns whether `key` has a value, from memory. `false` in a forked child.
    #[must_use]
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> bool {
        self.value_len(key).is_some()
    }

    /// Returns the number of keys that have a value, from memory. 0 in a forked child.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.core().is_forked() {
            return 0;
        }
        usize::try_from(self.core().parts.keydir.len()).unwrap_or(usize::MAX)
    }

    /// Returns whether no key has a value. `true` in a forked child.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of the value of `key` in bytes, from memory. `None` in a forked child.
    #[must_use]
    pub fn value_len(&self, key: impl AsRef<[u8]>) -> Option<u64> {
        // The keydir has locks.
        if self.core().is_forked() {
            return None;
        }
        self.core().parts.keydir.get(key.as_ref()).map(|entry| u64::from(entry.location.value_len))
    }

    /// Returns the version up to which every write is on stable storage.
    #[must_use]
    pub fn durable_version(&self) -> Version {
        Version(self.core().parts.log.durable_seq())
    }

    /// Resolves when the write with `version` is on stable storage. It does not start a sync: a `Buffered` or `Written` write
    /// gets there within [`Builder::sync_interval`], or with the next [`sync`](Store::sync).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if this store has not returned the version;
    /// [`Poisoned`](ErrorKind::Poisoned).
    ///
    /// # Cancel safety
    ///
    /// Waiting changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::Durability;
    ///
    /// let written = Durability::Written;
    /// let version = store.put("key", "value").durability(written).await?; // survives a kill of the process
    /// store.wait_durable(version).await?; // and now a power cut
    /// assert!(store.durable_version() >= version);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    pub fn wait_durable(&self, version: Version) -> WaitDurable {
        WaitDurable::new(self.share(), version.0)
    }

    /// Makes everything accepted so far durable and resolves to the version up to which that holds.
    ///
    /// # Errors
    ///
    /// [`Poisoned`](ErrorKind::Poisoned), [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the sync happens with or without the caller.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::Durability;
    ///
    /// let version = store.put("key", "value").durability(Durability::Buffered).await?;
    /// assert!(store.sync().await? >= version);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[doc(alias = "flush", alias = "persist")]
    pub fn sync(&self) -> Sync {
        Sync::new(self.share())
    }

    /// Compacts the store now, regardless of the trigger and the hours, and resolves to a report. The space of overwritten and
    /// deleted records comes back. [`Compact::segments`] limits it to some segments.
    ///
    /// Compaction also starts by itself; see [`Compaction`](crate::Compaction). Reads and writes continue during it. It keeps to
    /// the rate limit, and waits while compaction is paused.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](ErrorKind::InvalidInput) for a number that is not that of a sealed, undamaged segment.
    /// - [`Corrupt`](ErrorKind::Corrupt) if one of the segments is damaged, [`NoSpace`](ErrorKind::NoSpace) if the new segments
    ///   do not fit, [`Io`](ErrorKind::Io). The segments of the job that failed are unchanged; earlier jobs of the call stay
    ///   done.
    /// - [`Poisoned`](ErrorKind::Poisoned), [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the compaction. The segments are then the old or the new ones, and no record is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// store.put("counter", "1").await?;
    /// store.put("counter", "2").await?;
    /// let report = store.compact().await?;
    /// assert!(report.bytes_freed > 0);
    /// assert_eq!(store.get("counter").await?.as_deref(), Some(&b"2"[..]));
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[doc(alias = "merge", alias = "vacuum")]
    pub fn compact(&self) -> Compact {
        Compact::new(self.share())
    }

    /// Pauses compaction at its next step, until [`resume_compaction`](Store::resume_compaction). No space comes back meanwhile.
    /// Does nothing in a forked child.
    pub fn pause_compaction(&self) {
        self.pause(true);
    }

    /// Resumes compaction. Does nothing in a forked child.
    pub fn resume_compaction(&self) {
        self.pause(false);
    }

    fn pause(&self, paused: bool) {
        if !self.core().is_forked() {
            self.core().control.pause(paused);
        }
    }

    /// Returns sizes and counters of this moment. It visits every segment and briefly locks each shard of the
    /// index, so it does not belong on a hot path. In a forked child
    /// everything is 0 except the engine.
    #[must_use]
    pub fn stats(&self) -> Stats {
        report::stats(self.core())
    }

    /// Returns what the open found, and what it did.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// store.put("key", "value").await?;
    /// store.close().await?;
    ///
    /// let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// let report = store.recovery_report();
    /// assert_eq!((report.keys, report.segments, report.truncated_bytes), (1, 1, 0));
    /// assert!(report.damage.is_empty());
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn recovery_report(&self) -> &RecoveryReport {
        &self.core().report
    }

    /// Returns the directory, as it was given to [`open`](Store::open).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.core().options.path
    }

    /// Closes the store for all clones and resolves when it is closed: what was accepted is written and synced, the log is
    /// sealed, and the directory is unlocked. A second call waits for the same close.
    ///
    /// # Errors
    ///
    /// The error that prevented a clean close. The store is closed nevertheless, and everything acknowledged as durable is there
    /// when it is opened again.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the close continues without the caller.
    pub fn close(&self) -> Close {
        Close::new(self.share())
    }
}

/// The result of a future that is polled after it has resolved.
pub(crate) fn polled_after_completion<T>() -> Poll<Result<T>> {
    Poll::Ready(Err(Error::new(ErrorKind::InvalidInput, "the future was polled after it had completed")))
}

const _: () = {
    const fn assert_send_sync<T: Send + std::marker::Sync + 'static>() {}
    const fn assert_future<T: Send + Unpin + 'static>() {}
    assert_send_sync::<Store>();
    assert_send_sync::<Error>();
    assert_future::<Open>();
    assert_future::<Get>();
    assert_future::<Put>();
    assert_future::<Delete>();
    assert_future::<Write>();
    assert_future::<Sync>();
    assert_future::<WaitDurable>();
    assert_future::<Close>();
    assert_future::<Compact>();
    assert_future::<futures::Submitted<Version>>();
    assert_future::<futures::Submitted<bool>>();
};
