//! The keydir: the location of every key's newest record.
//!
//! It knows no files. An entry consists of a key, the sequence number of its newest published record, and that record's
//! [`Location`]. Sequence numbers alone decide which record is newer, so records may be published in any order.
//! Recovery loads hint files in parallel, and a `Buffered` write is published before an earlier `Synced` one.
//!
//! # Tombstones in memory
//!
//! A delete may remove its entry only when no older record of the key can still be published. Otherwise the older put
//! would reappear. Until then a tombstone entry stays in the map ([`Keydir::bury`]), invisible to readers.
//! [`Keydir::sweep`] removes it later.
//!
//! # Concurrency
//!
//! The map is sharded. It locks one shard for one lookup or one replacement. No guard leaves this module, so no guard
//! is held across an await or an I/O operation.
//!
//! A batch becomes visible as a whole. [`Keydir::atomically`] makes the batch epoch odd while it publishes. A reader
//! whose lookup overlaps an odd or a changed epoch repeats the lookup.
//!
//! # Files
//!
//! `location` and `key` hold the plain types. `map` has one hash table (`table`) and one `arena` per shard; an arena
//! takes its memory in chunks (`chunk`). `shuttle_map` replaces all of these under the schedule explorer.

#[cfg(not(feature = "__shuttle"))]
mod arena;
#[cfg(not(feature = "__shuttle"))]
mod chunk;
mod key;
mod location;
#[cfg(not(feature = "__shuttle"))]
mod map;
#[cfg(feature = "__shuttle")]
mod shuttle_map;
#[cfg(not(feature = "__shuttle"))]
mod table;

use std::hash::BuildHasher;
use std::sync::PoisonError;

#[cfg(not(feature = "__shuttle"))]
use self::{arena::ArenaScan as ShardScan, map::Map};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
pub(crate) use key::Key;
use key::KeyedSip;
use location::KeydirSlot;
pub(crate) use location::Location;
#[cfg(feature = "__shuttle")]
use shuttle_map::{ShuttleMap as Map, ShuttleScan as ShardScan};

/// The result of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) location: Location,
}

/// The effect of publishing a record, from which callers update live-byte counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The record is now the newest of its key.
    pub(crate) applied: bool,
    /// The record that was the key's value before and is now dead.
    pub(crate) replaced: Option<Location>,
}

/// A record to publish with [`Keydir::publish_many`].
#[derive(Clone, Copy)]
pub(crate) struct KeydirUpdate<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seq: u64,
    /// `None` for a tombstone.
    pub(crate) location: Option<Location>,
}

/// A put that compaction copied, and the location of the copy.
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seq: u64,
    pub(crate) to: Location,
}

/// A record that a key points at, without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) seq: u64,
    pub(crate) location: Location,
    pub(crate) key_len: u16,
}

impl Live {
    /// Offset of the first byte after the record.
    pub(crate) fn end(self) -> u64 {
        self.location.offset() + self.location.record_len(usize::from(self.key_len))
    }
}

/// A scan over all keys, for the records in some segments that the keys point at. Each step locks each shard briefly.
///
/// The scan finds every record of a sealed segment that is live at its end. All records of a sealed segment were
/// published before it was sealed. A key that does not point at one of them when the scan visits it has a newer record,
/// and does not point at the old one again. A key that is removed and written again has its new record in another
/// segment.
pub(crate) struct LiveScan {
    segments: Vec<u32>,
    shards: Vec<ShardScan<Live>>,
}

impl LiveScan {
    /// The records found, in no particular order.
    pub(crate) fn into_records(self) -> impl Iterator<Item = Live> {
        self.shards.into_iter().flat_map(ShardScan::into_picked)
    }
}

/// The index of all keys.
pub(crate) struct Keydir {
    map: Map,
    hasher: KeyedSip,
    live_keys: AtomicU64,
    /// Odd while a batch is being published.
    batch_epoch: AtomicU64,
    /// Held while a batch is being published, so that readers can wait for its end without spinning.
    batch_gate: Mutex<()>,
}

impl Keydir {
    /// An empty keydir whose hash is keyed by `seed`.
    pub(crate) fn new(seed: (u64, u64), shards: usize) -> Self {
        let hasher = KeyedSip(seed.0, seed.1);
        Self {
            map: Map::new(hasher.clone(), shards),
            hasher,
            live_keys: AtomicU64::new(0),
            batch_epoch: AtomicU64::new(0),
            batch_gate: Mutex::new(()),
        }
    }

    /// The keyed hash of `key`, for other tables over the same keys.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The number of keys that have a value.
    pub(crate) fn len(&self) -> u64 {
        self.live_keys.load(Ordering::Relaxed)
    }

    /// Memory that the keydir has allocated, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.map.held_bytes() as u64
    }

    /// The newest published record of `key`. Sees each batch as a whole or not at all.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        loop {
            let before = self.batch_epoch.load(Ordering::Acquire);
            if before % 2 == 1 && !seeded_bug::is(SeededBug::BatchEpochIgnored) {
                drop(self.batch_gate.lock().unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let found = self.get_ungated(key);
            // The epoch became odd before the batch published its first record, and this lookup locked the shard after
            // the records it saw were published. So the second load sees the odd epoch or a later one.
            fence(Ordering::Acquire);
            if self.batch_epoch.load(Ordering::Relaxed) == before || seeded_bug::is(SeededBug::BatchEpochIgnored) {
                return found;
            }
        }
    }

    /// Like [`get`](Self::get), for callers that exclude the publication of batches by other means.
    pub(crate) fn get_ungated(&self, key: &[u8]) -> Option<Entry> {
        let slot = self.map.get(key)?;
        slot.live().map(|location| Entry { seq: slot.seq(), location })
    }

    /// Prefetches the hash-table slot of `key`: the first of two steps before a publication of `key`. Each step should
    /// be followed by about 100 ns of other work. Neither step waits for a lock or for memory.
    pub(crate) fn prefetch_slot(&self, key: &[u8]) {
        self.map.prefetch_slot(key);
    }

    /// Prefetches the entry of `key`, which the slot points at: the second step.
    pub(crate) fn prefetch_entry(&self, key: &[u8]) {
        self.map.prefetch_entry(key);
    }

    /// Runs `publish` so that readers see all of its records or none.
    pub(crate) fn atomically(&self, publish: impl FnOnce()) {
        let _gate = self.batch_gate.lock().unwrap_or_else(PoisonError::into_inner);
        /// Makes the epoch even again, also when `publish` panics.
        struct EvenOnDrop<'a>(&'a AtomicU64);
        impl Drop for EvenOnDrop<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Release);
            }
        }
        self.batch_epoch.fetch_add(1, Ordering::AcqRel);
        let _even = EvenOnDrop(&self.batch_epoch);
        publish();
    }

    /// Publishes a put, unless a newer record of the key is already published.
    pub(crate) fn publish(&self, key: &[u8], seq: u64, location: Location) -> Published {
        self.replace(key, KeydirSlot::new(seq, false, location))
    }

    /// Makes room for `keys` keys, so that loading them does not rehash.
    pub(crate) fn reserve(&self, keys: u64) {
        self.map.reserve(usize::try_from(keys).unwrap_or(usize::MAX));
    }

    /// Frees reserved room that turned out to be far more than the keys need.
    pub(crate) fn trim(&self) {
        self.map.trim();
    }

    /// Publishes many records, each like [`publish`](Self::publish) or [`bury`](Self::bury). Calls `each` with the
    /// index and the effect of every record. `each` runs under a shard's lock and must be quick.
    ///
    /// One call for many records overlaps their cache misses, as in [`are_newest`](Self::are_newest).
    pub(crate) fn publish_many(&self, records: &[KeydirUpdate<'_>], mut each: impl FnMut(usize, Published)) {
        let hashes: Vec<u64> = records.iter().map(|record| self.hash(record.key)).collect();
        let slot_of = |index: usize| {
            let KeydirUpdate { seq, location, .. } = records[index];
            KeydirSlot::new(seq, location.is_none(), location.unwrap_or(Location::NOWHERE))
        };
        let mut keys = 0;
        self.map.change_or_insert_many(
            &hashes,
            |index| records[index].key,
            slot_of,
            |index, found| {
                let published = match found {
                    Some(slot) => self.replace_in(slot, slot_of(index)),
                    None => {
                        keys += u64::from(records[index].location.is_some());
                        Published { applied: true, replaced: None }
                    }
                };
                each(index, published);
            },
        );
        self.live_keys.fetch_add(keys, Ordering::Relaxed);
    }

    /// Publishes a delete by storing a tombstone entry, unless a newer record of the key is already published.
    pub(crate) fn bury(&self, key: &[u8], seq: u64) -> Published {
        self.replace(key, KeydirSlot::new(seq, true, Location::NOWHERE))
    }

    fn replace(&self, key: &[u8], new: KeydirSlot) -> Published {
        self.map.change_or_insert(key, new, |found| match found {
            Some(slot) => self.replace_in(slot, new),
            None => {
                self.count(None, new);
                Published { applied: true, replaced: None }
            }
        })
    }

    fn replace_in(&self, slot: &mut KeydirSlot, new: KeydirSlot) -> Published {
        if slot.seq() >= new.seq() {
            return Published { applied: false, replaced: None };
        }
        let replaced = slot.live();
        *slot = new;
        self.count(replaced, new);
        Published { applied: true, replaced }
    }

    fn count(&self, replaced: Option<Location>, new: KeydirSlot) {
        match (replaced.is_some(), new.live().is_some()) {
            (false, true) => self.live_keys.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.live_keys.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Removes the tombstone entry of `key` if its sequence number is at most `seq`. The caller knows that no older
    /// record of the key can still be published.
    pub(crate) fn sweep(&self, key: &[u8], seq: u64) {
        self.map.remove_if(key, |slot| slot.live().is_none() && slot.seq() <= seq);
    }

    /// Removes every tombstone entry. The caller knows that all records are published.
    pub(crate) fn sweep_all(&self) {
        self.map.retain(|slot| slot.live().is_some());
    }

    /// Returns for each put, given as key and sequence number, whether it is the newest published record of its key and
    /// lies in `segment`.
    ///
    /// One call for many puts is faster in a large keydir: each lookup misses the CPU cache, and those misses overlap.
    pub(crate) fn are_newest(&self, puts: &[(&[u8], u64)], segment: u32) -> Vec<bool> {
        let hashes: Vec<u64> = puts.iter().map(|(key, _)| self.hash(key)).collect();
        let mut newest = vec![false; puts.len()];
        self.map.get_many(
            &hashes,
            |index| puts[index].0,
            |index, slot| {
                newest[index] = slot.is_some_and(|slot| {
                    slot.seq() == puts[index].1 && slot.live().is_some_and(|live| live.segment == segment)
                });
            },
        );
        newest
    }

    /// Repoints keys to copies of their records: each key only if its newest published record is still the copied put,
    /// in one of the segments `from` (ascending). Calls `moved` with the index of each applied move and the record's
    /// old location. `moved` runs under a shard's lock and must be quick.
    ///
    /// A sequence number belongs to exactly one record, so a newer put or delete is never overwritten.
    pub(crate) fn repoint(&self, moves: &[Move<'_>], from: &[u32], mut moved: impl FnMut(usize, Location)) {
        let hashes: Vec<u64> = moves.iter().map(|it| self.hash(it.key)).collect();
        self.map.change_many(
            &hashes,
            |index| moves[index].key,
            |index, slot| {
                let Move { seq, to, .. } = moves[index];
                let Some(old) = slot.live() else { return };
                let is_same = slot.seq() == seq && from.binary_search(&old.segment).is_ok();
                if is_same || seeded_bug::is(SeededBug::RelocateUnconditionally) {
                    *slot = KeydirSlot::new(seq, false, to);
                    moved(index, old);
                }
            },
        );
    }

    /// Starts a scan over all keys, for the records in `segments` (ascending) that they point at.
    pub(crate) fn scan_live(&self, segments: Vec<u32>) -> LiveScan {
        LiveScan { segments, shards: (0..self.map.shards()).map(|_| ShardScan::new()).collect() }
    }

    /// Continues a scan by some keys of every shard. Returns `true` at its end.
    ///
    /// It visits the shards in turn instead of finishing one before the next. A shard's lock prefers readers, so a
    /// thread that releases it and takes it again at once would keep writers waiting as if it had never released it.
    pub(crate) fn advance_scan(&self, scan: &mut LiveScan) -> bool {
        let LiveScan { segments, shards } = scan;
        let unfinished = shards.iter_mut().enumerate().filter(|(_, shard_scan)| !shard_scan.is_over());
        unfinished.for_each(|(shard, shard_scan)| {
            self.map.advance_scan(shard, shard_scan, |key, slot| {
                let location = slot.live().filter(|location| segments.binary_search(&location.segment).is_ok())?;
                // Keys have at most 65,535 bytes.
                let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
                Some(Live { seq: slot.seq(), location, key_len })
            });
        });
        shards.iter().all(ShardScan::is_over)
    }

    /// Calls `each` with every key's length and location, in no particular order. `each` runs under a shard's lock and
    /// must be quick.
    pub(crate) fn for_each_location(&self, mut each: impl FnMut(usize, Location)) {
        self.map.for_each(|key, slot| {
            if let Some(location) = slot.live() {
                each(key.len(), location);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keydir() -> Keydir {
        Keydir::new((1, 2), 4)
    }

    fn at(offset: u64) -> Location {
        Location::new(1, offset, 10).unwrap()
    }

    #[test]
    fn the_newest_record_wins_in_any_order_of_publication() {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for deleted in [None, Some(1), Some(2), Some(3)] {
            for order in orders {
                let keydir = keydir();
                for seq in order {
                    if deleted == Some(seq) {
                        keydir.bury(b"k", seq);
                    } else {
                        keydir.publish(b"k", seq, at(seq * 8));
                    }
                }
                keydir.sweep_all();
                let expected = (deleted != Some(3)).then(|| Entry { seq: 3, location: at(24) });
                assert_eq!(keydir.get(b"k"), expected, "order {order:?}, deleted {deleted:?}");
                assert_eq!(keydir.len(), u64::from(expected.is_some()));
            }
        }
    }

    #[test]
    fn a_tombstone_holds_older_puts_back_until_it_is_swept() {
        let keydir = keydir();
        keydir.bury(b"k", 5);
        assert!(!keydir.publish(b"k", 4, at(8)).applied);
        keydir.sweep(b"k", 4);
        assert!(!keydir.publish(b"k", 4, at(8)).applied, "a sweep below the tombstone leaves it");
        keydir.sweep(b"k", 5);
        assert!(keydir.publish(b"k", 4, at(8)).applied, "a swept tombstone leaves nothing behind");
    }

    #[test]
    fn only_the_copied_record_is_repointed() {
        let keydir = keydir();
        let to = Location::new(9, 512, 10).unwrap();
        let repoint = |key: &[u8], seq, from: &[u32], to| {
            let mut was = None;
            keydir.repoint(&[Move { key, seq, to }], from, |_, old| was = Some(old));
            was
        };
        let is_newest = |seq, segment| keydir.are_newest(&[(b"k", seq)], segment) == [true];
        keydir.publish(b"k", 5, at(8));
        for (what, seq, from) in
            [("an older record", 4, &[1][..]), ("a newer record", 6, &[1]), ("another segment", 5, &[2, 3])]
        {
            assert_eq!(repoint(b"k", seq, from, to), None, "{what}");
        }
        assert_eq!(repoint(b"none", 5, &[1], to), None);
        assert!(is_newest(5, 1) && !is_newest(5, 2) && !is_newest(4, 1));
        assert_eq!(repoint(b"k", 5, &[1, 2], to), Some(at(8)));
        assert_eq!(keydir.get(b"k"), Some(Entry { seq: 5, location: to }));
        keydir.bury(b"k", 6);
        assert_eq!(repoint(b"k", 6, &[0, 9], at(8)), None, "a tombstone has no location");
        assert!(!is_newest(6, 0));
        assert_eq!(keydir.len(), 0);
    }

    #[test]
    fn lookups_of_many_keys_agree_with_single_ones() {
        let keydir = keydir();
        let keys: Vec<Vec<u8>> = (0..5000_u32).map(|number| format!("key-{number}").into_bytes()).collect();
        for (seq, key) in (1..).zip(&keys).filter(|(seq, _)| seq % 3 != 0) {
            keydir.publish(key, seq, at(seq * 8));
        }
        let puts: Vec<(&[u8], u64)> = keys.iter().map(Vec::as_slice).zip(1..).collect();
        let expected: Vec<bool> = puts.iter().map(|(key, _)| keydir.get(key).is_some()).collect();
        assert_eq!(keydir.are_newest(&puts, 1), expected);
        let to = |seq: u64| Location::new(2, seq * 16, 10).unwrap();
        let moves: Vec<_> = puts.iter().map(|&(key, seq)| Move { key, seq, to: to(seq) }).collect();
        let mut moved = vec![false; keys.len()];
        keydir.repoint(&moves, &[1], |index, old| {
            assert_eq!(old, at((index as u64 + 1) * 8));
            moved[index] = true;
        });
        assert_eq!(moved, expected);
        for (key, seq) in puts.iter().filter(|(_, seq)| seq % 3 != 0) {
            assert_eq!(keydir.get(key), Some(Entry { seq: *seq, location: to(*seq) }));
        }
    }

    #[test]
    fn a_scan_finds_the_live_records_of_some_segments() {
        let keydir = keydir();
        let key = |number: u64| format!("{number:>width$}", width = usize::try_from(number % 50).unwrap()).into_bytes();
        let place = |number: u64| Location::new(u32::try_from(number % 7).unwrap(), number * 8, 10).unwrap();
        for number in 1..9000 {
            keydir.publish(&key(number), number, place(number));
        }
        for number in (1..9000).step_by(5) {
            keydir.bury(&key(number), 10_000 + number);
        }
        let mut scan = keydir.scan_live(vec![2, 5]);
        while !keydir.advance_scan(&mut scan) {}
        let mut found: Vec<Live> = scan.into_records().collect();
        found.sort_unstable_by_key(|live| live.seq);
        let is_expected = |number: &u64| number % 5 != 1 && (number % 7 == 2 || number % 7 == 5);
        let key_len = |number| u16::try_from(key(number).len()).unwrap();
        let live = |number| Live { seq: number, location: place(number), key_len: key_len(number) };
        assert_eq!(found, (1..9000).filter(is_expected).map(live).collect::<Vec<_>>());
        assert_eq!(found[0].end(), found[0].location.offset() + 56, "a header, a key and a value, padded");
    }

    /// An attacker who chooses the keys must not be able to choose their buckets.
    #[test]
    fn hashes_depend_on_the_secret() {
        let (one, other) = (Keydir::new((1, 2), 4), Keydir::new((1, 3), 4));
        let keys: Vec<[u8; 8]> = (0..1000_u64).map(|number| (number << 40).to_le_bytes()).collect();
        let same = keys.iter().filter(|key| one.hash(&key[..]) == other.hash(&key[..])).count();
        assert_eq!(same, 0, "{same} of 1000 keys hash the same under two secrets");
        // These keys collide under a multiplicative hash without a secret. Under SipHash they spread like any others.
        let buckets: std::collections::HashSet<u64> = keys.iter().map(|key| one.hash(&key[..]) % 4096).collect();
        assert!(buckets.len() > 800, "{} of 4096 buckets have the 1000 keys", buckets.len());
    }

    #[test]
    fn a_replaced_record_is_reported_once() {
        let keydir = keydir();
        assert_eq!(keydir.publish(b"k", 1, at(8)), Published { applied: true, replaced: None });
        assert_eq!(keydir.publish(b"k", 2, at(16)), Published { applied: true, replaced: Some(at(8)) });
        assert_eq!(keydir.bury(b"k", 3), Published { applied: true, replaced: Some(at(16)) });
        assert_eq!(keydir.bury(b"k", 4), Published { applied: true, replaced: None });
    }

    #[test]
    fn keys_of_every_length_are_distinct() {
        let keydir = keydir();
        let keys: Vec<Vec<u8>> = (1..=40).map(|len| vec![b'x'; len]).collect();
        for (index, key) in keys.iter().enumerate() {
            keydir.publish(key, index as u64 + 1, at(index as u64 * 8));
        }
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keydir.get(key).map(|entry| entry.seq), Some(index as u64 + 1));
        }
        assert_eq!(keydir.len(), 40);
    }

    #[test]
    fn adding_and_removing_keys_leaves_the_others_findable() {
        let keydir = keydir();
        let key =
            |number: u64| format!("{number:>width$}", width = 8 + usize::try_from(number % 40).unwrap()).into_bytes();
        let (window, last) = (4000, 60_000);
        for number in 0..last {
            keydir.publish(&key(number), number + 1, at(number * 8));
            // Deletes keys of all ages, not only the oldest or the newest.
            if let Some(old) = (number * 7919 % last).checked_sub(1).filter(|old| old + window < number) {
                keydir.bury(&key(old), last + number);
                keydir.sweep(&key(old), last + number);
            }
        }
        let mut left = std::collections::HashSet::new();
        for number in 0..last {
            let found = keydir.get(&key(number));
            assert!(found.is_none_or(|entry| entry.seq == number + 1), "{number}: {found:?}");
            if found.is_some() {
                left.insert(number * 8);
            }
        }
        let mut seen = 0;
        keydir.for_each_location(|_, location| {
            assert!(left.contains(&location.offset()), "a scan found an entry that no lookup finds");
            seen += 1;
        });
        assert_eq!((seen, keydir.len()), (left.len(), left.len() as u64));
        assert!((1000..59_000).contains(&seen), "{seen} of {last} keys are left, which shows little");
    }

    #[test]
    fn a_batch_is_visible_as_a_whole_or_not_at_all() {
        let keydir = keydir();
        keydir.publish(b"a", 1, at(8));
        keydir.publish(b"b", 2, at(8));
        let rounds = 20_000;
        let mut seen = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    keydir.atomically(|| {
                        keydir.publish(b"a", round * 2 + 1, at(8));
                        keydir.publish(b"b", round * 2 + 2, at(8));
                    });
                }
            });
            loop {
                let first = keydir.get(b"a").map_or(0, |entry| entry.seq);
                let second = keydir.get(b"b").map_or(0, |entry| entry.seq);
                assert!(second > first, "saw a of {first} and then b of {second}");
                seen += 1;
                if first > rounds * 2 {
                    break;
                }
            }
        });
        println!("batch visibility: {rounds} batches against {seen} pairs of reads");
    }
}
