//! The second thread of a job.
//!
//! With small values a job is limited by the processor: every record is verified, looked up, placed and repointed.
//! Where the job has no rate limit and enough to do, a second thread copies every other input to its own outputs,
//! and later repoints every other output. It has the priority of the maintenance thread and ends with the job.
//!
//! Only [`run`](super::run) calls this module. Without it, the job would call [`copying::copy`] with all inputs, and
//! [`Repointing::repoint_to`] for every output.

use std::future::poll_fn;
use std::sync::Arc;

use super::context::JobContext;
use super::copying::{self, CopyOutcome};
use super::repointing::Repointing;
use crate::compaction::control::Gate;
use crate::compaction::error::JobError;
use crate::compaction::sparse::Input;
use crate::error::{Error, ErrorKind};
use crate::io::Priority;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::promise::Promise;

/// Copies what must be kept of `inputs`, on one thread or two.
pub(super) async fn copy_all(context: &Arc<JobContext>, inputs: Vec<Input>, gate: &Gate) -> CopyOutcome {
    let inputs = Arc::<[Input]>::from(inputs);
    if !is_worth_two(context, &inputs) {
        return copying::copy(context, inputs.iter(), gate).await;
    }
    match start_helper(context, &inputs, gate) {
        Some(helper) => {
            let copied = copying::copy(context, inputs.iter().step_by(2), gate).await;
            join(copied, poll_fn(|cx| helper.poll(cx)).await)
        }
        None => copying::copy(context, inputs.iter(), gate).await,
    }
}

/// Whether the job has no rate limit and each thread would fill a segment.
fn is_worth_two(context: &JobContext, inputs: &[Input]) -> bool {
    let live_bytes: u64 = inputs.iter().map(|input| input.segment.live_bytes()).sum();
    inputs.len() > 1 && context.throttle.is_unlimited() && live_bytes >= 2 * context.segment_bytes
}

/// Starts the second thread on every other one of `inputs`; `None` if no thread could be started.
fn start_helper(context: &Arc<JobContext>, inputs: &Arc<[Input]>, gate: &Gate) -> Option<Promise<CopyOutcome>> {
    let (helper_context, inputs, gate) = (Arc::clone(context), Arc::clone(inputs), gate.for_helper());
    let task = async move { copying::copy(&helper_context, inputs.iter().skip(1).step_by(2), &gate).await };
    // The next open removes the outputs of a thread that panicked.
    let error = Error::new(ErrorKind::Poisoned, "compact: the copying thread ended early");
    spawn_helper(context, task, CopyOutcome::failed(JobError::Failed(error)))
}

/// The outcome of both threads. Of two errors, a fatal one counts.
fn join(mut one: CopyOutcome, other: CopyOutcome) -> CopyOutcome {
    one.finished.extend(other.finished);
    one.unfinished.extend(other.unfinished);
    one.report.add(&other.report);
    one.result = match (one.result, other.result) {
        (Err(JobError::Fatal(error)), _) | (_, Err(JobError::Fatal(error))) => Err(JobError::Fatal(error)),
        (Err(error), _) => Err(error),
        (Ok(()), other) => other,
    };
    one
}

/// Repoints the keys of all outputs, on one thread or two.
pub(super) async fn repoint_all(context: &Arc<JobContext>, repointing: Repointing) {
    let (repointing, next) = (Arc::new(repointing), Arc::new(AtomicUsize::new(0)));
    let helper = (context.throttle.is_unlimited() && repointing.outputs.len() > 1).then(|| {
        let (helper_context, repointing, next) = (Arc::clone(context), Arc::clone(&repointing), Arc::clone(&next));
        let task = async move {
            repoint_from(&helper_context, &repointing, &next);
            true
        };
        spawn_helper(context, task, false)
    });
    repoint_from(context, &repointing, &next);
    let Some(Some(helper)) = helper else { return };
    if !poll_fn(|cx| helper.poll(cx)).await {
        // The second thread panicked somewhere in the middle.
        repoint_from(context, &repointing, &AtomicUsize::new(0));
    }
}

/// Takes outputs from `next` on until none is left, and repoints their keys.
fn repoint_from(context: &JobContext, repointing: &Repointing, next: &AtomicUsize) {
    while let Some((output, hint)) = repointing.outputs.get(next.fetch_add(1, Ordering::Relaxed)) {
        repointing.repoint_to(output, hint, &context.parts.keydir);
    }
}

/// Runs `task` on a new thread and promises its result, or `lost` if it panics; `None` if no thread could be started.
fn spawn_helper<T: Send + 'static>(
    context: &JobContext,
    task: impl Future<Output = T> + Send + 'static,
    lost: T,
) -> Option<Promise<T>> {
    let promise = Promise::new();
    let mut answer = HelperAnswer { promise: promise.clone(), lost: Some(lost) };
    let task = Box::pin(async move {
        let result = task.await;
        answer.lost = None;
        answer.promise.fulfil(result);
    });
    // `Foreground` changes nothing: the thread inherits the background priority of its parent.
    context.parts.io.spawn("ringcask-copy", Priority::Foreground, task).ok()?;
    Some(promise)
}

/// Answers for a task that panicked.
struct HelperAnswer<T> {
    promise: Promise<T>,
    lost: Option<T>,
}

impl<T> Drop for HelperAnswer<T> {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            self.promise.fulfil(lost);
        }
    }
}
