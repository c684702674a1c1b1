//! A write before it has a position: complete except for sequence numbers, ordinals and header checksums.
//!
//! Work that grows with the value (copying it, the payload checksum) is done here, on the caller's thread and outside
//! the log's lock.

use bytes::Bytes;

use crate::batch::Batch;
use crate::format::{ALIGN, BATCH_FRAME_LEN, RECORD_HEADER_LEN, RecordHeader, RecordKind, payload_crc, record_len};
use crate::io::util::to_usize;

/// Values of at least this size are written from where they are, instead of being copied into the log's buffer.
pub(crate) const LARGE_VALUE_BYTES: usize = 64 * 1024;

/// One write, ready to be staged.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The records in order, each padded, with headers that lack what the position decides. A batch begins with space
    /// for its frame. If the value is `large`, the last record lacks its value and padding.
    pub(crate) bytes: Vec<u8>,
    /// A large value, which follows `bytes`.
    pub(crate) large: Option<Bytes>,
    pub(crate) shape: WriteShape,
}

#[derive(Debug)]
pub(crate) enum WriteShape {
    /// One record.
    Single(PreparedRecord),
    /// A frame and its records.
    Batch(Vec<PreparedRecord>),
}

/// One put or tombstone within [`Prepared::bytes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreparedRecord {
    pub(crate) kind: RecordKind,
    /// Position of its header.
    pub(crate) position: usize,
    pub(crate) key_len: u16,
    pub(crate) value_len: u32,
}

impl PreparedRecord {
    pub(crate) fn record_len(self) -> u64 {
        record_len(usize::from(self.key_len), self.value_len as usize)
    }

    /// The key, given the bytes that `position` refers to.
    pub(crate) fn key(self, bytes: &[u8]) -> &[u8] {
        let start = self.position + RECORD_HEADER_LEN;
        bytes.get(start..start + usize::from(self.key_len)).unwrap_or_default()
    }
}

fn draft(kind: RecordKind, key: &[u8], value: &[u8]) -> ([u8; RECORD_HEADER_LEN], PreparedRecord) {
    // The caller has checked the lengths against their limits, so neither conversion saturates.
    let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
    let value_len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let header = RecordHeader {
        payload_crc: payload_crc(key, value),
        kind,
        compression: 0,
        key_len,
        value_len,
        seq: 0,
        expires_at_ms: 0,
        namespace: 0,
        ordinal: 0,
    };
    (header.draft(), PreparedRecord { kind, position: 0, key_len, value_len })
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(to_usize(ALIGN)), 0);
}

impl Prepared {
    /// A put whose value is copied, unless it is large.
    pub(crate) fn put(bytes: Vec<u8>, key: &[u8], value: &[u8]) -> Self {
        if value.len() >= LARGE_VALUE_BYTES {
            return Self::put_bytes(bytes, key, Bytes::copy_from_slice(value));
        }
        Self::small(bytes, RecordKind::Put, key, value)
    }

    /// A put whose value is shared if it is large.
    pub(crate) fn put_bytes(mut bytes: Vec<u8>, key: &[u8], value: Bytes) -> Self {
        if value.len() < LARGE_VALUE_BYTES {
            return Self::small(bytes, RecordKind::Put, key, &value);
        }
        let (header, member) = draft(RecordKind::Put, key, &value);
        bytes.clear();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(key);
        Self { bytes, large: Some(value), shape: WriteShape::Single(member) }
    }

    pub(crate) fn tombstone(bytes: Vec<u8>, key: &[u8]) -> Self {
        Self::small(bytes, RecordKind::Tombstone, key, &[])
    }

    fn small(mut bytes: Vec<u8>, kind: RecordKind, key: &[u8], value: &[u8]) -> Self {
        let (header, member) = draft(kind, key, value);
        bytes.clear();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        pad(&mut bytes);
        Self { bytes, large: None, shape: WriteShape::Single(member) }
    }

    pub(crate) fn batch(batch: &Batch) -> Self {
        let mut bytes = Vec::with_capacity(BATCH_FRAME_LEN + to_usize(batch.byte_len()));
        bytes.resize(BATCH_FRAME_LEN, 0);
        let mut members = Vec::with_capacity(batch.len());
        for (kind, key, value) in batch.iter() {
            let (header, member) = draft(kind, key, value);
            members.push(PreparedRecord { position: bytes.len(), ..member });
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
            pad(&mut bytes);
        }
        Self { bytes, large: None, shape: WriteShape::Batch(members) }
    }

    pub(crate) fn members(&self) -> &[PreparedRecord] {
        match &self.shape {
            WriteShape::Single(member) => std::slice::from_ref(member),
            WriteShape::Batch(members) => members,
        }
    }

    pub(crate) fn is_batch(&self) -> bool {
        matches!(self.shape, WriteShape::Batch(_))
    }

    /// Whether it contains only deletes. Such writes may use the reserve of a full disk.
    pub(crate) fn only_deletes(&self) -> bool {
        self.members().iter().all(|member| member.kind == RecordKind::Tombstone)
    }

    /// Bytes that it takes in the log.
    pub(crate) fn log_len(&self) -> u64 {
        let large = self.large.as_ref().map_or(0, Bytes::len) as u64;
        (self.bytes.len() as u64 + large).next_multiple_of(ALIGN)
    }
}
