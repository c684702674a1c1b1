//! The staging buffer: records in log order, between the callers that copy them in and the commit task that takes
//! them out as one contiguous write.
//!
//! Small records are copied into one growing buffer. A large value stays where it is and is *spliced* in. So there
//! are two kinds of positions: a *buffer position* counts bytes of the buffer alone; a *log offset* counts from the
//! start of the segment and includes spliced values.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::group::Group;
use super::prepared::{Prepared, PreparedRecord, WriteShape};
use crate::format::{
    ALIGN, BATCH_FRAME_LEN, BatchFrame, RECORD_HEADER_LEN, RecordKind, WATERMARK_LEN, Watermark, patch_header,
};
use crate::io::util::to_usize;
use crate::segment::Segment;

/// Where the next record goes.
#[derive(Debug)]
pub(crate) struct AppendPoint {
    pub(crate) segment: Arc<Segment>,
    pub(crate) next_offset: u64,
    pub(crate) next_ordinal: u32,
    /// End of the preallocated disk space.
    pub(crate) preallocated_end: u64,
}

/// A record to publish: when, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publication {
    /// `member.position` is a buffer position.
    pub(crate) member: PreparedRecord,
    pub(crate) seq: u64,
    pub(crate) offset: u64,
    pub(crate) when: PublishWhen,
}

impl Publication {
    pub(super) fn new(member: &PreparedRecord, position: usize, offset: u64, seq: u64, when: PublishWhen) -> Self {
        Self {
            member: PreparedRecord { position: position + member.position, ..*member },
            seq,
            offset: offset + member.position as u64,
            when,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishWhen {
    /// When the kernel has the group.
    Written,
    /// When the group is durable.
    Resolved,
    /// Already published. When the group is resolved, the tombstone entry it left is swept.
    SweepOnly,
}

/// Records of one segment that cannot be read from the file yet.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) segment: u32,
    pub(crate) base: u64,
    pub(crate) end: u64,
    buffer: Bytes,
    splices: Vec<Splice>,
}

/// A large value, and where the buffer continues.
#[derive(Clone, Debug)]
struct Splice {
    /// The value follows this buffer position.
    position: usize,
    value: Bytes,
}

/// A group as the commit task takes it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) group: Arc<Group>,
    pub(crate) segment: Arc<Segment>,
    pub(crate) base: u64,
    pub(crate) end: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) records: u32,
    pub(crate) tombstone_bytes: u64,
    /// The ordinal of the next record: counts all records of the segment, including this group's.
    pub(crate) next_ordinal: u32,
    pub(crate) buffer: Bytes,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) publications: Vec<Publication>,
    pub(crate) has_batch: bool,
    pub(crate) has_buffered: bool,
    pub(crate) wants_sync: bool,
    pub(crate) sync_waiters: u32,
    /// When its oldest record was staged.
    pub(crate) staged_since: Option<Duration>,
}

/// Records staged for one group.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    pub(crate) group: Arc<Group>,
    base: u64,
    first_ordinal: u32,
    buffer: BytesMut,
    splices: Vec<Splice>,
    spliced_len: u64,
    publications: Vec<Publication>,
    pub(crate) records: u32,
    tombstone_bytes: u64,
    first_seq: u64,
    pub(crate) last_seq: u64,
    has_batch: bool,
    pub(crate) has_buffered: bool,
    /// Whether a writer waits for the kernel only.
    pub(crate) awaits_written: bool,
    /// How many writers wait for a sync.
    pub(crate) sync_waiters: u32,
}

impl Stage {
    pub(crate) fn new(buffer: BytesMut) -> Self {
        Self { buffer, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Bytes staged, the watermark included.
    pub(crate) fn len(&self) -> u64 {
        self.buffer.len() as u64 + self.spliced_len
    }

    /// Copies `op` in at `point`, with sequence numbers from `first_seq` on. Returns the buffer position and the log
    /// offset of its first byte.
    pub(crate) fn push(
        &mut self,
        point: &mut AppendPoint,
        op: &Prepared,
        first_seq: u64,
        durable_offset: u64,
    ) -> (usize, u64) {
        if self.is_empty() {
            self.base = point.next_offset;
            self.first_ordinal = point.next_ordinal;
            self.first_seq = first_seq;
            self.buffer.resize(WATERMARK_LEN, 0);
            point.next_offset += WATERMARK_LEN as u64;
            point.next_ordinal += 1;
        }
        let (position, offset) = (self.buffer.len(), point.next_offset);
        self.buffer.extend_from_slice(&op.bytes);
        if let WriteShape::Batch(members) = &op.shape {
            self.has_batch = true;
            let frame = BatchFrame {
                count: u32::try_from(members.len()).unwrap_or(u32::MAX),
                bytes: (op.bytes.len() - BATCH_FRAME_LEN) as u64,
                durable_offset,
            };
            let frame = frame.encode(&point.segment.binding, offset, first_seq, point.next_ordinal);
            self.buffer[position..position + BATCH_FRAME_LEN].copy_from_slice(&frame);
            point.next_ordinal += 1;
        }
        for (member, seq) in op.members().iter().zip(first_seq..) {
            let start = position + member.position;
            let header = &mut self.buffer[start..start + RECORD_HEADER_LEN];
            patch_header(header, &point.segment.binding, offset + member.position as u64, seq, point.next_ordinal);
            point.next_ordinal += 1;
            self.last_seq = seq;
            if member.kind == RecordKind::Tombstone {
                self.tombstone_bytes += member.record_len();
            }
        }
        if let Some(value) = &op.large {
            self.splices.push(Splice { position: self.buffer.len(), value: value.clone() });
            self.spliced_len += value.len() as u64;
        }
        self.pad(offset, point);
        self.records += u32::try_from(op.members().len()).unwrap_or(u32::MAX);
        (position, offset)
    }

    /// Pads the log to a multiple of [`ALIGN`].
    fn pad(&mut self, offset: u64, point: &mut AppendPoint) {
        debug_assert!(offset >= self.base, "a record at {offset} before its group's base {}", self.base);
        let padding = self.len().next_multiple_of(ALIGN) - self.len();
        self.buffer.resize(self.buffer.len() + to_usize(padding), 0);
        point.next_offset = self.base + self.len();
    }

    pub(crate) fn publish_later(&mut self, publication: Publication) {
        self.publications.push(publication);
    }

    /// The value of `value_len` bytes at log offset `offset`, if it is staged here.
    pub(crate) fn read(&self, offset: u64, value_len: usize) -> Option<Bytes> {
        read_pieces(self.base, &self.buffer, &self.splices, offset, value_len)
    }

    /// Ends the group: returns it for the commit task, and the same bytes as a run for readers.
    pub(crate) fn finish(mut self, point: &AppendPoint, mark: Watermark, wants_sync: bool) -> (Taken, Option<Run>) {
        let end = self.base + self.len();
        let is_empty = self.is_empty();
        if !is_empty {
            let mark = mark.encode(&point.segment.binding, self.base, self.first_seq, self.first_ordinal);
            self.buffer[..WATERMARK_LEN].copy_from_slice(&mark);
        }
        let buffer = self.buffer.freeze();
        let run = (!is_empty).then(|| Run {
            segment: point.segment.id,
            base: self.base,
            end,
            buffer: buffer.clone(),
            splices: self.splices.clone(),
        });
        let taken = Taken {
            group: self.group,
            segment: Arc::clone(&point.segment),
            base: self.base,
            end,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            records: self.records,
            tombstone_bytes: self.tombstone_bytes,
            next_ordinal: point.next_ordinal,
            pieces: pieces(&buffer, &self.splices),
            buffer,
            publications: self.publications,
            has_batch: self.has_batch,
            has_buffered: self.has_buffered,
            wants_sync: wants_sync || self.sync_waiters > 0,
            sync_waiters: self.sync_waiters,
            staged_since: None,
        };
        (taken, run)
    }
}

impl Run {
    pub(crate) fn read(&self, offset: u64, value_len: usize) -> Option<Bytes> {
        read_pieces(self.base, &self.buffer, &self.splices, offset, value_len)
    }
}

impl Taken {
    /// The key of a publication.
    pub(crate) fn key(&self, publication: &Publication) -> &[u8] {
        publication.member.key(&self.buffer)
    }
}

/// Buffer and splices in log order.
fn pieces(buffer: &Bytes, splices: &[Splice]) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(splices.len() * 2 + 1);
    let mut position = 0;
    for splice in splices {
        pieces.push(buffer.slice(position..splice.position));
        pieces.push(splice.value.clone());
        position = splice.position;
    }
    pieces.push(buffer.slice(position..));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// A value lies entirely within the buffer or is an entire splice. A small value is copied, so that it does not keep
/// the group's buffer alive.
fn read_pieces(base: u64, buffer: &[u8], splices: &[Splice], offset: u64, value_len: usize) -> Option<Bytes> {
    let mut left = usize::try_from(offset.checked_sub(base)?).ok()?;
    let mut position = 0;
    for splice in splices {
        let run = splice.position - position;
        if left < run {
            break;
        }
        left -= run;
        position = splice.position;
        if left < splice.value.len() {
            return (left == 0 && splice.value.len() == value_len).then(|| splice.value.clone());
        }
        left -= splice.value.len();
    }
    let start = position.checked_add(left)?;
    buffer.get(start..start.checked_add(value_len)?).map(Bytes::copy_from_slice)
}

/// Whether the record is a tombstone.
pub(crate) fn is_delete(publication: &Publication) -> bool {
    publication.member.kind == RecordKind::Tombstone
}
