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
use crate::error::{Outcome, Result};
use crate::format::{FOOTER_LEN, RecordKind, SEGMENT_HEADER_LEN, WATERMARK_LEN};
use crate::io::util::to_usize;
use crate::options::Durability;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;
use crate::sync::atomic::Ordering;
use crate::sync::wake;

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
        let replaced;
        if durability == Durability::Buffered
            && let [member] = op.members()
        {
            self.keydir.prefetch_entry(member.key(&op.bytes));
        }
        let mut state = self.lock();
        match &state.status {
            LogStatus::Open => {}
            LogStatus::Closing => return Poll::Ready(Err(closed())),
            LogStatus::Ended(error) => return Poll::Ready(Err(error.clone().with_outcome(Outcome::NotApplied))),
        }
        if must_exist {
            match self.exists(&state, op) {
                Some(true) => {}
                Some(false) => {
                    let absent = self.absent(&mut state, op, durability, cx);
                    self.notify_if_due(state);
                    return Poll::Ready(Ok(absent));
                }
                None => {
                    replaced = state.resolve_waiters.wait(&mut wait.resolve, (), cx.waker());
                    self.notify_if_due(state);
                    drop(replaced);
                    return Poll::Pending;
                }
            }
        }
        if let Err(wanted) = self.fits(&state, op, wait) {
            let poll;
            (poll, replaced) = state.wait_for_admission(wanted, wait, cx);
            self.notify_if_due(state);
            drop(replaced);
            return poll;
        }
        let accepted = self.stage(&mut state, op, durability, cx);
        let left = wait.has_waited().then(|| state.forget(wait, self.io.now()));
        self.notify_if_due(state);
        drop(left);
        Poll::Ready(Ok(accepted))
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
    fn absent(&self, state: &mut LogState, op: &Prepared, durability: Durability, cx: &Context<'_>) -> Accepted {
        let Some(member) = op.members().first() else { return Accepted::Absent };
        let newest_delete = state.last_delete[self.bucket(member.key(&op.bytes))];
        if durability == Durability::Buffered || newest_delete <= self.durable_seq() {
            return Accepted::Absent;
        }
        state.sync_wanted = true;
        Accepted::AbsentOnce(state.await_group(cx.waker()))
    }

    pub(super) fn bucket(&self, key: &[u8]) -> usize {
        to_usize(self.keydir.hash(key) % UNRESOLVED_BUCKETS as u64)
    }

    /// Whether `op` may be staged now.
    fn fits(&self, state: &LogState, op: &Prepared, wait: &OfferWait) -> std::result::Result<(), SpaceWanted> {
        let len = op.log_len();
        let wanted = SpaceWanted { bytes: len, delete_bytes: if op.only_deletes() { len } else { 0 } };
        if !state.admission.has_turn(&wait.admission) {
            return Err(wanted);
        }
        let taken = state.used_bytes() + state.admission.bytes_kept_from(&wait.admission);
        if taken > 0 && taken + len > self.limits.staging_bytes {
            return Err(wanted);
        }
        let Some(point) = &state.append_point else { return Err(wanted) };
        let end = point.next_offset + WATERMARK_LEN as u64 + len + FOOTER_LEN as u64;
        let reserve = if wanted.delete_bytes == 0 { self.limits.reserve_bytes } else { 0 };
        let is_fresh = point.next_offset == SEGMENT_HEADER_LEN as u64;
        if (end > self.limits.segment_bytes && !is_fresh) || end.saturating_add(reserve) > point.preallocated_end {
            return Err(wanted);
        }
        Ok(())
    }

    fn stage(&self, state: &mut LogState, op: &Prepared, durability: Durability, cx: &Context<'_>) -> Accepted {
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
        Accepted::Waiting(Ticket::new(group, wait, cx.waker(), last_seq))
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
            if wakers.is_empty() {
                self.notify_if_due(state);
            } else {
                // The task must learn how long space is kept for them.
                self.notify(state);
            }
            drop(left);
            wake::wake_all(wakers);
        }
    }
}

impl LogState {
    /// Removes an offered write from the lists it waits in. The caller drops the wakers outside the lock.
    fn forget(&mut self, wait: &mut OfferWait, now: Duration) -> [Option<Waker>; 2] {
        [self.admission.leave(&mut wait.admission, now), self.resolve_waiters.leave(&mut wait.resolve)]
    }

    /// Registers an offered write that found no space, or refuses it. Also returns the waker that it replaces.
    fn wait_for_admission(
        &mut self,
        wanted: SpaceWanted,
        wait: &mut OfferWait,
        cx: &Context<'_>,
    ) -> (Poll<Result<Accepted>>, Option<Waker>) {
        if let (Some(since), Some((attempt, whom, error))) = (wait.since_attempt, &self.admission.refusal)
            && *attempt > since
            && (*whom == Refused::Everybody || wanted.delete_bytes == 0)
        {
            return (Poll::Ready(Err(error.clone())), None);
        }
        wait.since_attempt = Some(self.admission.attempt);
        self.admission.wanted = Some(match self.admission.wanted {
            Some(other) => SpaceWanted {
                bytes: other.bytes.max(wanted.bytes),
                delete_bytes: other.delete_bytes.max(wanted.delete_bytes),
            },
            None => wanted,
        });
        (Poll::Pending, self.admission.wait(&mut wait.admission, wanted.bytes, cx.waker()))
    }
}
