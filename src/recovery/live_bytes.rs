//! What is alive, counted while records are published: a pass over the whole keydir afterwards would cost as much again.

use std::collections::HashMap;

use crate::format::RecordKind;
use crate::keydir::{Keydir, KeydirUpdate, Location, Published};
use crate::segment::Found;

/// Records published at once: enough for some in every shard of the keydir.
const TOGETHER: usize = 2048;

/// Bytes that are alive, by segment, as far as one loader knows: what it found minus what that replaced, anywhere.
#[derive(Default)]
pub(super) struct LiveByteCounter {
    live: HashMap<u32, i64>,
    /// Whether there were any: then the keydir has to be swept.
    pub(super) has_tombstones: bool,
}

impl LiveByteCounter {
    /// Publishes one record.
    pub(super) fn publish(&mut self, keydir: &Keydir, segment: u32, found: &Found<'_>) {
        let record = loaded(segment, found);
        let published = match record.location {
            Some(location) => keydir.publish(record.key, record.seq, location),
            None => keydir.bury(record.key, record.seq),
        };
        self.note(&record, published);
    }

    /// Publishes many.
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

    /// Every segment with its bytes.
    pub(super) fn into_live(self) -> impl Iterator<Item = (u32, u64)> {
        // In all, a segment has no fewer than none.
        self.live.into_iter().map(|(segment, bytes)| (segment, u64::try_from(bytes).unwrap_or(0)))
    }
}

/// The record as the keydir takes it.
fn loaded<'a>(segment: u32, found: &Found<'a>) -> KeydirUpdate<'a> {
    let location = match found.kind {
        // Offsets were checked against the file's length, and no segment reaches a location's limit.
        RecordKind::Put => Location::new(segment, found.offset, found.value_len),
        _ => None,
    };
    KeydirUpdate { key: found.key, seq: found.seq, location }
}

/// Records of one segment on their way into the keydir, many at a time.
pub(super) struct Publisher<'a> {
    keydir: &'a Keydir,
    tally: &'a mut LiveByteCounter,
    segment: u32,
    waiting: Vec<KeydirUpdate<'a>>,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(keydir: &'a Keydir, tally: &'a mut LiveByteCounter, segment: u32) -> Self {
        Self { keydir, tally, segment, waiting: Vec::with_capacity(TOGETHER) }
    }

    pub(super) fn push(&mut self, found: &Found<'a>) {
        self.waiting.push(loaded(self.segment, found));
        if self.waiting.len() == TOGETHER {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        self.tally.publish_many(self.keydir, &self.waiting);
        self.waiting.clear();
    }
}
