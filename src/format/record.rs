//! One record: header, key, value, padding. Encoding, decoding, and finding the next one after damage.
//!
//! Knows no files and no policy: what a refused record means (a torn tail, corruption) is for the reader of the
//! segment. Every decoder checks the header's checksum before it believes any of its fields.

use super::bytes::{Fields, is_zero, put};
use super::{ALIGN, Binding, DecodeError, MAX_KEY_LEN, MAX_VALUE_LEN, check_seq};
use super::{RECORD_HEADER_LEN, SEGMENT_HEADER_LEN, payload_crc};

/// What a record is. 0 is not a kind: it means never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A key and its value.
    Put = 1,
    /// A key that has no value any more.
    Tombstone = 2,
    /// The start of an atomic batch: see [`BatchFrame`](super::BatchFrame).
    Batch = 3,
    /// How much was durable when this was written: see [`Watermark`](super::Watermark).
    Watermark = 4,
    /// The end of a sealed segment: see [`Footer`](super::Footer).
    Footer = 5,
}

impl RecordKind {
    /// The tag on disk.
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

    /// Bytes of the value that a record of this kind must have, if the kind says.
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

/// [`ALIGN`] as a count of bytes in memory.
const STEP: usize = 8;

/// No compression: the only tag this version knows.
pub const COMPRESSION_NONE: u8 = 0;

/// The fixed part at the start of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// [`payload_crc`] of key and stored value.
    pub payload_crc: u32,
    /// What the record is.
    pub kind: RecordKind,
    /// How the stored value was compressed; [`COMPRESSION_NONE`] for everything but a put.
    pub compression: u8,
    /// Bytes of the key: 1..=[`MAX_KEY_LEN`] for puts and tombstones, 0 for all else.
    pub key_len: u16,
    /// Bytes of the value as stored, 0..=[`MAX_VALUE_LEN`].
    pub value_len: u32,
    /// Sequence number of the write; compaction keeps it.
    pub seq: u64,
    /// When the value expires, in milliseconds since 1970; 0 = never, and for everything but a put.
    pub expires_at_ms: u64,
    /// Namespace of the key; 0 for frames.
    pub namespace: u32,
    /// Number of records before this one in its segment.
    pub ordinal: u32,
}

impl RecordHeader {
    /// The header's bytes with sequence number, ordinal and checksum still missing: see [`patch_header`].
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

    /// The header's bytes for a record at `offset` of the segment that `binding` stands for.
    pub fn encode(&self, binding: &Binding, offset: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut out = self.draft();
        patch_header(&mut out, binding, offset, self.seq, self.ordinal);
        out
    }

    /// Reads the header at the start of `bytes`, which are those from `offset` of the segment on.
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

    /// The rules a right checksum does not replace: a header that breaks them was never written by this version.
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

    /// Bytes of the whole record with its padding. Never more than [`u32::MAX`].
    pub fn record_len(&self) -> u64 {
        (RECORD_HEADER_LEN as u64 + self.payload_len()).next_multiple_of(ALIGN)
    }
}

/// Bytes of a whole record, padding included, with a key and a value of these lengths.
///
/// The lengths are taken to be within the limits; beyond them the answer is right all the same, up to [`u64::MAX`].
pub fn record_len(key_len: usize, value_len: usize) -> u64 {
    let unpadded = (RECORD_HEADER_LEN as u64).saturating_add(key_len as u64).saturating_add(value_len as u64);
    unpadded.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// Completes a [drafted](RecordHeader::draft) header once its place is known: fills in sequence number, ordinal and
/// checksum. The only part of encoding a put that happens under the log's lock.
///
/// # Panics
///
/// If `header` is not [`RECORD_HEADER_LEN`] bytes long. Going on would write a record that no reader accepts.
pub fn patch_header(header: &mut [u8], binding: &Binding, offset: u64, seq: u64, ordinal: u32) {
    assert_eq!(header.len(), RECORD_HEADER_LEN, "a record header has a fixed length");
    debug_assert!(offset.is_multiple_of(ALIGN), "records are aligned, {offset} is not");
    put(header, 16, seq.to_le_bytes());
    put(header, 36, ordinal.to_le_bytes());
    let crc = binding.header_crc(offset, &header[4..]);
    put(header, 0, crc.to_le_bytes());
}

/// A verified record, borrowed from the bytes it was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its header.
    pub header: RecordHeader,
    /// Its key; empty for frames.
    pub key: &'a [u8],
    /// Its value as stored.
    pub value: &'a [u8],
    /// Bytes of the whole record with its padding: the next one starts so much later.
    pub len: u64,
}

// Keys and values are the user's secrets and stay out of logs.
impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("header", &self.header).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Reads and verifies the whole record at the start of `bytes`, which are those from `offset` of the segment on and may
/// go beyond the record. [`DecodeError::Incomplete`] says how many there must be; whether the file can have so many is
/// for the caller to compare, before it allocates.
pub fn read_record<'a>(bytes: &'a [u8], binding: &Binding, offset: u64) -> Result<Record<'a>, DecodeError> {
    read_record_of(RecordHeader::decode(bytes, binding, offset)?, bytes)
}

/// As [`read_record`], of a record whose header was decoded from the same `bytes` before.
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

/// Where, at or after `from`, the next record header stands, after damage has made the lengths unusable.
///
/// `bytes` are those from `base_offset` of the segment on. Only the header is verified: the record may be damaged
/// further on. Looks at every aligned offset whose header lies within `bytes`, in one pass.
pub fn find_record(bytes: &[u8], binding: &Binding, base_offset: u64, from: u64) -> Option<u64> {
    let start = from.max(base_offset).max(SEGMENT_HEADER_LEN as u64).checked_next_multiple_of(ALIGN)?;
    let skip = usize::try_from(start - base_offset).ok()?;
    let windows = bytes.get(skip..)?.windows(RECORD_HEADER_LEN).step_by(STEP);
    windows.zip(0..).find_map(|(window, index)| {
        let offset = start.checked_add(index * ALIGN)?;
        // The kind costs one look and rules out most places; the checksum decides.
        RecordKind::from_tag(window[8])?;
        RecordHeader::decode(window, binding, offset).ok().map(|_| offset)
    })
}

const _: () = {
    let longest = RECORD_HEADER_LEN as u64 + MAX_KEY_LEN as u64 + MAX_VALUE_LEN as u64;
    assert!(longest.next_multiple_of(ALIGN) <= u32::MAX as u64, "the length of any record fits 32 bits");
    assert!(STEP as u64 == ALIGN, "two names of one number");
    assert!(MAX_KEY_LEN == u16::MAX as usize, "every value of key_len is within the limit");
};
