//! The commit task's side of the log: see what is wanted, take the staged group, report progress.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::queue::Answered;
use super::submit::PORTION;
use super::{Demand, Log, LogState, LogStatus, Refused, TaskView};
use crate::commit::group::Phase;
use crate::commit::stage::{AppendPoint, Run, Stage, Taken};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::format::Watermark;
use crate::seeded_bug::{self, SeededBug};
use crate::sync::atomic::Ordering;
use crate::sync::wake;
use crate::trace;

impl Log {
    /// Ready if a caller has notified the task since this was last ready.
    pub(in crate::commit) fn poll_notified(&self, cx: &Context<'_>) -> Poll<()> {
        if self.notifier.is_set.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.notifier.waker.register(cx.waker());
        if seeded_bug::is(SeededBug::BellNotHeard) {
            return Poll::Pending;
        }
        if self.notifier.is_set.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What the task should do. From now on callers notify it of anything new. If something is staged, the task wakes
    /// up by itself in time for the flush interval.
    pub(in crate::commit) fn demand(&self, sync_in_flight: bool, delay_writers: u32) -> Demand {
        loop {
            let now = self.io.now();
            let mut state = self.lock();
            let mut wakers = Vec::new();
            if state.admission.kept_until().is_some_and(|end| now >= end) {
                state.admission.release_kept();
                wakers = self.admit_waiters(&mut state);
            }
            let answered = if state.queue.is_empty() { Vec::new() } else { self.accept_queued(&mut state) };
            if !answered.is_empty() {
                wakers.append(&mut self.admit_waiters(&mut state));
            }
            // Callers get the lock between two portions of the queue.
            let demand = (answered.len() < PORTION).then(|| Self::view(&mut state, sync_in_flight, delay_writers));
            drop(state);
            answered.into_iter().for_each(Answered::deliver);
            wake::wake_all(wakers);
            if let Some(demand) = demand {
                return demand;
            }
        }
    }

    /// The log as the task sees it, which is told of every later change.
    fn view(state: &mut LogState, sync_in_flight: bool, delay_writers: u32) -> Demand {
        state.task = TaskView { sync_in_flight, timer_armed: !state.stage.is_empty(), notified: false, delay_writers };
        Demand {
            ready: state.is_ready(),
            has_staged: !state.stage.is_empty(),
            staged_since: state.staged_since,
            space: state.admission.wanted,
            closing: !matches!(state.status, LogStatus::Open),
            seal: !state.seal_wanted.is_empty(),
            look_again: state.admission.kept_until(),
            sync_waiters: state.stage.sync_waiters,
            has_queued: !state.queue.is_empty(),
        }
    }

    /// Staged writers that wait for a sync.
    pub(in crate::commit) fn sync_waiters(&self) -> u32 {
        self.lock().stage.sync_waiters
    }

    /// Takes everything staged, and the request for a sync; `None` if there is neither. With `stop_here`, nothing
    /// more can be staged until a new append point is set. After the store has ended nothing is taken: its staged
    /// writes were answered as not applied, and stay where readers look for them.
    pub(in crate::commit) fn take(&self, stop_here: bool) -> Option<Taken> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let LogStatus::Ended(_) = state.status {
            return None;
        }
        let sync_wanted = std::mem::take(&mut state.sync_wanted);
        let taken = match &state.append_point {
            Some(point) if !state.stage.is_empty() || sync_wanted => {
                let buffer = state.spare_buffer.take().unwrap_or_default();
                let stage = std::mem::replace(&mut state.stage, Stage::new(buffer));
                let mark = Watermark {
                    durable_offset: self.durable_offset.load(Ordering::Relaxed),
                    durable_seq: self.durable_seq.load(Ordering::Relaxed),
                };
                let (mut taken, run) = stage.finish(point, mark, sync_wanted);
                taken.last_seq = state.next_seq - 1;
                if let Some(run) = run {
                    state.run_bytes += run.end - run.base;
                    state.runs.push_back(run);
                }
                taken.staged_since = state.staged_since.take();
                state.unresolved.push_back(Arc::clone(&taken.group));
                Some(taken)
            }
            Some(_) => None,
            None if sync_wanted => {
                // Without an active segment there is nothing unsynced: the waiters have what they want.
                let stage = std::mem::take(&mut state.stage);
                drop(guard);
                stage.group.advance(Phase::Resolved);
                return None;
            }
            None => None,
        };
        if stop_here {
            guard.append_point = None;
        }
        taken
    }

    /// The group's bytes can be read from the file now.
    pub(in crate::commit) fn release_run(&self, taken: &Taken) {
        let (wakers, run) = {
            let mut state = self.lock();
            let is_ours = |run: &Run| run.segment == taken.segment.id && run.base == taken.base && run.end == taken.end;
            let Some(index) = state.runs.iter().position(is_ours) else { return };
            let Some(run) = state.runs.remove(index) else { return };
            state.run_bytes -= run.end - run.base;
            (self.admit_waiters(&mut state), run)
        };
        wake::give_back(run);
        wake::wake_all(wakers);
    }

    /// Returns a buffer for use by a later group.
    pub(in crate::commit) fn recycle(&self, buffer: Bytes) {
        if let Ok(mut buffer) = buffer.try_into_mut()
            && buffer.capacity() as u64 <= self.limits.staging_bytes
            && buffer.capacity() > 0
        {
            buffer.clear();
            self.lock().spare_buffer.get_or_insert(buffer);
        }
    }

    pub(in crate::commit) fn set_durable(&self, seq: u64, offset: u64) {
        let wakers: Vec<Waker> = {
            let mut state = self.lock();
            self.durable_offset.store(offset, Ordering::Relaxed);
            self.durable_seq.fetch_max(seq, Ordering::AcqRel);
            state.durable_waiters.take_if(|wanted| *wanted <= seq)
        };
        wake::wake_all(wakers);
    }

    /// Writes up to `seq` are published or have failed. The oldest unresolved group is done.
    pub(in crate::commit) fn set_resolved(&self, seq: u64) {
        let wakers = {
            let mut state = self.lock();
            self.resolved_seq.store(seq, Ordering::Release);
            state.unresolved.pop_front();
            // A queued delete may have waited for this.
            if state.has_queued() {
                self.notifier.is_set.store(true, Ordering::Release);
            }
            state.resolve_waiters.take_all()
        };
        wake::wake_all(wakers);
    }

    /// Appends go to `point` from now on.
    pub(in crate::commit) fn set_append_point(&self, point: AppendPoint) {
        let mut state = self.lock();
        self.durable_offset.store(point.next_offset, Ordering::Relaxed);
        state.append_point = Some(point);
    }

    /// Space is preallocated up to `end` in the active segment.
    pub(in crate::commit) fn set_preallocated_end(&self, end: u64) {
        if let Some(point) = &mut self.lock().append_point {
            point.preallocated_end = end;
        }
    }

    /// The next offset and the end of the preallocated space, if there is an active segment.
    pub(in crate::commit) fn append_range(&self) -> Option<(u64, u64)> {
        self.lock().append_point.as_ref().map(|point| (point.next_offset, point.preallocated_end))
    }

    /// A sequence number that no record has reached.
    pub(crate) fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// Tells the callers that asked for it how sealing the active segment went.
    pub(in crate::commit) fn answer_seal(&self, result: &Result<()>) {
        let waiting = std::mem::take(&mut self.lock().seal_wanted);
        for promise in waiting {
            promise.fulfil(result.clone());
        }
    }

    /// Lets the waiting writers try again. Those that still find no space get `refusal`.
    pub(in crate::commit) fn answer_admission(&self, refusal: Option<(Refused, Error)>) {
        let wakers = {
            let mut state = self.lock();
            state.admission.attempt += 1;
            state.admission.wanted = None;
            state.admission.refusal = refusal.map(|(whom, error)| (state.admission.attempt, whom, error));
            match &state.admission.refusal {
                Some(_) => state.admission.admit_all(),
                None => self.admit_waiters(&mut state),
            }
        };
        wake::wake_all(wakers);
    }

    /// Fails what is staged and was not taken with `error`; its sequence numbers are spent. Does nothing and returns
    /// `false` if part of it was already acknowledged.
    pub(in crate::commit) fn abandon_staged(&self, error: &Error) -> bool {
        let stage = {
            let mut state = self.lock();
            // Acknowledged writes stay where readers look for them.
            if state.stage.has_buffered {
                return false;
            }
            state.append_point = None;
            state.staged_since = None;
            let resolved = state.next_seq - 1;
            self.resolved_seq.store(resolved, Ordering::Release);
            std::mem::take(&mut state.stage)
        };
        stage.group.fail(error.clone());
        wake::give_back(stage);
        true
    }

    /// Stops the store: every waiting and every later write gets `error`. Staged records stay readable.
    pub(crate) fn end(&self, error: Error) {
        let (groups, staged, answered, wakers) = {
            let mut state = self.lock();
            if let LogStatus::Ended(_) = state.status {
                return;
            }
            state.status = LogStatus::Ended(error.clone());
            let answered = state.fail_queued(&error.clone().with_outcome(Outcome::NotApplied));
            let mut wakers = state.admission.admit_all();
            wakers.append(&mut state.resolve_waiters.take_all());
            wakers.append(&mut state.durable_waiters.take_all());
            let staged = Arc::clone(&state.stage.group);
            (std::mem::take(&mut state.unresolved), staged, answered, wakers)
        };
        if error.kind() == ErrorKind::Poisoned {
            trace::poisoned(&self.segments.path, &error);
        }
        // A write that was handed to the kernel may be found after reopening. A write that was only staged will not.
        for group in groups {
            group.fail(error.clone().with_outcome(Outcome::Unknown));
        }
        staged.fail(error.clone().with_outcome(Outcome::NotApplied));
        self.answer_seal(&Err(error));
        answered.into_iter().for_each(Answered::deliver);
        wake::wake_all(wakers);
        self.notifier.is_set.store(true, Ordering::Release);
        self.notifier.waker.wake();
    }
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;
    use crate::commit::log::{Accepted, Limits, OfferWait, Submission};
    use crate::commit::prepared::Prepared;
    use crate::io::Io;
    use crate::io::sim::{SimBackend, SimConfig};
    use crate::keydir::Keydir;
    use crate::options::Durability;
    use crate::segment::{Segment, SegmentSet};

    /// A log, not open for appends yet.
    fn log() -> (Log, AppendPoint) {
        let backend = SimBackend::new(SimConfig::default());
        let dir = backend.open_dir("/db".as_ref(), true).unwrap();
        let segments = Arc::new(SegmentSet::new(dir, "/db".into(), 8));
        let segment = Arc::new(Segment::new(1, 7, 1, 4096, None));
        let limits = Limits { segment_bytes: 1 << 20, staging_bytes: 1 << 20, reserve_bytes: 0 };
        let log = Log::new(Arc::new(backend), Arc::new(Keydir::new((1, 2), 2)), segments, limits, 1);
        (log, AppendPoint { segment, next_offset: 4096, next_ordinal: 0, preallocated_end: u64::MAX })
    }

    /// The lock is released after each portion, and the task goes on until the queue is empty.
    #[test]
    fn one_demand_accepts_any_number_of_queued_writes_in_order() {
        let (log, point) = log();
        let submit = |number: usize| {
            let op = Prepared::put(Vec::new(), &number.to_le_bytes(), b"value");
            match log.submit(op, Durability::Buffered, false) {
                Ok(Submission::Queued(promise)) => promise,
                _ => panic!("without an append point no write fits"),
            }
        };
        let promises: Vec<_> = (0..3 * PORTION + 1).map(submit).collect();
        log.set_append_point(point);
        {
            let mut state = log.lock();
            let portion = log.accept_queued(&mut state);
            assert_eq!(portion.len(), PORTION, "as many as one hold of the lock accepts");
            drop(state);
            portion.into_iter().for_each(Answered::deliver);
        }
        assert!(!log.demand(false, 0).has_queued);
        let cx = &Context::from_waker(Waker::noop());
        for (seq, promise) in (1..).zip(promises) {
            let answer = promise.poll(cx);
            assert!(
                matches!(answer, Poll::Ready(Ok(Accepted::Done(found))) if found == seq),
                "write {seq}: {answer:?}"
            );
        }
    }

    /// A failed compaction can end the store just before the commit task takes the next group. The writers of that
    /// group were told that it is never applied, so it must not be written.
    #[test]
    fn a_write_answered_as_not_applied_is_never_written() {
        let (log, point) = log();
        log.set_append_point(point);
        let cx = &Context::from_waker(Waker::noop());
        let op = Prepared::put(Vec::new(), b"key", b"value");
        let accepted = log.accept(&op, Durability::Synced, false, &mut OfferWait::default(), cx);
        let Poll::Ready(Ok(Accepted::Waiting(ticket))) = accepted else { panic!("a put is {accepted:?}") };
        log.end(Error::new(ErrorKind::Poisoned, "the MANIFEST could not be replaced"));
        let Poll::Ready(Err(error)) = ticket.poll(cx) else { panic!("the put was not answered") };
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(log.take(true).is_none() && log.take(false).is_none());
        assert!(log.append_range().is_some(), "readers still find staged records");
    }
}
