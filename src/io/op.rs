//! One started operation of a real backend: what it owns, and where its result goes.
//!
//! Knows files only as things that can be read, written and synced. Knows no threads and no rings.
//!
//! # Invariants
//!
//! - An [`Op`] owns its buffers and keeps its file open from the call that created it until it has finished.
//! - Every [`Completer`] delivers exactly one result. Dropping it delivers an error, so no caller waits for a thread
//!   that is gone.
//! - Dropping an [`OpHandle`] discards the result but does not cancel the operation.
//!
//! # Concurrency
//!
//! The two ends of a result slot share one mutex, which is held for a few instructions. The only foreign code that runs
//! under it is a waker's `clone`; `wake` is called outside. The completing thread serves many callers, so it catches
//! panics of a waker and of the owner of a written buffer: one faulty executor must not end it.

use std::future::Future;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use super::descriptor::FileDescriptor;
use super::{ReadDone, SyncKind};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::{Mutex, MutexGuard};

/// A result type that can report the failure of an operation.
pub(crate) trait OpResult: Send + 'static {
    /// The result of an operation that ended with `error`.
    fn failed(error: io::Error) -> Self;
}

impl<T: Send + 'static> OpResult for io::Result<T> {
    fn failed(error: io::Error) -> Self {
        Err(error)
    }
}

impl OpResult for ReadDone {
    fn failed(error: io::Error) -> Self {
        Self { result: Err(error), buf: Vec::new() }
    }
}

/// A timer. It fails only if its thread ends, and the result is not needed then.
impl OpResult for () {
    fn failed(_: io::Error) -> Self {}
}

enum SlotState<T> {
    /// Not finished. Holds the waker of the last poll.
    Running(Option<Waker>),
    /// Finished. Holds the result.
    Done(T),
    /// The result was taken, or the handle was dropped.
    Over,
}

struct ResultSlot<T>(Mutex<SlotState<T>>);

impl<T> ResultSlot<T> {
    fn lock(&self) -> MutexGuard<'_, SlotState<T>> {
        // A poisoned lock is safe to use: a foreign waker's `clone` can panic under it, but never in the middle of a
        // change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, value: T) {
        let mut state = self.lock();
        let before = mem::replace(&mut *state, SlotState::Over);
        let (waker, unwanted) = match before {
            SlotState::Running(waker) => {
                *state = SlotState::Done(value);
                (waker, None)
            }
            SlotState::Done(_) | SlotState::Over => (None, Some(value)),
        };
        drop(state);
        drop(unwanted);
        if let Some(waker) = waker {
            quietly(|| waker.wake());
        }
    }
}

/// Runs foreign code and catches its panic, so that this thread survives.
pub(super) fn quietly(call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        // Dropping the payload could panic again.
        mem::forget(payload);
    }
}

/// Creates the two ends of a new result slot.
pub(crate) fn slot<T: OpResult>() -> (Completer<T>, OpHandle<T>) {
    let slot = Arc::new(ResultSlot(Mutex::new(SlotState::Running(None))));
    (Completer(Some(Arc::clone(&slot))), OpHandle(slot))
}

/// The end that delivers the result.
pub(crate) struct Completer<T: OpResult>(Option<Arc<ResultSlot<T>>>);

impl<T: OpResult> Completer<T> {
    /// Delivers `value` and wakes the waiting task.
    pub(crate) fn complete(mut self, value: T) {
        if let Some(slot) = self.0.take() {
            slot.finish(value);
        }
    }

    /// Whether the handle was dropped, so that the result is not needed.
    fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_none_or(|slot| matches!(*slot.lock(), SlotState::Over))
    }
}

impl<T: OpResult> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.finish(T::failed(io::Error::other("the thread that ran the operation has ended")));
        }
    }
}

/// The end that waits for the result.
pub(crate) struct OpHandle<T>(Arc<ResultSlot<T>>);

impl<T> Future for OpHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        if matches!(*state, SlotState::Running(_)) && seeded_bug::is(SeededBug::CompletionOverwritten) {
            drop(state);
            *self.0.lock() = SlotState::Running(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        match &mut *state {
            SlotState::Running(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            SlotState::Running(waker) => {
                let old = waker.replace(cx.waker().clone());
                // Outside the lock: dropping a waker may drop a task and everything the task owns.
                drop(state);
                drop(old);
                Poll::Pending
            }
            SlotState::Done(_) => match mem::replace(&mut *state, SlotState::Over) {
                SlotState::Done(value) => Poll::Ready(value),
                SlotState::Running(_) | SlotState::Over => Poll::Pending,
            },
            SlotState::Over => Poll::Pending,
        }
    }
}

impl<T> Drop for OpHandle<T> {
    fn drop(&mut self) {
        let before = mem::replace(&mut *self.0.lock(), SlotState::Over);
        // Outside the lock: the state may hold a foreign waker.
        drop(before);
    }
}

/// A started, unfinished operation. Dropping it delivers an error.
pub(super) enum Op {
    /// Reads into `buf[at..]`.
    Read {
        file: Arc<FileDescriptor>,
        buf: Vec<u8>,
        at: usize,
        offset: u64,
        flags: ReadWriteFlags,
        done: Completer<ReadDone>,
    },
    /// Starts reading into the page cache. The operation has no handle, and its result is ignored.
    ReadAhead { file: Arc<FileDescriptor>, offset: u64, len: u32 },
    /// Writes `bufs` one after the other. There is at least one buffer, and none is empty.
    Write { file: Arc<FileDescriptor>, bufs: Vec<Bytes>, offset: u64, done: Completer<io::Result<usize>> },
    /// Makes completed writes durable.
    Sync { file: Arc<FileDescriptor>, kind: SyncKind, done: Completer<io::Result<()>> },
}

impl Op {
    /// Carries out the operation on the calling thread, which blocks.
    pub(super) fn run(self) {
        match self {
            Self::Read { done, .. } if done.is_abandoned() => {}
            Self::Read { file, mut buf, at, offset, flags, done } => {
                let result = file.read(buf.get_mut(at..).unwrap_or_default(), offset, flags);
                done.complete(ReadDone { result, buf });
            }
            Self::ReadAhead { file, offset, len } => file.start_reading(offset, len),
            Self::Write { file, bufs, offset, done } => {
                let result = file.write(&bufs, offset);
                quietly(|| drop(bufs));
                done.complete(result);
            }
            Self::Sync { file, kind, done } => {
                let result = file.sync(kind);
                done.complete(result);
            }
        }
    }

    /// Whether the operation need not be started: a read whose handle was dropped. Writes and syncs always run.
    pub(super) fn is_moot(&self) -> bool {
        matches!(self, Self::Read { done, .. } if done.is_abandoned())
    }

    /// Whether the operation leaves the file unchanged.
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::ReadAhead { .. })
    }

    /// Delivers the kernel's result. A count is in bytes.
    pub(super) fn finish(self, result: io::Result<usize>) {
        match self {
            Self::Read { file, buf, done, .. } => {
                drop(file);
                done.complete(ReadDone { result, buf });
            }
            Self::ReadAhead { .. } => {}
            Self::Write { file, bufs, done, .. } => {
                drop(file);
                quietly(|| drop(bufs));
                done.complete(result);
            }
            Self::Sync { file, done, .. } => {
                drop(file);
                done.complete(result.map(drop));
            }
        }
    }

    /// Leaks the memory that the kernel might still use.
    pub(super) fn leak_buffers(&mut self) {
        match self {
            Self::Read { buf, .. } => mem::forget(mem::take(buf)),
            Self::Write { bufs, .. } => mem::forget(mem::take(bufs)),
            Self::ReadAhead { .. } | Self::Sync { .. } => {}
        }
    }
}
