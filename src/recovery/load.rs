//! Sealed segments into the keydir, several at a time.
//!
//! The order does not matter: the keydir keeps the record with the highest sequence number, and tombstones stay in it
//! until every segment is loaded.

use std::io;
use std::sync::Arc;

use super::hint_load::{Hint, Loading, Part};
use super::jobs::{Job, Jobs};
use super::live_bytes::LiveByteCounter;
use super::{Candidate, Opening};
use crate::error::Result;
use crate::format::{Binding, record_len};
use crate::io::util::to_usize;
use crate::io::{Dir, IoKind, OpenMode, Priority};
use crate::keydir::Keydir;
use crate::options::Recovery;
use crate::segment::{Facts, Scan, Segment, Stop, segment_file_name};
use crate::sync::promise::Promise;

/// Bytes of segments for which one more loader is worth its thread.
const BYTES_A_LOADER: u64 = 16 << 20;

/// Keys for which room is made before they are seen. Footers may lie, and so may the lengths of sparse files: even so an
/// open touches no more than some hundred megabytes for them. A larger store grows its map as it loads.
const RESERVED_KEYS_MAX: u64 = 1 << 26;

/// Loaders beyond this many find no more work than memory bandwidth.
const MAX_LOADERS: usize = 8;

/// What loading has found out.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) max_seq: u64,
    pub(super) without_hint: Vec<Arc<Segment>>,
}

/// How one segment went.
pub(super) struct Outcome {
    candidate: Candidate,
    facts: Facts,
    /// Length of its hint file, if its keys came from there.
    hint_bytes: Option<u64>,
    records_scanned: u64,
    /// Invalid stretches, as stop and length.
    damage: Vec<(Stop, u64)>,
    damage_reason: Option<&'static str>,
    tally: LiveByteCounter,
}

impl Outcome {
    /// Of a segment whose keys came from its hint file.
    pub(super) fn of_hint(candidate: Candidate, facts: Facts, hint_bytes: u64, tally: LiveByteCounter) -> Self {
        let (hint_bytes, records_scanned, damage, damage_reason) = (Some(hint_bytes), 0, Vec::new(), None);
        Self { candidate, facts, hint_bytes, records_scanned, damage, damage_reason, tally }
    }
}

/// One of the threads that load.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) dir: Arc<dyn Dir>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) store_id: [u8; 16],
    keydir: Arc<Keydir>,
    salvage: bool,
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
        keydir.reserve(candidates.iter().map(keys_at_most).sum::<u64>().min(RESERVED_KEYS_MAX));
        let (segments, bytes) = (candidates.len(), candidates.iter().map(|it| it.len).sum::<u64>());
        let useful = segments.saturating_add(to_usize(bytes / BYTES_A_LOADER));
        let loader = Loader {
            dir: Arc::clone(&self.dir),
            jobs: Arc::new(Jobs::new(candidates)),
            store_id: *store_id,
            keydir: Arc::clone(keydir),
            salvage: self.options.recovery == Recovery::Salvage,
        };
        self.run_loaders(&loader, useful).await;
        let done = loader.jobs.take_done();
        let mut done = done.map_err(|(id, error)| self.io_error("load a segment", error, Some(id)))?;
        if done.len() < segments {
            return Err(self.io_error("load a segment", io::Error::other("a loader ended early"), None));
        }
        done.sort_by_key(|outcome| outcome.candidate.id);
        let mut loaded = Loaded::default();
        for outcome in done {
            self.admit(outcome, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Loads on as many threads as there are processors, but no more than are `useful`.
    async fn run_loaders(&self, loader: &Loader, useful: usize) {
        let threads = match self.io.kind() {
            IoKind::Sim => 2,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_LOADERS),
        };
        let mut helpers = Vec::new();
        for _ in 1..threads.min(useful) {
            let done = Promise::new();
            let (loader, finished) = (loader.clone(), Fulfil(done.clone()));
            let task = Box::pin(async move {
                let _finished = finished;
                loader.run().await;
            });
            // Fewer threads than hoped for load as much, only later.
            if self.io.spawn("ringcask-load", Priority::Foreground, task).is_ok() {
                helpers.push(done);
            }
        }
        loader.run().await;
        for helper in helpers {
            std::future::poll_fn(|cx| helper.poll(cx)).await;
        }
    }

    /// Takes a loaded segment into the registry and the report.
    fn admit(&mut self, outcome: Outcome, loaded: &mut Loaded) -> Result<()> {
        let Outcome { candidate, facts, hint_bytes, records_scanned, damage, damage_reason, tally } = outcome;
        self.tally.add(&tally);
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

/// How many keys the segment may have: as many as its footer counts records, and no more than there is space for.
fn keys_at_most(candidate: &Candidate) -> u64 {
    let records = candidate.footer.as_ref().map_or(0, |footer| u64::from(footer.record_count));
    records.min(candidate.len / record_len(1, 0))
}

/// Fulfils when dropped, so that a loader that panics is not waited for.
struct Fulfil(Promise<()>);

impl Drop for Fulfil {
    fn drop(&mut self) {
        self.0.fulfil(());
    }
}

impl Loader {
    async fn run(&self) {
        while let Some((job, reading)) = self.jobs.next().await {
            match job {
                Job::Part(part) => self.load_part(part).await,
                Job::Segment(candidate) => self.load_segment(*candidate).await,
            }
            drop(reading);
        }
    }

    async fn load_segment(&self, candidate: Candidate) {
        let hint = match &candidate.footer {
            Some(footer) => self.open_hint(&candidate, footer).await,
            None => None,
        };
        match hint {
            Some((file, header)) => {
                let loading = Loading::new(candidate, header);
                self.cut_hint(&*file, &loading).await;
                self.settle(&loading).await;
            }
            None => self.scan(candidate, LiveByteCounter::default()).await,
        }
    }

    pub(super) async fn load_part(&self, part: Part) {
        part.publish(&self.keydir);
        self.settle(&part.of).await;
    }

    /// Whoever is the last to be done with a hint sees to its segment.
    async fn settle(&self, loading: &Loading) {
        match loading.finish_one() {
            None => {}
            Some(Hint::Loaded(outcome)) => self.jobs.finish(outcome),
            Some(Hint::Useless(candidate, tally)) => self.scan(candidate, tally).await,
        }
    }

    async fn scan(&self, candidate: Candidate, tally: LiveByteCounter) {
        let id = candidate.id;
        match scan_one(&*self.dir, candidate, &self.keydir, self.salvage, tally).await {
            Ok(outcome) => self.jobs.finish(outcome),
            Err(error) => self.jobs.fail(id, error),
        }
    }
}

/// Loads the segment from its records. Under salvage it steps over what is damaged.
async fn scan_one(
    dir: &dyn Dir,
    candidate: Candidate,
    keydir: &Keydir,
    salvage: bool,
    mut tally: LiveByteCounter,
) -> io::Result<Outcome> {
    let limit = candidate.footer.as_ref().map_or(candidate.len, |footer| footer.data_len);
    let binding = Binding::new(candidate.salt, u64::from(candidate.id));
    let file = dir.open(&segment_file_name(candidate.id), OpenMode::Read)?;
    let mut scan = Scan::new(file, binding, &candidate.header, limit);
    let mut damage = Vec::new();
    let mut records_scanned = 0;
    while let Some(stop) = scan
        .run(damage.is_empty(), |found| {
            records_scanned += 1;
            tally.publish(keydir, candidate.id, &found);
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
    Ok(Outcome { facts, candidate, hint_bytes: None, records_scanned, damage, damage_reason, tally })
}
