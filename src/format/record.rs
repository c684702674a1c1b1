//! One record: header, key, value and padding. Encodes and decodes it, and finds the next record after damage.
//!
//! This module knows neither files nor policy: the reader of the segment decides whether a refused record is a torn
//! tail or corruption. Every decoder verifies the header's checksum before it uses any field of the header.

use super::bytes::{Fields, is_zero, put};
use super::constants::{ALIGN, MAX_KEY_LEN, MAX_VALUE_LEN, RECORD_HEADER_LEN, SEGMENT_HEADER_LEN};
use super::crc::{Binding, payload_crc};
use super::error::{DecodeError, check_seq};

/// The kind of a record. 0 is not a kind; it means "never written".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A key and its value.
    Put = 1,
    /// A key that was deleted.
    Tombstone = 2,
    /// The start of an atomic batch; see [`BatchFrame`](super::BatchFrame).
    Batch = 3,
    /// What was durable when this record was written; see [`Watermark`](super::Watermark).
    Watermark = 4,
    /// The end of a sealed segment; see [`Footer`](super::Footer).
    Footer = 5,
}

impl RecordKind {
    /// The tag that stands for this kind on disk.
    pub const fn tag(self) -> u8 {
        self as u8
    }

    /// The kind with this tag on disk.
    pub const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Put),
            2 => Some(Self::Tombstone),
            3 => Some(Self::Batch),
            4 => Some(Self::Watermark),
            5 => Some(Self::Footer),
            _ => None,
        }
    }

    /// Bytes of the value, for the kinds that determine them.
    pub(super) const fn fixed_value_len(self) -> Option<u32> {
        match self {
            Self::Put => None,
            Self::Tombstone => Some(0),
            Self::Batch => Some(24),
            Self::Watermark => Some(16),
            Self::Footer => Some(40),
        }
    }
}

/// [`ALIGN`] as a `usize`.
const STEP: usize = 8;

/// The tag for no compression, the only one that this version knows.
pub const COMPRESSION_NONE: u8 = 0;

/// The fixed part at the start of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// [`payload_crc`] of the key and the stored value.
    pub payload_crc: u32,
    /// The kind of the record.
    pub kind: RecordKind,
    /// How the stored value is compressed; always [`COMPRESSION_NONE`] except for puts.
    pub compression: u8,
    /// Bytes of the key: 1..=[`MAX_KEY_LEN`] for puts and tombstones, otherwise 0.
    pub key_len: u16,
    /// Bytes of the stored value, 0..=[`MAX_VALUE_LEN`].
    pub value_len: u32,
    /// Sequence number of the write. Compaction keeps it.
    pub seq: u64,
    /// When the value expires, in milliseconds since 1970; 0 = never. Always 0 except for puts.
    pub expires_at_ms: u64,
    /// Namespace of the key; 0 for frames.
    pub namespace: u32,
    /// Number of records before this one in the segment.
    pub ordinal: u32,
}

impl RecordHeader {
    /// Encodes the header without sequence number, ordinal and checksum; [`patch_header`] adds them.
    pub fn draft(&self) -> [u8; RECORD_HEADER_LEN] {
        debug_assert_eq!(self.check(), Ok(()), "a header that would be refused when read: {self:?}");
        let mut out = [0; RECORD_HEADER_LEN];
        put(&mut out, 4, self.payload_crc.to_le_bytes());
        put(&mut out, 8, [self.kind.tag(), self.compression]);
        put(&mut out, 10, self.key_len.to_le_bytes());
        put(&mut out, 12, self.value_len.to_le_bytes());
        put(&mut out, 24, self.expires_at_ms.to_le_bytes());
        put(&mut out, 32, self.namespace.to_le_bytes());
        out
    }

    /// Encodes the header of a record at `offset` of the segment of `binding`.
    pub fn encode(&self, binding: &Binding, offset: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut out = self.draft();
        patch_header(&mut out, binding, offset, self.seq, self.ordinal);
        out
    }

    /// Decodes the header at the start of `bytes`, which begin at `offset` of the segment.
    pub fn decode(bytes: &[u8], binding: &Binding, offset: u64) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let header: [u8; RECORD_HEADER_LEN] = fields.array()?;
        if is_zero(&header) {
            return Err(DecodeError::Zeroes);
        }
        let mut fields = Fields::new(&header);
        if fields.u32()? != binding.header_crc(offset, fields.rest()) {
            return Err(DecodeError::HeaderChecksum);
        }
        let payload_crc = fields.u32()?;
        let tag = fields.u8()?;
        let decoded = Self {
            payload_crc,
            kind: RecordKind::from_tag(tag).ok_or(DecodeError::Kind(tag))?,
            compression: fields.u8()?,
            key_len: fields.u16()?,
            value_len: fields.u32()?,
            seq: fields.u64()?,
            expires_at_ms: fields.u64()?,
            namespace: fields.u32()?,
            ordinal: fields.u32()?,
        };
        decoded.check().map(|()| decoded)
    }

    /// Checks the rules that a checksum cannot check. This version never writes a header that breaks them.
    fn check(&self) -> Result<(), DecodeError> {
        if self.compression != COMPRESSION_NONE {
            return Err(DecodeError::Compression(self.compression));
        }
        let has_key = matches!(self.kind, RecordKind::Put | RecordKind::Tombstone);
        if has_key != (self.key_len > 0) || self.value_len > MAX_VALUE_LEN {
            return Err(DecodeError::Length);
        }
        if self.kind.fixed_value_len().is_some_and(|len| len != self.value_len) {
            return Err(DecodeError::Length);
        }
        let expires = self.expires_at_ms != 0;
        if (expires && self.kind != RecordKind::Put) || (self.namespace != 0 && !has_key) {
            return Err(DecodeError::Reserved);
        }
        check_seq(self.seq)
    }

    /// Bytes of key and value.
    pub fn payload_len(&self) -> u64 {
        u64::from(self.key_len) + u64::from(self.value_len)
    }

    /// Bytes of the whole record with its padding, at most [`u32::MAX`].
    pub fn record_len(&self) -> u64 {
        (RECORD_HEADER_LEN as u64 + self.payload_len()).next_multiple_of(ALIGN)
    }
}

/// Bytes of a whole record, with its padding, for a key and a value of these lengths.
///
/// The result is also correct for lengths beyond the limits, and saturates at [`u64::MAX`].
pub fn record_len(key_len: usize, value_len: usize) -> u64 {
    let unpadded = (RECORD_HEADER_LEN as u64).saturating_add(key_len as u64).saturating_add(value_len as u64);
    unpadded.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// Completes a [draft](RecordHeader::draft) of a header once the record's place is known: writes sequence number,
/// ordinal and checksum. No other part of encoding a put runs under the log's lock.
///
/// # Panics
///
/// If `header` is not [`RECORD_HEADER_LEN`] bytes long. To continue would write a record that no reader accepts.
pub fn patch_header(header: &mut [u8], binding: &Binding, offset: u64, seq: u64, ordinal: u32) {
    assert_eq!(header.len(), RECORD_HEADER_LEN, "a record header has a fixed length");
    debug_assert!(offset.is_multiple_of(ALIGN), "record offset {offset} is not aligned");
    put(header, 16, seq.to_le_bytes());
    put(header, 36, ordinal.to_le_bytes());
    let crc = binding.header_crc(offset, &header[4..]);
    put(header, 0, crc.to_le_bytes());
}

/// A verified record that borrows the bytes it was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The header.
    pub header: RecordHeader,
    /// The key; empty for frames.
    pub key: &'a [u8],
    /// The stored value.
    pub value: &'a [u8],
    /// Bytes of the whole record with its padding, which is the distance to the next record.
    pub len: u64,
}

// Keys and values may be secret, so they never appear in logs.
impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("header", &self.header).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Decodes and verifies the whole record at the start of `bytes`, which begin at `offset` of the segment and may extend
/// beyond the record. [`DecodeError::Incomplete`] states how many bytes are needed; the caller compares that with the
/// length of the file before it allocates.
pub fn read_record<'a>(bytes: &'a [u8], binding: &Binding, offset: u64) -> Result<Record<'a>, DecodeError> {
    read_record_of(RecordHeader::decode(bytes, binding, offset)?, bytes)
}

/// Like [`read_record`], for a `header` that was already decoded from the same `bytes`.
pub fn read_record_of(header: RecordHeader, bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
    let len = header.record_len();
    let whole = usize::try_from(len).ok().and_then(|len| bytes.get(..len));
    let mut fields = Fields::new(whole.ok_or(DecodeError::Incomplete { needed: len })?);
    fields.slice(RECORD_HEADER_LEN)?;
    let key = fields.slice(usize::from(header.key_len))?;
    let value = fields.slice(usize::try_from(header.value_len).map_err(|_| DecodeError::Length)?)?;
    if payload_crc(key, value) != header.payload_crc {
        return Err(DecodeError::PayloadChecksum);
    }
    if !is_zero(fields.rest()) {
        return Err(DecodeError::Padding);
    }
    Ok(Record { header, key, value, len })
}

/// Finds the offset of the next record header at or after `from`, where damage has made the record lengths unusable.
///
/// `bytes` begin at `base_offset` of the segment. Only the header is verified; the rest of the record may be damaged.
/// The search tries every aligned offset whose header lies within `bytes`, in one pass.
pub fn find_record(bytes: &[u8], binding: &Binding, base_offset: u64, from: u64) -> Option<u64> {
    let start = from.max(base_offset).max(SEGMENT_HEADER_LEN as u64).checked_next_multiple_of(ALIGN)?;
    let skip = usize::try_from(start - base_offset).ok()?;
    let windows = bytes.get(skip..)?.windows(RECORD_HEADER_LEN).step_by(STEP);
    windows.zip(0..).find_map(|(window, index)| {
        let offset = start.checked_add(index * ALIGN)?;
        // Testing the kind is cheap and rules out most offsets. The checksum decides.
        RecordKind::from_tag(window[8])?;
        RecordHeader::decode(window, binding, offset).ok().map(|_| offset)
    })
}

const _: () = {
    let longest = RECORD_HEADER_LEN as u64 + MAX_KEY_LEN as u64 + MAX_VALUE_LEN as u64;
    assert!(longest.next_multiple_of(ALIGN) <= u32::MAX as u64, "the length of any record fits in 32 bits");
    assert!(STEP as u64 == ALIGN, "STEP is ALIGN as a usize");
    assert!(MAX_KEY_LEN == u16::MAX as usize, "every value of key_len is within the limit");
};
