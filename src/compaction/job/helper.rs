//! The copying of one job, on the maintenance task alone or on two threads.
//!
//! With small values a job is bound by the processor: every record is verified, looked up, placed and moved. Where
//! nothing limits its rate, and there is enough to do, a second thread takes every other input and writes outputs of its
//! own. It has the priority of the maintenance thread, and is gone at the end of the job.

use std::future::poll_fn;
use std::sync::Arc;

use super::copying::Rewrite;
use crate::compaction::Compactor;
use crate::compaction::control::Gate;
use crate::compaction::error::JobError;
use crate::compaction::output::Finished;
use crate::compaction::sparse::{Input, plan};
use crate::error::{Error, ErrorKind};
use crate::io::Priority;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;
use crate::stats::CompactionReport;
use crate::sync::promise::Promise;

/// What both threads go by.
#[derive(Clone, Copy, Debug)]
pub(in crate::compaction) struct Terms {
    pub(in crate::compaction) first_seq: u64,
    pub(in crate::compaction) tombstones_go_below: u64,
}

/// What came of it, whether or not it came to its end.
pub(in crate::compaction) struct Copied {
    pub(in crate::compaction) finished: Vec<Finished>,
    /// An output that was begun, and not finished.
    pub(in crate::compaction) unfinished: Vec<u32>,
    pub(in crate::compaction) report: CompactionReport,
    pub(in crate::compaction) result: Result<(), JobError>,
}

impl Copied {
    /// Nothing, because of `error`.
    fn nothing(error: JobError) -> Self {
        Self { finished: Vec::new(), unfinished: Vec::new(), report: CompactionReport::default(), result: Err(error) }
    }

    fn join(mut self, other: Self) -> Self {
        self.finished.extend(other.finished);
        self.unfinished.extend(other.unfinished);
        self.report.add(&other.report);
        // Of two failures the worse one counts.
        self.result = match (self.result, other.result) {
            (Err(JobError::Fatal(error)), _) | (_, Err(JobError::Fatal(error))) => Err(JobError::Fatal(error)),
            (Err(error), _) => Err(error),
            (Ok(()), other) => other,
        };
        self
    }
}

/// Copies what `segments` have to keep.
pub(in crate::compaction) async fn copy_all(
    compactor: &Arc<Compactor>,
    segments: &[Arc<Segment>],
    terms: Terms,
    gate: &Gate,
) -> Copied {
    let inputs = match plan(compactor, segments, gate).await {
        Ok(inputs) => Arc::<[Input]>::from(inputs),
        Err(error) => return Copied::nothing(error),
    };
    if !is_worth_two(compactor, segments) {
        return copy_some(compactor, inputs.iter(), terms, gate).await;
    }
    match start_helper(compactor, &inputs, terms, gate) {
        Some(helper) => {
            let copied = copy_some(compactor, inputs.iter().step_by(2), terms, gate).await;
            copied.join(poll_fn(|cx| helper.poll(cx)).await)
        }
        None => copy_some(compactor, inputs.iter(), terms, gate).await,
    }
}

/// Whether nothing limits the rate, and each thread would fill a segment.
fn is_worth_two(compactor: &Compactor, inputs: &[Arc<Segment>]) -> bool {
    let live_bytes: u64 = inputs.iter().map(|input| input.live_bytes()).sum();
    inputs.len() > 1 && compactor.is_unlimited() && live_bytes >= 2 * compactor.settings.segment_bytes
}

async fn copy_some(compactor: &Compactor, inputs: impl Iterator<Item = &Input>, terms: Terms, gate: &Gate) -> Copied {
    let mut rewrite = Rewrite::new(compactor, terms);
    let mut result = Ok(());
    for input in inputs {
        result = rewrite.copy(input, gate).await;
        if result.is_err() && !seeded_bug::is(SeededBug::InputErrorIsEnd) {
            break;
        }
    }
    if result.is_ok() || seeded_bug::is(SeededBug::InputErrorIsEnd) {
        result = rewrite.finish_output().await;
    }
    let Rewrite { finished, open, report, .. } = rewrite;
    Copied { finished, unfinished: open.iter().map(crate::compaction::output::Output::id).collect(), report, result }
}

/// Starts the second thread, for every other one of `inputs`; `None` where there is none to be had.
fn start_helper(
    compactor: &Arc<Compactor>,
    inputs: &Arc<[Input]>,
    terms: Terms,
    gate: &Gate,
) -> Option<Promise<Copied>> {
    let (compactor_too, inputs, gate) = (Arc::clone(compactor), Arc::clone(inputs), gate.of_the_helper());
    let task = async move { copy_some(&compactor_too, inputs.iter().skip(1).step_by(2), terms, &gate).await };
    // Of one that panicked, the outputs are leftovers for the next open.
    let error = Error::new(ErrorKind::Poisoned, "compact: the copying thread ended early");
    spawn_helper(compactor, task, Copied::nothing(JobError::Failed(error)))
}

/// Runs `task` on a thread of its own, and promises what comes of it, or `lost` if it panics; `None` where there is no
/// thread to be had.
pub(in crate::compaction) fn spawn_helper<T: Send + 'static>(
    compactor: &Compactor,
    task: impl Future<Output = T> + Send + 'static,
    lost: T,
) -> Option<Promise<T>> {
    let promise = Promise::new();
    let mut answer = Answer { promise: promise.clone(), lost: Some(lost) };
    let task = Box::pin(async move {
        let result = task.await;
        answer.lost = None;
        answer.promise.fulfil(result);
    });
    // As its parent: a thread inherits the priority it is started with.
    compactor.parts.io.spawn("ringcask-copy", Priority::Foreground, task).ok()?;
    Some(promise)
}

/// Answers for a helper that panicked.
struct Answer<T> {
    promise: Promise<T>,
    lost: Option<T>,
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            self.promise.fulfil(lost);
        }
    }
}
