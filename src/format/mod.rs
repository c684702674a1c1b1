//! The on-disk format, and the document of it: pure bytes in, values out.
//!
//! Knows no files, no clock and no policy. A decoder says what is wrong with the bytes; whether the place makes that a
//! torn tail, which is cut off, or corruption, which is reported, is for recovery to decide. Every function here may be
//! called from any thread at any time; none keeps state, panics on input, or allocates by a length that nothing vouches
//! for.
//!
//! # Conventions
//!
//! - Integers are little-endian and unsigned. `_len` counts bytes, `_offset` is bytes from the start of the file.
//! - Checksums are CRC-32 (IEEE 802.3, reflected, all ones before and after: the one of zlib), tag 1. Of eight zero
//!   bytes it is not zero. It finds damage, not forgery.
//! - Tags start at 1 and are never reused. 0 means never written, so a file extended with zeroes holds no records.
//! - Reserved bytes are written as zero, and refused if they are not.
//! - Times are milliseconds since 1970 and decide only when a value expires. The order of writes is that of sequence
//!   numbers; a record keeps its own when compaction copies it.
//! - Sequence numbers are below 2^63, wherever one stands. A store whose next one would be beyond 2^62 is not opened.
//! - A key has 1..=65,535 bytes, a stored value 0..=4,294,901,712, so that the length of any record fits 32 bits.
//!
//! # Files and versions
//!
//! There are three types of file: segments, one manifest, and a hint file for each sealed segment. (`LOCK` and
//! `RESERVE` lie beside them and have no content: one is locked, the other claims disk space behind its end, length 0.)
//! They begin alike:
//!
//! ```text
//! offset  size  prelude
//!      0     8  magic         "RCSKSEG\n", "RCSKMAN\n" or "RCSKHNT\n"
//!      8     2  format_major  1
//!     10     2  format_minor  0
//!     12     1  checksum      algorithm of all checksums but those of file headers: 1 = CRC-32
//!     13     3  reserved      zero
//!     16     4  incompat      features without which the file cannot be read
//!     20     4  compat        features without which it can be read, but its store not written
//!     24    16  store_id      random, the same in every file of a store
//! ```
//!
//! The file's header goes on after the prelude, and ends with the CRC-32 of all of it before. In every version to come
//! the prelude keeps its layout, a file's header its length, and that checksum its place and algorithm. So a file of
//! another version is told apart from a damaged one: the version is believed if, and only if, the checksum is right.
//!
//! - Another major version, an unknown `incompat` bit or checksum algorithm: `Unsupported`, nothing is touched. None of
//!   the bits is in use yet.
//! - An unknown `compat` bit: the same, in this version, which cannot open a store for reading alone. One that can may
//!   read it, and must not write.
//! - Of these, a hint file is passed over like a damaged one, and written anew: what a version has to say about a store
//!   stands in its MANIFEST or its segments.
//! - A newer minor version: read. It may have given reserved bytes of a file's header a meaning that can be ignored.
//!
//! # Segment
//!
//! A header of one sector, then records, each at a multiple of 8 bytes, without gaps; in a sealed segment the last
//! record is a footer, and the file ends with it. Ids are never used again, nor is the salt, which is random and must
//! not be known to those who choose keys and values.
//!
//! ```text
//! offset  size  segment header
//!      0    40  prelude
//!     40     8  segment_id
//!     48     8  salt
//!     56     8  first_seq     no tombstone with a smaller sequence number hides a record of this segment: the
//!                             store's next one when the segment was created, or when the compaction began
//!                             that made it
//!     64   444  reserved      zero
//!    508     4  crc           of bytes 0..508
//! ```
//!
//! Store 00112233445566778899aabbccddeeff, segment 7, salt 0x0123456789abcdef (as in all examples), first_seq 40:
//!
//! ```text
//! example: segment header
//! 0000  52 43 53 4b 53 45 47 0a 01 00 00 00 01 00 00 00
//! 0010  00 00 00 00 00 00 00 00 00 11 22 33 44 55 66 77
//! 0020  88 99 aa bb cc dd ee ff 07 00 00 00 00 00 00 00
//! 0030  ef cd ab 89 67 45 23 01 28 00 00 00 00 00 00 00
//! *
//! 01f0  00 00 00 00 00 00 00 00 00 00 00 00 b0 89 d5 cc
//! ```
//!
//! # Record
//!
//! ```text
//! offset  size  record
//!      0     4  header_crc     of salt, segment_id, the record's offset (8 bytes each), then bytes 4..40
//!      4     4  payload_crc    of the key, then the value as stored
//!      8     1  kind           1 = put, 2 = tombstone, 3 = batch frame, 4 = watermark, 5 = footer
//!      9     1  compression    of the value: 0 = none, the only one yet
//!     10     2  key_len        1..=65_535 for a put or tombstone, 0 for all else
//!     12     4  value_len      as stored; 0 for a tombstone, 24, 16 and 40 for kinds 3, 4 and 5
//!     16     8  seq            order of the write
//!     24     8  expires_at_ms  0 = never; 0 for all but puts
//!     32     4  namespace      of the key; 0 for all but puts and tombstones
//!     36     4  ordinal        number of records before this one in the segment
//!     40     -  key, then value, then zeroes up to a multiple of 8
//! ```
//!
//! **What each checksum is for.** `header_crc` is verified before any field is believed, so no damaged length is ever
//! followed. It ties the header to its place: right bytes in the wrong place (a misdirected write, a stale sector, a
//! record of another segment) fail it, and so does an image of a record inside a value, whose author cannot know the
//! salt; by luck such an image passes once in 2^32 tries. `payload_crc` depends on key and value alone, yet it is tied
//! to the place too, because the header's checksum covers it: to be accepted at another place, a payload would have to
//! have the very checksum that was written into the header there. This is why compaction carries a payload's checksum
//! unchanged from the first write to the last copy. It need not compute a new one over bytes it has just read, and so
//! can never give bytes that went bad on the way a checksum that says they are good. The padding is compared with zero.
//!
//! **What the ordinal is for.** Ordinals count up by one from 0; a gap, or one that does not fit, is damage, even where
//! every record by itself is right.
//!
//! A header of nothing but zeroes was never written. Zeroes and old bytes after the last record of the segment that was
//! active at a crash are what a torn write leaves; in a sealed segment they are damage. So is filler, bytes of
//! [`FILLER`] that may lie behind the records of an active segment for later ones to overwrite: as headers they are
//! of a kind that there is not, should their checksum ever be right by chance. After damage the next record is
//! found by trying each multiple of 8: see [`find_record`].
//!
//! A put of "apple" = "green" at offset 512, sequence number 40, ordinal 0, namespace 2, expiring at 1,700,000,000,000:
//!
//! ```text
//! example: put
//! 0000  aa c8 6f 2c 39 f4 cb 83 01 00 05 00 05 00 00 00
//! 0010  28 00 00 00 00 00 00 00 00 68 e5 cf 8b 01 00 00
//! 0020  02 00 00 00 00 00 00 00 61 70 70 6c 65 67 72 65
//! 0030  65 6e 00 00 00 00 00 00
//! ```
//!
//! A tombstone for "fig" at offset 512, sequence number 41, ordinal 1:
//!
//! ```text
//! example: tombstone
//! 0000  81 6c e8 33 95 4a f2 d4 02 00 03 00 00 00 00 00
//! 0010  29 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 0020  00 00 00 00 01 00 00 00 66 69 67 00 00 00 00 00
//! ```
//!
//! # Frames
//!
//! Records about the log itself have no key, and a value of fixed length that leaves no padding.
//!
//! **Batch frame**: the records of an atomic batch follow at once. All of them are applied, or, if any is not right,
//! none.
//!
//! ```text
//! offset  size  value of a batch frame, which is at 40 of its record
//!      0     4  count           records in the batch, at least 1
//!      4     4  reserved        zero
//!      8     8  bytes           of these records, padding included, the frame not; a multiple of 8
//!     16     8  durable_offset  bytes of this segment below here were known durable when the frame was written
//! ```
//!
//! The frame's sequence number is that of its first member. Two records of 104 bytes in all, at offset 512:
//!
//! ```text
//! example: batch frame
//! 0000  17 88 ef af ce 05 37 a7 03 00 00 00 18 00 00 00
//! 0010  28 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 0020  00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
//! 0030  68 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00
//! ```
//!
//! **Watermark**: written at the start of a commit group. A segment that turns out to be damaged below a
//! `durable_offset` which a later record of it mentions has lost something that was acknowledged, and is not just torn.
//!
//! ```text
//! offset  size  value of a watermark
//!      0     8  durable_offset  bytes of this segment below here were known durable
//!      8     8  durable_seq     records up to this sequence number were known durable
//! ```
//!
//! At offset 512, with everything up to sequence number 39 durable:
//!
//! ```text
//! example: watermark
//! 0000  21 78 02 cb 8b 91 8e b7 04 00 00 00 10 00 00 00
//! 0010  28 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 0020  00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00
//! 0030  27 00 00 00 00 00 00 00
//! ```
//!
//! **Footer**: makes a segment a sealed one, which never changes again. The file is `data_len` + 80 bytes long.
//!
//! ```text
//! offset  size  value of a footer
//!      0     8  data_len      length of everything before the footer, so the footer's own offset
//!      8     8  min_seq       smallest sequence number of its puts and tombstones, 0 without any
//!     16     8  max_seq       largest one, 0 without any
//!     24     4  record_count  records of every kind before the footer, so the footer's own ordinal
//!     28     4  file_crc      of bytes 0..data_len of the file
//!     32     8  reserved      zero
//! ```
//!
//! Bytes followed by their own CRC contribute the same to a longer CRC whatever they are. So `file_crc` does not depend
//! on which segment header the file begins with: that header's own checksum vouches for it, and the manifest says whose
//! it is.
//!
//! At offset 1024, ordinal 5:
//!
//! ```text
//! example: footer
//! 0000  86 23 cc cd f2 d1 6c ad 05 00 00 00 28 00 00 00
//! 0010  2a 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 0020  00 00 00 00 05 00 00 00 00 04 00 00 00 00 00 00
//! 0030  28 00 00 00 00 00 00 00 29 00 00 00 00 00 00 00
//! 0040  05 00 00 00 ef be ed fe 00 00 00 00 00 00 00 00
//! ```
//!
//! # Manifest
//!
//! The list of the live segments. It is replaced as a whole; a segment file that it does not list is not part of the
//! store.
//!
//! ```text
//! offset  size  manifest
//!      0    40  prelude
//!     40     8  generation       one more than that of the manifest before
//!     48     8  next_segment_id  no segment had this id or a larger one when it was written
//!     56     8  next_seq         no record in a listed, sealed segment has this sequence number or a larger one
//!     64     8  count            n, number of segments
//!     72     4  active_segment   the listed segment that is appended to and may lack a footer, 0 = none
//!     76     4  crc              of bytes 0..76
//!     80    16  n times: segment id, salt (8 bytes each); ids ascend, all below next_segment_id
//!      -     4  list_crc         of bytes 76..80 + 16 n, which is the header's checksum and the list
//! ```
//!
//! The list's checksum covers the header by way of the header's checksum, and would not if it covered all the bytes:
//! see the footer. Segments 3 (salt 0x33) and 7 (active), generation 9, next ids 8 and 42:
//!
//! ```text
//! example: manifest
//! 0000  52 43 53 4b 4d 41 4e 0a 01 00 00 00 01 00 00 00
//! 0010  00 00 00 00 00 00 00 00 00 11 22 33 44 55 66 77
//! 0020  88 99 aa bb cc dd ee ff 09 00 00 00 00 00 00 00
//! 0030  08 00 00 00 00 00 00 00 2a 00 00 00 00 00 00 00
//! 0040  02 00 00 00 00 00 00 00 07 00 00 00 0b 41 a3 93
//! 0050  03 00 00 00 00 00 00 00 33 00 00 00 00 00 00 00
//! 0060  07 00 00 00 00 00 00 00 ef cd ab 89 67 45 23 01
//! 0070  1c 26 b6 b3
//! ```
//!
//! # Hint file
//!
//! The keys of a sealed segment and where their records are, so that opening the store need not read the values.
//! Derived: a hint file that is missing, damaged, or about another segment, length or checksum is passed over, and the
//! segment read.
//!
//! ```text
//! offset  size  hint file
//!      0    40  prelude
//!     40     8  segment_id
//!     48     8  salt
//!     56     8  data_len       as in the segment's footer
//!     64     8  entry_count    in all blocks
//!     72     4  file_crc       as in the segment's footer
//!     76    16  reserved       zero
//!     92     4  crc            of bytes 0..92
//!     96     -  blocks up to the end of the file, each of about 64 KiB, none empty
//!
//! offset  size  block
//!      0     4  crc            of salt, segment_id, the block's offset in this file (8 bytes each), then all after it
//!      4     4  len            bytes of its entries
//!      8     4  count          of its entries, at least 1
//!     12     4  reserved       zero
//!     16   len  entries, in any order
//!
//! offset  size  entry
//!      0     8  seq            this and what follows: as in the record
//!      8     8  offset         of the record: a multiple of 8; the record ends at or before data_len
//!     16     8  expires_at_ms
//!     24     4  value_len
//!     28     4  namespace
//!     32     2  key_len
//!     34     1  kind           1 or 2
//!     35     1  compression
//!     36     -  key
//! ```
//!
//! A put of "apple" at 568 and a tombstone for "fig" at 624:
//!
//! ```text
//! example: hint file
//! 0000  52 43 53 4b 48 4e 54 0a 01 00 00 00 01 00 00 00
//! 0010  00 00 00 00 00 00 00 00 00 11 22 33 44 55 66 77
//! 0020  88 99 aa bb cc dd ee ff 07 00 00 00 00 00 00 00
//! 0030  ef cd ab 89 67 45 23 01 00 04 00 00 00 00 00 00
//! 0040  02 00 00 00 00 00 00 00 ef be ed fe 00 00 00 00
//! 0050  00 00 00 00 00 00 00 00 00 00 00 00 68 f9 14 bf
//! 0060  56 ab 9f 6f 50 00 00 00 02 00 00 00 00 00 00 00
//! 0070  28 00 00 00 00 00 00 00 38 02 00 00 00 00 00 00
//! 0080  00 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00
//! 0090  05 00 01 00 61 70 70 6c 65 29 00 00 00 00 00 00
//! 00a0  00 70 02 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 00b0  00 00 00 00 00 00 00 00 00 03 00 02 00 66 69 67
//! ```

mod bytes;
mod crc;
mod error;
mod frames;
mod hint;
mod manifest;
mod prelude;
mod record;
mod segment_header;
#[cfg(test)]
mod tests;

pub use crc::{Binding, PayloadCrc, payload_crc};
pub use error::DecodeError;
pub use frames::{BatchFrame, Footer, Watermark};
pub use hint::HINT_HEADER_LEN;
pub use hint::{HintEntry, HintHeader, HintReader, HintWriter, whole_blocks};
pub use manifest::{Manifest, ManifestSegment};
pub use record::{RecordHeader, RecordKind};
pub use record::{find_record, patch_header, read_record, read_record_of, record_len};
pub use segment_header::SegmentHeader;

// Named by tests alone.
#[cfg(any(test, feature = "__testing"))]
pub use self::{
    hint::HINT_BLOCK_HEADER_LEN,
    manifest::MANIFEST_HEADER_LEN,
    record::{COMPRESSION_NONE, Record},
};

/// Refuses what no store reaches.
const fn check_seq(seq: u64) -> Result<(), DecodeError> {
    if seq <= MAX_SEQ { Ok(()) } else { Err(DecodeError::Sequence) }
}

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

const _: () = assert!(KNOWN_INCOMPAT | KNOWN_COMPAT == 0, "features in use have to be carried into the next MANIFEST");

/// Records start at multiples of this.
pub const ALIGN: u64 = 8;

/// What may lie behind the last record of a segment that is being written. Not zero, so that bytes that were lost can be
/// told from bytes that were never written, and because some disks keep no blocks for zeroes.
pub const FILLER: u8 = 0xA5;

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

/// The largest sequence number. The keydir needs the bit above it.
pub const MAX_SEQ: u64 = (1 << 63) - 1;

/// The longest key.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value: 4 GiB − 1 less room for the header, the longest key and the padding, so that the length of every
/// record fits 32 bits.
pub const MAX_VALUE_LEN: u32 = 4_294_901_712;
