//! Hint files: what a sealed segment contributes to the keydir, so that opening need not read the values.
//!
//! Derived data: any refusal means that the segment is read instead, and the answer must be the same. An entry is
//! yielded only from a block whose checksum is right, and only if it points into the segment's data.

use super::bytes::{Fields, put};
use super::prelude::{Prelude, magic};
use super::record::COMPRESSION_NONE;
use super::{
    ALIGN, Binding, DecodeError, MAX_KEY_LEN, MAX_VALUE_LEN, RecordKind, SEGMENT_HEADER_LEN, check_seq, record_len,
};

/// Bytes of a hint file's header.
pub const HINT_HEADER_LEN: usize = 96;

/// Bytes of a block's header.
pub const HINT_BLOCK_HEADER_LEN: usize = 16;

/// Bytes of an entry without its key.
pub(super) const HINT_ENTRY_LEN: usize = 36;

/// Bytes of entries at which a block is closed: large enough to make its header nothing, small enough to stay in cache
/// between its checksum and its decoding.
pub(super) const HINT_BLOCK_TARGET_LEN: usize = 64 * 1024;

/// No block's entries are longer: one entry may begin just short of the target.
const BLOCK_MAX_LEN: usize = HINT_BLOCK_TARGET_LEN - 1 + HINT_ENTRY_LEN + MAX_KEY_LEN;

/// Which segment a hint file is about, to the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintHeader {
    /// The store.
    pub store_id: [u8; 16],
    /// The segment.
    pub segment_id: u64,
    /// The segment's salt.
    pub salt: u64,
    /// `data_len` of the segment's footer.
    pub data_len: u64,
    /// `file_crc` of the segment's footer.
    pub file_crc: u32,
    /// Entries in the file. [`HintWriter`] counts them itself.
    pub entry_count: u64,
}

impl HintHeader {
    fn encode(&self) -> [u8; HINT_HEADER_LEN] {
        let mut out = [0; HINT_HEADER_LEN];
        put(&mut out, 40, self.segment_id.to_le_bytes());
        put(&mut out, 48, self.salt.to_le_bytes());
        put(&mut out, 56, self.data_len.to_le_bytes());
        put(&mut out, 64, self.entry_count.to_le_bytes());
        put(&mut out, 72, self.file_crc.to_le_bytes());
        Prelude::current(self.store_id).seal(&mut out, magic::HINT);
        out
    }

    /// Verifies the first [`HINT_HEADER_LEN`] bytes of a hint file, or more.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (prelude, mut fields) = Prelude::open::<HINT_HEADER_LEN>(bytes, magic::HINT)?;
        let (segment_id, salt, data_len) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (entry_count, file_crc) = (fields.u64()?, fields.u32()?);
        prelude.reserved(fields.rest())?;
        Ok(Self { store_id: prelude.store_id, segment_id, salt, data_len, file_crc, entry_count })
    }
}

/// One key of the segment and where its record lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HintEntry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// [`RecordKind::Put`] or [`RecordKind::Tombstone`].
    pub kind: RecordKind,
    /// Sequence number of the record.
    pub seq: u64,
    /// Where the record starts.
    pub offset: u64,
    /// Bytes of its value as stored.
    pub value_len: u32,
    /// When it expires, in milliseconds since 1970; 0 = never.
    pub expires_at_ms: u64,
    /// Namespace of the key.
    pub namespace: u32,
    /// How its stored value was compressed.
    pub compression: u8,
}

// Keys are the user's secrets and stay out of logs.
impl std::fmt::Debug for HintEntry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("HintEntry");
        out.field("kind", &self.kind).field("seq", &self.seq).field("offset", &self.offset);
        out.field("key_len", &self.key.len()).field("value_len", &self.value_len).finish_non_exhaustive()
    }
}

impl HintEntry<'_> {
    /// The same rules as for the record the entry stands for, and that the record lies within `data_len`.
    fn check(&self, data_len: u64) -> Result<(), DecodeError> {
        if self.compression != COMPRESSION_NONE {
            return Err(DecodeError::Compression(self.compression));
        }
        let value_len_max = match self.kind {
            RecordKind::Put => MAX_VALUE_LEN,
            RecordKind::Tombstone => 0,
            other => return Err(DecodeError::Kind(other.tag())),
        };
        check_seq(self.seq)?;
        if self.key.is_empty() || self.key.len() > MAX_KEY_LEN || self.value_len > value_len_max {
            return Err(DecodeError::Length);
        }
        if self.kind == RecordKind::Tombstone && self.expires_at_ms != 0 {
            return Err(DecodeError::Reserved);
        }
        let end = self.offset.checked_add(record_len(self.key.len(), self.value_len as usize));
        let inside = self.offset >= SEGMENT_HEADER_LEN as u64 && end.is_some_and(|end| end <= data_len);
        if inside && self.offset.is_multiple_of(ALIGN) { Ok(()) } else { Err(DecodeError::Place) }
    }
}

/// Builds a hint file in memory.
#[derive(Debug)]
pub struct HintWriter {
    header: HintHeader,
    binding: Binding,
    out: Vec<u8>,
    /// Where the open block's header starts in `out`.
    block_start: usize,
    /// Entries in the open block.
    block_count: u32,
}

impl HintWriter {
    /// Starts the hint file of the segment that `header` names; its `entry_count` is not looked at.
    pub fn new(header: &HintHeader) -> Self {
        Self {
            header: HintHeader { entry_count: 0, ..*header },
            binding: Binding::new(header.salt, header.segment_id),
            out: vec![0; HINT_HEADER_LEN + HINT_BLOCK_HEADER_LEN],
            block_start: HINT_HEADER_LEN,
            block_count: 0,
        }
    }

    /// Adds an entry, in any order.
    pub fn push(&mut self, entry: HintEntry<'_>) {
        debug_assert_eq!(entry.check(self.header.data_len), Ok(()), "an entry that would be refused: {entry:?}");
        if self.out.len() - self.block_start >= HINT_BLOCK_HEADER_LEN + HINT_BLOCK_TARGET_LEN {
            self.close_block();
            self.block_start = self.out.len();
            self.out.extend_from_slice(&[0; HINT_BLOCK_HEADER_LEN]);
        }
        let mut fixed = [0; HINT_ENTRY_LEN];
        put(&mut fixed, 0, entry.seq.to_le_bytes());
        put(&mut fixed, 8, entry.offset.to_le_bytes());
        put(&mut fixed, 16, entry.expires_at_ms.to_le_bytes());
        put(&mut fixed, 24, entry.value_len.to_le_bytes());
        put(&mut fixed, 28, entry.namespace.to_le_bytes());
        // Saturation would only make a hint that is refused; the limit was checked when the key was put.
        put(&mut fixed, 32, u16::try_from(entry.key.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(&mut fixed, 34, [entry.kind.tag(), entry.compression]);
        self.out.extend_from_slice(&fixed);
        self.out.extend_from_slice(entry.key);
        self.block_count += 1;
        self.header.entry_count += 1;
    }

    /// Completes the file of a segment whose length and checksum were not known when it was started.
    pub fn finish_with(mut self, data_len: u64, file_crc: u32) -> Vec<u8> {
        (self.header.data_len, self.header.file_crc) = (data_len, file_crc);
        self.finish()
    }

    /// Completes the file.
    pub fn finish(mut self) -> Vec<u8> {
        if self.block_count == 0 {
            self.out.truncate(self.block_start);
        } else {
            self.close_block();
        }
        self.out[..HINT_HEADER_LEN].copy_from_slice(&self.header.encode());
        self.out
    }

    /// Fills in the header of the open block.
    fn close_block(&mut self) {
        let offset = self.block_start as u64;
        let block = &mut self.out[self.block_start..];
        // Blocks are far below 4 GiB; see `push`.
        let len = u32::try_from(block.len() - HINT_BLOCK_HEADER_LEN).unwrap_or(u32::MAX);
        put(block, 4, len.to_le_bytes());
        put(block, 8, self.block_count.to_le_bytes());
        let crc = self.binding.header_crc(offset, &block[4..]);
        put(block, 0, crc.to_le_bytes());
        self.block_count = 0;
    }
}

/// How many of these bytes, which begin with a block, are whole blocks. What a block says of its length is not verified
/// before it is read.
pub fn whole_blocks(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut end = 0;
    loop {
        let mut fields = Fields::new(bytes.get(end..).unwrap_or_default());
        let (Ok(_crc), Ok(len)) = (fields.u32(), fields.u32()) else { return Ok(end) };
        let len = len as usize;
        if len > BLOCK_MAX_LEN {
            return Err(DecodeError::Length);
        }
        if bytes.len() - end < HINT_BLOCK_HEADER_LEN + len {
            return Ok(end);
        }
        end += HINT_BLOCK_HEADER_LEN + len;
    }
}

/// Iterates over the entries of a hint file, or of some of its blocks; stops for good at the first error.
#[derive(Clone, Debug)]
pub struct HintReader<'a> {
    binding: Binding,
    data_len: u64,
    /// Entries not yielded yet, by the file's header; `None` where only some blocks are read.
    left: Option<u64>,
    /// The blocks after the open one, and where they start in the file.
    rest: &'a [u8],
    offset: u64,
    /// The open block's entries not yielded yet, by count and as bytes.
    block_count: u32,
    block: Fields<'a>,
    done: bool,
}

impl<'a> HintReader<'a> {
    /// Verifies the header of a whole hint file. Whether it is that of the segment at hand, the caller compares.
    pub fn new(bytes: &'a [u8]) -> Result<(HintHeader, Self), DecodeError> {
        let header = HintHeader::decode(bytes)?;
        let rest = bytes.get(HINT_HEADER_LEN..).unwrap_or_default();
        // The count is only a count, but callers size tables by it.
        if header.entry_count > rest.len() as u64 / (HINT_ENTRY_LEN as u64 + 1) {
            return Err(DecodeError::Count);
        }
        let of_all = Self { left: Some(header.entry_count), ..Self::of_blocks(&header, HINT_HEADER_LEN as u64, rest) };
        Ok((header, of_all))
    }

    /// Reads `blocks`, whole ones, which begin at `offset` of the file with this header. How many entries they have
    /// together, the caller compares.
    pub fn of_blocks(header: &HintHeader, offset: u64, blocks: &'a [u8]) -> Self {
        Self {
            binding: Binding::new(header.salt, header.segment_id),
            data_len: header.data_len,
            left: None,
            rest: blocks,
            offset,
            block_count: 0,
            block: Fields::new(&[]),
            done: false,
        }
    }

    fn advance(&mut self) -> Result<Option<HintEntry<'a>>, DecodeError> {
        if self.block_count == 0 {
            if !self.block.rest().is_empty() {
                return Err(DecodeError::Trailing);
            }
            if self.rest.is_empty() {
                return if self.left.unwrap_or(0) == 0 { Ok(None) } else { Err(DecodeError::Count) };
            }
            self.open_block()?;
        }
        let entry = read_entry(&mut self.block)?;
        entry.check(self.data_len)?;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(DecodeError::Count)?;
        }
        self.block_count -= 1;
        Ok(Some(entry))
    }

    /// Verifies the next block whole.
    fn open_block(&mut self) -> Result<(), DecodeError> {
        let mut fields = Fields::new(self.rest);
        let crc = fields.u32()?;
        let covered = fields.rest();
        let (len, count) = (fields.u32()? as usize, fields.u32()?);
        fields.zeroes(4)?;
        if len > BLOCK_MAX_LEN {
            return Err(DecodeError::Length);
        }
        let entries = fields.slice(len)?;
        let covered = covered.get(..HINT_BLOCK_HEADER_LEN - 4 + len).ok_or(DecodeError::Length)?;
        if self.binding.header_crc(self.offset, covered) != crc {
            return Err(DecodeError::PayloadChecksum);
        }
        if count == 0 {
            return Err(DecodeError::Count);
        }
        self.rest = fields.rest();
        self.offset += (HINT_BLOCK_HEADER_LEN + len) as u64;
        (self.block, self.block_count) = (Fields::new(entries), count);
        Ok(())
    }
}

impl<'a> Iterator for HintReader<'a> {
    type Item = Result<HintEntry<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl std::iter::FusedIterator for HintReader<'_> {}

fn read_entry<'a>(fields: &mut Fields<'a>) -> Result<HintEntry<'a>, DecodeError> {
    let (seq, offset, expires_at_ms) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (value_len, namespace) = (fields.u32()?, fields.u32()?);
    let key_len = fields.u16()?;
    let (tag, compression) = (fields.u8()?, fields.u8()?);
    let kind = RecordKind::from_tag(tag).ok_or(DecodeError::Kind(tag))?;
    let key = fields.slice(usize::from(key_len))?;
    Ok(HintEntry { key, kind, seq, offset, value_len, expires_at_ms, namespace, compression })
}
