//! REQ

use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Log, State, Status, closed};
use crate::commit::group::Ticket;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::sync::promise::Promise;
use crate::sync::waiters::Slot;
use crate::sync::wake;

impl Log {
    /// Waits until everything accepted so far is durable: what to wait for, or `None` if it is.
    pub(crate) fn request_sync(&self, waker: &Waker) -> Result<Option<Ticket>> {
        let mut state = self.lock();
        match &state.status {
            Status::Open => {}
            Status::Closing => return Err(closed()),
            Status::Ended(error) => return Err(error.clone()),
        }
        if self.durable_seq() >= state.next_seq - 1 {
            return Ok(None);
        }
        state.sync_wanted = true;
        let ticket = state.await_group(waker);
        self.ring_if_due(state);
        Ok(Some(ticket))
    }

    /// Asks for the active segment to be sealed now, so that it can be compacted; fulfilled when it is, or has none.
    pub(crate) fn request_seal(&self) -> Promise<Result<()>> {
        let promise = Promise::new();
        let mut state = self.lock();
        let refusal = match &state.status {
            Status::Open => None,
            Status::Closing => Some(closed()),
            Status::Ended(error) => Some(error.clone()),
        };
        if let Some(error) = refusal {
            drop(state);
            promise.fulfil(Err(error));
            return promise;
        }
        state.seal_wanted.push(promise.clone());
        self.ring(state);
        promise
    }

    /// Ready when `seq` is durable; does not ask for a sync.
    pub(crate) fn poll_durable(&self, seq: u64, slot: &mut Slot, cx: &Context<'_>) -> Poll<Result<()>> {
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        if let Status::Ended(error) = &state.status {
            return Poll::Ready(Err(error.clone()));
        }
        if seq >= state.next_seq {
            let message = format!("wait_durable: version {seq} was never given out, the next is {}", state.next_seq);
            return Poll::Ready(Err(Error::new(ErrorKind::InvalidInput, message)));
        }
        let replaced = state.durable_waiters.wait(slot, seq, cx.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Forgets a future that waited in [`poll_durable`](Self::poll_durable).
    pub(crate) fn leave_durable(&self, slot: &mut Slot) {
        let left = self.lock().durable_waiters.leave(slot);
        drop(left);
    }

    /// Whether a write of `key` may be under way.
    pub(crate) fn is_unresolved(&self, key: &[u8]) -> bool {
        self.lock().last_unresolved[self.bucket(key)] > self.resolved_seq()
    }

    /// The value of a record that is not in its file yet.
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
        match &state.place {
            Some(place) if place.segment.id == segment => state.stage.read(value_offset, value_len),
            _ => None,
        }
    }

    /// Refuses new writes; the commit task drains what was accepted and ends.
    pub(crate) fn begin_close(&self) {
        let mut state = self.lock();
        if matches!(state.status, Status::Open) {
            state.status = Status::Closing;
        }
        let wakers = state.room.call_all();
        self.ring(state);
        wake::wake_all(wakers);
    }

    /// Calls whom there is room for now; to be woken outside the lock.
    pub(super) fn call_waiters(&self, state: &mut State) -> Vec<Waker> {
        if !state.room.is_awaited() {
            return Vec::new();
        }
        let used = state.used_bytes();
        state.room.call(used, self.limits.staging_bytes, self.io.now())
    }

    pub(super) fn ring_if_due(&self, state: MutexGuard<'_, State>) {
        let due =
            state.is_ripe() || state.room.wanted.is_some() || (!state.task.timer_armed && !state.stage.is_empty());
        if due && !state.task.rung {
            self.ring(state);
        }
    }

    pub(super) fn ring(&self, mut state: MutexGuard<'_, State>) {
        state.task.rung = true;
        drop(state);
        self.bell.rung.store(true, Ordering::Release);
        self.bell.waker.wake();
    }
}
