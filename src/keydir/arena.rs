//! The arena: the memory of one shard's entries, stored back to back, each as long as its key needs.
//!
//! A hash table with inline entries would give the longest key in place as much room as the shortest, and would leave
//! between an eighth and more than half of that room empty. Here the table stores eight bytes per key, and an entry
//! takes 22 bytes plus its key.
//!
//! # Gaps
//!
//! Entries are appended to chunks. A removed entry leaves a gap. When gaps make up a quarter of the arena, the chunk
//! with the most gaps is emptied: its remaining entries move to the end, and its memory is freed. So a removal moves at
//! most one chunk of entries, which bounds the time that the shard is locked.
//!
//! # Scans
//!
//! For the same reason an [`ArenaScan`] over all entries visits one chunk per step, and the arena may change between
//! steps. The scan may or may not see entries that are added or removed meanwhile. It would miss a moved entry, or see
//! it twice, if it had visited one of the entry's two places and not the other. So the arena counts its moves, and a
//! scan that finds a changed count restarts.

use std::sync::Arc;

use super::chunk::{CHUNK_BYTES, ChunkMemory, ChunkPool};
use super::location::KeydirSlot;
use crate::sync::prefetch::prefetch;

/// Entries begin at multiples of this.
const UNIT: usize = 2;

/// Number of offsets in a chunk at which an entry may begin, as a power of two.
const CHUNK_UNITS_LOG2: u32 = (CHUNK_BYTES / UNIT).trailing_zeros();

/// A longer entry gets its own chunk, of exactly its size. In a shared chunk it would waste too much of the remaining
/// room.
const OWN_CHUNK_BYTES: usize = CHUNK_BYTES / 4;

/// Bytes of an entry before its key: the slot, and the key's length.
const HEAD_BYTES: usize = KeydirSlot::BYTES + 2;

/// Replaces the first eight bytes of a removed entry's slot. No sequence number is that large.
const GAP: [u8; 8] = [0xff; 8];

/// Identifies an entry of an arena until the entry is moved: 36 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EntryHandle(u64);

impl EntryHandle {
    pub(super) const BITS: u32 = 36;

    fn new(chunk: usize, at: usize) -> Self {
        Self((chunk as u64) << CHUNK_UNITS_LOG2 | (at / UNIT) as u64)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    fn chunk(self) -> usize {
        usize::try_from(self.0 >> CHUNK_UNITS_LOG2).unwrap_or(usize::MAX)
    }

    fn at(self) -> usize {
        usize::try_from(self.0 & ((1 << CHUNK_UNITS_LOG2) - 1)).unwrap_or(usize::MAX) * UNIT
    }
}

/// Chunks that an [`EntryHandle`] can address: 128 GiB in one shard.
const MAX_CHUNKS: usize = 1 << (EntryHandle::BITS - CHUNK_UNITS_LOG2);

#[derive(Default)]
struct Chunk {
    bytes: ChunkMemory,
    /// Bytes of gaps.
    gap_bytes: usize,
}

/// The entries of one shard.
pub(super) struct Arena {
    pool: Arc<ChunkPool>,
    chunks: Vec<Chunk>,
    /// Numbers of chunks whose memory was freed.
    vacant: Vec<usize>,
    /// The chunk that short entries are appended to.
    current: Option<usize>,
    /// Bytes of all entries and gaps.
    bytes: usize,
    gap_bytes: usize,
    /// How often entries were moved. A scan restarts when this changes.
    moves: u64,
}

fn entry_bytes(key_len: usize) -> usize {
    (HEAD_BYTES + key_len).next_multiple_of(UNIT)
}

/// The entry at the start of `bytes`: its slot (`None` for a gap), its key, and its total length.
fn split(bytes: &[u8]) -> Option<(Option<KeydirSlot>, &[u8], usize)> {
    let (slot, rest) = bytes.split_first_chunk::<{ KeydirSlot::BYTES }>()?;
    let (key_len, rest) = rest.split_first_chunk::<2>()?;
    let key_len = usize::from(u16::from_le_bytes(*key_len));
    let slot = (!slot.starts_with(&GAP)).then(|| KeydirSlot::decode(slot));
    Some((slot, rest.get(..key_len)?, entry_bytes(key_len)))
}

impl Arena {
    /// An empty arena, which takes its full-size chunks from `pool`.
    pub(super) fn new(pool: Arc<ChunkPool>) -> Self {
        Self { pool, chunks: Vec::new(), vacant: Vec::new(), current: None, bytes: 0, gap_bytes: 0, moves: 0 }
    }

    /// Bytes of memory that the entries and their gaps take.
    pub(super) fn held_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum()
    }

    fn entry(&self, handle: EntryHandle) -> Option<&[u8]> {
        self.chunks.get(handle.chunk())?.bytes.get(handle.at()..)
    }

    /// Whether the entry belongs to `key`.
    pub(super) fn holds_key(&self, handle: EntryHandle, key: &[u8]) -> bool {
        let rest = self.entry(handle).and_then(|entry| entry.get(KeydirSlot::BYTES..));
        rest.and_then(|rest| rest.split_first_chunk::<2>()).is_some_and(|(key_len, rest)| {
            usize::from(u16::from_le_bytes(*key_len)) == key.len() && rest.starts_with(key)
        })
    }

    /// Prefetches the first cache line of an entry.
    pub(super) fn prefetch(&self, handle: EntryHandle) {
        if let Some(entry) = self.entry(handle) {
            prefetch(entry.as_ptr());
        }
    }

    /// The slot of an existing entry.
    pub(super) fn slot(&self, handle: EntryHandle) -> Option<KeydirSlot> {
        self.entry(handle)?.first_chunk().map(KeydirSlot::decode)
    }

    /// Replaces the slot of an entry.
    pub(super) fn set(&mut self, handle: EntryHandle, slot: KeydirSlot) {
        let bytes = self.chunks.get_mut(handle.chunk()).and_then(|chunk| chunk.bytes.get_mut(handle.at()..));
        if let Some(place) = bytes.and_then(|bytes| bytes.first_chunk_mut()) {
            *place = slot.encode();
        }
    }

    /// Appends an entry.
    pub(super) fn insert(&mut self, key: &[u8], slot: KeydirSlot) -> EntryHandle {
        // Keys have at most 65,535 bytes.
        let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
        let key = key.get(..usize::from(key_len)).unwrap_or_default();
        let len = entry_bytes(key.len());
        let number = self.chunk_for(len);
        let bytes = &mut self.chunks[number].bytes;
        let at = bytes.len();
        bytes.append([&slot.encode(), &key_len.to_le_bytes(), key], len);
        self.bytes += len;
        EntryHandle::new(number, at)
    }

    /// A chunk with room for an entry of `len` bytes.
    fn chunk_for(&mut self, len: usize) -> usize {
        if len > OWN_CHUNK_BYTES {
            return self.add_chunk(ChunkMemory::Heap(Vec::with_capacity(len)));
        }
        if let Some(current) = self.current
            && self.chunks[current].bytes.len() + len <= CHUNK_BYTES
        {
            return current;
        }
        // The first chunk grows on demand: a small store has many shards with few entries each.
        let memory = if self.chunks.is_empty() { ChunkMemory::default() } else { self.pool.take() };
        let new = self.add_chunk(memory);
        self.current = Some(new);
        new
    }

    fn add_chunk(&mut self, bytes: ChunkMemory) -> usize {
        let chunk = Chunk { bytes, gap_bytes: 0 };
        if let Some(number) = self.vacant.pop() {
            self.chunks[number] = chunk;
            return number;
        }
        if self.chunks.len() == MAX_CHUNKS {
            // Fails like the allocator does when memory is exhausted. Today's machines run out of memory long before.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; CHUNK_BYTES]>());
        }
        self.chunks.push(chunk);
        self.chunks.len() - 1
    }

    /// Removes an entry. Does nothing if it is already removed.
    pub(super) fn remove(&mut self, handle: EntryHandle) {
        let number = handle.chunk();
        let Some(chunk) = self.chunks.get_mut(number) else { return };
        let Some(entry) = chunk.bytes.get_mut(handle.at()..) else { return };
        let Some((Some(_), _, len)) = split(entry) else { return };
        entry[..GAP.len()].copy_from_slice(&GAP);
        chunk.gap_bytes += len;
        self.gap_bytes += len;
        if chunk.gap_bytes == chunk.bytes.len() {
            self.free_chunk(number);
        }
    }

    /// Frees the memory of a chunk without entries.
    fn free_chunk(&mut self, number: usize) {
        let chunk = std::mem::take(&mut self.chunks[number]);
        self.bytes -= chunk.bytes.len();
        self.gap_bytes -= chunk.gap_bytes;
        self.pool.put_back(chunk.bytes);
        self.vacant.push(number);
        if self.current == Some(number) {
            self.current = None;
        }
    }

    /// Empties the chunk with the most gaps, if gaps make up a quarter of the arena. Calls `moved` with the key of each
    /// moved entry, its old handle and its new one. Returns whether another call may find more to do.
    pub(super) fn reclaim_gaps(&mut self, mut moved: impl FnMut(&[u8], EntryHandle, EntryHandle)) -> bool {
        if self.gap_bytes < CHUNK_BYTES || self.gap_bytes < self.bytes / 4 {
            return false;
        }
        let Some(number) = (0..self.chunks.len()).max_by_key(|&number| self.chunks[number].gap_bytes) else {
            return false;
        };
        if self.current == Some(number) {
            self.current = None;
        }
        self.moves += 1;
        let chunk = std::mem::take(&mut self.chunks[number].bytes);
        let mut at = 0;
        while let Some((slot, key, len)) = chunk.get(at..).and_then(split) {
            if let Some(slot) = slot {
                let new = self.insert(key, slot);
                moved(key, EntryHandle::new(number, at), new);
            }
            at += len;
        }
        self.chunks[number].bytes = chunk;
        self.free_chunk(number);
        true
    }

    /// Calls `each` with every entry.
    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], KeydirSlot)) {
        self.chunks.iter().for_each(|chunk| chunk.for_each(&mut each));
    }
}

impl Chunk {
    fn for_each(&self, mut each: impl FnMut(&[u8], KeydirSlot)) {
        let mut at = 0;
        while let Some((slot, key, len)) = self.bytes.get(at..).and_then(split) {
            if let Some(slot) = slot {
                each(key, slot);
            }
            at += len;
        }
    }
}

/// Starts that visit one chunk per step. A scan that has to restart more often visits all remaining chunks in one step.
const MAX_CHUNKED_STARTS: u32 = 4;

/// A scan over the entries of one arena, one chunk per step, which collects what its caller picks.
pub(super) struct ArenaScan<T> {
    next_chunk: usize,
    /// The arena's count of moves when the scan last started.
    moves: Option<u64>,
    starts: u32,
    is_over: bool,
    picked: Vec<T>,
}

impl<T> ArenaScan<T> {
    pub(super) fn new() -> Self {
        Self { next_chunk: 0, moves: None, starts: 0, is_over: false, picked: Vec::new() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Visits the next chunk, or all remaining ones after [`MAX_CHUNKED_STARTS`]. The arena may change in any way
    /// between two calls.
    pub(super) fn advance(&mut self, arena: &Arena, mut pick: impl FnMut(&[u8], KeydirSlot) -> Option<T>) {
        if self.moves != Some(arena.moves) {
            self.picked.clear();
            (self.next_chunk, self.moves) = (0, Some(arena.moves));
            self.starts += 1;
        }
        let count = if self.starts > MAX_CHUNKED_STARTS { usize::MAX } else { 1 };
        for chunk in arena.chunks.iter().skip(self.next_chunk).take(count) {
            chunk.for_each(|key, slot| self.picked.extend(pick(key, slot)));
            self.next_chunk += 1;
        }
        self.is_over = self.next_chunk >= arena.chunks.len();
    }

    pub(super) fn into_picked(self) -> Vec<T> {
        self.picked
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::keydir::location::Location;

    fn slot(number: u64) -> KeydirSlot {
        KeydirSlot::new(number, number.is_multiple_of(5), Location::new(7, number * 8, 9).unwrap())
    }

    fn key(number: u64) -> Vec<u8> {
        // Lengths from 1 to 65,535, most of them short; among them some that need their own chunk.
        let len = match number % 997 {
            0 => 65_535 - number % 3,
            1 => OWN_CHUNK_BYTES as u64 - number % 40,
            other => 1 + other % 200,
        };
        let mut key = vec![(number % 251) as u8; usize::try_from(len).unwrap()];
        key.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
        key
    }

    /// What holds after any history: every entry is found under its handle, and the arena's sums are right.
    fn check(arena: &Arena, model: &HashMap<u64, EntryHandle>) {
        for (&number, &handle) in model {
            assert!(arena.holds_key(handle, &key(number)), "entry {number}");
            assert_eq!(arena.slot(handle).map(KeydirSlot::word), Some(slot(number).word()));
        }
        let mut seen = 0;
        arena.for_each(|key, slot| {
            assert!(
                model.get(&slot.seq()).is_some_and(|&handle| arena.holds_key(handle, key)),
                "a removed entry was found"
            );
            seen += 1;
        });
        assert_eq!(seen, model.len());
        assert_eq!(arena.bytes, arena.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>());
        assert_eq!(arena.gap_bytes, arena.chunks.iter().map(|chunk| chunk.gap_bytes).sum::<usize>());
        let live: usize = model.keys().map(|&number| entry_bytes(key(number).len())).sum();
        assert_eq!(arena.bytes - arena.gap_bytes, live);
        assert!(arena.gap_bytes <= CHUNK_BYTES + arena.bytes / 4, "{} gaps in {} bytes", arena.gap_bytes, arena.bytes);
    }

    fn reclaim_all(arena: &mut Arena, model: &mut HashMap<u64, EntryHandle>) -> u64 {
        let mut moves = 0;
        while arena.reclaim_gaps(|key, old, new| {
            let (number, handle) = model.iter_mut().find(|(_, handle)| **handle == old).unwrap();
            assert_eq!(key, self::key(*number));
            *handle = new;
            moves += 1;
        }) {}
        moves
    }

    #[test]
    fn entries_keep_their_contents_while_others_come_and_go() {
        let (mut arena, mut model) = (Arena::new(Arc::default()), HashMap::new());
        let (mut random, mut moves) = (1_u64, 0);
        for step in 1..24_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            // The arena grows, shrinks and grows again.
            let grows = (step / 6000).is_multiple_of(2);
            if model.is_empty() || (random >> 60 < 11) == grows {
                model.insert(step, arena.insert(&key(step), slot(step)));
            } else {
                let number = *model.keys().nth(usize::try_from(random >> 33).unwrap() % model.len()).unwrap();
                arena.remove(model.remove(&number).unwrap());
                moves += reclaim_all(&mut arena, &mut model);
            }
            if step.is_multiple_of(1000) {
                check(&arena, &model);
            }
        }
        check(&arena, &model);
        println!("arena: {} entries left, {moves} moved", model.len());
        assert!(moves > 1000, "only {moves} entries were ever moved");
        for handle in model.drain().map(|(_, handle)| handle) {
            arena.remove(handle);
        }
        assert_eq!((arena.bytes, arena.gap_bytes), (0, 0), "an arena without entries holds no memory");
        assert!(arena.chunks.iter().all(|chunk| chunk.bytes.capacity() == 0));
        assert!(arena.pool.spare() > 0, "no chunk went back to the pool");
    }

    #[test]
    fn a_slot_is_replaced_in_place() {
        let mut arena = Arena::new(Arc::default());
        let handles = [1, 2, 3].map(|number| arena.insert(&key(number), slot(number)));
        arena.set(handles[1], slot(20));
        let words = handles.map(|handle| arena.slot(handle).unwrap().word());
        assert_eq!(words, [1, 20, 3].map(|number| slot(number).word()));
        assert!(arena.holds_key(handles[1], &key(2)));
        arena.remove(handles[1]);
        assert_eq!(arena.gap_bytes, entry_bytes(key(2).len()));
        arena.remove(handles[1]);
        assert_eq!(arena.gap_bytes, entry_bytes(key(2).len()), "an entry removed twice is one gap");
    }

    /// An arena with several full chunks, and the handle of each entry by its number.
    fn chunks() -> (Arena, Vec<EntryHandle>) {
        let mut arena = Arena::new(Arc::default());
        let handles = (0..8000).map(|number| arena.insert(&[7; 50], slot(number))).collect();
        assert!(arena.chunks.len() > 6);
        (arena, handles)
    }

    fn numbers_of(scan: ArenaScan<u64>) -> Vec<u64> {
        let mut numbers = scan.into_picked();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_scan_sees_every_entry_although_some_move_to_chunks_it_has_visited() {
        let (mut arena, handles) = chunks();
        let pick = |_: &[u8], slot: KeydirSlot| Some(slot.seq());
        let mut scan = ArenaScan::new();
        scan.advance(&arena, pick);
        scan.advance(&arena, pick);
        // Removes the whole first chunk, so new entries reuse its number. Removes nearly all of a late chunk, and a
        // third of the others. So the rest of the late chunk moves from where the scan has not been to where it has.
        let (first, late) = (handles[0].chunk(), handles[7000].chunk());
        let mut late_left = 10;
        let (mut kept, mut moved) = (Vec::new(), Vec::new());
        for (number, &handle) in (0_u64..).zip(&handles) {
            let stays = match handle.chunk() {
                chunk if chunk == first => false,
                chunk if chunk == late => late_left > 0,
                _ => number % 3 > 0,
            };
            late_left -= usize::from(stays && handle.chunk() == late);
            if stays {
                kept.push(number);
            } else {
                arena.remove(handle);
            }
        }
        assert_eq!(arena.vacant, [first]);
        while arena.insert(&[7; 50], slot(9999)).chunk() != first {}
        assert!(arena.reclaim_gaps(|_, old, new| moved.push((old.chunk(), new.chunk()))));
        assert_eq!(moved, [(late, first); 10]);
        while !scan.is_over() {
            scan.advance(&arena, pick);
        }
        let starts = scan.starts;
        let mut seen = numbers_of(scan);
        // The scan need not see entries that were added meanwhile.
        seen.retain(|&number| number != 9999);
        assert_eq!(seen.len(), kept.len());
        assert!(seen == kept, "an entry was missed or seen twice");
        assert_eq!(starts, 2);
    }

    #[test]
    fn a_scan_ends_however_often_entries_move() {
        let (mut arena, _) = chunks();
        let mut scan = ArenaScan::new();
        let mut steps = 0;
        while !scan.is_over() {
            arena.moves += 1;
            scan.advance(&arena, |_, slot| Some(slot.seq()));
            steps += 1;
        }
        assert_eq!(steps, MAX_CHUNKED_STARTS + 1);
        assert_eq!(numbers_of(scan), (0..8000).collect::<Vec<_>>());
    }

    #[test]
    fn a_small_arena_takes_little_memory() {
        let mut arena = Arena::new(Arc::default());
        arena.insert(b"0123456789abcdef", slot(1));
        let capacity: usize = arena.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum();
        assert!(capacity <= 128, "{capacity} bytes for one entry");
    }
}
