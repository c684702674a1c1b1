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
//! # Hints
//!
//! A table of guesses ([`hints`]), by the hash of a key, says where in the cache its record was when it was last read. By them
//! the record's lines are asked for while the keydir's entry is on its way, which says where the record is. They are a part of
//! the cache's bytes.
//!
//! # Locks
//!
//! One for each frame, for which nobody waits: if it is being filled a reader goes the ordinary way, and if it is being read
//! the hand goes on to the next. Held to look at the block and to copy another into its memory, never while a file is read. Slots
//! are set after their frames are filled, and cleared after a frame was given to another block, under no lock of a frame's.
//! Whatever comes between these steps leaves a slot that is stale, or a frame that no slot names: a miss, until the hand
//! comes by.

mod locator;

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};

use crate::io::pages::{Block, Region};
use crate::io::util::to_usize;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::prefetch::prefetch;
use crate::sync::sharded::Sharded;
use crate::sync::{Mutex, RwLock};
use locator::Hints;

/// Bytes of a block where segments are not small.
const MAX_BLOCK_BYTES: u64 = 16 << 10;
const MIN_BLOCK_BYTES: u64 = 256;
/// Blocks in a segment that is full, at the least: in small segments blocks are small too.
const MIN_BLOCKS_A_SEGMENT: u64 = 32;

/// Blocks that one record may lie in. A longer one is not looked for: it costs more than a system call anyway.
pub(crate) const MAX_SPAN: usize = 3;

/// Bytes of a record that are asked for ahead.
const PREFETCHED_BYTES: usize = 512;

/// Bytes that are asked for by a hint, which does not say how long the record is.
const HINTED_BYTES: usize = 320;

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
    accounts: Sharded<Account>,
    /// Memory for a block to be read into.
    spare: Mutex<Option<Box<[u8]>>>,
    /// Blocks of memory for frames to be made.
    region: Mutex<Region>,
    /// Where the memory of the first frame begins; the others follow in their order.
    address: usize,
    hints: Option<Hints>,
}

impl BlockCache {
    /// A cache of up to `bytes` for segments of `segment_bytes`. `None` where that is not one block; an error if there is not
    /// so much address space.
    pub(crate) fn new(bytes: u64, segment_bytes: u64) -> io::Result<Option<Self>> {
        let block_bytes = (segment_bytes / MIN_BLOCKS_A_SEGMENT).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
        let block_shift = block_bytes.ilog2();
        let max_slot_bytes = bytes / SLOTS_PART;
        // The spare one aside.
        let for_frames = (bytes - max_slot_bytes - Hints::bytes(bytes)).saturating_sub(1 << block_shift);
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
            accounts: Sharded::default(),
            spare: Mutex::new(None),
            address: region.address(),
            region: Mutex::new(region),
            hints: Hints::new(bytes)?,
        }))
    }

    /// Bytes of blocks, frames and slots that are held now, and of all hints from the first block on.
    pub(crate) fn held_bytes(&self) -> u64 {
        let frames = u64::from(self.used.load(Ordering::Relaxed).min(self.capacity));
        let hints = if frames == 0 { 0 } else { self.hints.as_ref().map_or(0, Hints::held_bytes) };
        frames * frame_bytes(self.block_shift) + self.slot_bytes.load(Ordering::Relaxed) + hints
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
        // The lines behind them the processor asks for by itself when it sees them read in order.
        self.prefetch_lines(self.place(frame, span), span.len.min(PREFETCHED_BYTES));
    }

    /// Bytes from the beginning of the first frame's memory to a stretch, if `frame` has its block.
    fn place(&self, frame: u32, span: Span) -> usize {
        ((frame as usize) << self.block_shift) + span.start
    }

    fn prefetch_lines(&self, place: usize, len: usize) {
        let begin = self.address + place;
        for line in (begin..begin + len).step_by(LINE_BYTES) {
            prefetch(std::ptr::without_provenance::<u8>(line));
        }
    }

    /// The first of two steps by which a get has the record of a key of this `hash` on its way before it is known where it
    /// lies. Between the two there should be a tenth of a microsecond's work, for the second reads what the first has asked for.
    pub(crate) fn ask_for_hint(&self, hash: u64) {
        if let Some(word) = self.hints.as_ref().and_then(|hints| hints.word(hash)) {
            prefetch(word);
        }
    }

    /// The second step: record and frame, where they were when the key was last read.
    pub(crate) fn ask_for_record(&self, hash: u64) {
        let Some(place) = self.hints.as_ref().and_then(|hints| hints.place(hash)) else { return };
        self.prefetch_lines(place, HINTED_BYTES);
        if let Some(frame) = u32::try_from(place >> self.block_shift).ok().and_then(|number| self.frame(number)) {
            prefetch(frame);
        }
    }

    /// Where the second step would look, in bytes from the beginning of the first frame's memory.
    #[cfg(test)]
    pub(crate) fn hint(&self, hash: u64) -> Option<usize> {
        self.hints.as_ref()?.place(hash)
    }

    /// The record of a key of this `hash` was found there.
    pub(crate) fn note(&self, hash: u64, framed: &Framed) {
        if let Some(hints) = &self.hints {
            hints.note(hash, self.place(framed.frames[0], framed.span));
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

#[cfg(all(test, not(feature = "__shuttle")))]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed check is a failed test")]
mod tests;
