//! Threads that run the store's tasks: one task per thread, with its timers and its end.
//!
//! Both real backends run their tasks here. They differ in the [`Reactor`], which defines how a thread sleeps and how
//! it delivers finished operations. There is no executor and no run queue, because a thread has exactly one task.
//!
//! # Failure
//!
//! A panic of the task ends its thread, after the operations in flight have completed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::doorbell::Doorbell;
use super::fork::{block_signals, fork_generation};
use super::op::{Completer, OpHandle, quietly, slot};
use super::{OpFuture, Priority, Task, advice};

/// Interval at which [`block_until`] checks without being unparked.
const BLOCK_INTERVAL: Duration = Duration::from_millis(50);

/// The pending sleeps of one thread's task, ordered by deadline and then by creation.
#[derive(Default)]
pub(super) struct Timers {
    pending: Mutex<BTreeMap<(Instant, u64), Completer<()>>>,
    asked_count: AtomicU64,
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Completer<()>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fire(&self, now: Instant) {
        loop {
            let mut pending = self.lock();
            let Some(first) = pending.first_entry().filter(|entry| entry.key().0 <= now) else { return };
            let done = first.remove();
            drop(pending);
            done.complete(());
        }
    }

    fn until_next(&self, now: Instant) -> Option<Duration> {
        self.lock().first_key_value().map(|(key, _)| key.0.saturating_duration_since(now))
    }
}

/// A pending sleep. Dropping it removes the timer.
struct TimerSleep {
    timers: Arc<Timers>,
    key: (Instant, u64),
    handle: OpHandle<()>,
}

impl Future for TimerSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A task whose operations are always ready at once polls in a loop, and its thread never fires the timers.
        let now = Instant::now();
        if self.key.0 <= now {
            self.timers.fire(now);
        }
        Pin::new(&mut self.handle).poll(cx)
    }
}

impl Drop for TimerSleep {
    fn drop(&mut self) {
        let forgotten = self.timers.lock().remove(&self.key);
        drop(forgotten);
    }
}

/// Completes after `duration` when called in a thread's own task. Other threads have no timers, so there the first poll
/// blocks instead.
pub(super) fn sleep(duration: Duration) -> OpFuture<()> {
    let Some(deadline) = Instant::now().checked_add(duration) else { return Box::pin(std::future::pending()) };
    let timers = CURRENT.with_borrow(|current| current.as_ref().map(|current| Arc::clone(&current.timers)));
    let Some(timers) = timers else {
        return Box::pin(async move { thread::sleep(deadline.saturating_duration_since(Instant::now())) });
    };
    let (done, handle) = slot();
    let key = (deadline, timers.asked_count.fetch_add(1, Ordering::Relaxed));
    timers.lock().insert(key, done);
    Box::pin(TimerSleep { timers, key, handle })
}

struct ThreadContext {
    backend: BackendId,
    timers: Arc<Timers>,
}

thread_local! {
    /// Set for the whole life of a backend's thread.
    static CURRENT: RefCell<Option<ThreadContext>> = const { RefCell::new(None) };
}

/// Identifies a backend within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackendId(u64);

impl BackendId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the calling thread belongs to this backend.
    pub(super) fn owns_this_thread(self) -> bool {
        CURRENT.with_borrow(|current| current.as_ref().is_some_and(|current| current.backend == self))
    }

    /// Makes the calling thread one of this backend's threads.
    pub(super) fn adopt_this_thread(self) -> Arc<Timers> {
        block_signals();
        let timers = Arc::new(Timers::default());
        CURRENT.set(Some(ThreadContext { backend: self, timers: Arc::clone(&timers) }));
        timers
    }
}

/// [`super::Io::block_until`] for the real backends.
pub(super) fn block_until(backend: BackendId, done: &dyn Fn() -> bool) {
    if backend.owns_this_thread() {
        return;
    }
    while !done() {
        thread::park_timeout(BLOCK_INTERVAL);
    }
}

/// What a thread does besides polling its task.
pub(super) trait Reactor {
    /// The doorbell that wakes the thread.
    fn doorbell(&self) -> &Arc<Doorbell>;

    /// Delivers the available results. Makes no system call.
    fn deliver(&mut self);

    /// Submits to the kernel what the task has started. Does not wait.
    fn submit(&mut self);

    /// Does what [`Reactor::submit`] does, then sleeps until the doorbell is notified, a result arrives or `timeout`
    /// has passed. May return early.
    fn sleep(&mut self, timeout: Option<Duration>);

    /// Waits for all operations in flight and releases their resources. Called after the task has been dropped.
    fn finish(&mut self);
}

/// The reactor of a thread whose operations block.
pub(super) struct ParkReactor(Arc<Doorbell>);

impl ParkReactor {
    pub(super) fn new() -> Self {
        Self(Arc::new(Doorbell::new()))
    }
}

impl Reactor for ParkReactor {
    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.0
    }

    fn deliver(&mut self) {}

    fn submit(&mut self) {}

    fn sleep(&mut self, timeout: Option<Duration>) {
        self.0.park(timeout);
    }

    fn finish(&mut self) {}
}

/// Polls `task` to completion.
fn drive(task: &mut Task, reactor: &mut impl Reactor, timers: &Timers) {
    let doorbell = Arc::clone(reactor.doorbell());
    let waker = Waker::from(Arc::clone(&doorbell));
    let mut cx = Context::from_waker(&waker);
    loop {
        doorbell.acknowledge();
        if task.as_mut().poll(&mut cx).is_ready() {
            return;
        }
        loop {
            reactor.deliver();
            let now = Instant::now();
            timers.fire(now);
            if doorbell.is_notified() {
                // A task that is always ready must not delay the submission of what it started.
                reactor.submit();
                break;
            }
            reactor.sleep(timers.until_next(now));
        }
    }
}

/// A running task thread.
pub(super) struct TaskThread {
    handle: JoinHandle<()>,
    task_over: Arc<AtomicBool>,
}

impl TaskThread {
    /// Starts a thread that sets up its reactor and runs `task`. Returns an error of the setup.
    pub(super) fn start<R: Reactor>(
        backend: BackendId,
        name: &str,
        priority: Priority,
        setup: impl FnOnce() -> io::Result<R> + Send + 'static,
        task: Task,
    ) -> io::Result<Self> {
        let (report, setup_result) = mpsc::sync_channel(1);
        let task_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&task_over);
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let timers = backend.adopt_this_thread();
            // Before the setup: the kernel workers of a ring inherit the priority.
            advice::take_priority(priority);
            match setup() {
                Ok(reactor) => {
                    // The receiver is waiting.
                    let _ = report.send(Ok(()));
                    run(task, reactor, &timers, &over);
                }
                Err(error) => drop(report.send(Err(error))),
            }
        })?;
        match setup_result.recv() {
            Ok(Ok(())) => Ok(Self { handle, task_over }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the task thread ended during its setup")),
        }
    }

    /// Waits for the thread to end, unless it is the calling thread.
    pub(super) fn join(self) {
        join_other(self.handle);
    }
}

/// Waits for a thread to end, unless it is the calling thread: a waker may drop the last handle on any thread.
pub(super) fn join_other(handle: JoinHandle<()>) {
    if handle.thread().id() != thread::current().id() {
        // The thread catches panics, so the result carries no information.
        let _ = handle.join();
    }
}

fn run(mut task: Task, mut reactor: impl Reactor, timers: &Timers, task_over: &AtomicBool) {
    let ended = catch_unwind(AssertUnwindSafe(|| drive(&mut task, &mut reactor, timers)));
    task_over.store(true, Ordering::Release);
    // The task's drop guards report its end. They run here, while operations still work.
    quietly(|| drop(task));
    quietly(|| reactor.finish());
    if let Err(payload) = ended {
        mem::forget(payload);
    }
}

/// The task threads of a backend.
///
/// Dropping it without calling [`TaskThreads::dismiss`] does nothing: in a forked child the threads do not exist, and
/// even detaching them would touch memory that belongs to the parent's threads.
#[derive(Default)]
pub(super) struct TaskThreads(Mutex<ManuallyDrop<Vec<TaskThread>>>);

impl TaskThreads {
    fn lock(&self) -> MutexGuard<'_, ManuallyDrop<Vec<TaskThread>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, thread: TaskThread) {
        let mut threads = self.lock();
        threads.retain(|thread| !thread.handle.is_finished());
        threads.push(thread);
    }

    /// Joins the threads whose task is over and which only clean up. Does not touch threads whose task still runs.
    pub(super) fn dismiss(&self) {
        let threads = mem::take(&mut **self.lock());
        for thread in threads {
            if thread.task_over.load(Ordering::Acquire) {
                thread.join();
            }
        }
    }
}

/// Whether a backend created in fork generation `generation` still has its threads. In a forked child it has none.
pub(super) fn has_threads(generation: u64) -> bool {
    fork_generation() == generation
}
