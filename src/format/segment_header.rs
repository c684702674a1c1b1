//! The header of a segment, which is its first sector.

use super::bytes::put;
use super::constants::{FORMAT_MAJOR, FORMAT_MINOR, SEGMENT_HEADER_LEN};
use super::error::{DecodeError, check_seq};
use super::prelude::{Prelude, magic};

/// Identifies a segment. It is written and made durable before the first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Major version of the format.
    pub format_major: u16,
    /// Minor version of the format.
    pub format_minor: u16,
    /// Features that a reader of the file must know.
    pub incompat: u32,
    /// Features that only a writer to the store must know.
    pub compat: u32,
    /// The store that the segment belongs to.
    pub store_id: [u8; 16],
    /// The id of the segment. The store never reuses it.
    pub segment_id: u64,
    /// A random number from the creation of the segment. It must be unknown to anyone who chooses keys and values.
    pub salt: u64,
    /// The store's next sequence number when the segment was created or, for the output of a compaction, when the
    /// compaction began. No tombstone with a smaller sequence number hides a record of this segment.
    pub first_seq: u64,
}

impl SegmentHeader {
    /// The header that this version writes.
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

    /// Encodes the header.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        put(&mut out, 40, self.segment_id.to_le_bytes());
        put(&mut out, 48, self.salt.to_le_bytes());
        put(&mut out, 56, self.first_seq.to_le_bytes());
        self.prelude().seal(&mut out, magic::SEGMENT);
        out
    }

    /// Decodes the header at the start of a segment.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (prelude, mut fields) = Prelude::open::<SEGMENT_HEADER_LEN>(bytes, magic::SEGMENT)?;
        let Prelude { format_major, format_minor, incompat, compat, store_id } = prelude;
        let (segment_id, salt, first_seq) = (fields.u64()?, fields.u64()?, fields.u64()?);
        prelude.reserved(fields.rest())?;
        check_seq(first_seq)?;
        Ok(Self { format_major, format_minor, incompat, compat, store_id, segment_id, salt, first_seq })
    }
}
