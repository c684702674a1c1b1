//! Holds a job to its rate: reads the clock, the sync time of the commit task and the backlog, and sleeps as the
//! [`rate`](super::rate) demands.

use std::sync::PoisonError;
use std::time::Duration;

use super::control::Gate;
use super::error::JobError;
use super::picker::view;
use super::rate::{RateLimit, SyncBaseline};
use crate::commit::Parts;
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

/// The rate of all jobs of one store. One job runs at a time.
pub(super) struct Throttle {
    parts: Parts,
    bytes_per_second: Option<u64>,
    trigger: f64,
    baseline: Mutex<SyncBaseline>,
    /// The limit of the current job; `None` before the first.
    limit: Mutex<Option<RateLimit>>,
}

impl Throttle {
    pub(super) fn new(parts: Parts, bytes_per_second: Option<u64>, trigger: f64) -> Self {
        Self { parts, bytes_per_second, trigger, baseline: Mutex::default(), limit: Mutex::default() }
    }

    /// Begins a job. The backlog does not raise the rate of a job that a caller asked for: the caller may have a reason
    /// for the limit.
    pub(super) fn begin_job(&self, is_requested: bool) {
        let dead_fraction = if is_requested { 0.0 } else { view(&self.parts.segments).dead_fraction() };
        let now = self.parts.io.now();
        let undisturbed_sync =
            self.baseline.lock().unwrap_or_else(PoisonError::into_inner).at_job_start(now, self.sync_time());
        let limit = RateLimit::new(self.bytes_per_second, dead_fraction, self.trigger, undisturbed_sync, now);
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
    }

    /// The current job has copied its records, so it no longer disturbs the commit task.
    pub(super) fn end_copying(&self) {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner).disturbed_until(self.parts.io.now());
    }

    /// Sleeps as long as a job must that has just read and written `bytes`.
    pub(super) async fn pause_after(&self, bytes: u64, gate: &Gate) -> Result<(), JobError> {
        if gate.uses_reserve() {
            return Ok(());
        }
        let now = self.parts.io.now();
        let is_check_due = self.with_limit(|limit| limit.is_backlog_check_due(now)) == Some(true);
        if is_check_due && !gate.is_requested() {
            let dead_fraction = view(&self.parts.segments).dead_fraction();
            self.with_limit(|limit| limit.observe_backlog(dead_fraction));
        }
        let wait = self.with_limit(|limit| limit.spend(bytes, self.sync_time(), now)).unwrap_or_default();
        if wait.is_zero() { Ok(()) } else { gate.sleep(&*self.parts.io, wait).await }
    }

    /// Whether the current job has no rate limit.
    pub(super) fn is_unlimited(&self) -> bool {
        self.with_limit(|limit| limit.is_unlimited()) == Some(true)
    }

    fn with_limit<T>(&self, with: impl FnOnce(&mut RateLimit) -> T) -> Option<T> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(with)
    }

    /// How long a sync of the commit task takes at present.
    fn sync_time(&self) -> Duration {
        Duration::from_nanos(self.parts.commit_counters.sync_nanos.load(Ordering::Relaxed))
    }
}
