//! The staging buffer: records in the order of the log, between the callers that copy them in and the commit task that
//! takes them out as one contiguous write.
//!
//! Small records are copied into one growing buffer; a large value stays where it is and is *spliced* in. Positions are
//! of two sorts: a *buffer position* counts bytes of the buffer alone, a *log offset* counts from the start of the
//! segment and includes the spliced values.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::group::Group;
use super::prepared::{Member, Prepared, Shape};
use crate::format::{
    ALIGN, BATCH_FRAME_LEN, BatchFrame, RECORD_HEADER_LEN, RecordKind, WATERMARK_LEN, Watermark, patch_header,
};
use crate::io::util::to_usize;
use crate::segment::Segment;

/// Where the next record goes.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) next_offset: u64,
    pub(crate) next_ordinal: u32,
    /// Disk space is claimed up to here.
    pub(crate) claimed_end: u64,
}

/// When a staged record is published, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publication {
    /// `member.position` is a buffer position.
    pub(crate) member: Member,
    pub(crate) seq: u64,
    pub(crate) offset: u64,
    pub(crate) when: PublishWhen,
}

impl Publication {
    pub(super) fn new(member: &Member, position: usize, offset: u64, seq: u64, when: PublishWhen) -> Self {
        Self {
            member: Member { position: position + member.position, ..*member },
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
    /// Published already; when the group is resolved, the tombstone entry it left is swept.
    SweepOnly,
}

/// Records of one segment that no read can get from the file yet.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) segment: u32,
    pub(crate) base: u64,
    pub(crate) end: u64,
    buffer: Bytes,
    splices: Vec<Splice>,
}

/// A large value: where it lies in the log, and where the buffer goes on.
#[derive(Clone, Debug)]
struct Splice {
    /// Buffer position behind which the value comes.
    position: usize,
    value: Bytes,
}

/// What the commit task takes.
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
    /// All records written so far, this group's included: the next record's ordinal.
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
    /// Whether anybody waits for the kernel.
    pub(crate) awaits_written: bool,
    /// How many wait for the disk.
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

    /// Copies `op` in at `place`, giving its records sequence numbers from `first_seq` on; returns the buffer position
    /// and the log offset of its first byte.
    pub(crate) fn push(
        &mut self,
        place: &mut Place,
        op: &Prepared,
        first_seq: u64,
        durable_offset: u64,
    ) -> (usize, u64) {
        if self.is_empty() {
            self.base = place.next_offset;
            self.first_ordinal = place.next_ordinal;
            self.first_seq = first_seq;
            self.buffer.resize(WATERMARK_LEN, 0);
            place.next_offset += WATERMARK_LEN as u64;
            place.next_ordinal += 1;
        }
        let (position, offset) = (self.buffer.len(), place.next_offset);
        self.buffer.extend_from_slice(&op.bytes);
        if let Shape::Batch(members) = &op.shape {
            self.has_batch = true;
            let frame = BatchFrame {
                count: u32::try_from(members.len()).unwrap_or(u32::MAX),
                bytes: (op.bytes.len() - BATCH_FRAME_LEN) as u64,
                durable_offset,
            };
            let frame = frame.encode(&place.segment.binding, offset, first_seq, place.next_ordinal);
            self.buffer[position..position + BATCH_FRAME_LEN].copy_from_slice(&frame);
            place.next_ordinal += 1;
        }
        for (member, seq) in op.members().iter().zip(first_seq..) {
            let start = position + member.position;
            let header = &mut self.buffer[start..start + RECORD_HEADER_LEN];
            patch_header(header, &place.segment.binding, offset + member.position as u64, seq, place.next_ordinal);
            place.next_ordinal += 1;
            self.last_seq = seq;
            if member.kind == RecordKind::Tombstone {
                self.tombstone_bytes += member.record_len();
            }
        }
        if let Some(value) = &op.large {
            self.splices.push(Splice { position: self.buffer.len(), value: value.clone() });
            self.spliced_len += value.len() as u64;
        }
        self.pad(offset, place);
        self.records += u32::try_from(op.members().len()).unwrap_or(u32::MAX);
        (position, offset)
    }

    /// Brings the end of the log to a multiple of [`ALIGN`].
    fn pad(&mut self, offset: u64, place: &mut Place) {
        debug_assert!(offset >= self.base, "a record at {offset} before its group's base {}", self.base);
        let padding = self.len().next_multiple_of(ALIGN) - self.len();
        self.buffer.resize(self.buffer.len() + to_usize(padding), 0);
        place.next_offset = self.base + self.len();
    }

    pub(crate) fn publish_later(&mut self, publication: Publication) {
        self.publications.push(publication);
    }

    /// The value of `value_len` bytes at log offset `offset`, if it is staged here.
    pub(crate) fn read(&self, offset: u64, value_len: usize) -> Option<Bytes> {
        read_pieces(self.base, &self.buffer, &self.splices, offset, value_len)
    }

    /// Ends the group: what is to be written, and the same as a run for readers.
    pub(crate) fn finish(mut self, place: &Place, mark: Watermark, wants_sync: bool) -> (Taken, Option<Run>) {
        let end = self.base + self.len();
        let is_empty = self.is_empty();
        if !is_empty {
            let mark = mark.encode(&place.segment.binding, self.base, self.first_seq, self.first_ordinal);
            self.buffer[..WATERMARK_LEN].copy_from_slice(&mark);
        }
        let buffer = self.buffer.freeze();
        let run = (!is_empty).then(|| Run {
            segment: place.segment.id,
            base: self.base,
            end,
            buffer: buffer.clone(),
            splices: self.splices.clone(),
        });
        let taken = Taken {
            group: self.group,
            segment: Arc::clone(&place.segment),
            base: self.base,
            end,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            records: self.records,
            tombstone_bytes: self.tombstone_bytes,
            next_ordinal: place.next_ordinal,
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

/// Buffer and splices in the order of the log.
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

/// A value lies whole within the buffer or is a whole splice. A small one is copied, so that it does not hold the
/// group's buffer.
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

/// Whether a tombstone.
pub(crate) fn is_delete(publication: &Publication) -> bool {
    publication.member.kind == RecordKind::Tombstone
}
