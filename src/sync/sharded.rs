//! Sharded values: several copies of one thing, so that threads which write to it, or lock it, do not contend for its
//! cache line.

use std::array;
use std::ops::Deref;
use std::sync::Arc;
#[cfg(not(feature = "__shuttle"))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Copies of each value. More threads than this share copies, which costs speed and nothing else. Two are enough for
/// the schedule explorer.
const SHARDS: usize = if cfg!(feature = "__shuttle") { 2 } else { 16 };

#[cfg(not(feature = "__shuttle"))]
static NEXT: AtomicUsize = AtomicUsize::new(0);

#[cfg(not(feature = "__shuttle"))]
thread_local! {
    /// The number of this thread's copy, assigned round robin.
    static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
}

/// The number of the calling thread's copy. A thread that is exiting has lost its number and uses copy 0.
#[cfg(not(feature = "__shuttle"))]
fn mine() -> usize {
    MINE.try_with(|index| *index).unwrap_or(0)
}

/// The explorer runs all its threads on one system thread, so it counts its own tasks.
#[cfg(feature = "__shuttle")]
fn mine() -> usize {
    shuttle::current::get_current_task().map_or(0, |task| usize::from(task) % SHARDS)
}

/// Aligned to two cache lines, because CPUs fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// A value with one copy per shard of threads.
#[derive(Debug, Default)]
pub(crate) struct Sharded<T>([Padded<T>; SHARDS]);

impl<T> Sharded<T> {
    /// The calling thread's copy. Threads whose numbers are equal modulo [`SHARDS`] share a copy.
    pub(crate) fn mine(&self) -> &T {
        &self.0[mine()].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

/// A counted reference, like an [`Arc`], with one reference count per shard. Every operation takes a reference and
/// drops it. A single count would be a cache line that all threads contend for twice per operation.
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
    /// The first reference of every shard.
    pub(crate) fn shares(of: &Arc<T>) -> Self {
        Self(array::from_fn(|_| Padded(Share(Arc::new(Padded(Arc::clone(of)))))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_shared_value_lives_as_long_as_any_share_of_any_shard() {
        let counted = Arc::new(());
        let shares = Sharded::shares(&counted);
        let held: Vec<Share<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2 * SHARDS).map(|_| scope.spawn(|| shares.mine().clone())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(Arc::strong_count(&counted), 1 + SHARDS, "one for each shard, however many shares");
        drop(shares);
        let shards = held.iter().map(|share| Arc::as_ptr(&share.0)).collect::<std::collections::HashSet<_>>().len();
        assert!(shards > 1 || cfg!(feature = "__shuttle"), "threads have different shards");
        assert_eq!(Arc::strong_count(&counted), 1 + shards);
        drop(held);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn copies_of_more_threads_than_shards_add_up() {
        let counters: Sharded<AtomicU64> = Sharded::default();
        std::thread::scope(|scope| {
            for _ in 0..3 * SHARDS {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counters.mine().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let sum: u64 = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 300 * SHARDS as u64);
    }
}
