//! A list of waiting futures: one slot per future, in the order of arrival.
//!
//! A future holds one slot, however often and by whichever executor it is polled. Dropping the future frees the slot.
//! So a list is never longer than the number of waiting futures.
//!
//! The owner of a list keeps it behind a lock. Wakers are the caller's code, so the owner wakes or drops the wakers it
//! takes out of a list only after it has released that lock.

use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

use crate::seeded_bug::{self, SeededBug};

/// The slots, each with the condition its future waits for.
#[derive(Debug)]
pub(crate) struct Waiters<T> {
    newest: u64,
    /// In ascending order of their numbers.
    list: VecDeque<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    number: u64,
    condition: T,
    waker: Waker,
}

/// A future's claim to a slot. It keeps its place in the order after the future was woken.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Slots are numbered from 1; 0 before the first wait.
    number: u64,
}

impl Slot {
    /// Whether its future has ever waited. If not, there is no slot to leave.
    pub(crate) fn was_used(&self) -> bool {
        self.number > 0
    }

    /// Its number: smaller than those of later arrivals; 0 before it is used.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self { newest: 0, list: VecDeque::new() }
    }
}

impl<T> Waiters<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Registers `waker` for `slot`. Returns the waker it replaces.
    #[must_use = "drop it outside the lock"]
    pub(crate) fn wait(&mut self, slot: &mut Slot, condition: T, waker: &Waker) -> Option<Waker> {
        if slot.number == 0 {
            self.newest += 1;
            slot.number = self.newest;
        }
        match self.find(slot.number) {
            Ok(index) => {
                let waiter = &mut self.list[index];
                waiter.condition = condition;
                let is_new = !waiter.waker.will_wake(waker);
                is_new.then(|| mem::replace(&mut waiter.waker, waker.clone()))
            }
            Err(index) => {
                self.list.insert(index, Waiter { number: slot.number, condition, waker: waker.clone() });
                None
            }
        }
    }

    /// Frees `slot`. Returns its waker.
    #[must_use = "drop it outside the lock"]
    pub(crate) fn leave(&mut self, slot: &mut Slot) -> Option<Waker> {
        let index = self.find(mem::take(slot).number).ok()?;
        if seeded_bug::is(SeededBug::WaiterKept) {
            return None;
        }
        self.list.remove(index).map(|waiter| waiter.waker)
    }

    /// The number of the oldest slot.
    pub(crate) fn first(&self) -> Option<u64> {
        self.list.front().map(|waiter| waiter.number)
    }

    /// Removes the oldest slot if its condition is `met`. Returns its number, condition and waker.
    pub(crate) fn take_first_if(&mut self, met: impl Fn(&T) -> bool) -> Option<(u64, T, Waker)> {
        if !met(&self.list.front()?.condition) {
            return None;
        }
        let first = self.list.pop_front()?;
        Some((first.number, first.condition, first.waker))
    }

    /// Removes all slots. Returns their wakers, oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.list.drain(..).map(|waiter| waiter.waker).collect()
    }

    /// Removes the slots whose condition is `met`. Returns their wakers, oldest first.
    pub(crate) fn take_if(&mut self, met: impl Fn(&T) -> bool) -> Vec<Waker> {
        let mut taken = Vec::new();
        for waiter in mem::take(&mut self.list) {
            if met(&waiter.condition) {
                taken.push(waiter.waker);
            } else {
                self.list.push_back(waiter);
            }
        }
        taken
    }

    fn find(&self, number: u64) -> Result<usize, usize> {
        self.list.binary_search_by_key(&number, |waiter| waiter.number)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waiter() -> (Arc<WakeCount>, Waker) {
        let count = Arc::new(WakeCount::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_future_holds_one_slot_however_often_it_is_polled() {
        let mut waiters = Waiters::default();
        let mut slot = Slot::default();
        let (first, waker) = waiter();
        assert!(waiters.wait(&mut slot, (), &waker).is_none());
        assert!(waiters.wait(&mut slot, (), &waker).is_none(), "the same waker replaces nothing");
        drop(waker);
        let (second, waker) = waiter();
        drop(waiters.wait(&mut slot, (), &waker));
        drop(waker);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 2));
        waiters.take_all().into_iter().for_each(Waker::wake);
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
        assert!(waiters.is_empty() && waiters.leave(&mut slot).is_none());
    }

    #[test]
    fn slots_keep_their_order_when_others_wake_and_leave() {
        let mut waiters = Waiters::default();
        let mut slots: Vec<Slot> = (0..4).map(|_| Slot::default()).collect();
        let noop = Waker::noop();
        for (slot, condition) in slots.iter_mut().zip(0..) {
            drop(waiters.wait(slot, condition, noop));
        }
        assert_eq!(waiters.take_if(|condition| *condition < 2).len(), 2);
        drop(waiters.leave(&mut slots[2]));
        drop(waiters.wait(&mut slots[1], 1, noop));
        let order: Vec<i32> = waiters.list.iter().map(|waiter| waiter.condition).collect();
        assert_eq!(order, [1, 3], "a woken waiter that waits again stays ahead of later arrivals");
    }
}
