//! The bypass of the page-cache probe: whether a get tries an `RWF_NOWAIT` read before it asks the engine.
//!
//! A probe costs a system call. On a hit, that call is the whole read. On a miss it has started the disk read and
//! allocated its pages, on the caller's thread, and the engine then repeats most of that work and waits. So while few
//! probes hit, most gets skip the probe. The engine also answers from the page cache, but at the cost of two hand-overs
//! between threads, which the few cached gets then pay. One get in [`PROBE_ONE_IN`] still probes, at irregular
//! intervals, to notice when more is cached.

use crate::sync::atomic::{AtomicU32, Ordering};

/// A hit rate of 1.
const FULL_RATE: u32 = 1 << 16;

/// Below this hit rate, 3/16, most gets skip the probe.
const BYPASS_BELOW: u32 = FULL_RATE / 16 * 3;

/// Each probe moves the estimated hit rate by this part of its error. Slowly while all gets probe, so that a few misses
/// do not push the estimate below the limit, and faster while few of them do.
const DECAY: u32 = 64;
const DECAY_IN_BYPASS: u32 = 16;

/// While gets skip the probe, one in this many still probes.
const PROBE_ONE_IN: u32 = 16;

/// The estimated page-cache hit rate of the gets of one shard of threads.
#[derive(Debug)]
pub(super) struct ProbeBypass {
    hit_rate: AtomicU32,
    /// Gets that could skip the probe.
    bypassable: AtomicU32,
}

impl Default for ProbeBypass {
    fn default() -> Self {
        Self { hit_rate: AtomicU32::new(FULL_RATE), bypassable: AtomicU32::new(0) }
    }
}

impl ProbeBypass {
    /// Whether the next get should probe.
    #[inline]
    pub(super) fn should_probe(&self) -> bool {
        if self.hit_rate.load(Ordering::Relaxed) >= BYPASS_BELOW {
            return true;
        }
        // Not every sixteenth get: gets may alternate between cached and uncached records. Multiples of the golden
        // ratio fall into the lowest sixteenth at intervals that no fixed period divides.
        let number = self.bypassable.fetch_add(1, Ordering::Relaxed);
        number.wrapping_mul(0x9e37_79b9) < u32::MAX / PROBE_ONE_IN
    }

    /// Updates the hit rate after a probe. Of two concurrent updates one may be lost.
    #[inline]
    pub(super) fn observe(&self, hit: bool) {
        let rate = self.hit_rate.load(Ordering::Relaxed);
        let decay = if rate < BYPASS_BELOW { DECAY_IN_BYPASS } else { DECAY };
        let next = match hit {
            true => rate + (FULL_RATE - rate).div_ceil(decay),
            false => rate - rate.div_ceil(decay),
        };
        // Where everything is cached, no thread writes.
        if next != rate {
            self.hit_rate.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "__shuttle")))]
mod tests {
    use super::*;

    /// Returns how many of `gets` gets probe. `is_cached` says whether the probe of a get hits.
    fn probes(bypass: &ProbeBypass, gets: u32, is_cached: impl Fn(u32) -> bool) -> u32 {
        let probe = |get: &u32| bypass.should_probe().then(|| bypass.observe(is_cached(*get))).is_some();
        (0..gets).filter(probe).count().try_into().unwrap_or(u32::MAX)
    }

    #[test]
    fn gets_probe_while_much_is_cached() {
        let bypass = ProbeBypass::default();
        assert_eq!(probes(&bypass, 1000, |_| true), 1000);
        assert_eq!(probes(&bypass, 1000, |get| get % 3 == 0), 1000, "a third is cached");
        let rate = bypass.hit_rate.load(Ordering::Relaxed);
        assert!((FULL_RATE / 4..FULL_RATE / 2).contains(&rate), "{rate} of {FULL_RATE}");
        assert_eq!(probes(&bypass, 30, |_| false), 30, "a few misses");
        probes(&bypass, 1000, |_| true);
        assert_eq!(probes(&bypass, 100, |_| false), 100, "many misses, where all was cached");
    }

    #[test]
    fn most_gets_skip_the_probe_while_little_is_cached() {
        let bypass = ProbeBypass::default();
        let first = probes(&bypass, 1000, |_| false);
        assert!((140..180).contains(&first), "probes until the rate has dropped, then one in sixteen: {first}");
        let later = probes(&bypass, 16_000, |_| false);
        assert!((990..1010).contains(&later), "{later} of 16000");
        let tenth = probes(&bypass, 16_000, |get| get % 10 == 0);
        assert!((1000..2500).contains(&tenth), "a tenth is cached: {tenth} of 16000");
    }

    #[test]
    fn all_gets_probe_again_when_more_is_cached() {
        let cold = || {
            let bypass = ProbeBypass::default();
            probes(&bypass, 10_000, |_| false);
            bypass
        };
        let bypass = cold();
        probes(&bypass, 100, |_| true);
        assert_eq!(probes(&bypass, 100, |_| true), 100, "after six or seven probes");
        // In whatever order cached and uncached gets alternate.
        for period in 2..=32 {
            for phase in 0..period {
                let (bypass, is_cached) = (cold(), |get: u32| get % period != phase);
                probes(&bypass, 1000, is_cached);
                let probes = probes(&bypass, 1000, is_cached);
                assert_eq!(probes, 1000, "all but one in {period}, at {phase}");
            }
        }
    }
}
