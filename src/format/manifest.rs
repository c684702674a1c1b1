//! The manifest: the list of the live segments. A segment file that it does not list is not part of the store.

use super::bytes::{Fields, put};
use super::error::{DecodeError, check_seq};
use super::prelude::{Prelude, magic};

/// Bytes of the manifest's header.
pub const MANIFEST_HEADER_LEN: usize = 80;

/// Bytes of one segment in the list.
pub(super) const MANIFEST_SEGMENT_LEN: usize = 16;

/// One live segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestSegment {
    /// The segment's id.
    pub id: u64,
    /// The segment's salt. The segment header must contain the same salt.
    pub salt: u64,
}

/// The list of live segments. Every change replaces the whole list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The store that the manifest belongs to.
    pub store_id: [u8; 16],
    /// One more than the generation of the manifest that this one replaced.
    pub generation: u64,
    /// No segment with this id or a larger one has ever existed.
    pub next_segment_id: u64,
    /// No record in a listed sealed segment has this sequence number or a larger one.
    pub next_seq: u64,
    /// The segment that receives appends, the only one that may lack a footer; 0 = none.
    pub active_segment: u32,
    /// The live segments. Their ids ascend and are below `next_segment_id`.
    pub segments: Vec<ManifestSegment>,
}

impl Manifest {
    /// Encodes the manifest.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.check(), Ok(()), "a manifest that would be refused when read");
        let mut header = [0; MANIFEST_HEADER_LEN];
        put(&mut header, 40, self.generation.to_le_bytes());
        put(&mut header, 48, self.next_segment_id.to_le_bytes());
        put(&mut header, 56, self.next_seq.to_le_bytes());
        put(&mut header, 64, (self.segments.len() as u64).to_le_bytes());
        put(&mut header, 72, self.active_segment.to_le_bytes());
        Prelude::current(self.store_id).seal(&mut header, magic::MANIFEST);
        let mut out = Vec::with_capacity(MANIFEST_HEADER_LEN + self.segments.len() * MANIFEST_SEGMENT_LEN + 4);
        out.extend_from_slice(&header);
        for segment in &self.segments {
            out.extend_from_slice(&segment.id.to_le_bytes());
            out.extend_from_slice(&segment.salt.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[MANIFEST_HEADER_LEN - 4..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes a whole manifest. Trailing bytes are refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (prelude, mut fields) = Prelude::open::<MANIFEST_HEADER_LEN>(bytes, magic::MANIFEST)?;
        let (generation, next_segment_id, next_seq) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (count, active_segment) = (fields.u64()?, fields.u32()?);
        prelude.reserved(fields.rest())?;
        let needed = count
            .checked_mul(MANIFEST_SEGMENT_LEN as u64)
            .and_then(|len| len.checked_add(MANIFEST_HEADER_LEN as u64 + 4))
            .ok_or(DecodeError::Length)?;
        if (bytes.len() as u64) < needed {
            return Err(DecodeError::Incomplete { needed });
        }
        if bytes.len() as u64 > needed {
            return Err(DecodeError::Trailing);
        }
        // The range begins at the header's checksum. A CRC from the start of the file would be the same for every valid
        // header, because bytes followed by their own CRC leave a constant CRC state.
        let covered = bytes.get(MANIFEST_HEADER_LEN - 4..bytes.len() - 4).ok_or(DecodeError::Length)?;
        let mut crc = Fields::new(bytes.get(bytes.len() - 4..).unwrap_or_default());
        if crc32fast::hash(covered) != crc.u32()? {
            return Err(DecodeError::PayloadChecksum);
        }
        // The list is as long as the input, so the input bounds the allocation.
        let list = covered.get(4..).unwrap_or_default();
        let (pairs, _) = list.as_chunks::<8>();
        let (pairs, _) = pairs.as_chunks::<2>();
        let segments = pairs
            .iter()
            .map(|[id, salt]| ManifestSegment { id: u64::from_le_bytes(*id), salt: u64::from_le_bytes(*salt) })
            .collect();
        let store_id = prelude.store_id;
        let manifest = Self { store_id, generation, next_segment_id, next_seq, active_segment, segments };
        manifest.check().map(|()| manifest)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let ascending = self.segments.is_sorted_by(|earlier, later| earlier.id < later.id);
        let below = self.segments.last().is_none_or(|last| last.id < self.next_segment_id);
        let active = u64::from(self.active_segment);
        let has_active = active == 0 || self.segments.iter().any(|segment| segment.id == active);
        // The next edit needs the next generation.
        let has_next = self.generation < u64::MAX;
        if ascending && below && has_active && has_next { check_seq(self.next_seq) } else { Err(DecodeError::Order) }
    }
}
