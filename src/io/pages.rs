//! Memory in large pages, for the block cache and the keydir's entries.
//!
//! Random reads in hundreds of megabytes miss not only the CPU caches but also the TLB, which covers only some
//! megabytes of small pages; each such miss adds a page-table walk. Large pages fit in the TLB, and fresh memory costs
//! one page fault per 2 MiB instead of 512. If the kernel provides no large pages, only speed suffers. See the kernel's
//! `Documentation/admin-guide/mm/transhuge.rst`.

// This file maps memory outside the allocator, hands out parts of it, and unmaps it.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const LARGE_PAGE_BYTES: usize = 2 << 20;

/// The length of every mapping is a multiple of this. It is a multiple of every Linux page size.
const GRANULE_BYTES: usize = 64 << 10;

/// Fresh anonymous memory: reads as zeros, and takes physical memory where it is written.
#[derive(Debug)]
struct Mapping {
    /// Never changed. An `AtomicPtr`, because a raw pointer would make the type `!Send` and `!Sync`, although each part
    /// of the memory has exactly one owner.
    base: AtomicPtr<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, a multiple of [`GRANULE_BYTES`]. A mapping of at least one large page begins at a large page.
    fn new(len: usize) -> io::Result<Self> {
        let slack = if len < LARGE_PAGE_BYTES { 0 } else { LARGE_PAGE_BYTES };
        let mapped = len.checked_add(slack).filter(|mapped| isize::try_from(*mapped).is_ok());
        let mapped = mapped.ok_or(io::ErrorKind::OutOfMemory)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: no address is requested, so the kernel places the mapping where nothing else is mapped.
        // Shown by `blocks_do_not_overlap_and_outlive_their_region`.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), mapped, protection, flags) }?.cast::<u8>();
        let before = if slack == 0 { 0 } else { start.addr().next_multiple_of(LARGE_PAGE_BYTES) - start.addr() };
        let base = start.wrapping_add(before);
        // SAFETY: unmaps only the parts before and after the kept range of the new mapping, to which no reference
        // exists yet. The advice changes no byte.
        // Shown by `blocks_do_not_overlap_and_outlive_their_region`.
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
        // SAFETY: `new` mapped this range, and it is unmapped once. A block in it keeps the mapping alive.
        // Shown by `blocks_do_not_overlap_and_outlive_their_region`.
        let _ = unsafe { munmap(self.base().cast(), self.len) };
    }
}

/// Memory for blocks of one size. The iterator yields each block once, in address order.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    block_bytes: usize,
    /// Offset of the next block.
    next_offset: usize,
    /// End offset of the last block.
    end_offset: usize,
}

impl Region {
    /// Reserves address space for `block_count` blocks (at least one) of `block_bytes` each. Takes no physical memory.
    pub(crate) fn new(block_count: usize, block_bytes: usize) -> io::Result<Self> {
        let end = block_count.checked_mul(block_bytes);
        let len = end.and_then(|end| end.checked_next_multiple_of(GRANULE_BYTES));
        let (Some(end), Some(len)) = (end, len) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        Ok(Self { mapping: Arc::new(Mapping::new(len)?), block_bytes, next_offset: 0, end_offset: end })
    }

    /// The address of the first block, for arithmetic only; not for access.
    pub(crate) fn address(&self) -> usize {
        self.mapping.base().addr()
    }
}

impl Iterator for Region {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        let begin = self.next_offset;
        let end = begin.checked_add(self.block_bytes).filter(|end| *end <= self.end_offset)?;
        self.next_offset = end;
        let base = self.mapping.base().wrapping_add(begin);
        Some(Block { base: base.into(), len: self.block_bytes, _mapping: Arc::clone(&self.mapping) })
    }
}

/// One block of a region, with exclusive access to its memory.
#[derive(Debug)]
pub(crate) struct Block {
    /// Never changed, as in [`Mapping`].
    base: AtomicPtr<u8>,
    len: usize,
    /// Keeps the memory mapped.
    _mapping: Arc<Mapping>,
}

// The keydir of the schedule explorer has no chunks.
#[cfg(not(feature = "__shuttle"))]
impl Block {
    /// Returns the block's physical memory to the system and keeps its address, if the block is aligned to pages of
    /// every size. Afterwards the block reads as zeros or as before.
    pub(crate) fn clear(&mut self) {
        let (base, len) = (*self.base.get_mut(), self.len);
        if !base.addr().is_multiple_of(GRANULE_BYTES) || !len.is_multiple_of(GRANULE_BYTES) {
            return;
        }
        // SAFETY: the range consists of whole pages of the mapping, which the block keeps alive. They are private,
        // anonymous, and exclusive to this block. Only bytes that this mutable borrow may write change, to zeros or not
        // at all.
        // Shown by `clearing_a_block_keeps_its_neighbours`.
        let _ = unsafe { madvise(base.cast(), len, Advice::LinuxDontNeed) };
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie in the mapping, which the block keeps alive, and were initialised to zero. The region
        // gave them to this block only, so every write to them holds a mutable borrow of the block.
        // Shown by `blocks_do_not_overlap_and_outlive_their_region`.
        unsafe { std::slice::from_raw_parts(self.base.load(Ordering::Relaxed), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and this is the only borrow of the block.
        // Shown by `blocks_do_not_overlap_and_outlive_their_region`.
        unsafe { std::slice::from_raw_parts_mut(*self.base.get_mut(), self.len) }
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
    fn blocks_do_not_overlap_and_outlive_their_region() {
        // Less than a large page, exactly one, and several that do not end at a large page.
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
    fn clearing_a_block_keeps_its_neighbours() {
        let mut blocks: Vec<Block> = Region::new(64, 64 << 10).unwrap().collect();
        blocks.iter_mut().for_each(|block| block.fill(7));
        let [before, cleared, after, ..] = &mut blocks[..] else { panic!("64 blocks") };
        cleared.clear();
        assert!(before.iter().chain(after.iter()).all(|byte| *byte == 7));
        assert!(cleared.iter().all(|byte| *byte == 0), "the pages are fresh");
        cleared.fill(8);
        assert!(cleared.iter().all(|byte| *byte == 8) && before.iter().chain(after.iter()).all(|byte| *byte == 7));
        // Less than a page.
        let mut short: Vec<Block> = Region::new(8, 1000).unwrap().collect();
        short.iter_mut().for_each(|block| block.fill(7));
        short[0].clear();
        assert!(short[1..].iter().flat_map(|block| block.iter()).all(|byte| *byte == 7));
    }

    #[test]
    fn mapping_too_much_memory_is_an_error() {
        for (blocks, block_bytes) in [(usize::MAX, 2), (usize::MAX / 2, 1), (1 << 50, 16)] {
            let refused = Region::new(blocks, block_bytes).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory, "{refused}");
        }
    }

    #[test]
    fn regions_request_large_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            println!("SKIPPED: this kernel has no transparent large pages");
            return;
        }
        let region = Region::new(256, 16 << 10).unwrap();
        let head = format!("{:x}-", region.address());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps.lines().skip_while(|line| !line.starts_with(&head)).find(|line| line.starts_with("VmFlags:"));
        assert!(flags.is_some_and(|flags| flags.contains(" hg")), "{flags:?} of {head}");
    }
}
