//! One thing in several copies, so that threads that write to it do not take its cache line from each other.

use std::sync::atomic::{AtomicUsize, Ordering};

/// More threads than this share copies, which costs them speed and nothing else.
const STRIPES: usize = 16;

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's copy, in turn.
    static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
}

/// Two cache lines: processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// The copies.
#[derive(Debug, Default)]
pub(crate) struct Striped<T>([Padded<T>; STRIPES]);

impl<T> Striped<T> {
    /// The copy of the calling thread and of every sixteenth other.
    pub(crate) fn mine(&self) -> &T {
        // A thread that is ending has no number any more.
        let index = MINE.try_with(|index| *index).unwrap_or(0);
        &self.0[index].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn the_copies_of_more_threads_than_stripes_add_up() {
        let counters: Striped<AtomicU64> = Striped::default();
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
