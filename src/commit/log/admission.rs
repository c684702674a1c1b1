//! Who is let into the log next, where not all fit.
//!
//! Writers that find no room wait in the order they came, and no newcomer goes ahead of them. When room appears, as many
//! as fit are *called*: the bytes they need are kept for them until they are back, in whatever order their executors run
//! them. Waking everybody instead would be won by those that happen to run, again and again, and lost by the same few.
//!
//! Whoever was called may never come: a future that is neither polled nor dropped. If for [`PATIENCE`] none of those
//! called has come while others wait, nothing is kept for them any more. They keep their place in the order.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use crate::error::Error;
use crate::sync::waiters::{Slot, Waiters};

/// Longer than any executor with work to do takes to run a task it was told to.
const PATIENCE: Duration = Duration::from_millis(50);

/// What the commit task must make room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commit) struct SpaceWanted {
    /// The largest write that waits, in bytes of log.
    pub(in crate::commit) bytes: u64,
    /// The largest delete that waits; 0 if none does. Deletes may use the reserve.
    pub(in crate::commit) delete_bytes: u64,
}

/// Whom a refusal answers, of those that still find no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commit) enum Refused {
    Everybody,
    AllButDeletes,
}

/// Writers that wait for room, and how the last attempt to make some went.
#[derive(Default)]
pub(super) struct Admission {
    /// Those not called yet, each with the bytes it needs.
    waiters: Waiters<u64>,
    /// Those called and not back, by the number of their slot.
    called: BTreeMap<u64, u64>,
    /// The sum over `called`.
    kept_bytes: u64,
    /// When somebody was called or came last.
    since: Duration,
    pub(super) wanted: Option<SpaceWanted>,
    pub(super) attempt: u64,
    pub(super) refusal: Option<(u64, Refused, Error)>,
}

impl Admission {
    /// Whether anybody has still to be called.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether nobody waits who came before the owner of `slot`.
    pub(super) fn has_turn(&self, slot: &Slot) -> bool {
        match self.waiters.first() {
            None => true,
            Some(first) => slot.was_used() && (slot.number() <= first || self.called.contains_key(&slot.number())),
        }
    }

    /// Bytes that are kept for others than the owner of `slot`.
    pub(super) fn kept_from(&self, slot: &Slot) -> u64 {
        self.kept_bytes - self.called.get(&slot.number()).unwrap_or(&0)
    }

    /// The owner of `slot` waits for `bytes`, in its old place if it had one.
    #[must_use = "to be dropped outside the lock"]
    pub(super) fn wait(&mut self, slot: &mut Slot, bytes: u64, waker: &Waker) -> Option<Waker> {
        self.uncall(slot);
        self.waiters.wait(slot, bytes, waker)
    }

    /// The owner of `slot` has been let in, or has given up.
    #[must_use = "to be dropped outside the lock"]
    pub(super) fn leave(&mut self, slot: &mut Slot, now: Duration) -> Option<Waker> {
        self.uncall(slot);
        self.since = now;
        self.waiters.leave(slot)
    }

    fn uncall(&mut self, slot: &Slot) {
        self.kept_bytes -= self.called.remove(&slot.number()).unwrap_or(0);
    }

    /// Calls those whose turn it is, given how much of `limit_bytes` is in use. One that is larger than all room there is
    /// goes alone.
    pub(super) fn call(&mut self, used_bytes: u64, limit_bytes: u64, now: Duration) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((number, bytes, waker)) = self.waiters.take_first_if(|bytes| {
            let taken = used_bytes + self.kept_bytes;
            taken == 0 || taken + bytes <= limit_bytes
        }) {
            self.called.insert(number, bytes);
            self.kept_bytes += bytes;
            self.since = now;
            wakers.push(waker);
        }
        wakers
    }

    /// Everybody tries again, for the answer that is there for all.
    pub(super) fn call_all(&mut self) -> Vec<Waker> {
        self.keep_nothing();
        self.waiters.take_all()
    }

    /// When what is kept will have been kept for long enough, if anybody is kept out by it.
    pub(super) fn patience_ends(&self) -> Option<Duration> {
        (self.is_awaited() && self.kept_bytes > 0).then(|| self.since + PATIENCE)
    }

    /// Keeps nothing any more for those called.
    pub(super) fn keep_nothing(&mut self) {
        self.called.clear();
        self.kept_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn wait(room: &mut Admission, slot: &mut Slot, bytes: u64) {
        drop(room.wait(slot, bytes, Waker::noop()));
    }

    #[test]
    fn those_that_fit_are_called_in_their_order_and_nobody_goes_ahead() {
        let mut room = Admission::default();
        let mut slots: [Slot; 4] = Default::default();
        assert!(room.has_turn(&slots[0]), "where nobody waits, nobody is overtaken");
        slots.iter_mut().zip([40, 40, 30, 10]).for_each(|(slot, bytes)| wait(&mut room, slot, bytes));
        assert!(room.call(60, 90, NOW).is_empty(), "the last would fit, and it is not its turn");
        assert_eq!(room.call(0, 90, NOW).len(), 2);
        let turns = slots.each_ref().map(|slot| room.has_turn(slot));
        assert_eq!(turns, [true, true, true, false], "those called, and the first of those not called");
        assert!(!room.has_turn(&Slot::default()), "a newcomer");
        assert_eq!(room.kept_from(&slots[2]), 80, "it finds no room beside what is kept");
        assert_eq!(room.kept_from(&slots[1]), 40, "what is kept for oneself is room");
        drop(room.leave(&mut slots[1], NOW));
        assert!(room.call(40, 90, NOW).is_empty(), "40 are in use and 40 kept");
        drop(room.leave(&mut slots[0], NOW));
        assert_eq!(room.call(0, 90, NOW).len(), 2);
        assert!(room.has_turn(&Slot::default()), "a newcomer, when all were called");
        assert_eq!(room.kept_from(&Slot::default()), 40);
    }

    #[test]
    fn one_that_finds_no_room_after_all_is_first_again() {
        let mut room = Admission::default();
        let mut slots: [Slot; 2] = Default::default();
        slots.iter_mut().for_each(|slot| wait(&mut room, slot, 40));
        assert_eq!(room.call(0, 50, NOW).len(), 1);
        wait(&mut room, &mut slots[0], 40);
        assert_eq!((room.has_turn(&slots[0]), room.has_turn(&slots[1])), (true, false));
        assert_eq!(room.kept_from(&slots[1]), 0);
    }

    #[test]
    fn what_is_larger_than_all_room_goes_alone() {
        let mut room = Admission::default();
        let mut slot = Slot::default();
        wait(&mut room, &mut slot, 500);
        assert!(room.call(1, 90, NOW).is_empty());
        assert_eq!(room.call(0, 90, NOW).len(), 1);
    }

    #[test]
    fn patience_with_those_who_do_not_come_has_an_end() {
        let mut room = Admission::default();
        let mut slots: [Slot; 2] = Default::default();
        slots.iter_mut().for_each(|slot| wait(&mut room, slot, 80));
        assert_eq!(room.patience_ends(), None, "nothing is kept");
        assert_eq!(room.call(0, 90, NOW).len(), 1);
        assert_eq!(room.patience_ends(), Some(NOW + PATIENCE));
        room.keep_nothing();
        assert_eq!(room.call(0, 90, NOW).len(), 1, "the next one");
        assert_eq!(room.patience_ends(), None, "nobody is kept out");
        assert!(room.has_turn(&slots[0]), "who comes late has not lost its turn");
    }
}
