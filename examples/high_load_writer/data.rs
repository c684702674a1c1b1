//! Keys, and values that follow from a key and its generation. Cheap enough not to show in the figures.

use std::ops::Range;

/// The key of number `index`.
pub(crate) fn key(index: usize) -> [u8; 16] {
    let mut key = *b"load-key\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&(index as u64).to_be_bytes());
    key
}

/// Between two words of a value. Odd, so that no two words of a value are the same, and a value that lies eight bytes
/// off its place shows.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Fills `value` with the bytes of `index` at `generation`.
pub(crate) fn fill(value: &mut [u8], index: usize, generation: u32) {
    let mut word = first_word(index, generation);
    let mut words = value.chunks_exact_mut(8);
    for bytes in &mut words {
        bytes.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(STRIDE);
    }
    let rest = words.into_remainder();
    rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
}

/// Whether `value` is, to the last byte, what [`fill`] makes of `index` and `generation`.
pub(crate) fn matches(value: &[u8], len: usize, index: usize, generation: u32) -> bool {
    let mut word = first_word(index, generation);
    let words = value.chunks_exact(8);
    let rest = words.remainder();
    value.len() == len
        && words.into_iter().all(|bytes| {
            let same = bytes == word.to_le_bytes();
            word = word.wrapping_add(STRIDE);
            same
        })
        && *rest == word.to_le_bytes()[..rest.len()]
}

/// One to one: no two pairs share it.
fn first_word(index: usize, generation: u32) -> u64 {
    mix((index as u64) << 32 | u64::from(generation))
}

/// The finaliser of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Why `value` is not what key `index` may hold, or `None` if it is. `allowed` are generations; 0 stands for
/// "no value".
pub(crate) fn fault(value: Option<&[u8]>, len: usize, index: usize, allowed: &Range<u32>) -> Option<String> {
    let right = match value {
        None => allowed.contains(&0),
        Some(value) => allowed.clone().any(|generation| generation > 0 && matches(value, len, index, generation)),
    };
    (!right).then(|| {
        let found = match value {
            None => "nothing".to_owned(),
            Some(value) => match (1..allowed.end + 2).rev().find(|&old| matches(value, len, index, old)) {
                Some(generation) => format!("generation {generation}"),
                None => format!("{} bytes that were never put", value.len()),
            },
        };
        format!("key {index} must be at one of the generations {allowed:?}, found {found}")
    })
}

/// A xorshift generator: one task's choice of keys.
pub(crate) struct Rng(u64);

impl Rng {
    /// Different for each `task`, the same in every run.
    pub(crate) fn new(task: usize) -> Self {
        Self(mix(task as u64 + STRIDE) | 1)
    }

    /// A number below `bound`, which is at most 2³²: the product of two 32-bit numbers, shifted right by 32.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * bound as u64) >> 32) as usize
    }
}
