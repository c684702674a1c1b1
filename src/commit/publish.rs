//! Publication: from here on a record is the value of its key.

use std::sync::Arc;

use super::stage::Publication;
use crate::format::RecordKind;
use crate::keydir::{Keydir, KeydirUpdate, Location, Published};
use crate::segment::{Segment, SegmentSet};

impl Publication {
    /// The keydir update for this record.
    fn record<'a>(&self, segment: &Segment, key: &'a [u8]) -> Option<KeydirUpdate<'a>> {
        let location = match self.member.kind {
            // Segments are too short to exceed a location's range; see the limits on `segment_bytes` and on a value.
            RecordKind::Put => Some(Location::new(segment.id, self.offset, self.member.value_len)?),
            _ => None,
        };
        Some(KeydirUpdate { key, seq: self.seq, location })
    }
}

/// Publishes one record in the keydir and updates the live-byte counters.
pub(super) fn publish(
    keydir: &Keydir,
    segments: &SegmentSet,
    segment: &Arc<Segment>,
    key: &[u8],
    publication: &Publication,
) {
    let Some(KeydirUpdate { seq, location, .. }) = publication.record(segment, key) else { return };
    let published = match location {
        Some(location) => keydir.publish(key, seq, location),
        None => keydir.bury(key, seq),
    };
    account(segments, segment, publication, published);
}

/// Publishes all records of a group, as [`publish`] does for one.
///
/// In a large keydir each record causes several cache misses. Handling many records together overlaps their misses,
/// which with a million keys takes a third of the time.
pub(super) fn publish_many<'a>(
    keydir: &Keydir,
    segments: &SegmentSet,
    segment: &Arc<Segment>,
    records: impl Iterator<Item = (&'a [u8], &'a Publication)>,
) {
    let (records, publications): (Vec<_>, Vec<_>) =
        records.filter_map(|(key, publication)| Some((publication.record(segment, key)?, publication))).unzip();
    let mut published = Vec::with_capacity(records.len());
    keydir.publish_many(&records, |index, of_record| published.push((index, of_record)));
    for (index, of_record) in published {
        account(segments, segment, publications[index], of_record);
    }
}

/// Updates the live-byte counters for a record that was published in `segment`.
fn account(segments: &SegmentSet, segment: &Segment, publication: &Publication, published: Published) {
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
            segments.record_died(replaced.segment, dead);
        }
    }
}
