//! Futures that wait for something of the store's: one slot each, in the order they came.
//!
//! However often a future is polled, by whatever executor, it holds one slot; a future that is dropped gives it up. So a
//! list is never longer than there are futures that wait. The lists lie behind somebody's lock. What is taken out of
//! one is foreign code: it is woken, or dropped, when that lock is free again.

use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

use crate::seeded_bug::{self, SeededBug};

/// The slots, each with what its future waits for.
#[derive(Debug)]
pub(crate) struct Waiters<T> {
    newest: u64,
    /// Ascending by number.
    list: VecDeque<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    number: u64,
    wish: T,
    waker: Waker,
}

/// A future's claim to a slot; it keeps its place in the order after it was woken.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Slots count from 1.
    number: u64,
}

impl Slot {
    /// Whether its future has ever waited: if not, there is nothing to leave.
    pub(crate) fn was_used(&self) -> bool {
        self.number > 0
    }

    /// Its number: smaller than that of whoever came later; 0 before it is used.
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

    /// Has `waker` woken for `slot`. Returns the waker it replaces.
    #[must_use = "to be dropped outside the lock"]
    pub(crate) fn wait(&mut self, slot: &mut Slot, wish: T, waker: &Waker) -> Option<Waker> {
        if slot.number == 0 {
            self.newest += 1;
            slot.number = self.newest;
        }
        match self.find(slot.number) {
            Ok(index) => {
                let waiter = &mut self.list[index];
                waiter.wish = wish;
                let is_new = !waiter.waker.will_wake(waker);
                is_new.then(|| mem::replace(&mut waiter.waker, waker.clone()))
            }
            Err(index) => {
                self.list.insert(index, Waiter { number: slot.number, wish, waker: waker.clone() });
                None
            }
        }
    }

    /// Gives `slot` up.
    #[must_use = "to be dropped outside the lock"]
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

    /// Takes the oldest slot out if its wish is `granted`: its number, the wish and the waker.
    pub(crate) fn take_first_if(&mut self, granted: impl Fn(&T) -> bool) -> Option<(u64, T, Waker)> {
        if !granted(&self.list.front()?.wish) {
            return None;
        }
        let first = self.list.pop_front()?;
        Some((first.number, first.wish, first.waker))
    }

    /// Everybody's wakers, oldest slot first.
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.list.drain(..).map(|waiter| waiter.waker).collect()
    }

    /// The wakers of those whose wish is `granted`.
    pub(crate) fn take_if(&mut self, granted: impl Fn(&T) -> bool) -> Vec<Waker> {
        let mut taken = Vec::new();
        for waiter in mem::take(&mut self.list) {
            if granted(&waiter.wish) {
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
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waiter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_future_has_one_slot_however_often_it_is_polled() {
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
    fn slots_keep_their_order_through_waking_and_leaving() {
        let mut waiters = Waiters::default();
        let mut slots: Vec<Slot> = (0..4).map(|_| Slot::default()).collect();
        let noop = Waker::noop();
        for (slot, wish) in slots.iter_mut().zip(0..) {
            drop(waiters.wait(slot, wish, noop));
        }
        assert_eq!(waiters.take_if(|wish| *wish < 2).len(), 2);
        drop(waiters.leave(&mut slots[2]));
        drop(waiters.wait(&mut slots[1], 1, noop));
        let order: Vec<i32> = waiters.list.iter().map(|waiter| waiter.wish).collect();
        assert_eq!(order, [1, 3], "who was woken and waits again is ahead of whoever came later");
    }
}
