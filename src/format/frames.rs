//! The records that are about the log itself: batch frames, watermarks, footers. Each is a [`Record`](super::Record)
//! without a key whose value has a fixed length.

use super::bytes::{Fields, put};
use super::record::COMPRESSION_NONE;
use super::{ALIGN, BATCH_FRAME_LEN, Binding, DecodeError, FOOTER_LEN, RECORD_HEADER_LEN, WATERMARK_LEN};
use super::{RecordHeader, RecordKind, SEGMENT_HEADER_LEN, check_seq, payload_crc, read_record};

/// Announces the records of an atomic batch, which follow at once: all of them count, or none.
///
/// The sequence number of the frame is that of its first member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFrame {
    /// Records in the batch, at least one.
    pub count: u32,
    /// Their bytes in all, padding included, the frame itself not.
    pub bytes: u64,
    /// Bytes of this segment below here were known durable when the frame was written.
    pub durable_offset: u64,
}

/// Written at the start of each commit group: what was durable by then, so that a tail cut below it is known to be a
/// loss and not a torn write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Bytes of this segment below here were known durable.
    pub durable_offset: u64,
    /// Records up to this sequence number were known durable.
    pub durable_seq: u64,
}

/// The last record of a sealed segment: what the file must look like before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Length of everything before the footer, which is the footer's offset.
    pub data_len: u64,
    /// Smallest sequence number of its puts and tombstones; 0 if it has none.
    pub min_seq: u64,
    /// Largest sequence number of its puts and tombstones; 0 if it has none.
    pub max_seq: u64,
    /// Records of all kinds before the footer, which is the footer's ordinal.
    pub record_count: u32,
    /// CRC-32 of the first `data_len` bytes of the file.
    pub file_crc: u32,
}

impl BatchFrame {
    /// The whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; BATCH_FRAME_LEN] {
        let mut out = [0; BATCH_FRAME_LEN];
        put(&mut out, 40, self.count.to_le_bytes());
        put(&mut out, 48, self.bytes.to_le_bytes());
        put(&mut out, 56, self.durable_offset.to_le_bytes());
        complete(&mut out, RecordKind::Batch, binding, offset, seq, ordinal);
        out
    }

    /// Reads the value of a batch record.
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
    /// The whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; WATERMARK_LEN] {
        let mut out = [0; WATERMARK_LEN];
        put(&mut out, 40, self.durable_offset.to_le_bytes());
        put(&mut out, 48, self.durable_seq.to_le_bytes());
        complete(&mut out, RecordKind::Watermark, binding, offset, seq, ordinal);
        out
    }

    /// Reads the value of a watermark record.
    pub fn decode_value(value: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = sized(value, WATERMARK_LEN)?;
        let mark = Self { durable_offset: fields.u64()?, durable_seq: fields.u64()? };
        check_seq(mark.durable_seq).map(|()| mark)
    }
}

impl Footer {
    /// The whole record for `offset`.
    pub fn encode(&self, binding: &Binding, offset: u64, seq: u64, ordinal: u32) -> [u8; FOOTER_LEN] {
        debug_assert_eq!((self.data_len, self.record_count), (offset, ordinal), "a footer describes what is before it");
        let mut out = [0; FOOTER_LEN];
        put(&mut out, 40, self.data_len.to_le_bytes());
        put(&mut out, 48, self.min_seq.to_le_bytes());
        put(&mut out, 56, self.max_seq.to_le_bytes());
        put(&mut out, 64, self.record_count.to_le_bytes());
        put(&mut out, 68, self.file_crc.to_le_bytes());
        complete(&mut out, RecordKind::Footer, binding, offset, seq, ordinal);
        out
    }

    /// Reads the value of a footer record.
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

    /// Reads the footer of a sealed segment that is `file_len` bytes long from its last [`FOOTER_LEN`] bytes.
    ///
    /// An error says no more than that the file does not end in a footer: it may never have been sealed.
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

/// Fields of the value of a frame whose whole record has `record_len` bytes: frames need no padding.
fn sized(value: &[u8], record_len: usize) -> Result<Fields<'_>, DecodeError> {
    if value.len() == record_len - RECORD_HEADER_LEN { Ok(Fields::new(value)) } else { Err(DecodeError::Length) }
}

/// Writes the header of the frame whose value is in place.
fn complete(out: &mut [u8], kind: RecordKind, binding: &Binding, offset: u64, seq: u64, ordinal: u32) {
    let (header, value) = out.split_at_mut(RECORD_HEADER_LEN);
    let value_len = kind.fixed_value_len().unwrap_or(0);
    assert_eq!(value.len() as u64, u64::from(value_len), "a frame's length is its kind's");
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
        let Some(value_len) = kinds[at].fixed_value_len() else { panic!("a frame's kind says its length") };
        assert!(RECORD_HEADER_LEN + value_len as usize == lens[at], "a frame is a header and a value");
        assert!((lens[at] as u64).is_multiple_of(ALIGN), "a frame needs no padding");
        at += 1;
    }
};
