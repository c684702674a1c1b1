//! The on-disk format: bytes in, values out. No I/O, no clock, no policy.
//!
//! All integers are little-endian; all checksums are CRC-32 (IEEE 802.3).

mod bytes;
mod crc;
mod error;
mod frames;
mod hint;
mod manifest;
mod prelude;
mod record;
mod segment_header;

pub use crc::{Binding, PayloadCrc, payload_crc};
pub use error::DecodeError;
pub use frames::{BatchFrame, Footer, Watermark};
pub use hint::{HINT_BLOCK_HEADER_LEN, HINT_BLOCK_TARGET_LEN, HINT_ENTRY_LEN, HINT_HEADER_LEN};
pub use hint::{HintEntry, HintHeader, HintReader, HintWriter};
pub use manifest::{MANIFEST_HEADER_LEN, MANIFEST_SEGMENT_LEN, Manifest, ManifestSegment};
pub use record::{COMPRESSION_NONE, Record, RecordHeader, RecordKind};
pub use record::{find_record, patch_header, read_record, record_len};
pub use segment_header::SegmentHeader;

/// Major version of the format this code reads and writes.
pub const FORMAT_MAJOR: u16 = 1;

/// Minor version of the format this code writes.
pub const FORMAT_MINOR: u16 = 0;

/// Tag of the one checksum algorithm: CRC-32 (IEEE 802.3, as in zlib).
pub const CHECKSUM_CRC32: u8 = 1;

/// Features this version understands that a reader must understand.
pub const KNOWN_INCOMPAT: u32 = 0;

/// Features this version understands that only a writer must understand.
pub const KNOWN_COMPAT: u32 = 0;

/// Records start at multiples of this.
pub const ALIGN: u64 = 8;

/// Bytes of a segment's header: one sector, the least that a disk writes whole.
pub const SEGMENT_HEADER_LEN: usize = 512;

/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 40;

/// Bytes of a whole footer record.
pub const FOOTER_LEN: usize = 80;

/// Bytes of a whole watermark record.
pub const WATERMARK_LEN: usize = 56;

/// Bytes of a whole batch frame, its members not included.
pub const BATCH_FRAME_LEN: usize = 64;

/// The longest key.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value: 4 GiB − 1 less room for the header, the longest key and the padding, so that the length of every
/// record fits 32 bits.
pub const MAX_VALUE_LEN: u32 = 4_294_901_712;
