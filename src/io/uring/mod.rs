//! The io_uring backend: one ring per store thread.
//!
//! | module | job |
//! |---|---|
//! | `ring` | creates rings, and probes whether the system permits them |
//! | `slab` | owns everything the kernel uses until its completion |
//! | `driver` | one ring: accepts operations, submits, waits, reaps completions |
//! | this one | assigns operations to rings; puts a thread with a ring to sleep |
//!
//! # Which ring an operation uses
//!
//! Rings belong to the store's own threads. The kernel cancels a thread's operations when the thread exits, and
//! callers' threads may exit at any time. An operation started by a task therefore goes to the ring of the task's
//! thread. One started on any other thread (a caller's read that missed the page cache) goes through an inbox to the
//! ring of the read thread. The first such operation starts that thread.
//!
//! By default ([`WritePath`]), a task's writes and syncs bypass the ring: the kernel completes neither within
//! `io_uring_enter`, and handing them to its worker threads costs two wake-ups more than the system call.
//!
//! # How a thread sleeps
//!
//! With nothing in flight, the thread parks. Otherwise it waits in `io_uring_enter`, with a read of its doorbell's
//! eventfd armed, so that a wake-up by another thread is an ordinary completion. The doorbell knows how the thread
//! sleeps (see `io/doorbell.rs`) and writes to the eventfd only if the thread sleeps in the kernel. No thread spins.
//!
//! # Failure
//!
//! If the read thread cannot be started, each of its operations blocks the thread that started it. If a ring fails, all
//! its operations fail (see `driver`). A thread whose task has ended or panicked waits for everything in flight before
//! it drops its ring and the buffers.

mod driver;
mod ring;
mod slab;

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use driver::{Driver, FinishedOp};

use super::doorbell::Doorbell;
use super::fork::{self, fork_generation};
use super::op::Op;
use super::os::{self, Dispatch};
use super::task_thread::{self, BackendId, Reactor, TaskThread, TaskThreads};
use super::{Dir, Io, IoKind, OpFuture, Priority, Task};
use crate::options::WritePath;

pub(super) use ring::probe;

/// Default number of submission entries of a ring. Further operations wait in user space.
pub const DEFAULT_ENTRIES: u32 = 64;

/// The io_uring backend.
#[derive(Debug)]
pub struct UringIo(Arc<UringShared>);

impl UringIo {
    /// Like [`with_write_path`](Self::with_write_path), with the default path.
    ///
    /// # Errors
    ///
    /// As for [`with_write_path`](Self::with_write_path).
    #[cfg(feature = "__testing")]
    pub fn new(entries: u32) -> io::Result<Self> {
        Self::with_write_path(entries, WritePath::default())
    }

    /// Creates a backend whose rings have `entries` submission entries (rounded up to a power of two, at least 2), and whose tasks
    /// write and sync by `write_path`.
    ///
    /// # Errors
    ///
    /// If the system does not permit rings. The message gives the reason.
    pub fn with_write_path(entries: u32, write_path: WritePath) -> io::Result<Self> {
        fork::watch();
        probe()?;
        Ok(Self(Arc::new(UringShared {
            backend: BackendId::next(),
            fork_generation: fork_generation(),
            start: Instant::now(),
            entries: entries.max(2),
            write_path,
            tasks: TaskThreads::default(),
            reader: OnceLock::new(),
            reader_start: Mutex::new(()),
        })))
    }
}

impl Io for UringIo {
    fn kind(&self) -> IoKind {
        IoKind::Uring
    }

    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        let dispatch: Arc<dyn Dispatch> = Arc::<UringShared>::clone(&self.0);
        os::open_dir(path, create, dispatch)
    }

    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()> {
        self.0.tasks.add(self.0.start_thread(name, priority, task)?);
        Ok(())
    }

    fn sync_overlaps(&self) -> bool {
        self.0.write_path == WritePath::Ring
    }

    fn flush(&self) {
        if self.0.backend.owns_this_thread() {
            with_driver(Driver::submit);
        }
    }

    fn together(&self, start: &mut dyn FnMut()) {
        if self.0.backend.owns_this_thread() {
            // The task's next flush submits them together anyway.
            return start();
        }
        let ops = HeldOps::collect(start);
        if ops.is_empty() {
            return;
        }
        match self.0.reader() {
            Ok(reader) => reader.inbox.push(ops),
            Err(_) => ops.into_iter().for_each(Op::run),
        }
    }

    fn sleep(&self, duration: Duration) -> OpFuture<()> {
        task_thread::sleep(duration)
    }

    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }

    fn random_u64(&self) -> io::Result<u64> {
        os::random_u64()
    }

    fn block_until(&self, done: &dyn Fn() -> bool) {
        task_thread::block_until(self.0.backend, done);
    }
}

/// The state shared by the backend, its directories and its files.
struct UringShared {
    backend: BackendId,
    fork_generation: u64,
    start: Instant,
    entries: u32,
    write_path: WritePath,
    tasks: TaskThreads,
    reader: OnceLock<ReadThread>,
    /// Held while the read thread starts. Separate from the `OnceLock`, so that a failed start can be retried.
    reader_start: Mutex<()>,
}

impl fmt::Debug for UringShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("backend", &self.backend).field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl UringShared {
    fn start_thread(&self, name: &str, priority: Priority, task: Task) -> io::Result<TaskThread> {
        let (backend, entries) = (self.backend, self.entries);
        TaskThread::start(backend, name, priority, move || RingReactor::set_up(entries), task)
    }

    fn reader(&self) -> io::Result<&ReadThread> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let _starting = self.reader_start.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let inbox = Arc::new(Inbox::default());
        let intake = Box::pin(Intake { inbox: Arc::clone(&inbox) });
        let thread = self.start_thread("ringcask-read", Priority::Foreground, intake)?;
        Ok(self.reader.get_or_init(|| ReadThread { inbox, thread }))
    }
}

impl Dispatch for UringShared {
    fn start(&self, op: Op) {
        if self.write_path == WritePath::Thread && self.backend.owns_this_thread() && !op.is_read() {
            return op.run();
        }
        self.start_behind(op);
    }

    fn start_behind(&self, op: Op) {
        let op = if self.backend.owns_this_thread() {
            match start_here(op) {
                Ok(()) => return,
                Err(op) => op,
            }
        } else {
            op
        };
        let Some(op) = HeldOps::take(op) else { return };
        match self.reader() {
            Ok(reader) => reader.inbox.push([op]),
            Err(_) => op.run(),
        }
    }
}

impl Drop for UringShared {
    fn drop(&mut self) {
        if task_thread::has_threads(self.fork_generation) {
            if let Some(reader) = self.reader.take() {
                reader.inbox.close();
                reader.thread.join();
            }
            self.tasks.dismiss();
        } else {
            // In a forked child, a thread that does not exist there may hold the reader's locks.
            mem::forget(self.reader.take());
        }
    }
}

/// The read thread.
struct ReadThread {
    inbox: Arc<Inbox>,
    thread: TaskThread,
}

/// Operations on their way to the read thread.
#[derive(Default)]
struct Inbox(Mutex<InboxState>);

#[derive(Default)]
struct InboxState {
    ops: Vec<Op>,
    /// The read thread's waker. Present only while that thread has no queued operations, so a batch needs one wake-up.
    waker: Option<Waker>,
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, ops: impl IntoIterator<Item = Op>) {
        let mut state = self.lock();
        state.ops.extend(ops);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

thread_local! {
    /// Operations that a caller's thread has started inside [`Io::together`] and not yet passed on.
    static HELD: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
}

/// Collects the operations that a thread starts, instead of passing them on one by one.
struct HeldOps {
    /// The collection of an enclosing call.
    outer: Option<Vec<Op>>,
}

impl HeldOps {
    /// Runs `start` and returns the operations that it started for the read thread.
    fn collect(start: &mut dyn FnMut()) -> Vec<Op> {
        let held = Self { outer: HELD.replace(Some(Vec::new())) };
        start();
        let ops = HELD.take().unwrap_or_default();
        drop(held);
        ops
    }

    /// Adds `op` to the current collection, or returns it if there is none.
    fn take(op: Op) -> Option<Op> {
        let mut op = Some(op);
        // A thread that is exiting has no collection.
        let _ = HELD.try_with(|held| {
            if let Some(ops) = held.borrow_mut().as_mut() {
                ops.extend(op.take());
            }
        });
        op
    }
}

impl Drop for HeldOps {
    fn drop(&mut self) {
        // Also runs after a panic, so that no operation is held forever.
        let lost = HELD.replace(self.outer.take());
        for op in lost.into_iter().flatten() {
            op.finish(Err(io::Error::other("the thread that started the operation panicked")));
        }
    }
}

/// The read thread's task: starts the operations in the inbox until the inbox is closed.
struct Intake {
    inbox: Arc<Inbox>,
}

impl Future for Intake {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.inbox.lock();
        let ops = mem::take(&mut state.ops);
        let closed = state.closed;
        if !closed && state.waker.is_none() {
            state.waker = Some(cx.waker().clone());
        }
        drop(state);
        for op in ops {
            // Skips operations whose handle was dropped. If the thread has no ring, the operation runs here and blocks.
            if !op.is_moot()
                && let Err(op) = start_here(op)
            {
                op.run();
            }
        }
        if closed { Poll::Ready(()) } else { Poll::Pending }
    }
}

thread_local! {
    /// The ring of this store thread. It is borrowed only during a driver call, which runs no foreign code.
    static DRIVER: RefCell<Option<Driver>> = const { RefCell::new(None) };
}

/// Gives `op` to the ring of the calling thread. Returns it if the thread has no ring.
fn start_here(op: Op) -> Result<(), Op> {
    let refused = DRIVER.with(|cell| match cell.try_borrow_mut().as_deref_mut() {
        Ok(Some(driver)) => Ok(driver.start(op)),
        Ok(None) | Err(_) => Err(op),
    })?;
    if let Err((op, error)) = refused {
        // Runs foreign code, so the driver must not be borrowed.
        op.finish(Err(error));
    }
    Ok(())
}

fn with_driver<R>(call: impl FnOnce(&mut Driver) -> R) -> Option<R> {
    DRIVER.with_borrow_mut(|driver| driver.as_mut().map(call))
}

/// The reactor of a thread with a ring.
struct RingReactor {
    doorbell: Arc<Doorbell>,
    /// Reused for every delivery.
    finished: Vec<FinishedOp>,
}

impl RingReactor {
    fn set_up(entries: u32) -> io::Result<Self> {
        let doorbell = Arc::new(Doorbell::with_eventfd()?);
        let eventfd = doorbell.eventfd().ok_or_else(|| io::Error::other("the doorbell has no eventfd"))?;
        let driver = Driver::new(ring::build(entries)?, eventfd);
        DRIVER.set(Some(driver));
        Ok(Self { doorbell, finished: Vec::new() })
    }
}

impl Reactor for RingReactor {
    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn deliver(&mut self) {
        with_driver(|driver| {
            driver.reap();
            mem::swap(&mut driver.finished, &mut self.finished);
        });
        for finished in self.finished.drain(..) {
            finished.deliver();
        }
    }

    fn submit(&mut self) {
        with_driver(Driver::submit);
    }

    fn sleep(&mut self, timeout: Option<Duration>) {
        if with_driver(|driver| driver.is_idle()) != Some(false) {
            return self.doorbell.park(timeout);
        }
        if with_driver(Driver::arm_doorbell) != Some(true) {
            // Either the kernel has no room, and `arm_doorbell` has waited for it, or the ring has failed and its
            // results must be delivered.
            return;
        }
        self.doorbell.sleep_in_kernel(|| {
            with_driver(|driver| driver.wait(timeout));
        });
    }

    fn finish(&mut self) {
        loop {
            self.deliver();
            let is_done = with_driver(|driver| {
                if driver.has_failed() || (driver.is_idle() && !driver.doorbell_armed()) {
                    return true;
                }
                if driver.is_idle() {
                    self.doorbell.notify_eventfd();
                }
                driver.wait(None);
                false
            });
            if is_done != Some(false) {
                break;
            }
        }
        self.deliver();
        drop(DRIVER.take());
    }
}
