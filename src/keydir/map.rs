//! The map from keys to slots: sharded, with one lock per shard that is held for one call.
//!
//! A shard is a hash table of handles ([`table`]) and an [`Arena`] with the entries. The shards, their
//! tables and the tables' locks are [`DashMap`]'s. The schedule explorer cannot see those locks, so the feature
//! `shuttle` replaces this module with `shuttle_map`, which has the same interface.
//!
//! # Locks
//!
//! A shard has two locks: the table's, and the arena's. The arena's lock is only taken under the table's, for reading
//! under a read lock and for writing under a write lock, so no thread ever waits for it.
//!
//! # Many keys at once
//!
//! [`Map::get_many`], [`Map::change_many`] and [`Map::change_or_insert_many`] sort their keys by shard and take each
//! shard's lock once for up to [`LOCKED_LOOKUPS`] keys. In a large keydir every step of a lookup misses the CPU cache.
//! Steps of different keys do not depend on each other, so the functions make one pass over all keys per step, and the
//! misses of a pass overlap.

use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dashmap::DashMap;

use super::arena::{Arena, ArenaScan, EntryHandle};
use super::chunk::ChunkPool;
use super::key::KeyedSip;
use super::location::KeydirSlot;
use super::table::{self, HandleTable, HashedHandle};
use crate::io::util::to_usize;

/// Look-ups under one hold of a shard's lock: a few microseconds.
const LOCKED_LOOKUPS: usize = 32;

/// Parts, each of up to [`LOCKED_LOOKUPS`] keys of one shard, that are prefetched together. Chosen for groups of a few
/// dozen keys, where each part has one key. Groups of hundreds would gain slightly from another value.
const PREFETCHED_PARTS: usize = 8;

/// Aligned so that the locks of neighbouring shards do not share a cache line.
#[repr(align(128))]
struct ArenaLock(RwLock<Arena>);

pub(super) struct Map {
    hasher: KeyedSip,
    /// The table of each shard. Accessed only through the raw shards, never through the map's own lookups.
    tables: DashMap<HashedHandle, (), KeyedSip>,
    /// The entries of each shard.
    arenas: Box<[ArenaLock]>,
}

/// A shard locked for reading. Fields are dropped in order, so the arena is unlocked first.
struct ReadShard<'a> {
    arena: RwLockReadGuard<'a, Arena>,
    table: dashmap::RwLockReadGuard<'a, HandleTable>,
}

/// A shard locked for writing. Fields are dropped in order, so the arena is unlocked first.
struct WriteShard<'a> {
    arena: RwLockWriteGuard<'a, Arena>,
    table: dashmap::RwLockWriteGuard<'a, HandleTable>,
}

impl WriteShard<'_> {
    /// Runs `change` on the slot of the entry that was `found` for `key`. If none was, inserts `slot` and runs `change`
    /// on `None`.
    #[inline]
    fn change_or_insert<T>(
        &mut self,
        found: Option<EntryHandle>,
        (hash, key): (u64, &[u8]),
        slot: KeydirSlot,
        change: impl FnOnce(Option<&mut KeydirSlot>) -> T,
    ) -> T {
        if let Some(handle) = found {
            let mut slot = self.arena.slot(handle);
            let result = change(slot.as_mut());
            if let Some(slot) = slot {
                self.arena.set(handle, slot);
            }
            result
        } else {
            let handle = self.arena.insert(key, slot);
            table::insert(&mut self.table, hash, handle);
            change(None)
        }
    }

    /// Removes an entry, and lets the arena move others to reclaim its gaps.
    fn remove(&mut self, hasher: &KeyedSip, hash: u64, handle: EntryHandle) {
        let Self { arena, table } = self;
        table::remove(table, hash, handle);
        arena.remove(handle);
        arena.reclaim_gaps(|key, old, new| table::replace(table, hasher.hash_one(key), old, new));
    }
}

impl Map {
    pub(super) fn new(hasher: KeyedSip, shards: usize) -> Self {
        let tables = DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher.clone(), shards);
        let pool = Arc::new(ChunkPool::default());
        let arena = || Arena::new(Arc::clone(&pool));
        let arenas = tables.shards().iter().map(|_| ArenaLock(RwLock::new(arena()))).collect();
        Self { hasher, tables, arenas }
    }

    /// The shard of a key. It follows from bits of the hash that the shard's table does not use.
    #[inline]
    fn shard_of(&self, hash: u64) -> usize {
        self.tables.determine_shard(to_usize(hash))
    }

    // Compiled out of line, the lock functions cost 43 more instructions per get.
    #[inline(always)]
    fn read_shard(&self, shard: usize) -> ReadShard<'_> {
        let table = self.tables.shards()[shard].read();
        ReadShard { arena: self.arenas[shard].0.read().unwrap_or_else(PoisonError::into_inner), table }
    }

    #[inline(always)]
    fn write_shard(&self, shard: usize) -> WriteShard<'_> {
        let table = self.tables.shards()[shard].write();
        WriteShard { arena: self.arenas[shard].0.write().unwrap_or_else(PoisonError::into_inner), table }
    }

    // ---- one key --------------------------------------------------------------------------------------------------

    /// The slot of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<KeydirSlot> {
        let hash = self.hasher.hash_one(key);
        let ReadShard { arena, table } = &self.read_shard(self.shard_of(hash));
        table::prefetch_slot(table, hash);
        table::find(table, arena, hash, key).and_then(|handle| arena.slot(handle))
    }

    /// Runs `change` on the slot of `key`, or inserts `slot` and runs `change` on `None`, under the shard's lock.
    pub(super) fn change_or_insert<T>(
        &self,
        key: &[u8],
        slot: KeydirSlot,
        change: impl FnOnce(Option<&mut KeydirSlot>) -> T,
    ) -> T {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.write_shard(self.shard_of(hash));
        table::prefetch_slot(&shard.table, hash);
        let found = table::find(&shard.table, &shard.arena, hash, key);
        shard.change_or_insert(found, (hash, key), slot, change)
    }

    /// Removes the entry of `key` if its slot `is_due`.
    pub(super) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(KeydirSlot) -> bool) {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.write_shard(self.shard_of(hash));
        let Some(handle) = table::find(&shard.table, &shard.arena, hash, key) else { return };
        if shard.arena.slot(handle).is_some_and(is_due) {
            shard.remove(&self.hasher, hash, handle);
        }
    }

    // ---- prefetching: waits neither for a lock nor for memory -------------------------------------------------------

    /// Prefetches the table's cache lines for `key`.
    pub(super) fn prefetch_slot(&self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        if let Some(table) = self.tables.shards()[self.shard_of(hash)].try_read() {
            table::prefetch_tags(&table, hash);
            table::prefetch_slot(&table, hash);
        }
    }

    /// Prefetches the arena entry of `key`. Reads the table, whose cache lines should have arrived.
    pub(super) fn prefetch_entry(&self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard_of(hash);
        if let Some(table) = self.tables.shards()[shard].try_read()
            && let Some(handle) = table::find_by_hash(&table, hash)
            && let Ok(arena) = self.arenas[shard].0.try_read()
        {
            arena.prefetch(handle);
        }
    }

    /// Prefetches the table lines of all keys of some parts, then their arena entries.
    fn prefetch_all(&self, hashes: &[u64], parts: &[(usize, &[usize])]) {
        for &(shard, indices) in parts {
            let Some(table) = self.tables.shards()[shard].try_read() else { continue };
            for &index in indices {
                table::prefetch_tags(&table, hashes[index]);
                table::prefetch_slot(&table, hashes[index]);
            }
        }
        for &(shard, indices) in parts {
            let Some(table) = self.tables.shards()[shard].try_read() else { continue };
            let Ok(arena) = self.arenas[shard].0.try_read() else { continue };
            for &index in indices {
                if let Some(handle) = table::find_by_hash(&table, hashes[index]) {
                    arena.prefetch(handle);
                }
            }
        }
    }

    // ---- many keys ------------------------------------------------------------------------------------------------

    /// Calls `each` with the index of every key and its slot, if it has one, one shard at a time.
    pub(super) fn get_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        mut each: impl FnMut(usize, Option<KeydirSlot>),
    ) {
        self.for_each_part(hashes, |shard, indices| {
            let ReadShard { arena, table } = &self.read_shard(shard);
            for (likely, &index) in find_by_hashes(table, hashes, indices).into_iter().zip(indices) {
                let found = table::confirm(table, arena, hashes[index], key(index), likely);
                each(index, found.and_then(|handle| arena.slot(handle)));
            }
        });
    }

    /// Runs `change` on the slot of every key that has one, one shard at a time.
    pub(super) fn change_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        mut change: impl FnMut(usize, &mut KeydirSlot),
    ) {
        self.for_each_part(hashes, |shard, indices| {
            let WriteShard { arena, table } = &mut self.write_shard(shard);
            for (likely, &index) in find_by_hashes(table, hashes, indices).into_iter().zip(indices) {
                let found = table::confirm(table, arena, hashes[index], key(index), likely);
                let Some(handle) = found else { continue };
                if let Some(mut slot) = arena.slot(handle) {
                    change(index, &mut slot);
                    arena.set(handle, slot);
                }
            }
        });
    }

    /// Does for every key what [`change_or_insert`](Self::change_or_insert) does, one shard at a time. Equal keys keep
    /// their order.
    pub(super) fn change_or_insert_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        slot: impl Fn(usize) -> KeydirSlot,
        mut change: impl FnMut(usize, Option<&mut KeydirSlot>),
    ) {
        self.for_each_part(hashes, |shard, indices| {
            let mut shard = self.write_shard(shard);
            let mut confirmed = find_by_hashes(&shard.table, hashes, indices);
            for (likely, &index) in confirmed.iter_mut().zip(indices) {
                *likely = likely.filter(|&handle| shard.arena.holds_key(handle, key(index)));
            }
            for (confirmed, &index) in confirmed.into_iter().zip(indices) {
                let (hash, key) = (hashes[index], key(index));
                // An equal key earlier in this part may have inserted the entry.
                let found = confirmed.or_else(|| table::find(&shard.table, &shard.arena, hash, key));
                shard.change_or_insert(found, (hash, key), slot(index), |found| change(index, found));
            }
        });
    }

    /// Sorts the indices of `hashes` by shard, and calls `run` with parts of up to [`LOCKED_LOOKUPS`] indices of one
    /// shard. So no other thread waits for a shard's lock for longer than one part takes.
    fn for_each_part(&self, hashes: &[u64], mut run: impl FnMut(usize, &[usize])) {
        let mut ends = vec![0; self.arenas.len() + 1];
        hashes.iter().for_each(|&hash| ends[self.shard_of(hash) + 1] += 1);
        for shard in 1..ends.len() {
            ends[shard] += ends[shard - 1];
        }
        // At this point, `ends` has where each shard's indices begin.
        let mut order = vec![0; hashes.len()];
        for (index, &hash) in hashes.iter().enumerate() {
            let end = &mut ends[self.shard_of(hash)];
            order[*end] = index;
            *end += 1;
        }
        let mut begin = 0;
        let mut parts = Vec::with_capacity(ends.len());
        for (shard, &end) in ends.iter().enumerate().take(self.arenas.len()) {
            parts.extend(order[begin..end].chunks(LOCKED_LOOKUPS).map(|indices| (shard, indices)));
            begin = end;
        }
        for parts in parts.chunks(PREFETCHED_PARTS) {
            self.prefetch_all(hashes, parts);
            parts.iter().for_each(|&(shard, indices)| run(shard, indices));
        }
    }

    // ---- all keys -------------------------------------------------------------------------------------------------

    /// Makes room for about `keys` keys in all, as far as memory allows.
    pub(super) fn reserve(&self, keys: usize) {
        let per_shard = keys / self.tables.shards().len();
        self.tables.shards().iter().for_each(|shard| table::reserve(&mut shard.write(), per_shard));
    }

    /// Frees table capacity beyond twice of what the keys need.
    pub(super) fn trim(&self) {
        self.tables.shards().iter().for_each(|shard| table::trim(&mut shard.write()));
    }

    /// Bytes of memory that the tables and the entries take.
    pub(super) fn held_bytes(&self) -> usize {
        let bytes_of = |shard| {
            let ReadShard { table, arena, .. } = self.read_shard(shard);
            table.allocation_info().1.size() + arena.held_bytes()
        };
        (0..self.arenas.len()).map(bytes_of).sum()
    }

    /// Removes every entry whose slot does not pass `stays`.
    pub(super) fn retain(&self, mut stays: impl FnMut(KeydirSlot) -> bool) {
        for shard in 0..self.arenas.len() {
            let mut doomed: Vec<Vec<u8>> = Vec::new();
            self.read_shard(shard).arena.for_each(|key, slot| {
                if !stays(slot) {
                    doomed.push(key.to_vec());
                }
            });
            for key in doomed {
                self.remove_if(&key, |slot| !stays(slot));
            }
        }
    }

    /// Calls `each` with every key and its slot, under the shard's lock.
    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], KeydirSlot)) {
        for shard in 0..self.arenas.len() {
            self.read_shard(shard).arena.for_each(&mut each);
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.arenas.len()
    }

    /// Continues the scan of a shard by one chunk of its entries.
    pub(super) fn advance_scan<T>(
        &self,
        shard: usize,
        scan: &mut ArenaScan<T>,
        pick: impl FnMut(&[u8], KeydirSlot) -> Option<T>,
    ) {
        scan.advance(&self.read_shard(shard).arena, pick);
    }
}

/// For each of up to [`LOCKED_LOOKUPS`] keys of one shard, the handle that [`table::find_by_hash`] finds.
#[inline]
fn find_by_hashes(table: &HandleTable, hashes: &[u64], indices: &[usize]) -> [Option<EntryHandle>; LOCKED_LOOKUPS] {
    let mut likely = [None; LOCKED_LOOKUPS];
    for (handle, &index) in likely.iter_mut().zip(indices) {
        *handle = table::find_by_hash(table, hashes[index]);
    }
    likely
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keydir::location::Location;

    #[test]
    fn prefetching_waits_for_no_lock_and_changes_nothing() {
        let map = Map::new(KeyedSip(1, 2), 2);
        let slot = |number| KeydirSlot::new(number, false, Location::new(1, 8, 1).unwrap());
        for key in [&b"absent in an empty table"[..], b"there"] {
            map.prefetch_slot(key);
            map.prefetch_entry(key);
        }
        map.change_or_insert(b"there", slot(7), |_| ());
        for key in [&b"absent"[..], b"there"] {
            map.prefetch_slot(key);
            map.prefetch_entry(key);
        }
        assert_eq!(map.get(b"there").map(KeydirSlot::word), Some(slot(7).word()));
        assert!(map.get(b"absent").is_none());
        // This thread holds the locks, so waiting for one would be a deadlock.
        let hash = map.hasher.hash_one(&b"there"[..]);
        let _locked = map.write_shard(map.shard_of(hash));
        map.prefetch_slot(b"there");
        map.prefetch_entry(b"there");
        map.prefetch_all(&[hash], &[(map.shard_of(hash), &[0][..])]);
    }
}
