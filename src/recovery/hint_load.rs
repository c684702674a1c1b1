//! Hint files into the keydir, a piece at a time, and the pieces of one file by several loaders.
//!
//! One loader reads the file and cuts it into parts of whole blocks; whoever has nothing else to do loads them. So a
//! single large segment keeps all processors at work, and no more than some parts are in memory at once.

use std::io;
use std::sync::{Arc, PoisonError};

use super::Candidate;
use super::live_bytes::{LiveByteCounter, Publisher};
use super::load::{Loader, Outcome};
use crate::format::{Footer, HINT_HEADER_LEN, HintHeader, HintReader, RecordKind, record_len, whole_blocks};
use crate::io::util::{self, to_usize};
use crate::io::{Dir, File, OpenMode};
use crate::keydir::Keydir;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Facts, Found, hint_file_name};
use crate::sync::Mutex;

/// Bytes read at a time, and about those of a part.
const PART_BYTES: usize = 1 << 20;

/// Parts that wait; beyond them the reader loads one itself.
const PARTS_WAITING_MAX: usize = 4;

/// A segment whose hint is being loaded.
pub(super) struct Loading {
    segment: u32,
    header: HintHeader,
    /// The largest sequence number of the segment.
    max_seq: u64,
    progress: Mutex<Progress>,
}

struct Progress {
    /// Taken by whoever is the last to be done with it.
    candidate: Option<Candidate>,
    /// Parts that are not loaded, and one more while the file is being read.
    open: usize,
    is_bad: bool,
    hint_bytes: u64,
    entries: u64,
    tombstone_bytes: u64,
    tally: LiveByteCounter,
}

/// Blocks of a hint file.
pub(super) struct Part {
    pub(super) of: Arc<Loading>,
    /// Where they begin in the file.
    offset: u64,
    bytes: Vec<u8>,
}

/// How the hint of a segment turned out.
pub(super) enum Hint {
    /// All its keys are in the keydir.
    Loaded(Outcome),
    /// It says nothing, or nothing that can be trusted: the segment says the same. What was published of it is right.
    Useless(Candidate, LiveByteCounter),
}

impl Loading {
    pub(super) fn new(candidate: Candidate, header: HintHeader) -> Arc<Self> {
        let segment = candidate.id;
        let max_seq = candidate.footer.as_ref().map_or(0, |footer| footer.max_seq);
        let (is_bad, hint_bytes, entries, tombstone_bytes) = (false, 0, 0, 0);
        let (candidate, open, tally) = (Some(candidate), 1, LiveByteCounter::default());
        let progress = Progress { candidate, open, is_bad, hint_bytes, entries, tombstone_bytes, tally };
        Arc::new(Self { segment, header, max_seq, progress: Mutex::new(progress) })
    }

    fn note<R>(&self, note: impl FnOnce(&mut Progress) -> R) -> R {
        note(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One part is loaded, or the file is read; tells the last one how it turned out.
    pub(super) fn finish_one(&self) -> Option<Hint> {
        self.note(|progress| {
            progress.open -= 1;
            if progress.open > 0 {
                return None;
            }
            let (candidate, tally) = (progress.candidate.take()?, std::mem::take(&mut progress.tally));
            if progress.is_bad || progress.entries != self.header.entry_count {
                return Some(Hint::Useless(candidate, tally));
            }
            let facts = Facts { max_seq: self.max_seq, tombstone_bytes: progress.tombstone_bytes };
            Some(Hint::Loaded(Outcome::of_hint(candidate, facts, progress.hint_bytes, tally)))
        })
    }
}

impl Part {
    /// Publishes its entries.
    pub(super) fn publish(&self, keydir: &Keydir) {
        let (mut tally, mut entries, mut tombstone_bytes, mut is_bad) = (LiveByteCounter::default(), 0, 0, false);
        let mut publisher = Publisher::new(keydir, &mut tally, self.of.segment);
        for entry in HintReader::of_blocks(&self.of.header, self.offset, &self.bytes) {
            // What was published before a bad block is right as far as it goes, and the scan publishes it again. A number
            // that the segment does not have would be larger than those of the writes to come, and hide them.
            let Some(entry) = entry.ok().filter(|entry| entry.seq <= self.of.max_seq) else {
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
        self.of.note(|progress| {
            progress.is_bad |= is_bad;
            progress.entries += entries;
            progress.tombstone_bytes += tombstone_bytes;
            progress.tally.add(&tally);
        });
    }
}

impl Loader {
    /// Opens the segment's hint file; `None` if it has none that fits.
    pub(super) async fn open_hint(
        &self,
        candidate: &Candidate,
        footer: &Footer,
    ) -> Option<(Arc<dyn File>, HintHeader)> {
        // A hint that cannot be read is as good as none: the segment says the same, or has the same error.
        let (file, header) = read_header(&*self.dir, candidate.id).await.ok()??;
        let fits = seeded_bug::is(SeededBug::HintUnbound)
            || (header.store_id == self.store_id
                && header.segment_id == u64::from(candidate.id)
                && (seeded_bug::is(SeededBug::StaleHint)
                    || (header.salt == candidate.salt
                        && header.data_len == footer.data_len
                        && header.file_crc == footer.file_crc)));
        fits.then_some((file, header))
    }

    /// Cuts a hint file into parts, for whoever has nothing else to do.
    pub(super) async fn cut_hint(&self, file: &dyn File, loading: &Arc<Loading>) {
        let len = self.cut(file, loading).await;
        loading.note(|progress| {
            progress.is_bad |= len.is_none();
            progress.hint_bytes = len.unwrap_or(0);
        });
    }

    /// The length of the file, if all of it could be read, and nothing but whole blocks is in it.
    async fn cut(&self, file: &dyn File, loading: &Arc<Loading>) -> Option<u64> {
        let (mut offset, mut bytes) = (HINT_HEADER_LEN as u64, Vec::new());
        let len = file.len().ok()?;
        loop {
            let (at, from) = (bytes.len(), offset + bytes.len() as u64);
            let left = len.saturating_sub(from);
            bytes.resize(at + to_usize(left).min(PART_BYTES), 0);
            let (mut part, filled) = util::read_full(file, bytes, at, from).await.ok()?;
            let is_end = filled < part.len() || left <= PART_BYTES as u64;
            part.truncate(filled);
            let whole = whole_blocks(&part).ok()?;
            bytes = part.split_off(whole);
            if whole > 0 {
                loading.note(|progress| progress.open += 1);
                let part = Part { of: Arc::clone(loading), offset, bytes: part };
                if let Some(part) = self.jobs.add_part(part, PARTS_WAITING_MAX) {
                    self.load_part(part).await;
                }
            }
            offset += whole as u64;
            if is_end {
                return bytes.is_empty().then_some(offset);
            }
        }
    }
}

/// The header of a segment's hint file, if there is a file, and its header is one.
pub(super) async fn read_header(dir: &dyn Dir, id: u32) -> io::Result<Option<(Arc<dyn File>, HintHeader)>> {
    let file = match dir.open(&hint_file_name(id), OpenMode::Read) {
        Ok(file) => file,
        // Whatever it is that cannot be opened as a hint: the segment says the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
        Err(error) => return Err(error),
    };
    match util::read_exact(&*file, 0, HINT_HEADER_LEN).await {
        Ok(bytes) => Ok(HintHeader::decode(&bytes).ok().map(|header| (file, header))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
