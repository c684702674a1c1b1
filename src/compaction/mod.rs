//! Compaction: sealed segments are rewritten without what is dead in them.
//!
//! It runs on the maintenance task, beside the commit task and without a lock that a reader or writer would wait for.
//!
//! - [`picker`] — which segments, as a pure function.
//! - `job` — which records, and copying them; on how many threads; [`sparse`] — what need not be
//!   looked at.
//! - [`output`] — the new segments; `job::repointing` — pointing the keys at them.
//! - [`rate`] — how fast.
//! - here — a job from its beginning to the moment when the new segments have taken the old ones' place.
//!
//! # The life of a job
//!
//! 1. `first_seq` is fixed: every write with a smaller number is published by now.
//! 2. The inputs are read, and what is alive is verified and copied to new segments, each sealed, synced and with a hint
//!    file. Their ids are spent in the MANIFEST before their files exist. An input is read and verified whole, unless less
//!    than half of it is alive and it has no tombstones: then a walk over the keydir tells what is, and the rest is not
//!    looked at.
//! 3. Everything accepted so far is made durable. What was left behind as dead is dead because of a newer write; were
//!    that lost in a power cut, the older one would have to be there.
//! 4. The directory is synced. The MANIFEST is replaced by one that lists the outputs and not the inputs: from here on
//!    a crash finds the new segments.
//! 5. Each key that still points at the record that was copied is pointed at the copy (compare and swap). A key that was
//!    written meanwhile is left alone, and its copy is dead from the start.
//! 6. The inputs are retired: their files go when their last reader is gone.
//!
//! Before step 4 anything that goes wrong, and any wish to stop, removes the outputs and leaves the inputs.
//!
//! # When a tombstone may go
//!
//! A tombstone must stay while a segment outside the job may hold a record that it hides. A segment's `first_seq` says
//! that no tombstone with a smaller number hides anything in it. For a segment of the commit task that is so because all
//! its records have larger numbers. For one that a compaction wrote it is so because its puts were the newest published
//! records of their keys when every write below `first_seq` had been published. Tombstones that hide nothing any more
//! because a newer put has come obey the same rule, for the newer put may go before the older one. The inputs' files go
//! in an order in which no put survives its tombstone ([`Retired`](crate::segment::Retired)).
//!
//! No clock is asked: nothing in this version writes a time of expiry, and one that is there is copied.

pub(crate) mod control;
pub(crate) mod error;
mod job;
mod output;
pub(crate) mod picker;
mod rate;
mod sparse;

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::commit::{Parts, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ManifestSegment;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{ManifestError, Segment, SegmentSet, hint_file_name, segment_file_name};
use crate::stats::CompactionReport;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use control::Gate;
use error::JobError;
use job::helper::{Copied, Terms, copy_all};
use job::repointing::{Moves, move_all};
use output::Finished;
use picker::{Candidate, Pick, Policy, View};
use rate::Pace;

/// So long after a job, what syncs take is taken for undisturbed.
const CALM_AFTER: Duration = Duration::from_secs(2);

/// What the options say about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) policy: Policy,
    pub(crate) segment_bytes: u64,
    pub(crate) bytes_per_second: Option<u64>,
}

/// Counted by jobs, read by `stats`.
#[derive(Debug, Default)]
pub(crate) struct CompactionCounters {
    pub(crate) jobs: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_freed: AtomicU64,
    last_error: Mutex<Option<Error>>,
}

impl CompactionCounters {
    pub(crate) fn succeeded(&self, report: &CompactionReport) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(report.bytes_read, Ordering::Relaxed);
        self.bytes_written.fetch_add(report.bytes_written, Ordering::Relaxed);
        self.bytes_freed.fetch_add(report.bytes_freed, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn failed(&self, error: &Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    }

    /// Why the last job failed, if it did.
    pub(crate) fn last_error(&self) -> Option<Error> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What jobs work with.
pub(crate) struct Compactor {
    pub(crate) parts: Parts,
    pub(crate) settings: Settings,
    pub(crate) counters: Arc<CompactionCounters>,
    pace: Mutex<Option<Pace>>,
    calm: Mutex<Calm>,
}

/// What a sync takes while no compaction disturbs it.
#[derive(Clone, Copy, Default)]
struct Calm {
    sync: Duration,
    /// When the last job ended.
    disturbed_until: Option<Duration>,
}

impl Calm {
    /// A job begins at `now`, and syncs take `sync`. Jobs that follow each other go by what was before the first.
    fn at(&mut self, now: Duration, sync: Duration) -> Duration {
        let is_calm = self.disturbed_until.is_none_or(|until| now > until + CALM_AFTER);
        self.sync = if is_calm || self.sync.is_zero() { sync } else { self.sync.min(sync) };
        self.sync
    }
}

/// The segments of a registry as the picker sees them.
pub(crate) fn view(registry: &SegmentSet) -> View {
    let mut view = View::default();
    for segment in registry.all() {
        match segment.facts().filter(|_| segment.is_sealed()) {
            Some(facts) => view.candidates.push(Candidate {
                id: segment.id,
                total_bytes: segment.written_end(),
                live_bytes: segment.live_bytes(),
                tombstone_bytes: facts.tombstone_bytes,
                first_seq: segment.first_seq,
                max_seq: facts.max_seq,
            }),
            None => {
                let first_seq = view.others_first_seq.unwrap_or(u64::MAX).min(segment.first_seq);
                view.others_first_seq = Some(first_seq);
            }
        }
    }
    view
}

impl Compactor {
    pub(crate) fn new(parts: Parts, settings: Settings, counters: Arc<CompactionCounters>) -> Self {
        Self { parts, settings, counters, pace: Mutex::new(None), calm: Mutex::default() }
    }

    /// Does one job; whatever happens, the store is as before or as after it.
    pub(crate) async fn compact(
        self: &Arc<Self>,
        pick: &Pick,
        gate: &Gate,
    ) -> std::result::Result<CompactionReport, JobError> {
        let (mut inputs, unread) = (self.segments(&pick.rewrite), self.segments(&pick.unread));
        inputs.sort_by_key(|segment| (segment.first_seq, segment.id));
        self.begin_pace(gate.is_asked_for());
        // Before anything is looked up: what is the newest record of its key then hides nothing below this.
        let first_seq = match seeded_bug::is(SeededBug::OutputTooYoung) {
            true => self.parts.log.next_seq(),
            false => self.parts.log.resolved_seq() + 1,
        };
        let inside: Vec<u32> = inputs.iter().chain(&unread).map(|segment| segment.id).collect();
        let terms = Terms { first_seq, tombstones_go_below: view(&self.parts.segments).tombstones_go_below(&inside) };
        let Copied { finished, unfinished, mut report, result } = copy_all(self, &inputs, terms, gate).await;
        self.calm.lock().unwrap_or_else(PoisonError::into_inner).disturbed_until = Some(self.parts.io.now());
        let listed = match result {
            Ok(()) => self.install(&finished, &inputs, &unread, gate).await,
            Err(error) => Err(error),
        };
        unfinished.iter().for_each(|&id| self.remove(id));
        if let Err(error) = listed {
            if !matches!(error, JobError::Fatal(_)) {
                finished.iter().for_each(|output| self.remove(output.identity.id));
            }
            return Err(error);
        }
        report.segments_read = inputs.len() as u64;
        report.segments_dropped_unread = unread.len() as u64;
        let gone: u64 = inputs.iter().chain(&unread).map(|segment| segment.written_end()).sum();
        report.bytes_freed = gone.saturating_sub(finished.iter().map(|output| output.len).sum());
        self.take_over(finished, inputs, unread, inside).await;
        Ok(report)
    }

    fn segments(&self, ids: &[u32]) -> Vec<Arc<Segment>> {
        ids.iter().filter_map(|&id| self.parts.segments.get(id)).collect()
    }

    /// Makes the outputs the live segments, on disk.
    async fn install(
        &self,
        finished: &[Finished],
        inputs: &[Arc<Segment>],
        unread: &[Arc<Segment>],
        gate: &Gate,
    ) -> std::result::Result<(), JobError> {
        gate.pass().await?;
        if !seeded_bug::is(SeededBug::OverwrittenByTheUndurable) {
            self.make_all_durable().await.map_err(|error| match error.kind() {
                ErrorKind::Closed => JobError::Stopped,
                _ => JobError::Failed(error),
            })?;
        }
        if !finished.is_empty() {
            let synced = self.parts.segments.dir.sync();
            synced.map_err(|error| JobError::Failed(self.error("sync the directory", error)))?;
        }
        let added: Vec<ManifestSegment> = finished
            .iter()
            .map(|output| ManifestSegment { id: u64::from(output.identity.id), salt: output.identity.salt })
            .collect();
        let removed: Vec<u32> = inputs.iter().chain(unread).map(|segment| segment.id).collect();
        if seeded_bug::is(SeededBug::UnlinkedWhileListed) {
            removed.iter().for_each(|&id| drop(self.parts.segments.dir.unlink(&segment_file_name(id))));
            let _ = self.parts.segments.dir.sync();
        }
        let mut catalog = self.parts.manifest.lock().await;
        let next_seq = match seeded_bug::is(SeededBug::SpentNumbersForgotten) {
            true => catalog.next_seq(),
            false => self.parts.log.next_seq(),
        };
        self.edited(catalog.change(&added, &removed, next_seq).await)
    }

    /// Waits until everything accepted so far is on stable storage.
    async fn make_all_durable(&self) -> Result<()> {
        let mut ticket: Option<Ticket> = None;
        poll_fn(|cx| {
            if ticket.is_none() {
                ticket = match self.parts.log.request_sync(cx.waker()) {
                    Ok(Some(ticket)) => Some(ticket),
                    Ok(None) => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(error)),
                };
            }
            ticket.as_ref().map_or(Poll::Ready(Ok(())), |ticket| ticket.poll(cx))
        })
        .await
    }

    fn edited(&self, result: std::result::Result<(), ManifestError>) -> std::result::Result<(), JobError> {
        result.map_err(|error| match error {
            ManifestError::NotChanged(error) => JobError::Failed(self.error("write the MANIFEST", error)),
            ManifestError::Unknown(error) => JobError::Fatal(self.error("replace the MANIFEST", error)),
        })
    }

    /// Spends an id, durably: a file with this number that the MANIFEST does not list is a leftover from now on.
    async fn spend_id(&self) -> std::result::Result<u32, JobError> {
        let mut catalog = self.parts.manifest.lock().await;
        let id = catalog.take_segment_id();
        if !seeded_bug::is(SeededBug::SpentIdNotDurable) {
            self.edited(catalog.change(&[], &[], self.parts.log.next_seq()).await)?;
        }
        u32::try_from(id).map_err(|_| {
            let message = format!("segment ids are spent: {id} is beyond {}", u32::MAX);
            JobError::Failed(Error::new(ErrorKind::Unsupported, message))
        })
    }

    /// Points the keys at the copies and lets the inputs go.
    async fn take_over(
        self: &Arc<Self>,
        finished: Vec<Finished>,
        inputs: Vec<Arc<Segment>>,
        unread: Vec<Arc<Segment>>,
        mut replaced: Vec<u32>,
    ) {
        replaced.sort_unstable();
        let retire_early = seeded_bug::is(SeededBug::InputsRetiredBeforeKeysMoved);
        inputs.iter().filter(|_| retire_early).for_each(|input| self.parts.segments.retire(Arc::clone(input)));
        let mut outputs = Vec::with_capacity(finished.len());
        for output in finished {
            let Finished { identity, file, len, facts, hint, has_hint_file } = output;
            let segment = Segment::new(identity.id, identity.salt, identity.first_seq, len, Some(file));
            segment.set_sealed(Some(facts));
            segment.set_hint_bytes(if has_hint_file { hint.len() as u64 } else { 0 });
            let segment = Arc::new(segment);
            if seeded_bug::is(SeededBug::OutputFoundLate) {
                self.relocate(&segment, &hint, &replaced, &inputs);
            }
            self.parts.segments.insert(Arc::clone(&segment));
            outputs.push((segment, hint));
        }
        move_all(self, Moves { outputs, inputs: inputs.clone(), replaced }).await;
        for segment in inputs.into_iter().chain(unread) {
            self.parts.segments.retire(segment);
        }
    }

    /// Removes what there is of an output that will not be used. What cannot be removed, the next open removes.
    fn remove(&self, id: u32) {
        let dir = &self.parts.segments.dir;
        let _ = dir.unlink(&segment_file_name(id));
        let _ = dir.unlink(&hint_file_name(id));
    }

    fn error(&self, operation: &str, error: io::Error) -> Error {
        Error::io(format!("compact: {operation}"), error).with_path(&self.parts.segments.path)
    }

    // ---- pace ----------------------------------------------------------------------------------------------------

    /// A job that somebody asked for keeps to the limit, whatever piles up: they may have their reasons to have set one.
    fn begin_pace(&self, is_asked_for: bool) {
        let Policy { trigger, .. } = self.settings.policy;
        let dead_part = if is_asked_for { 0.0 } else { view(&self.parts.segments).dead_part() };
        let now = self.parts.io.now();
        let calm_sync = self.calm.lock().unwrap_or_else(PoisonError::into_inner).at(now, self.sync_time());
        let pace = Pace::new(self.settings.bytes_per_second, dead_part, trigger, calm_sync, now);
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(pace);
    }

    /// What a sync of the commit task takes at present.
    fn sync_time(&self) -> Duration {
        Duration::from_nanos(self.parts.commit_counters.sync_nanos.load(Ordering::Relaxed))
    }

    /// Waits as long as a job must that has moved so many bytes.
    async fn pace(&self, bytes: u64, gate: &Gate) -> std::result::Result<(), JobError> {
        if gate.lives_on_reserve {
            return Ok(());
        }
        let now = self.parts.io.now();
        let is_time = self.with_pace(|pace| pace.wants_backlog(now)) == Some(true);
        if is_time && !gate.is_asked_for() {
            let dead_part = view(&self.parts.segments).dead_part();
            self.with_pace(|pace| pace.observe_backlog(dead_part));
        }
        let wait = self.with_pace(|pace| pace.spend(bytes, self.sync_time(), now)).unwrap_or_default();
        if wait.is_zero() { Ok(()) } else { gate.sleep(&*self.parts.io, wait).await }
    }

    /// Whether the job at hand may go as fast as it can.
    fn is_unlimited(&self) -> bool {
        self.with_pace(|pace| pace.is_unlimited()) == Some(true)
    }

    fn with_pace<T>(&self, with: impl FnOnce(&mut Pace) -> T) -> Option<T> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(with)
    }
}
