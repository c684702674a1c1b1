//! What the scheduler keeps of a task and of a timer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use crate::io::Task;

/// The tasks that were woken. Wakers hold this and nothing else, so that no cycle keeps a world alive.
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
        // Relaxed is enough: the queue's lock orders everything else.
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.task);
        }
    }
}

/// A task of the engine.
pub(super) struct TaskSlot {
    pub(super) name: &'static str,
    /// `None` while it is being polled, and for ever once it ended.
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
