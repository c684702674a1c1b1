//! The one source of chance in the simulated world.
//!
//! SplitMix64: one word of state, any seed is a good seed, and the stream is the same on every machine and in every
//! version of this crate, so that a seed printed by a failed run means the same run tomorrow.

/// A small deterministic generator; see the [module](crate::io::sim).
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scrambles one word: every bit of the result depends on every bit of `word`.
pub(super) const fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    pub const fn next_u64(&mut self) -> u64 {
        let word = scramble(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        word
    }

    /// A number in `0..count`; 0 if `count` is 0.
    #[expect(clippy::cast_possible_truncation, reason = "the high half of a product of two words is below `count`")]
    pub const fn below(&mut self, count: usize) -> usize {
        ((self.next_u64() as u128 * count as u128) >> 64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub const fn percent(&mut self, percent: u8) -> bool {
        percent > 0 && self.below(100) < percent as usize
    }

    /// A generator of its own, which a different number of draws from this one does not disturb.
    #[must_use]
    pub const fn fork(&mut self) -> Self {
        Self(scramble(self.next_u64() ^ 0x5bd1_e995))
    }
}
