//! What callers ask of the log besides accepting a write, and the notification of the commit task.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Log, LogState, LogStatus, closed};
use crate::commit::group::Ticket;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::sync::promise::Promise;
use crate::sync::waiters::Slot;
use crate::sync::wake;

impl Log {
    /// A ticket that is ready when everything accepted so far is durable, or `None` if it already is. Forces a sync.
    pub(crate) fn request_sync(&self, waker: &Waker) -> Result<Option<Ticket>> {
        let mut state = self.lock();
        match &state.status {
            LogStatus::Open => {}
            LogStatus::Closing => return Err(closed()),
            LogStatus::Ended(error) => return Err(error.clone()),
        }
        if self.durable_seq() >= state.next_seq - 1 {
            return Ok(None);
        }
        state.sync_wanted = true;
        let ticket = state.await_group(waker);
        self.notify_if_due(state);
        Ok(Some(ticket))
    }

    /// Asks for the active segment to be sealed now, so that it can be compacted. Fulfilled when it is sealed, or
    /// when there is no active segment.
    pub(crate) fn request_seal(&self) -> Promise<Result<()>> {
        let promise = Promise::new();
        let mut state = self.lock();
        let refusal = match &state.status {
            LogStatus::Open => None,
            LogStatus::Closing => Some(closed()),
            LogStatus::Ended(error) => Some(error.clone()),
        };
        if let Some(error) = refusal {
            drop(state);
            promise.fulfil(Err(error));
            return promise;
        }
        state.seal_wanted.push(promise.clone());
        self.notify(state);
        promise
    }

    /// Ready when `seq` is durable. Does not force a sync.
    pub(crate) fn poll_durable(&self, seq: u64, slot: &mut Slot, cx: &Context<'_>) -> Poll<Result<()>> {
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        if let LogStatus::Ended(error) = &state.status {
            return Poll::Ready(Err(error.clone()));
        }
        if seq >= state.next_seq {
            let message = format!("wait_durable: version {seq} was never assigned; the next one is {}", state.next_seq);
            return Poll::Ready(Err(Error::new(ErrorKind::InvalidInput, message)));
        }
        let replaced = state.durable_waiters.wait(slot, seq, cx.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Removes a future that waited in [`poll_durable`](Self::poll_durable).
    pub(crate) fn leave_durable(&self, slot: &mut Slot) {
        let left = self.lock().durable_waiters.leave(slot);
        drop(left);
    }

    /// Whether a write of `key` may be unresolved.
    pub(crate) fn is_unresolved(&self, key: &[u8]) -> bool {
        self.lock().last_unresolved[self.bucket(key)] > self.resolved_seq()
    }

    /// The value of a record that cannot be read from its file yet.
    pub(crate) fn read_staged(&self, segment: u32, value_offset: u64, value_len: usize) -> Option<Bytes> {
        let state = self.lock();
        let in_runs = state
            .runs
            .iter()
            .filter(|run| run.segment == segment && (run.base..run.end).contains(&value_offset.saturating_sub(1)))
            .find_map(|run| run.read(value_offset, value_len));
        if in_runs.is_some() {
            return in_runs;
        }
        match &state.append_point {
            Some(point) if point.segment.id == segment => state.stage.read(value_offset, value_len),
            _ => None,
        }
    }

    /// Refuses new writes. The commit task drains what was accepted and then ends.
    pub(crate) fn begin_close(&self) {
        let mut state = self.lock();
        if matches!(state.status, LogStatus::Open) {
            state.status = LogStatus::Closing;
        }
        let wakers = state.admission.admit_all();
        self.notify(state);
        wake::wake_all(wakers);
    }

    /// Admits the waiting writers that fit now. The caller wakes them outside the lock.
    pub(super) fn admit_waiters(&self, state: &mut LogState) -> Vec<Waker> {
        if !state.admission.has_waiters() {
            return Vec::new();
        }
        let used = state.used_bytes();
        state.admission.admit(used, self.limits.staging_bytes, self.io.now())
    }

    pub(super) fn notify_if_due(&self, state: MutexGuard<'_, LogState>) {
        let due = state.is_ready()
            || state.admission.wanted.is_some()
            || (!state.task.timer_armed && !state.stage.is_empty());
        if due && !state.task.notified {
            self.notify(state);
        }
    }

    pub(super) fn notify(&self, mut state: MutexGuard<'_, LogState>) {
        state.task.notified = true;
        drop(state);
        self.notifier.is_set.store(true, Ordering::Release);
        self.notifier.waker.wake();
    }
}
