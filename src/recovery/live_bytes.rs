//! The live-byte counter: counts live bytes while records are published. A separate pass over the keydir would double
//! the cost.

use std::collections::HashMap;

use crate::format::RecordKind;
use crate::keydir::{Keydir, KeydirUpdate, Location, Published};
use crate::segment::Found;

/// Records per call of [`Keydir::publish_many`], enough to have some for every shard of the keydir.
const BATCH_RECORDS: usize = 2048;

/// Live bytes by segment, as far as one loader knows: the records that it published, less the records that these
/// replaced in any segment.
#[derive(Default)]
pub(super) struct LiveByteCounter {
    live: HashMap<u32, i64>,
    /// Whether tombstones were published. If so, the keydir must be swept.
    pub(super) has_tombstones: bool,
}

impl LiveByteCounter {
    /// Publishes one record and counts it.
    pub(super) fn publish(&mut self, keydir: &Keydir, segment: u32, found: &Found<'_>) {
        let record = loaded(segment, found);
        let published = match record.location {
            Some(location) => keydir.publish(record.key, record.seq, location),
            None => keydir.bury(record.key, record.seq),
        };
        self.note(&record, published);
    }

    /// Publishes many records and counts them.
    fn publish_many(&mut self, keydir: &Keydir, records: &[KeydirUpdate<'_>]) {
        keydir.publish_many(records, |index, published| {
            if let Some(record) = records.get(index) {
                self.note(record, published);
            }
        });
    }

    fn note(&mut self, record: &KeydirUpdate<'_>, published: Published) {
        self.has_tombstones |= record.location.is_none();
        let mut add = |location: Location, sign: i64| {
            let bytes = location.record_len(record.key.len()).cast_signed();
            *self.live.entry(location.segment).or_default() += sign * bytes;
        };
        if let (Some(location), true) = (record.location, published.applied) {
            add(location, 1);
        }
        if let Some(replaced) = published.replaced {
            add(replaced, -1);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.has_tombstones |= other.has_tombstones;
        for (segment, bytes) in &other.live {
            *self.live.entry(*segment).or_default() += bytes;
        }
    }

    /// The live bytes of every segment.
    pub(super) fn into_live(self) -> impl Iterator<Item = (u32, u64)> {
        // The sum over all loaders is never negative.
        self.live.into_iter().map(|(segment, bytes)| (segment, u64::try_from(bytes).unwrap_or(0)))
    }
}

/// Converts a record to the form that the keydir takes.
fn loaded<'a>(segment: u32, found: &Found<'a>) -> KeydirUpdate<'a> {
    let location = match found.kind {
        // The offset lies within the file, and no segment reaches the limit of a location.
        RecordKind::Put => Location::new(segment, found.offset, found.value_len),
        _ => None,
    };
    KeydirUpdate { key: found.key, seq: found.seq, location }
}

/// Publishes the records of one segment in batches.
pub(super) struct Publisher<'a> {
    keydir: &'a Keydir,
    live_bytes: &'a mut LiveByteCounter,
    segment: u32,
    waiting: Vec<KeydirUpdate<'a>>,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(keydir: &'a Keydir, live_bytes: &'a mut LiveByteCounter, segment: u32) -> Self {
        Self { keydir, live_bytes, segment, waiting: Vec::with_capacity(BATCH_RECORDS) }
    }

    pub(super) fn push(&mut self, found: &Found<'a>) {
        self.waiting.push(loaded(self.segment, found));
        if self.waiting.len() == BATCH_RECORDS {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        self.live_bytes.publish_many(self.keydir, &self.waiting);
        self.waiting.clear();
    }
}
