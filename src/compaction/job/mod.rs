//! One compaction job: plan, copy, make durable, install, repoint, retire the inputs.
//!
//! [`run`] is the sequence, and this file holds the steps that change what is on disk or in the segment set. In reading
//! order: [`copying`] with [`step`], then [`repointing`]. [`helper`] decides whether a second thread takes part, and
//! [`context`] is what all of them share.

mod context;
mod copying;
mod helper;
mod repointing;
mod step;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::control::Gate;
use super::error::JobError;
use super::output::FinishedOutput;
use super::sparse;
use crate::commit::{Log, Ticket};
use crate::error::{ErrorKind, Result};
use crate::format::ManifestSegment;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Segment, segment_file_name};
use crate::stats::CompactionReport;
pub(super) use context::JobContext;
use copying::CopyOutcome;
use repointing::Repointing;

/// The segments that a job replaces.
pub(super) struct JobInputs {
    /// The segments to read, oldest first. What must be kept of them is copied.
    pub(super) rewritten: Vec<Arc<Segment>>,
    /// The segments that hold nothing to keep.
    pub(super) unread: Vec<Arc<Segment>>,
}

impl JobInputs {
    fn all(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.rewritten.iter().chain(&self.unread)
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.all().map(|segment| segment.id).collect()
    }
}

/// Replaces `inputs` by new segments. On an error, the inputs are still in the store.
pub(super) async fn run(
    context: &Arc<JobContext>,
    inputs: JobInputs,
    gate: &Gate,
) -> std::result::Result<CompactionReport, JobError> {
    let CopyOutcome { finished, unfinished, mut report, result } =
        match sparse::plan(&context.parts, &inputs.rewritten, gate).await {
            Ok(inputs) => helper::copy_all(context, inputs, gate).await,
            Err(error) => CopyOutcome::failed(error),
        };
    context.throttle.end_copying();
    let installed = match result {
        Ok(()) => install(context, &finished, &inputs, gate).await,
        Err(error) => Err(error),
    };
    unfinished.iter().for_each(|&id| context.remove_output(id));
    if let Err(error) = installed {
        // After a fatal error a crash may find either list of segments, so both sets of files stay.
        if !matches!(error, JobError::Fatal(_)) {
            finished.iter().for_each(|output| context.remove_output(output.identity.id));
        }
        return Err(error);
    }
    report.segments_read = inputs.rewritten.len() as u64;
    report.segments_dropped_unread = inputs.unread.len() as u64;
    let input_bytes: u64 = inputs.all().map(|segment| segment.written_end()).sum();
    report.bytes_freed = input_bytes.saturating_sub(finished.iter().map(|output| output.len).sum());
    take_over(context, finished, inputs).await;
    Ok(report)
}

/// Makes the outputs replace the inputs on disk.
async fn install(
    context: &JobContext,
    finished: &[FinishedOutput],
    inputs: &JobInputs,
    gate: &Gate,
) -> std::result::Result<(), JobError> {
    gate.pass().await?;
    let (log, dir) = (&context.parts.log, &context.parts.segments.dir);
    if !seeded_bug::is(SeededBug::OverwrittenByTheUndurable) {
        sync_log(log).await.map_err(|error| match error.kind() {
            ErrorKind::Closed => JobError::Stopped,
            _ => JobError::Failed(error),
        })?;
    }
    if !finished.is_empty() {
        dir.sync().map_err(|error| context.io_error("sync the directory", error))?;
    }
    let added: Vec<ManifestSegment> = finished
        .iter()
        .map(|output| ManifestSegment { id: u64::from(output.identity.id), salt: output.identity.salt })
        .collect();
    let removed = inputs.ids();
    if seeded_bug::is(SeededBug::UnlinkedWhileListed) {
        removed.iter().for_each(|&id| drop(dir.unlink(&segment_file_name(id))));
        let _ = dir.sync();
    }
    let mut manifest = context.parts.manifest.lock().await;
    let next_seq = match seeded_bug::is(SeededBug::SpentNumbersForgotten) {
        true => manifest.next_seq(),
        false => log.next_seq(),
    };
    manifest.change(&added, &removed, next_seq).await.map_err(|error| context.manifest_error(error))
}

/// Waits until every write accepted so far is on stable storage.
async fn sync_log(log: &Log) -> Result<()> {
    let mut ticket: Option<Ticket> = None;
    poll_fn(|cx| {
        if ticket.is_none() {
            ticket = match log.request_sync(cx.waker()) {
                Ok(Some(ticket)) => Some(ticket),
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            };
        }
        ticket.as_ref().map_or(Poll::Ready(Ok(())), |ticket| ticket.poll(cx))
    })
    .await
}

/// Makes the outputs replace the inputs in memory: adds them to the segment set, repoints the keys, retires the inputs.
async fn take_over(context: &Arc<JobContext>, finished: Vec<FinishedOutput>, inputs: JobInputs) {
    let segments = &context.parts.segments;
    let mut replaced = inputs.ids();
    replaced.sort_unstable();
    let retire_early = seeded_bug::is(SeededBug::InputsRetiredBeforeKeysMoved);
    inputs.rewritten.iter().filter(|_| retire_early).for_each(|input| segments.remove(Arc::clone(input)));
    let outputs = Vec::with_capacity(finished.len());
    let mut repointing = Repointing { outputs, inputs: inputs.rewritten.clone(), replaced };
    for output in finished {
        let FinishedOutput { identity, file, len, facts, hint, has_hint_file } = output;
        let segment = Segment::new(identity.id, identity.salt, identity.first_seq, len, Some(file));
        segment.set_sealed(Some(facts));
        segment.set_hint_bytes(if has_hint_file { hint.len() as u64 } else { 0 });
        let segment = Arc::new(segment);
        if seeded_bug::is(SeededBug::OutputFoundLate) {
            repointing.repoint_to(&segment, &hint, &context.parts.keydir);
        }
        // Before any key points at it.
        segments.insert(Arc::clone(&segment));
        repointing.outputs.push((segment, hint));
    }
    helper::repoint_all(context, repointing).await;
    // After the last key has left them.
    for segment in inputs.rewritten.into_iter().chain(inputs.unread) {
        segments.remove(segment);
    }
}
