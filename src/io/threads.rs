//! The thread backend: blocking system calls on the store's own threads.
//!
//! An operation started on a task's thread runs there at once, so its future is ready immediately. The task would only
//! wait for it, and running it in place avoids a switch to another thread. An operation started on any other thread (a
//! caller's read that missed the page cache) goes to a pool of two threads. The first such operation starts the pool.
//!
//! # Concurrency
//!
//! The pool's queue is one mutex and one condition variable. The number of callers bounds its length, because each
//! caller waits for its operation.
//!
//! # Failure
//!
//! If no pool thread can be started, the caller's thread runs the operation itself. The pool finishes the queued
//! operations before the backend's last handle (the backend, a directory or a file) is dropped.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use super::fork::{self, fork_generation};
use super::op::{Op, quietly};
use super::os::{self, Dispatch};
use super::task_thread::{self, BackendId, ParkReactor, TaskThread, TaskThreads};
use super::{Dir, Io, IoKind, OpFuture, Priority, Task};

/// Pool threads for callers' operations. More threads do not make one disk faster, and each costs a stack.
const POOL_THREADS: usize = 2;

/// The backend without io_uring.
#[derive(Debug)]
pub struct ThreadsIo(Arc<ThreadsShared>);

impl ThreadsIo {
    /// Creates a backend. It has no threads yet.
    #[must_use]
    pub fn new() -> Self {
        fork::watch();
        Self(Arc::new(ThreadsShared {
            backend: BackendId::next(),
            fork_generation: fork_generation(),
            start: Instant::now(),
            tasks: TaskThreads::default(),
            pool: Arc::new(ThreadPool::default()),
        }))
    }
}

impl Default for ThreadsIo {
    fn default() -> Self {
        Self::new()
    }
}

impl Io for ThreadsIo {
    fn kind(&self) -> IoKind {
        IoKind::Threads
    }

    fn sync_overlaps(&self) -> bool {
        false
    }

    /// False: the pool has few threads, and each blocks on its own operation.
    fn cached_reads_overtake(&self) -> bool {
        false
    }

    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        let dispatch: Arc<dyn Dispatch> = Arc::<ThreadsShared>::clone(&self.0);
        os::open_dir(path, create, dispatch)
    }

    fn spawn(&self, name: &'static str, priority: Priority, task: Task) -> io::Result<()> {
        self.0.tasks.add(TaskThread::start(self.0.backend, name, priority, || Ok(ParkReactor::new()), task)?);
        Ok(())
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
struct ThreadsShared {
    backend: BackendId,
    fork_generation: u64,
    start: Instant,
    tasks: TaskThreads,
    pool: Arc<ThreadPool>,
}

impl fmt::Debug for ThreadsShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Dispatch for ThreadsShared {
    fn start(&self, op: Op) {
        if self.backend.owns_this_thread() {
            op.run();
        } else {
            self.start_behind(op);
        }
    }

    fn start_behind(&self, op: Op) {
        self.pool.push(self.backend, op);
    }
}

impl Drop for ThreadsShared {
    fn drop(&mut self) {
        if task_thread::has_threads(self.fork_generation) {
            self.pool.close();
            self.tasks.dismiss();
        }
    }
}

#[derive(Default)]
struct ThreadPool {
    state: Mutex<ThreadPoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct ThreadPoolState {
    queue: VecDeque<Op>,
    idle_count: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl ThreadPool {
    fn lock(&self) -> MutexGuard<'_, ThreadPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, backend: BackendId, op: Op) {
        let mut state = self.lock();
        if state.idle_count <= state.queue.len() && state.threads.len() < POOL_THREADS {
            let pool = Arc::clone(self);
            let name = "ringcask-read".to_owned();
            match thread::Builder::new().name(name).spawn(move || pool.work(backend)) {
                Ok(handle) => state.threads.push(handle),
                Err(_) if state.threads.is_empty() => {
                    drop(state);
                    return op.run();
                }
                Err(_) => {}
            }
        }
        state.queue.push_back(op);
        drop(state);
        self.changed.notify_one();
    }

    fn work(&self, backend: BackendId) {
        backend.adopt_this_thread();
        let mut state = self.lock();
        loop {
            if let Some(op) = state.queue.pop_front() {
                drop(state);
                quietly(|| op.run());
                state = self.lock();
            } else if state.closed {
                return;
            } else {
                state.idle_count += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle_count -= 1;
            }
        }
    }

    /// Finishes the queued operations and ends the threads.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.changed.notify_all();
        for handle in threads {
            task_thread::join_other(handle);
        }
    }
}
