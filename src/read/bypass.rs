//! Whether a get looks into the page cache itself before it asks the engine.
//!
//! A look costs a system call. Where it finds the record, that is all there is. Where it does not, it has begun the read and
//! made room for it, on the caller's thread, and the engine does most of it again and waits. So while few looks find
//! anything, gets go to the engine at once. The engine answers from the page cache too, after two hand-overs between threads:
//! that is what the few pay. One get in [`LOOK_ONE_IN`] looks, at no regular distance, so that it is noticed when more is
//! cached.

use crate::sync::atomic::{AtomicU32, Ordering};

/// The share of looks that found their record, when all of them did.
const ALL: u32 = 1 << 16;

/// Below this share, three sixteenths, most gets do not look.
const FEW: u32 = ALL / 16 * 3;

/// Each look moves the share by so much of what it is off: slowly while all look, so that the share is not below by chance,
/// and quickly while few do.
const DECAY: u32 = 64;
const DECAY_OF_FEW: u32 = 16;

/// While few looks find anything, one get in so many looks.
const LOOK_ONE_IN: u32 = 16;

/// How much of what is read is cached, as the gets of some threads have found lately.
#[derive(Debug)]
pub(super) struct ProbeBypass {
    found: AtomicU32,
    asked: AtomicU32,
}

impl Default for ProbeBypass {
    fn default() -> Self {
        Self { found: AtomicU32::new(ALL), asked: AtomicU32::new(0) }
    }
}

impl ProbeBypass {
    /// Whether the next get should look.
    pub(super) fn looks(&self) -> bool {
        if self.found.load(Ordering::Relaxed) >= FEW {
            return true;
        }
        // Not each sixteenth: gets may alternate between what is cached and what is not. By the golden ratio instead, whose
        // multiples fall into the lowest sixteenth at distances that no even one divides.
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        asked.wrapping_mul(0x9e37_79b9) < u32::MAX / LOOK_ONE_IN
    }

    /// A get has looked. Of looks at the same time one may be lost.
    pub(super) fn observe(&self, found: bool) {
        let share = self.found.load(Ordering::Relaxed);
        let decay = if share < FEW { DECAY_OF_FEW } else { DECAY };
        let next = match found {
            true => share + (ALL - share).div_ceil(decay),
            false => share - share.div_ceil(decay),
        };
        // Where everything is cached nobody writes.
        if next != share {
            self.found.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "__shuttle")))]
mod tests {
    use super::*;

    /// Of so many gets those that look, where a look finds its record as `is_cached` says.
    fn looks(warmth: &ProbeBypass, gets: u32, is_cached: impl Fn(u32) -> bool) -> u32 {
        let look = |get: &u32| warmth.looks().then(|| warmth.observe(is_cached(*get))).is_some();
        (0..gets).filter(look).count().try_into().unwrap_or(u32::MAX)
    }

    #[test]
    fn gets_look_while_much_is_cached() {
        let warmth = ProbeBypass::default();
        assert_eq!(looks(&warmth, 1000, |_| true), 1000);
        assert_eq!(looks(&warmth, 1000, |get| get % 3 == 0), 1000, "a third of it");
        let found = warmth.found.load(Ordering::Relaxed);
        assert!((ALL / 4..ALL / 2).contains(&found), "{found} of {ALL}");
        assert_eq!(looks(&warmth, 30, |_| false), 30, "a few misses");
        looks(&warmth, 1000, |_| true);
        assert_eq!(looks(&warmth, 100, |_| false), 100, "and many, where all was cached");
    }

    #[test]
    fn few_look_while_little_is_cached() {
        let warmth = ProbeBypass::default();
        let first = looks(&warmth, 1000, |_| false);
        assert!((140..180).contains(&first), "some until it is noticed, then one in sixteen: {first}");
        let later = looks(&warmth, 16_000, |_| false);
        assert!((990..1010).contains(&later), "{later} of 16000");
        let tenth = looks(&warmth, 16_000, |get| get % 10 == 0);
        assert!((1000..2500).contains(&tenth), "a tenth is cached: {tenth} of 16000");
    }

    #[test]
    fn it_is_noticed_when_more_is_cached() {
        let cold = || {
            let warmth = ProbeBypass::default();
            looks(&warmth, 10_000, |_| false);
            warmth
        };
        let warmth = cold();
        looks(&warmth, 100, |_| true);
        assert_eq!(looks(&warmth, 100, |_| true), 100, "after six or seven looks");
        // Whatever the order in which they come.
        for period in 2..=32 {
            for phase in 0..period {
                let (warmth, is_cached) = (cold(), |get: u32| get % period != phase);
                looks(&warmth, 1000, is_cached);
                let looks = looks(&warmth, 1000, is_cached);
                assert_eq!(looks, 1000, "all but one in {period}, at {phase}");
            }
        }
    }
}
