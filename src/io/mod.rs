//! The one seam between the engine and the world.
//!
//! Everything the engine does outside its own memory goes through the traits here: files, directories, the lock, time,
//! randomness and threads. The layer knows no records, no keys and no segments; it moves bytes. Three worlds implement it:
//!
//! | world | I/O of an engine task | I/O of a caller's thread | time |
//! |---|---|---|---|
//! | `uring` | the ring of the task's own thread | the ring of the read thread | the machine's |
//! | `threads` | blocking calls on the task's own thread | a small pool | the machine's |
//! | `sim` | steps of a simulated disk, in an order the seed chooses | the same | simulated |
//!
//! # Rules every world keeps (`tests/io_contract` runs them against all three)
//!
//! - An operation owns its buffers from the call until its completion. Dropping the future of an operation abandons the
//!   result, never the operation: it runs to its end and then its buffers are freed.
//! - An operation is started by the call that makes it, not by the first poll of its future.
//! - Results are raw: a read or write may be short, `Interrupted` and `WouldBlock` may come back. [`util`] holds the
//!   one loop that deals with them, so that the simulated disk can test that loop.
//! - [`File::sync`] covers the writes whose completion was *delivered* before the call, and no others.
//! - Nothing here retries a failed sync.

mod advice;
mod engine;
pub(crate) mod fork;
pub(crate) mod op;
mod os;
pub(crate) mod pages;
pub mod probe;
#[cfg(feature = "__testing")]
pub mod sim;
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

/// A task of the engine, for [`Io::spawn`].
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// How the thread of a task stands to the others. Advice: where the kernel refuses it, nothing else changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As the thread that spawns it: somebody waits for what the task does.
    Foreground,
    /// Behind it, for the processor and for reads from the disk: it may take what time it takes.
    ///
    /// For good, as without privileges no thread can take it back, and for every thread that this one starts. So a
    /// background task spawns no foreground task and makes no [`File::sync_behind`], which may start a thread.
    Background,
}

/// Which world carries out the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoKind {
    /// io_uring, a ring per engine thread.
    Uring,
    /// Blocking system calls on the engine's own threads.
    Threads,
    /// The simulated disk.
    #[cfg_attr(not(feature = "__testing"), expect(dead_code, reason = "tests alone simulate"))]
    Sim,
}

/// A world: where directories are, how late it is, and who runs the engine's tasks.
pub trait Io: Send + Sync + fmt::Debug + 'static {
    /// Which world this is.
    fn kind(&self) -> IoKind;

    /// Opens the directory at `path`, creating it (mode 0700, with its missing parents, each made durable) if `create`.
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>>;

    /// Runs `task` to its end on a thread of its own, named `name`; its operations use that thread's ring, and that
    /// thread's `priority`.
    ///
    /// A panic inside the task ends the thread, not the process; the task itself must tell others (by a drop guard).
    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()>;

    /// Whether a task's sync goes on while the task does something else; if not, the call that starts it blocks.
    fn sync_overlaps(&self) -> bool {
        true
    }

    /// Whether a read of what the page cache has overtakes reads that wait for the disk.
    fn cached_reads_overtake(&self) -> bool {
        true
    }

    /// Hands what the calling task has started to the kernel now, instead of when the task next waits.
    fn flush(&self) {}

    /// Runs `start`, and hands the operations that it starts to the kernel together where that can be.
    fn together(&self, start: &mut dyn FnMut()) {
        start();
    }

    /// Ready after `duration`. Only inside a spawned task.
    fn sleep(&self, duration: Duration) -> OpFuture<()>;

    /// Monotonic time since an arbitrary start.
    fn now(&self) -> Duration;

    /// Wall-clock time. Never decides an order.
    fn wall_clock(&self) -> SystemTime;

    /// A random number that nobody can guess (in the simulated world: the seed's next one).
    fn random_u64(&self) -> io::Result<u64>;

    /// Blocks the calling thread until `done` says so, or returns at once where the world has no other threads (`sim`),
    /// or where the calling thread is one of the engine's own, whose wait would never end.
    ///
    /// `done` is asked again whenever the thread that called is unparked, and at least every 50 ms.
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

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Anything else: a directory, symbolic link, pipe, socket or device. Never opened, never deleted.
    Other,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, lossily decoded if it is not UTF-8 (then it is not one of ours).
    pub name: String,
    /// What it names.
    pub kind: EntryKind,
}

/// One open directory. Calls block; the engine makes them on its own threads only.
pub trait Dir: Send + Sync + fmt::Debug {
    /// All names but `.` and `..`, sorted.
    fn list(&self) -> io::Result<Vec<DirEntry>>;

    /// Opens the regular file `name` without following links; anything but a regular file is `InvalidInput`.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Renames within the directory, replacing `to` atomically. Durable after [`Dir::sync`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the name. Durable after [`Dir::sync`].
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Makes every earlier create, rename and unlink in this directory durable.
    fn sync(&self) -> io::Result<()>;

    /// Takes the exclusive lock file `name`, creating it (mode 0600) if need be; `None` if somebody else holds it, in
    /// this process or another. The lock is free when the guard, or its process, is gone. The file is never removed.
    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn DirLock>>>;
}

/// A held lock; dropping it releases it.
pub trait DirLock: Send + Sync + fmt::Debug {}

/// What [`File::sync`] makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// The data, and of the metadata what is needed to read it back (the size): `fdatasync`.
    Data,
    /// Data and all metadata: `fsync`. After a truncation.
    All,
}

/// The end of a read: how many bytes came, and the buffer back.
#[derive(Debug)]
pub struct ReadDone {
    /// Bytes read into `buf[at..]`; 0 is the end of the file.
    pub result: io::Result<usize>,
    /// The buffer that went into the call.
    pub buf: Vec<u8>,
}

/// One open file. The methods that return a future start their operation at once; the others block briefly.
#[allow(clippy::len_without_is_empty, reason = "a file's length may fail to be read")]
pub trait File: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at `offset` into `buf` only what needs no waiting; `WouldBlock` if that is nothing (the read may then have
    /// been started in the background), `Unsupported` if this file cannot tell.
    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads at `offset` into `buf[at..]`, up to the buffer's end.
    fn read_at(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone>;

    /// As [`read_at`](Self::read_at), for bytes that will not be asked for again: the read leaves the page cache as it
    /// found it where the kernel can (Linux 6.14, and not every file system), and is a plain read elsewhere.
    ///
    /// For reads of some MiB, aligned to that, one after the other up to the end of what the file has. The kernel drops
    /// what a read brought in by whole folios, so that short reads fetch the same bytes again, and keeps what it read
    /// ahead until that is read as well.
    fn read_once(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        self.read_at(buf, at, offset)
    }

    /// Writes `bufs`, one after the other, at `offset`. May be short.
    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>>;

    /// Makes the writes completed so far durable. After an error the file's unsynced data must be taken as lost.
    fn sync(&self, kind: SyncKind) -> OpFuture<io::Result<()>>;

    /// As [`sync`](Self::sync), for a sync nobody waits for: it never blocks the task that starts it.
    fn sync_behind(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        self.sync(kind)
    }

    /// Asks the kernel to begin writing `offset..offset + len` to the disk, so that a later sync finds less to do.
    ///
    /// It promises nothing: not that anything is written, and never that anything is durable, which is for
    /// [`sync`](Self::sync) alone to say. Does not wait for the disk, but may for room in the disk's queue: for bytes that
    /// are many compared with such a wait, and for whole pages, as whoever writes to one again may wait for it. A hint: errors are not reported, and a failed write is the later
    /// sync's to report.
    fn start_writeback(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Claims disk space for `offset..offset + len` without changing the file's length, so that writing there cannot
    /// fail for want of space. `Unsupported` where the file system cannot; `FileTooLarge` beyond the process's limit of a
    /// file's size.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Cuts or extends the file to `len`, and gives back space claimed beyond it.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Whether bytes written over others go to the same blocks of the disk, as far as is known: then a sync of them has no
    /// metadata to write.
    fn writes_in_place(&self) -> bool {
        false
    }

    /// Says that reads of this file, through this handle, will come from anywhere in it: each should bring in what it asks
    /// for and nothing beyond. For good. A hint: errors are not reported.
    ///
    /// The kernel guesses otherwise from which pages happen to be cached, and under random reads it guesses wrong. But it
    /// also stops using large pages for what it brings in: who reads from end to end opens the file anew.
    fn expect_random_reads(&self) {}

    /// Has the kernel begin to read `offset..offset + len` into the page cache, as far as the file has it. On a caller's thread
    /// this never blocks: memory and room in the disk's queue are found elsewhere, as for [`read_at`](Self::read_at). A hint:
    /// errors are not reported, and the reads to come will meet them.
    fn start_reading(&self, offset: u64, len: u32) {
        let _ = (offset, len);
    }

    /// Drops clean cached pages, so that the next read asks the disk. A hint: errors are not reported.
    fn evict(&self);
}
