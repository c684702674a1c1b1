//! Running foreign code on the engine's threads: wakers, and the memory of shared values.
//!
//! Either may panic, and may drop whatever it likes, a store among it. So wakers are called, and values given back,
//! outside all locks, and a panic ends there, not with the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

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
    let mut wakers = wakers.into_iter();
    // One frame for all of them; a panic costs a second frame for those behind it.
    while wakers.len() > 0 {
        let _ = catch_unwind(AssertUnwindSafe(|| wakers.by_ref().for_each(Waker::wake)));
    }
}
