//! Submitted writes: accepted now if they fit, otherwise queued in the log and accepted by the commit task.
//!
//! A polled write that finds no space waits in its future. A submitted write waits here, because its place in the order
//! is fixed by the call and its future does not have to be polled.
//!
//! # Invariants
//!
//! - The queue is first in, first out. The commit task alone accepts or refuses queued writes, always the oldest one.
//! - A queued write holds a slot among the waiting writers of [`admission`](super::admission) from its submission to its
//!   answer. Admission never goes past such a slot, so no later write overtakes a queued one, whether submitted or
//!   polled. Writers that waited before it go first.
//! - Queued bytes stay within `staging_bytes`, except for a single larger write. Beyond that, `submit` answers `Busy`.
//! - Each queued write is answered exactly once: with its acceptance, with a refusal, or with the error that ended the
//!   store. A close drains the queue first.
//!
//! The oldest write is tried again whenever the commit task looks at the log. What can make it fit either happens on
//! that task (a group is written or resolved, disk space appears) or notifies it (a writer before it is accepted or
//! leaves).

use std::task::Waker;

use super::accept::Blocked;
use super::queue::{Answered, QueuedWrite, Submission};
use super::{Accepted, Log, LogState, OfferWait};
use crate::commit::prepared::Prepared;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Durability;
use crate::seeded_bug::{self, SeededBug};
use crate::sync::promise::Promise;

/// Queued writes that are accepted under one hold of the log's lock.
pub(super) const PORTION: usize = 64;

impl Log {
    /// Accepts a write now, behind everything that was accepted or queued before. If it does not fit now, queues it. An
    /// error means that the write was neither accepted nor queued.
    pub(crate) fn submit(&self, op: Prepared, durability: Durability, must_exist: bool) -> Result<Submission> {
        let mut state = self.lock();
        state.check_open()?;
        let mut wait = OfferWait::default();
        if state.queue.is_empty()
            && let Ok(accepted) = self.offer(&mut state, &op, durability, must_exist, &wait, Waker::noop())
        {
            self.notify_if_due(state);
            return Ok(Submission::Accepted(accepted, op));
        }
        let (queued_bytes, len, limit) = (state.queue.bytes(), op.log_len(), self.limits.staging_bytes);
        if !state.queue.is_empty() && queued_bytes + len > limit {
            // Building the message takes longer than the lock should be held.
            drop(state);
            let message = format!(
                "submit: {queued_bytes} bytes of submitted writes wait already, and {len} more would exceed \
                 staging_bytes ({limit}); await the write instead of submitting it"
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let promise = Promise::new();
        if !seeded_bug::is(SeededBug::SubmittedOvertaken) {
            state.admission.enqueue(&mut wait.admission, len);
        }
        state.queue.push(QueuedWrite { op: Some(op), durability, must_exist, wait, promise: promise.clone() });
        if !state.task.notified {
            self.notify(state);
        }
        Ok(Submission::Queued(promise))
    }

    /// If submitted writes are queued: a sync that comes after all of them.
    pub(crate) fn submit_sync(&self) -> Option<Promise<Result<Accepted>>> {
        let mut state = self.lock();
        if state.queue.is_empty() || state.check_open().is_err() {
            return None;
        }
        let (promise, mut wait) = (Promise::new(), OfferWait::default());
        state.admission.enqueue(&mut wait.admission, 0);
        let (durability, must_exist) = (Durability::Synced, false);
        state.queue.push(QueuedWrite { op: None, durability, must_exist, wait, promise: promise.clone() });
        Some(promise)
    }

    /// The answer to a sync: `Absent` if everything accepted so far is durable.
    fn sync_accepted(&self, state: &mut LogState) -> Accepted {
        if self.durable_seq() >= state.next_seq - 1 {
            return Accepted::Absent;
        }
        state.sync_wanted = true;
        Accepted::AbsentOnce(state.await_group(Waker::noop()))
    }

    /// Answers the queued writes that can be accepted or refused now, in order: at most [`PORTION`] of them, because the
    /// log is locked meanwhile.
    pub(super) fn accept_queued(&self, state: &mut LogState) -> Vec<Answered> {
        let mut answered = Vec::new();
        while answered.len() < PORTION
            && let Some(mut write) = state.queue.pop()
        {
            match self.offer_queued(state, &mut write) {
                Some(result) => {
                    // The waker of a queued write does nothing, so it may be dropped under the lock.
                    drop(state.forget(&mut write.wait, self.io.now()));
                    answered.push(Answered { write, result });
                }
                None => {
                    state.queue.unpop(write);
                    break;
                }
            }
        }
        answered
    }

    /// The answer to the oldest queued write, or `None` if it has to wait.
    fn offer_queued(&self, state: &mut LogState, write: &mut QueuedWrite) -> Option<Result<Accepted>> {
        let QueuedWrite { op, durability, must_exist, wait, .. } = write;
        let Some(op) = op else { return Some(Ok(self.sync_accepted(state))) };
        match self.offer(state, op, *durability, *must_exist, wait, Waker::noop()) {
            Ok(accepted) => Some(Ok(accepted)),
            Err(Blocked::Unresolved | Blocked::Turn(_)) => None,
            Err(Blocked::Disk(wanted)) => match state.refusal(wanted, wait) {
                Some(error) => Some(Err(error)),
                None => {
                    state.want_space(wanted, wait);
                    None
                }
            },
        }
    }
}

impl LogState {
    /// Answers all queued writes with `error`: the store has ended.
    pub(super) fn fail_queued(&mut self, error: &Error) -> Vec<Answered> {
        let mut answered = Vec::new();
        while let Some(mut write) = self.queue.pop() {
            drop(self.admission.leave_queue(&mut write.wait.admission));
            answered.push(Answered { write, result: Err(error.clone()) });
        }
        answered
    }

    /// Whether the commit task should be told that the oldest queued write may fit now.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }
}
