//! Running foreign code on the engine's threads: wakers, and the memory of shared values.
//!
//! Either may panic, and may drop whatever it likes, a store among it. So wakers are called, and values given back,
//! outside all locks, and a panic ends there, not with the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use crate::sync::prefetch::prefetch;

/// How far ahead of the waker that is called others' data is asked for.
const ASKED_AHEAD: usize = 8;

/// Wakes one task.
pub(crate) fn wake_one(waker: Waker) {
    // The panic has been reported by its hook; nothing of the engine's state was in the waker's hands.
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

/// Drops what may own memory of a caller's.
pub(crate) fn give_back(value: impl Sized) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

/// Wakes all of them.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    wakers.iter().take(ASKED_AHEAD).for_each(ask_for);
    let mut wakers = wakers.into_iter();
    // One frame for all of them; a panic costs a second frame for those behind it.
    while wakers.len() > 0 {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            while let Some(waker) = wakers.next() {
                if let Some(ahead) = wakers.as_slice().get(ASKED_AHEAD - 1) {
                    ask_for(ahead);
                }
                waker.wake();
            }
        }));
    }
}

/// A waker's data is the task itself in most executors, and in the cache of the processor that ran it last.
fn ask_for(waker: &Waker) {
    prefetch(waker.data());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    struct Note {
        number: usize,
        woken: Arc<Mutex<Vec<usize>>>,
    }

    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.woken.lock().unwrap().push(self.number);
            assert!(!PANICKING.contains(&self.number), "a waker's own panic");
        }
    }

    const PANICKING: [usize; 5] = [0, 1, 9, 12, 24];

    #[test]
    fn each_is_woken_once_and_in_order_whoever_panics() {
        let woken = Arc::default();
        let note = |number| Waker::from(Arc::new(Note { number, woken: Arc::clone(&woken) }));
        wake_all((0..25).map(note).collect());
        assert_eq!(*woken.lock().unwrap(), (0..25).collect::<Vec<_>>());
    }
}
