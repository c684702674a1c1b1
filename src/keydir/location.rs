//! What the keydir stores for a key: the newest record's place, its sequence number, and whether it is a tombstone.

use crate::format::{self, ALIGN};

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The segment's id. The store refuses to create a segment whose id needs more than 32 bits.
    pub(crate) segment: u32,
    /// Offset of the record in units of [`ALIGN`].
    units: u32,
    /// Bytes of the value as stored.
    pub(crate) value_len: u32,
}

impl Location {
    /// The location of a tombstone, which has none.
    pub(super) const NOWHERE: Self = Self { segment: 0, units: 0, value_len: 0 };

    /// `None` if `offset` is beyond what 32 bits of units can address: 32 GiB into the segment.
    pub(crate) fn new(segment: u32, offset: u64, value_len: u32) -> Option<Self> {
        debug_assert_eq!(offset % ALIGN, 0, "records start at multiples of {ALIGN}, not at {offset}");
        Some(Self { segment, units: u32::try_from(offset / ALIGN).ok()?, value_len })
    }

    /// Offset of the record from the start of its segment, in bytes.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.units) * ALIGN
    }

    /// Bytes the record takes in its segment, given the length of its key.
    pub(crate) fn record_len(self, key_len: usize) -> u64 {
        format::record_len(key_len, self.value_len as usize)
    }
}

/// The value that the map stores under a key: 20 bytes. The top bit of `seq_and_kind` marks a tombstone.
#[derive(Clone, Copy)]
pub(super) struct KeydirSlot {
    /// Two halves of one number, so that the struct is aligned to 4 bytes and needs no padding.
    seq_and_kind: [u32; 2],
    location: Location,
}

const TOMBSTONE_BIT: u64 = 1 << 63;

impl KeydirSlot {
    #[expect(clippy::cast_possible_truncation, reason = "two halves of one number")]
    pub(super) fn new(seq: u64, tombstone: bool, location: Location) -> Self {
        let word = if tombstone { seq | TOMBSTONE_BIT } else { seq };
        Self { seq_and_kind: [word as u32, (word >> 32) as u32], location }
    }

    pub(super) fn word(self) -> u64 {
        u64::from(self.seq_and_kind[0]) | u64::from(self.seq_and_kind[1]) << 32
    }

    pub(super) fn seq(self) -> u64 {
        self.word() & !TOMBSTONE_BIT
    }

    /// The record's location, or `None` for a tombstone.
    pub(super) fn live(self) -> Option<Location> {
        (self.word() & TOMBSTONE_BIT == 0).then_some(self.location)
    }
}

/// How an arena stores a slot.
#[cfg(not(feature = "__shuttle"))]
impl KeydirSlot {
    /// Bytes of an encoded slot. Together with the key's length this is the memory that a key costs besides its own
    /// bytes, which is a published number.
    pub(super) const BYTES: usize = 20;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let Location { segment, units, value_len } = self.location;
        let mut bytes = [0; Self::BYTES];
        for (to, from) in
            bytes.chunks_exact_mut(4).zip([self.seq_and_kind[0], self.seq_and_kind[1], segment, units, value_len])
        {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let mut words = [0; 5];
        for (to, from) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        let [low, high, segment, units, value_len] = words;
        Self { seq_and_kind: [low, high], location: Location { segment, units, value_len } }
    }
}
