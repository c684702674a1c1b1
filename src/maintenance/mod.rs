//! The maintenance task: what sealed segments need, on a thread of its own, so that no writer ever waits for it.
//!
//! It compacts, removes the files of segments that were compacted away, and writes hint files. One thing at a time, in
//! this order of urgency; a compaction job runs to its end before the next thing, or is told to stop.
//!
//! Callers reach it through [`Control`]: a mutex that is held for a few instructions, never across an await. Errors
//! of its work are nobody's: without a hint the next open is slower; a job that failed is tried again later, at growing
//! intervals; a file that could not be removed is removed by the next open.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::compaction::control::{CompactionRequest, Control, Gate, MAINTENANCE};
use crate::compaction::error::JobError;
use crate::compaction::picker::{self, Pick};
use crate::compaction::{self, Compactor};
use crate::error::{Error, ErrorKind, Result};
use crate::io::OpFuture;
use crate::options::hours::Hours;
use crate::segment::{hint_file, hint_file_name, segment_file_name};
use crate::stats::CompactionReport;
use crate::trace;

/// After the first failure a job is tried again after so long; after the next ones after twice, four times, … as long.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Answers a request that is being served when the task unwinds.
struct Serving(Arc<CompactionRequest>);

impl Drop for Serving {
    fn drop(&mut self) {
        // The first answer stays.
        self.0.answer.fulfil(Err(Error::new(ErrorKind::Poisoned, "the maintenance task ended early")));
    }
}

/// What the task does next.
enum Event {
    Hint(u32),
    Unlink,
    Compact(Arc<CompactionRequest>),
    Look,
    Stop,
}

/// The task.
pub(crate) struct Maintainer {
    shared: Arc<Control>,
    compactor: Arc<Compactor>,
    /// Whether compaction begins by itself.
    is_automatic: bool,
    hours: Option<Hours>,
    /// Whether a look at the segments is due.
    look: bool,
    /// No automatic job before this.
    not_before: Duration,
    retry: Duration,
    /// No file is removed before this.
    no_unlink_before: Duration,
}

impl Maintainer {
    pub(crate) fn new(shared: Arc<Control>, compactor: Compactor, is_automatic: bool, hours: Option<Hours>) -> Self {
        let (not_before, no_unlink_before) = (Duration::ZERO, Duration::ZERO);
        let compactor = Arc::new(compactor);
        Self { shared, compactor, is_automatic, hours, look: true, not_before, retry: RETRY_FIRST, no_unlink_before }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.next().await {
                Event::Hint(id) => {
                    let registry = &self.compactor.parts.segments;
                    // It may be compacted away already.
                    // On a full disk a hint would take what deletes live on.
                    if let Some(segment) = registry.get(id).filter(|_| self.compactor.parts.reserve.is_held()) {
                        // Derived data: without it the next open is slower, and says in its report that it scanned.
                        let pauses = (!self.shared.lock().closing).then_some(&*self.compactor.parts.io);
                        let _ = hint_file::write_hint(registry, &segment, self.compactor.parts.store_id, pauses).await;
                    }
                }
                Event::Unlink => self.unlink(),
                Event::Compact(request) => {
                    let serving = Serving(request);
                    let result = self.compact_forced(&serving.0).await;
                    serving.0.answer.fulfil(result);
                    // Other segments than before, whatever came of it.
                    self.look = true;
                }
                Event::Look => self.compact_if_due().await,
                Event::Stop => return self.unlink(),
            }
        }
    }

    async fn next(&mut self) -> Event {
        loop {
            let mut timer = self.alarm().map(|wait| self.compactor.parts.io.sleep(wait));
            let event = poll_fn(|cx| self.poll_event(cx, timer.as_mut())).await;
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, timer: Option<&mut OpFuture<()>>) -> Poll<Option<Event>> {
        let retired = &self.compactor.parts.segments.obsolete;
        self.shared.wakers[MAINTENANCE].register(cx.waker());
        retired.register(cx.waker());
        let now = self.compactor.parts.io.now();
        let (may_begin, request) = {
            let mut state = self.shared.lock();
            self.look |= std::mem::take(&mut state.look);
            let may_begin = !state.closing && !state.paused;
            (may_begin, if may_begin { state.requests.pop_front() } else { None })
        };
        if let Some(request) = request {
            return Poll::Ready(Some(Event::Compact(request)));
        }
        if now >= self.no_unlink_before && retired.has_next() {
            return Poll::Ready(Some(Event::Unlink));
        }
        // Before hints: of a segment that writers overwrite as fast as this, nobody will need one.
        if may_begin && self.look && self.wait_until_allowed().is_zero() {
            return Poll::Ready(Some(Event::Look));
        }
        let mut state = self.shared.lock();
        if let Some(id) = state.sealed.pop_front() {
            return Poll::Ready(Some(Event::Hint(id)));
        }
        if state.stop {
            return Poll::Ready(Some(Event::Stop));
        }
        drop(state);
        match timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }

    /// How long it takes until there may be something to do without anybody saying so.
    fn alarm(&self) -> Option<Duration> {
        let until_unlink = self.no_unlink_before.saturating_sub(self.compactor.parts.io.now());
        let unlink = (!until_unlink.is_zero()).then_some(until_unlink);
        // No longer than a minute: the clock that the hours go by may be set meanwhile.
        let look = (self.look && !self.shared.is_paused()).then(|| self.wait_until_allowed().min(RETRY_LAST));
        unlink.into_iter().chain(look).filter(|wait| !wait.is_zero()).min()
    }

    /// How long no automatic job may begin.
    fn wait_until_allowed(&self) -> Duration {
        let io = &self.compactor.parts.io;
        let hours = self.hours.map_or(Duration::ZERO, |hours| hours.until_open(io.wall_clock()));
        hours.max(self.not_before.saturating_sub(io.now()))
    }

    // ---- compaction ----------------------------------------------------------------------------------------------

    async fn compact_if_due(&mut self) {
        self.look = false;
        if !self.is_automatic || self.compactor.parts.log.ended().is_some() {
            return;
        }
        let view = compaction::view(&self.compactor.parts.segments);
        let mut pick = picker::pick(&view, &self.compactor.settings.policy);
        if pick.is_empty() {
            return;
        }
        if !pick.unread.is_empty() {
            // First what frees space and takes none.
            pick.rewrite.clear();
        }
        // Whatever comes of it, there may be more.
        self.look = true;
        let gate = Gate::new(&self.shared, None);
        if let Err(error) = self.run_job(&pick, &gate).await
            && error.kind() == ErrorKind::NoSpace
        {
            self.compact_on_the_reserve(&gate).await;
        }
    }

    /// The disk is full: lives on the reserve for one job that fits into it, and gives back more than that. Whether it
    /// has freed something.
    async fn compact_on_the_reserve(&mut self, gate: &Gate) -> bool {
        let bytes = self.compactor.parts.reserve.held_bytes();
        // Half of it, for the list of segments and the footer need some, and deletes may come meanwhile.
        let pick = picker::pick_lean(&compaction::view(&self.compactor.parts.segments), bytes / 2);
        if pick.is_empty() {
            return false;
        }
        let Some(_loan) = self.compactor.parts.reserve.release() else { return false };
        let done = self.run_job(&pick, &gate.on_the_reserve()).await;
        self.unlink();
        done.is_ok()
    }

    /// One job, and what follows from how it ended.
    async fn run_job(&mut self, pick: &Pick, gate: &Gate) -> Result<CompactionReport> {
        let counters = &self.compactor.counters;
        let path = &self.compactor.parts.segments.path;
        let done = self.compactor.compact(pick, gate).await;
        if let Err(JobError::Fatal(error) | JobError::Damaged(error) | JobError::Failed(error)) = &done {
            counters.failed(error);
            trace::compaction_failed(path, error);
        }
        match done {
            Ok(report) => {
                counters.succeeded(&report);
                trace::compacted(path, &report);
                (self.retry, self.not_before) = (RETRY_FIRST, Duration::ZERO);
                Ok(report)
            }
            Err(JobError::Stopped) => {
                // Whoever stopped it will say so when it may be tried again.
                self.look = false;
                Err(Error::new(ErrorKind::Closed, "compact: it was told to stop"))
            }
            Err(JobError::Fatal(error)) => {
                let poison = Error::new(ErrorKind::Poisoned, "the store stopped writing").with_source(error);
                self.compactor.parts.log.end(poison.clone());
                Err(poison)
            }
            Err(JobError::Damaged(error)) => Err(error.with_path(path)),
            Err(JobError::Failed(error)) => {
                self.not_before = self.compactor.parts.io.now() + self.retry;
                self.retry = (self.retry * 2).min(RETRY_LAST);
                Err(error)
            }
        }
    }

    async fn compact_forced(&mut self, request: &Arc<CompactionRequest>) -> Result<CompactionReport> {
        if let Some(error) = self.compactor.parts.log.ended() {
            return Err(error);
        }
        if request.segments.is_none() {
            // What is being written may be dead as well.
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
        for pick in picker::pick_forced(&view, named, &self.compactor.settings.policy) {
            let gate = Gate::new(&self.shared, Some(request));
            let done = match self.run_job(&pick, &gate).await {
                Err(error) if error.kind() == ErrorKind::NoSpace && self.compact_on_the_reserve(&gate).await => {
                    self.run_job(&pick, &gate).await
                }
                done => done,
            };
            total.add(&done?);
            // The next one may need the space.
            self.unlink();
        }
        Ok(total)
    }

    // ---- unlinking -----------------------------------------------------------------------------------------------

    /// Removes the files of retired segments that nobody reads any more.
    fn unlink(&mut self) {
        let registry = &self.compactor.parts.segments;
        while let Some(next) = registry.obsolete.next() {
            let removed = remove(&*registry.dir, &hint_file_name(next.id))
                .and_then(|()| remove(&*registry.dir, &segment_file_name(next.id)))
                .and_then(|()| registry.dir.sync());
            if removed.is_err() {
                // Not part of the store any more: it costs space, nothing else.
                self.no_unlink_before = self.compactor.parts.io.now() + RETRY_FIRST;
                return;
            }
            registry.obsolete.gone(next.id);
        }
        // Does nothing while all of it is held, or while it is lent.
        self.compactor.parts.reserve.refill();
    }
}

fn remove(dir: &dyn crate::io::Dir, name: &str) -> io::Result<()> {
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

    /// Deletes are short: those of a whole store may not fill the segment they go to.
    #[test]
    fn what_dies_without_filling_a_segment_comes_back_too() {
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
        assert!(after <= 2, "{before} segments before everything was deleted, {after} after it");
    }

    /// The disk is full, and a compaction lives on the reserve. Then there is space again, and writers shall have it.
    #[test]
    fn a_job_on_the_reserve_keeps_it_from_writers_for_a_moment_only() {
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
            // At its rate it takes a few steps to get there.
            for _ in 0..60 {
                world.sleep(Duration::from_secs(1)).await;
                if store.stats().compaction_failures > 0 {
                    break;
                }
            }
            assert_eq!(store.stats().compaction_failures, 1, "it has met the full disk");
            world.set_capacity(None);
            for key in 200..240_u32 {
                store.put(key.to_le_bytes(), [7; 30 << 10]).await.unwrap();
            }
            assert_eq!(store.stats().compactions, 1, "on the reserve it goes without a limit");
            store.close().await.unwrap();
        });
    }
}
