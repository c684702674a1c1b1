//! The map of the keydir: sharded, each shard behind a lock of its own that is held for one call.
//!
//! Two implementations of one interface. The one in use is [`DashMap`]'s shards and tables, with the entries themselves in an
//! [`Arena`](super::arena::Arena) for each. Its locks are real ones, at which the schedule
//! explorer could neither switch nor see who waits; under the feature `__shuttle` there is a plain one of the explorer's
//! locks instead, so that what happens under a shard's lock is explored too.

pub(super) use imp::{Map, Walk};

use super::{KeyedSip, Slot};

#[cfg(not(feature = "__shuttle"))]
mod imp {
    use std::hash::BuildHasher;
    use std::sync::{Arc, PoisonError, RwLock};

    use dashmap::{DashMap, SharedValue};

    pub(in crate::keydir) use super::super::arena::Walk;
    use super::super::arena::{Arena, Handle};
    use super::super::chunk::Pool;
    use super::{KeyedSip, Slot};
    use crate::io::util::to_usize;
    use crate::sync::prefetch::prefetch;

    /// Look-ups under one hold of a shard's lock: a few microseconds.
    const LOCKED_LOOKUPS: usize = 32;

    /// So many parts, each of up to [`LOCKED_LOOKUPS`] keys of one shard, are asked for together: for groups of a few dozen
    /// keys, of which a shard has one. For groups of hundreds more would be better still, or fewer, by a little.
    const PARTS_ASKED_FOR: usize = 8;

    /// Bits of a key's hash that are kept with its place.
    const HASH_BITS: u32 = 64 - Handle::BITS;

    /// What the table holds of a key: a part of its hash, and where its entry is.
    ///
    /// The part serves twice. An entry is only looked at if it agrees, so almost never in vain; and a table that grows
    /// need not look at the entries at all, which would be a miss of the cache for each, under the shard's lock.
    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    struct Place(u64);

    impl Place {
        fn new(hash: u64, handle: Handle) -> Self {
            Self(hash << Handle::BITS | handle.bits())
        }

        fn handle(self) -> Handle {
            Handle::from_bits(self.0)
        }

        fn has_hash(self, hash: u64) -> bool {
            self.0 >> Handle::BITS == hash << Handle::BITS >> Handle::BITS
        }

        /// The hash the table goes by: it takes its place from the low bits, and a tag from the top seven.
        fn table_hash(self) -> u64 {
            table_hash(self.0 >> Handle::BITS)
        }
    }

    fn table_hash(hash: u64) -> u64 {
        hash << Handle::BITS | hash & ((1 << HASH_BITS) - 1)
    }

    /// So that neighbours do not share a cache line.
    #[repr(align(128))]
    struct Padded<T>(T);

    pub(in crate::keydir) struct Map {
        hasher: KeyedSip,
        /// A table of places for every shard, searched by [`table_hash`] and never by the map itself.
        places: DashMap<Place, (), KeyedSip>,
        /// The entries of every shard. Taken only under the lock of the shard's table, for reading under a read lock, for
        /// writing under a write lock: so nobody ever waits here.
        arenas: Box<[Padded<RwLock<Arena>>]>,
    }

    /// Where a table has the place of a hash, or nearly: a table that is not full has most of them within a few places of
    /// the one that its hash names, and eight share a line. Only to be asked for: that it lies there follows from how the
    /// table is made inside, which a later one may change.
    macro_rules! likely_place {
        ($table:expr, $hash:expr) => {
            $table.data_end().as_ptr().wrapping_sub((to_usize(table_hash($hash)) & ($table.buckets() - 1)) + 1)
        };
    }

    /// Asks for that line. The other one that a look-up needs, that of the tags, is asked for by the look-up itself, so that
    /// the two misses are one.
    macro_rules! prefetch_place {
        ($table:expr, $hash:expr) => {
            prefetch(likely_place!($table, $hash))
        };
    }

    /// Asks for the line of the tags, which lie behind the places.
    macro_rules! prefetch_tags {
        ($table:expr, $hash:expr) => {
            prefetch(
                $table
                    .data_end()
                    .as_ptr()
                    .cast::<u8>()
                    .wrapping_add(to_usize(table_hash($hash)) & ($table.buckets() - 1)),
            )
        };
    }

    /// Locks the table and the arena of a shard, for `read` or for `write`. Both are bound to names, so that the arena is let
    /// go of first, as locals are in the reverse of their order. A macro, since the table's type has no name here.
    macro_rules! lock {
        ($map:expr, $shard:expr, $mode:ident) => {{
            let table = $map.places.shards()[$shard].$mode();
            (table, $map.arenas[$shard].0.$mode().unwrap_or_else(PoisonError::into_inner))
        }};
    }

    /// The handle of a key in a locked shard.
    macro_rules! find {
        ($table:expr, $arena:expr, $hash:expr, $key:expr) => {
            $table
                .get(table_hash($hash), |(place, _)| place.has_hash($hash) && $arena.is_of(place.handle(), $key))
                .map(|(place, _)| place.handle())
        };
    }

    /// For each of some keys of a locked shard, the handle of whatever has its hash, most likely the key's own.
    ///
    /// A pass of its own over all of them, that of the entries being another: in a large keydir every step of a look-up
    /// misses the cache, and only steps that do not wait for each other can miss it together. Most of it was asked for
    /// before, but not where another held the shard for writing then.
    macro_rules! find_likely {
        ($table:expr, $hashes:expr, $indices:expr) => {{
            let mut likely = [None; LOCKED_LOOKUPS];
            for (handle, &index) in likely.iter_mut().zip($indices) {
                let hash = $hashes[index];
                let found = $table.get(table_hash(hash), |(place, _)| place.has_hash(hash));
                *handle = found.map(|(place, _)| place.handle());
            }
            likely.into_iter().zip($indices.iter().copied())
        }};
    }

    /// The handle of a key, given the likely one.
    macro_rules! find_given {
        ($table:expr, $arena:expr, $hash:expr, $key:expr, $likely:expr) => {
            match $likely {
                Some(handle) if !$arena.is_of(handle, $key) => find!($table, $arena, $hash, $key),
                likely => likely,
            }
        };
    }

    /// Runs `change` on the slot of a key that was `found` in a locked shard, or inserts `slot` and runs it on nothing.
    macro_rules! change_or_insert {
        ($table:expr, $arena:expr, $found:expr, $hash:expr, $key:expr, $slot:expr, $change:expr) => {
            if let Some(handle) = $found {
                let mut slot = $arena.slot(handle);
                let result = $change(slot.as_mut());
                if let Some(slot) = slot {
                    $arena.set(handle, slot);
                }
                result
            } else {
                let place = Place::new($hash, $arena.insert($key, $slot));
                $table.insert(table_hash($hash), (place, SharedValue::new(())), |(place, _)| place.table_hash());
                $change(None)
            }
        };
    }

    /// Removes the entry of a handle from a locked shard, and moves others so that its memory is given back in time.
    macro_rules! remove {
        ($map:expr, $table:expr, $arena:expr, $hash:expr, $handle:expr) => {
            $table.remove_entry(table_hash($hash), |(place, _)| place.handle() == $handle);
            $arena.remove($handle);
            $arena.tidy(|key, old, new| {
                let hash = $map.hasher.hash_one(key);
                if let Some((place, _)) = $table.get_mut(table_hash(hash), |(place, _)| place.handle() == old) {
                    *place = Place::new(hash, new);
                }
            });
        };
    }

    impl Map {
        pub(in crate::keydir) fn new(hasher: KeyedSip, shards: usize) -> Self {
            let places = DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher.clone(), shards);
            let pool = Arc::new(Pool::default());
            let arena = || Arena::new(Arc::clone(&pool));
            let arenas = places.shards().iter().map(|_| Padded(RwLock::new(arena()))).collect();
            Self { hasher, places, arenas }
        }

        /// The shard of a key by its hash. The bits that choose it are none of those its table goes by.
        fn shard_of(&self, hash: u64) -> usize {
            self.places.determine_shard(to_usize(hash))
        }

        /// Makes room for about so many keys in all, as far as there is memory for them.
        pub(in crate::keydir) fn reserve(&self, keys: usize) {
            let per_shard = keys / self.places.shards().len();
            for shard in self.places.shards() {
                // What is refused here will be asked for again, piece by piece, when it is needed.
                let _ = shard.write().try_reserve(per_shard, |(place, _)| place.table_hash());
            }
        }

        /// Gives back what the tables take beyond twice of what they need.
        pub(in crate::keydir) fn trim(&self) {
            for shard in self.places.shards() {
                let mut table = shard.write();
                let len = table.len();
                // A table is full at 7/8 and doubles: more than twice its keys is more than it can have grown to.
                if table.capacity() > 2 * len.max(4) {
                    table.shrink_to(len, |(place, _)| place.table_hash());
                }
            }
        }

        /// The slot of a key whose hash is known. Calls `meanwhile` while the key's entry is on its way.
        pub(in crate::keydir) fn get(&self, hash: u64, key: &[u8], meanwhile: impl Fn()) -> Option<Slot> {
            let (table, arena) = lock!(self, self.shard_of(hash), read);
            prefetch_place!(table, hash);
            let is_of_key = |handle: Handle| {
                arena.ask_for(handle);
                meanwhile();
                arena.is_of(handle, key)
            };
            let found = table.get(table_hash(hash), |(place, _)| place.has_hash(hash) && is_of_key(place.handle()));
            found.and_then(|(place, _)| arena.slot(place.handle()))
        }

        /// Asks for the lines in which the table has the place of a key. Waits for nothing: neither for them nor for a lock.
        pub(in crate::keydir) fn ask_for_place(&self, key: &[u8]) {
            let hash = self.hasher.hash_one(key);
            if let Some(table) = self.places.shards()[self.shard_of(hash)].try_read() {
                prefetch_tags!(table, hash);
                prefetch_place!(table, hash);
            }
        }

        /// Asks for the line of a key's entry, whose place should be there by now.
        pub(in crate::keydir) fn ask_for_entry(&self, key: &[u8]) {
            let hash = self.hasher.hash_one(key);
            let shard = self.shard_of(hash);
            if let Some(table) = self.places.shards()[shard].try_read()
                && let Some((place, _)) = table.get(table_hash(hash), |(place, _)| place.has_hash(hash))
                && let Ok(arena) = self.arenas[shard].0.try_read()
            {
                arena.ask_for(place.handle());
            }
        }

        /// Both steps for all keys of some parts, so that misses of many are one.
        fn ask_for_all(&self, hashes: &[u64], parts: &[(usize, &[usize])]) {
            for &(shard, indices) in parts {
                let Some(table) = self.places.shards()[shard].try_read() else { continue };
                for &index in indices {
                    prefetch_tags!(table, hashes[index]);
                    prefetch_place!(table, hashes[index]);
                }
            }
            for &(shard, indices) in parts {
                let Some(table) = self.places.shards()[shard].try_read() else { continue };
                let Ok(arena) = self.arenas[shard].0.try_read() else { continue };
                for &index in indices {
                    let hash = hashes[index];
                    if let Some((place, _)) = table.get(table_hash(hash), |(place, _)| place.has_hash(hash)) {
                        arena.ask_for(place.handle());
                    }
                }
            }
        }

        /// Runs `change` on the slot of `key`, or inserts `slot` and runs it on nothing, under the shard's lock.
        pub(in crate::keydir) fn change_or_insert<T>(
            &self,
            key: &[u8],
            slot: Slot,
            change: impl FnOnce(Option<&mut Slot>) -> T,
        ) -> T {
            let hash = self.hasher.hash_one(key);
            let (mut table, mut arena) = lock!(self, self.shard_of(hash), write);
            prefetch_place!(table, hash);
            change_or_insert!(table, arena, find!(table, arena, hash, key), hash, key, slot, change)
        }

        /// Calls `each` with the index of every key and its slot, if it has one, a shard at a time.
        pub(in crate::keydir) fn get_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut each: impl FnMut(usize, Option<Slot>),
        ) {
            self.shard_by_shard(hashes, |shard, indices| {
                let (table, arena) = lock!(self, shard, read);
                for (likely, index) in find_likely!(table, hashes, indices) {
                    let found = find_given!(table, arena, hashes[index], key(index), likely);
                    each(index, found.and_then(|handle| arena.slot(handle)));
                }
            });
        }

        /// Runs `change` on the slot of every key that has one, a shard at a time.
        pub(in crate::keydir) fn change_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut change: impl FnMut(usize, &mut Slot),
        ) {
            self.shard_by_shard(hashes, |shard, indices| {
                let (table, mut arena) = lock!(self, shard, write);
                for (likely, index) in find_likely!(table, hashes, indices) {
                    let found = find_given!(table, arena, hashes[index], key(index), likely);
                    let Some(handle) = found else { continue };
                    if let Some(mut slot) = arena.slot(handle) {
                        change(index, &mut slot);
                        arena.set(handle, slot);
                    }
                }
            });
        }

        /// For every key as [`change_or_insert`](Self::change_or_insert), a shard at a time, keys that are the same in
        /// their order.
        pub(in crate::keydir) fn change_or_insert_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            slot: impl Fn(usize) -> Slot,
            mut change: impl FnMut(usize, Option<&mut Slot>),
        ) {
            self.shard_by_shard(hashes, |shard, indices| {
                let (mut table, mut arena) = lock!(self, shard, write);
                let mut likely = [None; LOCKED_LOOKUPS];
                for (sure, (handle, index)) in likely.iter_mut().zip(find_likely!(table, hashes, indices)) {
                    *sure = handle.filter(|&handle| arena.is_of(handle, key(index)));
                }
                for (likely, &index) in likely.into_iter().zip(indices) {
                    let (hash, key) = (hashes[index], key(index));
                    // One of the keys before may have been the same.
                    let found = likely.or_else(|| find!(table, arena, hash, key));
                    let mut change = |found: Option<&mut Slot>| change(index, found);
                    change_or_insert!(table, arena, found, hash, key, slot(index), change);
                }
            });
        }

        /// Sorts the indices of `hashes` by shard and hands them on, some of one shard at a time: nobody is kept from a
        /// shard for longer than that takes, or than to ask for what they will be looked for in.
        fn shard_by_shard(&self, hashes: &[u64], mut some: impl FnMut(usize, &[usize])) {
            let mut ends = vec![0; self.arenas.len() + 1];
            hashes.iter().for_each(|&hash| ends[self.shard_of(hash) + 1] += 1);
            for shard in 1..ends.len() {
                ends[shard] += ends[shard - 1];
            }
            // Until now they are where each shard's indices begin.
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
            for parts in parts.chunks(PARTS_ASKED_FOR) {
                self.ask_for_all(hashes, parts);
                parts.iter().for_each(|&(shard, indices)| some(shard, indices));
            }
        }

        pub(in crate::keydir) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(Slot) -> bool) {
            let hash = self.hasher.hash_one(key);
            let (mut table, mut arena) = lock!(self, self.shard_of(hash), write);
            let Some(handle) = find!(table, arena, hash, key) else { return };
            if arena.slot(handle).is_some_and(is_due) {
                remove!(self, table, arena, hash, handle);
            }
        }

        pub(in crate::keydir) fn retain(&self, mut stays: impl FnMut(Slot) -> bool) {
            for shard in 0..self.arenas.len() {
                let mut doomed: Vec<Vec<u8>> = Vec::new();
                {
                    let (_table, arena) = lock!(self, shard, read);
                    arena.for_each(|key, slot| {
                        if !stays(slot) {
                            doomed.push(key.to_vec());
                        }
                    });
                }
                for key in doomed {
                    self.remove_if(&key, |slot| !stays(slot));
                }
            }
        }

        pub(in crate::keydir) fn for_each(&self, mut each: impl FnMut(&[u8], Slot)) {
            for shard in 0..self.arenas.len() {
                let (_table, arena) = lock!(self, shard, read);
                arena.for_each(&mut each);
            }
        }

        pub(in crate::keydir) fn shards(&self) -> usize {
            self.arenas.len()
        }

        /// Goes on with the walk over a shard, by one chunk of its entries.
        pub(in crate::keydir) fn step<T>(
            &self,
            shard: usize,
            walk: &mut Walk<T>,
            pick: impl FnMut(&[u8], Slot) -> Option<T>,
        ) {
            let (_table, arena) = lock!(self, shard, read);
            walk.step(&arena, pick);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::keydir::Location;

        /// A wrong line would be asked for in vain and nobody would notice.
        #[test]
        fn most_places_are_in_the_line_that_is_asked_for() {
            let map = Map::new(KeyedSip(1, 2), 4);
            let keys = || (0..20_000_u64).map(u64::to_be_bytes);
            for key in keys() {
                let slot = Slot::new(1, false, Location::new(1, 8, 1).unwrap());
                map.change_or_insert(&key, slot, |_| ());
            }
            let mut near = 0;
            for key in keys() {
                let hash = map.hasher.hash_one(key);
                let (table, arena) = lock!(map, map.shard_of(hash), read);
                let place = table.get(table_hash(hash), |(place, _)| arena.is_of(place.handle(), &key)).unwrap();
                let line = |address: usize| address / 64;
                near += u32::from(line(likely_place!(table, hash).addr()) == line(std::ptr::from_ref(place).addr()));
            }
            println!("{near} of 20000 places in the line that is asked for");
            assert!(near > 14_000, "{near}");
        }

        #[test]
        fn who_asks_ahead_waits_for_no_lock_and_changes_nothing() {
            let map = Map::new(KeyedSip(1, 2), 2);
            let slot = |number| Slot::new(number, false, Location::new(1, 8, 1).unwrap());
            for key in [&b"absent in an empty table"[..], b"there"] {
                map.ask_for_place(key);
                map.ask_for_entry(key);
            }
            map.change_or_insert(b"there", slot(7), |_| ());
            for key in [&b"absent"[..], b"there"] {
                map.ask_for_place(key);
                map.ask_for_entry(key);
            }
            let get = |key: &[u8]| map.get(map.hasher.hash_one(key), key, || ());
            assert_eq!(get(b"there").map(Slot::word), Some(slot(7).word()));
            assert!(get(b"absent").is_none());
            let _locked = lock!(map, map.shard_of(map.hasher.hash_one(&b"there"[..])), write);
            // This thread has the locks itself: to wait for one would be for ever.
            map.ask_for_place(b"there");
            map.ask_for_entry(b"there");
            let hash = map.hasher.hash_one(&b"there"[..]);
            map.ask_for_all(&[hash], &[(map.shard_of(hash), &[0][..])]);
        }
    }
}

#[cfg(feature = "__shuttle")]
mod imp {
    use std::collections::HashMap;
    use std::hash::BuildHasher;
    use std::sync::PoisonError;

    use super::{KeyedSip, Slot};
    use crate::sync::RwLock;

    /// Each shard is a place to switch at for whoever visits all of them, and more than a few show nothing new.
    const SHARDS_MAX: usize = 4;

    type Shard = RwLock<HashMap<Box<[u8]>, Slot, KeyedSip>>;

    pub(in crate::keydir) struct Map {
        hasher: KeyedSip,
        shards: Vec<Shard>,
    }

    /// A walk over the entries of a shard, in one step.
    pub(in crate::keydir) struct Walk<T> {
        is_over: bool,
        picked: Vec<T>,
    }

    impl<T> Walk<T> {
        pub(in crate::keydir) fn new() -> Self {
            Self { is_over: false, picked: Vec::new() }
        }

        pub(in crate::keydir) fn is_over(&self) -> bool {
            self.is_over
        }

        pub(in crate::keydir) fn into_picked(self) -> Vec<T> {
            self.picked
        }
    }

    impl Map {
        pub(in crate::keydir) fn new(hasher: KeyedSip, shards: usize) -> Self {
            let shards =
                (0..shards.min(SHARDS_MAX)).map(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))).collect();
            Self { hasher, shards }
        }

        /// The map the explorer knows has nothing to gain from it.
        pub(in crate::keydir) fn reserve(&self, _keys: usize) {}

        pub(in crate::keydir) fn trim(&self) {}

        pub(in crate::keydir) fn ask_for_place(&self, _key: &[u8]) {}

        pub(in crate::keydir) fn ask_for_entry(&self, _key: &[u8]) {}

        fn shard(&self, key: &[u8]) -> &Shard {
            let hash = crate::io::util::to_usize(self.hasher.hash_one(key));
            &self.shards[hash % self.shards.len()]
        }

        pub(in crate::keydir) fn get(&self, _hash: u64, key: &[u8], meanwhile: impl Fn()) -> Option<Slot> {
            meanwhile();
            self.slot(key)
        }

        fn slot(&self, key: &[u8]) -> Option<Slot> {
            self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
        }

        pub(in crate::keydir) fn change_or_insert<T>(
            &self,
            key: &[u8],
            slot: Slot,
            change: impl FnOnce(Option<&mut Slot>) -> T,
        ) -> T {
            let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
            if let Some(occupied) = shard.get_mut(key) {
                return change(Some(occupied));
            }
            shard.insert(key.into(), slot);
            change(None)
        }

        pub(in crate::keydir) fn get_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut each: impl FnMut(usize, Option<Slot>),
        ) {
            (0..hashes.len()).for_each(|index| each(index, self.slot(key(index))));
        }

        pub(in crate::keydir) fn change_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut change: impl FnMut(usize, &mut Slot),
        ) {
            for index in 0..hashes.len() {
                let mut shard = self.shard(key(index)).write().unwrap_or_else(PoisonError::into_inner);
                if let Some(slot) = shard.get_mut(key(index)) {
                    change(index, slot);
                }
            }
        }

        pub(in crate::keydir) fn change_or_insert_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            slot: impl Fn(usize) -> Slot,
            mut change: impl FnMut(usize, Option<&mut Slot>),
        ) {
            for index in 0..hashes.len() {
                self.change_or_insert(key(index), slot(index), |found| change(index, found));
            }
        }

        pub(in crate::keydir) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(Slot) -> bool) {
            let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
            if shard.get(key).copied().is_some_and(is_due) {
                shard.remove(key);
            }
        }

        pub(in crate::keydir) fn retain(&self, mut stays: impl FnMut(Slot) -> bool) {
            for shard in &self.shards {
                shard.write().unwrap_or_else(PoisonError::into_inner).retain(|_, slot| stays(*slot));
            }
        }

        pub(in crate::keydir) fn for_each(&self, mut each: impl FnMut(&[u8], Slot)) {
            for shard in &self.shards {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                shard.iter().for_each(|(key, slot)| each(key, *slot));
            }
        }

        pub(in crate::keydir) fn shards(&self) -> usize {
            self.shards.len()
        }

        pub(in crate::keydir) fn step<T>(
            &self,
            shard: usize,
            walk: &mut Walk<T>,
            mut pick: impl FnMut(&[u8], Slot) -> Option<T>,
        ) {
            let shard = self.shards[shard].read().unwrap_or_else(PoisonError::into_inner);
            walk.picked = shard.iter().filter_map(|(key, slot)| pick(key, *slot)).collect();
            walk.is_over = true;
        }
    }
}
