//! Where the entries of one shard lie: one after the other, each as long as its key needs.
//!
//! A hash table that held them itself would give the longest key in place as much room as the shortest, and would leave
//! between an eighth and more than half of that room empty. Here the table holds eight bytes a key, and an entry takes 22
//! bytes and its key.
//!
//! Entries are appended to chunks. A removed one leaves a gap. Once gaps make up a quarter of the whole, the chunk that
//! has most of them is emptied: its other entries move to the end, and its memory is given back. So a removal moves at
//! most a chunk's worth, and no lock is held for longer than that takes.
//!
//! For the same reason a [`Walk`] over all entries takes one chunk at a time, between changes of the arena. What is
//! appended or removed meanwhile it may see or not. What is moved it would miss, or see twice, where it had passed one
//! of the two places and not the other: so the arena counts the times it has moved something, and a walk that finds the
//! count changed begins again.

use std::sync::Arc;

use super::chunk::{Memory, Pool};
use super::{Location, Slot};
use crate::sync::prefetch::prefetch;

/// Memory is asked for in pieces of so much.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Entries begin at multiples of this.
const UNIT: usize = 2;

/// Number of places where an entry may begin in a chunk, as a power of two.
const CHUNK_UNITS_LOG2: u32 = (CHUNK_BYTES / UNIT).trailing_zeros();

/// A longer entry has a chunk of its own, of its very size: the rest of a shared one would be lost too often.
const OWN_CHUNK_BYTES: usize = CHUNK_BYTES / 4;

/// Bytes of an entry before its key: the slot, and the key's length.
const HEAD_BYTES: usize = Slot::BYTES + 2;

/// In place of its slot's first eight bytes, a removed entry. No sequence number comes near.
const GAP: [u8; 8] = [0xff; 8];

impl Slot {
    /// As it lies in an entry. With the key's length it is what a key costs beside itself, a published number.
    const BYTES: usize = 20;

    fn encode(self) -> [u8; Self::BYTES] {
        let Location { segment, units, value_len } = self.location;
        let mut bytes = [0; Self::BYTES];
        for (to, from) in
            bytes.chunks_exact_mut(4).zip([self.seq_and_kind[0], self.seq_and_kind[1], segment, units, value_len])
        {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let mut words = [0; 5];
        for (to, from) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        let [low, high, segment, units, value_len] = words;
        Self { seq_and_kind: [low, high], location: Location { segment, units, value_len } }
    }
}

/// Names an entry of an arena for as long as it is not moved: 36 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Handle(u64);

impl Handle {
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

/// Chunks that [`Handle`]s can name: 128 GiB in one shard.
const MAX_CHUNKS: usize = 1 << (Handle::BITS - CHUNK_UNITS_LOG2);

#[derive(Default)]
struct Chunk {
    bytes: Memory,
    /// Bytes of gaps.
    gaps: usize,
}

/// The entries of one shard.
pub(super) struct Arena {
    pool: Arc<Pool>,
    chunks: Vec<Chunk>,
    /// Numbers of chunks that were given back.
    vacant: Vec<usize>,
    /// Where short entries are appended.
    current: Option<usize>,
    /// Bytes of all entries and gaps.
    bytes: usize,
    gaps: usize,
    /// How often entries were moved.
    moves: u64,
}

fn entry_bytes(key_len: usize) -> usize {
    (HEAD_BYTES + key_len).next_multiple_of(UNIT)
}

/// The entry that begins `bytes`: its slot, unless it is a gap, its key, and its length in all.
fn split(bytes: &[u8]) -> Option<(Option<Slot>, &[u8], usize)> {
    let (slot, rest) = bytes.split_first_chunk::<{ Slot::BYTES }>()?;
    let (key_len, rest) = rest.split_first_chunk::<2>()?;
    let key_len = usize::from(u16::from_le_bytes(*key_len));
    let slot = (!slot.starts_with(&GAP)).then(|| Slot::decode(slot));
    Some((slot, rest.get(..key_len)?, entry_bytes(key_len)))
}

impl Arena {
    /// An empty one, which has its chunks from `pool`.
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self { pool, chunks: Vec::new(), vacant: Vec::new(), current: None, bytes: 0, gaps: 0, moves: 0 }
    }

    fn entry(&self, handle: Handle) -> Option<&[u8]> {
        self.chunks.get(handle.chunk())?.bytes.get(handle.at()..)
    }

    /// Whether the entry is that of `key`.
    pub(super) fn is_of(&self, handle: Handle, key: &[u8]) -> bool {
        let rest = self.entry(handle).and_then(|entry| entry.get(Slot::BYTES..));
        rest.and_then(|rest| rest.split_first_chunk::<2>()).is_some_and(|(key_len, rest)| {
            usize::from(u16::from_le_bytes(*key_len)) == key.len() && rest.starts_with(key)
        })
    }

    /// Asks for the line in which an entry begins.
    pub(super) fn ask_for(&self, handle: Handle) {
        if let Some(entry) = self.entry(handle) {
            prefetch(entry.as_ptr());
        }
    }

    /// The slot of an entry that is there.
    pub(super) fn slot(&self, handle: Handle) -> Option<Slot> {
        self.entry(handle)?.first_chunk().map(Slot::decode)
    }

    /// Gives an entry another slot.
    pub(super) fn set(&mut self, handle: Handle, slot: Slot) {
        let bytes = self.chunks.get_mut(handle.chunk()).and_then(|chunk| chunk.bytes.get_mut(handle.at()..));
        if let Some(place) = bytes.and_then(|bytes| bytes.first_chunk_mut()) {
            *place = slot.encode();
        }
    }

    /// Appends an entry.
    pub(super) fn insert(&mut self, key: &[u8], slot: Slot) -> Handle {
        // No record has a longer key.
        let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
        let key = key.get(..usize::from(key_len)).unwrap_or_default();
        let len = entry_bytes(key.len());
        let number = self.chunk_for(len);
        let bytes = &mut self.chunks[number].bytes;
        let at = bytes.len();
        bytes.append([&slot.encode(), &key_len.to_le_bytes(), key], len);
        self.bytes += len;
        Handle::new(number, at)
    }

    /// A chunk with room for an entry of `len` bytes.
    fn chunk_for(&mut self, len: usize) -> usize {
        if len > OWN_CHUNK_BYTES {
            return self.add_chunk(Memory::Heap(Vec::with_capacity(len)));
        }
        if let Some(current) = self.current
            && self.chunks[current].bytes.len() + len <= CHUNK_BYTES
        {
            return current;
        }
        // The first one grows as it is needed: there are many shards, and small stores.
        let memory = if self.chunks.is_empty() { Memory::default() } else { self.pool.take() };
        let new = self.add_chunk(memory);
        self.current = Some(new);
        new
    }

    fn add_chunk(&mut self, bytes: Memory) -> usize {
        let chunk = Chunk { bytes, gaps: 0 };
        if let Some(number) = self.vacant.pop() {
            self.chunks[number] = chunk;
            return number;
        }
        if self.chunks.len() == MAX_CHUNKS {
            // As the allocator does where memory ends, which on any machine of today is long before.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; CHUNK_BYTES]>());
        }
        self.chunks.push(chunk);
        self.chunks.len() - 1
    }

    /// Removes an entry that is there.
    pub(super) fn remove(&mut self, handle: Handle) {
        let number = handle.chunk();
        let Some(chunk) = self.chunks.get_mut(number) else { return };
        let Some(entry) = chunk.bytes.get_mut(handle.at()..) else { return };
        let Some((Some(_), _, len)) = split(entry) else { return };
        entry[..GAP.len()].copy_from_slice(&GAP);
        chunk.gaps += len;
        self.gaps += len;
        if chunk.gaps == chunk.bytes.len() {
            self.give_back(number);
        }
    }

    /// Lets go of a chunk without entries.
    fn give_back(&mut self, number: usize) {
        let chunk = std::mem::take(&mut self.chunks[number]);
        self.bytes -= chunk.bytes.len();
        self.gaps -= chunk.gaps;
        self.pool.give_back(chunk.bytes);
        self.vacant.push(number);
        if self.current == Some(number) {
            self.current = None;
        }
    }

    /// Empties the chunk with most gaps, if gaps are a quarter of the whole. Tells `moved` the key of each entry that
    /// went elsewhere, its handle until now and the one it has. Says whether there may be more to do.
    pub(super) fn tidy(&mut self, mut moved: impl FnMut(&[u8], Handle, Handle)) -> bool {
        if self.gaps < CHUNK_BYTES || self.gaps < self.bytes / 4 {
            return false;
        }
        let Some(number) = (0..self.chunks.len()).max_by_key(|&number| self.chunks[number].gaps) else { return false };
        if self.current == Some(number) {
            self.current = None;
        }
        self.moves += 1;
        let chunk = std::mem::take(&mut self.chunks[number].bytes);
        let mut at = 0;
        while let Some((slot, key, len)) = chunk.get(at..).and_then(split) {
            if let Some(slot) = slot {
                let new = self.insert(key, slot);
                moved(key, Handle::new(number, at), new);
            }
            at += len;
        }
        self.chunks[number].bytes = chunk;
        self.give_back(number);
        true
    }

    /// Calls `each` with every entry.
    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], Slot)) {
        self.chunks.iter().for_each(|chunk| chunk.for_each(&mut each));
    }
}

impl Chunk {
    fn for_each(&self, mut each: impl FnMut(&[u8], Slot)) {
        let mut at = 0;
        while let Some((slot, key, len)) = self.bytes.get(at..).and_then(split) {
            if let Some(slot) = slot {
                each(key, slot);
            }
            at += len;
        }
    }
}

/// After so many beginnings a walk no longer lets go between chunks.
const WALKS_APART: u32 = 4;

/// A walk over the entries of one arena, a chunk at a time, for what is picked of them.
pub(super) struct Walk<T> {
    next_chunk: usize,
    /// The arena's count of moves when this walk began.
    moves: Option<u64>,
    beginnings: u32,
    is_over: bool,
    picked: Vec<T>,
}

impl<T> Walk<T> {
    pub(super) fn new() -> Self {
        Self { next_chunk: 0, moves: None, beginnings: 0, is_over: false, picked: Vec::new() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Looks at the next chunk, or at all that are left if it had to begin again too often. Between two calls anything may
    /// happen to the arena.
    pub(super) fn step(&mut self, arena: &Arena, mut pick: impl FnMut(&[u8], Slot) -> Option<T>) {
        if self.moves != Some(arena.moves) {
            self.picked.clear();
            (self.next_chunk, self.moves) = (0, Some(arena.moves));
            self.beginnings += 1;
        }
        let count = if self.beginnings > WALKS_APART { usize::MAX } else { 1 };
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

    fn slot(number: u64) -> Slot {
        Slot::new(number, number.is_multiple_of(5), Location::new(7, number * 8, 9).unwrap())
    }

    fn key(number: u64) -> Vec<u8> {
        // Lengths from 1 to 65,535, most of them short; among them some that need a chunk of their own.
        let len = match number % 997 {
            0 => 65_535 - number % 3,
            1 => OWN_CHUNK_BYTES as u64 - number % 40,
            other => 1 + other % 200,
        };
        let mut key = vec![(number % 251) as u8; usize::try_from(len).unwrap()];
        key.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
        key
    }

    /// What an arena must be after any history: every entry under its handle, and its sums right.
    fn check(arena: &Arena, model: &HashMap<u64, Handle>) {
        for (&number, &handle) in model {
            assert!(arena.is_of(handle, &key(number)), "entry {number}");
            assert_eq!(arena.slot(handle).map(Slot::word), Some(slot(number).word()));
        }
        let mut seen = 0;
        arena.for_each(|key, slot| {
            assert!(
                model.get(&slot.seq()).is_some_and(|&handle| arena.is_of(handle, key)),
                "an entry that was removed"
            );
            seen += 1;
        });
        assert_eq!(seen, model.len());
        assert_eq!(arena.bytes, arena.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>());
        assert_eq!(arena.gaps, arena.chunks.iter().map(|chunk| chunk.gaps).sum::<usize>());
        let live: usize = model.keys().map(|&number| entry_bytes(key(number).len())).sum();
        assert_eq!(arena.bytes - arena.gaps, live);
        assert!(arena.gaps <= CHUNK_BYTES + arena.bytes / 4, "{} gaps in {} bytes", arena.gaps, arena.bytes);
    }

    fn tidy(arena: &mut Arena, model: &mut HashMap<u64, Handle>) -> u64 {
        let mut moves = 0;
        while arena.tidy(|key, old, new| {
            let (number, handle) = model.iter_mut().find(|(_, handle)| **handle == old).unwrap();
            assert_eq!(key, self::key(*number));
            *handle = new;
            moves += 1;
        }) {}
        moves
    }

    #[test]
    fn entries_stay_what_they_are_while_others_come_and_go() {
        let (mut arena, mut model) = (Arena::new(Arc::default()), HashMap::new());
        let (mut random, mut moves) = (1_u64, 0);
        for step in 1..24_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            // It grows, shrinks and grows again.
            let grows = (step / 6000).is_multiple_of(2);
            if model.is_empty() || (random >> 60 < 11) == grows {
                model.insert(step, arena.insert(&key(step), slot(step)));
            } else {
                let number = *model.keys().nth(usize::try_from(random >> 33).unwrap() % model.len()).unwrap();
                arena.remove(model.remove(&number).unwrap());
                moves += tidy(&mut arena, &mut model);
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
        assert_eq!((arena.bytes, arena.gaps), (0, 0), "an arena without entries holds nothing");
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
        assert!(arena.is_of(handles[1], &key(2)));
        arena.remove(handles[1]);
        assert_eq!(arena.gaps, entry_bytes(key(2).len()));
        arena.remove(handles[1]);
        assert_eq!(arena.gaps, entry_bytes(key(2).len()), "what was removed twice is one gap");
    }

    /// An arena of some full chunks, with the handle of each entry by its number.
    fn chunks() -> (Arena, Vec<Handle>) {
        let mut arena = Arena::new(Arc::default());
        let handles = (0..8000).map(|number| arena.insert(&[7; 50], slot(number))).collect();
        assert!(arena.chunks.len() > 6);
        (arena, handles)
    }

    fn numbers_of(walk: Walk<u64>) -> Vec<u64> {
        let mut numbers = walk.into_picked();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_walk_sees_every_entry_although_some_are_moved_to_where_it_has_been() {
        let (mut arena, handles) = chunks();
        let pick = |_: &[u8], slot: Slot| Some(slot.seq());
        let mut walk = Walk::new();
        walk.step(&arena, pick);
        walk.step(&arena, pick);
        // All of the first chunk goes, and what is appended takes its number. Of a late chunk nearly all goes, and of the
        // others a third: so the rest of the late one moves, from where the walk has not been to where it has.
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
        assert!(arena.tidy(|_, old, new| moved.push((old.chunk(), new.chunk()))));
        assert_eq!(moved, [(late, first); 10]);
        while !walk.is_over() {
            walk.step(&arena, pick);
        }
        let beginnings = walk.beginnings;
        let mut seen = numbers_of(walk);
        // What came during the walk need not be seen.
        seen.retain(|&number| number != 9999);
        assert_eq!(seen.len(), kept.len());
        assert!(seen == kept, "an entry was missed or seen twice");
        assert_eq!(beginnings, 2);
    }

    #[test]
    fn a_walk_comes_to_an_end_however_often_entries_are_moved() {
        let (mut arena, _) = chunks();
        let mut walk = Walk::new();
        let mut steps = 0;
        while !walk.is_over() {
            arena.moves += 1;
            walk.step(&arena, |_, slot| Some(slot.seq()));
            steps += 1;
        }
        assert_eq!(steps, WALKS_APART + 1);
        assert_eq!(numbers_of(walk), (0..8000).collect::<Vec<_>>());
    }

    #[test]
    fn a_short_store_takes_little() {
        let mut arena = Arena::new(Arc::default());
        arena.insert(b"0123456789abcdef", slot(1));
        let capacity: usize = arena.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum();
        assert!(capacity <= 128, "{capacity} bytes for one entry");
    }
}
