//! One started operation of a real world: what it owns, and where its result goes.
//!
//! Knows files only as things that read, write and sync; knows no thread and no ring.
//!
//! # Invariants
//!
//! - An [`Op`] owns its buffers and keeps its file open from the call that made it until it is finished.
//! - Every [`Completer`] delivers exactly one result: one that is dropped instead delivers an error, so that no caller
//!   waits for a thread that is gone.
//! - A dropped [`OpHandle`] gives up the result, never the operation.
//!
//! # Concurrency
//!
//! The two ends of a slot meet under one mutex, held for a few instructions. No foreign code but a waker's `clone` runs
//! under it; `wake` is called outside, and a waker that panics is caught, as is the owner of a written buffer: the thread
//! that completes operations serves many callers, and one bad executor must not end it.

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

/// A result that can also say that the operation failed.
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

/// A timer: there is nothing that could go wrong but its thread's end, and then nobody waits.
impl OpResult for () {
    fn failed(_: io::Error) -> Self {}
}

enum SlotState<T> {
    /// Not finished; the waker of the last poll.
    Running(Option<Waker>),
    /// Finished, the result not yet taken.
    Done(T),
    /// The result was taken, or the handle dropped.
    Over,
}

struct ResultSlot<T>(Mutex<SlotState<T>>);

impl<T> ResultSlot<T> {
    fn lock(&self) -> MutexGuard<'_, SlotState<T>> {
        // A foreign waker's `clone` may panic under the lock, but never between two halves of a change.
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

/// Runs foreign code that must not take this thread down.
pub(super) fn quietly(call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        // Dropping what was thrown could throw again.
        mem::forget(payload);
    }
}

/// The two ends of a new slot.
pub(crate) fn slot<T: OpResult>() -> (Completer<T>, OpHandle<T>) {
    let slot = Arc::new(ResultSlot(Mutex::new(SlotState::Running(None))));
    (Completer(Some(Arc::clone(&slot))), OpHandle(slot))
}

/// The end that delivers the result.
pub(crate) struct Completer<T: OpResult>(Option<Arc<ResultSlot<T>>>);

impl<T: OpResult> Completer<T> {
    /// Delivers `value` and wakes whoever waits.
    pub(crate) fn complete(mut self, value: T) {
        if let Some(slot) = self.0.take() {
            slot.finish(value);
        }
    }

    /// Whether nobody will ever look at the result.
    fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_none_or(|slot| matches!(*slot.lock(), SlotState::Over))
    }
}

impl<T: OpResult> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.finish(T::failed(io::Error::other("the thread that carried out the operation is gone")));
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
                // Outside the lock: dropping a waker may drop a task, and with it whatever the task owns.
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
        // Outside the lock: it may hold a foreign waker.
        drop(before);
    }
}

/// An operation that was started and not yet finished. Dropping one delivers an error.
pub(super) enum Op {
    /// Read into `buf[at..]`.
    Read {
        file: Arc<FileDescriptor>,
        buf: Vec<u8>,
        at: usize,
        offset: u64,
        flags: ReadWriteFlags,
        done: Completer<ReadDone>,
    },
    /// Begin to read into the page cache. A hint: nobody waits for it, and what comes of it is told to nobody.
    Advance { file: Arc<FileDescriptor>, offset: u64, len: u32 },
    /// Write `bufs`, none of them empty and not none of them, one after the other.
    Write { file: Arc<FileDescriptor>, bufs: Vec<Bytes>, offset: u64, done: Completer<io::Result<usize>> },
    /// Make completed writes durable.
    Sync { file: Arc<FileDescriptor>, kind: SyncKind, done: Completer<io::Result<()>> },
}

impl Op {
    /// Carries it out on this thread, blocking it.
    pub(super) fn run(self) {
        match self {
            Self::Read { done, .. } if done.is_abandoned() => {}
            Self::Read { file, mut buf, at, offset, flags, done } => {
                let result = file.read(buf.get_mut(at..).unwrap_or_default(), offset, flags);
                done.complete(ReadDone { result, buf });
            }
            Self::Advance { file, offset, len } => file.start_reading(offset, len),
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

    /// Whether it need not be started: a read nobody waits for. Writes and syncs are always carried out.
    pub(super) fn is_moot(&self) -> bool {
        matches!(self, Self::Read { done, .. } if done.is_abandoned())
    }

    /// Whether it changes nothing.
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Advance { .. })
    }

    /// Delivers what the kernel said; a count is of bytes.
    pub(super) fn finish(self, result: io::Result<usize>) {
        match self {
            Self::Read { file, buf, done, .. } => {
                drop(file);
                done.complete(ReadDone { result, buf });
            }
            Self::Advance { .. } => {}
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

    /// Gives up the memory the kernel might still use: it is never freed.
    pub(super) fn leak_buffers(&mut self) {
        match self {
            Self::Read { buf, .. } => mem::forget(mem::take(buf)),
            Self::Write { bufs, .. } => mem::forget(mem::take(bufs)),
            Self::Advance { .. } | Self::Sync { .. } => {}
        }
    }
}
