//! Compaction: replaces sealed segments by new ones without the dead records.
//!
//! It runs on the maintenance task, concurrently with the commit task. It takes no lock for long that a reader or a
//! writer waits for.
//!
//! | file | job |
//! |---|---|
//! | here | [`Compactor`], which begins a job |
//! | [`picker`] | which segments to compact, as a pure function |
//! | [`job`] | one job, from planning to the retirement of its inputs |
//! | [`sparse`] | inputs of which only the live records are read |
//! | [`output`] | writing one new segment |
//! | [`rate`], [`throttle`] | how fast a job may go |
//! | [`control`] | requests, pause and stop |
//! | [`error`] | how a job fails |
//!
//! # The life of a job
//!
//! 1. The job fixes its `first_seq`. All writes with smaller sequence numbers are published by now.
//! 2. It reads its inputs, verifies their live records and copies them to new segments. Each output is sealed, synced
//!    and gets a hint file. The MANIFEST records the id of an output as used before the file exists. An input is read
//!    and verified whole, unless it is less than half live and has no tombstones: then a scan of the keydir finds its
//!    live records, and the others are not looked up.
//! 3. It makes all writes accepted so far durable. A record that was not copied is dead because of a newer write. If a
//!    power failure lost that write, the older record would be needed again.
//! 4. It syncs the directory and replaces the MANIFEST by one that lists the outputs instead of the inputs. From here
//!    on, a crash leaves the new segments.
//! 5. It repoints the keys: each key that still points at the record that was copied now points at the copy (compare
//!    and swap). A key that was written in the meantime stays as it is, and its copy is dead from the start.
//! 6. It retires the inputs. Their files are removed when their last reader has finished.
//!
//! An error or a stop before step 4 removes the outputs and leaves the inputs.
//!
//! # When a tombstone may be dropped
//!
//! A tombstone must stay while a segment outside the job may hold a record that it hides. The `first_seq` of a segment
//! promises that no tombstone with a smaller sequence number hides a record in it.
//!
//! - In a segment that the commit task wrote, all records have larger sequence numbers.
//! - In a segment that a compaction wrote, every put was the newest published record of its key at a time when every
//!   write below `first_seq` had been published.
//!
//! The same rule holds for a tombstone that hides nothing because a newer put exists: that put may be removed before
//! the older one. The files of the inputs are removed in an order in which no put outlives its tombstone
//! (`segment/obsolete.rs`).
//!
//! No decision depends on a clock. This version writes no expiry times, and copies one that exists.

pub(crate) mod control;
pub(crate) mod error;
mod job;
mod output;
pub(crate) mod picker;
mod rate;
mod sparse;
mod throttle;

use std::sync::{Arc, PoisonError};

use crate::commit::Parts;
use crate::error::Error;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;
use crate::stats::CompactionReport;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use control::Gate;
use error::JobError;
use job::{JobContext, JobInputs};
pub(crate) use picker::view;
use picker::{PickedSegments, Policy};
use throttle::Throttle;

/// The options of compaction.
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

    /// The error of the last job, if it failed.
    pub(crate) fn last_error(&self) -> Option<Error> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs the jobs of one store, one at a time.
pub(crate) struct Compactor {
    pub(crate) parts: Parts,
    pub(crate) settings: Settings,
    pub(crate) counters: Arc<CompactionCounters>,
    throttle: Arc<Throttle>,
}

impl Compactor {
    pub(crate) fn new(parts: Parts, settings: Settings, counters: Arc<CompactionCounters>) -> Self {
        let throttle = Throttle::new(parts.clone(), settings.bytes_per_second, settings.policy.trigger);
        Self { parts, settings, counters, throttle: Arc::new(throttle) }
    }

    /// Runs one job on the `picked` segments.
    pub(crate) async fn compact(&self, picked: &PickedSegments, gate: &Gate) -> Result<CompactionReport, JobError> {
        let mut inputs = JobInputs { rewritten: self.segments(&picked.rewrite), unread: self.segments(&picked.unread) };
        inputs.rewritten.sort_by_key(|segment| (segment.first_seq, segment.id));
        self.throttle.begin_job(gate.is_requested());
        // Before the first look-up: a put that a look-up finds to be the newest of its key is hidden by no tombstone
        // below this number.
        let first_seq = match seeded_bug::is(SeededBug::OutputTooYoung) {
            true => self.parts.log.next_seq(),
            false => self.parts.log.resolved_seq() + 1,
        };
        let tombstones_removable_below = view(&self.parts.segments).tombstones_removable_below(&inputs.ids());
        let context = JobContext {
            parts: self.parts.clone(),
            segment_bytes: self.settings.segment_bytes,
            throttle: Arc::clone(&self.throttle),
            first_seq,
            tombstones_removable_below,
        };
        job::run(&Arc::new(context), inputs, gate).await
    }

    fn segments(&self, ids: &[u32]) -> Vec<Arc<Segment>> {
        ids.iter().filter_map(|&id| self.parts.segments.get(id)).collect()
    }
}
