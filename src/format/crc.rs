//! Checksums: the one algorithm (tag 1, CRC-32 as in zlib) and how it is tied to a segment.

use crc32fast::Hasher;

/// A payload's checksum, or any other plain one (a whole segment's), computed as the bytes come.
#[derive(Clone, Debug, Default)]
pub struct PayloadCrc(Hasher);

impl PayloadCrc {
    /// The checksum of no bytes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of everything taken in.
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// The checksum of a record's payload: its key, then its value as stored.
pub fn payload_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = PayloadCrc::new();
    crc.update(key);
    crc.update(value);
    crc.finish()
}

/// Ties checksums to a segment: the checksum's state after the segment's salt and id, computed once per segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    state: u32,
}

impl Binding {
    /// The binding of the segment with this salt and id.
    pub fn new(salt: u64, segment_id: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&salt.to_le_bytes());
        bytes[8..].copy_from_slice(&segment_id.to_le_bytes());
        Self { state: crc32fast::hash(&bytes) }
    }

    /// The checksum, at `offset` of the segment (or of its hint file), of a header without its first four bytes.
    pub fn header_crc(&self, offset: u64, header_after_crc: &[u8]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.state);
        hasher.update(&offset.to_le_bytes());
        hasher.update(header_after_crc);
        hasher.finalize()
    }
}
