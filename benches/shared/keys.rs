//! Keys for benchmarks, and a generator for their order.

/// A key of 16 bytes.
pub(crate) fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench-key-------";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A xorshift generator.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
