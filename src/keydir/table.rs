//! The hash table of one shard: from a key's hash to the handle of the key's entry in the shard's arena.
//!
//! The table stores eight bytes per key, a [`HashedHandle`]; the keys themselves are in the arena. The functions here
//! work on the raw table of a [`DashMap`](dashmap::DashMap) shard, which the caller has locked.
//!
//! # Cache misses
//!
//! In a large keydir, one lookup misses the CPU cache three times: at the table's control bytes (hashbrown's tags), at
//! the table slot, and at the arena entry. The address of the first two follows from the hash, so they can be
//! prefetched together. The third is known once the slot has been read.

use dashmap::SharedValue;
use hashbrown::raw::RawTable;

use super::arena::{Arena, EntryHandle};
use crate::io::util::to_usize;
use crate::sync::prefetch::prefetch;

/// The table inside a shard of a `DashMap<HashedHandle, ()>`.
pub(super) type HandleTable = RawTable<(HashedHandle, SharedValue<()>)>;

/// Bits of a key's hash that are stored next to its handle.
const HASH_BITS: u32 = 64 - EntryHandle::BITS;

/// What the table stores for a key: the low bits of its hash, and the handle of its entry.
///
/// The hash bits serve two purposes. A lookup reads an entry only if they match, so it almost never reads a wrong one.
/// And a table that grows rehashes from them without reading the entries, which would be one cache miss per key under
/// the shard's lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HashedHandle(u64);

impl HashedHandle {
    fn new(hash: u64, handle: EntryHandle) -> Self {
        Self(hash << EntryHandle::BITS | handle.bits())
    }

    fn handle(self) -> EntryHandle {
        EntryHandle::from_bits(self.0)
    }

    fn has_hash(self, hash: u64) -> bool {
        self.0 >> EntryHandle::BITS == hash << EntryHandle::BITS >> EntryHandle::BITS
    }

    fn table_hash(self) -> u64 {
        table_hash(self.0 >> EntryHandle::BITS)
    }
}

/// The hash that the table uses. It takes the slot from the low bits and the tag from the top seven, so both are made
/// of the bits that [`HashedHandle`] keeps.
fn table_hash(hash: u64) -> u64 {
    hash << EntryHandle::BITS | hash & ((1 << HASH_BITS) - 1)
}

/// The handle of the first entry with this hash that `is_wanted`.
#[inline]
fn find_with(table: &HandleTable, hash: u64, is_wanted: impl Fn(EntryHandle) -> bool) -> Option<EntryHandle> {
    let found = table.get(table_hash(hash), |(hashed, _)| hashed.has_hash(hash) && is_wanted(hashed.handle()));
    found.map(|(hashed, _)| hashed.handle())
}

/// The handle of `key`.
#[inline]
pub(super) fn find(table: &HandleTable, arena: &Arena, hash: u64, key: &[u8]) -> Option<EntryHandle> {
    find_with(table, hash, |handle| arena.holds_key(handle, key))
}

/// The handle of some key with this hash, most likely the only one. Does not read the arena.
#[inline]
pub(super) fn find_by_hash(table: &HandleTable, hash: u64) -> Option<EntryHandle> {
    find_with(table, hash, |_| true)
}

/// The handle of `key`, given the result of [`find_by_hash`].
#[inline]
pub(super) fn confirm(
    table: &HandleTable,
    arena: &Arena,
    hash: u64,
    key: &[u8],
    likely: Option<EntryHandle>,
) -> Option<EntryHandle> {
    match likely {
        Some(handle) if !arena.holds_key(handle, key) => find(table, arena, hash, key),
        likely => likely,
    }
}

/// Adds the handle of a key that the table does not have.
#[inline]
pub(super) fn insert(table: &mut HandleTable, hash: u64, handle: EntryHandle) {
    let hashed = HashedHandle::new(hash, handle);
    table.insert(table_hash(hash), (hashed, SharedValue::new(())), |(hashed, _)| hashed.table_hash());
}

/// Removes a handle.
#[inline]
pub(super) fn remove(table: &mut HandleTable, hash: u64, handle: EntryHandle) {
    table.remove_entry(table_hash(hash), |(hashed, _)| hashed.handle() == handle);
}

/// Replaces the handle of an entry that the arena has moved.
#[inline]
pub(super) fn replace(table: &mut HandleTable, hash: u64, old: EntryHandle, new: EntryHandle) {
    if let Some((hashed, _)) = table.get_mut(table_hash(hash), |(hashed, _)| hashed.handle() == old) {
        *hashed = HashedHandle::new(hash, new);
    }
}

/// Makes room for `additional` keys. If the allocation fails the table is unchanged and grows later, on demand.
pub(super) fn reserve(table: &mut HandleTable, additional: usize) {
    let _ = table.try_reserve(additional, |(hashed, _)| hashed.table_hash());
}

/// Shrinks a table that has more than twice the capacity it needs.
pub(super) fn trim(table: &mut HandleTable) {
    let len = table.len();
    // A table doubles when it is 7/8 full, so it cannot have grown to more than twice its keys.
    if table.capacity() > 2 * len.max(4) {
        table.shrink_to(len, |(hashed, _)| hashed.table_hash());
    }
}

/// The address of the slot that a hash maps to. The key's slot is there or a few slots further, in most cases in the
/// same cache line, which holds eight slots. For prefetching only: the address follows from hashbrown's internal
/// layout, which another version may change.
#[inline]
fn likely_slot(table: &HandleTable, hash: u64) -> *const u8 {
    table.data_end().as_ptr().wrapping_sub((to_usize(table_hash(hash)) & (table.buckets() - 1)) + 1).cast()
}

/// Prefetches the slot of a hash. The lookup itself reads the tags first, so both misses overlap.
#[inline]
pub(super) fn prefetch_slot(table: &HandleTable, hash: u64) {
    prefetch(likely_slot(table, hash));
}

/// Prefetches the tags of a hash, which lie behind the slots.
#[inline]
pub(super) fn prefetch_tags(table: &HandleTable, hash: u64) {
    let tags = table.data_end().as_ptr().cast::<u8>();
    prefetch(tags.wrapping_add(to_usize(table_hash(hash)) & (table.buckets() - 1)));
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;
    use std::sync::Arc;

    use super::*;
    use crate::keydir::key::KeyedSip;
    use crate::keydir::location::{KeydirSlot, Location};

    /// Nothing but speed depends on the prefetched line, so only this test notices when it is the wrong one.
    #[test]
    fn most_slots_lie_in_the_prefetched_line() {
        let (mut table, mut arena) = (HandleTable::new(), Arena::new(Arc::default()));
        let slot = KeydirSlot::new(1, false, Location::new(1, 8, 1).unwrap());
        let hash = |number: u64| KeyedSip(1, 2).hash_one(number);
        for number in 0..5000_u64 {
            insert(&mut table, hash(number), arena.insert(&number.to_be_bytes(), slot));
        }
        let mut near = 0;
        for number in 0..5000_u64 {
            let is_wanted = |(hashed, _): &(HashedHandle, _)| arena.holds_key(hashed.handle(), &number.to_be_bytes());
            let slot = table.get(table_hash(hash(number)), is_wanted).unwrap();
            let line = |address: usize| address / 64;
            near += u32::from(line(likely_slot(&table, hash(number)).addr()) == line(std::ptr::from_ref(slot).addr()));
        }
        println!("{near} of 5000 slots in the prefetched line");
        assert!(near > 3500, "{near}");
    }
}
