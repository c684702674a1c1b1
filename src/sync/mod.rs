//! Locks and atomics: the standard library's, or the schedule explorer's.
//!
//! Under the feature `__shuttle` every use of them is a point where the explorer may let another thread go on, and waiting
//! is known to it, so that a deadlock is a finding. Whatever is held or touched between two such points must come from
//! here: a real lock held at one of them would stop the explorer itself. Only what blocks nobody may be the real thing
//! (`Arc`, `OnceLock` without an initialiser, counters that only statistics are made of).
//!
//! The explorer knows interleavings only: each operation is sequentially consistent, whatever [`Ordering`] it names.
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

/// One waker, behind one of the explorer's locks: registering and waking are two steps of two threads.
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
