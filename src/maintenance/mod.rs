//! The maintenance task: what sealed segments need, on a thread of its own, so that no writer ever waits for it.
//!
//! It compacts, removes the files of segments that were compacted away, and writes hint files. One thing at a time, in
//! this order of urgency; a compaction job runs to its end before the next thing, or is told to stop.
//!
//! Callers reach it through [`Maintenance`]: a mutex that is held for a few instructions, never across an await. Errors
//! of its work are nobody's: without a hint the next open is slower; a job that failed is tried again later, at growing
//! intervals; a file that could not be removed is removed by the next open.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::compaction::picker::{self, Pick};
use crate::compaction::{self, Compactor, JobError, Report};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Io, OpFuture};
use crate::options::hours::Hours;
use crate::segment::{Segment, hint_file, hint_file_name, segment_file_name};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::promise::Promise;
use crate::sync::{AtomicWaker, Mutex, MutexGuard};
use crate::trace;

/// After the first failure a job is tried again after so long; after the next ones after twice, four times, … as long.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Who is woken: the task, and the second thread that a job may have.
const MAINTENANCE: usize = 0;
const HELPER: usize = 1;

/// What callers and the commit task tell the maintenance task.
#[derive(Default)]
pub(crate) struct Maintenance {
    state: Mutex<State>,
    wakers: [AtomicWaker; 2],
}

#[derive(Default)]
struct State {
    /// By number: a segment that waits here for its hint may be compacted away, and its file shall go then.
    sealed: VecDeque<u32>,
    requests: VecDeque<Arc<Request>>,
    /// Something has happened that may have made a compaction due.
    look: bool,
    paused: bool,
    /// The store is being closed: no compaction, but what was sealed gets its hints.
    closing: bool,
    /// Why, if not because the store is being closed.
    failure: Option<Error>,
    /// Nothing more will be sealed.
    stop: bool,
}

/// A compaction that a caller waits for.
pub(crate) struct Request {
    /// The segments named, or all.
    pub(crate) segments: Option<Vec<u32>>,
    pub(crate) answer: Promise<Result<Report>>,
    /// The caller waits no longer.
    abandoned: AtomicBool,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}

/// Answers a request that is being served when the task unwinds.
struct Serving(Arc<Request>);

impl Drop for Serving {
    fn drop(&mut self) {
        // The first answer stays.
        self.0.answer.fulfil(Err(Error::new(ErrorKind::Poisoned, "the maintenance task ended early")));
    }
}

impl Maintenance {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.wakers.iter().for_each(AtomicWaker::wake);
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.wake();
    }

    /// Queues a segment that was sealed.
    pub(crate) fn push(&self, segment: &Segment) {
        self.tell(|state| {
            state.sealed.push_back(segment.id);
            state.look = true;
        });
    }

    /// Says that a compaction may have become due.
    pub(crate) fn look(&self) {
        self.tell(|state| state.look = true);
    }

    /// Asks for a compaction of the `segments`, or of all of them.
    pub(crate) fn request(&self, segments: Option<Vec<u32>>) -> Arc<Request> {
        let request = Arc::new(Request { segments, answer: Promise::new(), abandoned: AtomicBool::new(false) });
        let refusal = {
            let mut state = self.lock();
            if !state.closing {
                state.requests.push_back(Arc::clone(&request));
            }
            state.closing.then(|| state.failure.clone().unwrap_or_else(closed))
        };
        if let Some(error) = refusal {
            request.answer.fulfil(Err(error));
        }
        self.wake();
        request
    }

    /// Nobody waits for `request` any more: it is not begun, or stopped.
    pub(crate) fn abandon(&self, request: &Arc<Request>) {
        request.abandoned.store(true, Ordering::Release);
        self.tell(|state| state.requests.retain(|queued| !Arc::ptr_eq(queued, request)));
    }

    /// Holds compaction where it is, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.tell(|state| (state.paused, state.look) = (paused, true));
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Stops compaction for good.
    pub(crate) fn close(&self) {
        self.end(None);
    }

    /// The same, because of `error`.
    pub(crate) fn fail(&self, error: Error) {
        self.end(Some(error));
    }

    fn end(&self, failure: Option<Error>) {
        let (unserved, error) = {
            let mut state = self.lock();
            // A task that ends because of the close has not failed.
            if !state.closing {
                state.failure = failure;
            }
            state.closing = true;
            (std::mem::take(&mut state.requests), state.failure.clone().unwrap_or_else(closed))
        };
        for request in unserved {
            request.answer.fulfil(Err(error.clone()));
        }
        self.wake();
    }

    /// Ends the task when the queue is empty.
    pub(crate) fn stop(&self) {
        self.close();
        self.tell(|state| state.stop = true);
    }
}

/// What a job asks between its steps.
#[derive(Clone)]
pub(crate) struct Gate {
    shared: Arc<Maintenance>,
    request: Option<Arc<Request>>,
    /// Which of the wakers is the asking thread's.
    waker: usize,
    /// Puts get no space and deletes no more than they have until it is over: it neither keeps to a rate nor waits.
    pub(crate) lives_on_reserve: bool,
}

impl Gate {
    fn new(shared: &Arc<Maintenance>, request: Option<&Arc<Request>>) -> Self {
        let (shared, request) = (Arc::clone(shared), request.cloned());
        Self { shared, request, waker: MAINTENANCE, lives_on_reserve: false }
    }

    /// Whether a caller waits for the job.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.request.is_some()
    }

    /// The same for the second thread of a job.
    pub(crate) fn of_the_helper(&self) -> Self {
        Self { waker: HELPER, ..self.clone() }
    }

    /// Ready when the job may go on, or must stop; not while compaction is paused.
    pub(crate) async fn pass(&self) -> std::result::Result<(), JobError> {
        poll_fn(|cx| match self.poll_stopped(cx) {
            Poll::Ready(stopped) => Poll::Ready(Err(stopped)),
            Poll::Pending if self.shared.is_paused() => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Waits for so long, unless it must stop.
    pub(crate) async fn sleep(&self, io: &dyn Io, duration: Duration) -> std::result::Result<(), JobError> {
        let mut timer = io.sleep(duration);
        poll_fn(|cx| match self.poll_stopped(cx) {
            Poll::Ready(stopped) => Poll::Ready(Err(stopped)),
            Poll::Pending => timer.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    fn poll_stopped(&self, cx: &Context<'_>) -> Poll<JobError> {
        self.shared.wakers[self.waker].register(cx.waker());
        let is_abandoned = self.request.as_ref().is_some_and(|request| request.abandoned.load(Ordering::Acquire));
        let state = self.shared.lock();
        let must_stop = is_abandoned || state.closing || (self.lives_on_reserve && state.paused);
        if must_stop { Poll::Ready(JobError::Stopped) } else { Poll::Pending }
    }
}

/// What the task does next.
enum Event {
    Hint(u32),
    Unlink,
    Compact(Arc<Request>),
    Look,
    Stop,
}

/// The task.
pub(crate) struct Maintainer {
    shared: Arc<Maintenance>,
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
    pub(crate) fn new(
        shared: Arc<Maintenance>,
        compactor: Compactor,
        is_automatic: bool,
        hours: Option<Hours>,
    ) -> Self {
        let (not_before, no_unlink_before) = (Duration::ZERO, Duration::ZERO);
        let compactor = Arc::new(compactor);
        Self { shared, compactor, is_automatic, hours, look: true, not_before, retry: RETRY_FIRST, no_unlink_before }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.next().await {
                Event::Hint(id) => {
                    let registry = &self.compactor.registry;
                    // It may be compacted away already.
                    // On a full disk a hint would take what deletes live on.
                    if let Some(segment) = registry.get(id).filter(|_| self.compactor.reserve.is_held()) {
                        // Derived data: without it the next open is slower, and says in its report that it scanned.
                        let pauses = (!self.shared.lock().closing).then_some(&*self.compactor.io);
                        let _ = hint_file::write_hint(registry, &segment, self.compactor.store_id, pauses).await;
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
            let mut timer = self.alarm().map(|wait| self.compactor.io.sleep(wait));
            let event = poll_fn(|cx| self.poll_event(cx, timer.as_mut())).await;
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, timer: Option<&mut OpFuture<()>>) -> Poll<Option<Event>> {
        let retired = &self.compactor.registry.obsolete;
        self.shared.wakers[MAINTENANCE].register(cx.waker());
        retired.register(cx.waker());
        let now = self.compactor.io.now();
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
        let until_unlink = self.no_unlink_before.saturating_sub(self.compactor.io.now());
        let unlink = (!until_unlink.is_zero()).then_some(until_unlink);
        // No longer than a minute: the clock that the hours go by may be set meanwhile.
        let look = (self.look && !self.shared.is_paused()).then(|| self.wait_until_allowed().min(RETRY_LAST));
        unlink.into_iter().chain(look).filter(|wait| !wait.is_zero()).min()
    }

    /// How long no automatic job may begin.
    fn wait_until_allowed(&self) -> Duration {
        let io = &self.compactor.io;
        let hours = self.hours.map_or(Duration::ZERO, |hours| hours.until_open(io.wall_clock()));
        hours.max(self.not_before.saturating_sub(io.now()))
    }

    // ---- compaction ----------------------------------------------------------------------------------------------

    async fn compact_if_due(&mut self) {
        self.look = false;
        if !self.is_automatic || self.compactor.log.ended().is_some() {
            return;
        }
        let view = compaction::view(&self.compactor.registry);
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
        let bytes = self.compactor.reserve.held_bytes();
        // Half of it, for the list of segments and the footer need some, and deletes may come meanwhile.
        let pick = picker::pick_lean(&compaction::view(&self.compactor.registry), bytes / 2);
        if pick.is_empty() {
            return false;
        }
        let Some(_loan) = self.compactor.reserve.release() else { return false };
        let done = self.run_job(&pick, &Gate { lives_on_reserve: true, ..gate.clone() }).await;
        self.unlink();
        done.is_ok()
    }

    /// One job, and what follows from how it ended.
    async fn run_job(&mut self, pick: &Pick, gate: &Gate) -> Result<Report> {
        let counters = &self.compactor.counters;
        let path = &self.compactor.registry.path;
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
                self.compactor.log.end(poison.clone());
                Err(poison)
            }
            Err(JobError::Damaged(error)) => Err(error.with_path(path)),
            Err(JobError::Failed(error)) => {
                self.not_before = self.compactor.io.now() + self.retry;
                self.retry = (self.retry * 2).min(RETRY_LAST);
                Err(error)
            }
        }
    }

    async fn compact_forced(&mut self, request: &Arc<Request>) -> Result<Report> {
        if let Some(error) = self.compactor.log.ended() {
            return Err(error);
        }
        if request.segments.is_none() {
            // What is being written may be dead as well.
            let sealed = self.compactor.log.request_seal();
            poll_fn(|cx| sealed.poll(cx)).await?;
        }
        let view = compaction::view(&self.compactor.registry);
        let named = request.segments.as_deref();
        if let Some(unknown) = named.into_iter().flatten().find(|id| view.candidates.iter().all(|it| it.id != **id)) {
            let message = format!("compact: segment {unknown} is not a sealed, undamaged segment of this store");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let mut total = Report::default();
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
        let registry = &self.compactor.registry;
        while let Some(next) = registry.obsolete.next() {
            let removed = remove(&*registry.dir, &hint_file_name(next.id))
                .and_then(|()| remove(&*registry.dir, &segment_file_name(next.id)))
                .and_then(|()| registry.dir.sync());
            if removed.is_err() {
                // Not part of the store any more: it costs space, nothing else.
                self.no_unlink_before = self.compactor.io.now() + RETRY_FIRST;
                return;
            }
            registry.obsolete.gone(next.id);
        }
        // Does nothing while all of it is held, or while it is lent.
        self.compactor.reserve.refill();
    }
}

fn remove(dir: &dyn crate::io::Dir, name: &str) -> io::Result<()> {
    match dir.unlink(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::sim::{SimConfig, SimWorld};
    use crate::{Compaction, Store};

    /// Deletes are short: those of a whole store may not fill the segment they go to.
    #[test]
    fn what_dies_without_filling_a_segment_comes_back_too() {
        const SEGMENT: u64 = 64 << 10;
        let world = SimWorld::new(SimConfig::default());
        let (before, after) = world.run_until(async {
            let compaction = Compaction::new().bytes_per_second(None);
            let builder = Store::builder("/db").world(Arc::new(world.clone())).segment_bytes(SEGMENT);
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
        let world = SimWorld::new(SimConfig::default());
        world.run_until(async {
            let compaction = Compaction::new().trigger(0.3).bytes_per_second(Some(64 << 10));
            let builder = Store::builder("/db").world(Arc::new(world.clone())).segment_bytes(1 << 20);
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
