//! The first sector of a segment.

use super::bytes::put;
use super::prelude::{Prelude, magic};
use super::{DecodeError, FORMAT_MAJOR, FORMAT_MINOR, SEGMENT_HEADER_LEN, check_seq};

/// Who a segment is: written and made durable before the first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Major version of the format.
    pub format_major: u16,
    /// Minor version of the format.
    pub format_minor: u16,
    /// Features without which the file cannot be read.
    pub incompat: u32,
    /// Features without which the file can be read, but its store not written.
    pub compat: u32,
    /// The store it belongs to.
    pub store_id: [u8; 16],
    /// Its id: never used again, in this store.
    pub segment_id: u64,
    /// Random, chosen when the segment was created, not to be known to those who choose values.
    pub salt: u64,
    /// The store's next sequence number when the segment was created or, of one that a compaction wrote, a number that
    /// was next when it began: no tombstone with a smaller one hides a record in here.
    pub first_seq: u64,
}

impl SegmentHeader {
    /// The header this version writes.
    pub fn new(store_id: [u8; 16], segment_id: u64, salt: u64, first_seq: u64) -> Self {
        Self {
            format_major: FORMAT_MAJOR,
            format_minor: FORMAT_MINOR,
            incompat: 0,
            compat: 0,
            store_id,
            segment_id,
            salt,
            first_seq,
        }
    }

    fn prelude(&self) -> Prelude {
        let Self { format_major, format_minor, incompat, compat, store_id, .. } = *self;
        Prelude { format_major, format_minor, incompat, compat, store_id }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        put(&mut out, 40, self.segment_id.to_le_bytes());
        put(&mut out, 48, self.salt.to_le_bytes());
        put(&mut out, 56, self.first_seq.to_le_bytes());
        self.prelude().seal(&mut out, magic::SEGMENT);
        out
    }

    /// Reads the header at the start of a segment.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (prelude, mut fields) = Prelude::open::<SEGMENT_HEADER_LEN>(bytes, magic::SEGMENT)?;
        let Prelude { format_major, format_minor, incompat, compat, store_id } = prelude;
        let (segment_id, salt, first_seq) = (fields.u64()?, fields.u64()?, fields.u64()?);
        prelude.reserved(fields.rest())?;
        check_seq(first_seq)?;
        Ok(Self { format_major, format_minor, incompat, compat, store_id, segment_id, salt, first_seq })
    }
}
