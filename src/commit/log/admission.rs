//! Admission: the order in which writers that found no space go on.
//!
//! Writers that find no space wait in order of arrival, and no newcomer overtakes them. When space appears, as many
//! writers as fit are *admitted*: they are woken, and the bytes they need are kept for them until they offer their
//! write again, in whatever order their executors run them. Waking all waiters instead would let the same few win
//! each time.
//!
//! An admitted future may never be polled again, and never dropped. If space was kept for [`KEEP_TIME`] without any
//! admitted writer coming back while others wait, it is released. The admitted writers keep their position in the
//! order.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use crate::error::Error;
use crate::sync::waiters::{Slot, Waiters};

/// Longer than a busy executor takes to run a woken task.
const KEEP_TIME: Duration = Duration::from_millis(50);

/// What the commit task must make space for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commit) struct SpaceWanted {
    /// The largest waiting write, in bytes of log.
    pub(in crate::commit) bytes: u64,
    /// The largest waiting delete; 0 if none waits. Deletes may use the reserve.
    pub(in crate::commit) delete_bytes: u64,
}

/// Which of the writers that still find no space get the refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commit) enum Refused {
    Everybody,
    AllButDeletes,
}

/// A writer that waits to be admitted.
struct WaitingWrite {
    bytes: u64,
    /// A queued write of [`submit`](super::submit): the commit task accepts it, and nothing is admitted past it.
    is_queued: bool,
}

/// Writers that wait for space, and the result of the last attempt to make some.
#[derive(Default)]
pub(super) struct Admission {
    /// Writers that are not admitted, each with the bytes it needs.
    waiters: Waiters<WaitingWrite>,
    /// Admitted writers that have not come back: bytes by slot number.
    admitted: BTreeMap<u64, u64>,
    /// The sum over `admitted`.
    kept_bytes: u64,
    /// When a writer was last admitted, or last came back.
    since: Duration,
    pub(super) wanted: Option<SpaceWanted>,
    pub(super) attempt: u64,
    pub(super) refusal: Option<(u64, Refused, Error)>,
}

impl Admission {
    /// Whether a writer waits to be admitted.
    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether the owner of `slot` may go on: no earlier writer waits to be admitted.
    pub(super) fn has_turn(&self, slot: &Slot) -> bool {
        match self.waiters.first() {
            None => true,
            Some(first) => slot.was_used() && (slot.number() <= first || self.admitted.contains_key(&slot.number())),
        }
    }

    /// Bytes that are kept for writers other than the owner of `slot`.
    pub(super) fn bytes_kept_from(&self, slot: &Slot) -> u64 {
        self.kept_bytes - self.admitted.get(&slot.number()).unwrap_or(&0)
    }

    /// The owner of `slot` waits for `bytes`, at its old position if it had one.
    #[must_use = "to be dropped outside the lock"]
    pub(super) fn wait(&mut self, slot: &mut Slot, bytes: u64, waker: &Waker) -> Option<Waker> {
        self.unadmit(slot);
        self.waiters.wait(slot, WaitingWrite { bytes, is_queued: false }, waker)
    }

    /// The owner of `slot` was accepted, or has given up.
    #[must_use = "to be dropped outside the lock"]
    pub(super) fn leave(&mut self, slot: &mut Slot, now: Duration) -> Option<Waker> {
        self.unadmit(slot);
        self.since = now;
        self.waiters.leave(slot)
    }

    /// A queued write takes its slot.
    pub(super) fn enqueue(&mut self, slot: &mut Slot, bytes: u64) {
        // A new slot replaces no waker.
        drop(self.waiters.wait(slot, WaitingWrite { bytes, is_queued: true }, Waker::noop()));
    }

    /// A queued write gives its slot up. Its waker does nothing.
    #[must_use = "to be dropped outside the lock"]
    pub(super) fn leave_queue(&mut self, slot: &mut Slot) -> Option<Waker> {
        self.waiters.leave(slot)
    }

    fn unadmit(&mut self, slot: &Slot) {
        self.kept_bytes -= self.admitted.remove(&slot.number()).unwrap_or(0);
    }

    /// Admits writers in order, given how much of `limit_bytes` is in use. A write larger than the limit is admitted
    /// alone.
    pub(super) fn admit(&mut self, used_bytes: u64, limit_bytes: u64, now: Duration) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((number, WaitingWrite { bytes, .. }, waker)) = self.waiters.take_first_if(|write| {
            let taken = used_bytes + self.kept_bytes;
            !write.is_queued && (taken == 0 || taken + write.bytes <= limit_bytes)
        }) {
            self.admitted.insert(number, bytes);
            self.kept_bytes += bytes;
            self.since = now;
            wakers.push(waker);
        }
        wakers
    }

    /// Wakes all writers, to hear an answer that concerns all of them.
    pub(super) fn admit_all(&mut self) -> Vec<Waker> {
        self.release_kept();
        self.waiters.take_if(|write| !write.is_queued)
    }

    /// When to release the kept space, if a writer waits because of it.
    pub(super) fn kept_until(&self) -> Option<Duration> {
        (self.has_waiters() && self.kept_bytes > 0).then(|| self.since + KEEP_TIME)
    }

    /// Releases the space kept for admitted writers.
    pub(super) fn release_kept(&mut self) {
        self.admitted.clear();
        self.kept_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn wait(admission: &mut Admission, slot: &mut Slot, bytes: u64) {
        drop(admission.wait(slot, bytes, Waker::noop()));
    }

    #[test]
    fn writers_that_fit_are_admitted_in_order_and_none_overtakes() {
        let mut admission = Admission::default();
        let mut slots: [Slot; 4] = Default::default();
        assert!(admission.has_turn(&slots[0]), "no writer waits, so none is overtaken");
        slots.iter_mut().zip([40, 40, 30, 10]).for_each(|(slot, bytes)| wait(&mut admission, slot, bytes));
        assert!(admission.admit(60, 90, NOW).is_empty(), "the last would fit, but it is not its turn");
        assert_eq!(admission.admit(0, 90, NOW).len(), 2);
        let turns = slots.each_ref().map(|slot| admission.has_turn(slot));
        assert_eq!(turns, [true, true, true, false], "the admitted writers, and the first of the others");
        assert!(!admission.has_turn(&Slot::default()), "a newcomer");
        assert_eq!(admission.bytes_kept_from(&slots[2]), 80, "space kept for the others");
        assert_eq!(admission.bytes_kept_from(&slots[1]), 40, "its own kept space does not count against it");
        drop(admission.leave(&mut slots[1], NOW));
        assert!(admission.admit(40, 90, NOW).is_empty(), "40 are in use and 40 kept");
        drop(admission.leave(&mut slots[0], NOW));
        assert_eq!(admission.admit(0, 90, NOW).len(), 2);
        assert!(admission.has_turn(&Slot::default()), "a newcomer, once all are admitted");
        assert_eq!(admission.bytes_kept_from(&Slot::default()), 40);
    }

    #[test]
    fn a_writer_that_still_finds_no_space_is_first_again() {
        let mut admission = Admission::default();
        let mut slots: [Slot; 2] = Default::default();
        slots.iter_mut().for_each(|slot| wait(&mut admission, slot, 40));
        assert_eq!(admission.admit(0, 50, NOW).len(), 1);
        wait(&mut admission, &mut slots[0], 40);
        assert_eq!((admission.has_turn(&slots[0]), admission.has_turn(&slots[1])), (true, false));
        assert_eq!(admission.bytes_kept_from(&slots[1]), 0);
    }

    #[test]
    fn a_write_larger_than_the_limit_is_admitted_alone() {
        let mut admission = Admission::default();
        let mut slot = Slot::default();
        wait(&mut admission, &mut slot, 500);
        assert!(admission.admit(1, 90, NOW).is_empty());
        assert_eq!(admission.admit(0, 90, NOW).len(), 1);
    }

    #[test]
    fn space_kept_for_absent_writers_is_released() {
        let mut admission = Admission::default();
        let mut slots: [Slot; 2] = Default::default();
        slots.iter_mut().for_each(|slot| wait(&mut admission, slot, 80));
        assert_eq!(admission.kept_until(), None, "no space is kept");
        assert_eq!(admission.admit(0, 90, NOW).len(), 1);
        assert_eq!(admission.kept_until(), Some(NOW + KEEP_TIME));
        admission.release_kept();
        assert_eq!(admission.admit(0, 90, NOW).len(), 1, "the next one");
        assert_eq!(admission.kept_until(), None, "no writer waits for kept space");
        assert!(admission.has_turn(&slots[0]), "a late writer has not lost its turn");
    }
}
