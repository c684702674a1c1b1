//! Writes that apply together.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, RecordKind};
use crate::options::MAX_KEY_LEN;

/// An ordered list of puts and deletes that apply together: after a crash all of them are there, or none; and no reader
/// sees some of them without the others.
///
/// Within a batch the later operation on a key wins.
///
/// ```
/// let mut batch = ringcask::Batch::new();
/// batch.put("from", "90").put("to", "110").delete("pending");
/// assert_eq!(batch.len(), 3);
/// ```
#[derive(Clone, Default)]
#[must_use = "a batch does nothing until `Store::write`"]
pub struct Batch {
    members: Vec<Member>,
    payload: Vec<u8>,
    record_bytes: u64,
}

impl fmt::Debug for Batch {
    /// How much it is, and not what: keys and values are nobody's business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Batch");
        out.field("operations", &self.members.len()).field("record_bytes", &self.record_bytes).finish()
    }
}

/// One operation; its key and value lie in the batch's payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) kind: RecordKind,
    pub(crate) start: usize,
    pub(crate) key_len: usize,
    pub(crate) value_len: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `operations`.
    pub fn with_capacity(operations: usize) -> Self {
        Self { members: Vec::with_capacity(operations), ..Self::default() }
    }

    /// Adds a put. Lengths are checked when the batch is written.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.push(RecordKind::Put, key.as_ref(), value.as_ref())
    }

    /// Adds a delete; it leaves a tombstone whether or not the key exists.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.push(RecordKind::Tombstone, key.as_ref(), &[])
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no operations; writing such a batch does nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Bytes the batch's records take in the log.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.record_bytes
    }

    /// Removes all operations and keeps the memory.
    pub fn clear(&mut self) {
        self.members.clear();
        self.payload.clear();
        self.record_bytes = 0;
    }

    fn push(&mut self, kind: RecordKind, key: &[u8], value: &[u8]) -> &mut Self {
        let start = self.payload.len();
        self.payload.extend_from_slice(key);
        self.payload.extend_from_slice(value);
        self.record_bytes += format::record_len(key.len(), value.len());
        self.members.push(Member { kind, start, key_len: key.len(), value_len: value.len() });
        self
    }

    /// The operations in order, as kind, key and value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RecordKind, &[u8], &[u8])> {
        self.members.iter().map(|member| {
            let (key, rest) = self.payload[member.start..].split_at(member.key_len);
            (member.kind, key, &rest[..member.value_len])
        })
    }

    /// The lengths of the first key that is not valid, if any.
    pub(crate) fn first_bad_key(&self) -> Option<usize> {
        self.members.iter().map(|member| member.key_len).find(|&len| len == 0 || len > MAX_KEY_LEN)
    }

    /// The longest value.
    pub(crate) fn longest_value(&self) -> usize {
        self.members.iter().map(|member| member.value_len).max().unwrap_or(0)
    }
}

/// Refuses a key whose length is outside the limits.
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    match key.len() {
        0 => Err(Error::new(ErrorKind::InvalidInput, format!("the key is empty; keys have 1 to {MAX_KEY_LEN} bytes"))),
        len if len > MAX_KEY_LEN => {
            Err(Error::new(ErrorKind::TooLarge, format!("the key has {len} bytes, more than {MAX_KEY_LEN}")))
        }
        _ => Ok(()),
    }
}
