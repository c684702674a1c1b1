//! Whether a get looks into the page cache itself before it asks the engine.
//!
//! A look costs a system call. Where it finds the record, that is all there is. Where it does not, it has begun the read and
//! made room for it, on the caller's thread, and the engine does most of it again and waits. So while few looks find
//! anything, gets go to the engine at once, which answers from the page cache too, only not as quickly; and one get in
//! [`LOOK_ONE_IN`] looks, so that it is noticed when more is cached.

use crate::sync::atomic::{AtomicU32, Ordering};

/// The share of looks that found their record, when all of them did.
const ALL: u32 = 256;

/// Below this share gets do not look: a get by the engine costs a few times what a look does.
const FEW: u32 = ALL / 4;

/// Each look moves the share by so much of what it is off.
const DECAY: u32 = 16;

/// While few looks find anything, one get in so many looks.
const LOOK_ONE_IN: u32 = 16;

/// How much of what is read is cached, as the gets of some threads have found lately.
#[derive(Debug)]
pub(super) struct Warmth {
    found: AtomicU32,
    not_looked: AtomicU32,
}

impl Default for Warmth {
    fn default() -> Self {
        Self { found: AtomicU32::new(ALL), not_looked: AtomicU32::new(0) }
    }
}

impl Warmth {
    /// Whether the next get should look.
    pub(super) fn looks(&self) -> bool {
        self.found.load(Ordering::Relaxed) >= FEW
            || self.not_looked.fetch_add(1, Ordering::Relaxed) % LOOK_ONE_IN == LOOK_ONE_IN - 1
    }

    /// A get has looked. Of looks at the same time one may be lost.
    pub(super) fn observe(&self, found: bool) {
        let share = self.found.load(Ordering::Relaxed);
        let next = match found {
            true => share + (ALL - share).div_ceil(DECAY),
            false => share - share.div_ceil(DECAY),
        };
        // Where everything is cached nobody writes.
        if next != share {
            self.found.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// Of so many gets those that look, where a look finds its record as `is_cached` says.
    fn looks(warmth: &Warmth, gets: u32, is_cached: impl Fn(u32) -> bool) -> u32 {
        let look = |get: &u32| warmth.looks().then(|| warmth.observe(is_cached(*get))).is_some();
        (0..gets).filter(look).count().try_into().unwrap_or(u32::MAX)
    }

    #[test]
    fn gets_look_while_much_is_cached() {
        let warmth = Warmth::default();
        assert_eq!(looks(&warmth, 1000, |_| true), 1000);
        assert_eq!(looks(&warmth, 1000, |get| get % 2 == 0), 1000, "half of it");
        assert_eq!(warmth.found.load(Ordering::Relaxed).clamp(100, 156), warmth.found.load(Ordering::Relaxed));
        assert_eq!(looks(&warmth, 5, |_| false), 5, "a few misses");
        assert_eq!(looks(&warmth, 1000, |_| true), 1000);
        assert_eq!(warmth.found.load(Ordering::Relaxed), ALL);
    }

    #[test]
    fn few_look_while_little_is_cached() {
        let warmth = Warmth::default();
        let first = looks(&warmth, 1000, |_| false);
        assert!((60..100).contains(&first), "some until it is noticed, then one in sixteen: {first}");
        assert_eq!(warmth.found.load(Ordering::Relaxed), 0);
        assert_eq!(looks(&warmth, 1600, |_| false), 100);
        let tenth = looks(&warmth, 16_000, |get| get % 160 < 16);
        assert!((1000..1500).contains(&tenth), "a tenth is cached: {tenth} of 16000");
    }

    #[test]
    fn it_is_noticed_when_everything_is_cached() {
        let warmth = Warmth::default();
        looks(&warmth, 1000, |_| false);
        assert!(looks(&warmth, 200, |_| true) >= 120, "five looks of sixteen gets each");
        assert_eq!(looks(&warmth, 100, |_| true), 100);
    }
}
