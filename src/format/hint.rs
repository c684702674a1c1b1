//! Hint files: the keydir entries of a sealed segment, so that opening a store need not read the values.
//!
//! Hint files are derived data. If a decoder refuses one, the segment is scanned instead, with the same result. A
//! reader yields an entry only if the checksum of its block is correct and the entry points into the segment's data.

use super::bytes::{Fields, put};
use super::constants::{ALIGN, MAX_KEY_LEN, MAX_VALUE_LEN, SEGMENT_HEADER_LEN};
use super::crc::Binding;
use super::error::{DecodeError, check_seq};
use super::prelude::{Prelude, magic};
use super::record::{COMPRESSION_NONE, RecordKind, record_len};

/// Bytes of a hint file's header.
pub const HINT_HEADER_LEN: usize = 96;

/// Bytes of a block's header.
pub const HINT_BLOCK_HEADER_LEN: usize = 16;

/// Bytes of an entry without its key.
pub(super) const HINT_ENTRY_LEN: usize = 36;

/// A block is closed once its entries have this many bytes. That makes the cost of the block header negligible, and
/// keeps the block in the CPU cache between its checksum and its decoding.
pub(super) const HINT_BLOCK_TARGET_LEN: usize = 64 * 1024;

/// The most bytes that the entries of a block can have: the last entry may begin one byte short of the target.
const BLOCK_MAX_LEN: usize = HINT_BLOCK_TARGET_LEN - 1 + HINT_ENTRY_LEN + MAX_KEY_LEN;

/// Identifies the segment and the exact contents that a hint file describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintHeader {
    /// The store.
    pub store_id: [u8; 16],
    /// The segment.
    pub segment_id: u64,
    /// The segment's salt.
    pub salt: u64,
    /// `data_len` from the segment's footer.
    pub data_len: u64,
    /// `file_crc` from the segment's footer.
    pub file_crc: u32,
    /// Entries in the file. [`HintWriter`] ignores this field and counts them.
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

    /// Decodes the header at the start of a hint file. `bytes` are at least [`HINT_HEADER_LEN`] long.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (prelude, mut fields) = Prelude::open::<HINT_HEADER_LEN>(bytes, magic::HINT)?;
        let (segment_id, salt, data_len) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (entry_count, file_crc) = (fields.u64()?, fields.u32()?);
        prelude.reserved(fields.rest())?;
        Ok(Self { store_id: prelude.store_id, segment_id, salt, data_len, file_crc, entry_count })
    }
}

/// One key of the segment and the location of its record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HintEntry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// [`RecordKind::Put`] or [`RecordKind::Tombstone`].
    pub kind: RecordKind,
    /// Sequence number of the record.
    pub seq: u64,
    /// Offset of the record in the segment.
    pub offset: u64,
    /// Bytes of the stored value.
    pub value_len: u32,
    /// When the value expires, in milliseconds since 1970; 0 = never.
    pub expires_at_ms: u64,
    /// Namespace of the key.
    pub namespace: u32,
    /// How the stored value is compressed.
    pub compression: u8,
}

// Keys may be secret, so they never appear in logs.
impl std::fmt::Debug for HintEntry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("HintEntry");
        out.field("kind", &self.kind).field("seq", &self.seq).field("offset", &self.offset);
        out.field("key_len", &self.key.len()).field("value_len", &self.value_len).finish_non_exhaustive()
    }
}

impl HintEntry<'_> {
    /// Checks the rules of the record that the entry describes, and that the record lies within `data_len`.
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
    /// Start of the open block's header in `out`.
    block_start: usize,
    /// Entries in the open block.
    block_count: u32,
}

impl HintWriter {
    /// Starts the hint file of the segment in `header`, whose `entry_count` is ignored.
    pub fn new(header: &HintHeader) -> Self {
        Self {
            header: HintHeader { entry_count: 0, ..*header },
            binding: Binding::new(header.salt, header.segment_id),
            out: vec![0; HINT_HEADER_LEN + HINT_BLOCK_HEADER_LEN],
            block_start: HINT_HEADER_LEN,
            block_count: 0,
        }
    }

    /// Adds an entry. Entries may come in any order.
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
        // The put has checked the limit. Saturation would only make a hint file that readers refuse.
        put(&mut fixed, 32, u16::try_from(entry.key.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(&mut fixed, 34, [entry.kind.tag(), entry.compression]);
        self.out.extend_from_slice(&fixed);
        self.out.extend_from_slice(entry.key);
        self.block_count += 1;
        self.header.entry_count += 1;
    }

    /// Completes the file with a length and a checksum that were unknown when the file was started.
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
        // `push` keeps blocks far below 4 GiB.
        let len = u32::try_from(block.len() - HINT_BLOCK_HEADER_LEN).unwrap_or(u32::MAX);
        put(block, 4, len.to_le_bytes());
        put(block, 8, self.block_count.to_le_bytes());
        let crc = self.binding.header_crc(offset, &block[4..]);
        put(block, 0, crc.to_le_bytes());
        self.block_count = 0;
    }
}

/// The number of leading bytes that form whole blocks. `bytes` start with a block. The lengths of the blocks are not
/// yet verified; [`HintReader`] verifies them.
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

/// Iterates over the entries of a hint file, or of some of its blocks. It ends after the first error.
#[derive(Clone, Debug)]
pub struct HintReader<'a> {
    binding: Binding,
    data_len: u64,
    /// Entries left to yield according to the file's header; `None` if only some blocks are read.
    left: Option<u64>,
    /// The blocks after the open one, and their offset in the file.
    rest: &'a [u8],
    offset: u64,
    /// Entries of the open block left to yield, as a count and as bytes.
    block_count: u32,
    block: Fields<'a>,
    done: bool,
}

impl<'a> HintReader<'a> {
    /// Reads a whole hint file. Verifies the header; the caller checks that it names the expected segment.
    pub fn new(bytes: &'a [u8]) -> Result<(HintHeader, Self), DecodeError> {
        let header = HintHeader::decode(bytes)?;
        let rest = bytes.get(HINT_HEADER_LEN..).unwrap_or_default();
        // Callers allocate by this count, so the length of the file must justify it.
        if header.entry_count > rest.len() as u64 / (HINT_ENTRY_LEN as u64 + 1) {
            return Err(DecodeError::Count);
        }
        let of_all = Self { left: Some(header.entry_count), ..Self::of_blocks(&header, HINT_HEADER_LEN as u64, rest) };
        Ok((header, of_all))
    }

    /// Reads whole `blocks` that begin at `offset` of the file with this header. The caller checks the total number of
    /// entries.
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

    /// Verifies the whole next block and opens it.
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
