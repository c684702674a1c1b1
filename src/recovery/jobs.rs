//! The jobs of the loaders: whole segments, and parts of hint files that another loader has read.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use super::checked::CheckedSegment;
use super::hint_load::HintPart;
use super::loaded::LoadedSegment;
use crate::sync::Mutex;

/// One unit of work for a loader.
pub(super) enum Job {
    Segment(Box<CheckedSegment>),
    Part(HintPart),
}

/// The jobs and results of one recovery, shared by its loaders.
pub(super) struct Jobs(Mutex<JobQueue>);

struct JobQueue {
    segments: VecDeque<CheckedSegment>,
    parts: VecDeque<HintPart>,
    /// Loaders that read a segment and may still add parts.
    reading: usize,
    /// Loaders that wait for parts.
    waiting: Vec<Waker>,
    loaded: Vec<LoadedSegment>,
    failure: Option<(u32, io::Error)>,
}

/// Held by a loader while it reads a segment. While no loader holds one, no parts will be added.
pub(super) struct ReadingGuard<'a>(&'a Jobs);

impl Drop for ReadingGuard<'_> {
    fn drop(&mut self) {
        self.0.change(|queue| queue.reading -= 1);
    }
}

impl Jobs {
    pub(super) fn new(segments: Vec<CheckedSegment>) -> Self {
        Self(Mutex::new(JobQueue {
            segments: segments.into(),
            parts: VecDeque::new(),
            reading: 0,
            waiting: Vec::new(),
            loaded: Vec::new(),
            failure: None,
        }))
    }

    /// Waits for the next job. A segment comes with a guard to hold while it is read. `None` if no job will follow.
    pub(super) async fn next(&self) -> Option<(Job, Option<ReadingGuard<'_>>)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<(Job, Option<ReadingGuard<'_>>)>> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.failure.is_some() {
            return Poll::Ready(None);
        }
        // Parts first, because they occupy memory.
        if let Some(part) = queue.parts.pop_front() {
            return Poll::Ready(Some((Job::Part(part), None)));
        }
        if let Some(segment) = queue.segments.pop_front() {
            queue.reading += 1;
            return Poll::Ready(Some((Job::Segment(Box::new(segment)), Some(ReadingGuard(self)))));
        }
        if queue.reading == 0 {
            return Poll::Ready(None);
        }
        queue.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Adds a part. If more than `waiting_max` parts wait then, returns one for the caller to load.
    pub(super) fn add_part(&self, part: HintPart, waiting_max: usize) -> Option<HintPart> {
        self.change(|queue| {
            queue.parts.push_back(part);
            if queue.parts.len() > waiting_max { queue.parts.pop_front() } else { None }
        })
    }

    pub(super) fn finish(&self, loaded: LoadedSegment) {
        self.change(|queue| queue.loaded.push(loaded));
    }

    /// Records that a segment could not be read. The recovery fails, and no loader gets another job.
    pub(super) fn fail(&self, segment: u32, error: io::Error) {
        self.change(|queue| {
            queue.failure.get_or_insert((segment, error));
        });
    }

    /// The loaded segments, or the segment that could not be read.
    pub(super) fn take_loaded(&self) -> Result<Vec<LoadedSegment>, (u32, io::Error)> {
        self.change(|queue| match queue.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut queue.loaded)),
        })
    }

    /// Changes the queue and wakes all loaders that wait.
    fn change<R>(&self, change: impl FnOnce(&mut JobQueue) -> R) -> R {
        let (result, waiting) = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut queue);
            (result, std::mem::take(&mut queue.waiting))
        };
        crate::sync::wake::wake_all(waiting);
        result
    }
}
