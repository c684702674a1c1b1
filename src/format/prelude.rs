//! The 40 bytes at the start of every file, which decide whether this version may read the file.

use super::bytes::{Fields, is_zero, put};
use super::constants::{CHECKSUM_CRC32, FORMAT_MAJOR, FORMAT_MINOR, KNOWN_COMPAT, KNOWN_INCOMPAT};
use super::error::DecodeError;

/// The magic bytes of each type of file.
pub(super) mod magic {
    pub(in crate::format) const SEGMENT: [u8; 8] = *b"RCSKSEG\n";
    pub(in crate::format) const MANIFEST: [u8; 8] = *b"RCSKMAN\n";
    pub(in crate::format) const HINT: [u8; 8] = *b"RCSKHNT\n";
}

/// The version that wrote a file, the features in use, and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prelude {
    pub(super) format_major: u16,
    pub(super) format_minor: u16,
    pub(super) incompat: u32,
    pub(super) compat: u32,
    pub(super) store_id: [u8; 16],
}

impl Prelude {
    /// The prelude that this version writes.
    pub(super) fn current(store_id: [u8; 16]) -> Self {
        Self { format_major: FORMAT_MAJOR, format_minor: FORMAT_MINOR, incompat: 0, compat: 0, store_id }
    }

    /// Writes the prelude to the start of `header` and the checksum to its last four bytes. The rest is already in
    /// place.
    pub(super) fn seal(&self, header: &mut [u8], magic: [u8; 8]) {
        put(header, 0, magic);
        put(header, 8, self.format_major.to_le_bytes());
        put(header, 10, self.format_minor.to_le_bytes());
        put(header, 12, [CHECKSUM_CRC32]);
        put(header, 16, self.incompat.to_le_bytes());
        put(header, 20, self.compat.to_le_bytes());
        put(header, 24, self.store_id);
        let at = header.len() - 4;
        let crc = crc32fast::hash(&header[..at]);
        put(header, at, crc.to_le_bytes());
    }

    /// Verifies a whole header of `LEN` bytes at the start of `bytes` and decides whether this version may read the
    /// file. Returns the prelude, and the fields between it and the checksum unread.
    pub(super) fn open<const LEN: usize>(bytes: &[u8], magic: [u8; 8]) -> Result<(Self, Fields<'_>), DecodeError> {
        let Some(header) = bytes.first_chunk::<LEN>() else {
            return Err(DecodeError::Incomplete { needed: LEN as u64 });
        };
        if is_zero(header) {
            return Err(DecodeError::Zeroes);
        }
        if !header.starts_with(&magic) {
            return Err(DecodeError::Magic);
        }
        let Some((covered, crc)) = header.split_last_chunk::<4>() else { return Err(DecodeError::Length) };
        if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return Err(DecodeError::HeaderChecksum);
        }
        let mut fields = Fields::new(covered);
        let _magic: [u8; 8] = fields.array()?;
        let (format_major, format_minor) = (fields.u16()?, fields.u16()?);
        let checksum = fields.u8()?;
        let reserved: [u8; 3] = fields.array()?;
        let (incompat, compat) = (fields.u32()?, fields.u32()?);
        let prelude = Self { format_major, format_minor, incompat, compat, store_id: fields.array()? };
        // No store is opened read-only, so a file that must not be written is refused like one that cannot be read.
        if format_major != FORMAT_MAJOR || incompat & !KNOWN_INCOMPAT != 0 || compat & !KNOWN_COMPAT != 0 {
            let (found_major, found_minor) = (format_major, format_minor);
            return Err(DecodeError::Unsupported { found_major, found_minor, incompat, compat });
        }
        if checksum != CHECKSUM_CRC32 {
            return Err(DecodeError::ChecksumTag(checksum));
        }
        prelude.reserved(&reserved).map(|()| (prelude, fields))
    }

    /// Checks bytes that this version writes as zero. A newer minor version may store ignorable data there.
    pub(super) fn reserved(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        if self.format_minor > FORMAT_MINOR || is_zero(bytes) { Ok(()) } else { Err(DecodeError::Reserved) }
    }
}
