//! The block cache: blocks of the log in memory, in front of the page cache. A hit costs no system call.
//!
//! It knows no records and reads no files. `read/mod.rs` provides the bytes of a block, and verifies every record it
//! finds in one as if it came from the file. Segments are divided into blocks of one size, a power of two. Only whole
//! blocks below a segment's `written_end` are cached.
//!
//! # No hash table
//!
//! Each segment has an array of [`Slots`] (`slots`), indexed by block number. A slot names the *frame* (`clock`) that
//! holds the block. So a lookup reads three small structures besides the block: the segment, a slot, a frame. The
//! frame knows its owner, the segment and number of its block, under its lock. A slot is a guess that the frame
//! confirms. If the frame was reused for another block the slot is stale, and the block counts as missing.
//!
//! # Why a cached block is never wrong
//!
//! Bytes of a segment below its `written_end` never change. Appends go to the end, and `written_end` advances after the
//! kernel has accepted them. A failed append is cut off at or above `written_end`. A footer is written at the end.
//! Recovery cuts a torn tail before readers can see the segment, and compaction installs whole segments. A segment's id
//! is never reused in the life of a store, and a cache lives from one open to the next close. So a block of an obsolete
//! segment is useless but never mistaken for another, and the clock hand reclaims its frame.
//!
//! # Memory
//!
//! The cache reserves address space for all blocks at once, as one region of large pages ([`pages`](crate::io::pages)).
//! Memory is used only as blocks are cached: frames are created one after the other, up to the number that the configured
//! bytes allow. From then on the clock hand chooses frames to reuse. It skips, once, a frame that was read since it
//! last passed. Each frame keeps its block of the region for good, so the frame's number gives the record's address,
//! which can be prefetched before the frame is read.
//!
//! Slots take four bytes for each block of every segment that has had a block cached. They may take a fixed part of the
//! cache. Beyond that, blocks of further segments are not cached until segments with slots become obsolete.
//!
//! # Which misses fill a block
//!
//! Filling a block costs about as much as ten hits save: a read of the whole block, and new memory. Where keys
//! are overwritten as fast as they are read, records lie in blocks that are not read again. Where reads spread over a
//! log that is much larger than the cache, blocks are evicted before they are read again. So one miss in
//! [`ADMIT_ONE_IN`] always fills its block. While the cache has room, hits earn further fills: one per
//! [`HITS_PER_FILL`]. Earning compounds. A cache that the log fits into holds nine tenths of it after about sixteen
//! gets per block.
//!
//! # Locks
//!
//! Slots are set after their frames are filled, and cleared after a frame was reused, without holding the frame's lock.
//! A thread that runs between these steps sees a stale slot, or a frame that no slot names. Both are misses, until the
//! clock hand reclaims the frame.

mod clock;
mod slots;

use std::io;
use std::sync::PoisonError;

use crate::io::util::to_usize;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::prefetch::prefetch;
use crate::sync::sharded::Sharded;
use clock::Frames;
pub(crate) use clock::{BlockId, Filled};
use slots::SlotBudget;
pub(crate) use slots::Slots;

/// Bytes of a block, unless segments are small.
const MAX_BLOCK_BYTES: u64 = 16 << 10;
const MIN_BLOCK_BYTES: u64 = 256;
/// Blocks in a full segment, at least: small segments have smaller blocks.
const MIN_BLOCKS_PER_SEGMENT: u64 = 32;

/// Blocks that one cached record may span. A longer record is read from the file: its copy costs more than the system
/// call.
pub(crate) const MAX_SPAN: usize = 3;

/// Bytes of a record that are prefetched. The CPU fetches the lines after them when it sees sequential reads.
const PREFETCHED_BYTES: usize = 512;

/// Bytes of a line of the CPU cache.
const LINE_BYTES: usize = 64;

/// One miss in this many fills its block in any case.
const ADMIT_ONE_IN: u64 = 64;

/// While the cache has room, this many hits earn the fill of one block.
const HITS_PER_FILL: u64 = 8;

/// Unspent hits that are remembered.
const MAX_EARNED: u64 = 64 * HITS_PER_FILL;

/// The part of the cache's bytes that slots may take.
const SLOTS_PART: u64 = 16;

/// Where a range of a segment's bytes lies in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    first: BlockId,
    /// Where the range starts in the first block.
    start: usize,
    len: usize,
    blocks: usize,
}

impl Span {
    /// The blocks, in order.
    pub(crate) fn blocks(self) -> impl Iterator<Item = BlockId> {
        let BlockId { segment, number } = self.first;
        (0..self.blocks).map(move |index| BlockId { segment, number: number + u32::try_from(index).unwrap_or(0) })
    }
}

/// A span, and the frames that should hold its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Framed {
    span: Span,
    frames: [u32; MAX_SPAN],
}

impl Framed {
    pub(crate) fn is_in_one_block(&self) -> bool {
        self.span.blocks == 1
    }
}

/// What the threads of one shard have earned and missed.
#[derive(Debug, Default)]
struct FillCredit {
    /// Hits that have not yet paid for a fill.
    earned: AtomicU64,
    misses: AtomicU64,
}

/// The block cache of a store.
#[derive(Debug)]
pub(crate) struct BlockCache {
    block_shift: u32,
    segment_bytes: u64,
    frames: Frames,
    slot_budget: SlotBudget,
    credits: Sharded<FillCredit>,
    /// A buffer to read a block into.
    spare: Mutex<Option<Box<[u8]>>>,
}

impl BlockCache {
    /// A cache of up to `bytes` for segments of `segment_bytes`. `None` if not even one block fits. Fails if the system
    /// has too little address space.
    pub(crate) fn new(bytes: u64, segment_bytes: u64) -> io::Result<Option<Self>> {
        let block_bytes = (segment_bytes / MIN_BLOCKS_PER_SEGMENT).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
        let block_shift = block_bytes.ilog2();
        let max_slot_bytes = bytes / SLOTS_PART;
        // One block is the spare buffer.
        let for_frames = (bytes - max_slot_bytes).saturating_sub(1 << block_shift);
        let capacity = u32::try_from(for_frames / Frames::frame_bytes(block_shift)).unwrap_or(u32::MAX - 1);
        if capacity == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            block_shift,
            segment_bytes,
            frames: Frames::new(capacity, 1 << block_shift)?,
            slot_budget: SlotBudget::new(max_slot_bytes),
            credits: Sharded::default(),
            spare: Mutex::new(None),
        }))
    }

    /// Bytes of blocks, frames and slots that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        let frames = u64::from(self.frames.used());
        frames * Frames::frame_bytes(self.block_shift) + self.slot_budget.held_bytes()
    }

    // ---- lookups ---------------------------------------------------------------------------------------------------

    /// The blocks of the `len` bytes at `offset` of `segment`. `None` if those are too many, or one of them is not
    /// whole below `written_end`.
    pub(crate) fn span(&self, segment: u32, offset: u64, len: usize, written_end: u64) -> Option<Span> {
        let number = u32::try_from(offset >> self.block_shift).ok()?;
        let block_bytes = 1_usize << self.block_shift;
        let start = to_usize(offset) & (block_bytes - 1);
        let blocks = start.checked_add(len)?.div_ceil(block_bytes);
        let end = (u64::from(number) + blocks as u64) << self.block_shift;
        let is_cacheable = blocks <= MAX_SPAN && end <= written_end;
        is_cacheable.then_some(Span { first: BlockId { segment, number }, start, len, blocks })
    }

    /// The frames of all blocks of `span`, by its segment's `slots`. Prefetches the first bytes of the span, because
    /// reading the frame is a cache miss too.
    pub(crate) fn find(&self, span: Span, slots: &Slots) -> Option<Framed> {
        let mut frames = [0; MAX_SPAN];
        for (frame, block) in frames.iter_mut().zip(span.blocks()) {
            *frame = slots.frame_of(block.number)?;
        }
        self.prefetch(frames[0], span);
        Some(Framed { span, frames })
    }

    /// Prefetches the first bytes of `span`, if `frame` holds its first block.
    fn prefetch(&self, frame: u32, span: Span) {
        let begin = self.frames.address + ((frame as usize) << self.block_shift) + span.start;
        for line in (begin..begin + span.len.min(PREFETCHED_BYTES)).step_by(LINE_BYTES) {
            prefetch(std::ptr::without_provenance::<u8>(line));
        }
    }

    /// Runs `visit` on a span that lies within one block, in place. `None` if its frame no longer holds the block.
    pub(crate) fn read<T>(&self, framed: &Framed, visit: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let Span { first, start, len, .. } = framed.span;
        self.frames.read(framed.frames[0], first, |bytes| bytes.get(start..start + len).map(visit))?
    }

    /// A copy of a span of any number of blocks. `None` if one of the frames no longer holds its block.
    pub(crate) fn copy(&self, framed: &Framed) -> Option<Vec<u8>> {
        let Span { mut start, len, .. } = framed.span;
        let mut out = Vec::with_capacity(len);
        for (&frame, block) in framed.frames.iter().zip(framed.span.blocks()) {
            self.frames.read(frame, block, |bytes| {
                let end = bytes.len().min(start + len - out.len());
                out.extend_from_slice(&bytes[start..end]);
            })?;
            start = 0;
        }
        debug_assert_eq!(out.len(), len, "the blocks of a span cover it");
        Some(out)
    }

    /// Whether a frame holds `block`, by its segment's `slots`.
    pub(crate) fn holds(&self, block: BlockId, slots: &Slots) -> bool {
        slots.frame_of(block.number).is_some_and(|frame| self.frames.read(frame, block, |_| ()).is_some())
    }

    /// Drops the blocks of a span in which damage was found.
    pub(crate) fn forget(&self, framed: &Framed) {
        for (&frame, block) in framed.frames.iter().zip(framed.span.blocks()) {
            self.frames.forget(frame, block);
        }
    }

    // ---- filling --------------------------------------------------------------------------------------------------

    /// Counts a hit, which earns part of a fill.
    pub(crate) fn count_hit(&self) {
        let FillCredit { earned, .. } = self.credits.mine();
        if earned.load(Ordering::Relaxed) < MAX_EARNED {
            earned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a miss, and returns whether it should fill its block.
    pub(crate) fn admits(&self) -> bool {
        let FillCredit { earned, misses } = self.credits.mine();
        let has_room = self.frames.has_room();
        let paid = |hits: u64| hits.checked_sub(HITS_PER_FILL);
        let is_paid = || earned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid).is_ok();
        (has_room && is_paid()) || misses.fetch_add(1, Ordering::Relaxed).is_multiple_of(ADMIT_ONE_IN)
    }

    /// Creates slots for a segment that ends at `written_end`. A segment that is being written gets slots for its full
    /// size. Returns whether block `number` has a slot.
    pub(crate) fn make_slots(&self, slots: &Slots, number: u32, written_end: u64) -> bool {
        let blocks = || to_usize(self.segment_bytes.max(written_end) >> self.block_shift);
        slots.make(number, blocks, &self.slot_budget)
    }

    /// Fills a frame with `block`. Calls `read` with a buffer and the block's offset in the segment; `read` returns how
    /// many bytes it could read. `None` if it could not read the whole block, or no frame is free.
    pub(crate) fn fill(&self, block: BlockId, read: impl FnOnce(&mut [u8], u64) -> usize) -> Option<Filled> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut bytes = spare.unwrap_or_else(|| vec![0; 1 << self.block_shift].into_boxed_slice());
        let is_whole = read(&mut bytes, u64::from(block.number) << self.block_shift) == bytes.len();
        let filled = if is_whole { self.frames.insert(block, &bytes) } else { None };
        let surplus = self.spare.lock().unwrap_or_else(PoisonError::into_inner).replace(bytes);
        drop(surplus);
        filled
    }
}

#[cfg(all(test, not(feature = "__shuttle")))]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed check is a failed test")]
mod tests;
