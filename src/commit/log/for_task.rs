//! What the commit task does with the log: look, take, and say how far things are.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Demand, Log, Refused, Status, TaskView};
use crate::commit::group::Phase;
use crate::commit::stage::{Place, Run, Stage, Taken};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::format::Watermark;
use crate::seeded_bug::{self, SeededBug};
use crate::sync::atomic::Ordering;
use crate::sync::wake;
use crate::trace;

impl Log {
    /// Ready when a caller rang since the last time it was.
    pub(in crate::commit) fn poll_bell(&self, cx: &Context<'_>) -> Poll<()> {
        if self.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.bell.waker.register(cx.waker());
        if seeded_bug::is(SeededBug::BellNotHeard) {
            return Poll::Pending;
        }
        if self.bell.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What is to be done; from here on callers ring again for anything new. If something is staged, the task looks
    /// again by itself in time for the flush interval.
    pub(in crate::commit) fn demand(&self, sync_in_flight: bool, linger_for: u32) -> Demand {
        let now = self.io.now();
        let mut state = self.lock();
        let mut wakers = Vec::new();
        if state.room.patience_ends().is_some_and(|end| now >= end) {
            state.room.keep_nothing();
            wakers = self.call_waiters(&mut state);
        }
        state.task = TaskView { sync_in_flight, timer_armed: !state.stage.is_empty(), rung: false, linger_for };
        let demand = Demand {
            ripe: state.is_ripe(),
            has_staged: !state.stage.is_empty(),
            staged_since: state.staged_since,
            room: state.room.wanted,
            closing: !matches!(state.status, Status::Open),
            seal: !state.seal_wanted.is_empty(),
            look_again: state.room.patience_ends(),
            sync_waiters: state.stage.sync_waiters,
        };
        drop(state);
        wake::wake_all(wakers);
        demand
    }

    /// Staged writers that wait for the disk.
    pub(in crate::commit) fn sync_waiters(&self) -> u32 {
        self.lock().stage.sync_waiters
    }

    /// Takes everything staged, and the wish for a sync. `None` if there is neither. With `stop_here`, nothing more can
    /// be staged until a new place is set. Nothing is taken once the store has ended: what was staged then was answered
    /// as not applied, and stays where readers look for it.
    pub(in crate::commit) fn take(&self, stop_here: bool) -> Option<Taken> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Status::Ended(_) = state.status {
            return None;
        }
        let sync_wanted = std::mem::take(&mut state.sync_wanted);
        let taken = match &state.place {
            Some(place) if !state.stage.is_empty() || sync_wanted => {
                let buffer = state.spare_buffer.take().unwrap_or_default();
                let stage = std::mem::replace(&mut state.stage, Stage::new(buffer));
                let mark = Watermark {
                    durable_offset: self.durable_offset.load(Ordering::Relaxed),
                    durable_seq: self.durable_seq.load(Ordering::Relaxed),
                };
                let (mut taken, run) = stage.finish(place, mark, sync_wanted);
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
                // Nothing is unsynced where there is no active segment, so whoever waits has what it wants.
                let stage = std::mem::take(&mut state.stage);
                drop(guard);
                stage.group.advance(Phase::Resolved);
                return None;
            }
            None => None,
        };
        if stop_here {
            guard.place = None;
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
            (self.call_waiters(&mut state), run)
        };
        wake::give_back(run);
        wake::wake_all(wakers);
    }

    /// Gives a buffer back for the next group.
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

    /// Writes up to `seq` are published or have failed; `group`, the oldest unresolved one, is through.
    pub(in crate::commit) fn set_resolved(&self, seq: u64) {
        let wakers = {
            let mut state = self.lock();
            self.resolved_seq.store(seq, Ordering::Release);
            state.unresolved.pop_front();
            state.resolve_waiters.take_all()
        };
        wake::wake_all(wakers);
    }

    /// Appends go to `place` from now on.
    pub(in crate::commit) fn set_place(&self, place: Place) {
        let mut state = self.lock();
        self.durable_offset.store(place.next_offset, Ordering::Relaxed);
        state.place = Some(place);
    }

    /// Space is claimed up to `end` in the active segment.
    pub(in crate::commit) fn set_claimed_end(&self, end: u64) {
        if let Some(place) = &mut self.lock().place {
            place.claimed_end = end;
        }
    }

    /// The next offset and the end of the claimed space, while there is an active segment.
    pub(in crate::commit) fn place(&self) -> Option<(u64, u64)> {
        self.lock().place.as_ref().map(|place| (place.next_offset, place.claimed_end))
    }

    /// A number that no record has reached.
    pub(crate) fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// Tells those who asked for it how the sealing of the active segment went.
    pub(in crate::commit) fn answer_seal(&self, result: &Result<()>) {
        let waiting = std::mem::take(&mut self.lock().seal_wanted);
        for promise in waiting {
            promise.fulfil(result.clone());
        }
    }

    /// Lets the writers that wait for room try again; `refusal` is the answer to those that still find none.
    pub(in crate::commit) fn answer_room(&self, refusal: Option<(Refused, Error)>) {
        let wakers = {
            let mut state = self.lock();
            state.room.attempt += 1;
            state.room.wanted = None;
            state.room.refusal = refusal.map(|(whom, error)| (state.room.attempt, whom, error));
            match &state.room.refusal {
                Some(_) => state.room.call_all(),
                None => self.call_waiters(&mut state),
            }
        };
        wake::wake_all(wakers);
    }

    /// Drops what is staged and was not taken, answering it with `error`; the numbers are spent. Returns whether
    /// nothing of it had been acknowledged.
    pub(in crate::commit) fn abandon_staged(&self, error: &Error) -> bool {
        let stage = {
            let mut state = self.lock();
            // What was acknowledged stays where readers look for it.
            if state.stage.has_buffered {
                return false;
            }
            state.place = None;
            state.staged_since = None;
            let resolved = state.next_seq - 1;
            self.resolved_seq.store(resolved, Ordering::Release);
            std::mem::take(&mut state.stage)
        };
        stage.group.fail(error.clone());
        wake::give_back(stage);
        true
    }

    /// Stops the store: every waiting and every later write gets `error`. What is staged stays readable.
    pub(crate) fn end(&self, error: Error) {
        let (groups, staged, wakers) = {
            let mut state = self.lock();
            if let Status::Ended(_) = state.status {
                return;
            }
            state.status = Status::Ended(error.clone());
            let mut wakers = state.room.call_all();
            wakers.append(&mut state.resolve_waiters.take_all());
            wakers.append(&mut state.durable_waiters.take_all());
            let staged = Arc::clone(&state.stage.group);
            (std::mem::take(&mut state.unresolved), staged, wakers)
        };
        if error.kind() == ErrorKind::Poisoned {
            trace::poisoned(&self.registry.path, &error);
        }
        // What was handed to the kernel may be found after reopening; what was only staged never will.
        for group in groups {
            group.fail(error.clone().with_outcome(Outcome::Unknown));
        }
        staged.fail(error.clone().with_outcome(Outcome::NotApplied));
        self.answer_seal(&Err(error));
        wake::wake_all(wakers);
        self.bell.rung.store(true, Ordering::Release);
        self.bell.waker.wake();
    }
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;
    use crate::commit::log::{Accepted, Limits, OfferWait};
    use crate::commit::prepared::Prepared;
    use crate::io::Io;
    use crate::io::sim::{SimConfig, SimWorld};
    use crate::keydir::Keydir;
    use crate::options::Durability;
    use crate::segment::{Segment, SegmentSet};

    /// A compaction that fails for good ends the store while the commit task may be about to take the next group, whose
    /// writers have then been told that nothing of it is ever applied.
    #[test]
    fn what_was_answered_as_not_applied_is_never_written() {
        let world = SimWorld::new(SimConfig::default());
        let dir = world.open_dir("/db".as_ref(), true).unwrap();
        let registry = Arc::new(SegmentSet::new(dir, "/db".into(), 8));
        let segment = Arc::new(Segment::new(1, 7, 1, 4096, None));
        let limits = Limits { segment_bytes: 1 << 20, staging_bytes: 1 << 20, reserve_bytes: 0 };
        let log = Log::new(Arc::new(world), Arc::new(Keydir::new((1, 2), 2)), registry, limits, 1);
        log.set_place(Place { segment, next_offset: 4096, next_ordinal: 0, claimed_end: u64::MAX });
        let cx = &Context::from_waker(Waker::noop());
        let op = Prepared::put(Vec::new(), b"key", b"value");
        let accepted = log.accept(&op, Durability::Synced, false, &mut OfferWait::default(), cx);
        let Poll::Ready(Ok(Accepted::Waiting(ticket))) = accepted else { panic!("a put is {accepted:?}") };
        log.end(Error::new(ErrorKind::Poisoned, "the MANIFEST could not be replaced"));
        let Poll::Ready(Err(error)) = ticket.poll(cx) else { panic!("the put has no answer") };
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(log.take(true).is_none() && log.take(false).is_none());
        assert!(log.place().is_some(), "what was staged is still found by readers");
    }
}
