//! Checksums: the only algorithm (tag 1, CRC-32 as in zlib) and its binding to a segment.

use crc32fast::Hasher;

/// The checksum of a payload, or of any other bytes that come in pieces, such as a whole segment.
#[derive(Clone, Debug, Default)]
pub struct PayloadCrc(Hasher);

impl PayloadCrc {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes added.
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// The checksum of a record's payload: the key, then the stored value.
pub fn payload_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = PayloadCrc::new();
    crc.update(key);
    crc.update(value);
    crc.finish()
}

/// Binds checksums to a segment: the CRC state after the segment's salt and id, computed once per segment.
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

    /// The checksum of a header at `offset` of the segment, or of its hint file. `header_after_crc` is the header
    /// without its first four bytes.
    pub fn header_crc(&self, offset: u64, header_after_crc: &[u8]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.state);
        hasher.update(&offset.to_le_bytes());
        hasher.update(header_after_crc);
        hasher.finalize()
    }
}
