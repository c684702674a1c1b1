//! Keys, and values that are computed from a key and its generation. They cost too little to affect the figures.

use std::ops::Range;

/// The key with number `index`.
pub(crate) fn key(index: usize) -> [u8; 16] {
    let mut key = *b"load-key\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&(index as u64).to_be_bytes());
    key
}

/// The difference between consecutive words of a value. It is odd, so that all words of a value differ and a value that
/// is shifted by eight bytes is detected.
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

/// Whether `value` has exactly the bytes that [`fill`] makes from `index` and `generation`.
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

/// The first word of a value. It is different for every pair.
fn first_word(index: usize, generation: u32) -> u64 {
    mix((index as u64) << 32 | u64::from(generation))
}

/// The finaliser of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Describes why key `index` must not have `value`, or returns `None` if it may. `allowed` is a range of generations,
/// in which 0 means "no value".
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
                None => format!("{} bytes that no task put", value.len()),
            },
        };
        format!("key {index} must have one of the generations {allowed:?}, found {found}")
    })
}

/// A xorshift generator. It chooses the keys of one task.
pub(crate) struct Rng(u64);

impl Rng {
    /// Its numbers differ between tasks and are the same in every run.
    pub(crate) fn new(task: usize) -> Self {
        Self(mix(task as u64 + STRIDE) | 1)
    }

    /// A number below `bound`, which is at most 2³²: a random 32-bit number times `bound`, shifted right by 32.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * bound as u64) >> 32) as usize
    }
}
