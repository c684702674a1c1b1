//! ACCEPT

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Accepted, Log, OfferWait, Refused, SpaceWanted, State, Status, UNRESOLVED_BUCKETS, closed};
use crate::commit::group::{Ticket, WaitFor};
use crate::commit::prepared::{Member, Prepared};
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
    /// Offers a write. `Pending` means that it was *not* accepted: there is no room yet, or (for a delete) an earlier
    /// write of the key is under way; `cx` is woken to offer it again.
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
            self.keydir.ask_for_entry(member.key(&op.bytes));
        }
        let mut state = self.lock();
        match &state.status {
            Status::Open => {}
            Status::Closing => return Poll::Ready(Err(closed())),
            Status::Ended(error) => return Poll::Ready(Err(error.clone().with_outcome(Outcome::NotApplied))),
        }
        if must_exist {
            match self.exists(&state, op) {
                Some(true) => {}
                Some(false) => {
                    let absent = self.absent(&mut state, op, durability, cx);
                    self.ring_if_due(state);
                    return Poll::Ready(Ok(absent));
                }
                None => {
                    replaced = state.resolve_waiters.wait(&mut wait.resolve, (), cx.waker());
                    self.ring_if_due(state);
                    drop(replaced);
                    return Poll::Pending;
                }
            }
        }
        if let Err(wanted) = self.fits(&state, op, wait) {
            let poll;
            (poll, replaced) = state.wait_for_room(wanted, wait, cx);
            self.ring_if_due(state);
            drop(replaced);
            return poll;
        }
        let accepted = self.stage(&mut state, op, durability, cx);
        let left = wait.has_waited().then(|| state.forget(wait, self.io.now()));
        self.ring_if_due(state);
        drop(left);
        Poll::Ready(Ok(accepted))
    }

    /// Whether the key of the only member of `op` exists; `None` while that is being decided.
    fn exists(&self, state: &State, op: &Prepared) -> Option<bool> {
        let Some(member) = op.members().first() else { return Some(false) };
        let key = member.key(&op.bytes);
        if state.last_unresolved[self.bucket(key)] > self.resolved_seq.load(Ordering::Acquire) {
            return None;
        }
        Some(self.keydir.get_ungated(key).is_some())
    }

    /// The answer to a delete that finds nothing: at once, unless the absence rests on a delete that a crash could still
    /// take back and the caller has asked for more.
    fn absent(&self, state: &mut State, op: &Prepared, durability: Durability, cx: &Context<'_>) -> Accepted {
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
    fn fits(&self, state: &State, op: &Prepared, wait: &OfferWait) -> std::result::Result<(), SpaceWanted> {
        let len = op.log_len();
        let wanted = SpaceWanted { bytes: len, delete_bytes: if op.only_deletes() { len } else { 0 } };
        if !state.room.has_turn(&wait.room) {
            return Err(wanted);
        }
        let taken = state.used_bytes() + state.room.kept_from(&wait.room);
        if taken > 0 && taken + len > self.limits.staging_bytes {
            return Err(wanted);
        }
        let Some(place) = &state.place else { return Err(wanted) };
        let end = place.next_offset + WATERMARK_LEN as u64 + len + FOOTER_LEN as u64;
        let reserve = if wanted.delete_bytes == 0 { self.limits.reserve_bytes } else { 0 };
        let is_fresh = place.next_offset == SEGMENT_HEADER_LEN as u64;
        if (end > self.limits.segment_bytes && !is_fresh) || end.saturating_add(reserve) > place.claimed_end {
            return Err(wanted);
        }
        Ok(())
    }

    fn stage(&self, state: &mut State, op: &Prepared, durability: Durability, cx: &Context<'_>) -> Accepted {
        // `fits` has seen the place.
        let State { place: Some(place), stage, .. } = state else { return Accepted::Absent };
        let first_seq = state.next_seq;
        let (position, offset) = stage.push(place, op, first_seq, self.durable_offset.load(Ordering::Relaxed));
        state.next_seq += op.members().len() as u64;
        let last_seq = state.next_seq - 1;
        let segment = Arc::clone(&place.segment);
        match op.is_batch() {
            true => state.counters.batches += 1,
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

    /// Publishes a `Buffered` write, under the log's lock.
    fn publish_at_once(
        &self,
        state: &mut State,
        op: &Prepared,
        segment: &Arc<Segment>,
        (position, offset): (usize, u64),
        first_seq: u64,
    ) {
        let of = |(member, seq): (&Member, u64)| {
            let key = member.key(&op.bytes);
            (key, Publication::new(member, position, offset, seq, PublishWhen::SweepOnly))
        };
        let members = || op.members().iter().zip(first_seq..).map(of);
        if op.is_batch() {
            let all: Vec<_> = members().collect();
            self.keydir.atomically(|| {
                let records = all.iter().map(|(key, publication)| (*key, publication));
                publish_many(&self.keydir, &self.registry, segment, records);
                self.bury_at_once(state, all.iter().copied());
            });
        } else {
            for (key, publication) in members() {
                publish(&self.keydir, &self.registry, segment, key, &publication);
            }
            self.bury_at_once(state, members());
        }
    }

    /// Removes the tombstone entries of deletes that were published, but for those of keys whose older writes may still
    /// be published: they stay until then.
    fn bury_at_once<'a>(&self, state: &mut State, published: impl Iterator<Item = (&'a [u8], Publication)>) {
        let resolved = self.resolved_seq.load(Ordering::Acquire);
        for (key, publication) in published.filter(|(_, publication)| is_delete(publication)) {
            if state.last_unresolved[self.bucket(key)] > resolved {
                state.stage.publish_later(publication);
            } else {
                self.keydir.sweep(key, publication.seq);
            }
        }
    }

    /// Forgets what an offered write has waited for: it is refused, or given up.
    pub(crate) fn withdraw(&self, wait: &mut OfferWait) {
        if wait.has_waited() {
            let now = self.io.now();
            let mut state = self.lock();
            let left = state.forget(wait, now);
            // What was kept for a write that was given up is somebody else's now.
            let is_offered = !seeded_bug::is(SeededBug::RoomNotOffered);
            let wakers = if is_offered { self.call_waiters(&mut state) } else { Vec::new() };
            if wakers.is_empty() {
                self.ring_if_due(state);
            } else {
                // The task must know until when to be patient with them.
                self.ring(state);
            }
            drop(left);
            wake::wake_all(wakers);
        }
    }
}

impl State {
    /// Ends the waiting of an offered write. The wakers are to be dropped outside the lock.
    fn forget(&mut self, wait: &mut OfferWait, now: Duration) -> [Option<Waker>; 2] {
        [self.room.leave(&mut wait.room, now), self.resolve_waiters.leave(&mut wait.resolve)]
    }

    /// The waker comes back that is replaced.
    fn wait_for_room(
        &mut self,
        wanted: SpaceWanted,
        wait: &mut OfferWait,
        cx: &Context<'_>,
    ) -> (Poll<Result<Accepted>>, Option<Waker>) {
        if let (Some(since), Some((attempt, whom, error))) = (wait.since_attempt, &self.room.refusal)
            && *attempt > since
            && (*whom == Refused::Everybody || wanted.delete_bytes == 0)
        {
            return (Poll::Ready(Err(error.clone())), None);
        }
        wait.since_attempt = Some(self.room.attempt);
        self.room.wanted = Some(match self.room.wanted {
            Some(other) => SpaceWanted {
                bytes: other.bytes.max(wanted.bytes),
                delete_bytes: other.delete_bytes.max(wanted.delete_bytes),
            },
            None => wanted,
        });
        (Poll::Pending, self.room.wait(&mut wait.room, wanted.bytes, cx.waker()))
    }
}
