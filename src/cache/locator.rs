//! Where in the cache's memory a key's record was when it was last read there.
//!
//! A get that finds its record in the cache knows where it lies only when the keydir's entry has come, which is a miss of the
//! processor's cache, and the record is the next one. With a guess, by the key's hash, the two are one. It is never more
//! than a guess: lines are asked for by it, and nothing is read by it. Whoever shares a word with another key, or whose record has
//! moved since, asks for lines in vain.
//!
//! A word that is right is not written, so that threads do not take its line from each other. Keys of one word write it in
//! turn, which where there are many more keys than words is most of them.

use std::io;
// Not those of the schedule explorer: nothing depends on what a hint says.
use std::sync::atomic::{AtomicU32, Ordering};

use super::LINE_BYTES;
use crate::io::pages::Words;
use crate::io::util::to_usize;

/// What part of its bytes the cache gives to hints at the most: with a cache of a power of two,
/// a word for 256 bytes of it.
const PART: u64 = 64;

/// Less is not worth a mapping of its own.
const MIN_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Hints {
    /// Where records lie, as numbers of lines of the processor's cache plus one, 0 for none. A power of two of them.
    words: Words,
    /// A hash without so many of its low bits is the number of a word.
    shift: u32,
}

impl Hints {
    /// What the hints of a cache of `cache_bytes` take, when all have been written; 0 where there are none.
    pub(super) fn bytes(cache_bytes: u64) -> u64 {
        let most = cache_bytes / PART;
        if most < MIN_BYTES { 0 } else { 1 << most.ilog2() }
    }

    /// Those of a cache of `cache_bytes`, if it has any. Takes address space.
    pub(super) fn new(cache_bytes: u64) -> io::Result<Option<Self>> {
        let count = Self::bytes(cache_bytes) / size_of::<u32>() as u64;
        if count == 0 {
            return Ok(None);
        }
        let words = Words::new(usize::try_from(count).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
        Ok(Some(Self { words, shift: u64::BITS - count.ilog2() }))
    }

    /// What they take when all have been written.
    pub(super) fn held_bytes(&self) -> u64 {
        size_of_val(&*self.words) as u64
    }

    /// The word of a key. It may be asked for ahead.
    pub(super) fn word(&self, hash: u64) -> Option<&AtomicU32> {
        self.words.get(to_usize(hash >> self.shift))
    }

    /// Bytes from the beginning of the cache's memory to the line in which the key's record began.
    pub(super) fn place(&self, hash: u64) -> Option<usize> {
        let line = self.word(hash)?.load(Ordering::Relaxed).checked_sub(1)?;
        Some(line as usize * LINE_BYTES)
    }

    /// The key's record begins so many bytes from the beginning of the cache's memory.
    pub(super) fn note(&self, hash: u64, place: usize) {
        // Of the memory beyond 256 GiB there are no hints.
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
    fn the_last_place_of_a_word_is_told_by_its_line() {
        let hints = Hints::new(4 << 20).unwrap().expect("64 KiB of them");
        let hash = |word: u64| word << 50 | 12345;
        for word in [0, 1, 7000, (1 << 14) - 1] {
            assert_eq!(hints.place(hash(word)), None);
            for (place, line) in [(0, 0), (63, 0), (64, 64), (1000, 960), ((1 << 38) - 65, (1 << 38) - 128)] {
                hints.note(hash(word), place);
                assert_eq!(hints.place(hash(word)), Some(line), "{place}");
                assert_eq!(hints.place(hash(word) + 1), Some(line), "low bits choose no word");
            }
            hints.note(hash(word), 1 << 38);
            assert_eq!(hints.place(hash(word)), None, "beyond what a word can name");
        }
        hints.note(hash(1), 640);
        assert_eq!((hints.place(hash(0)), hints.place(hash(2))), (None, None), "of the neighbours");
    }

    #[test]
    fn they_take_a_power_of_two_and_no_more_than_their_part() {
        for (cache_bytes, bytes) in
            [(0, 0), (1 << 20, 0), ((4 << 20) - 1, 0), (4 << 20, 64 << 10), (7 << 20, 64 << 10), (2 << 30, 32 << 20)]
        {
            assert_eq!(Hints::bytes(cache_bytes), bytes, "of {cache_bytes}");
            let words = Hints::new(cache_bytes).unwrap().map_or(0, |hints| hints.words.len() as u64);
            assert_eq!(words * 4, bytes);
        }
    }
}
