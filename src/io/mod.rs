//! The storage backend: the one seam between the store and the operating system.
//!
//! The store does everything outside its own memory through the traits here: files, directories, the lock file, time,
//! random numbers and threads. This layer knows no records, keys or segments; it moves bytes. A backend implements
//! [`Io`]. There are three:
//!
//! | backend | I/O started by a store task | I/O started by a caller's thread | time |
//! |---|---|---|---|
//! | `uring` | the ring of the task's thread | the ring of the read thread | real |
//! | `threads` | blocking calls on the task's thread | a small thread pool | real |
//! | `sim` | steps of a simulated disk, ordered by the seed | the same | simulated |
//!
//! # Rules that every backend keeps
//!
//! `tests/io_contract` checks these rules against all three backends.
//!
//! - An operation owns its buffers from the call until its completion. Dropping the future of an operation discards the
//!   result but does not cancel the operation: it completes, and then its buffers are freed.
//! - The call itself starts the operation, not the first poll.
//! - Results are raw: a read or write may be short, and `Interrupted` and `WouldBlock` may come back. The loops in
//!   [`util`] handle them, so that the simulated disk can test those loops.
//! - [`File::sync`] covers the writes whose completion was *delivered* before the call. It promises
//!   nothing for other writes.
//! - No backend retries a failed sync.

mod advice;
mod descriptor;
mod doorbell;
pub(crate) mod fork;
pub(crate) mod op;
mod os;
pub(crate) mod pages;
pub mod probe;
#[cfg(feature = "__testing")]
pub mod sim;
mod task_thread;
pub mod threads;
pub mod uring;
pub mod util;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// The future of one started operation.
pub type OpFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// A background task of the store, for [`Io::spawn`].
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// The scheduling priority of a task's thread. It is advice: if the kernel refuses it, nothing else changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The priority of the spawning thread, for tasks that callers wait for.
    Foreground,
    /// Lower CPU and disk-read priority than foreground threads, for work that may take long.
    ///
    /// The thread keeps this priority for life, because an unprivileged thread cannot raise it again, and every thread
    /// that it starts inherits it. A background task therefore spawns no foreground task and never calls
    /// [`File::sync_behind`], which may start a thread.
    Background,
}

/// The kind of backend that carries out the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoKind {
    /// io_uring, with one ring per store thread.
    Uring,
    /// Blocking system calls on the store's own threads.
    Threads,
    /// The simulated disk.
    #[cfg_attr(not(feature = "__testing"), expect(dead_code, reason = "tests alone simulate"))]
    Sim,
}

/// A storage backend: opens directories, tells the time and runs the store's tasks.
pub trait Io: Send + Sync + fmt::Debug + 'static {
    /// The kind of this backend.
    fn kind(&self) -> IoKind;

    /// Opens the directory at `path`. If `create` is set, creates it (mode 0700) and its missing parents, each made
    /// durable.
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>>;

    /// Runs `task` to completion on a new thread named `name` with the given `priority`. The task's operations use that
    /// thread's ring.
    ///
    /// A panic of the task ends the thread but not the process. The task itself must report it, for example with a drop
    /// guard.
    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()>;

    /// Whether a task can do other work while its sync runs. If not, the call that starts the sync blocks.
    fn sync_overlaps(&self) -> bool {
        true
    }

    /// Whether a read served from the page cache can finish before earlier reads that wait for the disk.
    fn cached_reads_overtake(&self) -> bool {
        true
    }

    /// Submits the operations that the calling task has started now, instead of when the task next waits.
    fn flush(&self) {}

    /// Runs `start` and, where the backend can, submits the operations it starts in one batch.
    fn together(&self, start: &mut dyn FnMut()) {
        start();
    }

    /// Completes after `duration`. May be called only inside a spawned task.
    fn sleep(&self, duration: Duration) -> OpFuture<()>;

    /// Monotonic time since an arbitrary origin.
    fn now(&self) -> Duration;

    /// Wall-clock time. The store never orders anything by it.
    fn wall_clock(&self) -> SystemTime;

    /// An unpredictable random number. The simulated backend returns the next number of its seed.
    fn random_u64(&self) -> io::Result<u64>;

    /// Blocks the calling thread until `done` returns true.
    ///
    /// Returns at once if the backend has no other threads (`sim`), or if the calling thread is one of the store's own,
    /// because then the wait would never end. Calls `done` again each time the calling thread is unparked, and at least
    /// every 50 ms.
    fn block_until(&self, done: &dyn Fn() -> bool);
}

/// How [`Dir::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file (mode 0600), for reading and writing; `AlreadyExists` if the name is taken.
    CreateNew,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Anything else: a directory, symbolic link, pipe, socket or device. The store never opens or deletes it.
    Other,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, decoded lossily if it is not UTF-8. The store creates only UTF-8 names.
    pub name: String,
    /// The type of the entry.
    pub kind: EntryKind,
}

/// An open directory. Its methods block, so the store calls them only on its own threads.
pub trait Dir: Send + Sync + fmt::Debug {
    /// All names except `.` and `..`, sorted.
    fn list(&self) -> io::Result<Vec<DirEntry>>;

    /// Opens the regular file `name` without following links. Returns `InvalidInput` if it is not a regular file.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Renames `from` to `to` within the directory, replacing `to` atomically. Durable after [`Dir::sync`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the name. Durable after [`Dir::sync`].
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Makes all earlier creates, renames and unlinks in this directory durable.
    fn sync(&self) -> io::Result<()>;

    /// Takes the exclusive lock on the file `name`, creating the file (mode 0600) if necessary.
    ///
    /// Returns `None` if this process or another one holds the lock. The lock is released when the guard is dropped or
    /// the process ends. The file is never removed. The real backends write the holder's PID into it, as decimal text
    /// and a line feed, if they can.
    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn DirLock>>>;
}

/// A held lock. Dropping it releases the lock.
pub trait DirLock: Send + Sync + fmt::Debug {}

/// What a [`File::sync`] makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// The data, and the metadata needed to read it back (the file size): `fdatasync`.
    Data,
    /// The data and all metadata: `fsync`. Required after a truncation.
    All,
}

/// The result of a read, together with the buffer.
#[derive(Debug)]
pub struct ReadDone {
    /// The number of bytes read into `buf[at..]`; 0 at the end of the file.
    pub result: io::Result<usize>,
    /// The buffer that was passed to the call.
    pub buf: Vec<u8>,
}

/// An open file. Methods that return a future start their operation at once; the others block briefly.
#[allow(clippy::len_without_is_empty, reason = "a file's length may fail to be read")]
pub trait File: Send + Sync + fmt::Debug {
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at `offset` into `buf` whatever is available without waiting.
    ///
    /// Returns `WouldBlock` if nothing is available; the kernel may then have started the read in the background.
    /// Returns `Unsupported` if the file system cannot answer.
    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads at `offset` into `buf[at..]`, at most to the end of the buffer.
    fn read_at(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone>;

    /// Like [`read_at`](Self::read_at), for bytes that will not be read again: the read leaves no new pages in the page
    /// cache if the kernel (Linux 6.14 or later) and the file system support that, and is a plain read otherwise.
    ///
    /// Use it for aligned, consecutive reads of some MiB up to the end of the data. The kernel drops the pages it read
    /// by whole folios, so short reads fetch the same bytes again. It keeps pages that it read ahead until they are
    /// read too.
    fn read_once(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        self.read_at(buf, at, offset)
    }

    /// Writes `bufs` at `offset`, one after the other. May be short.
    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>>;

    /// Makes the writes completed so far durable. After an error, treat the file's unsynced data as lost.
    fn sync(&self, kind: SyncKind) -> OpFuture<io::Result<()>>;

    /// Like [`sync`](Self::sync), for a sync that no caller waits for: it never blocks the task that starts it.
    fn sync_behind(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        self.sync(kind)
    }

    /// Asks the kernel to start writing `offset..offset + len` to the disk, so that a later sync has less to do.
    ///
    /// This is a hint: it guarantees neither that anything is written nor that anything is durable; only
    /// [`sync`](Self::sync) does. It reports no errors; a failed write is reported by the next sync. It does not wait
    /// for the disk, but may wait for room in the disk's queue, so the range should be large compared with such a wait.
    /// The range should cover whole pages, because a later write to a page under writeback may have to wait.
    fn start_writeback(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Preallocates disk space for `offset..offset + len` without changing the file's length, so that a write there
    /// cannot fail for lack of space.
    ///
    /// Returns `Unsupported` if the file system cannot preallocate, and `FileTooLarge` beyond the process's file-size
    /// limit.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Truncates or extends the file to `len`, and frees space preallocated beyond it.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Whether overwritten bytes are known to keep their disk blocks. A sync of an overwrite then has no metadata to
    /// write.
    fn writes_in_place(&self) -> bool {
        false
    }

    /// Declares that reads through this handle are random: each should fetch only the bytes it asks for. The setting is
    /// permanent for the handle. It is a hint and reports no errors.
    ///
    /// Without it the kernel guesses from the pages that happen to be cached, and guesses wrong under random reads. The
    /// setting also stops the kernel from using large pages, so code that reads a file sequentially opens it again.
    fn expect_random_reads(&self) {}

    /// Starts reading `offset..offset + len`, up to the end of the file, into the page cache.
    ///
    /// On a caller's thread this never blocks: another thread waits for memory and for room in the disk's queue, as for
    /// [`read_at`](Self::read_at). It is a hint; errors surface in later reads.
    fn start_reading(&self, offset: u64, len: u32) {
        let _ = (offset, len);
    }

    /// Drops clean cached pages, so that the next read goes to the disk. It is a hint and reports no errors.
    fn evict(&self);
}
