//! Frames, the records about the log itself: batch frames, watermarks and footers. Each is a
//! [`Record`](super::record::Record) without a key and with a value of fixed length.

use super::bytes::{Fields, put};
use super::constants::{ALIGN, BATCH_FRAME_LEN, FOOTER_LEN, RECORD_HEADER_LEN, SEGMENT_HEADER_LEN, WATERMARK_LEN};
use super::crc::{Binding, payload_crc};
use super::error::{DecodeError, check_seq};
use super::record::{COMPRESSION_NONE, RecordHeader, RecordKind, read_record};

/// Starts an atomic batch. Its records follow directly, and readers apply all of them or none.
///
/// The sequence number of the frame is that of its first member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFrame {
    /// Records in the batch, at least one.
    pub count: u32,
    /// Total bytes of these records with their padding, without the frame.
    pub bytes: u64,
    /// When the frame was written, all bytes of the segment below this offset were known durable.
    pub durable_offset: u64,
}

/// Starts a commit group and states what was durable at that time. Damage below its `durable_offset` is therefore a
/// loss of acknowledged data and not a torn write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// All bytes of the segment below this offset were known durable.
    pub durable_offset: u64,
    /// All records up to this sequence number were known durable.
    pub durable_seq: u64,
}

/// The last record of a sealed segment. It describes the file before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bytes before the footer, which is the footer's offset.
    pub data_len: u64,
    /// Smallest sequence number of the puts and tombstones; 0 if there are none.
    pub min_seq: u64,
    /// Largest sequence number of the puts and tombstones; 0 if there are none.
    pub max_seq: u64,
    /// Records of every kind before the footer, which is the footer's ordinal.
    pub record_count: u32,
    /// CRC-32 of the first `data_len` bytes of the file.
    pub file_crc: u32,
}

impl BatchFrame {
    /// Encodes the whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; BATCH_FRAME_LEN] {
        let mut out = [0; BATCH_FRAME_LEN];
        put(&mut out, 40, self.count.to_le_bytes());
        put(&mut out, 48, self.bytes.to_le_bytes());
        put(&mut out, 56, self.durable_offset.to_le_bytes());
        complete(&mut out, RecordKind::Batch, binding, offset, seq, ordinal);
        out
    }

    /// Decodes the value of a batch record.
    pub fn decode_value(value: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = sized(value, BATCH_FRAME_LEN)?;
        let count = fields.u32()?;
        fields.zeroes(4)?;
        let frame = Self { count, bytes: fields.u64()?, durable_offset: fields.u64()? };
        let least = u64::from(count) * (RECORD_HEADER_LEN as u64 + ALIGN);
        if count == 0 {
            return Err(DecodeError::Count);
        }
        if frame.bytes < least || !frame.bytes.is_multiple_of(ALIGN) {
            return Err(DecodeError::Length);
        }
        Ok(frame)
    }
}

impl Watermark {
    /// Encodes the whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; WATERMARK_LEN] {
        let mut out = [0; WATERMARK_LEN];
        put(&mut out, 40, self.durable_offset.to_le_bytes());
        put(&mut out, 48, self.durable_seq.to_le_bytes());
        complete(&mut out, RecordKind::Watermark, binding, offset, seq, ordinal);
        out
    }

    /// Decodes the value of a watermark record.
    pub fn decode_value(value: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = sized(value, WATERMARK_LEN)?;
        let mark = Self { durable_offset: fields.u64()?, durable_seq: fields.u64()? };
        check_seq(mark.durable_seq).map(|()| mark)
    }
}

impl Footer {
    /// Encodes the whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; FOOTER_LEN] {
        debug_assert_eq!(
            (self.data_len, self.record_count),
            (offset, ordinal),
            "a footer describes the bytes before it"
        );
        let mut out = [0; FOOTER_LEN];
        put(&mut out, 40, self.data_len.to_le_bytes());
        put(&mut out, 48, self.min_seq.to_le_bytes());
        put(&mut out, 56, self.max_seq.to_le_bytes());
        put(&mut out, 64, self.record_count.to_le_bytes());
        put(&mut out, 68, self.file_crc.to_le_bytes());
        complete(&mut out, RecordKind::Footer, binding, offset, seq, ordinal);
        out
    }

    /// Decodes the value of a footer record.
    pub fn decode_value(value: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = sized(value, FOOTER_LEN)?;
        let footer = Self {
            data_len: fields.u64()?,
            min_seq: fields.u64()?,
            max_seq: fields.u64()?,
            record_count: fields.u32()?,
            file_crc: fields.u32()?,
        };
        fields.zeroes(8)?;
        if footer.min_seq > footer.max_seq {
            return Err(DecodeError::Order);
        }
        if footer.data_len < SEGMENT_HEADER_LEN as u64 || !footer.data_len.is_multiple_of(ALIGN) {
            return Err(DecodeError::Place);
        }
        check_seq(footer.max_seq).map(|()| footer)
    }

    /// Reads the footer of a sealed segment of `file_len` bytes. `tail` is the last [`FOOTER_LEN`] bytes of the file.
    ///
    /// An error only says that the file does not end in a footer: the segment may never have been sealed.
    pub fn decode_at_end(tail: &[u8], binding: &Binding, file_len: u64) -> Result<(Self, RecordHeader), DecodeError> {
        let short = DecodeError::Incomplete { needed: FOOTER_LEN as u64 };
        let offset = file_len.checked_sub(FOOTER_LEN as u64).ok_or(short)?;
        if tail.len() > FOOTER_LEN {
            return Err(DecodeError::Trailing);
        }
        let record = read_record(tail, binding, offset)?;
        if record.header.kind != RecordKind::Footer {
            return Err(DecodeError::Kind(record.header.kind.tag()));
        }
        let footer = Self::decode_value(record.value)?;
        if footer.data_len != offset {
            return Err(DecodeError::Place);
        }
        if footer.record_count != record.header.ordinal {
            return Err(DecodeError::Count);
        }
        Ok((footer, record.header))
    }
}

/// The fields of a frame's value. The whole record has `record_len` bytes, because frames need no padding.
fn sized(value: &[u8], record_len: usize) -> Result<Fields<'_>, DecodeError> {
    if value.len() == record_len - RECORD_HEADER_LEN { Ok(Fields::new(value)) } else { Err(DecodeError::Length) }
}

/// Writes the header of a frame whose value is already in `out`.
fn complete(out: &mut [u8], kind: RecordKind, binding: &Binding, offset: u64, seq: u64, ordinal: u32) {
    let (header, value) = out.split_at_mut(RECORD_HEADER_LEN);
    let value_len = kind.fixed_value_len().unwrap_or(0);
    assert_eq!(value.len() as u64, u64::from(value_len), "the kind of a frame determines its length");
    let fields = RecordHeader {
        payload_crc: payload_crc(&[], value),
        kind,
        compression: COMPRESSION_NONE,
        key_len: 0,
        value_len,
        seq,
        expires_at_ms: 0,
        namespace: 0,
        ordinal,
    };
    header.copy_from_slice(&fields.encode(binding, offset));
}

const _: () = {
    let kinds = [RecordKind::Batch, RecordKind::Watermark, RecordKind::Footer];
    let lens = [BATCH_FRAME_LEN, WATERMARK_LEN, FOOTER_LEN];
    let mut at = 0;
    while at < kinds.len() {
        let Some(value_len) = kinds[at].fixed_value_len() else { panic!("the kind of a frame determines its length") };
        assert!(RECORD_HEADER_LEN + value_len as usize == lens[at], "a frame consists of a header and a value");
        assert!((lens[at] as u64).is_multiple_of(ALIGN), "a frame needs no padding");
        at += 1;
    }
};
