//! The world of io_uring: a ring per engine thread.
//!
//! | module | job |
//! |---|---|
//! | `ring` | setting rings up, and finding out whether one may |
//! | `slab` | who owns what the kernel uses, until its completion |
//! | `driver` | one ring: in, submit, wait, out |
//! | this one | whose ring an operation goes to, and how a thread with a ring sleeps |
//!
//! # Whose ring
//!
//! A ring lives and dies in a thread of ours: the kernel cancels what a thread has in flight when it exits, and callers'
//! threads exit when they like. So an operation made in a task goes to that task's thread's ring, and one made on any
//! other thread (a caller's read that missed the page cache) goes through an inbox to the ring of one read thread, which
//! starts with the first such operation.
//!
//! Writes and syncs are an exception by default ([`WritePath`]): the kernel completes neither within `io_uring_enter`, and
//! handing them to its worker threads costs two wake-ups more than making the call does.
//!
//! # How a thread sleeps
//!
//! With nothing in flight it parks. Otherwise it waits in `io_uring_enter`, with a read of its doorbell's eventfd armed
//! so that a wake-up from elsewhere is a completion like any other. Wakers know which (see `io/engine.rs`), and write
//! to the eventfd only if the thread sleeps in the kernel. Nothing spins.
//!
//! # Failure
//!
//! Where the read thread cannot be started, its operations block the thread that made them. A ring that fails fails its
//! operations (see `driver`). A thread whose task is over, or has panicked, waits for everything in flight before its ring
//! and the buffers go.

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

use driver::{Driver, Finished};

use super::engine::{self, Crew, Doorbell, Member, Reactor, WorldId};
use super::fork::{self, fork_generation};
use super::op::Op;
use super::os::{self, Dispatch};
use super::probe::WritePath;
use super::{Dir, Io, IoKind, OpFuture, Priority, Task};

pub(super) use ring::probe;

/// Submission entries of a ring, if nothing else is asked for. What exceeds it waits in user space.
pub const DEFAULT_ENTRIES: u32 = 64;

/// The world of io_uring.
#[derive(Debug)]
pub struct UringIo(Arc<Shared>);

impl UringIo {
    /// As [`with_write_path`](Self::with_write_path), with the default path.
    ///
    /// # Errors
    /// As [`with_write_path`](Self::with_write_path).
    #[cfg(feature = "__testing")]
    pub fn new(entries: u32) -> io::Result<Self> {
        Self::with_write_path(entries, WritePath::default())
    }

    /// A world whose rings have `entries` submission entries (rounded up to a power of two, at least 2), and whose tasks write
    /// and sync by `write_path`.
    ///
    /// # Errors
    /// If this machine does not let us have rings; the message says why.
    pub fn with_write_path(entries: u32, write_path: WritePath) -> io::Result<Self> {
        fork::watch();
        probe()?;
        Ok(Self(Arc::new(Shared {
            world: WorldId::next(),
            fork_generation: fork_generation(),
            start: Instant::now(),
            entries: entries.max(2),
            write_path,
            crew: Crew::default(),
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
        let dispatch: Arc<dyn Dispatch> = Arc::<Shared>::clone(&self.0);
        os::open_dir(path, create, dispatch)
    }

    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()> {
        self.0.crew.add(self.0.start_thread(name, priority, task)?);
        Ok(())
    }

    fn sync_overlaps(&self) -> bool {
        self.0.write_path == WritePath::Ring
    }

    fn flush(&self) {
        if self.0.world.owns_this_thread() {
            with_driver(Driver::submit);
        }
    }

    fn together(&self, start: &mut dyn FnMut()) {
        if self.0.world.owns_this_thread() {
            // They wait for the task's next flush as it is.
            return start();
        }
        let ops = Held::collect(start);
        if ops.is_empty() {
            return;
        }
        match self.0.reader() {
            Ok(reader) => reader.inbox.push(ops),
            Err(_) => ops.into_iter().for_each(Op::run),
        }
    }

    fn sleep(&self, duration: Duration) -> OpFuture<()> {
        engine::sleep(duration)
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
        engine::block_until(self.0.world, done);
    }
}

/// What the world, its directories and its files hold on to.
struct Shared {
    world: WorldId,
    fork_generation: u64,
    start: Instant,
    entries: u32,
    write_path: WritePath,
    crew: Crew,
    reader: OnceLock<Reader>,
    /// Held by who starts the reader. Not a `OnceLock`'s own lock, so that a start that failed is tried again.
    reader_start: Mutex<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("world", &self.world).field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Shared {
    fn start_thread(&self, name: &str, priority: Priority, task: Task) -> io::Result<Member> {
        let (world, entries) = (self.world, self.entries);
        Member::start(world, name, priority, move || RingReactor::set_up(entries), task)
    }

    fn reader(&self) -> io::Result<&Reader> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let _starting = self.reader_start.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let inbox = Arc::new(Inbox::default());
        let intake = Box::pin(Intake { inbox: Arc::clone(&inbox) });
        let member = self.start_thread("ringcask-read", Priority::Foreground, intake)?;
        Ok(self.reader.get_or_init(|| Reader { inbox, member }))
    }
}

impl Dispatch for Shared {
    fn start(&self, op: Op) {
        if self.write_path == WritePath::Thread && self.world.owns_this_thread() && !op.is_read() {
            return op.run();
        }
        self.start_behind(op);
    }

    fn start_behind(&self, op: Op) {
        let op = if self.world.owns_this_thread() {
            match start_here(op) {
                Ok(()) => return,
                Err(op) => op,
            }
        } else {
            op
        };
        let Some(op) = Held::take(op) else { return };
        match self.reader() {
            Ok(reader) => reader.inbox.push([op]),
            Err(_) => op.run(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if engine::has_threads(self.fork_generation) {
            if let Some(reader) = self.reader.take() {
                reader.inbox.close();
                reader.member.join();
            }
            self.crew.dismiss();
        } else {
            // A forked child: the reader's locks may be held by a thread that does not exist here.
            mem::forget(self.reader.take());
        }
    }
}

/// The read thread.
struct Reader {
    inbox: Arc<Inbox>,
    member: Member,
}

/// Operations on their way to the read thread.
#[derive(Default)]
struct Inbox(Mutex<InboxState>);

#[derive(Default)]
struct InboxState {
    ops: Vec<Op>,
    /// The read thread's waker, there only while that thread knows of no operation: one wake per batch.
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
    /// Operations that a caller's thread has started and not handed on, while it starts more.
    static HELD: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
}

/// Holds back what a thread starts.
struct Held {
    /// What an outer one has held back so far.
    outer: Option<Vec<Op>>,
}

impl Held {
    /// Runs `start`; what it starts for the read thread is returned instead.
    fn collect(start: &mut dyn FnMut()) -> Vec<Op> {
        let held = Self { outer: HELD.replace(Some(Vec::new())) };
        start();
        let ops = HELD.take().unwrap_or_default();
        drop(held);
        ops
    }

    /// Holds `op` back, or gives it back where nothing is held back.
    fn take(op: Op) -> Option<Op> {
        let mut op = Some(op);
        // A thread that is ending holds nothing back.
        let _ = HELD.try_with(|held| {
            if let Some(ops) = held.borrow_mut().as_mut() {
                ops.extend(op.take());
            }
        });
        op
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // After a panic as well: nothing may be held back for ever.
        let lost = HELD.replace(self.outer.take());
        for op in lost.into_iter().flatten() {
            op.finish(Err(io::Error::other("the thread that started it panicked")));
        }
    }
}

/// The read thread's task: starts what is in the inbox, until that is closed.
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
            // Nobody waits for a moot one. One that finds no ring was not meant to come here; it is carried out all the same.
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
    /// The ring of this engine thread. Borrowed for the length of a driver's call, which runs no foreign code.
    static DRIVER: RefCell<Option<Driver>> = const { RefCell::new(None) };
}

/// Gives `op` to the ring of the calling thread, or back if there is none.
fn start_here(op: Op) -> Result<(), Op> {
    let refused = DRIVER.with(|cell| match cell.try_borrow_mut().as_deref_mut() {
        Ok(Some(driver)) => Ok(driver.start(op)),
        Ok(None) | Err(_) => Err(op),
    })?;
    if let Err((op, error)) = refused {
        // Runs foreign code: not while the driver is borrowed.
        op.finish(Err(error));
    }
    Ok(())
}

fn with_driver<R>(call: impl FnOnce(&mut Driver) -> R) -> Option<R> {
    DRIVER.with_borrow_mut(|driver| driver.as_mut().map(call))
}

/// A thread with a ring.
struct RingReactor {
    doorbell: Arc<Doorbell>,
    /// Reused from one delivery to the next.
    finished: Vec<Finished>,
}

impl RingReactor {
    fn set_up(entries: u32) -> io::Result<Self> {
        let doorbell = Arc::new(Doorbell::with_eventfd()?);
        let eventfd = doorbell.eventfd().ok_or_else(|| io::Error::other("a doorbell without its eventfd"))?;
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
            // No room in the kernel, and it has been waited for; or the ring has failed, and there is news to deliver.
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
                    self.doorbell.ring_eventfd();
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
