//! Publication: from when on a record is its key's value.

use std::sync::Arc;

use super::stage::Publication;
use crate::format::RecordKind;
use crate::keydir::{Keydir, KeydirUpdate, Location, Published};
use crate::segment::{Segment, SegmentSet};

impl Publication {
    /// What the keydir is to hold of it.
    fn record<'a>(&self, segment: &Segment, key: &'a [u8]) -> Option<KeydirUpdate<'a>> {
        let location = match self.member.kind {
            // Segments end long before a location's reach; see the limit on `segment_bytes` and on a value.
            RecordKind::Put => Some(Location::new(segment.id, self.offset, self.member.value_len)?),
            _ => None,
        };
        Some(KeydirUpdate { key, seq: self.seq, location })
    }
}

/// Puts one record into the keydir and moves the bytes that live and die with that.
pub(super) fn publish(
    keydir: &Keydir,
    registry: &SegmentSet,
    segment: &Arc<Segment>,
    key: &[u8],
    publication: &Publication,
) {
    let Some(KeydirUpdate { seq, location, .. }) = publication.record(segment, key) else { return };
    let published = match location {
        Some(location) => keydir.publish(key, seq, location),
        None => keydir.bury(key, seq),
    };
    account(registry, segment, publication, published);
}

/// As [`publish`] for each record of a group, with the keys and publications of `records`.
///
/// In a large keydir every record misses the cache some times. The commit task does nothing else meanwhile, so it has
/// the misses of many records at once: with a million keys that takes a third of the time.
pub(super) fn publish_many<'a>(
    keydir: &Keydir,
    registry: &SegmentSet,
    segment: &Arc<Segment>,
    records: impl Iterator<Item = (&'a [u8], &'a Publication)>,
) {
    let (records, publications): (Vec<_>, Vec<_>) =
        records.filter_map(|(key, publication)| Some((publication.record(segment, key)?, publication))).unzip();
    let mut published = Vec::with_capacity(records.len());
    keydir.publish_many(&records, |index, of_record| published.push((index, of_record)));
    for (index, of_record) in published {
        account(registry, segment, publications[index], of_record);
    }
}

/// Moves the bytes that live and die with a record that was published in `segment`.
fn account(registry: &SegmentSet, segment: &Segment, publication: &Publication, published: Published) {
    let member = publication.member;
    let Published { applied, replaced } = published;
    if applied && member.kind == RecordKind::Put {
        segment.add_live(member.record_len());
    }
    if let Some(replaced) = replaced {
        let dead = replaced.record_len(usize::from(member.key_len));
        if replaced.segment == segment.id {
            segment.remove_live(dead);
        } else {
            registry.record_died(replaced.segment, dead);
        }
    }
}
