//! A real backend whose reads, writes and syncs a test can hold, count and fail.
//!
//! "The sync has not happened yet" becomes a state that a test controls instead of a race that it must win. The module
//! knows nothing of stores: it wraps any [`Io`]. Operations that are not held pass straight through.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use ringcask::Engine;
use ringcask::bytes::Bytes;
use ringcask::testing::io::{
    Dir, DirEntry, DirLock, File, Io, IoKind, OpFuture, OpenMode, Priority, ReadDone, SyncKind, Task,
};

use crate::helpers::DEADLINE;

/// Operations that can be held or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Sync,
    /// Reads that may wait. While they are held, page-cache probes miss; otherwise the probes pass straight through.
    Read,
    /// Tasks that have a thread but have not started.
    Start,
}

#[derive(Debug, Default)]
struct Lane {
    closed: bool,
    held: Vec<Waker>,
    waiting: usize,
    asked: u64,
    fail: Option<i32>,
    /// The number of operations that succeed before the rest fail.
    spared: u64,
    /// The thread that panics, and the number of its operations that pass before the panic.
    panic: Option<(&'static str, u64)>,
}

#[derive(Debug, Default)]
struct State {
    lanes: [Lane; 4],
    /// The name of the tasks whose reads go first, and the number of such tasks alive.
    first: Option<(&'static str, usize)>,
    preallocated: Vec<Range<u64>>,
    writebacks: Vec<Range<u64>>,
    /// Reads through a handle on which random reads are expected.
    random_reads: u64,
    read_ahead: Vec<Range<u64>>,
}

/// The controls that a test and its backend share.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Called by the thread that submits a write, before the write starts.
    at_writes: Mutex<Option<Hook>>,
}

struct Hook(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl Gate {
    /// Holds operations of `kind` that start from now on.
    pub fn close(&self, kind: Kind) {
        self.state.lock().expect("gate").lanes[kind as usize].closed = true;
    }

    /// Starts the held operations and stops holding `kind`.
    pub fn open(&self, kind: Kind) {
        let held = {
            let mut state = self.state.lock().expect("gate");
            let lane = &mut state.lanes[kind as usize];
            lane.closed = false;
            std::mem::take(&mut lane.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    /// Fails every operation of `kind` that starts from now on with `errno`. `None` stops the failures.
    pub fn fail(&self, kind: Kind, errno: Option<i32>) {
        self.state.lock().expect("gate").lanes[kind as usize].fail = errno;
    }

    /// Fails operations of `kind` with `errno` after `spared` more have succeeded.
    pub fn fail_after(&self, kind: Kind, spared: u64, errno: i32) {
        let lane = &mut self.state.lock().expect("gate").lanes[kind as usize];
        (lane.fail, lane.spared) = (Some(errno), spared);
    }

    /// Makes the thread of this name panic when it submits an operation of `kind`, after `spared` more have passed.
    pub fn panic_in(&self, kind: Kind, thread: &'static str, spared: u64) {
        self.state.lock().expect("gate").lanes[kind as usize].panic = Some((thread, spared));
    }

    /// Cancels the panic; whether the thread has panicked.
    pub fn has_panicked(&self, kind: Kind) -> bool {
        self.state.lock().expect("gate").lanes[kind as usize].panic.take().is_none()
    }

    /// Holds the reads of other threads from the spawn of a task of this name until one such task panics or all have
    /// ended.
    pub fn let_read_first(&self, thread: &'static str) {
        self.state.lock().expect("gate").first = Some((thread, 0));
    }

    fn spawned(self: &Arc<Self>, name: &'static str) -> Option<FirstReader> {
        let mut state = self.state.lock().expect("gate");
        let (_, tasks) = state.first.as_mut().filter(|(first, _)| *first == name)?;
        *tasks += 1;
        Some(FirstReader(self.clone()))
    }

    /// Ready when no other task's reads go first.
    async fn take_turn(&self, asked_by: Option<&str>) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().expect("gate");
            match state.first {
                Some((first, 1..)) if asked_by != Some(first) => {
                    state.lanes[Kind::Read as usize].held.push(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Operations of `kind` submitted so far.
    pub fn asked(&self, kind: Kind) -> u64 {
        self.state.lock().expect("gate").lanes[kind as usize].asked
    }

    /// Calls `hook` at every write; `None` removes the hook.
    pub fn at_writes(&self, hook: Option<Arc<dyn Fn() + Send + Sync>>) {
        let before = std::mem::replace(&mut *self.at_writes.lock().expect("gate"), hook.map(Hook));
        drop(before);
    }

    /// The ranges preallocated so far, of all files in order.
    pub fn preallocated(&self) -> Vec<Range<u64>> {
        self.state.lock().expect("gate").preallocated.clone()
    }

    /// The ranges whose writeback was started.
    pub fn writebacks(&self) -> Vec<Range<u64>> {
        self.state.lock().expect("gate").writebacks.clone()
    }

    /// Reads so far through handles on which random reads are expected.
    pub fn random_reads(&self) -> u64 {
        self.state.lock().expect("gate").random_reads
    }

    /// The ranges whose read-ahead was started.
    pub fn read_ahead(&self) -> Vec<Range<u64>> {
        self.state.lock().expect("gate").read_ahead.clone()
    }

    /// Blocks until `count` operations of `kind` are held.
    #[track_caller]
    pub fn wait_for_held(&self, kind: Kind, count: usize) {
        let state = self.state.lock().expect("gate");
        let enough = |state: &mut State| state.lanes[kind as usize].waiting < count;
        let (state, timeout) = self.changed.wait_timeout_while(state, DEADLINE, enough).expect("gate");
        assert!(!timeout.timed_out(), "{} of {count} {kind:?}s held", state.lanes[kind as usize].waiting);
    }

    fn is_closed(&self, kind: Kind) -> bool {
        self.state.lock().expect("gate").lanes[kind as usize].closed
    }

    fn ask(&self, kind: Kind) {
        let mut state = self.state.lock().expect("gate");
        let lane = &mut state.lanes[kind as usize];
        lane.asked += 1;
        let current = std::thread::current();
        if let Some((thread, spared)) = &mut lane.panic
            && current.name() == Some(*thread)
        {
            match spared.checked_sub(1) {
                Some(left) => *spared = left,
                None => {
                    lane.panic = None;
                    drop(state);
                    panic!("{kind:?} in {}: a panic on purpose", current.name().unwrap_or_default());
                }
            }
        }
    }

    /// Ready when the lane is open; the error that the operation must fail with, if any.
    async fn pass(&self, kind: Kind) -> io::Result<()> {
        let mut counted = false;
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().expect("gate");
            let lane = &mut state.lanes[kind as usize];
            if lane.closed {
                lane.held.push(cx.waker().clone());
                lane.waiting += usize::from(!counted);
                counted = true;
                self.changed.notify_all();
                return Poll::Pending;
            }
            lane.waiting -= usize::from(counted);
            if let Some(left) = lane.spared.checked_sub(1) {
                lane.spared = left;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(lane.fail.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno))))
        })
        .await
    }
}

/// A task whose reads go first.
struct FirstReader(Arc<Gate>);

impl Drop for FirstReader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().expect("gate");
        let has_panicked = std::thread::panicking();
        if let Some((_, tasks)) = &mut state.first {
            *tasks -= 1;
            if *tasks == 0 || has_panicked {
                state.first = None;
            }
        }
        let held = std::mem::take(&mut state.lanes[Kind::Read as usize].held);
        drop(state);
        held.into_iter().for_each(Waker::wake);
    }
}

/// A backend behind a [`Gate`].
#[derive(Debug)]
pub struct GatedIo {
    inner: Arc<dyn Io>,
    gate: Arc<Gate>,
}

impl GatedIo {
    /// Wraps the real backend of `engine`.
    pub fn around(engine: Engine) -> (Arc<dyn Io>, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Self::behind(engine, &gate), gate)
    }

    /// Wraps another backend of `engine` behind the same gate.
    pub fn behind(engine: Engine, gate: &Arc<Gate>) -> Arc<dyn Io> {
        let inner: Arc<dyn Io> = match engine {
            Engine::Uring => Arc::new(ringcask::testing::io::uring::UringIo::new(64).expect("a ring")),
            _ => Arc::new(ringcask::testing::io::threads::ThreadsIo::new()),
        };
        Arc::new(Self { inner, gate: gate.clone() })
    }
}

impl Io for GatedIo {
    fn kind(&self) -> IoKind {
        self.inner.kind()
    }

    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(GatedDir { inner: self.inner.open_dir(path, create)?, gate: self.gate.clone() }))
    }

    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()> {
        let gate = self.gate.clone();
        let first = gate.spawned(name);
        let held = async move {
            let _first = first;
            if gate.pass(Kind::Start).await.is_ok() {
                task.await;
            }
        };
        self.inner.spawn(name, priority, Box::pin(held))
    }

    fn sleep(&self, duration: Duration) -> OpFuture<()> {
        self.inner.sleep(duration)
    }

    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn wall_clock(&self) -> SystemTime {
        self.inner.wall_clock()
    }

    fn random_u64(&self) -> io::Result<u64> {
        self.inner.random_u64()
    }

    fn block_until(&self, done: &dyn Fn() -> bool) {
        // A failed test drops its store with the gate closed. The test must end with its own message and not hang.
        if std::thread::panicking() {
            self.gate.state.lock().expect("gate").first = None;
            [Kind::Write, Kind::Sync, Kind::Read].into_iter().for_each(|kind| self.gate.open(kind));
        }
        self.inner.block_until(done);
    }
}

#[derive(Debug)]
struct GatedDir {
    inner: Arc<dyn Dir>,
    gate: Arc<Gate>,
}

impl Dir for GatedDir {
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        self.inner.list()
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.open(name, mode)?;
        Ok(Arc::new(GatedFile { inner, gate: self.gate.clone(), expects_random: AtomicBool::new(false) }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.inner.unlink(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn DirLock>>> {
        self.inner.lock(name)
    }
}

#[derive(Debug)]
struct GatedFile {
    inner: Arc<dyn File>,
    gate: Arc<Gate>,
    expects_random: AtomicBool,
}

impl GatedFile {
    fn count_read(&self) {
        let is_random = self.expects_random.load(Ordering::Relaxed);
        self.gate.state.lock().expect("gate").random_reads += u64::from(is_random);
    }
}

impl File for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.count_read();
        if self.gate.is_closed(Kind::Read) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner.read_nowait(buf, offset)
    }

    fn read_at(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        self.count_read();
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        gate.ask(Kind::Read);
        let asked_by = std::thread::current();
        Box::pin(async move {
            gate.take_turn(asked_by.name()).await;
            match gate.pass(Kind::Read).await {
                Ok(()) => inner.read_at(buf, at, offset).await,
                Err(error) => ReadDone { result: Err(error), buf },
            }
        })
    }

    fn read_once(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        self.count_read();
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        gate.ask(Kind::Read);
        let asked_by = std::thread::current();
        Box::pin(async move {
            gate.take_turn(asked_by.name()).await;
            match gate.pass(Kind::Read).await {
                Ok(()) => inner.read_once(buf, at, offset).await,
                Err(error) => ReadDone { result: Err(error), buf },
            }
        })
    }

    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>> {
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        gate.ask(Kind::Write);
        let hook = gate.at_writes.lock().expect("gate").as_ref().map(|Hook(hook)| hook.clone());
        if let Some(hook) = hook {
            hook();
        }
        Box::pin(async move {
            gate.pass(Kind::Write).await?;
            inner.write_at(bufs, offset).await
        })
    }

    fn sync(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        let (inner, gate) = (self.inner.clone(), self.gate.clone());
        gate.ask(Kind::Sync);
        Box::pin(async move {
            gate.pass(Kind::Sync).await?;
            inner.sync(kind).await
        })
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.gate.state.lock().expect("gate").writebacks.push(offset..offset + len);
        self.inner.start_writeback(offset, len);
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.state.lock().expect("gate").preallocated.push(offset..offset + len);
        self.inner.allocate(offset, len)
    }

    fn writes_in_place(&self) -> bool {
        self.inner.writes_in_place()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }

    fn expect_random_reads(&self) {
        self.expects_random.store(true, Ordering::Relaxed);
        self.inner.expect_random_reads();
    }

    fn start_reading(&self, offset: u64, len: u32) {
        self.gate.state.lock().expect("gate").read_ahead.push(offset..offset + u64::from(len));
        self.inner.start_reading(offset, len);
    }

    fn evict(&self) {
        self.inner.evict();
    }
}
