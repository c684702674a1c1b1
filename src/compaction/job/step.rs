//! The records of one step of a copy: those that must be kept of one part of an input.
//!
//! Each record of an input that is read whole is decided by itself:
//!
//! - a put is kept if the keydir points at this very record;
//! - a tombstone is kept unless no segment outside the job can hold a record that it hides;
//! - batch frames, watermarks and footers are dropped, because they describe their own segment only.
//!
//! A batch was applied as a whole long before its segment was sealed, so its members are ordinary records here.

use bytes::BytesMut;

use crate::commit::Parts;
use crate::format::{RECORD_HEADER_LEN, RecordHeader, RecordKind};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Stored;

/// The records of one step.
#[derive(Default)]
pub(super) struct CopyStep {
    /// The records without gaps between them. A large record is represented by its header and key.
    pub(super) bytes: BytesMut,
    pub(super) records: Vec<CopiedRecord>,
    pub(super) tombstones_dropped: u64,
}

/// One record to copy.
pub(super) struct CopiedRecord {
    pub(super) header: RecordHeader,
    /// Offset of the record in the step's bytes.
    pub(super) at: usize,
    /// Length of the record in the step's bytes.
    pub(super) len: usize,
    /// Offset of the record in its segment, if it is so large that the step has only its header and key.
    pub(super) large_at: Option<u64>,
}

impl CopiedRecord {
    fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.at + RECORD_HEADER_LEN;
        bytes.get(start..start + usize::from(self.header.key_len)).unwrap_or_default()
    }
}

impl CopyStep {
    /// Adds `record`, unless its kind alone says that it is dropped. A put may still turn out to be dead
    /// ([`drop_dead`](Self::drop_dead)). Tombstones with sequence numbers below `tombstones_removable_below` hide
    /// nothing outside the job.
    pub(super) fn add_if_kept(&mut self, record: &Stored<'_>, tombstones_removable_below: u64) {
        let is_kept = match record.header.kind {
            RecordKind::Put => true,
            RecordKind::Tombstone => {
                record.header.seq >= tombstones_removable_below && !seeded_bug::is(SeededBug::TombstoneDropped)
            }
            RecordKind::Batch => seeded_bug::is(SeededBug::BatchFrameCopied),
            RecordKind::Watermark | RecordKind::Footer => false,
        };
        if is_kept {
            self.add(record);
        } else if record.header.kind == RecordKind::Tombstone {
            self.tombstones_dropped += 1;
        }
    }

    pub(super) fn add(&mut self, record: &Stored<'_>) {
        let at = self.bytes.len();
        let large_at = match record.bytes {
            Some(bytes) => {
                self.bytes.extend_from_slice(bytes);
                None
            }
            None => {
                self.bytes.extend_from_slice(&record.header.draft());
                self.bytes.extend_from_slice(record.key);
                Some(record.offset)
            }
        };
        self.records.push(CopiedRecord { header: record.header, at, len: self.bytes.len() - at, large_at });
    }

    /// Drops the puts of `segment` that no key points at, and closes the gaps.
    pub(super) fn drop_dead(&mut self, parts: &Parts, segment: u32) {
        let bytes = &self.bytes;
        let puts = self.records.iter().filter(|record| record.header.kind == RecordKind::Put);
        let puts: Vec<(&[u8], u64)> = puts.map(|record| (record.key(bytes), record.header.seq)).collect();
        let mut live = parts.keydir.are_newest(&puts, segment);
        if seeded_bug::is(SeededBug::BusyKeySkipped) {
            let is_busy = puts.iter().map(|(key, _)| parts.log.is_unresolved(key));
            live.iter_mut().zip(is_busy).for_each(|(live, is_busy)| *live &= !is_busy);
        }
        let mut live = live.into_iter();
        let (bytes, mut end) = (&mut self.bytes, 0);
        self.records.retain_mut(|record| {
            let is_kept = record.header.kind != RecordKind::Put || live.next().unwrap_or(true);
            if is_kept {
                if record.at > end {
                    bytes.copy_within(record.at..record.at + record.len, end);
                    record.at = end;
                }
                end += record.len;
            }
            is_kept
        });
        self.bytes.truncate(end);
    }
}
