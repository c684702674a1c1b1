//! The reasons for which a decoder refuses its input.

use std::fmt;

use super::constants::{CHECKSUM_CRC32, FORMAT_MAJOR, KNOWN_COMPAT, KNOWN_INCOMPAT, MAX_SEQ};

/// The reason for which a decoder refused its input.
///
/// The error names only the kind of failure. The caller knows the file and the offset, and decides whether the failure
/// is a torn tail or corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends before the structure does, which may be a torn tail. `needed` comes from a length that a checksum
    /// covers, or is the minimum length of such a structure.
    Incomplete {
        /// Bytes needed from the start of the structure or, inside a hint file's block, of the block.
        needed: u64,
    },
    /// All bytes of the header are zero: nothing was ever written here.
    Zeroes,
    /// The file does not start with the magic bytes of its type.
    Magic,
    /// A header is damaged, or was written for another place.
    HeaderChecksum,
    /// A payload, a hint block or the list of a manifest is damaged.
    PayloadChecksum,
    /// The record kind does not exist, or is not allowed here.
    Kind(u8),
    /// A compression that this version does not know.
    Compression(u8),
    /// A checksum algorithm that this version does not know.
    ChecksumTag(u8),
    /// A length is outside the limits, or contradicts another length.
    Length,
    /// The padding of a record is not zero.
    Padding,
    /// A field that must be zero is not.
    Reserved,
    /// An offset is not aligned, lies outside the segment, or contradicts the structure's actual offset.
    Place,
    /// The number of items differs from the count in the header.
    Count,
    /// Items that must ascend do not.
    Order,
    /// A sequence number that no store can reach.
    Sequence,
    /// Bytes follow the end of the structure.
    Trailing,
    /// A file of a version that this version must not touch. It is not damaged: the checksum is correct.
    Unsupported {
        /// Major version of the file.
        found_major: u16,
        /// Minor version of the file.
        found_minor: u16,
        /// All `incompat` feature bits of the file, including the known ones.
        incompat: u32,
        /// All `compat` feature bits of the file, including the known ones.
        compat: u32,
    },
}

const _: () = assert!(size_of::<DecodeError>() <= 16, "a decode error fits in two registers");

impl DecodeError {
    /// True for a file of another version, which must stay untouched; false for damage.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::ChecksumTag(_))
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete { needed } => write!(f, "ends early, {needed} bytes needed"),
            Self::Zeroes => f.write_str("never written"),
            Self::Magic => f.write_str("bad magic"),
            Self::HeaderChecksum => f.write_str("bad header checksum"),
            Self::PayloadChecksum => f.write_str("bad payload checksum"),
            Self::Kind(kind) => write!(f, "record kind {kind} not allowed"),
            Self::Compression(tag) => write!(f, "unknown compression {tag}"),
            Self::ChecksumTag(tag) => {
                write!(f, "checksum algorithm {tag} not supported; this build knows {CHECKSUM_CRC32}")
            }
            Self::Length => f.write_str("length out of range"),
            Self::Padding => f.write_str("padding not zero"),
            Self::Reserved => f.write_str("reserved field not zero"),
            Self::Place => f.write_str("impossible offset"),
            Self::Count => f.write_str("wrong count"),
            Self::Order => f.write_str("out of order"),
            Self::Sequence => f.write_str("sequence number out of range"),
            Self::Trailing => f.write_str("trailing bytes"),
            Self::Unsupported { found_major, found_minor, incompat, compat } => {
                write!(
                    f,
                    "format {found_major}.{found_minor} with features {incompat:#x}, {compat:#x} not supported; "
                )?;
                write!(f, "this build reads format {FORMAT_MAJOR}, features {KNOWN_INCOMPAT:#x}, {KNOWN_COMPAT:#x}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// Refuses a sequence number that no store can reach.
pub(super) const fn check_seq(seq: u64) -> Result<(), DecodeError> {
    if seq <= MAX_SEQ { Ok(()) } else { Err(DecodeError::Sequence) }
}
