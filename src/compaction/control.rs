//! What callers and the commit task tell the maintenance task, and what a compaction job asks between its steps.
//!
//! [`Control`] holds a mutex for a few instructions at a time, never across an `await`. Every change wakes the
//! maintenance task. A job asks through its [`Gate`] whether it must pause or stop.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::error::JobError;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
use crate::segment::Segment;
use crate::stats::CompactionReport;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::promise::Promise;
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// Index of the maintenance task's waker.
const MAINTENANCE: usize = 0;
/// Index of the waker of a job's second thread.
const HELPER: usize = 1;

/// What callers and the commit task tell the maintenance task.
#[derive(Default)]
pub(crate) struct Control {
    state: Mutex<ControlState>,
    wakers: [AtomicWaker; 2],
}

#[derive(Default)]
struct ControlState {
    /// Ids of sealed segments that have no hint file yet. The queue holds ids, not handles: a handle would keep the
    /// file of a segment that compaction has replaced in the meantime.
    sealed: VecDeque<u32>,
    requests: VecDeque<Arc<CompactionRequest>>,
    /// A compaction may have become due.
    check_due: bool,
    paused: bool,
    /// The store is closing: no compaction begins, but queued segments still get their hint files.
    closing: bool,
    /// Why compaction has ended, if not because of the close.
    failure: Option<Error>,
    /// No segment will be queued any more.
    stop: bool,
}

/// A compaction that a caller asked for.
pub(crate) struct CompactionRequest {
    /// The segments to compact; `None` for all.
    pub(crate) segments: Option<Vec<u32>>,
    pub(crate) answer: Promise<Result<CompactionReport>>,
    /// The caller has dropped its future.
    abandoned: AtomicBool,
}

/// What [`Control::take_orders`] returns.
pub(crate) struct Orders {
    /// A compaction may have become due since the last call.
    pub(crate) check_due: bool,
    /// Compaction is neither paused nor ended.
    pub(crate) may_compact: bool,
    /// The oldest request; `None` while no compaction may begin.
    pub(crate) request: Option<Arc<CompactionRequest>>,
}

/// What [`Control::take_sealed`] returns.
pub(crate) enum SealedQueue {
    /// This segment needs a hint file.
    Segment(u32),
    /// The queue is empty for now.
    Empty,
    /// The queue is empty for good: the task ends.
    Ended,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.wakers.iter().for_each(AtomicWaker::wake);
    }

    fn change(&self, change: impl FnOnce(&mut ControlState)) {
        change(&mut self.lock());
        self.wake();
    }

    // ---- for callers and the commit task -------------------------------------------------------------------------

    /// Queues a sealed segment for its hint file.
    pub(crate) fn push(&self, segment: &Segment) {
        self.change(|state| {
            state.sealed.push_back(segment.id);
            state.check_due = true;
        });
    }

    /// Has the task check whether a compaction is due.
    pub(crate) fn request_check(&self) {
        self.change(|state| state.check_due = true);
    }

    /// Requests a compaction of `segments`, or of all segments.
    pub(crate) fn request(&self, segments: Option<Vec<u32>>) -> Arc<CompactionRequest> {
        let request =
            Arc::new(CompactionRequest { segments, answer: Promise::new(), abandoned: AtomicBool::new(false) });
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

    /// The caller of `request` no longer waits: the compaction does not begin, or stops.
    pub(crate) fn abandon(&self, request: &Arc<CompactionRequest>) {
        request.abandoned.store(true, Ordering::Release);
        self.change(|state| state.requests.retain(|queued| !Arc::ptr_eq(queued, request)));
    }

    /// Pauses or resumes compaction.
    pub(crate) fn pause(&self, paused: bool) {
        self.change(|state| (state.paused, state.check_due) = (paused, true));
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Ends compaction because the store is closing.
    pub(crate) fn close(&self) {
        self.end(None);
    }

    /// Ends compaction because of `error`.
    pub(crate) fn fail(&self, error: Error) {
        self.end(Some(error));
    }

    fn end(&self, failure: Option<Error>) {
        let (unserved, error) = {
            let mut state = self.lock();
            // A task that ends during the close has not failed.
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

    /// Ends the task once its queue is empty.
    pub(crate) fn stop(&self) {
        self.close();
        self.change(|state| state.stop = true);
    }

    // ---- for the maintenance task --------------------------------------------------------------------------------

    /// Registers the task's waker.
    pub(crate) fn register(&self, waker: &Waker) {
        self.wakers[MAINTENANCE].register(waker);
    }

    pub(crate) fn take_orders(&self) -> Orders {
        let mut state = self.lock();
        let may_compact = !state.closing && !state.paused;
        let request = if may_compact { state.requests.pop_front() } else { None };
        Orders { check_due: std::mem::take(&mut state.check_due), may_compact, request }
    }

    pub(crate) fn take_sealed(&self) -> SealedQueue {
        let mut state = self.lock();
        match state.sealed.pop_front() {
            Some(id) => SealedQueue::Segment(id),
            None if state.stop => SealedQueue::Ended,
            None => SealedQueue::Empty,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }
}

/// What a job asks between its steps.
#[derive(Clone)]
pub(crate) struct Gate {
    control: Arc<Control>,
    request: Option<Arc<CompactionRequest>>,
    /// Index of the waker of the thread that asks.
    waker: usize,
    /// The job uses the released reserve. Until it ends, puts get no space and deletes get no more than they have, so
    /// it runs without a rate limit, and stops instead of pausing.
    uses_reserve: bool,
}

impl Gate {
    pub(crate) fn new(control: &Arc<Control>, request: Option<&Arc<CompactionRequest>>) -> Self {
        let (control, request) = (Arc::clone(control), request.cloned());
        Self { control, request, waker: MAINTENANCE, uses_reserve: false }
    }

    /// A gate for a job that uses the released reserve.
    pub(crate) fn for_reserve(&self) -> Self {
        Self { uses_reserve: true, ..self.clone() }
    }

    /// A gate for the second thread of a job.
    pub(super) fn for_helper(&self) -> Self {
        Self { waker: HELPER, ..self.clone() }
    }

    /// Whether a caller asked for the job.
    pub(super) fn is_requested(&self) -> bool {
        self.request.is_some()
    }

    pub(super) fn uses_reserve(&self) -> bool {
        self.uses_reserve
    }

    /// Waits while compaction is paused; an error if the job must stop.
    pub(super) async fn pass(&self) -> std::result::Result<(), JobError> {
        poll_fn(|cx| match self.poll_stopped(cx) {
            Poll::Ready(stopped) => Poll::Ready(Err(stopped)),
            Poll::Pending if self.control.is_paused() => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Sleeps for `duration`; an error as soon as the job must stop.
    pub(super) async fn sleep(&self, io: &dyn Io, duration: Duration) -> std::result::Result<(), JobError> {
        let mut timer = io.sleep(duration);
        poll_fn(|cx| match self.poll_stopped(cx) {
            Poll::Ready(stopped) => Poll::Ready(Err(stopped)),
            Poll::Pending => timer.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    fn poll_stopped(&self, cx: &Context<'_>) -> Poll<JobError> {
        self.control.wakers[self.waker].register(cx.waker());
        let is_abandoned = self.request.as_ref().is_some_and(|request| request.abandoned.load(Ordering::Acquire));
        let state = self.control.lock();
        let must_stop = is_abandoned || state.closing || (self.uses_reserve && state.paused);
        if must_stop { Poll::Ready(JobError::Stopped) } else { Poll::Pending }
    }
}
