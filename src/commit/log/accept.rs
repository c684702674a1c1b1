//! Acceptance: the one step of a write that happens under the log's lock.
//!
//! [`Log::accept`] checks that the store is open, decides for a delete whether the key exists, checks that there is
//! space, and stages the record: sequence number, position, copy. A `Buffered` write is published to the keydir in
//! the same step and is done. Any other write returns a [`Ticket`] for its commit group.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Accepted, Log, LogState, LogStatus, OfferWait, Refused, SpaceWanted, UNRESOLVED_BUCKETS, closed};
use crate::commit::group::{Ticket, WaitFor};
use crate::commit::prepared::{Prepared, PreparedRecord};
use crate::commit::publish::{publish, publish_many};
use crate::commit::stage::{Publication, PublishWhen, is_delete};
use crate::error::{Error, Outcome, Result};
use crate::format::{FOOTER_LEN, RecordKind, SEGMENT_HEADER_LEN, WATERMARK_LEN};
use crate::io::util::to_usize;
use crate::options::Durability;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;
use crate::sync::atomic::Ordering;
use crate::sync::wake;

/// Why a write cannot be accepted now.
pub(super) enum Blocked {
    /// A delete waits for an earlier write of its key.
    Unresolved,
    /// Earlier writers wait, or staged bytes have to be written first.
    Turn(SpaceWanted),
    /// The active segment lacks disk space, or there is none.
    Disk(SpaceWanted),
}

impl SpaceWanted {
    fn by(op: &Prepared) -> Self {
        let bytes = op.log_len();
        Self { bytes, delete_bytes: if op.only_deletes() { bytes } else { 0 } }
    }
}

impl Log {
    /// Offers a write. `Pending` means that it was *not* accepted: there is no space yet, or a delete waits for an
    /// earlier write of its key. The waker of `cx` is woken when the write should be offered again.
    pub(crate) fn accept(
        &self,
        op: &Prepared,
        durability: Durability,
        must_exist: bool,
        wait: &mut OfferWait,
        cx: &Context<'_>,
    ) -> Poll<Result<Accepted>> {
        if durability == Durability::Buffered
            && let [member] = op.members()
        {
            self.keydir.prefetch_entry(member.key(&op.bytes));
        }
        let mut state = self.lock();
        if let Err(error) = state.check_open() {
            return Poll::Ready(Err(error));
        }
        match self.offer(&mut state, op, durability, must_exist, wait, cx.waker()) {
            Ok(accepted) => {
                // Space kept for a delete that staged nothing goes to the next writers: see `withdraw`.
                let is_staged = matches!(accepted, Accepted::Done(_) | Accepted::Waiting(_));
                let left = (wait.has_waited() && is_staged).then(|| state.forget(wait, self.io.now()));
                self.notify_if_due(state);
                drop(left);
                Poll::Ready(Ok(accepted))
            }
            Err(Blocked::Unresolved) => {
                let replaced = state.resolve_waiters.wait(&mut wait.resolve, (), cx.waker());
                self.notify_if_due(state);
                drop(replaced);
                Poll::Pending
            }
            Err(Blocked::Turn(wanted) | Blocked::Disk(wanted)) => {
                let (poll, replaced) = state.wait_for_admission(wanted, wait, cx);
                self.notify_if_due(state);
                drop(replaced);
                poll
            }
        }
    }

    /// Accepts `op` if it can be accepted now. `waker` is registered with its group.
    #[inline]
    pub(super) fn offer(
        &self,
        state: &mut LogState,
        op: &Prepared,
        durability: Durability,
        must_exist: bool,
        wait: &OfferWait,
        waker: &Waker,
    ) -> std::result::Result<Accepted, Blocked> {
        if must_exist {
            // An earlier queued write may decide whether the key exists.
            if !state.queue.is_empty() && !state.admission.has_turn(&wait.admission) {
                return Err(Blocked::Turn(SpaceWanted::by(op)));
            }
            match self.exists(state, op) {
                Some(true) => {}
                Some(false) => return Ok(self.absent(state, op, durability, waker)),
                None => return Err(Blocked::Unresolved),
            }
        }
        self.fits(state, op, wait)?;
        Ok(self.stage(state, op, durability, waker))
    }

    /// Whether the key of a delete exists; `None` while an earlier write of the key is unresolved.
    fn exists(&self, state: &LogState, op: &Prepared) -> Option<bool> {
        let Some(member) = op.members().first() else { return Some(false) };
        let key = member.key(&op.bytes);
        if state.last_unresolved[self.bucket(key)] > self.resolved_seq.load(Ordering::Acquire) {
            return None;
        }
        Some(self.keydir.get_ungated(key).is_some())
    }

    /// The answer to a delete of an absent key. It is immediate, unless the caller asked for more than `Buffered` and
    /// the delete that removed the key could still be lost in a crash.
    fn absent(&self, state: &mut LogState, op: &Prepared, durability: Durability, waker: &Waker) -> Accepted {
        let Some(member) = op.members().first() else { return Accepted::Absent };
        let newest_delete = state.last_delete[self.bucket(member.key(&op.bytes))];
        if durability == Durability::Buffered || newest_delete <= self.durable_seq() {
            return Accepted::Absent;
        }
        state.sync_wanted = true;
        Accepted::AbsentOnce(state.await_group(waker))
    }

    pub(super) fn bucket(&self, key: &[u8]) -> usize {
        to_usize(self.keydir.hash(key) % UNRESOLVED_BUCKETS as u64)
    }

    /// Whether `op` may be staged now.
    fn fits(&self, state: &LogState, op: &Prepared, wait: &OfferWait) -> std::result::Result<(), Blocked> {
        let wanted = SpaceWanted::by(op);
        let len = wanted.bytes;
        if !state.admission.has_turn(&wait.admission) {
            return Err(Blocked::Turn(wanted));
        }
        let taken = state.used_bytes() + state.admission.bytes_kept_from(&wait.admission);
        if taken > 0 && taken + len > self.limits.staging_bytes {
            return Err(Blocked::Turn(wanted));
        }
        let Some(point) = &state.append_point else { return Err(Blocked::Disk(wanted)) };
        let end = point.next_offset + WATERMARK_LEN as u64 + len + FOOTER_LEN as u64;
        let reserve = if wanted.delete_bytes == 0 { self.limits.reserve_bytes } else { 0 };
        let is_fresh = point.next_offset == SEGMENT_HEADER_LEN as u64;
        if (end > self.limits.segment_bytes && !is_fresh) || end.saturating_add(reserve) > point.preallocated_end {
            return Err(Blocked::Disk(wanted));
        }
        Ok(())
    }

    fn stage(&self, state: &mut LogState, op: &Prepared, durability: Durability, waker: &Waker) -> Accepted {
        // `fits` has checked that there is an append point.
        let LogState { append_point: Some(point), stage, .. } = state else { return Accepted::Absent };
        let first_seq = state.next_seq;
        let (position, offset) = stage.push(point, op, first_seq, self.durable_offset.load(Ordering::Relaxed));
        state.next_seq += op.members().len() as u64;
        let last_seq = state.next_seq - 1;
        let segment = Arc::clone(&point.segment);
        match op.is_batch() {
            true => {
                state.counters.batches += 1;
                state.counters.batch_operations += op.members().len() as u64;
            }
            false if op.only_deletes() => state.counters.deletes += 1,
            false => state.counters.puts += 1,
        }
        if state.staged_since.is_none() {
            state.staged_since = Some(self.io.now());
        }
        for (member, seq) in op.members().iter().zip(first_seq..) {
            if member.kind == RecordKind::Tombstone {
                let bucket = self.bucket(member.key(&op.bytes));
                state.last_delete[bucket] = seq;
            }
        }
        if durability == Durability::Buffered {
            state.stage.has_buffered = true;
            self.publish_at_once(state, op, &segment, (position, offset), first_seq);
            return Accepted::Done(last_seq);
        }
        let (wait, when) = match durability {
            Durability::Written => (WaitFor::Written, PublishWhen::Written),
            _ => (WaitFor::Resolved, PublishWhen::Resolved),
        };
        for (member, seq) in op.members().iter().zip(first_seq..) {
            let bucket = self.bucket(member.key(&op.bytes));
            state.last_unresolved[bucket] = seq;
            state.stage.publish_later(Publication::new(member, position, offset, seq, when));
        }
        match wait {
            WaitFor::Written => state.stage.awaits_written = true,
            WaitFor::Resolved => state.stage.sync_waiters += 1,
        }
        let group = Arc::clone(&state.stage.group);
        Accepted::Waiting(Ticket::new(group, wait, waker, last_seq))
    }

    /// Publishes a `Buffered` write under the log's lock.
    fn publish_at_once(
        &self,
        state: &mut LogState,
        op: &Prepared,
        segment: &Arc<Segment>,
        (position, offset): (usize, u64),
        first_seq: u64,
    ) {
        let of = |(member, seq): (&PreparedRecord, u64)| {
            let key = member.key(&op.bytes);
            (key, Publication::new(member, position, offset, seq, PublishWhen::SweepOnly))
        };
        let members = || op.members().iter().zip(first_seq..).map(of);
        if op.is_batch() {
            let all: Vec<_> = members().collect();
            self.keydir.atomically(|| {
                let records = all.iter().map(|(key, publication)| (*key, publication));
                publish_many(&self.keydir, &self.segments, segment, records);
                self.bury_at_once(state, all.iter().copied());
            });
        } else {
            for (key, publication) in members() {
                publish(&self.keydir, &self.segments, segment, key, &publication);
            }
            self.bury_at_once(state, members());
        }
    }

    /// Removes the tombstone entries that published deletes left in the keydir. An entry stays while an older write
    /// of its key may still be published.
    fn bury_at_once<'a>(&self, state: &mut LogState, published: impl Iterator<Item = (&'a [u8], Publication)>) {
        let resolved = self.resolved_seq.load(Ordering::Acquire);
        for (key, publication) in published.filter(|(_, publication)| is_delete(publication)) {
            if state.last_unresolved[self.bucket(key)] > resolved {
                state.stage.publish_later(publication);
            } else {
                self.keydir.sweep(key, publication.seq);
            }
        }
    }

    /// Withdraws an offered write that was refused or given up.
    pub(crate) fn withdraw(&self, wait: &mut OfferWait) {
        if wait.has_waited() {
            let now = self.io.now();
            let mut state = self.lock();
            let left = state.forget(wait, now);
            // Space that was kept for a withdrawn write goes to the next writers.
            let is_offered = !seeded_bug::is(SeededBug::RoomNotOffered);
            let wakers = if is_offered { self.admit_waiters(&mut state) } else { Vec::new() };
            if wakers.is_empty() && !state.has_queued() {
                self.notify_if_due(state);
            } else {
                // The task must learn how long space is kept for them, and that a queued write may fit now.
                self.notify(state);
            }
            drop(left);
            wake::wake_all(wakers);
        }
    }
}

impl LogState {
    /// Removes an offered write from the lists it waits in. The caller drops the wakers outside the lock.
    pub(super) fn forget(&mut self, wait: &mut OfferWait, now: Duration) -> [Option<Waker>; 2] {
        [self.admission.leave(&mut wait.admission, now), self.resolve_waiters.leave(&mut wait.resolve)]
    }

    /// The error for new writes, unless the log is open.
    pub(super) fn check_open(&self) -> Result<()> {
        match &self.status {
            LogStatus::Open => Ok(()),
            LogStatus::Closing => Err(closed()),
            LogStatus::Ended(error) => Err(error.clone().with_outcome(Outcome::NotApplied)),
        }
    }

    /// The error for a write that has waited for an attempt to make space, if the attempt failed for it.
    pub(super) fn refusal(&self, wanted: SpaceWanted, wait: &OfferWait) -> Option<Error> {
        let (since, (attempt, whom, error)) = (wait.since_attempt?, self.admission.refusal.as_ref()?);
        let concerns_it = *whom == Refused::Everybody || wanted.delete_bytes == 0;
        (*attempt > since && concerns_it).then(|| error.clone())
    }

    /// Asks the commit task to make space.
    pub(super) fn want_space(&mut self, wanted: SpaceWanted, wait: &mut OfferWait) {
        wait.since_attempt = Some(self.admission.attempt);
        self.admission.wanted = Some(match self.admission.wanted {
            Some(other) => SpaceWanted {
                bytes: other.bytes.max(wanted.bytes),
                delete_bytes: other.delete_bytes.max(wanted.delete_bytes),
            },
            None => wanted,
        });
    }

    /// Registers an offered write that found no space, or refuses it. Also returns the waker that it replaces.
    fn wait_for_admission(
        &mut self,
        wanted: SpaceWanted,
        wait: &mut OfferWait,
        cx: &Context<'_>,
    ) -> (Poll<Result<Accepted>>, Option<Waker>) {
        if let Some(error) = self.refusal(wanted, wait) {
            return (Poll::Ready(Err(error)), None);
        }
        self.want_space(wanted, wait);
        (Poll::Pending, self.admission.wait(&mut wait.admission, wanted.bytes, cx.waker()))
    }
}
