//! What callers and the commit task tell the maintenance task, and what a compaction job asks between its steps.
//!
//! A mutex that is held for a few instructions, never across an await.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::error::JobError;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
use crate::segment::Segment;
use crate::stats::CompactionReport;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::promise::Promise;
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// Who is woken: the task, and the second thread that a job may have.
pub(crate) const MAINTENANCE: usize = 0;
const HELPER: usize = 1;

/// What callers and the commit task tell the maintenance task.
#[derive(Default)]
pub(crate) struct Control {
    state: Mutex<ControlState>,
    pub(crate) wakers: [AtomicWaker; 2],
}

#[derive(Default)]
pub(crate) struct ControlState {
    /// By number: a segment that waits here for its hint may be compacted away, and its file shall go then.
    pub(crate) sealed: VecDeque<u32>,
    pub(crate) requests: VecDeque<Arc<CompactionRequest>>,
    /// Something has happened that may have made a compaction due.
    pub(crate) look: bool,
    pub(crate) paused: bool,
    /// The store is being closed: no compaction, but what was sealed gets its hints.
    pub(crate) closing: bool,
    /// Why, if not because the store is being closed.
    pub(crate) failure: Option<Error>,
    /// Nothing more will be sealed.
    pub(crate) stop: bool,
}

/// A compaction that a caller waits for.
pub(crate) struct CompactionRequest {
    /// The segments named, or all.
    pub(crate) segments: Option<Vec<u32>>,
    pub(crate) answer: Promise<Result<CompactionReport>>,
    /// The caller waits no longer.
    abandoned: AtomicBool,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}

impl Control {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.wakers.iter().for_each(AtomicWaker::wake);
    }

    fn tell(&self, change: impl FnOnce(&mut ControlState)) {
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

    /// Nobody waits for `request` any more: it is not begun, or stopped.
    pub(crate) fn abandon(&self, request: &Arc<CompactionRequest>) {
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
    shared: Arc<Control>,
    request: Option<Arc<CompactionRequest>>,
    /// Which of the wakers is the asking thread's.
    waker: usize,
    /// Puts get no space and deletes no more than they have until it is over: it neither keeps to a rate nor waits.
    pub(crate) lives_on_reserve: bool,
}

impl Gate {
    pub(crate) fn new(shared: &Arc<Control>, request: Option<&Arc<CompactionRequest>>) -> Self {
        let (shared, request) = (Arc::clone(shared), request.cloned());
        Self { shared, request, waker: MAINTENANCE, lives_on_reserve: false }
    }

    /// Whether a caller waits for the job.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.request.is_some()
    }

    /// The same for a job that lives on the reserve.
    pub(crate) fn on_the_reserve(&self) -> Self {
        Self { lives_on_reserve: true, ..self.clone() }
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
