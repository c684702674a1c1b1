//! Sealed segments into the keydir, several at a time.
//!
//! The order does not matter: the keydir keeps the record with the highest sequence number, and tombstones stay in it
//! until every segment is loaded.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, PoisonError};

use super::{Candidate, Opening};
use crate::error::Result;
use crate::format::{Binding, Footer, HintReader, RecordKind, record_len};
use crate::io::{Dir, IoKind, OpenMode, Priority, util};
use crate::keydir::{Keydir, Location};
use crate::mutant::{self, Mutant};
use crate::options::Recovery;
use crate::promise::Promise;
use crate::segment::{Facts, Found, Scan, Segment, Stop, hint_file_name, segment_file_name};
use crate::sync::Mutex;

/// Loaders beyond this many find no more work than memory bandwidth.
const MAX_LOADERS: usize = 8;

/// What loading has found out.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) max_seq: u64,
    pub(super) without_hint: Vec<Arc<Segment>>,
}

/// How one segment went.
struct Outcome {
    candidate: Candidate,
    facts: Facts,
    /// Length of its hint file, if its keys came from there.
    hint_bytes: Option<u64>,
    records_scanned: u64,
    /// Invalid stretches, as stop and length.
    damage: Vec<(Stop, u64)>,
    damage_reason: Option<&'static str>,
}

/// The work of one opening, shared by its loaders.
struct Queue {
    waiting: Mutex<VecDeque<Candidate>>,
    done: Mutex<Vec<io::Result<Outcome>>>,
    failed_segment: Mutex<Option<u32>>,
}

/// Puts a record that counts into the keydir.
pub(super) fn publish(keydir: &Keydir, segment: u32, found: &Found<'_>) {
    match found.kind {
        RecordKind::Put => {
            // Offsets were checked against the file's length, and no segment reaches a location's limit.
            if let Some(location) = Location::new(segment, found.offset, found.value_len) {
                keydir.publish(found.key, found.seq, location);
            }
        }
        _ => {
            keydir.bury(found.key, found.seq);
        }
    }
}

impl Opening<'_> {
    /// Loads `candidates`; those without a footer are damaged, since none of them was being written.
    pub(super) async fn load_sealed(
        &mut self,
        candidates: Vec<Candidate>,
        store_id: &[u8; 16],
        keydir: &Arc<Keydir>,
    ) -> Result<Loaded> {
        for candidate in candidates.iter().filter(|candidate| candidate.footer.is_none()) {
            self.damaged(candidate.id, candidate.len, 0, "a segment that was not being written has no footer")?;
        }
        let queue = Arc::new(Queue {
            waiting: Mutex::new(candidates.into()),
            done: Mutex::new(Vec::new()),
            failed_segment: Mutex::new(None),
        });
        self.run_loaders(&queue, *store_id, keydir).await?;
        let failed = *queue.failed_segment.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = std::mem::take(&mut *queue.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut loaded = Loaded::default();
        let mut finished = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            finished.push(outcome.map_err(|error| self.io_error("load a segment", error, failed))?);
        }
        finished.sort_by_key(|outcome| outcome.candidate.id);
        for outcome in finished {
            self.admit(outcome, &mut loaded)?;
        }
        Ok(loaded)
    }

    async fn run_loaders(&self, queue: &Arc<Queue>, store_id: [u8; 16], keydir: &Arc<Keydir>) -> Result<()> {
        let segments = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).len();
        let threads = match self.io.kind() {
            IoKind::Sim => 2,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_LOADERS),
        };
        let salvage = self.options.recovery == Recovery::Salvage;
        let mut helpers = Vec::new();
        for _ in 1..threads.min(segments) {
            let done = Promise::new();
            let task = load_all(Arc::clone(&self.dir), Arc::clone(queue), store_id, Arc::clone(keydir), salvage);
            let finished = Fulfil(done.clone());
            let task = Box::pin(async move {
                let _finished = finished;
                task.await;
            });
            // Fewer threads than hoped for load as much, only later.
            if self.io.spawn("ringcask-load", Priority::Foreground, task).is_ok() {
                helpers.push(done);
            }
        }
        load_all(Arc::clone(&self.dir), Arc::clone(queue), store_id, Arc::clone(keydir), salvage).await;
        for helper in helpers {
            std::future::poll_fn(|cx| helper.poll(cx)).await;
        }
        let done = queue.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.len() < segments && done.iter().all(io::Result::is_ok) {
            drop(done);
            return Err(self.io_error("load a segment", io::Error::other("a loader ended early"), None));
        }
        Ok(())
    }

    /// Takes a loaded segment into the registry and the report.
    fn admit(&mut self, outcome: Outcome, loaded: &mut Loaded) -> Result<()> {
        let Outcome { candidate, facts, hint_bytes, records_scanned, damage, damage_reason } = outcome;
        let (id, from_hint) = (candidate.id, hint_bytes.is_some());
        self.report.segments += 1;
        self.report.hints_loaded += usize::from(from_hint);
        self.report.segments_scanned += usize::from(!from_hint);
        self.report.records_scanned += records_scanned;
        let is_whole = damage.is_empty() && damage_reason.is_none() && candidate.footer.is_some();
        for (stop, len) in damage {
            self.damaged(id, stop.offset, len, stop.error.to_string())?;
        }
        if let Some(reason) = damage_reason {
            self.damaged(id, 0, candidate.len, reason)?;
        }
        loaded.max_seq = loaded.max_seq.max(facts.max_seq);
        let segment = Arc::new(Segment::new(id, candidate.salt, candidate.first_seq, candidate.len, None));
        segment.set_sealed(is_whole.then_some(facts));
        segment.set_hint_bytes(hint_bytes.unwrap_or(0));
        self.registry.insert(Arc::clone(&segment));
        if is_whole && !from_hint {
            loaded.without_hint.push(segment);
        }
        Ok(())
    }
}

/// Fulfils when dropped, so that a loader that panics is not waited for.
struct Fulfil(Promise<()>);

impl Drop for Fulfil {
    fn drop(&mut self) {
        self.0.fulfil(());
    }
}

async fn load_all(dir: Arc<dyn Dir>, queue: Arc<Queue>, store_id: [u8; 16], keydir: Arc<Keydir>, salvage: bool) {
    loop {
        let next = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(candidate) = next else { return };
        let id = candidate.id;
        let outcome = load_one(&*dir, candidate, &store_id, &keydir, salvage).await;
        let is_error = outcome.is_err();
        if is_error {
            queue.failed_segment.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(id);
        }
        queue.done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        if is_error {
            return;
        }
    }
}

async fn load_one(
    dir: &dyn Dir,
    candidate: Candidate,
    store_id: &[u8; 16],
    keydir: &Keydir,
    salvage: bool,
) -> io::Result<Outcome> {
    if let Some(footer) = &candidate.footer
        && let Some(hint) = load_hint(dir, &candidate, footer, store_id, keydir).await?
    {
        let facts = Facts { max_seq: footer.max_seq, tombstone_bytes: hint.tombstone_bytes };
        return Ok(Outcome {
            candidate,
            facts,
            hint_bytes: Some(hint.hint_bytes),
            records_scanned: 0,
            damage: Vec::new(),
            damage_reason: None,
        });
    }
    scan_one(dir, candidate, keydir, salvage).await
}

/// What was learnt from a hint file besides its keys.
struct HintLoaded {
    tombstone_bytes: u64,
    hint_bytes: u64,
}

/// Loads the segment's hint file; `None` if it has none that fits.
async fn load_hint(
    dir: &dyn Dir,
    candidate: &Candidate,
    footer: &Footer,
    store_id: &[u8; 16],
    keydir: &Keydir,
) -> io::Result<Option<HintLoaded>> {
    // A hint that cannot be read is as good as none: the segment says the same, or has the same error.
    let Ok(Some(bytes)) = read_hint(dir, candidate.id).await else { return Ok(None) };
    let Ok((header, entries)) = HintReader::new(&bytes) else { return Ok(None) };
    let fits = mutant::is(Mutant::HintUnbound)
        || (header.store_id == *store_id
            && header.segment_id == u64::from(candidate.id)
            && (mutant::is(Mutant::StaleHint)
                || (header.salt == candidate.salt
                    && header.data_len == footer.data_len
                    && header.file_crc == footer.file_crc)));
    if !fits {
        return Ok(None);
    }
    let mut tombstone_bytes = 0;
    for entry in entries {
        // What was published before a bad block is right as far as it goes, and the scan publishes the same again.
        let Ok(entry) = entry else { return Ok(None) };
        let found = Found {
            key: entry.key,
            kind: entry.kind,
            seq: entry.seq,
            offset: entry.offset,
            value_len: entry.value_len,
            expires_at_ms: entry.expires_at_ms,
            namespace: entry.namespace,
            compression: entry.compression,
        };
        if entry.kind == RecordKind::Tombstone {
            tombstone_bytes += record_len(entry.key.len(), 0);
        }
        publish(keydir, candidate.id, &found);
    }
    Ok(Some(HintLoaded { tombstone_bytes, hint_bytes: bytes.len() as u64 }))
}

/// The bytes of a segment's hint file, if there is one that can be read.
pub(super) async fn read_hint(dir: &dyn Dir, id: u32) -> io::Result<Option<Vec<u8>>> {
    let file = match dir.open(&hint_file_name(id), OpenMode::Read) {
        Ok(file) => file,
        // Whatever it is that cannot be opened as a hint: the segment says the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(len) = usize::try_from(file.len()?) else { return Ok(None) };
    match util::read_exact(&*file, 0, len).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Loads the segment from its records. Under salvage it steps over what is damaged.
async fn scan_one(dir: &dyn Dir, candidate: Candidate, keydir: &Keydir, salvage: bool) -> io::Result<Outcome> {
    let limit = candidate.footer.as_ref().map_or(candidate.len, |footer| footer.data_len);
    let binding = Binding::new(candidate.salt, u64::from(candidate.id));
    let file = dir.open(&segment_file_name(candidate.id), OpenMode::Read)?;
    let mut scan = Scan::new(file, binding, &candidate.header, limit);
    let mut damage = Vec::new();
    let mut records_scanned = 0;
    while let Some(stop) = scan
        .run(damage.is_empty(), |found| {
            records_scanned += 1;
            publish(keydir, candidate.id, &found);
        })
        .await?
    {
        let next = scan.find_next(stop.offset + 8).await?;
        damage.push((stop, next.unwrap_or(limit) - stop.offset));
        match next {
            Some(next) if salvage => scan.resume_at(next),
            _ => break,
        }
    }
    let extent = scan.extent();
    let differs = candidate.footer.as_ref().is_some_and(|footer| {
        footer.file_crc != extent.file_crc()
            || footer.record_count != extent.records
            || footer.max_seq != extent.max_seq
    });
    let damage_reason = (damage.is_empty() && differs).then_some("the segment is not what its footer says");
    let max_seq = candidate.footer.as_ref().map_or(extent.max_seq, |footer| footer.max_seq.max(extent.max_seq));
    let facts = Facts { max_seq, tombstone_bytes: extent.tombstone_bytes };
    Ok(Outcome { facts, candidate, hint_bytes: None, records_scanned, damage, damage_reason })
}
