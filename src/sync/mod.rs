//! Locks and atomics: the standard library's, or the schedule explorer's. The submodules build on these and on nothing
//! else of the crate, except that [`seeded_bug`](crate::seeded_bug) can break them for tests.
//!
//! Under the feature `__shuttle`, every operation on them is a switch point, where the explorer may run another thread.
//! The explorer also sees which threads wait, so it reports a deadlock. All locks and atomics that are used across a
//! switch point must come from this module: a real lock held there would block the explorer itself. Types that never
//! block may be the real ones: `Arc`, `OnceLock` without an initialiser, and counters that only feed statistics.
//!
//! The explorer explores interleavings, not memory orderings. Every operation is sequentially consistent, whatever
//! [`Ordering`] it names.
//!
//! [`Ordering`]: atomic::Ordering

pub(crate) mod prefetch;
pub(crate) mod promise;
pub(crate) mod sharded;
pub(crate) mod waiters;
pub(crate) mod wake;

#[cfg(not(feature = "__shuttle"))]
pub(crate) use futures_util::task::AtomicWaker;
#[cfg(not(feature = "__shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic};

#[cfg(feature = "__shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic};

/// One waker behind one of the explorer's locks, so that schedules between registering and waking are explored.
#[cfg(feature = "__shuttle")]
#[derive(Debug, Default)]
pub(crate) struct AtomicWaker(Mutex<Option<std::task::Waker>>);

#[cfg(feature = "__shuttle")]
impl AtomicWaker {
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(waker.clone());
    }

    pub(crate) fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
