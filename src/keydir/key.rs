//! Keys: an owned copy for futures, and the keyed hash.

use std::fmt;
use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

/// A key owned by a future: up to 22 bytes inline, longer ones on the heap.
#[derive(Clone)]
pub(crate) enum Key {
    Inline(u8, [u8; Key::INLINE]),
    Heap(Box<[u8]>),
}

impl Key {
    const INLINE: usize = 22;

    pub(crate) fn new(bytes: &[u8]) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(len) if bytes.len() <= Self::INLINE => {
                let mut inline = [0; Self::INLINE];
                inline[..bytes.len()].copy_from_slice(bytes);
                Self::Inline(len, inline)
            }
            _ => Self::Heap(bytes.into()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Key {
    /// Shows only the length: keys are as confidential as values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.as_slice().len())
    }
}

/// SipHash-1-3 under a secret key: an attacker who chooses the keys cannot make them collide.
#[derive(Clone, Debug)]
pub(super) struct KeyedSip(pub(super) u64, pub(super) u64);

impl BuildHasher for KeyedSip {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}
