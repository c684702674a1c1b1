//! A world in memory whose threads are the explorer's and whose operations take as long as the explorer likes.
//!
//! An operation takes effect at some time between its start and its completion; a timer fires at any time after it was
//! armed, and then that late it is. A file keeps what was written apart from what a sync has made durable: a sync covers
//! what was complete when it began. The locks in here are real ones, held over no point at which the explorer switches.

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

/// An operation that is under way from the call that makes it; abandoned, it is done all the same.
struct Op<T> {
    effect: Option<Box<dyn FnOnce() -> T + Send>>,
    /// How often it is found unfinished.
    delay: u32,
}

impl<T: Send + 'static> Op<T> {
    fn start(effect: impl FnOnce() -> T + Send + 'static) -> OpFuture<T> {
        let delay = shuttle::rand::thread_rng().gen_range(1..=3);
        Box::pin(Self { effect: Some(Box::new(effect)), delay })
    }
}

impl<T> Future for Op<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.delay > 0 {
            self.delay -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let effect = self.effect.take().expect("polled after its completion");
        Poll::Ready(effect())
    }
}

impl<T> Drop for Op<T> {
    fn drop(&mut self) {
        if let Some(effect) = self.effect.take() {
            effect();
        }
    }
}

/// The files of a directory as an open finds them.
pub(crate) type Image = Vec<(String, Vec<u8>)>;

#[derive(Clone, Debug)]
pub(crate) struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Arc<MemDir>,
    now: Mutex<Duration>,
    random: AtomicU64,
}

impl World {
    pub(crate) fn new(image: &Image) -> Self {
        let dir = MemDir::default();
        for (name, bytes) in image {
            let (written, durable) = (bytes.clone(), bytes.clone());
            let content = Mutex::new(Content { written, durable });
            let file = MemFile(Arc::new(Inode { content, faults: Arc::clone(&dir.faults) }));
            lock(&dir.files).insert(name.clone(), file);
        }
        Self(Arc::new(Inner { dir: Arc::new(dir), now: Mutex::default(), random: AtomicU64::new(1) }))
    }

    pub(crate) fn dir(&self) -> Arc<MemDir> {
        Arc::clone(&self.0.dir)
    }

    pub(crate) fn image(&self) -> Image {
        let files = lock(&self.0.dir.files);
        files.iter().map(|(name, file)| (name.clone(), lock(&file.0.content).written.clone())).collect()
    }

    /// Whether some file holds `needle` durably.
    pub(crate) fn is_durable(&self, needle: &[u8]) -> bool {
        let is_in = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        lock(&self.0.dir.files).values().any(|file| is_in(&lock(&file.0.content).durable))
    }

    /// Lets each write and sync from now on fail with a chance of one in `one_in`, until one has.
    pub(crate) fn fail_once(&self, one_in: u64) {
        self.0.dir.faults.one_in.store(one_in, SeqCst);
    }

    /// How many files have been put in their place so far.
    pub(crate) fn renames(&self) -> u64 {
        self.0.dir.renames.load(SeqCst)
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.0.dir.locked.load(SeqCst)
    }
}

impl Io for World {
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
        let world = self.clone();
        let until = self.now() + duration;
        Box::pin(async move {
            shuttle::future::yield_now().await;
            let mut now = lock(&world.0.now);
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
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    /// A write or sync fails with a chance of one in so many; 0 = never.
    one_in: AtomicU64,
}

impl Faults {
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
struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl DirLock for Held {}

impl MemDir {
    /// The names of its files.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.files).keys().cloned().collect()
    }

    /// A new, empty file.
    pub(crate) fn create(&self, name: &str) -> Arc<dyn File> {
        self.open(name, OpenMode::CreateNew).expect("a name that is not taken")
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
                let inode = Inode { content: Mutex::default(), faults: Arc::clone(&self.faults) };
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
        Ok(is_free.then(|| Box::new(Held(Arc::clone(&self.locked))) as Box<dyn DirLock>))
    }
}

#[derive(Debug, Default)]
struct Content {
    written: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
struct Inode {
    content: Mutex<Content>,
    faults: Arc<Faults>,
}

/// A handle; a file lives as long as its name, a handle or an operation.
#[derive(Clone, Debug)]
struct MemFile(Arc<Inode>);

fn read(content: &Content, buf: &mut [u8], offset: u64) -> usize {
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
        Op::start(move || ReadDone { result: Ok(read(&lock(&file.content), &mut buf[at..], offset)), buf })
    }

    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>> {
        let file = Arc::clone(&self.0);
        let fails = file.faults.is_next();
        Op::start(move || {
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
        Op::start(move || {
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
