//! Loads hint files into the keydir, in parts, by several loaders at once.
//!
//! One loader reads the file and splits it into parts of whole blocks. Idle loaders publish them. A single large
//! segment therefore keeps all processors busy, and only a few parts are in memory at a time.

use std::io;
use std::sync::{Arc, PoisonError};

use super::checked::CheckedSegment;
use super::live_bytes::{LiveByteCounter, Publisher};
use super::loaded::LoadedSegment;
use crate::format::{Footer, HINT_HEADER_LEN, HintHeader, HintReader, RecordKind, record_len, whole_blocks};
use crate::io::util::{self, to_usize};
use crate::io::{Dir, File, OpenMode};
use crate::keydir::Keydir;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Facts, Found, hint_file_name};
use crate::sync::Mutex;

/// Bytes per read, and about the size of a part.
const PART_BYTES: usize = 1 << 20;

/// A hint file that is being loaded.
pub(super) struct HintLoad {
    segment: u32,
    header: HintHeader,
    /// The largest sequence number of the segment.
    max_seq: u64,
    progress: Mutex<HintProgress>,
}

struct HintProgress {
    /// Taken by the loader that finishes last.
    segment: Option<CheckedSegment>,
    /// Parts that are not loaded, plus one while the file is being read.
    unfinished: usize,
    is_bad: bool,
    hint_bytes: u64,
    entries: u64,
    tombstone_bytes: u64,
    live_bytes: LiveByteCounter,
}

/// Whole blocks of a hint file.
pub(super) struct HintPart {
    pub(super) load: Arc<HintLoad>,
    /// Offset of the blocks in the file.
    offset: u64,
    bytes: Vec<u8>,
}

/// The result of loading a hint file.
pub(super) enum HintResult {
    /// All keys of the segment are in the keydir.
    Loaded(LoadedSegment),
    /// The hint is damaged or does not match, so the segment must be scanned. Entries that were already published are
    /// correct.
    Unusable(CheckedSegment, LiveByteCounter),
}

impl HintLoad {
    pub(super) fn new(segment: CheckedSegment, header: HintHeader) -> Arc<Self> {
        let (id, max_seq) = (segment.id, segment.footer.as_ref().map_or(0, |footer| footer.max_seq));
        let progress = HintProgress {
            segment: Some(segment),
            unfinished: 1,
            is_bad: false,
            hint_bytes: 0,
            entries: 0,
            tombstone_bytes: 0,
            live_bytes: LiveByteCounter::default(),
        };
        Arc::new(Self { segment: id, header, max_seq, progress: Mutex::new(progress) })
    }

    fn note<R>(&self, note: impl FnOnce(&mut HintProgress) -> R) -> R {
        note(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records that a part is loaded, or that the file is read. Returns the result if nothing else is unfinished.
    pub(super) fn finish_one(&self) -> Option<HintResult> {
        self.note(|progress| {
            progress.unfinished -= 1;
            if progress.unfinished > 0 {
                return None;
            }
            let (segment, live_bytes) = (progress.segment.take()?, std::mem::take(&mut progress.live_bytes));
            if progress.is_bad || progress.entries != self.header.entry_count {
                return Some(HintResult::Unusable(segment, live_bytes));
            }
            let facts = Facts { max_seq: self.max_seq, tombstone_bytes: progress.tombstone_bytes };
            Some(HintResult::Loaded(LoadedSegment::from_hint(segment, facts, progress.hint_bytes, live_bytes)))
        })
    }
}

impl HintPart {
    /// Publishes the entries to the keydir.
    pub(super) fn publish(&self, keydir: &Keydir) {
        let (mut live_bytes, mut entries, mut tombstone_bytes, mut is_bad) = (LiveByteCounter::default(), 0, 0, false);
        let mut publisher = Publisher::new(keydir, &mut live_bytes, self.load.segment);
        for entry in HintReader::of_blocks(&self.load.header, self.offset, &self.bytes) {
            // Entries before a bad block are correct, and the scan publishes them again. An entry above the segment's
            // largest sequence number must not be published: it would hide later writes.
            let Some(entry) = entry.ok().filter(|entry| entry.seq <= self.load.max_seq) else {
                is_bad = true;
                break;
            };
            entries += 1;
            if entry.kind == RecordKind::Tombstone {
                tombstone_bytes += record_len(entry.key.len(), 0);
            }
            publisher.push(&Found {
                key: entry.key,
                kind: entry.kind,
                seq: entry.seq,
                offset: entry.offset,
                value_len: entry.value_len,
                expires_at_ms: entry.expires_at_ms,
                namespace: entry.namespace,
                compression: entry.compression,
            });
        }
        publisher.flush();
        self.load.note(|progress| {
            progress.is_bad |= is_bad;
            progress.entries += entries;
            progress.tombstone_bytes += tombstone_bytes;
            progress.live_bytes.add(&live_bytes);
        });
    }
}

/// Reads a hint file and splits it into parts.
pub(super) struct HintParts {
    file: Arc<dyn File>,
    load: Arc<HintLoad>,
    /// `None` if the length could not be determined.
    len: Option<u64>,
    /// End of the parts so far, as an offset in the file.
    offset: u64,
    /// The start of a block that is not whole yet.
    rest: Vec<u8>,
    is_end: bool,
}

impl HintParts {
    /// The parts of `file` after its header.
    pub(super) fn new(file: Arc<dyn File>, load: Arc<HintLoad>) -> Self {
        let len = file.len().ok();
        Self { file, load, len, offset: HINT_HEADER_LEN as u64, rest: Vec::new(), is_end: false }
    }

    /// The next part. `None` at the end of the file, or if it cannot be read or contains anything but whole blocks.
    pub(super) async fn next(&mut self) -> Option<HintPart> {
        while !self.is_end {
            let Some(bytes) = self.read_blocks().await else { break };
            if !bytes.is_empty() {
                let offset = self.offset;
                self.offset += bytes.len() as u64;
                self.load.note(|progress| progress.unfinished += 1);
                return Some(HintPart { load: Arc::clone(&self.load), offset, bytes });
            }
        }
        let is_whole = self.is_end && self.rest.is_empty();
        self.load.note(|progress| {
            progress.is_bad |= !is_whole;
            progress.hint_bytes = if is_whole { self.offset } else { 0 };
        });
        None
    }

    /// Reads on, and returns the whole blocks after the last part. `None` if that fails.
    async fn read_blocks(&mut self) -> Option<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let (at, from) = (bytes.len(), self.offset + bytes.len() as u64);
        let left = self.len?.saturating_sub(from);
        bytes.resize(at + to_usize(left).min(PART_BYTES), 0);
        let (mut bytes, filled) = util::read_full(&*self.file, bytes, at, from).await.ok()?;
        let is_end = filled < bytes.len() || left <= PART_BYTES as u64;
        bytes.truncate(filled);
        let whole = whole_blocks(&bytes).ok()?;
        self.rest = bytes.split_off(whole);
        self.is_end = is_end;
        Some(bytes)
    }
}

/// Opens the hint file of `segment`. `None` if there is none for exactly this segment and `footer`.
pub(super) async fn open_hint(
    dir: &dyn Dir,
    store_id: &[u8; 16],
    segment: &CheckedSegment,
    footer: &Footer,
) -> Option<(Arc<dyn File>, HintHeader)> {
    // An unreadable hint is treated like a missing one. The scan of the segment finds the same keys or the same error.
    let (file, header) = read_header(dir, segment.id).await.ok()??;
    let fits = seeded_bug::is(SeededBug::HintUnbound)
        || (header.store_id == *store_id
            && header.segment_id == u64::from(segment.id)
            && (seeded_bug::is(SeededBug::StaleHint)
                || (header.salt == segment.salt
                    && header.data_len == footer.data_len
                    && header.file_crc == footer.file_crc)));
    fits.then_some((file, header))
}

/// Reads the header of the hint file of segment `id`. `None` if there is no file, or no valid header.
pub(super) async fn read_header(dir: &dyn Dir, id: u32) -> io::Result<Option<(Arc<dyn File>, HintHeader)>> {
    let file = match dir.open(&hint_file_name(id), OpenMode::Read) {
        Ok(file) => file,
        // Something that cannot be opened as a file is no hint.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
        Err(error) => return Err(error),
    };
    match util::read_exact(&*file, 0, HINT_HEADER_LEN).await {
        Ok(bytes) => Ok(HintHeader::decode(&bytes).ok().map(|header| (file, header))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
