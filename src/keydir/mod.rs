//! The keydir: where the newest record of every key lies.
//!
//! It knows no files. An entry is a key, the sequence number of its newest published record, and that record's
//! [`Location`]. Recency is decided by sequence number alone, so records may be published in any order: recovery loads
//! hint files in parallel, and a `Buffered` write is published before a `Synced` one that came earlier.
//!
//! # Tombstones in memory
//!
//! A delete removes its entry only when no older record of the key can still be published; otherwise the older put
//! would come back. Until then a tombstone entry stays in the map ([`Keydir::bury`]), invisible to readers, and is
//! removed later ([`Keydir::sweep`]).
//!
//! # Concurrency
//!
//! The map is sharded and locks a shard for the length of one look-up or replacement. No guard leaves this module, so
//! none is ever held across an await or an I/O. A batch becomes visible as a whole: [`Keydir::atomically`] makes the
//! batch epoch odd while it publishes, and a reader whose look-up overlaps an odd or changed epoch looks again.

#[cfg(not(feature = "__shuttle"))]
mod arena;
#[cfg(not(feature = "__shuttle"))]
mod chunk;
mod map;

use std::hash::BuildHasher;
use std::sync::PoisonError;

use siphasher::sip::SipHasher13;

use crate::format::{self, ALIGN};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use map::{Map, Walk};

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The segment's id. Ids beyond 32 bits are refused when a segment is created.
    pub(crate) segment: u32,
    /// Offset of the record in units of [`ALIGN`].
    units: u32,
    /// Bytes of the value as stored.
    pub(crate) value_len: u32,
}

impl Location {
    /// `None` if the place is beyond what a location can name (a segment of more than 32 GiB).
    pub(crate) fn new(segment: u32, offset: u64, value_len: u32) -> Option<Self> {
        debug_assert_eq!(offset % ALIGN, 0, "records start at multiples of {ALIGN}, not at {offset}");
        Some(Self { segment, units: u32::try_from(offset / ALIGN).ok()?, value_len })
    }

    /// Offset of the record from the start of its segment, in bytes.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.units) * ALIGN
    }

    /// Bytes the record takes in its segment, given the length of its key.
    pub(crate) fn record_len(self, key_len: usize) -> u64 {
        format::record_len(key_len, self.value_len as usize)
    }
}

/// What a look-up finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) location: Location,
}

/// What publishing a record did to the bytes that are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The record is now the newest of its key.
    pub(crate) applied: bool,
    /// The record that was the key's value before and is now dead.
    pub(crate) replaced: Option<Location>,
}

/// A record of a sealed segment, as an opening finds it.
#[derive(Clone, Copy)]
pub(crate) struct Loaded<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seq: u64,
    /// `None` of a tombstone.
    pub(crate) location: Option<Location>,
}

/// A put that was copied, and where its copy lies.
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
    /// Offset of the first byte behind the record.
    pub(crate) fn end(self) -> u64 {
        self.location.offset() + self.location.record_len(usize::from(self.key_len))
    }
}

/// A walk over all keys, for the records in some segments that they point at. No lock is held for long on the way.
///
/// Of sealed segments it finds all that will ever matter. Their records were all published before they were sealed, so a
/// key that does not point at one of them when it is looked at has a newer record, and will not come back to it; and a key
/// that is removed and comes again has a new record in another segment.
pub(crate) struct LiveWalk {
    segments: Vec<u32>,
    /// One for every shard.
    walks: Vec<Walk<Live>>,
}

impl LiveWalk {
    /// What was found, in no order.
    pub(crate) fn found(self) -> impl Iterator<Item = Live> {
        self.walks.into_iter().flat_map(Walk::into_picked)
    }
}

/// A key that a future holds: up to 22 bytes in place, longer ones on the heap.
#[derive(Clone)]
pub(crate) enum Key {
    Inline(u8, [u8; Key::INLINE]),
    Heap(Box<[u8]>),
}

impl Key {
    const INLINE: usize = 22;

    pub(crate) fn new(bytes: &[u8]) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(len) if bytes.len() <= Self::INLINE => {
                let mut inline = [0; Self::INLINE];
                inline[..bytes.len()].copy_from_slice(bytes);
                Self::Inline(len, inline)
            }
            _ => Self::Heap(bytes.into()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Heap(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Key {
    /// Keys are the user's secrets as much as values are: only the length is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({} bytes)", self.as_slice().len())
    }
}

/// SipHash-1-3 under a secret key: whoever chooses the keys cannot make them collide.
#[derive(Clone, Debug)]
struct KeyedSip(u64, u64);

impl BuildHasher for KeyedSip {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// What the map holds of a key beside the key: 20 bytes, of which the top bit of `seq_and_kind` marks a tombstone.
#[derive(Clone, Copy)]
struct Slot {
    seq_and_kind: [u32; 2],
    location: Location,
}

const TOMBSTONE_BIT: u64 = 1 << 63;

impl Slot {
    #[expect(clippy::cast_possible_truncation, reason = "two halves of one number")]
    fn new(seq: u64, tombstone: bool, location: Location) -> Self {
        let word = if tombstone { seq | TOMBSTONE_BIT } else { seq };
        Self { seq_and_kind: [word as u32, (word >> 32) as u32], location }
    }

    fn word(self) -> u64 {
        u64::from(self.seq_and_kind[0]) | u64::from(self.seq_and_kind[1]) << 32
    }

    fn seq(self) -> u64 {
        self.word() & !TOMBSTONE_BIT
    }

    fn live(self) -> Option<Location> {
        (self.word() & TOMBSTONE_BIT == 0).then_some(self.location)
    }
}

const NOWHERE: Location = Location { segment: 0, units: 0, value_len: 0 };

/// The map itself.
pub(crate) struct Keydir {
    map: Map,
    hasher: KeyedSip,
    live_keys: AtomicU64,
    /// Odd while a batch is being published.
    batch_epoch: AtomicU64,
    /// Held by whoever publishes a batch, so that a reader that meets one can wait without spinning.
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

    /// Keys that have a value.
    pub(crate) fn len(&self) -> u64 {
        self.live_keys.load(Ordering::Relaxed)
    }

    /// The newest published record of `key`, seen outside every batch's publication.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        self.get_meanwhile(self.hash(key), key, || ())
    }

    /// As [`get`](Self::get), of a key whose hash is known. Calls `meanwhile` when the processor has been asked for the key's
    /// entry and before it is looked at, so that what `meanwhile` asks for comes with it. It is called under the shard's lock
    /// and must be quick, and may be called more than once, or not where there is no entry.
    pub(crate) fn get_meanwhile(&self, hash: u64, key: &[u8], meanwhile: impl Fn()) -> Option<Entry> {
        loop {
            let before = self.batch_epoch.load(Ordering::Acquire);
            if before % 2 == 1 && !seeded_bug::is(SeededBug::BatchEpochIgnored) {
                drop(self.batch_gate.lock().unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let found = self.find(hash, key, &meanwhile);
            // The look-up took the shard's lock after any batch member it saw was put there, and that was after the
            // epoch became odd: so an overlap shows in this second reading.
            fence(Ordering::Acquire);
            if self.batch_epoch.load(Ordering::Relaxed) == before || seeded_bug::is(SeededBug::BatchEpochIgnored) {
                return found;
            }
        }
    }

    /// As [`get`](Self::get), for whoever excludes publishers by other means.
    pub(crate) fn get_ungated(&self, key: &[u8]) -> Option<Entry> {
        self.find(self.hash(key), key, || ())
    }

    fn find(&self, hash: u64, key: &[u8], meanwhile: impl Fn()) -> Option<Entry> {
        let slot = self.map.get(hash, key, meanwhile)?;
        slot.live().map(|location| Entry { seq: slot.seq(), location })
    }

    /// The first of two steps by which a publication of `key` finds in the processor's cache what it will look at. Between
    /// the two, and behind them, there should be a tenth of a microsecond's work. Neither waits, for a lock or for memory.
    pub(crate) fn ask_for_place(&self, key: &[u8]) {
        self.map.ask_for_place(key);
    }

    /// The second step: what the first has brought says where the rest is.
    pub(crate) fn ask_for_entry(&self, key: &[u8]) {
        self.map.ask_for_entry(key);
    }

    /// Runs `publish` so that readers see all of what it publishes or nothing.
    pub(crate) fn atomically(&self, publish: impl FnOnce()) {
        let _gate = self.batch_gate.lock().unwrap_or_else(PoisonError::into_inner);
        struct Even<'a>(&'a AtomicU64);
        impl Drop for Even<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Release);
            }
        }
        self.batch_epoch.fetch_add(1, Ordering::AcqRel);
        let _even = Even(&self.batch_epoch);
        publish();
    }

    /// Publishes a put, unless a newer record of the key was published before.
    pub(crate) fn publish(&self, key: &[u8], seq: u64, location: Location) -> Published {
        self.replace(key, Slot::new(seq, false, location))
    }

    /// Makes room for so many keys, so that loading them moves none.
    pub(crate) fn reserve(&self, keys: u64) {
        self.map.reserve(usize::try_from(keys).unwrap_or(usize::MAX));
    }

    /// Gives back room that was made for keys which did not come, if that is much.
    pub(crate) fn trim(&self) {
        self.map.trim();
    }

    /// Publishes many records, each as [`publish`](Self::publish) or [`bury`](Self::bury) would. Tells `each` what became
    /// of the record of every index; it is called under a shard's lock and must be quick.
    ///
    /// Many at a time, as in [`are_newest`](Self::are_newest).
    pub(crate) fn publish_many(&self, records: &[Loaded<'_>], mut each: impl FnMut(usize, Published)) {
        let hashes: Vec<u64> = records.iter().map(|record| self.hash(record.key)).collect();
        let slot_of = |index: usize| {
            let Loaded { seq, location, .. } = records[index];
            Slot::new(seq, location.is_none(), location.unwrap_or(NOWHERE))
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

    /// Publishes a delete by leaving a tombstone entry, unless a newer record of the key was published before.
    pub(crate) fn bury(&self, key: &[u8], seq: u64) -> Published {
        self.replace(key, Slot::new(seq, true, NOWHERE))
    }

    fn replace(&self, key: &[u8], new: Slot) -> Published {
        self.map.change_or_insert(key, new, |found| match found {
            Some(slot) => self.replace_in(slot, new),
            None => {
                self.count(None, new);
                Published { applied: true, replaced: None }
            }
        })
    }

    fn replace_in(&self, slot: &mut Slot, new: Slot) -> Published {
        if slot.seq() >= new.seq() {
            return Published { applied: false, replaced: None };
        }
        let replaced = slot.live();
        *slot = new;
        self.count(replaced, new);
        Published { applied: true, replaced }
    }

    fn count(&self, replaced: Option<Location>, new: Slot) {
        match (replaced.is_some(), new.live().is_some()) {
            (false, true) => self.live_keys.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.live_keys.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Removes the tombstone entry of `key` if it is no newer than `seq`: nothing older can be published any more.
    pub(crate) fn sweep(&self, key: &[u8], seq: u64) {
        self.map.remove_if(key, |slot| slot.live().is_none() && slot.seq() <= seq);
    }

    /// Removes every tombstone entry, when all records have been published.
    pub(crate) fn sweep_all(&self) {
        self.map.retain(|slot| slot.live().is_some());
    }

    /// Of each put, by key and sequence number, whether it is the newest published record of its key and lies in `segment`.
    ///
    /// Many at a time: in a large keydir each look-up misses the cache, and those of some shards can do so together.
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

    /// Lets keys point at copies of their records: each only if its newest published record is still the put that was
    /// copied, in one of the segments `from` (ascending). Tells `moved` the index of each move that was made, and where
    /// the record was. `moved` is called under a shard's lock and must be quick.
    ///
    /// A sequence number is that of one record, so this compares the exact place: a newer put or a delete, published at
    /// any time before, stays.
    pub(crate) fn relocate(&self, moves: &[Move<'_>], from: &[u32], mut moved: impl FnMut(usize, Location)) {
        let hashes: Vec<u64> = moves.iter().map(|it| self.hash(it.key)).collect();
        self.map.change_many(
            &hashes,
            |index| moves[index].key,
            |index, slot| {
                let Move { seq, to, .. } = moves[index];
                let Some(old) = slot.live() else { return };
                let is_same = slot.seq() == seq && from.binary_search(&old.segment).is_ok();
                if is_same || seeded_bug::is(SeededBug::RelocateUnconditionally) {
                    *slot = Slot::new(seq, false, to);
                    moved(index, old);
                }
            },
        );
    }

    /// Begins a walk over all keys, for the records in `segments` (ascending) that they point at.
    pub(crate) fn walk(&self, segments: Vec<u32>) -> LiveWalk {
        LiveWalk { segments, walks: (0..self.map.shards()).map(|_| Walk::new()).collect() }
    }

    /// Goes on with a walk by some keys of every shard; `true` at its end.
    ///
    /// From shard to shard, and not one after the other: a shard's lock prefers readers, so whoever takes it again at once
    /// keeps a writer waiting as if it had never let go.
    pub(crate) fn go_on(&self, walk: &mut LiveWalk) -> bool {
        let LiveWalk { segments, walks } = walk;
        let under_way = walks.iter_mut().enumerate().filter(|(_, walk)| !walk.is_over());
        under_way.for_each(|(shard, walk)| {
            self.map.step(shard, walk, |key, slot| {
                let location = slot.live().filter(|location| segments.binary_search(&location.segment).is_ok())?;
                // No record has a longer key.
                let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
                Some(Live { seq: slot.seq(), location, key_len })
            });
        });
        walks.iter().all(Walk::is_over)
    }

    /// Calls `each` with every key's length and location, in no order. Holds a shard's lock: `each` must be quick.
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
        assert!(keydir.publish(b"k", 4, at(8)).applied, "nothing is left of a swept tombstone");
    }

    #[test]
    fn only_the_very_record_is_relocated() {
        let keydir = keydir();
        let to = Location::new(9, 512, 10).unwrap();
        let relocate = |key: &[u8], seq, from: &[u32], to| {
            let mut was = None;
            keydir.relocate(&[Move { key, seq, to }], from, |_, old| was = Some(old));
            was
        };
        let is_newest = |seq, segment| keydir.are_newest(&[(b"k", seq)], segment) == [true];
        keydir.publish(b"k", 5, at(8));
        for (what, seq, from) in [("an older one", 4, &[1][..]), ("a newer one", 6, &[1]), ("elsewhere", 5, &[2, 3])] {
            assert_eq!(relocate(b"k", seq, from, to), None, "{what}");
        }
        assert_eq!(relocate(b"none", 5, &[1], to), None);
        assert!(is_newest(5, 1) && !is_newest(5, 2) && !is_newest(4, 1));
        assert_eq!(relocate(b"k", 5, &[1, 2], to), Some(at(8)));
        assert_eq!(keydir.get(b"k"), Some(Entry { seq: 5, location: to }));
        keydir.bury(b"k", 6);
        assert_eq!(relocate(b"k", 6, &[0, 9], at(8)), None, "a tombstone is nowhere");
        assert!(!is_newest(6, 0));
        assert_eq!(keydir.len(), 0);
    }

    #[test]
    fn many_look_ups_find_what_single_ones_do() {
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
        keydir.relocate(&moves, &[1], |index, old| {
            assert_eq!(old, at((index as u64 + 1) * 8));
            moved[index] = true;
        });
        assert_eq!(moved, expected);
        for (key, seq) in puts.iter().filter(|(_, seq)| seq % 3 != 0) {
            assert_eq!(keydir.get(key), Some(Entry { seq: *seq, location: to(*seq) }));
        }
    }

    #[test]
    fn what_lives_in_some_segments_is_found_without_the_keys() {
        let keydir = keydir();
        let key = |number: u64| format!("{number:>width$}", width = usize::try_from(number % 50).unwrap()).into_bytes();
        let place = |number: u64| Location::new(u32::try_from(number % 7).unwrap(), number * 8, 10).unwrap();
        for number in 1..9000 {
            keydir.publish(&key(number), number, place(number));
        }
        for number in (1..9000).step_by(5) {
            keydir.bury(&key(number), 10_000 + number);
        }
        let mut walk = keydir.walk(vec![2, 5]);
        while !keydir.go_on(&mut walk) {}
        let mut found: Vec<Live> = walk.found().collect();
        found.sort_unstable_by_key(|live| live.seq);
        let is_expected = |number: &u64| number % 5 != 1 && (number % 7 == 2 || number % 7 == 5);
        let key_len = |number| u16::try_from(key(number).len()).unwrap();
        let live = |number| Live { seq: number, location: place(number), key_len: key_len(number) };
        assert_eq!(found, (1..9000).filter(is_expected).map(live).collect::<Vec<_>>());
        assert_eq!(found[0].end(), found[0].location.offset() + 56, "a header, a key and a value, padded");
    }

    /// Whoever chooses the keys must not be able to choose where they go.
    #[test]
    fn hashes_depend_on_the_secret() {
        let (one, other) = (Keydir::new((1, 2), 4), Keydir::new((1, 3), 4));
        let keys: Vec<[u8; 8]> = (0..1000_u64).map(|number| (number << 40).to_le_bytes()).collect();
        let same = keys.iter().filter(|key| one.hash(&key[..]) == other.hash(&key[..])).count();
        assert_eq!(same, 0, "{same} of 1000 keys hash the same under two secrets");
        // Keys that fall together under a multiplicative hash without a secret are spread like any others.
        let buckets: std::collections::HashSet<u64> = keys.iter().map(|key| one.hash(&key[..]) % 4096).collect();
        assert!(buckets.len() > 800, "{} of 4096 buckets have the 1000 keys", buckets.len());
    }

    #[test]
    fn replaced_records_are_named_once() {
        let keydir = keydir();
        assert_eq!(keydir.publish(b"k", 1, at(8)), Published { applied: true, replaced: None });
        assert_eq!(keydir.publish(b"k", 2, at(16)), Published { applied: true, replaced: Some(at(8)) });
        assert_eq!(keydir.bury(b"k", 3), Published { applied: true, replaced: Some(at(16)) });
        assert_eq!(keydir.bury(b"k", 4), Published { applied: true, replaced: None });
    }

    #[test]
    fn keys_of_every_length_are_told_apart() {
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
    fn keys_that_come_and_go_leave_the_others_where_they_are_found() {
        let keydir = keydir();
        let key =
            |number: u64| format!("{number:>width$}", width = 8 + usize::try_from(number % 40).unwrap()).into_bytes();
        let (window, last) = (4000, 60_000);
        for number in 0..last {
            keydir.publish(&key(number), number + 1, at(number * 8));
            // What is deleted is neither the oldest nor the newest only.
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
            assert!(left.contains(&location.offset()), "an entry that no look-up finds");
            seen += 1;
        });
        assert_eq!((seen, keydir.len()), (left.len(), left.len() as u64));
        assert!((1000..59_000).contains(&seen), "{seen} of {last} keys are left, which shows little");
    }

    #[test]
    fn a_batch_is_seen_whole_or_not_at_all() {
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
