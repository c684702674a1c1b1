//! The map of the keydir: sharded, each shard behind a lock of its own that is held for one call.
//!
//! Two implementations of one interface. [`DashMap`] is the one in use. Its locks are real ones, at which the schedule
//! explorer could neither switch nor see who waits; under the feature `shuttle` there is a plain one of the explorer's
//! locks instead, so that what happens under a shard's lock is explored too.

pub(super) use imp::Map;

use super::{Key, KeyedSip, Slot};

#[cfg(not(feature = "shuttle"))]
mod imp {
    use std::hash::BuildHasher;

    use dashmap::mapref::entry::Entry;
    use dashmap::{DashMap, SharedValue};

    use super::{Key, KeyedSip, Slot};
    use crate::io::util::to_usize;

    /// Look-ups under one hold of a shard's lock: a few microseconds.
    const LOCKED_LOOKUPS: usize = 32;

    pub(in crate::keydir) struct Map(DashMap<Key, Slot, KeyedSip>);

    impl Map {
        pub(in crate::keydir) fn new(hasher: KeyedSip, shards: usize) -> Self {
            Self(DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, shards))
        }

        /// Makes room for about so many keys in all, as far as there is memory for them.
        pub(in crate::keydir) fn reserve(&self, keys: usize) {
            let per_shard = keys / self.0.shards().len();
            for shard in self.0.shards() {
                // What is refused here will be asked for again, piece by piece, when it is needed.
                let _ = shard.write().try_reserve(per_shard, |(key, _)| self.0.hasher().hash_one(key));
            }
        }

        /// Gives back what the map takes beyond twice of what it needs.
        pub(in crate::keydir) fn trim(&self) {
            for shard in self.0.shards() {
                let mut table = shard.write();
                let len = table.len();
                // A table is full at 7/8 and doubles: more than twice its keys is more than it can have grown to.
                if table.capacity() > 2 * len.max(4) {
                    table.shrink_to(len, |(key, _)| self.0.hasher().hash_one(key));
                }
            }
        }

        pub(in crate::keydir) fn get(&self, key: &[u8]) -> Option<Slot> {
            self.0.get(key).map(|slot| *slot)
        }

        /// Runs `change` on the slot of `key`, if there is one.
        pub(in crate::keydir) fn change<T>(&self, key: &[u8], change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
            self.0.get_mut(key).map(|mut slot| change(&mut slot))
        }

        /// Runs `change` on the slot of `key`, or inserts `slot` and runs `inserted`, under the shard's lock.
        pub(in crate::keydir) fn change_or_insert<T>(
            &self,
            key: Key,
            slot: Slot,
            change: impl FnOnce(&mut Slot) -> T,
            inserted: impl FnOnce() -> T,
        ) -> T {
            match self.0.entry(key) {
                Entry::Occupied(mut occupied) => change(occupied.get_mut()),
                Entry::Vacant(vacant) => {
                    let _guard = vacant.insert(slot);
                    inserted()
                }
            }
        }

        /// Calls `each` with the index of every key and its slot, if it has one, a shard at a time.
        pub(in crate::keydir) fn get_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut each: impl FnMut(usize, Option<&Slot>),
        ) {
            self.shard_by_shard(hashes, |shard, indices| {
                let Some(shard) = self.0.shards().get(shard) else { return };
                let table = shard.read();
                for &(_, index) in indices {
                    let hash = hashes.get(index).copied().unwrap_or_default();
                    let found = table.get(hash, |(candidate, _)| candidate.as_slice() == key(index));
                    each(index, found.map(|(_, slot)| slot.get()));
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
                let Some(shard) = self.0.shards().get(shard) else { return };
                let mut table = shard.write();
                for &(_, index) in indices {
                    let hash = hashes.get(index).copied().unwrap_or_default();
                    let found = table.get_mut(hash, |(candidate, _)| candidate.as_slice() == key(index));
                    if let Some((_, slot)) = found {
                        change(index, slot.get_mut());
                    }
                }
            });
        }

        /// Runs `change` on the slot of every key that has one and inserts `slot` for the others, a shard at a time, keys
        /// that are the same in their order. Tells `inserted` of those.
        pub(in crate::keydir) fn change_or_insert_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            slot: impl Fn(usize) -> Slot,
            mut change: impl FnMut(usize, &mut Slot),
            mut inserted: impl FnMut(usize),
        ) {
            self.shard_by_shard(hashes, |shard, indices| {
                let Some(shard) = self.0.shards().get(shard) else { return };
                let mut table = shard.write();
                for &(_, index) in indices {
                    let hash = hashes.get(index).copied().unwrap_or_default();
                    match table.get_mut(hash, |(candidate, _)| candidate.as_slice() == key(index)) {
                        Some((_, found)) => change(index, found.get_mut()),
                        None => {
                            let new = (Key::new(key(index)), SharedValue::new(slot(index)));
                            table.insert(hash, new, |(key, _)| self.0.hasher().hash_one(key));
                            inserted(index);
                        }
                    }
                }
            });
        }

        /// Sorts the indices of `hashes` by shard and hands them on, some of one shard at a time: nobody is kept from a
        /// shard for longer than that takes.
        fn shard_by_shard(&self, hashes: &[u64], mut some: impl FnMut(usize, &[(usize, usize)])) {
            let shard_of = |hash: u64| self.0.determine_shard(to_usize(hash));
            let mut order: Vec<(usize, usize)> =
                hashes.iter().enumerate().map(|(index, &hash)| (shard_of(hash), index)).collect();
            order.sort_unstable();
            for of_one_shard in order.chunk_by(|(one, _), (other, _)| one == other) {
                for indices in of_one_shard.chunks(LOCKED_LOOKUPS) {
                    some(indices.first().map_or(0, |(shard, _)| *shard), indices);
                }
            }
        }

        pub(in crate::keydir) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(&Slot) -> bool) {
            self.0.remove_if(key, |_, slot| is_due(slot));
        }

        pub(in crate::keydir) fn retain(&self, mut stays: impl FnMut(&Slot) -> bool) {
            self.0.retain(|_, slot| stays(slot));
        }

        pub(in crate::keydir) fn for_each(&self, mut each: impl FnMut(&Key, &Slot)) {
            self.0.iter().for_each(|entry| each(entry.key(), entry.value()));
        }
    }
}

#[cfg(feature = "shuttle")]
mod imp {
    use std::collections::HashMap;
    use std::hash::BuildHasher;
    use std::sync::PoisonError;

    use super::{Key, KeyedSip, Slot};
    use crate::sync::RwLock;

    type Shard = RwLock<HashMap<Key, Slot, KeyedSip>>;

    pub(in crate::keydir) struct Map {
        hasher: KeyedSip,
        shards: Vec<Shard>,
    }

    impl Map {
        pub(in crate::keydir) fn new(hasher: KeyedSip, shards: usize) -> Self {
            let shards = (0..shards).map(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))).collect();
            Self { hasher, shards }
        }

        /// The map the explorer knows has nothing to gain from it.
        pub(in crate::keydir) fn reserve(&self, _keys: usize) {}

        pub(in crate::keydir) fn trim(&self) {}

        fn shard(&self, key: &[u8]) -> &Shard {
            let hash = crate::io::util::to_usize(self.hasher.hash_one(key));
            &self.shards[hash % self.shards.len()]
        }

        pub(in crate::keydir) fn get(&self, key: &[u8]) -> Option<Slot> {
            self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
        }

        pub(in crate::keydir) fn change<T>(&self, key: &[u8], change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
            let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
            shard.get_mut(key).map(change)
        }

        pub(in crate::keydir) fn change_or_insert<T>(
            &self,
            key: Key,
            slot: Slot,
            change: impl FnOnce(&mut Slot) -> T,
            inserted: impl FnOnce() -> T,
        ) -> T {
            let mut shard = self.shard(key.as_slice()).write().unwrap_or_else(PoisonError::into_inner);
            match shard.get_mut(key.as_slice()) {
                Some(occupied) => change(occupied),
                None => {
                    shard.insert(key, slot);
                    inserted()
                }
            }
        }

        pub(in crate::keydir) fn get_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut each: impl FnMut(usize, Option<&Slot>),
        ) {
            (0..hashes.len()).for_each(|index| each(index, self.get(key(index)).as_ref()));
        }

        pub(in crate::keydir) fn change_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            mut change: impl FnMut(usize, &mut Slot),
        ) {
            for index in 0..hashes.len() {
                self.change(key(index), |slot| change(index, slot));
            }
        }

        pub(in crate::keydir) fn change_or_insert_many<'k>(
            &self,
            hashes: &[u64],
            key: impl Fn(usize) -> &'k [u8],
            slot: impl Fn(usize) -> Slot,
            mut change: impl FnMut(usize, &mut Slot),
            mut inserted: impl FnMut(usize),
        ) {
            for index in 0..hashes.len() {
                let (new, key) = (slot(index), Key::new(key(index)));
                self.change_or_insert(key, new, |slot| change(index, slot), || inserted(index));
            }
        }

        pub(in crate::keydir) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(&Slot) -> bool) {
            let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
            if shard.get(key).is_some_and(is_due) {
                shard.remove(key);
            }
        }

        pub(in crate::keydir) fn retain(&self, mut stays: impl FnMut(&Slot) -> bool) {
            for shard in &self.shards {
                shard.write().unwrap_or_else(PoisonError::into_inner).retain(|_, slot| stays(slot));
            }
        }

        pub(in crate::keydir) fn for_each(&self, mut each: impl FnMut(&Key, &Slot)) {
            for shard in &self.shards {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                shard.iter().for_each(|(key, slot)| each(key, slot));
            }
        }
    }
}
