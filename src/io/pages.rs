//! Memory in large pages: that of the block cache and its hints, and of the keydir's entries.
//!
//! What is read here and there in hundreds of megabytes misses more than the processor's caches: its table of pages has
//! room for some megabytes, and a miss there is a walk through memory before the read itself. Large pages are few enough
//! for it, and new ones cost one fault for 2 MiB instead of 512. The kernel is asked for them; where it has none, all is the
//! same but for the time. (The kernel's `Documentation/admin-guide/mm/transhuge.rst`.)

// Memory that is not the allocator's is mapped, given out in parts and unmapped here.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Mappings are as long as multiples of this, which the pages of every Linux divide.
const GRANULE_BYTES: usize = 64 << 10;

/// Memory that was never used: it reads as zeros, and takes room where it is written.
#[derive(Debug)]
struct Mapping {
    /// Never changed. A plain pointer would bind it to one thread, though the memory is touched only by those who have
    /// parts of it, each its own.
    base: AtomicPtr<u8>,
    len: usize,
}

impl Mapping {
    /// Begins at a large page if it is as long as one. `len` is a multiple of [`GRANULE_BYTES`].
    fn new(len: usize) -> io::Result<Self> {
        let slack = if len < LARGE_PAGE_BYTES { 0 } else { LARGE_PAGE_BYTES };
        let mapped = len.checked_add(slack).filter(|mapped| isize::try_from(*mapped).is_ok());
        let mapped = mapped.ok_or(io::ErrorKind::OutOfMemory)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: no address is asked for, so the kernel puts it where nothing is: nobody's memory is touched.
        // Shown by `blocks_are_apart_and_outlive_their_region`.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), mapped, protection, flags) }?.cast::<u8>();
        let before = if slack == 0 { 0 } else { start.addr().next_multiple_of(LARGE_PAGE_BYTES) - start.addr() };
        let base = start.wrapping_add(before);
        // SAFETY: what is unmapped are the parts before and behind what is kept of the mapping just made, of which
        // nobody has been told; advice changes no byte.
        // Shown by `blocks_are_apart_and_outlive_their_region`.
        unsafe {
            if before > 0 {
                let _ = munmap(start.cast(), before);
            }
            if slack > before {
                let _ = munmap(base.wrapping_add(len).cast(), slack - before);
            }
            if slack > 0 {
                let _ = madvise(base.cast(), len, Advice::LinuxHugepage);
            }
        }
        Ok(Self { base: base.into(), len })
    }

    fn base(&self) -> *mut u8 {
        self.base.load(Ordering::Relaxed)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped when it was made and is unmapped once; a block that has a part of it keeps it.
        // Shown by `blocks_are_apart_and_outlive_their_region`.
        let _ = unsafe { munmap(self.base().cast(), self.len) };
    }
}

/// Memory for blocks of one size. An iterator that gives each of them out, once, in the order of their addresses.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    block_bytes: usize,
    /// Where the next block begins,
    next: usize,
    /// and the last one ends.
    end: usize,
}

impl Region {
    /// Room for `blocks`, one at least, of `block_bytes` each. Takes address space and no memory.
    pub(crate) fn new(blocks: usize, block_bytes: usize) -> io::Result<Self> {
        let end = blocks.checked_mul(block_bytes);
        let len = end.and_then(|end| end.checked_next_multiple_of(GRANULE_BYTES));
        let (Some(end), Some(len)) = (end, len) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        Ok(Self { mapping: Arc::new(Mapping::new(len)?), block_bytes, next: 0, end })
    }

    /// Where its first block begins: an address to be computed with, not to be read by.
    pub(crate) fn address(&self) -> usize {
        self.mapping.base().addr()
    }
}

impl Iterator for Region {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        let begin = self.next;
        let end = begin.checked_add(self.block_bytes).filter(|end| *end <= self.end)?;
        self.next = end;
        let base = self.mapping.base().wrapping_add(begin);
        Some(Block { base: base.into(), len: self.block_bytes, _mapping: Arc::clone(&self.mapping) })
    }
}

/// A part of a region, which nobody else has.
#[derive(Debug)]
pub(crate) struct Block {
    /// Never changed, as a mapping's is not.
    base: AtomicPtr<u8>,
    len: usize,
    /// So that it stays mapped.
    _mapping: Arc<Mapping>,
}

// The schedule explorer's keydir has no chunks.
#[cfg(not(feature = "__shuttle"))]
impl Block {
    /// Gives its memory back to the system and keeps its address, if it begins and ends where pages of every size do. What it
    /// holds from here on is zeros, or what it held.
    pub(crate) fn clear(&mut self) {
        let (base, len) = (*self.base.get_mut(), self.len);
        if !base.addr().is_multiple_of(GRANULE_BYTES) || !len.is_multiple_of(GRANULE_BYTES) {
            return;
        }
        // SAFETY: these are whole pages of the mapping, which it keeps, private and of no file, and nobody else has a byte of
        // them: what changes is what this borrow could have written, to zeros or not at all.
        // Shown by `a_cleared_block_takes_no_memory_and_others_stay`.
        let _ = unsafe { madvise(base.cast(), len, Advice::LinuxDontNeed) };
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: its bytes lie in the mapping, which it keeps, and were zeros when it was made. The region has given them to
        // this block alone, so who writes them has borrowed it.
        // Shown by `blocks_are_apart_and_outlive_their_region`.
        unsafe { std::slice::from_raw_parts(self.base.load(Ordering::Relaxed), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this borrow of it is the only one.
        // Shown by `blocks_are_apart_and_outlive_their_region`.
        unsafe { std::slice::from_raw_parts_mut(*self.base.get_mut(), self.len) }
    }
}

/// Words that any number of threads read and write. They are zeros at first, and take memory where one was written.
#[derive(Debug)]
pub(crate) struct Words {
    mapping: Mapping,
    count: usize,
}

impl Words {
    /// So many of them, one at least.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let bytes = count.checked_mul(size_of::<AtomicU32>());
        let len = bytes.and_then(|bytes| bytes.checked_next_multiple_of(GRANULE_BYTES));
        Ok(Self { mapping: Mapping::new(len.ok_or(io::ErrorKind::OutOfMemory)?)?, count })
    }
}

impl Deref for Words {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: they lie in the mapping, which is kept, begins at a page and was zeros when it was made, and zero is a word.
        // Nobody else has a byte of it, and whoever borrows the words writes them as atomics.
        // Shown by `words_are_zeros_and_are_written_by_all`.
        unsafe { std::slice::from_raw_parts(self.mapping.base().cast(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn low_byte(number: usize) -> u8 {
        number.to_le_bytes()[0]
    }

    #[test]
    fn blocks_are_apart_and_outlive_their_region() {
        // Of less than a large page, of one, and of some that do not end at one.
        for (blocks, block_bytes) in [(1, 256), (7, 1000), (128, 16 << 10), (300, 16 << 10), (1, 5 << 20)] {
            let mut region = Region::new(blocks, block_bytes).unwrap();
            let address = region.address();
            let mut all: Vec<Block> = region.by_ref().collect();
            assert_eq!((all.len(), region.next().map(|block| block.len)), (blocks, None));
            drop(region);
            assert!(all.iter().all(|block| block.iter().all(|byte| *byte == 0)), "new memory");
            thread::scope(|scope| {
                for (number, block) in all.iter_mut().enumerate() {
                    assert_eq!(block.as_ptr().addr(), address + number * block_bytes);
                    if number % 50 == 0 {
                        scope.spawn(move || block.fill(low_byte(number)));
                    } else {
                        block.fill(low_byte(number));
                    }
                }
            });
            while let Some(block) = all.pop() {
                assert!(block.len() == block_bytes && block.iter().all(|byte| *byte == low_byte(all.len())));
            }
        }
    }

    #[cfg(not(feature = "__shuttle"))]
    #[test]
    fn a_cleared_block_takes_no_memory_and_others_stay() {
        let mut blocks: Vec<Block> = Region::new(64, 64 << 10).unwrap().collect();
        blocks.iter_mut().for_each(|block| block.fill(7));
        let [before, cleared, after, ..] = &mut blocks[..] else { panic!("64 blocks") };
        cleared.clear();
        assert!(before.iter().chain(after.iter()).all(|byte| *byte == 7));
        assert!(cleared.iter().all(|byte| *byte == 0), "what is left are new pages");
        cleared.fill(8);
        assert!(cleared.iter().all(|byte| *byte == 8) && before.iter().chain(after.iter()).all(|byte| *byte == 7));
        // Less than a page.
        let mut short: Vec<Block> = Region::new(8, 1000).unwrap().collect();
        short.iter_mut().for_each(|block| block.fill(7));
        short[0].clear();
        assert!(short[1..].iter().flat_map(|block| block.iter()).all(|byte| *byte == 7));
    }

    #[test]
    fn words_are_zeros_and_are_written_by_all() {
        for count in [1_u32, 1000, 1 << 14, (1 << 20) + 1] {
            let words = Words::new(count as usize).unwrap();
            assert_eq!(words.len(), count as usize);
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0), "new memory");
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for (number, word) in (0..).zip(words.iter()) {
                            word.fetch_add(number, Ordering::Relaxed);
                        }
                    });
                }
            });
            for (number, word) in (0..).zip(words.iter()) {
                assert_eq!(word.load(Ordering::Relaxed), 4 * number, "of {count}");
            }
        }
    }

    #[test]
    fn more_than_can_be_mapped_is_an_error() {
        for (blocks, block_bytes) in [(usize::MAX, 2), (usize::MAX / 2, 1), (1 << 50, 16)] {
            let refused = Region::new(blocks, block_bytes).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory, "{refused}");
        }
        for count in [usize::MAX, usize::MAX / 4, 1 << 50] {
            assert_eq!(Words::new(count).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        }
    }

    #[test]
    fn the_kernel_is_asked_for_large_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            println!("SKIPPED: this kernel has no large pages");
            return;
        }
        let region = Region::new(256, 16 << 10).unwrap();
        let head = format!("{:x}-", region.address());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps.lines().skip_while(|line| !line.starts_with(&head)).find(|line| line.starts_with("VmFlags:"));
        assert!(flags.is_some_and(|flags| flags.contains(" hg")), "{flags:?} of {head}");
    }
}
