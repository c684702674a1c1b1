//! A segment that a compaction writes: the records in the order in which they are placed, then a footer, a sync and a
//! hint file.
//!
//! The segment is not part of the store until the MANIFEST lists it. Its id is allocated durably before the file
//! exists, so the next open recognizes as a leftover whatever a crash leaves of the file. After an error the job
//! removes the files and the inputs stay.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;

use crate::format::{
    ALIGN, Binding, FOOTER_LEN, Footer, HintEntry, HintHeader, HintWriter, RECORD_HEADER_LEN, RecordHeader, RecordKind,
    SEGMENT_HEADER_LEN, SegmentHeader, patch_header,
};
use crate::io::{Dir, File, Io, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::hint_file::write_hint_file;
use crate::segment::{Facts, segment_file_name};

/// Start writeback after this many bytes of output. Otherwise the sync at the end, and syncs of the commit task in the
/// meantime, would wait for all of them.
const WRITEBACK_BYTES: u64 = 256 << 10;

/// What identifies a new segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputIdentity {
    pub(super) store_id: [u8; 16],
    pub(super) id: u32,
    pub(super) salt: u64,
    pub(super) first_seq: u64,
}

/// The segment while it is being written.
pub(super) struct Output {
    identity: OutputIdentity,
    binding: Binding,
    file: Arc<dyn File>,
    /// Offset of the next record.
    end: u64,
    /// Everything before this offset is written.
    written: u64,
    /// Writeback has started for everything before this offset.
    written_back: u64,
    crc: Hasher,
    records: u32,
    min_seq: u64,
    max_seq: u64,
    tombstone_bytes: u64,
    hint: HintWriter,
}

/// The segment when it is complete and durable.
pub(super) struct FinishedOutput {
    pub(super) identity: OutputIdentity,
    pub(super) file: Arc<dyn File>,
    pub(super) len: u64,
    pub(super) facts: Facts,
    /// The contents of the hint file, which repointing reads from memory.
    pub(super) hint: Vec<u8>,
    /// Whether the hint file was written. Without it the next open scans the segment.
    pub(super) has_hint_file: bool,
}

impl Output {
    /// Creates the file and writes its header.
    pub(super) async fn create(dir: &dyn Dir, identity: OutputIdentity) -> io::Result<Self> {
        let OutputIdentity { store_id, id, salt, first_seq } = identity;
        let header = SegmentHeader::new(store_id, u64::from(id), salt, first_seq).encode();
        let file = dir.open(&segment_file_name(id), OpenMode::CreateNew)?;
        util::write_all(&*file, vec![Bytes::copy_from_slice(&header)], 0).await?;
        let mut crc = Hasher::new();
        crc.update(&header);
        let end = SEGMENT_HEADER_LEN as u64;
        let (segment_id, data_len, file_crc, entry_count) = (u64::from(id), u64::MAX, 0, 0);
        let hint = HintWriter::new(&HintHeader { store_id, segment_id, salt, data_len, file_crc, entry_count });
        Ok(Self {
            identity,
            binding: Binding::new(salt, segment_id),
            file,
            end,
            written: end,
            written_back: 0,
            crc,
            records: 0,
            min_seq: 0,
            max_seq: 0,
            tombstone_bytes: 0,
            hint,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.identity.id
    }

    /// Whether a record of `len` bytes fits into a segment of `segment_bytes`. The first record always fits, so a
    /// record that is too large gets a separate segment.
    pub(super) fn has_room(&self, len: u64, segment_bytes: u64) -> bool {
        self.records == 0 || self.end + len + FOOTER_LEN as u64 <= segment_bytes
    }

    /// Assigns the next offset to a copied record and completes its header, which `bytes` begins with. The caller
    /// writes the placed bytes in the order of placing.
    pub(super) fn place(&mut self, header: &RecordHeader, bytes: &mut [u8], key: std::ops::Range<usize>) {
        let offset = self.end;
        if let Some(head) = bytes.get_mut(..RECORD_HEADER_LEN) {
            patch_header(head, &self.binding, offset, header.seq, self.records);
        }
        let RecordHeader { kind, seq, value_len, expires_at_ms, namespace, compression, .. } = *header;
        let key = bytes.get(key).unwrap_or_default();
        self.hint.push(HintEntry { key, kind, seq, offset, value_len, expires_at_ms, namespace, compression });
        self.min_seq = if self.min_seq == 0 { seq } else { self.min_seq.min(seq) };
        self.max_seq = self.max_seq.max(seq);
        if kind == RecordKind::Tombstone {
            self.tombstone_bytes += header.record_len();
        }
        self.records += 1;
        self.end += header.record_len();
    }

    /// Writes the next placed bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.crc.update(&bytes);
        let (offset, len) = (self.written, bytes.len() as u64);
        util::write_all(&*self.file, vec![bytes], offset).await?;
        self.written += len;
        if self.written - self.written_back >= WRITEBACK_BYTES {
            self.file.start_writeback(self.written_back, self.written - self.written_back);
            self.written_back = self.written;
        }
        Ok(())
    }

    /// Writes the footer and syncs. Then writes the hint file if `with_hint_file`; callers leave it out on a full disk.
    /// With `pauses`, it is written in small pieces with pauses between them, so that it does not delay the commit
    /// task.
    pub(super) async fn finish(
        mut self,
        dir: &dyn Dir,
        with_hint_file: bool,
        pauses: Option<&dyn Io>,
    ) -> io::Result<FinishedOutput> {
        debug_assert_eq!(self.written, self.end, "all placed bytes are written");
        debug_assert!(self.end.is_multiple_of(ALIGN), "records are padded");
        let file_crc = self.crc.clone().finalize();
        let data_len = self.end;
        let (min_seq, max_seq, record_count) = (self.min_seq, self.max_seq, self.records);
        let footer = Footer { data_len, min_seq, max_seq, record_count, file_crc };
        let footer = footer.encode(&self.binding, data_len, max_seq, record_count);
        self.write(Bytes::copy_from_slice(&footer)).await?;
        if !seeded_bug::is(SeededBug::OutputNotSynced) {
            // The job removes this file if the sync fails, so a failed sync loses no data.
            self.file.sync(SyncKind::All).await?;
        }
        let hint = self.hint.finish_with(data_len, file_crc);
        // The directory sync in `write_hint_file`, or the one before the MANIFEST changes, makes the names durable.
        let has_hint_file = with_hint_file && write_hint_file(dir, self.identity.id, &hint, pauses).await.is_ok();
        Ok(FinishedOutput {
            identity: self.identity,
            file: self.file,
            len: self.written,
            facts: Facts { max_seq, tombstone_bytes: self.tombstone_bytes },
            hint,
            has_hint_file,
        })
    }
}
