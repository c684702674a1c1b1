//! The maintenance task: all work on sealed segments, on its own thread, so that no writer waits for it.
//!
//! In order of urgency, it serves the compactions that callers request, removes the files of obsolete segments,
//! compacts what the picker selects, and writes hint files. It does one thing at a time. A compaction job runs to its
//! end before the next thing, unless it is told to stop.
//!
//! Callers and the commit task reach it through [`Control`]. A failure of its work fails no write:
//!
//! - Without a hint file the next open is slower.
//! - A failed compaction job is tried again later, at growing intervals. A caller that requested it gets the error.
//! - A file that could not be removed is tried again, and the next open removes what is left.
//!
//! The store is poisoned only if it is unknown whether the MANIFEST was replaced, or if this task panics.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::compaction::control::{CompactionRequest, Control, Gate, Orders, SealedQueue};
use crate::compaction::error::JobError;
use crate::compaction::picker::{self, PickedSegments};
use crate::compaction::{self, Compactor};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Dir, OpFuture};
use crate::options::hours::Hours;
use crate::segment::{hint_file, hint_file_name, segment_file_name};
use crate::stats::CompactionReport;
use crate::trace;

/// The delay after the first failure of a job. It doubles with every further failure, up to [`MAX_RETRY_DELAY`].
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// The request that is being served. Answers it with an error if the task panics.
struct ServedRequest(Arc<CompactionRequest>);

impl Drop for ServedRequest {
    fn drop(&mut self) {
        // Has no effect after the first answer.
        self.0.answer.fulfil(Err(Error::new(ErrorKind::Poisoned, "the maintenance task ended early")));
    }
}

/// What the task does next.
enum MaintenanceWork {
    WriteHint(u32),
    Unlink,
    Serve(Arc<CompactionRequest>),
    CompactIfDue,
    Stop,
}

/// The task.
pub(crate) struct Maintainer {
    control: Arc<Control>,
    compactor: Compactor,
    /// Whether compaction begins without a request.
    is_automatic: bool,
    /// The hours in which automatic compaction may begin.
    hours: Option<Hours>,
    /// An automatic compaction may be due.
    check_due: bool,
    /// No automatic job begins before this time.
    no_job_before: Duration,
    retry_delay: Duration,
    /// No file is removed before this time.
    no_unlink_before: Duration,
}

impl Maintainer {
    pub(crate) fn new(control: Arc<Control>, compactor: Compactor, is_automatic: bool, hours: Option<Hours>) -> Self {
        Self {
            control,
            compactor,
            is_automatic,
            hours,
            check_due: true,
            no_job_before: Duration::ZERO,
            retry_delay: MIN_RETRY_DELAY,
            no_unlink_before: Duration::ZERO,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.next().await {
                MaintenanceWork::WriteHint(id) => self.write_hint(id).await,
                MaintenanceWork::Unlink => self.unlink(),
                MaintenanceWork::Serve(request) => {
                    let served = ServedRequest(request);
                    let result = self.compact_requested(&served.0).await;
                    served.0.answer.fulfil(result);
                    // The segments may have changed.
                    self.check_due = true;
                }
                MaintenanceWork::CompactIfDue => self.compact_if_due().await,
                MaintenanceWork::Stop => return self.unlink(),
            }
        }
    }

    /// Writes the hint file of segment `id`, unless compaction has replaced the segment in the meantime.
    async fn write_hint(&self, id: u32) {
        let parts = &self.compactor.parts;
        let Some(segment) = parts.segments.get(id) else { return };
        // On a full disk the hint file would take the space that deletes need.
        if !parts.reserve.is_held() {
            return;
        }
        let pauses = (!self.control.is_closing()).then_some(&*parts.io);
        // Without a hint file the next open scans the segment, and its report says so.
        let _ = hint_file::write_hint(&parts.segments, &segment, parts.store_id, pauses).await;
    }

    async fn next(&mut self) -> MaintenanceWork {
        loop {
            let mut timer = self.sleep_time().map(|wait| self.compactor.parts.io.sleep(wait));
            let work = poll_fn(|cx| self.poll_next(cx, timer.as_mut())).await;
            if let Some(work) = work {
                return work;
            }
        }
    }

    /// The next work; `None` if `timer` has elapsed.
    fn poll_next(&mut self, cx: &mut Context<'_>, timer: Option<&mut OpFuture<()>>) -> Poll<Option<MaintenanceWork>> {
        let obsolete = &self.compactor.parts.segments.obsolete;
        self.control.register(cx.waker());
        obsolete.register(cx.waker());
        let now = self.compactor.parts.io.now();
        let Orders { check_due, may_compact, request } = self.control.take_orders();
        self.check_due |= check_due;
        if let Some(request) = request {
            return Poll::Ready(Some(MaintenanceWork::Serve(request)));
        }
        if now >= self.no_unlink_before && obsolete.has_next() {
            return Poll::Ready(Some(MaintenanceWork::Unlink));
        }
        // Before hint files: if writers overwrite segments this fast, the hint files would not be needed for long.
        if may_compact && self.check_due && self.wait_until_allowed().is_zero() {
            return Poll::Ready(Some(MaintenanceWork::CompactIfDue));
        }
        match self.control.take_sealed() {
            SealedQueue::Segment(id) => return Poll::Ready(Some(MaintenanceWork::WriteHint(id))),
            SealedQueue::Ended => return Poll::Ready(Some(MaintenanceWork::Stop)),
            SealedQueue::Empty => {}
        }
        match timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }

    /// How long to sleep if nothing wakes the task; `None` for no limit.
    fn sleep_time(&self) -> Option<Duration> {
        let until_unlink = self.no_unlink_before.saturating_sub(self.compactor.parts.io.now());
        let unlink = (!until_unlink.is_zero()).then_some(until_unlink);
        // At most a minute, because the wall clock, which the hours depend on, may be set.
        let check =
            (self.check_due && !self.control.is_paused()).then(|| self.wait_until_allowed().min(MAX_RETRY_DELAY));
        unlink.into_iter().chain(check).filter(|wait| !wait.is_zero()).min()
    }

    /// How long until an automatic job may begin.
    fn wait_until_allowed(&self) -> Duration {
        let io = &self.compactor.parts.io;
        let hours = self.hours.map_or(Duration::ZERO, |hours| hours.until_open(io.wall_clock()));
        hours.max(self.no_job_before.saturating_sub(io.now()))
    }

    // ---- compaction ----------------------------------------------------------------------------------------------

    async fn compact_if_due(&mut self) {
        self.check_due = false;
        if !self.is_automatic || self.compactor.parts.log.ended().is_some() {
            return;
        }
        let view = compaction::view(&self.compactor.parts.segments);
        let mut picked = picker::pick(&view, &self.compactor.settings.policy);
        if picked.is_empty() {
            return;
        }
        if !picked.unread.is_empty() {
            // First the segments whose removal takes no space.
            picked.rewrite.clear();
        }
        // There may be another job, whether this one succeeds or not.
        self.check_due = true;
        let gate = Gate::new(&self.control, None);
        if let Err(error) = self.run_job(&picked, &gate).await
            && error.kind() == ErrorKind::NoSpace
        {
            self.compact_on_the_reserve(&gate).await;
        }
    }

    /// For a full disk: releases the reserve for one job that fits into it and frees more than it writes. Returns
    /// whether the job succeeded.
    async fn compact_on_the_reserve(&mut self, gate: &Gate) -> bool {
        let bytes = self.compactor.parts.reserve.held_bytes();
        // Half of it: the MANIFEST, the footer and concurrent deletes need space too.
        let picked = picker::pick_within(&compaction::view(&self.compactor.parts.segments), bytes / 2);
        if picked.is_empty() {
            return false;
        }
        let Some(_loan) = self.compactor.parts.reserve.release() else { return false };
        let done = self.run_job(&picked, &gate.for_reserve()).await;
        self.unlink();
        done.is_ok()
    }

    /// Runs one job, and deals with its failure.
    async fn run_job(&mut self, picked: &PickedSegments, gate: &Gate) -> Result<CompactionReport> {
        let counters = &self.compactor.counters;
        let path = &self.compactor.parts.segments.path;
        let done = self.compactor.compact(picked, gate).await;
        if let Err(JobError::Fatal(error) | JobError::Damaged(error) | JobError::Failed(error)) = &done {
            counters.failed(error);
            trace::compaction_failed(path, error);
        }
        match done {
            Ok(report) => {
                counters.succeeded(&report);
                trace::compacted(path, &report);
                (self.retry_delay, self.no_job_before) = (MIN_RETRY_DELAY, Duration::ZERO);
                Ok(report)
            }
            Err(JobError::Stopped) => {
                // A change of the control state will set it again.
                self.check_due = false;
                Err(Error::new(ErrorKind::Closed, "compact: the compaction was stopped"))
            }
            Err(JobError::Fatal(error)) => {
                let poison = Error::new(ErrorKind::Poisoned, "the store stopped writing").with_source(error);
                self.compactor.parts.log.end(poison.clone());
                Err(poison)
            }
            Err(JobError::Damaged(error)) => Err(error.with_path(path)),
            Err(JobError::Failed(error)) => {
                self.no_job_before = self.compactor.parts.io.now() + self.retry_delay;
                self.retry_delay = (self.retry_delay * 2).min(MAX_RETRY_DELAY);
                Err(error)
            }
        }
    }

    async fn compact_requested(&mut self, request: &Arc<CompactionRequest>) -> Result<CompactionReport> {
        if let Some(error) = self.compactor.parts.log.ended() {
            return Err(error);
        }
        if request.segments.is_none() {
            // The active segment may hold dead records as well.
            let sealed = self.compactor.parts.log.request_seal();
            poll_fn(|cx| sealed.poll(cx)).await?;
        }
        let view = compaction::view(&self.compactor.parts.segments);
        let named = request.segments.as_deref();
        if let Some(unknown) = named.into_iter().flatten().find(|id| view.candidates.iter().all(|it| it.id != **id)) {
            let message = format!("compact: segment {unknown} is not a sealed, undamaged segment of this store");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let mut total = CompactionReport::default();
        for picked in picker::pick_requested(&view, named, &self.compactor.settings.policy) {
            let gate = Gate::new(&self.control, Some(request));
            let done = match self.run_job(&picked, &gate).await {
                Err(error) if error.kind() == ErrorKind::NoSpace && self.compact_on_the_reserve(&gate).await => {
                    self.run_job(&picked, &gate).await
                }
                done => done,
            };
            total.add(&done?);
            // The next job may need the space.
            self.unlink();
        }
        Ok(total)
    }

    // ---- unlinking -----------------------------------------------------------------------------------------------

    /// Removes the files of obsolete segments that have no readers left.
    fn unlink(&mut self) {
        let segments = &self.compactor.parts.segments;
        while let Some(next) = segments.obsolete.next() {
            let removed = remove_if_exists(&*segments.dir, &hint_file_name(next.id))
                .and_then(|()| remove_if_exists(&*segments.dir, &segment_file_name(next.id)))
                .and_then(|()| segments.dir.sync());
            if removed.is_err() {
                // The segment is not part of the store any more. Its file only takes space.
                self.no_unlink_before = self.compactor.parts.io.now() + MIN_RETRY_DELAY;
                return;
            }
            segments.obsolete.gone(next.id);
        }
        // Has no effect while the whole reserve is held, or while a job uses it.
        self.compactor.parts.reserve.refill();
    }
}

fn remove_if_exists(dir: &dyn Dir, name: &str) -> io::Result<()> {
    match dir.unlink(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::Io;
    use crate::io::sim::{SimBackend, SimConfig};
    use crate::{Compaction, Store};

    /// Deletes are short: those of all keys may not fill one segment, so that no seal starts a compaction.
    #[test]
    fn deletes_that_fill_no_segment_start_a_compaction() {
        const SEGMENT: u64 = 64 << 10;
        let world = SimBackend::new(SimConfig::default());
        let (before, after) = world.run_until(async {
            let compaction = Compaction::new().bytes_per_second(None);
            let builder = Store::builder("/db").backend(Arc::new(world.clone())).segment_bytes(SEGMENT);
            let store = builder.compaction(compaction).open().await.unwrap();
            for key in 0..100_u32 {
                store.put(key.to_le_bytes(), [7; 4 << 10]).await.unwrap();
            }
            let before = store.stats().segments.len();
            for key in 0..100_u32 {
                assert!(store.delete(key.to_le_bytes()).await.unwrap());
            }
            world.sleep(Duration::from_secs(100)).await;
            let after = store.stats().segments.len();
            store.close().await.unwrap();
            (before, after)
        });
        assert!(before > 5, "{before} segments");
        assert!(after <= 2, "{before} segments before the deletes, {after} after them");
    }

    /// The disk is full, and a compaction uses the reserve. When there is space again, writers get it at once.
    #[test]
    fn a_job_on_the_reserve_runs_without_a_rate_limit() {
        let world = SimBackend::new(SimConfig::default());
        world.run_until(async {
            let compaction = Compaction::new().trigger(0.3).bytes_per_second(Some(64 << 10));
            let builder = Store::builder("/db").backend(Arc::new(world.clone())).segment_bytes(1 << 20);
            let store = builder.reserve_bytes(512 << 10).compaction(compaction).open().await.unwrap();
            store.pause_compaction();
            for key in (0..30_u32).chain(0..27).chain(100..110) {
                store.put(key.to_le_bytes(), [7; 30 << 10]).await.unwrap();
            }
            world.sleep(Duration::from_secs(1)).await;
            world.set_capacity(Some(world.used_bytes() + (20 << 10)));
            store.resume_compaction();
            // At this rate the job needs a few steps to fill the disk.
            for _ in 0..60 {
                world.sleep(Duration::from_secs(1)).await;
                if store.stats().compaction_failures > 0 {
                    break;
                }
            }
            assert_eq!(store.stats().compaction_failures, 1, "the job failed on the full disk");
            world.set_capacity(None);
            for key in 200..240_u32 {
                store.put(key.to_le_bytes(), [7; 30 << 10]).await.unwrap();
            }
            assert_eq!(store.stats().compactions, 1, "a job on the reserve has no rate limit");
            store.close().await.unwrap();
        });
    }
}
