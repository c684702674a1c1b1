//! The memory of an arena's chunks.
//!
//! A look-up in a large keydir misses the processor's caches at the entry, and in pages of 4 KiB its table of pages as well.
//! So chunks of full size lie in large pages ([`pages`](crate::io::pages)), some dozens in each, whichever arena they belong
//! to. What is shorter, the first chunk of an arena or that of a long key, is the allocator's.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use super::arena::CHUNK_BYTES;
use crate::io::pages::{Block, Region};
use crate::sync::Mutex;

/// Chunks that lie in one piece: that of a large page.
const REGION_CHUNKS: usize = (2 << 20) / CHUNK_BYTES;

/// Bytes that are appended to, up to the room there was from the start or, on the heap, beyond.
#[derive(Debug)]
pub(super) enum Memory {
    Heap(Vec<u8>),
    /// A block, of which so many bytes are in use.
    Large(Block, usize),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            // Never more than there are.
            Self::Large(block, len) => block.get(..*len).unwrap_or_default(),
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Large(block, len) => block.get_mut(..*len).unwrap_or_default(),
        }
    }
}

impl Memory {
    /// Appends `parts`, and zeros until it is `len` bytes longer. The caller has seen that there is room.
    pub(super) fn append(&mut self, parts: [&[u8]; 3], len: usize) {
        match self {
            Self::Heap(bytes) => {
                let end = bytes.len() + len;
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                bytes.resize(end, 0);
            }
            Self::Large(block, used) => {
                let mut rest = &mut block[*used..*used + len];
                for part in parts {
                    let place;
                    (place, rest) = rest.split_at_mut(part.len());
                    place.copy_from_slice(part);
                }
                rest.fill(0);
                *used += len;
            }
        }
    }

    /// Bytes it takes, used or not.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Heap(bytes) => bytes.capacity(),
            Self::Large(block, _) => block.len(),
        }
    }
}

/// Where all arenas of a keydir have their chunks of full size from.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Chunks>);

#[derive(Debug, Default)]
struct Chunks {
    /// The piece that is being cut.
    region: Option<Region>,
    /// Were given back: addresses without memory.
    spare: Vec<Block>,
}

impl Pool {
    /// An empty chunk. From the allocator where there is no address space for a piece: it decides what becomes of that.
    pub(super) fn take(&self) -> Memory {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match chunks.next() {
            Some(block) => Memory::Large(block, 0),
            None => Memory::Heap(Vec::with_capacity(CHUNK_BYTES)),
        }
    }

    /// Chunks that were given back and not taken again.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spare.len()
    }

    /// Lets go of the memory of a chunk that holds nothing any more.
    pub(super) fn give_back(&self, memory: Memory) {
        if let Memory::Large(mut block, _) = memory {
            block.clear();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).spare.push(block);
        }
    }
}

impl Chunks {
    fn next(&mut self) -> Option<Block> {
        if let Some(block) = self.spare.pop() {
            return Some(block);
        }
        if let Some(block) = self.region.as_mut().and_then(Iterator::next) {
            return Some(block);
        }
        self.region.insert(Region::new(REGION_CHUNKS, CHUNK_BYTES).ok()?).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_were_given_back_are_used_again_and_are_empty() {
        let pool = Pool::default();
        let fill = |memory: &mut Memory, byte: u8| {
            for _ in 0..CHUNK_BYTES / 1024 {
                memory.append([&[byte; 1000], &[byte; 20], &[]], 1024);
            }
        };
        let mut taken: Vec<Memory> = (0..3 * REGION_CHUNKS).map(|_| pool.take()).collect();
        for (memory, byte) in taken.iter_mut().zip(0..) {
            assert!(memory.is_empty());
            fill(memory, byte);
        }
        let mut addresses: Vec<_> = taken.iter().map(|memory| memory.as_ptr()).collect();
        for (memory, byte) in taken.iter().zip(0_u8..) {
            assert_eq!(memory.len(), CHUNK_BYTES);
            assert!(memory.chunks(1024).all(|chunk| chunk[..1020] == [byte; 1020] && chunk[1020..] == [0; 4]));
        }
        taken.into_iter().for_each(|memory| pool.give_back(memory));
        let again: Vec<Memory> = (0..3 * REGION_CHUNKS).map(|_| pool.take()).collect();
        let mut again_at: Vec<_> = again.iter().map(|memory| memory.as_ptr()).collect();
        for memory in &again {
            let Memory::Large(block, used) = memory else { panic!("there is address space") };
            assert!(*used == 0 && block.iter().all(|byte| *byte == 0), "what was given back kept its memory");
        }
        addresses.sort_unstable();
        again_at.sort_unstable();
        assert_eq!(addresses, again_at);
        drop(pool);
        assert!(again.iter().all(|memory| memory.is_empty()), "they outlive the pool");
    }
}
