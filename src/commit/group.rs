//! A commit group: the writes that share one contiguous write and one sync, and therefore one outcome.
//!
//! Every accepted write holds an [`Arc`] of its group and waits until the group reaches the phase that its durability
//! asks for. The commit task advances the group through its phases and wakes the waiters of a phase in one loop,
//! outside all locks. If a group fails, all of its waiters get the same error.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::wake;
use crate::sync::{Mutex, MutexGuard};

/// How far a group has come. A staged group has reached none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The kernel has the group's bytes.
    Written = 1,
    /// Everything that the group's writers asked for is done.
    Resolved = 2,
    /// The group failed; it holds the error.
    Failed = 3,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    phase: AtomicU8,
    waiters: Mutex<GroupWaiters>,
}

#[derive(Debug, Default)]
struct GroupWaiters {
    written: Vec<Waker>,
    resolved: Vec<Waker>,
    error: Option<Error>,
}

/// The phase that a writer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    Written,
    Resolved,
}

/// A caller's claim to the outcome of a group.
#[derive(Debug)]
pub(crate) struct Ticket {
    group: Arc<Group>,
    wait: WaitFor,
    index: usize,
    pub(crate) last_seq: u64,
}

impl Ticket {
    /// Registers `waker` with `group`.
    pub(super) fn new(group: Arc<Group>, wait: WaitFor, waker: &Waker, last_seq: u64) -> Self {
        let index = group.register(wait, waker);
        Self { group, wait, index, last_seq }
    }

    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<()>> {
        self.group.poll(self.wait, self.index, cx)
    }
}

impl Group {
    /// Registers a waiter and returns its index, for [`Group::poll`].
    pub(crate) fn register(&self, wait: WaitFor, waker: &Waker) -> usize {
        let mut waiters = self.lock();
        let list = waiters.list(wait);
        list.push(waker.clone());
        list.len() - 1
    }

    /// Whether the group has reached the phase that the waiter at `index` waits for. If not, registers the waker of
    /// `cx`.
    pub(crate) fn poll(&self, wait: WaitFor, index: usize, cx: &Context<'_>) -> Poll<Result<()>> {
        if let Some(outcome) = self.outcome(wait) {
            let is_dropped = index > 0 && seeded_bug::is(SeededBug::FollowerErrorDropped);
            return Poll::Ready(if is_dropped { Ok(()) } else { outcome });
        }
        let mut waiters = self.lock();
        // The phase changes under this lock, before the wakers are taken. Looking again here closes the gap.
        if let Some(outcome) = self.outcome_with(wait, &waiters)
            && !seeded_bug::is(SeededBug::WakerLost)
        {
            return Poll::Ready(outcome);
        }
        let old = match waiters.list(wait).get_mut(index) {
            Some(waker) if !waker.will_wake(cx.waker()) => Some(std::mem::replace(waker, cx.waker().clone())),
            _ => None,
        };
        // Outside the lock: dropping a waker may drop a task, and with it everything that the task owns.
        drop(waiters);
        drop(old);
        Poll::Pending
    }

    /// Advances the group to `phase` and wakes the writers that wait for it.
    pub(crate) fn advance(&self, phase: Phase) {
        self.finish(phase, None);
    }

    /// Ends the group with `error`, unless it is resolved.
    pub(crate) fn fail(&self, error: Error) {
        self.finish(Phase::Failed, Some(error));
    }

    fn finish(&self, phase: Phase, error: Option<Error>) {
        let wakers = {
            let mut waiters = self.lock();
            if self.phase() >= phase as u8 || self.phase() == Phase::Resolved as u8 {
                return;
            }
            waiters.error = error;
            self.phase.store(phase as u8, Ordering::Release);
            let mut wakers = std::mem::take(&mut waiters.written);
            if phase > Phase::Written {
                if wakers.is_empty() {
                    wakers = std::mem::take(&mut waiters.resolved);
                } else {
                    wakers.append(&mut waiters.resolved);
                }
            }
            wakers
        };
        wake::wake_all(wakers);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn outcome(&self, wait: WaitFor) -> Option<Result<()>> {
        match self.phase() {
            phase if phase == Phase::Failed as u8 => self.outcome_with(wait, &self.lock()),
            phase => reached(phase, wait).then_some(Ok(())),
        }
    }

    fn outcome_with(&self, wait: WaitFor, waiters: &GroupWaiters) -> Option<Result<()>> {
        match &waiters.error {
            Some(error) => Some(Err(error.clone())),
            None => reached(self.phase(), wait).then_some(Ok(())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, GroupWaiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(phase: u8, wait: WaitFor) -> bool {
    phase
        >= match wait {
            WaitFor::Written => Phase::Written as u8,
            WaitFor::Resolved => Phase::Resolved as u8,
        }
}

impl GroupWaiters {
    fn list(&mut self, wait: WaitFor) -> &mut Vec<Waker> {
        match wait {
            WaitFor::Written => &mut self.written,
            WaitFor::Resolved => &mut self.resolved,
        }
    }
}
