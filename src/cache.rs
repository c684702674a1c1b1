//! A cache of the log's blocks in memory, in front of the page cache: what it has costs no system call.
//!
//! It knows no records and reads no files: `read.rs` brings the bytes of a block, and verifies whatever it finds in one as
//! if it came from the file. Segments are cut into blocks of one size, a power of two; only whole blocks below a segment's
//! `written_end` are kept.
//!
//! # No table
//!
//! A segment has an array of [`Slots`], by number of block, which name the *frame* that holds it; so a look-up is the
//! segment, a slot, a frame: three small structures beside the block itself, and no hash. A frame knows its owner, the
//! segment and the number of its block, under its lock. A slot is a guess that the frame confirms: it may be stale, for
//! the frame has been given to another block since, and then the block counts as missing.
//!
//! # Why nothing in it is ever wrong
//!
//! Bytes of a segment below its `written_end` never change. Appends go to the end and `written_end` moves after the kernel
//! has taken them; a failed append is cut off at or beyond it; a footer is written at the end; recovery cuts a torn tail
//! before the segment is there for readers; compaction puts whole segments there. And a segment's id is given to no other
//! segment, ever, in a store's whole life, while a cache lives from an open to a close. So a block of a segment that was
//! retired is of no use to anybody, and never mistaken: the hand comes by and takes its frame.
//!
//! # Room
//!
//! Address space for all blocks is taken at once, one piece in large pages ([`pages`](crate::io::pages)), and memory as blocks
//! come: frames are made one after the other, up to a number that follows from the bytes that were asked for. Then the hand
//! of a clock goes round: a frame that was read since it last came by is passed over, once. Each frame has its block of the
//! piece for good. So where a record lies follows from its frame's number, and can be asked for before the frame is looked at.
//!
//! # Who brings a block
//!
//! Bringing one costs as much as some ten gets gain from it: a read of the whole block, and new memory. Where keys are
//! overwritten as fast as they are read, records lie in blocks that nobody will read again, and where reads go all over a
//! log that is much larger than the cache, blocks are gone before they are. So one miss in [`ADMIT_ONE_IN`] brings its block
//! in any case, and while there is room, more do as the cache earns them: each hit pays a part of one,
//! [`HITS_A_BLOCK`]. Earning compounds: with a log that fits, the cache has nine tenths of it after about sixteen gets
//! for each block.
//!
//! # Slots
//!
//! Slots take four bytes for each block of a segment from which one has come. They may take a part of the cache; beyond
//! that, the blocks of further segments are not kept until segments that have slots are retired.
//!
//! # Locks
//!
//! One for each frame, for which nobody waits: if it is being filled a reader goes the ordinary way, and if it is being read
//! the hand goes on to the next. Held to look at the block and to copy another into its memory, never while a file is read. Slots
//! are set after their frames are filled, and cleared after a frame was given to another block, under no lock of a frame's.
//! Whatever comes between these steps leaves a slot that is stale, or a frame that no slot names: a miss, until the hand
//! comes by.

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};

use crate::io::pages::{Block, Region};
use crate::io::util::to_usize;
use crate::prefetch::prefetch;
use crate::striped::Striped;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};

/// Bytes of a block where segments are not small.
const MAX_BLOCK_BYTES: u64 = 16 << 10;
const MIN_BLOCK_BYTES: u64 = 256;
/// Blocks in a segment that is full, at the least: in small segments blocks are small too.
const MIN_BLOCKS_A_SEGMENT: u64 = 32;

/// Blocks that one record may lie in. A longer one is not looked for: it costs more than a system call anyway.
pub(crate) const MAX_SPAN: usize = 3;

/// Bytes of a record that are asked for ahead.
const PREFETCHED_BYTES: usize = 512;

/// Bytes of a line of the processor's cache.
const LINE_BYTES: usize = 64;

/// Frames that are made at a time, empty.
const CHUNK_FRAMES: usize = 64;

/// Of all misses, one in so many brings its block.
const ADMIT_ONE_IN: u64 = 64;

/// While there is room, so many hits bring a block besides.
const HITS_A_BLOCK: u64 = 8;

/// Hits that are remembered until there are misses.
const MAX_EARNED: u64 = 64 * HITS_A_BLOCK;

/// Frames that are looked at for one block. Where all of them were read lately, the block is not brought; the hand has moved
/// on, and the next one may be.
const SWEEP_FRAMES_MAX: u64 = 128;

/// What part of its bytes the cache gives to slots at the most.
const SLOTS_PART: u64 = 16;

/// A block of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockId {
    pub(crate) segment: u32,
    pub(crate) number: u32,
}

/// No block: segments are not so large.
const NOBODY: BlockId = BlockId { segment: 0, number: u32::MAX };

/// The frames of one segment's blocks, by number. Empty until its first block comes.
#[derive(Debug, Default)]
pub(crate) struct Slots(OnceLock<SlotArray>);

#[derive(Debug)]
struct SlotArray {
    /// Numbers of frames plus one, 0 for none.
    frames: Box<[AtomicU32]>,
    /// What all arrays of the cache take, this one included.
    held_bytes: Arc<AtomicU64>,
}

impl SlotArray {
    /// One for so many blocks, or for none if all arrays together would take more than `max_bytes`.
    fn new(blocks: usize, held_bytes: &Arc<AtomicU64>, max_bytes: u64) -> Self {
        let bytes = (blocks * size_of::<AtomicU32>()) as u64;
        let before = held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut array = Self { frames: Box::default(), held_bytes: Arc::clone(held_bytes) };
        if before + bytes <= max_bytes {
            array.frames = (0..blocks).map(|_| AtomicU32::new(0)).collect();
        } else {
            held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        array
    }
}

impl Drop for SlotArray {
    fn drop(&mut self) {
        self.held_bytes.fetch_sub(size_of_val(&*self.frames) as u64, Ordering::Relaxed);
    }
}

impl Slots {
    fn slot(&self, number: u32) -> Option<&AtomicU32> {
        self.0.get()?.frames.get(number as usize)
    }

    fn frame_of(&self, number: u32) -> Option<u32> {
        self.slot(number)?.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Block `number` lies in `frame`.
    pub(crate) fn set(&self, number: u32, frame: u32) {
        if let Some(slot) = self.slot(number) {
            slot.store(frame + 1, Ordering::Relaxed);
        }
    }

    /// Block `number` does not lie in `frame` any more. It may lie in another by now.
    pub(crate) fn clear(&self, number: u32, frame: u32) {
        if let Some(slot) = self.slot(number) {
            let _ = slot.compare_exchange(frame + 1, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Where a stretch of a segment lies in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    first: BlockId,
    /// Where it starts in the first one.
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

/// A stretch, and the frames that should hold its blocks.
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

/// A block and the memory it is in.
#[derive(Debug)]
struct Held {
    owner: BlockId,
    bytes: Block,
}

#[derive(Debug)]
struct Frame {
    held: RwLock<Held>,
    /// Read since the hand came by. Readers share the word: they write it once a round.
    is_referenced: AtomicBool,
}

impl Frame {
    fn new(bytes: Block) -> Self {
        Self { held: RwLock::new(Held { owner: NOBODY, bytes }), is_referenced: AtomicBool::new(false) }
    }
}

/// A block that was put into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) frame: u32,
    /// Which block was there before.
    pub(crate) evicted: Option<BlockId>,
}

/// What threads have to bring blocks for.
#[derive(Debug, Default)]
struct Account {
    /// Hits that have paid for nothing yet.
    earned: AtomicU64,
    misses: AtomicU64,
}

/// The frames of a store.
#[derive(Debug)]
pub(crate) struct BlockCache {
    block_shift: u32,
    segment_bytes: u64,
    chunks: Box<[OnceLock<Box<[Frame]>>]>,
    capacity: u32,
    /// Frames that have been given to a block.
    used: AtomicU32,
    hand: AtomicU32,
    max_slot_bytes: u64,
    slot_bytes: Arc<AtomicU64>,
    accounts: Striped<Account>,
    /// Memory for a block to be read into.
    spare: Mutex<Option<Box<[u8]>>>,
    /// Blocks of memory for frames to be made.
    region: Mutex<Region>,
    /// Where the memory of the first frame begins; the others follow in their order.
    address: usize,
}

impl BlockCache {
    /// A cache of up to `bytes` for segments of `segment_bytes`. `None` where that is not one block; an error if there is not
    /// so much address space.
    pub(crate) fn new(bytes: u64, segment_bytes: u64) -> io::Result<Option<Self>> {
        let block_bytes = (segment_bytes / MIN_BLOCKS_A_SEGMENT).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
        let block_shift = block_bytes.ilog2();
        let max_slot_bytes = bytes / SLOTS_PART;
        // The spare one aside.
        let for_frames = (bytes - max_slot_bytes).saturating_sub(1 << block_shift);
        let capacity = u32::try_from(for_frames / frame_bytes(block_shift)).unwrap_or(u32::MAX - 1);
        if capacity == 0 {
            return Ok(None);
        }
        let region = Region::new(capacity as usize, 1 << block_shift)?;
        Ok(Some(Self {
            block_shift,
            segment_bytes,
            chunks: (0..(capacity as usize).div_ceil(CHUNK_FRAMES)).map(|_| OnceLock::new()).collect(),
            capacity,
            used: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            max_slot_bytes,
            slot_bytes: Arc::default(),
            accounts: Striped::default(),
            spare: Mutex::new(None),
            address: region.address(),
            region: Mutex::new(region),
        }))
    }

    /// Bytes of blocks, frames and slots that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        let frames = u64::from(self.used.load(Ordering::Relaxed).min(self.capacity));
        frames * frame_bytes(self.block_shift) + self.slot_bytes.load(Ordering::Relaxed)
    }

    // ---- looking --------------------------------------------------------------------------------------------------

    /// Where the `len` bytes at `offset` of `segment` lie. `None` where those are too many blocks, or one of them is not
    /// whole below `written_end`.
    pub(crate) fn span(&self, segment: u32, offset: u64, len: usize, written_end: u64) -> Option<Span> {
        let number = u32::try_from(offset >> self.block_shift).ok()?;
        let block_bytes = 1_usize << self.block_shift;
        let start = to_usize(offset) & (block_bytes - 1);
        let blocks = start.checked_add(len)?.div_ceil(block_bytes);
        let end = (u64::from(number) + blocks as u64) << self.block_shift;
        let is_kept = blocks <= MAX_SPAN && end <= written_end;
        is_kept.then_some(Span { first: BlockId { segment, number }, start, len, blocks })
    }

    /// The frames of all blocks of `span`, by its segment's `slots`.
    pub(crate) fn find(&self, span: Span, slots: &Slots) -> Option<Framed> {
        let mut frames = [0; MAX_SPAN];
        for (frame, block) in frames.iter_mut().zip(span.blocks()) {
            *frame = slots.frame_of(block.number)?;
        }
        self.prefetch(frames[0], span);
        Some(Framed { span, frames })
    }

    /// Asks for the first lines of a stretch, if `frame` has its block: before the frame is asked, as that is a miss too.
    fn prefetch(&self, frame: u32, span: Span) {
        let begin = self.address + ((frame as usize) << self.block_shift) + span.start;
        // The lines behind them the processor asks for by itself when it sees them read in order.
        for line in (begin..begin + span.len.min(PREFETCHED_BYTES)).step_by(LINE_BYTES) {
            prefetch(std::ptr::without_provenance::<u8>(line));
        }
    }

    /// What `look` makes of a stretch that lies within one block, in place. `None` if its frame has another block by now.
    pub(crate) fn read<T>(&self, framed: &Framed, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let Span { first, start, len, .. } = framed.span;
        self.look(framed.frames[0], first, |bytes| bytes.get(start..start + len).map(look))?
    }

    /// A stretch of any number of blocks, in one piece. `None` if one of the frames has another block by now.
    pub(crate) fn copy(&self, framed: &Framed) -> Option<Vec<u8>> {
        let Span { mut start, len, .. } = framed.span;
        let mut out = Vec::with_capacity(len);
        for (&frame, block) in framed.frames.iter().zip(framed.span.blocks()) {
            self.look(frame, block, |bytes| {
                let end = bytes.len().min(start + len - out.len());
                out.extend_from_slice(&bytes[start..end]);
            })?;
            start = 0;
        }
        debug_assert_eq!(out.len(), len, "the blocks of a span cover it");
        Some(out)
    }

    /// What `look` makes of `block`, if `frame` has it and nobody is filling it.
    fn look<T>(&self, frame: u32, block: BlockId, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let frame = self.frame(frame)?;
        let held = match frame.held.try_read() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if held.owner != block {
            return None;
        }
        if !frame.is_referenced.load(Ordering::Relaxed) {
            frame.is_referenced.store(true, Ordering::Relaxed);
        }
        Some(look(&held.bytes))
    }

    fn frame(&self, number: u32) -> Option<&Frame> {
        let number = number as usize;
        self.chunks.get(number / CHUNK_FRAMES)?.get()?.get(number % CHUNK_FRAMES)
    }

    /// Forgets the blocks of a stretch in which damage was found.
    pub(crate) fn forget(&self, framed: &Framed) {
        for (&number, block) in framed.frames.iter().zip(framed.span.blocks()) {
            let Some(frame) = self.frame(number) else { continue };
            if let Ok(mut held) = frame.held.try_write()
                && held.owner == block
            {
                held.owner = NOBODY;
                frame.is_referenced.store(false, Ordering::Relaxed);
            }
        }
    }

    // ---- filling --------------------------------------------------------------------------------------------------

    /// Whoever has found what it looked for says so.
    pub(crate) fn count_hit(&self) {
        let Account { earned, .. } = self.accounts.mine();
        if earned.load(Ordering::Relaxed) < MAX_EARNED {
            earned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether whoever has missed a block shall bring it.
    pub(crate) fn admits(&self) -> bool {
        let Account { earned, misses } = self.accounts.mine();
        let has_room = self.used.load(Ordering::Relaxed) < self.capacity;
        let paid = |hits: u64| hits.checked_sub(HITS_A_BLOCK);
        let is_paid = || earned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid).is_ok();
        (has_room && is_paid()) || misses.fetch_add(1, Ordering::Relaxed).is_multiple_of(ADMIT_ONE_IN)
    }

    /// Brings `block` by means of `read`, which is given the block's memory and its offset in the segment and tells how much
    /// it could read. `None` if that was not all, or no frame is to be had.
    pub(crate) fn fill(&self, block: BlockId, read: impl FnOnce(&mut [u8], u64) -> usize) -> Option<Filled> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut bytes = spare.unwrap_or_else(|| vec![0; 1 << self.block_shift].into_boxed_slice());
        let is_whole = read(&mut bytes, u64::from(block.number) << self.block_shift) == bytes.len();
        let filled = if is_whole { self.insert(block, &bytes) } else { None };
        let surplus = self.spare.lock().unwrap_or_else(PoisonError::into_inner).replace(bytes);
        drop(surplus);
        filled
    }

    /// Makes slots for a segment that ends at `written_end`, and if it is being written may become as long as others are.
    /// Whether block `number` has one.
    pub(crate) fn make_slots(&self, slots: &Slots, number: u32, written_end: u64) -> bool {
        if slots.0.get().is_none() {
            let blocks = to_usize(self.segment_bytes.max(written_end) >> self.block_shift);
            // Somebody else may have been quicker.
            let _ = slots.0.set(SlotArray::new(blocks, &self.slot_bytes, self.max_slot_bytes));
        }
        slots.slot(number).is_some()
    }

    /// Whether `block` has a frame, by its segment's `slots`.
    pub(crate) fn holds(&self, block: BlockId, slots: &Slots) -> bool {
        slots.frame_of(block.number).is_some_and(|frame| self.look(frame, block, |_| ()).is_some())
    }

    /// Puts a block into a frame, if it can have one, and tells what had been there.
    fn insert(&self, block: BlockId, bytes: &[u8]) -> Option<Filled> {
        // Twice round, for the first time it may only clear what was referenced; but not far, as a get waits for it.
        for _ in 0..SWEEP_FRAMES_MAX.min(2 * u64::from(self.capacity)) {
            let Some((number, frame)) = self.next_frame() else { continue };
            let Ok(mut held) = frame.held.try_write() else { continue };
            let old = std::mem::replace(&mut held.owner, block);
            held.bytes.copy_from_slice(bytes);
            drop(held);
            frame.is_referenced.store(true, Ordering::Relaxed);
            let evicted = (old != NOBODY).then_some(old);
            return Some(Filled { frame: number, evicted });
        }
        None
    }

    /// A frame for another block: a new one, or the one under the hand if it was not read since the hand came by.
    fn next_frame(&self) -> Option<(u32, &Frame)> {
        if self.used.load(Ordering::Relaxed) < self.capacity {
            let number = self.used.fetch_add(1, Ordering::Relaxed);
            if number < self.capacity {
                return self.make_frame(number).map(|frame| (number, frame));
            }
            self.used.store(self.capacity, Ordering::Relaxed);
        }
        let number = self.hand.fetch_add(1, Ordering::Relaxed) % self.capacity;
        let frame = self.frame(number)?;
        if frame.is_referenced.load(Ordering::Relaxed) {
            frame.is_referenced.store(false, Ordering::Relaxed);
            return None;
        }
        Some((number, frame))
    }

    fn make_frame(&self, number: u32) -> Option<&Frame> {
        if self.frame(number).is_none() {
            let mut region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
            // In their order, so that frame and memory have the same number, whoever comes first.
            for chunk in self.chunks.iter().take(number as usize / CHUNK_FRAMES + 1) {
                if chunk.get().is_none() {
                    let _ = chunk.set(region.by_ref().take(CHUNK_FRAMES).map(Frame::new).collect());
                }
            }
        }
        self.frame(number)
    }
}

/// What a block costs: its bytes, its frame, and its share of the list of chunks.
fn frame_bytes(block_shift: u32) -> u64 {
    (1 << block_shift) + size_of::<Frame>() as u64 + 1
}

#[cfg(all(test, not(feature = "shuttle")))]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;

    const BLOCK: usize = 256;
    /// Blocks of 256 bytes.
    const SEGMENT_BYTES: u64 = 8 << 10;

    /// What byte `offset` of a segment is: different in every segment and block.
    fn byte(segment: u32, offset: u64) -> u8 {
        let word = (u64::from(segment) << 40 | offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word >> 56) as u8
    }

    fn expected(segment: u32, offset: u64, len: usize) -> Vec<u8> {
        (offset..offset + len as u64).map(|offset| byte(segment, offset)).collect()
    }

    fn new(bytes: u64, segment_bytes: u64) -> Option<BlockCache> {
        BlockCache::new(bytes, segment_bytes).expect("address space")
    }

    fn cache_of(frames: u64) -> BlockCache {
        let frames_bytes = frames * frame_bytes(8) + BLOCK as u64;
        // What is left when slots have had their part.
        let bytes = (frames_bytes * SLOTS_PART).div_ceil(SLOTS_PART - 1);
        let cache = new(bytes, SEGMENT_BYTES).expect("room for a block");
        assert_eq!((u64::from(cache.capacity), cache.block_shift), (frames, 8));
        BlockCache { max_slot_bytes: 1 << 20, ..cache }
    }

    fn block(segment: u32, number: u32) -> BlockId {
        BlockId { segment, number }
    }

    /// Brings a block as the read path does; the slots are those of all segments, by id.
    fn bring(cache: &BlockCache, slots: &[Slots], block: BlockId) -> Option<Filled> {
        assert!(cache.make_slots(&slots[block.segment as usize], block.number, SEGMENT_BYTES));
        let filled = cache.fill(block, |bytes, offset| {
            bytes.copy_from_slice(&expected(block.segment, offset, bytes.len()));
            bytes.len()
        })?;
        if let Some(evicted) = filled.evicted {
            slots[evicted.segment as usize].clear(evicted.number, filled.frame);
        }
        slots[block.segment as usize].set(block.number, filled.frame);
        Some(filled)
    }

    /// The stretch as the cache has it, if it has.
    fn read(cache: &BlockCache, slots: &[Slots], segment: u32, offset: u64, len: usize) -> Option<Vec<u8>> {
        let span = cache.span(segment, offset, len, SEGMENT_BYTES)?;
        let framed = cache.find(span, &slots[segment as usize])?;
        match framed.is_in_one_block() {
            true => cache.read(&framed, <[u8]>::to_vec),
            false => cache.copy(&framed),
        }
    }

    fn slots(segments: usize) -> Vec<Slots> {
        (0..segments).map(|_| Slots::default()).collect()
    }

    #[test]
    fn nobody_sweeps_a_whole_cache_for_one_block() {
        let frames = 1000_u32;
        let (cache, slots) = (cache_of(u64::from(frames)), (0..60).map(|_| Slots::default()).collect::<Vec<_>>());
        let all = || (0..).flat_map(|segment| (0..20).map(move |number| block(segment, number)));
        for block in all().take(frames as usize) {
            bring(&cache, &slots, block).unwrap();
        }
        // All were referenced when they came. So the hand goes round once, a sweep at a time, before a frame is free.
        let hand = || u64::from(cache.hand.load(Ordering::Relaxed));
        let mut refused = 0;
        for block in all().skip(frames as usize).take(20) {
            let before = hand();
            refused += u64::from(bring(&cache, &slots, block).is_none());
            assert!(hand() - before <= SWEEP_FRAMES_MAX);
        }
        assert_eq!(refused, u64::from(frames) / SWEEP_FRAMES_MAX);
    }

    #[test]
    fn a_stretch_over_one_two_and_three_blocks_is_read_when_all_of_them_are_there() {
        let (cache, slots) = (cache_of(8), slots(2));
        for (offset, len) in [(0, 1), (10, 200), (0, BLOCK), (255, 1), (200, 100), (255, 2), (200, 400), (0, 3 * BLOCK)]
        {
            assert_eq!(read(&cache, &slots, 1, offset, len), None, "{offset}+{len} before any block came");
        }
        for number in 0..3 {
            bring(&cache, &slots, block(1, number)).unwrap();
            for (offset, len) in [(0, 1), (10, 200), (0, BLOCK), (255, 1), (200, 100), (255, 2), (200, 400), (0, 768)] {
                let last = (offset + len as u64 - 1) / BLOCK as u64;
                let there = (last <= u64::from(number)).then(|| expected(1, offset, len));
                assert_eq!(read(&cache, &slots, 1, offset, len), there, "{offset}+{len}, blocks up to {number}");
            }
        }
    }

    #[test]
    fn what_is_too_long_or_not_whole_below_the_written_end_is_not_looked_for() {
        let cache = cache_of(8);
        let is_kept = |offset, len, written_end| cache.span(1, offset, len, written_end).is_some();
        assert!(is_kept(0, 3 * BLOCK, 768) && !is_kept(0, 3 * BLOCK + 1, 4096) && !is_kept(1, 3 * BLOCK, 4096));
        assert!(is_kept(0, 10, 256) && !is_kept(0, 10, 255), "the block is whole, or is not");
        assert!(is_kept(250, 10, 512) && !is_kept(250, 10, 511));
        assert!(!is_kept(8, usize::MAX, u64::MAX) && !is_kept(u64::MAX - 300, 10, u64::MAX));
    }

    #[test]
    fn a_frame_that_went_to_another_block_is_nobodys_elses() {
        let (cache, slots) = (cache_of(1), slots(3));
        let first = bring(&cache, &slots, block(1, 0)).unwrap();
        assert_eq!(first, Filled { frame: 0, evicted: None });
        let stale = cache.find(cache.span(1, 0, 10, SEGMENT_BYTES).unwrap(), &slots[1]).unwrap();
        // Number and segment both count.
        for other in [block(2, 0), block(2, 1), block(1, 1)] {
            bring(&cache, &slots, other).unwrap();
            assert_eq!(cache.read(&stale, <[u8]>::to_vec), None, "{other:?} is there");
            assert_eq!(cache.copy(&stale), None, "{other:?} is there");
            slots[1].set(0, 0);
            assert!(!cache.holds(block(1, 0), &slots[1]) && cache.holds(other, &slots[other.segment as usize]));
            let offset = u64::from(other.number) * BLOCK as u64;
            assert_eq!(read(&cache, &slots, other.segment, offset, 10), Some(expected(other.segment, offset, 10)));
        }
        bring(&cache, &slots, block(1, 0)).unwrap();
        assert_eq!(cache.read(&stale, <[u8]>::to_vec), Some(expected(1, 0, 10)), "it came back");
    }

    #[test]
    fn the_hand_passes_over_what_was_read_and_takes_what_was_not() {
        let (cache, slots) = (cache_of(4), slots(2));
        for number in 0..4 {
            bring(&cache, &slots, block(1, number)).unwrap();
        }
        // All are fresh: the hand clears them in its first round and takes the first.
        assert_eq!(bring(&cache, &slots, block(1, 4)).unwrap().evicted, Some(block(1, 0)));
        assert!(read(&cache, &slots, 1, 256, 10).is_some(), "block 1 is read");
        assert_eq!(bring(&cache, &slots, block(1, 5)).unwrap().evicted, Some(block(1, 2)));
        assert!(read(&cache, &slots, 1, 256, 10).is_some());
        assert_eq!(bring(&cache, &slots, block(1, 6)).unwrap().evicted, Some(block(1, 3)));
        assert!(read(&cache, &slots, 1, 256, 10).is_some(), "and stays");
    }

    #[test]
    fn memory_stays_below_the_bound_and_comes_with_the_blocks() {
        let cache = new(1 << 20, 1 << 20).unwrap();
        let all: Vec<Slots> = slots(300);
        assert_eq!((cache.block_shift, cache.held_bytes()), (14, 0));
        for segment in 0..300 {
            for number in 0..4 {
                if cache.make_slots(&all[segment as usize], number, 1 << 20) {
                    let block = block(segment, number);
                    let filled = cache.fill(block, |bytes, _| bytes.len()).unwrap();
                    all[segment as usize].set(number, filled.frame);
                }
                assert!(cache.held_bytes() + (1 << 14) <= 1 << 20, "{} bytes", cache.held_bytes());
            }
            let blocks = u64::from(segment + 1) * 4;
            assert!(cache.held_bytes() <= blocks * frame_bytes(14) + u64::from(segment + 1) * 256);
        }
        assert_eq!(cache.slot_bytes.load(Ordering::Relaxed), (1 << 20) / SLOTS_PART, "slots of 256 segments, no more");
        drop(all);
        assert_eq!(cache.slot_bytes.load(Ordering::Relaxed), 0, "their segments are gone");
    }

    #[test]
    fn less_than_a_block_is_no_cache() {
        let is_one = |bytes| new(bytes, 256 << 20).is_some();
        assert!(!is_one(0) && !is_one(16 << 10) && is_one(1 << 20));
    }

    #[test]
    fn a_block_that_cannot_be_read_as_a_whole_takes_no_frame() {
        let (cache, slots) = (cache_of(4), slots(2));
        assert!(cache.make_slots(&slots[1], 0, SEGMENT_BYTES));
        assert_eq!(cache.fill(block(1, 0), |_, _| 100), None);
        assert_eq!(cache.held_bytes(), cache.slot_bytes.load(Ordering::Relaxed), "its memory is spare");
        bring(&cache, &slots, block(1, 0)).unwrap();
    }

    #[test]
    fn hits_pay_for_blocks_while_there_is_room_and_some_come_anyway() {
        let (cache, slots) = (cache_of(4), slots(2));
        let admitted = |misses| (0..misses).filter(|_| cache.admits()).count();
        assert!(cache.admits(), "the first");
        assert_eq!(admitted(640), 10);
        (0..80).for_each(|_| cache.count_hit());
        assert_eq!(admitted(10), 10);
        assert_eq!(admitted(640), 10);
        (0..1_000_000).for_each(|_| cache.count_hit());
        assert_eq!(admitted(64 + 640), 64 + 10, "what is earned is not hoarded");
        for number in 0..4 {
            bring(&cache, &slots, block(1, number)).unwrap();
        }
        (0..80).for_each(|_| cache.count_hit());
        assert_eq!(admitted(640), 10, "it is full");
    }

    #[test]
    fn a_damaged_block_is_forgotten() {
        let (cache, slots) = (cache_of(4), slots(2));
        bring(&cache, &slots, block(1, 0)).unwrap();
        let framed = cache.find(cache.span(1, 0, 10, SEGMENT_BYTES).unwrap(), &slots[1]).unwrap();
        cache.forget(&framed);
        assert_eq!(read(&cache, &slots, 1, 0, 10), None);
        bring(&cache, &slots, block(1, 0)).unwrap();
        assert_eq!(read(&cache, &slots, 1, 0, 10), Some(expected(1, 0, 10)));
    }

    #[test]
    fn readers_beside_fills_and_evictions_never_see_another_blocks_bytes() {
        let (cache, slots) = (cache_of(5), slots(4));
        let hits = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (cache, slots, hits) = (&cache, &slots, &hits);
                scope.spawn(move || {
                    let mut word = thread + 1;
                    for _ in 0..20_000 {
                        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let (segment, number) = ((word >> 40) as u32 % 4, (word >> 50) as u32 % 4);
                        let (offset, len) =
                            (u64::from(number) * 256 + (word >> 33) % 200, 1 + (word >> 20) as usize % 400);
                        match read(cache, slots, segment, offset, len) {
                            Some(found) => {
                                assert_eq!(found, expected(segment, offset, len), "{segment} at {offset}");
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                            None => drop(bring(cache, slots, block(segment, number))),
                        }
                    }
                });
            }
        });
        assert!(hits.load(Ordering::Relaxed) > 1000, "{hits:?}");
        assert!(cache.held_bytes() <= 5 * frame_bytes(8) + 4 * 32 * 4);
    }

    #[test]
    fn whoever_makes_a_frame_its_memory_has_its_number() {
        let frames = 1000_u32;
        let (cache, slots) = (cache_of(u64::from(frames)), slots(40));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (cache, slots) = (&cache, &slots);
                scope.spawn(move || {
                    (0..10).for_each(|segment| {
                        (0..25).for_each(|number| _ = bring(cache, slots, block(thread * 10 + segment, number)));
                    });
                });
            }
        });
        assert_eq!(cache.used.load(Ordering::Relaxed), frames);
        for number in 0..frames {
            let held = cache.frame(number).unwrap().held.read().unwrap();
            assert_eq!(held.bytes.as_ptr().addr(), cache.address + number as usize * BLOCK, "frame {number}");
        }
    }
}
