//! Reading and writing little-endian fields.

use super::error::DecodeError;

/// Reads fields one after the other. The end of the input is an error, never a panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    taken: u64,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, taken: 0 }
    }

    /// The bytes that are not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let needed = self.taken + N as u64;
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Incomplete { needed })?;
        (self.rest, self.taken) = (rest, needed);
        Ok(*head)
    }

    pub(super) fn slice(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let needed = self.taken.saturating_add(len as u64);
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Incomplete { needed })?;
        (self.rest, self.taken) = (rest, needed);
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads `len` bytes that must be zero.
    pub(super) fn zeroes(&mut self, len: usize) -> Result<(), DecodeError> {
        if is_zero(self.slice(len)?) { Ok(()) } else { Err(DecodeError::Reserved) }
    }
}

/// Whether every byte is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Writes `field` to offset `at` of a structure of fixed size. All callers pass constant offsets, so any test that
/// encodes the structure checks the bounds.
#[inline]
pub(super) fn put<const N: usize>(out: &mut [u8], at: usize, field: [u8; N]) {
    out[at..at + N].copy_from_slice(&field);
}
