//! The slots of a segment: for each block number, the frame that may hold the block.
//!
//! A slot is a guess that the frame confirms, since frames are reused for other blocks. So slots need no lock.

use std::sync::{Arc, OnceLock};

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The slots of one segment's blocks. Empty until the segment's first block is cached.
#[derive(Debug, Default)]
pub(crate) struct Slots(OnceLock<SlotArray>);

#[derive(Debug)]
struct SlotArray {
    /// Frame numbers plus one; 0 for none.
    frames: Box<[AtomicU32]>,
    /// Bytes of all slot arrays of the cache, including this one.
    held_bytes: Arc<AtomicU64>,
}

/// How much memory all slot arrays of a cache may take, and how much they take now.
#[derive(Debug)]
pub(super) struct SlotBudget {
    pub(super) max_bytes: u64,
    pub(super) held_bytes: Arc<AtomicU64>,
}

impl SlotBudget {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, held_bytes: Arc::default() }
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }
}

impl SlotArray {
    /// An array for `blocks` blocks, or an empty one if that would exceed the budget.
    fn new(blocks: usize, SlotBudget { max_bytes, held_bytes }: &SlotBudget) -> Self {
        let bytes = (blocks * size_of::<AtomicU32>()) as u64;
        let before = held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut array = Self { frames: Box::default(), held_bytes: Arc::clone(held_bytes) };
        if before + bytes <= *max_bytes {
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

    /// Creates the array for `blocks` blocks unless it exists. Returns whether block `number` has a slot.
    pub(super) fn make(&self, number: u32, blocks: impl FnOnce() -> usize, budget: &SlotBudget) -> bool {
        if self.0.get().is_none() {
            // Another thread may have created the array first. Then this one is dropped.
            let _ = self.0.set(SlotArray::new(blocks(), budget));
        }
        self.slot(number).is_some()
    }

    /// The frame that may hold block `number`.
    pub(super) fn frame_of(&self, number: u32) -> Option<u32> {
        self.slot(number)?.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Records that `frame` holds block `number`.
    pub(crate) fn set(&self, number: u32, frame: u32) {
        if let Some(slot) = self.slot(number) {
            slot.store(frame + 1, Ordering::Relaxed);
        }
    }

    /// Records that `frame` no longer holds block `number`. Leaves the slot alone if it names another frame by now.
    pub(crate) fn clear(&self, number: u32, frame: u32) {
        if let Some(slot) = self.slot(number) {
            let _ = slot.compare_exchange(frame + 1, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
