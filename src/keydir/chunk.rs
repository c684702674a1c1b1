//! The memory of the arenas' chunks.
//!
//! A lookup in a large keydir misses the CPU caches at the entry. With pages of 4 KiB it misses the TLB as well. So
//! chunks of full size are cut from large pages ([`pages`](crate::io::pages)), some dozens from each, and all arenas
//! share them. The allocator provides shorter chunks: the first chunk of an arena, and that of a long key.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use crate::io::pages::{Block, Region};
use crate::sync::Mutex;

/// Size of a full chunk.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Chunks in one region, which is one large page.
const REGION_CHUNKS: usize = (2 << 20) / CHUNK_BYTES;

/// A chunk's bytes, which only grow. A block has a fixed capacity; a vector can grow beyond its own.
#[derive(Debug)]
pub(super) enum ChunkMemory {
    Heap(Vec<u8>),
    /// A block of a large page, and how many of its bytes are in use.
    Large(Block, usize),
}

impl Default for ChunkMemory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Deref for ChunkMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            // `len` is never more than the block has.
            Self::Large(block, len) => block.get(..*len).unwrap_or_default(),
        }
    }
}

impl DerefMut for ChunkMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Large(block, len) => block.get_mut(..*len).unwrap_or_default(),
        }
    }
}

impl ChunkMemory {
    /// Appends `parts`, padded with zeros to `len` bytes. The caller has checked that a block has room for them.
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

    /// Bytes of memory, used or not.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Heap(bytes) => bytes.capacity(),
            Self::Large(block, _) => block.len(),
        }
    }
}

/// The full-size chunks that all arenas of a keydir share.
#[derive(Debug, Default)]
pub(super) struct ChunkPool(Mutex<FreeChunks>);

#[derive(Debug, Default)]
struct FreeChunks {
    /// The region that new chunks are cut from.
    region: Option<Region>,
    /// Returned chunks: address space without memory.
    spare: Vec<Block>,
}

impl ChunkPool {
    /// An empty chunk. If the system has no address space for a region, the chunk comes from the allocator, which has
    /// its own way to fail.
    pub(super) fn take(&self) -> ChunkMemory {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match chunks.next() {
            Some(block) => ChunkMemory::Large(block, 0),
            None => ChunkMemory::Heap(Vec::with_capacity(CHUNK_BYTES)),
        }
    }

    /// Returned chunks that are unused.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spare.len()
    }

    /// Frees the memory of a chunk, and keeps its address space if it has full size.
    pub(super) fn put_back(&self, memory: ChunkMemory) {
        if let ChunkMemory::Large(mut block, _) = memory {
            block.clear();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).spare.push(block);
        }
    }
}

impl FreeChunks {
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
    fn returned_chunks_are_reused_and_empty() {
        let pool = ChunkPool::default();
        let fill = |memory: &mut ChunkMemory, byte: u8| {
            for _ in 0..CHUNK_BYTES / 1024 {
                memory.append([&[byte; 1000], &[byte; 20], &[]], 1024);
            }
        };
        let mut taken: Vec<ChunkMemory> = (0..3 * REGION_CHUNKS).map(|_| pool.take()).collect();
        for (memory, byte) in taken.iter_mut().zip(0..) {
            assert!(memory.is_empty());
            fill(memory, byte);
        }
        let mut addresses: Vec<_> = taken.iter().map(|memory| memory.as_ptr()).collect();
        for (memory, byte) in taken.iter().zip(0_u8..) {
            assert_eq!(memory.len(), CHUNK_BYTES);
            assert!(memory.chunks(1024).all(|chunk| chunk[..1020] == [byte; 1020] && chunk[1020..] == [0; 4]));
        }
        taken.into_iter().for_each(|memory| pool.put_back(memory));
        let again: Vec<ChunkMemory> = (0..3 * REGION_CHUNKS).map(|_| pool.take()).collect();
        let mut again_at: Vec<_> = again.iter().map(|memory| memory.as_ptr()).collect();
        for memory in &again {
            let ChunkMemory::Large(block, used) = memory else { panic!("the system has address space") };
            assert!(*used == 0 && block.iter().all(|byte| *byte == 0), "a returned chunk kept its memory");
        }
        addresses.sort_unstable();
        again_at.sort_unstable();
        assert_eq!(addresses, again_at);
        drop(pool);
        assert!(again.iter().all(|memory| memory.is_empty()), "chunks outlive the pool");
    }
}
