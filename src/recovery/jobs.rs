//! What the loaders of one opening have to do: whole segments, and parts of hint files that one of them has read.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use super::Candidate;
use super::hint_load::Part;
use super::load::Outcome;
use crate::sync::Mutex;

/// Something for a loader to do.
pub(super) enum Job {
    Segment(Box<Candidate>),
    Part(Part),
}

/// Shared by the loaders.
pub(super) struct Jobs(Mutex<State>);

struct State {
    segments: VecDeque<Candidate>,
    parts: VecDeque<Part>,
    /// Loaders that may still add parts.
    reading: usize,
    /// Loaders that wait for parts.
    waiting: Vec<Waker>,
    done: Vec<Outcome>,
    failure: Option<(u32, io::Error)>,
}

/// Held by a loader while it reads a segment; without any nobody waits for parts.
pub(super) struct Reading<'a>(&'a Jobs);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.reading -= 1);
    }
}

impl Jobs {
    pub(super) fn new(segments: Vec<Candidate>) -> Self {
        Self(Mutex::new(State {
            segments: segments.into(),
            parts: VecDeque::new(),
            reading: 0,
            waiting: Vec::new(),
            done: Vec::new(),
            failure: None,
        }))
    }

    /// The next thing to do, with the word of a reader where it is a segment; `None` when there will be nothing more.
    pub(super) async fn next(&self) -> Option<(Job, Option<Reading<'_>>)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<(Job, Option<Reading<'_>>)>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failure.is_some() {
            return Poll::Ready(None);
        }
        // Parts first: they are in memory.
        if let Some(part) = state.parts.pop_front() {
            return Poll::Ready(Some((Job::Part(part), None)));
        }
        if let Some(segment) = state.segments.pop_front() {
            state.reading += 1;
            return Poll::Ready(Some((Job::Segment(Box::new(segment)), Some(Reading(self)))));
        }
        if state.reading == 0 {
            return Poll::Ready(None);
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Adds a part; returns one to be loaded by the caller where more than `at_most` are waiting.
    pub(super) fn add_part(&self, part: Part, at_most: usize) -> Option<Part> {
        self.change(|state| {
            state.parts.push_back(part);
            if state.parts.len() > at_most { state.parts.pop_front() } else { None }
        })
    }

    pub(super) fn finish(&self, outcome: Outcome) {
        self.change(|state| state.done.push(outcome));
    }

    /// The opening fails: nobody does anything more.
    pub(super) fn fail(&self, segment: u32, error: io::Error) {
        self.change(|state| {
            state.failure.get_or_insert((segment, error));
        });
    }

    /// What came of it, or which segment could not be read.
    pub(super) fn take_done(&self) -> Result<Vec<Outcome>, (u32, io::Error)> {
        self.change(|state| match state.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut state.done)),
        })
    }

    /// Changes the state, and wakes whoever waits for a change.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, waiting) = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut state);
            (result, std::mem::take(&mut state.waiting))
        };
        crate::sync::wake::wake_all(waiting);
        result
    }
}
