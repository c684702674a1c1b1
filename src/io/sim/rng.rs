//! The random number generator of the simulation.
//!
//! SplitMix64: one word of state, and any seed is good. The stream is the same on every machine and in every version of
//! this crate, so the seed of a failed run reproduces that run.

/// A small deterministic generator; see the [module](crate::io::sim).
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes one word: every bit of the result depends on every bit of `word`.
pub(super) const fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// Creates a generator with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next random word.
    pub const fn next_u64(&mut self) -> u64 {
        let word = scramble(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        word
    }

    /// A random number in `0..count`, or 0 if `count` is 0.
    #[expect(clippy::cast_possible_truncation, reason = "the high half of a product of two words is below `count`")]
    pub const fn below(&mut self, count: usize) -> usize {
        ((self.next_u64() as u128 * count as u128) >> 64) as usize
    }

    /// True with a probability of `percent` percent.
    pub const fn percent(&mut self, percent: u8) -> bool {
        percent > 0 && self.below(100) < percent as usize
    }

    /// Creates an independent generator. Draws from one do not affect the other.
    #[must_use]
    pub const fn fork(&mut self) -> Self {
        Self(scramble(self.next_u64() ^ 0x5bd1_e995))
    }
}
