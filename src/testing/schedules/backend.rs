//! A backend in memory, for the schedule explorer: its threads are the explorer's.
//!
//! # Invariants
//!
//! - An operation takes effect between its start and its completion. The explorer chooses how many polls find it
//!   unfinished. An operation whose future is dropped takes effect too.
//! - A timer may fire at any time after its start. The clock then advances to the time of the timer.
//! - A file keeps its written bytes apart from its durable bytes. A sync covers the writes that were complete when it
//!   started.
//! - The locks in this file are those of the standard library. No thread holds one at a point where the explorer may
//!   switch threads.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use shuttle::rand::Rng;

use crate::io::{
    Dir, DirEntry, DirLock, EntryKind, File, Io, IoKind, OpFuture, OpenMode, Priority, ReadDone, SyncKind, Task,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A started operation. If its future is dropped, it still takes effect.
struct DelayedOp<T> {
    effect: Option<Box<dyn FnOnce() -> T + Send>>,
    /// How many more polls find it unfinished.
    delay_polls: u32,
}

impl<T: Send + 'static> DelayedOp<T> {
    fn start(effect: impl FnOnce() -> T + Send + 'static) -> OpFuture<T> {
        let delay_polls = shuttle::rand::thread_rng().gen_range(1..=3);
        Box::pin(Self { effect: Some(Box::new(effect)), delay_polls })
    }
}

impl<T> Future for DelayedOp<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.delay_polls > 0 {
            self.delay_polls -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let effect = self.effect.take().expect("polled after its completion");
        Poll::Ready(effect())
    }
}

impl<T> Drop for DelayedOp<T> {
    fn drop(&mut self) {
        if let Some(effect) = self.effect.take() {
            effect();
        }
    }
}

/// Names and contents of the files that an open finds.
pub(crate) type FileImage = Vec<(String, Vec<u8>)>;

/// The backend, with one directory. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ExplorerBackend(Arc<BackendState>);

#[derive(Debug)]
struct BackendState {
    dir: Arc<MemDir>,
    now: Mutex<Duration>,
    random: AtomicU64,
}

impl ExplorerBackend {
    pub(crate) fn new(image: &FileImage) -> Self {
        let dir = MemDir::default();
        for (name, bytes) in image {
            let (written, durable) = (bytes.clone(), bytes.clone());
            let content = Mutex::new(FileBytes { written, durable });
            let file = MemFile(Arc::new(MemInode { content, faults: Arc::clone(&dir.faults) }));
            lock(&dir.files).insert(name.clone(), file);
        }
        Self(Arc::new(BackendState { dir: Arc::new(dir), now: Mutex::default(), random: AtomicU64::new(1) }))
    }

    pub(crate) fn dir(&self) -> Arc<MemDir> {
        Arc::clone(&self.0.dir)
    }

    /// The written bytes of all files.
    pub(crate) fn image(&self) -> FileImage {
        let files = lock(&self.0.dir.files);
        files.iter().map(|(name, file)| (name.clone(), lock(&file.0.content).written.clone())).collect()
    }

    /// Whether the durable bytes of any file contain `needle`.
    pub(crate) fn is_durable(&self, needle: &[u8]) -> bool {
        let is_in = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        lock(&self.0.dir.files).values().any(|file| is_in(&lock(&file.0.content).durable))
    }

    /// From now on, each write and sync fails with probability 1/`one_in`, until one has failed.
    pub(crate) fn fail_once(&self, one_in: u64) {
        self.0.dir.faults.one_in.store(one_in, SeqCst);
    }

    /// The number of renames so far.
    pub(crate) fn renames(&self) -> u64 {
        self.0.dir.renames.load(SeqCst)
    }

    /// Whether a handle holds the directory's lock.
    pub(crate) fn is_locked(&self) -> bool {
        self.0.dir.locked.load(SeqCst)
    }
}

impl Io for ExplorerBackend {
    fn kind(&self) -> IoKind {
        IoKind::Sim
    }

    fn open_dir(&self, _path: &Path, _create: bool) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::clone(&self.0.dir) as Arc<dyn Dir>)
    }

    fn spawn(&self, _name: &'static str, _priority: Priority, task: Task) -> io::Result<()> {
        shuttle::thread::spawn(move || shuttle::future::block_on(task));
        Ok(())
    }

    fn sleep(&self, duration: Duration) -> OpFuture<()> {
        let backend = self.clone();
        let until = self.now() + duration;
        Box::pin(async move {
            shuttle::future::yield_now().await;
            let mut now = lock(&backend.0.now);
            *now = until.max(*now);
        })
    }

    fn now(&self) -> Duration {
        *lock(&self.0.now)
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now()
    }

    fn random_u64(&self) -> io::Result<u64> {
        Ok(self.0.random.fetch_add(1, SeqCst).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn block_until(&self, _done: &dyn Fn() -> bool) {}
}

#[derive(Debug, Default)]
pub(crate) struct MemDir {
    files: Mutex<BTreeMap<String, MemFile>>,
    renames: AtomicU64,
    locked: Arc<AtomicBool>,
    faults: Arc<FaultOdds>,
}

/// Decides which write or sync fails. At most one does.
#[derive(Debug, Default)]
struct FaultOdds {
    /// A write or sync fails with probability 1/`one_in`. 0 means never.
    one_in: AtomicU64,
}

impl FaultOdds {
    /// Whether the operation that starts now fails.
    fn is_next(&self) -> bool {
        let one_in = self.one_in.load(SeqCst);
        let fails = one_in > 0 && shuttle::rand::thread_rng().gen_range(0..one_in) == 0;
        if fails {
            self.one_in.store(0, SeqCst);
        }
        fails
    }
}

#[derive(Debug)]
struct MemLock(Arc<AtomicBool>);

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl DirLock for MemLock {}

impl MemDir {
    /// The names of all files.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.files).keys().cloned().collect()
    }

    /// Creates the empty file `name`.
    pub(crate) fn create(&self, name: &str) -> Arc<dyn File> {
        self.open(name, OpenMode::CreateNew).expect("the name is free")
    }
}

impl Dir for MemDir {
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        Ok(self.names().into_iter().map(|name| DirEntry { name, kind: EntryKind::File }).collect())
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut files = lock(&self.files);
        match (files.get(name), mode) {
            (Some(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Ok(Arc::new(file.clone())),
            (None, OpenMode::CreateNew) => {
                let inode = MemInode { content: Mutex::default(), faults: Arc::clone(&self.faults) };
                let file = MemFile(Arc::new(inode));
                files.insert(name.into(), file.clone());
                Ok(Arc::new(file))
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.renames.fetch_add(1, SeqCst);
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        lock(&self.files).remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _name: &str) -> io::Result<Option<Box<dyn DirLock>>> {
        let is_free = !self.locked.swap(true, SeqCst);
        Ok(is_free.then(|| Box::new(MemLock(Arc::clone(&self.locked))) as Box<dyn DirLock>))
    }
}

#[derive(Debug, Default)]
struct FileBytes {
    written: Vec<u8>,
    durable: Vec<u8>,
}

/// A file. It lives as long as its name, a handle or an operation.
#[derive(Debug)]
struct MemInode {
    content: Mutex<FileBytes>,
    faults: Arc<FaultOdds>,
}

/// A handle of a file.
#[derive(Clone, Debug)]
struct MemFile(Arc<MemInode>);

fn read(content: &FileBytes, buf: &mut [u8], offset: u64) -> usize {
    let start = content.written.len().min(crate::io::util::to_usize(offset));
    let found = &content.written[start..];
    let len = found.len().min(buf.len());
    buf[..len].copy_from_slice(&found[..len]);
    len
}

impl File for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0.content).written.len() as u64)
    }

    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if shuttle::rand::thread_rng().gen_bool(0.5) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(read(&lock(&self.0.content), buf, offset))
    }

    fn read_at(&self, mut buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        let file = Arc::clone(&self.0);
        DelayedOp::start(move || ReadDone { result: Ok(read(&lock(&file.content), &mut buf[at..], offset)), buf })
    }

    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>> {
        let file = Arc::clone(&self.0);
        let fails = file.faults.is_next();
        DelayedOp::start(move || {
            let mut bytes = bufs.concat();
            if fails {
                bytes.truncate(bytes.len() / 2);
            }
            let start = crate::io::util::to_usize(offset);
            let written = &mut lock(&file.content).written;
            written.resize(written.len().max(start + bytes.len()), 0);
            written[start..start + bytes.len()].copy_from_slice(&bytes);
            if fails { Err(io::Error::other("the write failed")) } else { Ok(bytes.len()) }
        })
    }

    fn sync(&self, _kind: SyncKind) -> OpFuture<io::Result<()>> {
        let fails = self.0.faults.is_next();
        let covered = lock(&self.0.content).written.clone();
        let file = Arc::clone(&self.0);
        DelayedOp::start(move || {
            if fails {
                return Err(io::Error::other("the sync failed"));
            }
            lock(&file.content).durable = covered;
            Ok(())
        })
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        lock(&self.0.content).written.resize(crate::io::util::to_usize(len), 0);
        Ok(())
    }

    fn evict(&self) {}
}
