//! One thing in several copies, so that threads that write to it, or lock it, do not take its cache line from each other.

use std::array;
use std::ops::Deref;
use std::sync::Arc;
#[cfg(not(feature = "__shuttle"))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// More threads than this share copies, which costs them speed and nothing else. (Two are all the schedule explorer needs.)
const STRIPES: usize = if cfg!(feature = "__shuttle") { 2 } else { 16 };

#[cfg(not(feature = "__shuttle"))]
static NEXT: AtomicUsize = AtomicUsize::new(0);

#[cfg(not(feature = "__shuttle"))]
thread_local! {
    /// This thread's copy, in turn.
    static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
}

/// A thread that is ending has no number any more.
#[cfg(not(feature = "__shuttle"))]
fn mine() -> usize {
    MINE.try_with(|index| *index).unwrap_or(0)
}

/// The explorer's threads are all one thread of the system.
#[cfg(feature = "__shuttle")]
fn mine() -> usize {
    shuttle::current::get_current_task().map_or(0, |task| usize::from(task) % STRIPES)
}

/// Two cache lines: processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// The copies.
#[derive(Debug, Default)]
pub(crate) struct Sharded<T>([Padded<T>; STRIPES]);

impl<T> Sharded<T> {
    /// The copy of the calling thread, and of every other whose number leaves the same remainder.
    pub(crate) fn mine(&self) -> &T {
        &self.0[mine()].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

/// A reference to something that every operation takes one of, and drops again. Counted as those of an [`Arc`] are, but those of
/// each stripe apart: one count for all would be a cache line that every thread takes from all others twice an operation.
#[derive(Debug)]
pub(crate) struct Share<T>(Arc<Padded<Arc<T>>>);

impl<T> Clone for Share<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Share<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

impl<T> Sharded<Share<T>> {
    /// The first reference of every stripe.
    pub(crate) fn shares(of: &Arc<T>) -> Self {
        Self(array::from_fn(|_| Padded(Share(Arc::new(Padded(Arc::clone(of)))))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn what_is_shared_lives_as_long_as_any_share_of_any_stripe() {
        let counted = Arc::new(());
        let shares = Sharded::shares(&counted);
        let held: Vec<Share<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2 * STRIPES).map(|_| scope.spawn(|| shares.mine().clone())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(Arc::strong_count(&counted), 1 + STRIPES, "one for each stripe, however many shares");
        drop(shares);
        let stripes = held.iter().map(|share| Arc::as_ptr(&share.0)).collect::<std::collections::HashSet<_>>().len();
        assert!(stripes > 1 || cfg!(feature = "__shuttle"), "each thread has its own");
        assert_eq!(Arc::strong_count(&counted), 1 + stripes);
        drop(held);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn the_copies_of_more_threads_than_stripes_add_up() {
        let counters: Sharded<AtomicU64> = Sharded::default();
        std::thread::scope(|scope| {
            for _ in 0..3 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counters.mine().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let sum: u64 = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 300 * STRIPES as u64);
    }
}
