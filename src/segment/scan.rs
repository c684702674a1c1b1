//! Reading a segment from its start, record by record, believing nothing before its checksum.
//!
//! The scan streams: it holds a window of the file, never a whole value that does not fit into it. It stops at the
//! first byte that is not as it should be, and knows how far everything was. What that byte means (a torn tail, or
//! damage) is decided by the caller.

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

/// A put or tombstone that counts.
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
    /// The record at `offset` with `header` and `key`.
    pub(crate) fn new(key: &'a [u8], header: &RecordHeader, offset: u64) -> Self {
        let RecordHeader { kind, seq, value_len, expires_at_ms, namespace, compression, .. } = *header;
        Self { key, kind, seq, offset, value_len, expires_at_ms, namespace, compression }
    }
}

/// One record of any kind as it lies in its segment, verified.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) offset: u64,
    pub(crate) key: &'a [u8],
    /// All of its bytes, unless it is so large that they were verified a piece at a time.
    pub(crate) bytes: Option<&'a [u8]>,
}

/// How far a scan came.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Everything before this offset is whole: records, and batches with all their members.
    pub(crate) end: u64,
    /// Records of all kinds before `end`.
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

/// What stopped a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) offset: u64,
    pub(crate) error: DecodeError,
}

/// A scan of one segment.
pub(crate) struct Scan {
    binding: Binding,
    /// Over the file up to where the records end: the file's length, or its footer's offset.
    window: Window,
    extent: Extent,
}

/// Members of a batch wait here until the batch is whole.
struct OpenBatch {
    frame_offset: u64,
    end: u64,
    missing: u32,
    members: Vec<(RecordHeader, Vec<u8>, u64)>,
}

/// One record as it was read; its key lies in the window.
struct Read {
    header: RecordHeader,
    len: u64,
}

impl Read {
    fn key<'a>(&self, window: &'a Window, offset: u64) -> &'a [u8] {
        let key = RECORD_HEADER_LEN..RECORD_HEADER_LEN + usize::from(self.header.key_len);
        window.from(offset).get(key).unwrap_or_default()
    }
}

impl Scan {
    /// A scan of the records from `start` (behind the segment header, whose bytes are `header`) up to `limit`.
    pub(crate) fn new(file: Arc<dyn File>, binding: Binding, header: &[u8], limit: u64) -> Self {
        Self::reading_ahead(file, binding, header, limit, ReadAhead::None)
    }

    /// As [`new`](Self::new), with a choice of how the file is read.
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

    /// Bytes read from the file so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.window.bytes_read()
    }

    /// Hands the next records to `each`, of whatever kind and whether or not their batch turns out whole, until about
    /// `bytes` of them were seen or the end is reached; `true` at the end. Only for sealed segments, whose batches are
    /// whole; a record that is not as it should be is the inner error.
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

    /// The record as it lies in the window.
    fn stored(&self, read: &Read, offset: u64) -> Stored<'_> {
        let is_whole = read.len <= CHUNK_BYTES as u64;
        let bytes = self.window.from(offset).get(..to_usize(read.len)).filter(|_| is_whole);
        Stored { header: read.header, offset, key: read.key(&self.window, offset), bytes }
    }

    /// Goes on with [`read_at`](Self::read_at), of records in `part` of the file.
    pub(crate) fn go_to(&mut self, part: Range<u64>) {
        self.extent.end = part.start;
        self.window.go_to(part.start, part.end);
    }

    /// The record at `offset`, behind all that were read before. What lies between them is read over, and not looked at.
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

    /// Goes on from `offset`, where [`find_next`](Self::find_next) found a record.
    pub(crate) fn resume_at(&mut self, offset: u64) {
        self.extent.end = offset;
    }

    /// Hands every put and tombstone that counts to `each`, in their order, until the limit or the first thing that is
    /// not as it should be. `in_order` demands that ordinals follow each other without a gap.
    pub(crate) async fn run(
        &mut self,
        mut in_order: bool,
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
                    in_order = false;
                    continue;
                }
                Ok(Err(error)) => return Ok(Some(stop_at(batch.as_ref(), offset, error))),
                Err(_) if seeded_bug::is(SeededBug::ReadErrorIsEnd) => {
                    let error = DecodeError::Incomplete { needed: 0 };
                    return Ok(Some(stop_at(batch.as_ref(), offset, error)));
                }
                Err(error) => return Err(error),
            };
            if in_order && read.header.ordinal != reached.records {
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

    /// What a record means: a batch begins, goes on or is complete; or it counts by itself.
    fn take_in(
        &self,
        read: &Read,
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
            // A frame, watermark or footer has no business inside a batch.
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
            // A footer is the end of a sealed segment and lies behind the limit of its scan.
            RecordKind::Footer => Err(DecodeError::Kind(kind.tag())),
        }
    }

    /// The value of a short record without a key, which lies whole in the window.
    fn value_of(&self, offset: u64, header: &RecordHeader) -> &[u8] {
        let value = RECORD_HEADER_LEN..RECORD_HEADER_LEN + header.value_len as usize;
        self.window.from(offset).get(value).unwrap_or_default()
    }

    /// Reads and checks the record at `offset`, adding its bytes to `crc` if there is one.
    async fn read(&mut self, offset: u64, crc: &mut Option<&mut Hasher>) -> io::Result<Result<Read, DecodeError>> {
        self.window.fill(offset, RECORD_HEADER_LEN + MAX_KEY_LEN).await?;
        let header = match RecordHeader::decode(self.window.from(offset), &self.binding, offset) {
            Ok(header) => header,
            Err(DecodeError::Zeroes) if seeded_bug::is(SeededBug::ZerosDecode) => {
                return Ok(Ok(Read { header: zeros(self.extent.records), len: ALIGN }));
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
            return Ok(self.read_streaming(offset, &header, crc).await?.map(|()| Read { header, len }));
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
        Ok(Ok(Read { header, len }))
    }

    /// Checks a record that is larger than the window, a piece at a time. The window still holds its header and key.
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

    /// The next offset at or behind `from` where a whole record lies, and whether a frame from there on says that bytes
    /// behind `from` were known durable.
    pub(crate) async fn find_next(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut position = from.next_multiple_of(ALIGN);
        while position + RECORD_HEADER_LEN as u64 <= self.limit() {
            let available = self.window.fill(position, CHUNK_BYTES).await?;
            let bytes = self.window.from(position);
            let found = find_record(&bytes[..available.min(bytes.len())], &self.binding, position, position);
            let Some(found) = found else {
                // A header may straddle two windows.
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

    /// Whether any whole frame behind `from` says that bytes behind `from` were durable when it was written.
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

/// The header at the start of `bytes`, whatever its checksum says: part of a mistake.
fn unverified(bytes: &[u8], binding: &Binding, offset: u64) -> Result<RecordHeader, DecodeError> {
    let mut header = bytes.get(..RECORD_HEADER_LEN).unwrap_or_default().to_vec();
    let crc = binding.header_crc(offset, header.get(4..).unwrap_or_default());
    header.iter_mut().zip(crc.to_le_bytes()).for_each(|(old, new)| *old = new);
    RecordHeader::decode(&header, binding, offset)
}

/// What a mistaken decoder would make of zeros: a frame that says nothing.
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
