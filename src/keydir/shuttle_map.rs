//! The map under the schedule explorer: the interface of `map::Map` over the explorer's locks, so that
//! schedules inside a shard's lock are explored too.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::PoisonError;

use super::key::KeyedSip;
use super::location::KeydirSlot;
use crate::io::util::to_usize;
use crate::sync::RwLock;

/// Operations on all keys have one switch point per shard; more than a few shards show nothing new.
const SHARDS_MAX: usize = 4;

type ShuttleShard = RwLock<HashMap<Box<[u8]>, KeydirSlot, KeyedSip>>;

pub(super) struct ShuttleMap {
    hasher: KeyedSip,
    shards: Vec<ShuttleShard>,
}

/// A scan of one shard's entries, made in one step.
pub(super) struct ShuttleScan<T> {
    is_over: bool,
    picked: Vec<T>,
}

impl<T> ShuttleScan<T> {
    pub(super) fn new() -> Self {
        Self { is_over: false, picked: Vec::new() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn into_picked(self) -> Vec<T> {
        self.picked
    }
}

impl ShuttleMap {
    pub(super) fn new(hasher: KeyedSip, shards: usize) -> Self {
        let shards = (0..shards.min(SHARDS_MAX)).map(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))).collect();
        Self { hasher, shards }
    }

    // These four change speed and memory only.

    pub(super) fn reserve(&self, _keys: usize) {}

    pub(super) fn trim(&self) {}

    pub(super) fn held_bytes(&self) -> usize {
        0
    }

    pub(super) fn prefetch_slot(&self, _key: &[u8]) {}

    pub(super) fn prefetch_entry(&self, _key: &[u8]) {}

    fn shard(&self, key: &[u8]) -> &ShuttleShard {
        let hash = to_usize(self.hasher.hash_one(key));
        &self.shards[hash % self.shards.len()]
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<KeydirSlot> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    pub(super) fn change_or_insert<T>(
        &self,
        key: &[u8],
        slot: KeydirSlot,
        change: impl FnOnce(Option<&mut KeydirSlot>) -> T,
    ) -> T {
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        if let Some(occupied) = shard.get_mut(key) {
            return change(Some(occupied));
        }
        shard.insert(key.into(), slot);
        change(None)
    }

    pub(super) fn get_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        mut each: impl FnMut(usize, Option<KeydirSlot>),
    ) {
        (0..hashes.len()).for_each(|index| each(index, self.get(key(index))));
    }

    pub(super) fn change_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        mut change: impl FnMut(usize, &mut KeydirSlot),
    ) {
        for index in 0..hashes.len() {
            let mut shard = self.shard(key(index)).write().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = shard.get_mut(key(index)) {
                change(index, slot);
            }
        }
    }

    pub(super) fn change_or_insert_many<'k>(
        &self,
        hashes: &[u64],
        key: impl Fn(usize) -> &'k [u8],
        slot: impl Fn(usize) -> KeydirSlot,
        mut change: impl FnMut(usize, Option<&mut KeydirSlot>),
    ) {
        for index in 0..hashes.len() {
            self.change_or_insert(key(index), slot(index), |found| change(index, found));
        }
    }

    pub(super) fn remove_if(&self, key: &[u8], is_due: impl FnOnce(KeydirSlot) -> bool) {
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(key).copied().is_some_and(is_due) {
            shard.remove(key);
        }
    }

    pub(super) fn retain(&self, mut stays: impl FnMut(KeydirSlot) -> bool) {
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|_, slot| stays(*slot));
        }
    }

    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], KeydirSlot)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.iter().for_each(|(key, slot)| each(key, *slot));
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    pub(super) fn advance_scan<T>(
        &self,
        shard: usize,
        scan: &mut ShuttleScan<T>,
        mut pick: impl FnMut(&[u8], KeydirSlot) -> Option<T>,
    ) {
        let shard = self.shards[shard].read().unwrap_or_else(PoisonError::into_inner);
        scan.picked = shard.iter().filter_map(|(key, slot)| pick(key, *slot)).collect();
        scan.is_over = true;
    }
}
