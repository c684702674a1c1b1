//! Versions, limits and lengths of the format.

/// Major version of the format that this code reads and writes.
pub const FORMAT_MAJOR: u16 = 1;

/// Minor version of the format that this code writes.
pub const FORMAT_MINOR: u16 = 0;

/// Tag of the only checksum algorithm: CRC-32 (IEEE 802.3, as in zlib).
pub const CHECKSUM_CRC32: u8 = 1;

/// The `incompat` feature bits that this version understands. Every reader must understand them.
pub const KNOWN_INCOMPAT: u32 = 0;

/// The `compat` feature bits that this version understands. Only a writer must understand them.
pub const KNOWN_COMPAT: u32 = 0;

const _: () = assert!(KNOWN_INCOMPAT | KNOWN_COMPAT == 0, "a new MANIFEST must carry over the feature bits in use");

/// Records start at multiples of this many bytes.
pub const ALIGN: u64 = 8;

/// The byte that is prewritten behind the last record of an active segment. It is not zero, so that lost bytes differ
/// from bytes that were never written, and because some disks allocate no blocks for zeros.
pub const PREWRITTEN_BYTE: u8 = 0xA5;

/// Bytes of a segment's header: one sector, the smallest unit that a disk writes whole.
pub const SEGMENT_HEADER_LEN: usize = 512;

/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 40;

/// Bytes of a whole footer record.
pub const FOOTER_LEN: usize = 80;

/// Bytes of a whole watermark record.
pub const WATERMARK_LEN: usize = 56;

/// Bytes of a whole batch frame, without the members of the batch.
pub const BATCH_FRAME_LEN: usize = 64;

/// The largest sequence number. The keydir uses the bit above it.
pub const MAX_SEQ: u64 = (1 << 63) - 1;

/// Bytes of the longest key.
pub const MAX_KEY_LEN: usize = 65_535;

/// Bytes of the longest value: 4 GiB − 1 less the header, the longest key and the padding, so that the length of every
/// record fits in 32 bits.
pub const MAX_VALUE_LEN: u32 = 4_294_901_712;
