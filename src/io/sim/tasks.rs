//! Tasks and timers as the scheduler keeps them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use crate::io::Task;

/// The woken tasks. Wakers hold only this queue, so no reference cycle keeps the simulation alive.
#[derive(Default)]
pub(super) struct ReadyQueue(Mutex<Vec<usize>>);

impl ReadyQueue {
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Vec<usize>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn push(&self, task: usize) {
        self.with(|ready| ready.push(task));
    }
}

pub(super) struct TaskWaker {
    pub(super) task: usize,
    pub(super) queued: AtomicBool,
    pub(super) ready: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Relaxed is enough: the lock of the queue orders everything else.
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.task);
        }
    }
}

/// A task of the store.
pub(super) struct TaskSlot {
    pub(super) name: &'static str,
    /// `None` while the task is being polled, and after it has ended.
    pub(super) task: Option<Task>,
    pub(super) waker: Arc<TaskWaker>,
    pub(super) ended: bool,
}

pub(super) struct Timer {
    pub(super) id: u64,
    pub(super) deadline_ns: u64,
    pub(super) fired: bool,
    pub(super) waker: Option<Waker>,
}
