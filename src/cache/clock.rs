//! The frames: memory for one block each, and the clock hand that chooses which frame to reuse.
//!
//! A frame knows its owner, the block it holds, under its lock. No thread waits for that lock. A reader that finds a
//! frame being filled treats the block as missing, and the hand skips a frame that is being read. The lock is held to
//! read the block or to copy another one into the frame, never during a file read.

use std::io;
use std::sync::{OnceLock, PoisonError, TryLockError};

use crate::io::pages::{Block, Region};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Mutex, RwLock};

/// Frames that are created at a time, empty.
const CHUNK_FRAMES: usize = 64;

/// Frames that one fill inspects at most. If all of them were read recently, the block is not cached. The hand has
/// advanced, so the next fill may succeed.
pub(super) const SWEEP_FRAMES_MAX: u64 = 128;

/// A block of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockId {
    pub(crate) segment: u32,
    pub(crate) number: u32,
}

/// The owner of an empty frame. No segment has a block of this number.
const NO_BLOCK: BlockId = BlockId { segment: 0, number: u32::MAX };

/// A block and the memory it is in.
#[derive(Debug)]
pub(super) struct FrameContents {
    owner: BlockId,
    pub(super) bytes: Block,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) contents: RwLock<FrameContents>,
    /// Read since the hand last passed. Readers share the cache line, so they write it only to set the flag.
    is_referenced: AtomicBool,
}

impl Frame {
    fn new(bytes: Block) -> Self {
        let contents = FrameContents { owner: NO_BLOCK, bytes };
        Self { contents: RwLock::new(contents), is_referenced: AtomicBool::new(false) }
    }
}

/// A block that was put into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) frame: u32,
    /// The block that the frame held before.
    pub(crate) evicted: Option<BlockId>,
}

/// All frames of a cache.
#[derive(Debug)]
pub(super) struct Frames {
    chunks: Box<[OnceLock<Box<[Frame]>>]>,
    pub(super) capacity: u32,
    /// Frames that have held a block.
    pub(super) used: AtomicU32,
    pub(super) hand: AtomicU32,
    /// Memory for frames that are yet to be created.
    region: Mutex<Region>,
    /// The address of the first frame's memory. The others follow in order.
    pub(super) address: usize,
}

impl Frames {
    /// Takes address space for `capacity` frames of `block_bytes`, and no memory.
    pub(super) fn new(capacity: u32, block_bytes: usize) -> io::Result<Self> {
        let region = Region::new(capacity as usize, block_bytes)?;
        Ok(Self {
            chunks: (0..(capacity as usize).div_ceil(CHUNK_FRAMES)).map(|_| OnceLock::new()).collect(),
            capacity,
            used: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            address: region.address(),
            region: Mutex::new(region),
        })
    }

    /// Bytes that a frame takes: its block, itself, and its share of the list of chunks.
    pub(super) fn frame_bytes(block_shift: u32) -> u64 {
        (1 << block_shift) + size_of::<Frame>() as u64 + 1
    }

    /// Frames that have held a block.
    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed).min(self.capacity)
    }

    /// Whether some frame has never held a block.
    pub(super) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.capacity
    }

    /// Runs `visit` on `block` if `frame` holds it and no thread is filling it.
    pub(super) fn read<T>(&self, frame: u32, block: BlockId, visit: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let frame = self.frame(frame)?;
        let contents = match frame.contents.try_read() {
            Ok(contents) => contents,
            Err(TryLockError::Poisoned(contents)) => contents.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if contents.owner != block {
            return None;
        }
        if !frame.is_referenced.load(Ordering::Relaxed) {
            frame.is_referenced.store(true, Ordering::Relaxed);
        }
        Some(visit(&contents.bytes))
    }

    /// Empties `frame` if it holds `block`.
    pub(super) fn forget(&self, frame: u32, block: BlockId) {
        let Some(frame) = self.frame(frame) else { return };
        if let Ok(mut contents) = frame.contents.try_write()
            && contents.owner == block
        {
            contents.owner = NO_BLOCK;
            frame.is_referenced.store(false, Ordering::Relaxed);
        }
    }

    /// Copies a block into a frame. `None` if no frame is free.
    pub(super) fn insert(&self, block: BlockId, bytes: &[u8]) -> Option<Filled> {
        // Up to two rounds, since the first may only clear the flags. But a limited number of frames, because a get
        // waits.
        for _ in 0..SWEEP_FRAMES_MAX.min(2 * u64::from(self.capacity)) {
            let Some((number, frame)) = self.next_frame() else { continue };
            let Ok(mut contents) = frame.contents.try_write() else { continue };
            let old = std::mem::replace(&mut contents.owner, block);
            contents.bytes.copy_from_slice(bytes);
            drop(contents);
            frame.is_referenced.store(true, Ordering::Relaxed);
            let evicted = (old != NO_BLOCK).then_some(old);
            return Some(Filled { frame: number, evicted });
        }
        None
    }

    /// A frame to fill: a new one, or the one under the hand if it was not read since the hand last passed.
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
            // Creates all earlier chunks too, so that a frame's number always gives its memory's place in the region.
            for chunk in self.chunks.iter().take(number as usize / CHUNK_FRAMES + 1) {
                if chunk.get().is_none() {
                    let _ = chunk.set(region.by_ref().take(CHUNK_FRAMES).map(Frame::new).collect());
                }
            }
        }
        self.frame(number)
    }

    pub(super) fn frame(&self, number: u32) -> Option<&Frame> {
        let number = number as usize;
        self.chunks.get(number / CHUNK_FRAMES)?.get()?.get(number % CHUNK_FRAMES)
    }
}
