//! Batches of writes, and the limits of keys and values.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, RecordKind};
use crate::options::MAX_KEY_LEN;

/// Largest batch, in bytes of log: it is staged as a whole.
const MAX_BATCH_BYTES: u64 = 1 << 30;

/// An ordered list of puts and deletes that apply together: all or none, for readers and after a crash.
///
/// Within a batch, the later operation on a key wins.
///
/// ```
/// let mut batch = ringcask::Batch::new();
/// batch.put("from", "90").put("to", "110").delete("pending");
/// assert_eq!(batch.len(), 3);
/// ```
#[derive(Clone, Default)]
#[must_use = "a batch does nothing until `Store::write`"]
pub struct Batch {
    members: Vec<BatchMember>,
    payload: Vec<u8>,
    /// Values that are not in the payload.
    shared: Vec<Bytes>,
    record_bytes: u64,
}

impl fmt::Debug for Batch {
    /// Sizes only: keys and values do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Batch");
        out.field("operations", &self.members.len()).field("record_bytes", &self.record_bytes).finish()
    }
}

/// One operation. Its key and value are in the batch's payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchMember {
    pub(crate) kind: RecordKind,
    pub(crate) start: usize,
    pub(crate) key_len: usize,
    pub(crate) value_len: usize,
    /// Where the value is among the shared ones, if it is not behind its key.
    shared: Option<usize>,
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

    /// Adds a put. [`Store::write`](crate::Store::write) checks the lengths.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.push(RecordKind::Put, key.as_ref(), value.as_ref())
    }

    /// Adds a put whose value is shared with the batch instead of copied into it. Writing the batch copies it once.
    pub fn put_bytes(&mut self, key: impl AsRef<[u8]>, value: Bytes) -> &mut Self {
        let (start, key) = (self.payload.len(), key.as_ref());
        self.payload.extend_from_slice(key);
        self.record_bytes += format::record_len(key.len(), value.len());
        let (key_len, value_len, shared) = (key.len(), value.len(), Some(self.shared.len()));
        self.members.push(BatchMember { kind: RecordKind::Put, start, key_len, value_len, shared });
        self.shared.push(value);
        self
    }

    /// Adds a delete. It writes a tombstone whether or not the key exists.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.push(RecordKind::Tombstone, key.as_ref(), &[])
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no operations. Writing an empty batch does nothing.
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
        self.shared.clear();
        self.record_bytes = 0;
    }

    fn push(&mut self, kind: RecordKind, key: &[u8], value: &[u8]) -> &mut Self {
        let start = self.payload.len();
        self.payload.extend_from_slice(key);
        self.payload.extend_from_slice(value);
        self.record_bytes += format::record_len(key.len(), value.len());
        self.members.push(BatchMember { kind, start, key_len: key.len(), value_len: value.len(), shared: None });
        self
    }

    /// The operations in order, as kind, key and value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RecordKind, &[u8], &[u8])> {
        self.members.iter().map(|member| {
            let (key, rest) = self.payload[member.start..].split_at(member.key_len);
            let value = member.shared.map_or(rest, |index| &self.shared[index]);
            (member.kind, key, &value[..member.value_len])
        })
    }

    /// The first operation whose key or value is outside the limits, as an error that names it.
    pub(crate) fn check(&self, max_value_bytes: u64) -> Result<()> {
        let named = |index: usize, error: Error| error.prefixed(&format!("operation {index} of the batch"));
        for (index, member) in self.members.iter().enumerate() {
            check_key_len(member.key_len).map_err(|error| named(index, error))?;
            check_value_len(member.value_len, max_value_bytes).map_err(|error| named(index, error))?;
        }
        if self.byte_len() > MAX_BATCH_BYTES {
            let message = format!("the batch has {} bytes, more than {MAX_BATCH_BYTES}", self.byte_len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }
}

/// Refuses a key whose length is outside the limits.
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    check_key_len(key.len())
}

fn check_key_len(len: usize) -> Result<()> {
    match len {
        0 => Err(Error::new(ErrorKind::InvalidInput, format!("the key is empty; keys have 1 to {MAX_KEY_LEN} bytes"))),
        len if len > MAX_KEY_LEN => {
            Err(Error::new(ErrorKind::TooLarge, format!("the key has {len} bytes, more than {MAX_KEY_LEN}")))
        }
        _ => Ok(()),
    }
}

/// Refuses a value that is longer than the store accepts.
pub(crate) fn check_value_len(len: usize, max_value_bytes: u64) -> Result<()> {
    if len as u64 <= max_value_bytes {
        return Ok(());
    }
    let message = format!("the value has {len} bytes, more than the {max_value_bytes} that max_value_bytes allows");
    Err(Error::new(ErrorKind::TooLarge, message))
}
