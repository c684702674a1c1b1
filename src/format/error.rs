//! Why bytes were refused.

use std::fmt;

/// The reason a decoder refused its input.
///
/// Only the kind of failure: which file and where is the caller's knowledge, and so is whether the place makes it a
/// torn tail or corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends before the structure does, which may be a torn tail. `needed` counts from the start of the
    /// structure (of a hint file's block, inside one); it comes from a length that a checksum vouches for, or is the
    /// least that any such structure has.
    Incomplete {
        /// Bytes needed from the start of the structure.
        needed: u64,
    },
    /// The whole header is zero: nothing was ever written here.
    Zeroes,
    /// The file does not start with the magic bytes of its type.
    Magic,
    /// A header is not what was written, or was written for another place.
    HeaderChecksum,
    /// A payload, a hint block or the body of a manifest is not what was written.
    PayloadChecksum,
    /// No such record kind, or not one that may stand here.
    Kind(u8),
    /// A compression this version does not know.
    Compression(u8),
    /// A checksum algorithm this version does not know.
    ChecksumTag(u8),
    /// A length outside the limits, or one that disagrees with another.
    Length,
    /// The zero bytes after a record are not zero.
    Padding,
    /// A field that must be zero is not.
    Reserved,
    /// A place is not aligned, lies outside its segment, or is not where the structure says it is.
    Place,
    /// Fewer or more things than the header counted.
    Count,
    /// Things that must ascend do not.
    Order,
    /// A sequence number that no store reaches.
    Sequence,
    /// Bytes follow where the structure has ended.
    Trailing,
    /// Written by a version of the format that this one must not touch. Not damage: the checksum is right.
    Unsupported {
        /// Major version found.
        found_major: u16,
        /// Minor version found.
        found_minor: u16,
        /// Feature bits found without which it cannot be read, the known ones among them.
        incompat: u32,
        /// Feature bits found without which its store cannot be written, the known ones among them.
        compat: u32,
    },
}

const _: () = assert!(size_of::<DecodeError>() <= 16, "a decode error travels in two registers");

impl DecodeError {
    /// True for a file of another version, which is to be left alone, and false for damage.
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
            Self::ChecksumTag(tag) => write!(f, "unknown checksum algorithm {tag}"),
            Self::Length => f.write_str("length out of range"),
            Self::Padding => f.write_str("padding not zero"),
            Self::Reserved => f.write_str("reserved field not zero"),
            Self::Place => f.write_str("impossible offset"),
            Self::Count => f.write_str("wrong count"),
            Self::Order => f.write_str("out of order"),
            Self::Sequence => f.write_str("sequence number out of range"),
            Self::Trailing => f.write_str("trailing bytes"),
            Self::Unsupported { found_major, found_minor, incompat, compat } => {
                write!(f, "format {found_major}.{found_minor} with features {incompat:#x}, {compat:#x} not supported")
            }
        }
    }
}

impl std::error::Error for DecodeError {}
