//! A sequential scan of a segment, record by record. It uses no field before it has verified the checksum.
//!
//! The scan streams: it holds a window of the file, and never a whole value that is larger than the window. It stops at
//! the first invalid byte and knows the end of the valid part. The caller decides whether the invalid byte is a torn
//! tail or damage.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crc32fast::Hasher;

use super::window::{CHUNK_BYTES, ReadAhead, Window};
use crate::format::{
    ALIGN, BatchFrame, Binding, DecodeError, MAX_KEY_LEN, PayloadCrc, RECORD_HEADER_LEN, RecordHeader, RecordKind,
    Watermark, find_record, read_record_of,
};
use crate::io::util::to_usize;
use crate::io::{File, util};
use crate::seeded_bug::{self, SeededBug};

/// A put or tombstone that a scan yields. Members of incomplete batches are not yielded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) kind: RecordKind,
    pub(crate) seq: u64,
    pub(crate) offset: u64,
    pub(crate) value_len: u32,
    pub(crate) expires_at_ms: u64,
    pub(crate) namespace: u32,
    pub(crate) compression: u8,
}

impl<'a> Found<'a> {
    /// The record at `offset` with this `key` and `header`.
    pub(crate) fn new(key: &'a [u8], header: &RecordHeader, offset: u64) -> Self {
        let RecordHeader { kind, seq, value_len, expires_at_ms, namespace, compression, .. } = *header;
        Self { key, kind, seq, offset, value_len, expires_at_ms, namespace, compression }
    }
}

/// One verified record of any kind, as stored in its segment.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) offset: u64,
    pub(crate) key: &'a [u8],
    /// All bytes of the record; `None` if it is so large that it was verified piece by piece.
    pub(crate) bytes: Option<&'a [u8]>,
}

/// The valid part of a segment, as far as a scan has read it.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// End of the valid part: every record before it is valid, and every batch is complete.
    pub(crate) end: u64,
    /// Records of every kind before `end`.
    pub(crate) records: u32,
    pub(crate) min_seq: u64,
    pub(crate) max_seq: u64,
    /// Bytes of the tombstones before `end`.
    pub(crate) tombstone_bytes: u64,
    crc: Hasher,
}

impl Extent {
    pub(crate) fn file_crc(&self) -> u32 {
        self.crc.clone().finalize()
    }
}

/// Why and where a scan stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) offset: u64,
    pub(crate) error: DecodeError,
}

/// A scan of one segment.
pub(crate) struct Scan {
    binding: Binding,
    /// Covers the file up to the end of the records: the end of the file, or the offset of the footer.
    window: Window,
    extent: Extent,
}

/// A batch whose members are not complete yet. They are held back until they are.
struct OpenBatch {
    frame_offset: u64,
    end: u64,
    missing: u32,
    members: Vec<(RecordHeader, Vec<u8>, u64)>,
}

/// One verified record, whose key is in the window.
struct ReadRecord {
    header: RecordHeader,
    len: u64,
}

impl ReadRecord {
    fn key<'a>(&self, window: &'a Window, offset: u64) -> &'a [u8] {
        let key = RECORD_HEADER_LEN..RECORD_HEADER_LEN + usize::from(self.header.key_len);
        window.from(offset).get(key).unwrap_or_default()
    }
}

impl Scan {
    /// A scan of the records between the segment header, whose bytes are `header`, and offset `limit`.
    pub(crate) fn new(file: Arc<dyn File>, binding: Binding, header: &[u8], limit: u64) -> Self {
        Self::reading_ahead(file, binding, header, limit, ReadAhead::None)
    }

    /// Like [`new`](Self::new), with a choice of read-ahead.
    pub(crate) fn reading_ahead(
        file: Arc<dyn File>,
        binding: Binding,
        header: &[u8],
        limit: u64,
        read_ahead: ReadAhead,
    ) -> Self {
        let mut crc = Hasher::new();
        crc.update(header);
        let start = header.len() as u64;
        Self {
            binding,
            window: Window::new(file, start, limit, read_ahead),
            extent: Extent { end: start, records: 0, min_seq: 0, max_seq: 0, tombstone_bytes: 0, crc },
        }
    }

    pub(crate) fn extent(&self) -> &Extent {
        &self.extent
    }

    fn limit(&self) -> u64 {
        self.window.limit()
    }

    /// Total bytes read from the file so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.window.bytes_read()
    }

    /// Passes the next records of any kind to `each`, until about `bytes` were read or the end is reached. Returns
    /// `true` at the end, and a [`Stop`] at an invalid record. Does not wait for batches to be complete, so it is only
    /// for sealed segments, whose batches are complete.
    pub(crate) async fn run_raw(
        &mut self,
        bytes: u64,
        mut each: impl FnMut(Stored<'_>),
    ) -> io::Result<Result<bool, Stop>> {
        let until = self.extent.end.saturating_add(bytes).min(self.limit());
        let mut no_crc = None;
        while self.extent.end < until {
            let offset = self.extent.end;
            let read = match self.read(offset, &mut no_crc).await? {
                Ok(read) if read.header.ordinal == self.extent.records => read,
                Ok(_) => return Ok(Err(Stop { offset, error: DecodeError::Order })),
                Err(error) => return Ok(Err(Stop { offset, error })),
            };
            if read.header.kind == RecordKind::Footer {
                return Ok(Err(Stop { offset, error: DecodeError::Kind(read.header.kind.tag()) }));
            }
            each(self.stored(&read, offset));
            self.extent.records += 1;
            self.extent.end = offset + read.len;
        }
        Ok(Ok(self.extent.end >= self.limit()))
    }

    /// The record, borrowed from the window.
    fn stored(&self, read: &ReadRecord, offset: u64) -> Stored<'_> {
        let is_whole = read.len <= CHUNK_BYTES as u64;
        let bytes = self.window.from(offset).get(..to_usize(read.len)).filter(|_| is_whole);
        Stored { header: read.header, offset, key: read.key(&self.window, offset), bytes }
    }

    /// Restricts the following calls of [`read_at`](Self::read_at) to `part` of the file.
    pub(crate) fn go_to(&mut self, part: Range<u64>) {
        self.extent.end = part.start;
        self.window.go_to(part.start, part.end);
    }

    /// Reads the record at `offset`, which must lie after all records read before. Bytes in between are skipped.
    pub(crate) async fn read_at(&mut self, offset: u64) -> io::Result<Result<Stored<'_>, Stop>> {
        if offset < self.extent.end {
            return Ok(Err(Stop { offset, error: DecodeError::Order }));
        }
        let read = match self.read(offset, &mut None).await? {
            Ok(read) => read,
            Err(error) => return Ok(Err(Stop { offset, error })),
        };
        self.extent.end = offset + read.len;
        Ok(Ok(self.stored(&read, offset)))
    }

    /// Continues at `offset`, where [`find_next`](Self::find_next) has found a record.
    pub(crate) fn resume_at(&mut self, offset: u64) {
        self.extent.end = offset;
    }

    /// Passes every put and tombstone to `each`, in the order of the segment, except for members of incomplete batches.
    /// Stops at the limit or at the first invalid byte. With `check_ordinals`, a gap in the ordinals is invalid, too.
    pub(crate) async fn run(
        &mut self,
        mut check_ordinals: bool,
        mut each: impl FnMut(Found<'_>),
    ) -> io::Result<Option<Stop>> {
        let mut batch: Option<OpenBatch> = None;
        let mut reached = self.extent.clone();
        while reached.end < self.limit() {
            let offset = reached.end;
            let read = match self.read(offset, &mut Some(&mut reached.crc)).await {
                Ok(Ok(read)) => read,
                Ok(Err(_)) if seeded_bug::is(SeededBug::SkipBadRecord) => {
                    let Some(next) = self.find_next(offset + ALIGN).await? else { return Ok(None) };
                    reached.end = next;
                    check_ordinals = false;
                    continue;
                }
                Ok(Err(error)) => return Ok(Some(stop_at(batch.as_ref(), offset, error))),
                Err(_) if seeded_bug::is(SeededBug::ReadErrorIsEnd) => {
                    let error = DecodeError::Incomplete { needed: 0 };
                    return Ok(Some(stop_at(batch.as_ref(), offset, error)));
                }
                Err(error) => return Err(error),
            };
            if check_ordinals && read.header.ordinal != reached.records {
                return Ok(Some(stop_at(batch.as_ref(), offset, DecodeError::Order)));
            }
            reached.records = read.header.ordinal.wrapping_add(1);
            reached.end = offset + read.len;
            let result = self.take_in(&read, offset, &mut batch, &mut reached, &mut each);
            if let Err(error) = result {
                return Ok(Some(stop_at(batch.as_ref(), offset, error)));
            }
            if batch.is_none() {
                self.extent = reached.clone();
            }
        }
        Ok(batch.map(|batch| Stop { offset: batch.frame_offset, error: DecodeError::Incomplete { needed: 0 } }))
    }

    /// Processes a record: it starts, continues or completes a batch, or stands alone.
    fn take_in(
        &self,
        read: &ReadRecord,
        offset: u64,
        batch: &mut Option<OpenBatch>,
        reached: &mut Extent,
        each: &mut impl FnMut(Found<'_>),
    ) -> Result<(), DecodeError> {
        let header = &read.header;
        let (kind, seq) = (header.kind, header.seq);
        match kind {
            RecordKind::Put | RecordKind::Tombstone => {
                reached.min_seq = if reached.min_seq == 0 { seq } else { reached.min_seq.min(seq) };
                reached.max_seq = reached.max_seq.max(seq);
                if kind == RecordKind::Tombstone {
                    reached.tombstone_bytes += read.len;
                }
                let key = read.key(&self.window, offset);
                if seeded_bug::is(SeededBug::BatchNotAtomic) {
                    each(Found::new(key, header, offset));
                    return Ok(());
                }
                let Some(open) = batch else {
                    each(Found::new(key, header, offset));
                    return Ok(());
                };
                open.members.push((*header, key.to_vec(), offset));
                open.missing -= 1;
                if open.missing > 0 {
                    return if reached.end < open.end { Ok(()) } else { Err(DecodeError::Count) };
                }
                if reached.end != open.end {
                    return Err(DecodeError::Count);
                }
                for (header, key, offset) in open.members.drain(..) {
                    each(Found::new(&key, &header, offset));
                }
                *batch = None;
                Ok(())
            }
            // Batches contain only puts and tombstones.
            _ if batch.is_some() => Err(DecodeError::Kind(kind.tag())),
            RecordKind::Batch if seeded_bug::is(SeededBug::BatchNotAtomic) => Ok(()),
            RecordKind::Batch => {
                let frame = BatchFrame::decode_value(self.value_of(offset, header))?;
                let end = reached.end.checked_add(frame.bytes).ok_or(DecodeError::Length)?;
                if frame.count == 0 || end > self.limit() {
                    return Err(DecodeError::Length);
                }
                *batch = Some(OpenBatch { frame_offset: offset, end, missing: frame.count, members: Vec::new() });
                Ok(())
            }
            RecordKind::Watermark => Watermark::decode_value(self.value_of(offset, header)).map(|_| ()),
            // The footer of a sealed segment lies beyond the limit of the scan.
            RecordKind::Footer => Err(DecodeError::Kind(kind.tag())),
        }
    }

    /// The value of a frame. Frames are short and have no key, so the value is in the window.
    fn value_of(&self, offset: u64, header: &RecordHeader) -> &[u8] {
        let value = RECORD_HEADER_LEN..RECORD_HEADER_LEN + header.value_len as usize;
        self.window.from(offset).get(value).unwrap_or_default()
    }

    /// Reads and verifies the record at `offset`. Adds its bytes to `crc`, if there is one.
    async fn read(
        &mut self,
        offset: u64,
        crc: &mut Option<&mut Hasher>,
    ) -> io::Result<Result<ReadRecord, DecodeError>> {
        self.window.fill(offset, RECORD_HEADER_LEN + MAX_KEY_LEN).await?;
        let header = match RecordHeader::decode(self.window.from(offset), &self.binding, offset) {
            Ok(header) => header,
            Err(DecodeError::Zeroes) if seeded_bug::is(SeededBug::ZerosDecode) => {
                return Ok(Ok(ReadRecord { header: zeros(self.extent.records), len: ALIGN }));
            }
            Err(DecodeError::HeaderChecksum) if seeded_bug::is(SeededBug::HeaderUnverified) => {
                match unverified(self.window.from(offset), &self.binding, offset) {
                    Ok(header) => header,
                    Err(error) => return Ok(Err(error)),
                }
            }
            Err(error) => return Ok(Err(error)),
        };
        let len = header.record_len();
        if len > self.limit() - offset && !seeded_bug::is(SeededBug::LengthUnchecked) {
            return Ok(Err(DecodeError::Length));
        }
        if len > CHUNK_BYTES as u64 {
            return Ok(self.read_streaming(offset, &header, crc).await?.map(|()| ReadRecord { header, len }));
        }
        self.window.fill(offset, to_usize(len)).await?;
        let bytes = self.window.from(offset);
        match read_record_of(header, bytes) {
            Err(DecodeError::PayloadChecksum | DecodeError::Padding)
                if seeded_bug::is(SeededBug::PayloadUnverified) => {}
            Err(DecodeError::Incomplete { .. }) if seeded_bug::is(SeededBug::LengthUnchecked) => {}
            Err(error) => return Ok(Err(error)),
            Ok(_) => {}
        }
        if let Some(crc) = crc {
            crc.update(bytes.get(..to_usize(len)).unwrap_or(bytes));
        }
        Ok(Ok(ReadRecord { header, len }))
    }

    /// Verifies a record that is larger than the window, piece by piece. The window still holds its header and key.
    async fn read_streaming(
        &mut self,
        offset: u64,
        header: &RecordHeader,
        crc: &mut Option<&mut Hasher>,
    ) -> io::Result<Result<(), DecodeError>> {
        let end = offset + header.record_len();
        let payload_end = offset + RECORD_HEADER_LEN as u64 + header.payload_len();
        let mut payload = PayloadCrc::new();
        let mut position = offset;
        while position < end {
            let len = to_usize((end - position).min(CHUNK_BYTES as u64));
            let piece = util::read_exact(&**self.window.file(), position, len).await?;
            self.window.count_read(len as u64);
            if let Some(crc) = crc {
                crc.update(&piece);
            }
            let skip = if position == offset { RECORD_HEADER_LEN } else { 0 };
            let payload_len = to_usize(payload_end.saturating_sub(position).min(len as u64));
            payload.update(piece.get(skip..payload_len).unwrap_or_default());
            if piece[payload_len.min(len)..].iter().any(|&byte| byte != 0) {
                return Ok(Err(DecodeError::Padding));
            }
            position += len as u64;
        }
        Ok(if payload.finish() == header.payload_crc { Ok(()) } else { Err(DecodeError::PayloadChecksum) })
    }

    /// Finds the offset of the next valid record at or after `from`.
    pub(crate) async fn find_next(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut position = from.next_multiple_of(ALIGN);
        while position + RECORD_HEADER_LEN as u64 <= self.limit() {
            let available = self.window.fill(position, CHUNK_BYTES).await?;
            let bytes = self.window.from(position);
            let found = find_record(&bytes[..available.min(bytes.len())], &self.binding, position, position);
            let Some(found) = found else {
                // A header may cross the end of the window.
                let step = (available.saturating_sub(RECORD_HEADER_LEN) as u64 & !(ALIGN - 1)) + ALIGN;
                position += step;
                continue;
            };
            if self.read(found, &mut None).await?.is_ok() {
                return Ok(Some(found));
            }
            position = found + ALIGN;
        }
        Ok(None)
    }

    /// Whether any valid frame after `from` states that bytes after `from` were durable when the frame was written.
    pub(crate) async fn durable_beyond(&mut self, from: u64) -> io::Result<bool> {
        let mut position = from + ALIGN;
        while let Some(found) = self.find_next(position).await? {
            let Ok(read) = self.read(found, &mut None).await? else { return Ok(false) };
            let value = self.value_of(found, &read.header);
            let durable = match read.header.kind {
                RecordKind::Watermark => Watermark::decode_value(value).map(|mark| mark.durable_offset),
                RecordKind::Batch => BatchFrame::decode_value(value).map(|frame| frame.durable_offset),
                RecordKind::Footer => Ok(found),
                _ => Ok(0),
            };
            if durable.is_ok_and(|durable| durable > from) {
                return Ok(true);
            }
            position = found + read.len;
        }
        Ok(false)
    }
}

/// Decodes the header at the start of `bytes` without checking its checksum. Only for a seeded bug.
fn unverified(bytes: &[u8], binding: &Binding, offset: u64) -> Result<RecordHeader, DecodeError> {
    let mut header = bytes.get(..RECORD_HEADER_LEN).unwrap_or_default().to_vec();
    let crc = binding.header_crc(offset, header.get(4..).unwrap_or_default());
    header.iter_mut().zip(crc.to_le_bytes()).for_each(|(old, new)| *old = new);
    RecordHeader::decode(&header, binding, offset)
}

/// The record that a faulty decoder would see in zeros: an empty frame. Only for a seeded bug.
fn zeros(ordinal: u32) -> RecordHeader {
    RecordHeader {
        payload_crc: 0,
        kind: RecordKind::Watermark,
        compression: 0,
        key_len: 0,
        value_len: 16,
        seq: 0,
        expires_at_ms: 0,
        namespace: 0,
        ordinal,
    }
}

fn stop_at(batch: Option<&OpenBatch>, offset: u64, error: DecodeError) -> Stop {
    Stop { offset: batch.map_or(offset, |batch| batch.frame_offset), error }
}
