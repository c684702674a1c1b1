//! The locator: where in the cache's memory a key's record was when it was last read there.
//!
//! A get that finds its record in the cache learns the record's location from the keydir's entry. Reading that entry is
//! a CPU cache miss, and reading the record is the next one. With a guess, indexed by the key's hash, the two misses
//! overlap. The guess is used for prefetching only, never for reading. If two keys share a word, or the record has
//! moved, the prefetch is wasted and nothing else.
//!
//! A word that is already right is not written, so that threads do not take its cache line from each other. Keys that
//! share a word overwrite it in turn. With many more keys than words, most keys do.

use std::io;
// The real atomics, not the schedule explorer's: no result depends on a guess.
use std::sync::atomic::{AtomicU32, Ordering};

use crate::io::pages::Words;
use crate::io::util::to_usize;

/// Bytes of a line of the CPU cache.
pub(super) const LINE_BYTES: usize = 64;

/// The part of the cache's bytes that the locator may take. In a cache whose size is a power of two this is one word
/// per 256 bytes.
const PART: u64 = 64;

/// A smaller locator is not worth a mapping.
const MIN_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Locator {
    /// Records' places as numbers of cache lines plus one; 0 for none. The count is a power of two.
    words: Words,
    /// A hash shifted right by this is the number of a word.
    shift: u32,
}

impl Locator {
    /// Bytes of the locator of a cache of `cache_bytes`, when all words have been written; 0 if it has none.
    pub(super) fn bytes(cache_bytes: u64) -> u64 {
        let most = cache_bytes / PART;
        if most < MIN_BYTES { 0 } else { 1 << most.ilog2() }
    }

    /// The locator of a cache of `cache_bytes`, if it has one. Takes address space.
    pub(super) fn new(cache_bytes: u64) -> io::Result<Option<Self>> {
        let count = Self::bytes(cache_bytes) / size_of::<u32>() as u64;
        if count == 0 {
            return Ok(None);
        }
        let words = Words::new(usize::try_from(count).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
        Ok(Some(Self { words, shift: u64::BITS - count.ilog2() }))
    }

    /// Bytes when all words have been written.
    pub(super) fn held_bytes(&self) -> u64 {
        size_of_val(&*self.words) as u64
    }

    /// The word of a key, for prefetching.
    pub(super) fn word(&self, hash: u64) -> Option<&AtomicU32> {
        self.words.get(to_usize(hash >> self.shift))
    }

    /// Bytes from the start of the cache's memory to the cache line in which the key's record began.
    pub(super) fn place(&self, hash: u64) -> Option<usize> {
        let line = self.word(hash)?.load(Ordering::Relaxed).checked_sub(1)?;
        Some(line as usize * LINE_BYTES)
    }

    /// Records that the key's record begins `place` bytes from the start of the cache's memory.
    pub(super) fn note(&self, hash: u64, place: usize) {
        // A word cannot address memory beyond 256 GiB.
        let line = u32::try_from(place / LINE_BYTES + 1).unwrap_or(0);
        if let Some(word) = self.word(hash)
            && word.load(Ordering::Relaxed) != line
        {
            word.store(line, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_the_line_of_its_last_place() {
        let locator = Locator::new(4 << 20).unwrap().expect("64 KiB of words");
        let hash = |word: u64| word << 50 | 12345;
        for word in [0, 1, 7000, (1 << 14) - 1] {
            assert_eq!(locator.place(hash(word)), None);
            for (place, line) in [(0, 0), (63, 0), (64, 64), (1000, 960), ((1 << 38) - 65, (1 << 38) - 128)] {
                locator.note(hash(word), place);
                assert_eq!(locator.place(hash(word)), Some(line), "{place}");
                assert_eq!(locator.place(hash(word) + 1), Some(line), "low bits do not choose a word");
            }
            locator.note(hash(word), 1 << 38);
            assert_eq!(locator.place(hash(word)), None, "beyond what a word can address");
        }
        locator.note(hash(1), 640);
        assert_eq!((locator.place(hash(0)), locator.place(hash(2))), (None, None), "neighbouring words are unchanged");
    }

    #[test]
    fn the_locator_takes_a_power_of_two_within_its_part() {
        for (cache_bytes, bytes) in
            [(0, 0), (1 << 20, 0), ((4 << 20) - 1, 0), (4 << 20, 64 << 10), (7 << 20, 64 << 10), (2 << 30, 32 << 20)]
        {
            assert_eq!(Locator::bytes(cache_bytes), bytes, "of {cache_bytes}");
            let words = Locator::new(cache_bytes).unwrap().map_or(0, |locator| locator.words.len() as u64);
            assert_eq!(words * 4, bytes);
        }
    }
}
