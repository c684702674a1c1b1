//! The on-disk format: its specification, and the code that encodes and decodes it.
//!
//! This module works on byte slices. It does no I/O, reads no clock and decides no policy. A decoder reports what is
//! wrong with its input. Recovery decides whether that is a torn tail, which it cuts off, or corruption, which it
//! reports. Any thread may call any function at any time. No function keeps state, panics on the bytes it decodes, or
//! allocates more than the length of its input justifies.
//!
//! # Conventions
//!
//! - Integers are unsigned and little-endian. `_len` is a number of bytes, `_offset` a number of bytes from the start
//!   of the file.
//! - Checksums are CRC-32 (IEEE 802.3, reflected, initial value and final XOR all ones, as in zlib), algorithm tag 1.
//!   The CRC of eight zero bytes is not zero. A checksum detects damage, not forgery.
//! - Tags start at 1 and are never reused. 0 means "never written", so a file extended with zeros holds no records.
//! - Reserved bytes are written as zero. Readers refuse any other value.
//! - Times are milliseconds since 1970 and only decide when a value expires. Sequence numbers order the writes. A
//!   record keeps its sequence number when compaction copies it.
//! - Every sequence number is below 2^63. A store whose next sequence number would exceed 2^62 is not opened.
//! - A key has 1..=65,535 bytes and a stored value 0..=4,294,901,712 bytes, so the length of every record fits in 32
//!   bits.
//!
//! # Files and versions
//!
//! A store has three types of file: segments, one manifest, and one hint file for each sealed segment. (The directory
//! also holds `LOCK`, which carries the file lock, and `RESERVE`, which has length 0 and holds preallocated disk space.
//! `LOCK` contains the PID of the last process that locked it, as decimal digits and a line feed. This is for people and
//! error messages: readers accept any contents.) Every file starts with the same prelude:
//!
//! ```text
//! offset  size  prelude
//!      0     8  magic         "RCSKSEG\n", "RCSKMAN\n" or "RCSKHNT\n"
//!      8     2  format_major  1
//!     10     2  format_minor  0
//!     12     1  checksum      algorithm of all checksums except those of file headers: 1 = CRC-32
//!     13     3  reserved      zero
//!     16     4  incompat      features that a reader of the file must know
//!     20     4  compat        features that only a writer to the store must know
//!     24    16  store_id      random; the same in every file of a store
//! ```
//!
//! The other fields of the file's header follow the prelude. The last field is the CRC-32 of all header bytes before
//! it. Future versions keep the layout of the prelude, the length of each header, and the position and algorithm of the
//! header checksum. A reader can therefore tell a file of another version from a damaged file: it trusts the version
//! if, and only if, the checksum is correct.
//!
//! - Another major version, an unknown `incompat` bit or an unknown checksum algorithm: the file is `Unsupported`, and
//!   nothing is changed. No feature bit is in use yet.
//! - An unknown `compat` bit: also `Unsupported`, because this version cannot open a store read-only. A version that
//!   can may read the store but must not write to it.
//! - A hint file with any of these is treated like a damaged hint file: it is ignored and rewritten. The MANIFEST and
//!   the segments determine the version of a store.
//! - A newer minor version: readable. It may assign a meaning to reserved bytes of a file's header that an older
//!   version can ignore.
//!
//! # Segment
//!
//! A segment is a header of one sector followed by records. Each record starts at a multiple of 8 bytes, and there are
//! no gaps. The last record of a sealed segment is a footer, and the file ends with it. Segment ids and salts are never
//! reused. The salt is random and must be unknown to anyone who chooses keys and values.
//!
//! ```text
//! offset  size  segment header
//!      0    40  prelude
//!     40     8  segment_id
//!     48     8  salt
//!     56     8  first_seq     no tombstone with a smaller sequence number hides a record of this segment: the
//!                             store's next sequence number when the segment was created, or, for the output
//!                             of a compaction, when the compaction began
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
//!      0     4  header_crc     of salt, segment_id, record offset (8 bytes each), then bytes 4..40
//!      4     4  payload_crc    of the key, then the stored value
//!      8     1  kind           1 = put, 2 = tombstone, 3 = batch frame, 4 = watermark, 5 = footer
//!      9     1  compression    of the value: 0 = none, the only one defined
//!     10     2  key_len        1..=65_535 for a put or tombstone, otherwise 0
//!     12     4  value_len      of the stored value; 0 for a tombstone; 24, 16 and 40 for kinds 3, 4 and 5
//!     16     8  seq            order of the write
//!     24     8  expires_at_ms  0 = never; always 0 except for puts
//!     32     4  namespace      of the key; 0 except for puts and tombstones
//!     36     4  ordinal        number of records before this one in the segment
//!     40     -  key, then value, then zeros up to a multiple of 8
//! ```
//!
//! **What each checksum is for.** A reader verifies `header_crc` before it uses any field, so it never follows a
//! damaged length. `header_crc` binds the header to its place: correct bytes in the wrong place (a misdirected write, a
//! stale sector, a record of another segment) fail the check. The image of a record inside a value fails it too,
//! because the author of the value does not know the salt; such an image passes once in 2^32 attempts. `payload_crc`
//! depends only on key and value, but `header_crc` covers it and so binds it to the same place: a payload is accepted
//! elsewhere only if its checksum equals the one in the header there. Compaction therefore carries `payload_crc`
//! unchanged from the first write to the last copy. It computes no new checksum from bytes that it has just read, so it
//! can never give damaged bytes a valid checksum. The padding must be zero.
//!
//! **What the ordinal is for.** Ordinals count up by one from 0. A gap or a wrong ordinal is damage, even if every
//! record by itself is valid.
//!
//! A header of zeros was never written. Zeros and old bytes after the last record of the segment that was active at a
//! crash are the result of a torn write; in a sealed segment they are damage. The same holds for prewritten padding:
//! bytes of [`PREWRITTEN_BYTE`] behind the records of an active segment, which later records overwrite. Read as a
//! header, the padding has an invalid kind, even if its checksum were correct by chance. After damage, a reader finds
//! the next record by trying each multiple of 8; see [`find_record`].
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
//! Frames are records about the log itself. A frame has no key, and a value of fixed length that needs no padding.
//!
//! **Batch frame**: starts an atomic batch. The records of the batch follow directly. They are all applied, or, if any
//! of them is invalid, none is.
//!
//! ```text
//! offset  size  value of a batch frame, at offset 40 of its record
//!      0     4  count           records in the batch, at least 1
//!      4     4  reserved        zero
//!      8     8  bytes           of these records with their padding, without the frame; a multiple of 8
//!     16     8  durable_offset  when the frame was written, all bytes of the segment below this offset were known durable
//! ```
//!
//! The sequence number of the frame is that of its first member. Two records of 104 bytes in total, at offset 512:
//!
//! ```text
//! example: batch frame
//! 0000  17 88 ef af ce 05 37 a7 03 00 00 00 18 00 00 00
//! 0010  28 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
//! 0020  00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
//! 0030  68 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00
//! ```
//!
//! **Watermark**: starts a commit group. Damage below a `durable_offset` that a later record of the same segment states
//! has destroyed acknowledged data; it is not a torn tail.
//!
//! ```text
//! offset  size  value of a watermark
//!      0     8  durable_offset  all bytes of the segment below this offset were known durable
//!      8     8  durable_seq     all records up to this sequence number were known durable
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
//! **Footer**: makes the segment a sealed one, which never changes again. The file is `data_len` + 80 bytes long.
//!
//! ```text
//! offset  size  value of a footer
//!      0     8  data_len      bytes before the footer, which is the footer's offset
//!      8     8  min_seq       smallest sequence number of the puts and tombstones; 0 if there are none
//!     16     8  max_seq       largest sequence number of the puts and tombstones; 0 if there are none
//!     24     4  record_count  records of every kind before the footer, which is the footer's ordinal
//!     28     4  file_crc      of bytes 0..data_len of the file
//!     32     8  reserved      zero
//! ```
//!
//! A CRC that covers bytes followed by their own CRC does not depend on those bytes. `file_crc` is therefore
//! independent of the segment header at the start of the file. The header's own checksum protects the header, and the
//! manifest identifies the segment.
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
//! The manifest lists the live segments. Every change replaces the whole file. A segment file that the manifest does
//! not list is not part of the store.
//!
//! ```text
//! offset  size  manifest
//!      0    40  prelude
//!     40     8  generation       one more than that of the previous manifest
//!     48     8  next_segment_id  when the manifest was written, no segment had this id or a larger one
//!     56     8  next_seq         no record in a listed sealed segment has this sequence number or a larger one
//!     64     8  count            n, the number of segments
//!     72     4  active_segment   the listed segment that receives appends and may lack a footer; 0 = none
//!     76     4  crc              of bytes 0..76
//!     80    16  n times: segment id, salt (8 bytes each); ids ascend and are below next_segment_id
//!      -     4  list_crc         of bytes 76..80 + 16 n: the header's checksum and the list
//! ```
//!
//! `list_crc` covers the header by covering the header's checksum. A CRC of all bytes would not cover the header, for
//! the reason given under the footer. Segments 3 (salt 0x33) and 7 (active), generation 9, next ids 8 and 42:
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
//! A hint file holds the keys of a sealed segment and the locations of their records, so that opening a store need not
//! read the values. It is derived data: a hint file that is missing, damaged, or made for another segment, length or
//! checksum is ignored, and the segment is scanned.
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
//!     96     -  blocks up to the end of the file, each of about 64 KiB; no block is empty
//!
//! offset  size  block
//!      0     4  crc            of salt, segment_id, block offset in this file (8 bytes each), then the rest of the block
//!      4     4  len            bytes of the entries
//!      8     4  count          of the entries, at least 1
//!     12     4  reserved       zero
//!     16   len  entries, in any order
//!
//! offset  size  entry
//!      0     8  seq            this and the fields without a comment: as in the record
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
mod constants;
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

pub use constants::{
    ALIGN, BATCH_FRAME_LEN, FOOTER_LEN, MAX_KEY_LEN, MAX_SEQ, MAX_VALUE_LEN, PREWRITTEN_BYTE, RECORD_HEADER_LEN,
    SEGMENT_HEADER_LEN, WATERMARK_LEN,
};
pub use crc::{Binding, PayloadCrc, payload_crc};
pub use error::DecodeError;
pub use frames::{BatchFrame, Footer, Watermark};
pub use hint::{HINT_HEADER_LEN, HintEntry, HintHeader, HintReader, HintWriter, whole_blocks};
pub use manifest::{Manifest, ManifestSegment};
pub use record::{RecordHeader, RecordKind, find_record, patch_header, read_record_of, record_len};
pub use segment_header::SegmentHeader;

// Only tests name these.
#[cfg(any(test, feature = "__testing"))]
pub use self::{
    hint::HINT_BLOCK_HEADER_LEN,
    manifest::MANIFEST_HEADER_LEN,
    record::{COMPRESSION_NONE, Record, read_record},
};
#[cfg(feature = "__testing")]
pub use constants::{CHECKSUM_CRC32, FORMAT_MAJOR, FORMAT_MINOR, KNOWN_COMPAT, KNOWN_INCOMPAT};
