//! The handle.

mod builder;
pub(crate) mod core;
pub mod futures;
mod multi_get;
mod open;
mod pool;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;

use crate::batch::{Batch, check_key};
use crate::cache::BlockCache;
use crate::commit::Prepared;
use crate::compaction;
use crate::error::{Error, ErrorKind, Result};
use crate::io::IoKind;
use crate::options::{Durability, MAX_KEY_LEN};
use crate::read::ReadCounts;
use crate::stats::{RecoveryReport, SegmentStats, Stats, Version};
use crate::sync::sharded::{Sharded, Share};

pub use builder::Builder;
pub(crate) use core::Core;
use futures::{Close, Compact, Delete, Get, Put, Sync, WaitDurable, Write, WriteInner, WriteOp};
use multi_get::MultiGet;
use open::Open;
use pool::pooled_buffer;

/// Longest batch, in bytes of log: it is staged as a whole.
const MAX_BATCH_BYTES: u64 = 1 << 30;

/// An open store: a directory, a log, and an index of every key in memory.
///
/// Cheap to clone; all clones are the same store. It can be shared by any number of tasks on any executor, and by
/// threads without one: the futures need no runtime, no reactor and no timer.
///
/// When the last clone is dropped, the store drains, syncs, seals its log and unlocks the directory, blocking the
/// thread that drops it for as long as that takes (on one of the store's own threads, where a task may be dropped by its
/// waker, it does not wait). Dropping cannot report an error: [`close`](Store::close) can.
///
/// # Forks
///
/// A handle works in the process that opened the store, and in no other. In a child of `fork` every future answers
/// [`Forked`](ErrorKind::Forked), the other methods answer as of an empty store, and none of them waits for a lock that
/// a thread of the parent's may have held. The child inherits the lock on the directory and keeps it until it ends or
/// executes another program: a parent that dies before leaves the directory [`Locked`](ErrorKind::Locked).
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

    /// Options for opening the store in the directory `path`.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// Opens the store in the directory `path` with the default options, creating it if need be.
    ///
    /// What an earlier process left is recovered: everything that was acknowledged as durable is there, a torn end of
    /// the log is cut off. [`recovery_report`](Store::recovery_report) tells what was found.
    ///
    /// # Errors
    ///
    /// [`Locked`](ErrorKind::Locked) if another handle has it open, in this process or another;
    /// [`Corrupt`](ErrorKind::Corrupt) if bytes that were acknowledged are damaged or missing (see
    /// [`Recovery`](crate::Recovery)); [`IncompatibleFormat`](ErrorKind::IncompatibleFormat) if a newer version wrote
    /// it; [`InvalidConfig`](ErrorKind::InvalidConfig) for an option out of its range;
    /// [`Unsupported`](ErrorKind::Unsupported) if the engine demanded is not to be had; [`Io`](ErrorKind::Io).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. After it the opening goes on without the caller, and the store is closed
    /// again when it is open.
    pub fn open(path: impl AsRef<Path>) -> Open {
        Self::builder(path).open()
    }

    /// The value of `key`, or `None` if it has none.
    ///
    /// Reads from the log's buffer or the page cache finish in the first poll, on the caller's thread. While less than
    /// a fifth of what is read is cached, most gets are handed to the ring without a look at the page cache, unless the store has
    /// [a cache of its own](crate::Builder::cache_bytes) or no ring. Checksum and key
    /// are verified on every read from a file. A read that waits for the disk brings in its record
    /// and nothing beyond it, but a MiB where it goes on behind the segment's last read that waited.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](ErrorKind::Corrupt), with segment and offset, if the record is damaged: never wrong bytes, and never
    /// `None` for damage. [`InvalidInput`](ErrorKind::InvalidInput) for an empty key, [`Io`](ErrorKind::Io),
    /// [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Reading changes nothing; a dropped read is finished by the engine and its result thrown away.
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

    /// The values of many keys, in the order of the keys; `None` for a key without one.
    ///
    /// Each key is read as by [`get`](Self::get), in no common point in time: of a batch that is written meanwhile some
    /// may show the values before and some those after. What the page cache has is read on the caller's thread, some
    /// hundred keys in each poll. All reads that have to wait for the disk are then handed to the kernel together, which
    /// is what this is for; their values are in memory at the same time. A key may be asked for more than once.
    ///
    /// # Errors
    ///
    /// The first one that is met, as of [`get`](Self::get); it ends the whole call.
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

    /// Stores `value` under `key`, replacing any earlier value, at the store's durability; returns the write's version.
    ///
    /// `key` has 1 to [`MAX_KEY_LEN`] bytes, `value` up to [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN); it may be empty.
    ///
    /// # Durability
    ///
    /// See [`Durability`](crate::Durability). After the future has resolved, every `get` in every task sees the write
    /// (or a later one). A `Synced` write is seen by nobody before it is on stable storage.
    ///
    /// # Errors
    ///
    /// [`Error::outcome`] tells whether the write is certainly not applied or may be found after a reopening.
    /// [`TooLarge`](ErrorKind::TooLarge) and [`InvalidInput`](ErrorKind::InvalidInput) for arguments beyond the limits;
    /// [`NoSpace`](ErrorKind::NoSpace) when the disk is full (not applied; the store goes on, and accepts writes again
    /// when there is space); [`Poisoned`](ErrorKind::Poisoned) after a failed sync; [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, nothing happened. A write that was accepted runs to its end without the caller. A
    /// write that still waits for room in the buffer (see [`Builder::staging_bytes`]) was not accepted and does not
    /// happen.
    #[doc(alias = "insert", alias = "set")]
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

    /// As [`put`](Store::put). A value of 64 KiB or more is shared with the store until it is written, not copied.
    pub fn put_bytes(&self, key: impl AsRef<[u8]>, value: Bytes) -> Put {
        let key = key.as_ref();
        let len = value.len();
        Put(self.write_one(key, len, false, || Prepared::put_bytes(pooled_buffer(), key, value)))
    }

    /// A write of one record, which `prepare` makes.
    fn write_one(&self, key: &[u8], value_len: usize, must_exist: bool, prepare: impl FnOnce() -> Prepared) -> WriteOp {
        let durability = self.core().options.durability;
        let op = self.check(key, value_len).map(|()| {
            let op = prepare();
            if durability == Durability::Buffered {
                self.core().prefetch(&op);
            }
            op
        });
        WriteOp::new(self.share(), durability, must_exist, op)
    }

    /// Deletes `key`; tells whether it existed. If it did not, nothing is written.
    ///
    /// Durability, errors and cancel safety are those of [`put`](Store::put). On a full disk deletes go on for as long
    /// as the reserve lasts (see [`Builder::reserve_bytes`]).
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
    /// assert!(!store.delete("session").await?, "it is gone already");
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[doc(alias = "remove")]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Delete {
        let key = key.as_ref();
        Delete(self.write_one(key, 0, true, || Prepared::tombstone(pooled_buffer(), key)))
    }

    /// Applies `batch` as one: after a crash all of it is there or none, and no `get` sees a part of it. Returns the
    /// version of its last operation.
    ///
    /// A batch takes up to 1 GiB of log. Durability, errors and cancel safety are those of [`put`](Store::put). An
    /// empty batch does nothing.
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
        let op = self.check_batch(&batch).map(|()| Prepared::batch(&batch));
        Write(WriteInner::Op(WriteOp::new(core, durability, false, op)))
    }

    fn check(&self, key: &[u8], value_len: usize) -> Result<()> {
        check_key(key)?;
        self.check_value_len(value_len)
    }

    fn check_value_len(&self, len: usize) -> Result<()> {
        let limit = self.core().options.max_value_bytes;
        if len as u64 > limit {
            let message = format!("the value has {len} bytes, more than the {limit} that max_value_bytes allows");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        match batch.first_bad_key() {
            Some(0) => check_key(b"")?,
            Some(len) => {
                let message = format!("a key of the batch has {len} bytes, more than {MAX_KEY_LEN}");
                return Err(Error::new(ErrorKind::TooLarge, message));
            }
            None => {}
        }
        if batch.byte_len() > MAX_BATCH_BYTES {
            let message = format!("the batch has {} bytes, more than {MAX_BATCH_BYTES}", batch.byte_len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.check_value_len(batch.longest_value())
    }

    /// Whether `key` has a value. Answered from memory; `false` in a forked child.
    #[must_use]
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> bool {
        self.value_len(key).is_some()
    }

    /// Number of keys that have a value. Answered from memory; 0 in a forked child.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.core().is_forked() {
            return 0;
        }
        usize::try_from(self.core().parts.keydir.len()).unwrap_or(usize::MAX)
    }

    /// Whether no key has a value. `true` in a forked child.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the value of `key` in bytes. Answered from memory; `None` in a forked child.
    #[must_use]
    pub fn value_len(&self, key: impl AsRef<[u8]>) -> Option<u64> {
        // The keydir has locks.
        if self.core().is_forked() {
            return None;
        }
        self.core().parts.keydir.get(key.as_ref()).map(|entry| u64::from(entry.location.value_len))
    }

    /// Every write with this version or a lower one is on stable storage.
    #[must_use]
    pub fn durable_version(&self) -> Version {
        Version(self.core().parts.log.durable_seq())
    }

    /// Waits until the write with `version` is on stable storage. Asks for no sync of its own: a `Buffered` or `Written`
    /// write gets there within the sync interval, or with the next [`sync`](Store::sync).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a version this store has not given out;
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

    /// Brings everything accepted so far to stable storage; returns the version up to which that holds.
    ///
    /// # Errors
    ///
    /// [`Poisoned`](ErrorKind::Poisoned), [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// A sync that was asked for happens, with or without the caller.
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
    /// let version = store.put("key", "value").durability(buffered).await?;
    /// assert!(store.sync().await? >= version);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[doc(alias = "flush", alias = "persist")]
    pub fn sync(&self) -> Sync {
        Sync::new(self.share())
    }

    /// Gives the space of overwritten and deleted records back now, whatever the trigger and the hours say: of the whole
    /// store, or of named segments. Returns what was done.
    ///
    /// Compaction also begins by itself; see [`Compaction`](crate::Compaction). Reads and writes go on beside it. It keeps
    /// to the rate, and waits while compaction is paused.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a number that is not that of a sealed, undamaged segment;
    /// [`Corrupt`](ErrorKind::Corrupt) if one of the segments is damaged, [`NoSpace`](ErrorKind::NoSpace) if there is no
    /// room for the new segments, [`Io`](ErrorKind::Io): then the segments of the job that failed are as they were, and
    /// jobs before it are done. [`Poisoned`](ErrorKind::Poisoned), [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops it: the segments are the old ones or the new ones, and nothing is lost either way.
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

    /// Holds compaction at the next step, until [`resume_compaction`](Store::resume_compaction). Space does not come back
    /// meanwhile. Does nothing in a forked child.
    pub fn pause_compaction(&self) {
        self.pause(true);
    }

    /// Lets compaction go on. Does nothing in a forked child.
    pub fn resume_compaction(&self) {
        self.pause(false);
    }

    fn pause(&self, paused: bool) {
        if !self.core().is_forked() {
            self.core().control.pause(paused);
        }
    }

    /// Sizes and counters of this moment. Looks at every segment, so it is not for the hot path. In a forked child all of
    /// them are 0, but for the engine's name.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let core = self.core();
        let engine = match core.parts.io.kind() {
            IoKind::Uring => "io_uring",
            IoKind::Threads => "threads",
            IoKind::Sim => "sim",
        };
        if core.is_forked() {
            return Stats { engine, ..Stats::default() };
        }
        let (counters, staged_bytes) = core.parts.log.counters();
        let segments: Vec<SegmentStats> = core
            .parts
            .segments
            .all()
            .iter()
            .map(|segment| SegmentStats {
                id: u64::from(segment.id),
                total_bytes: segment.written_end(),
                live_bytes: segment.live_bytes(),
                dead_bytes: segment.written_end().saturating_sub(segment.live_bytes()),
                sealed: segment.is_sealed(),
            })
            .collect();
        let live_bytes = segments.iter().map(|segment| segment.live_bytes).sum();
        let disk_bytes = segments.iter().map(|segment| segment.total_bytes).sum();
        let (commit, read) = (&core.parts.commit_counters, ReadCounts::of(&core.read_counters));
        let compaction = &core.compaction_counters;
        Stats {
            engine,
            engine_fallback: core.engine_fallback.clone(),
            keys: core.parts.keydir.len(),
            live_bytes,
            dead_bytes: u64::saturating_sub(disk_bytes, live_bytes),
            disk_bytes,
            segments,
            puts: counters.puts,
            deletes: counters.deletes,
            batches: counters.batches,
            gets: read.gets,
            gets_from_staging: read.from_staging,
            gets_from_block_cache: read.from_block_cache,
            gets_from_cache: read.from_cache,
            gets_from_disk: read.from_disk,
            cache_held_bytes: core.cache.as_ref().map_or(0, BlockCache::held_bytes),
            groups: commit.groups.load(Ordering::Relaxed),
            group_records: commit.group_records.load(Ordering::Relaxed),
            bytes_written: commit.bytes_written.load(Ordering::Relaxed),
            bytes_filled: commit.bytes_prewritten.load(Ordering::Relaxed),
            syncs: commit.syncs.load(Ordering::Relaxed),
            staged_bytes,
            reclaimable_bytes: compaction::view(&core.parts.segments).reclaimable_bytes(),
            retired_bytes: core.parts.segments.retired.bytes(),
            hint_bytes: core.parts.segments.all().iter().map(|segment| segment.hint_bytes()).sum(),
            compactions: compaction.jobs.load(Ordering::Relaxed),
            compaction_failures: compaction.failures.load(Ordering::Relaxed),
            compaction_error: compaction.last_error(),
            compaction_bytes_read: compaction.bytes_read.load(Ordering::Relaxed),
            compaction_bytes_written: compaction.bytes_written.load(Ordering::Relaxed),
            compaction_bytes_freed: compaction.bytes_freed.load(Ordering::Relaxed),
            compaction_paused: core.control.is_paused(),
            reserve_held_bytes: core.parts.reserve.held_bytes(),
            poisoned: core.parts.log.ended().is_some_and(|error| error.kind() == ErrorKind::Poisoned),
        }
    }

    /// How the store was found when it was opened.
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

    /// The directory, as it was given to [`open`](Store::open).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.core().options.path
    }

    /// Closes the store for all clones: what was accepted is written and synced, the log is sealed, its hint written, and
    /// the directory unlocked. A second call waits for the same end.
    ///
    /// # Errors
    ///
    /// The error that kept the store from closing cleanly. It is closed all the same, and what was acknowledged as
    /// durable is there when it is opened again.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the close goes on without the caller.
    pub fn close(&self) -> Close {
        Close::new(self.share())
    }
}

/// What a future answers that is polled after it has resolved.
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
