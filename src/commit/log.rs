//! The log as callers see it: one mutex, behind which a write gets its sequence number, its place and its bytes copied.
//!
//! # The life of a write
//!
//! 1. The caller's thread prepares the record ([`Prepared`]), then takes the lock in [`Log::accept`]: sequence number,
//!    place, copy. A `Buffered` write is published to the keydir there and then, under the same lock, and is done.
//! 2. Otherwise the caller holds a [`Ticket`] of the commit group. The commit task takes the group, writes it, syncs if
//!    anybody asked, publishes, and wakes the waiters.
//!
//! # Invariants
//!
//! - Sequence numbers, ordinals and offsets grow together; a record is staged in the segment of [`State::place`] only.
//! - `resolved_seq` ≤ `next_seq`: writes up to it are published or failed for ever. A conditional write whose key may
//!   have an unresolved write (its bucket of `last_unresolved` says so) waits for that before it looks.
//! - Staged bytes are within `staging_bytes`, or are one write.
//! - Disk space up to `claimed_end` belongs to the segment: what is accepted cannot fail for want of space, where the
//!   file system lets space be claimed.
//! - No await, no I/O and no foreign waker's code happens under the lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;

use super::group::{Group, Phase, WaitFor};
use super::prepared::{Member, Prepared};
use super::stage::{Place, Publication, PublishWhen, Run, Stage, Taken};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::format::{FOOTER_LEN, RecordKind, WATERMARK_LEN, Watermark};
use crate::io::Io;
use crate::io::util::to_usize;
use crate::keydir::{Keydir, Location, Published};
use crate::options::Durability;
use crate::segment::{Registry, Segment};
use crate::wake;

/// A group this large is worth a write of its own while a sync is under way.
pub(super) const WRITE_BEHIND_BYTES: u64 = 256 * 1024;

/// Keys are hashed to this many buckets, each with the newest sequence number that is not published at once.
const UNRESOLVED_BUCKETS: usize = 4096;

/// Callers and the commit task meet here.
pub(crate) struct Log {
    state: Mutex<State>,
    bell: Bell,
    keydir: Arc<Keydir>,
    registry: Arc<Registry>,
    io: Arc<dyn Io>,
    limits: Limits,
    resolved_seq: AtomicU64,
    durable_seq: AtomicU64,
    /// Where the active segment is durable up to; what the watermarks carry.
    durable_offset: AtomicU64,
}

/// The options the log keeps to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) segment_bytes: u64,
    pub(crate) staging_bytes: u64,
    pub(crate) reserve_bytes: u64,
}

pub(super) struct State {
    place: Option<Place>,
    next_seq: u64,
    stage: Stage,
    /// Taken, but not yet in the kernel: readers still find it here. After a failed write it stays for ever.
    runs: VecDeque<Run>,
    run_bytes: u64,
    spare_buffer: Option<BytesMut>,
    last_unresolved: Vec<u64>,
    status: Status,
    room: Room,
    resolve_waiters: Vec<Waker>,
    durable_waiters: Vec<(u64, Waker)>,
    /// Groups that are not resolved, for whoever has to fail them all.
    unresolved: VecDeque<Arc<Group>>,
    sync_wanted: bool,
    /// When the oldest staged record came; what the flush interval counts from.
    staged_since: Option<Duration>,
    /// What the commit task is doing, as far as a caller must know to decide whether to wake it.
    task: TaskView,
    pub(super) counters: Counters,
}

#[derive(Clone, Debug)]
enum Status {
    Open,
    Closing,
    Ended(Error),
}

/// Writers that wait for room, and how the last attempt to make some went.
#[derive(Default)]
struct Room {
    waiters: Vec<Waker>,
    wanted: Option<RoomWanted>,
    attempt: u64,
    refusal: Option<(u64, Refused, Error)>,
}

/// What the commit task must make room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoomWanted {
    /// The largest write that waits, in bytes of log.
    pub(super) bytes: u64,
    /// The largest delete that waits; 0 if none does. Deletes may use the reserve.
    pub(super) delete_bytes: u64,
}

/// Whom a refusal answers, of those that still find no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Everybody,
    AllButDeletes,
}

#[derive(Clone, Copy, Debug, Default)]
struct TaskView {
    sync_in_flight: bool,
    timer_armed: bool,
    rung: bool,
    /// So many waiting writers are expected back at once that a group is not worth starting before they are there.
    linger_for: u32,
}

/// Counted under the log's lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) puts: u64,
    pub(crate) deletes: u64,
    pub(crate) batches: u64,
}

/// The commit task's doorbell.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

/// How an accepted write is waited for.
#[derive(Debug)]
pub(crate) struct Ticket {
    group: Arc<Group>,
    wait: WaitFor,
    index: usize,
    pub(crate) last_seq: u64,
}

impl Ticket {
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<()>> {
        self.group.poll(self.wait, self.index, cx)
    }
}

/// What became of an offered write.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Done, at this sequence number.
    Done(u64),
    Waiting(Ticket),
    /// A delete of a key that does not exist.
    Absent,
}

/// A writer's memory of the attempt to make room that it waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoomWait {
    since_attempt: Option<u64>,
}

/// What the commit task should do next, as far as the log knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// Staged records should be written now.
    pub(super) ripe: bool,
    pub(super) has_staged: bool,
    pub(super) staged_since: Option<Duration>,
    pub(super) room: Option<RoomWanted>,
    pub(super) closing: bool,
    /// Staged writers that wait for the disk.
    pub(super) sync_waiters: u32,
}

impl Log {
    pub(crate) fn new(
        io: Arc<dyn Io>,
        keydir: Arc<Keydir>,
        registry: Arc<Registry>,
        limits: Limits,
        next_seq: u64,
    ) -> Self {
        let durable = next_seq.saturating_sub(1);
        Self {
            state: Mutex::new(State {
                place: None,
                next_seq,
                stage: Stage::default(),
                runs: VecDeque::new(),
                run_bytes: 0,
                spare_buffer: None,
                last_unresolved: vec![0; UNRESOLVED_BUCKETS],
                status: Status::Open,
                room: Room::default(),
                resolve_waiters: Vec::new(),
                durable_waiters: Vec::new(),
                unresolved: VecDeque::new(),
                sync_wanted: false,
                staged_since: None,
                task: TaskView::default(),
                counters: Counters::default(),
            }),
            bell: Bell::default(),
            keydir,
            registry,
            io,
            limits,
            resolved_seq: AtomicU64::new(durable),
            durable_seq: AtomicU64::new(durable),
            durable_offset: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes up to this sequence number are on stable storage (or were never applied).
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq.load(Ordering::Acquire)
    }

    pub(crate) fn counters(&self) -> (Counters, u64) {
        let state = self.lock();
        (state.counters, state.stage.len() + state.run_bytes)
    }

    /// The error that stopped the store, if one did.
    pub(crate) fn ended(&self) -> Option<Error> {
        match &self.lock().status {
            Status::Ended(error) => Some(error.clone()),
            _ => None,
        }
    }

    // ---- callers -------------------------------------------------------------------------------------------------

    /// Offers a write. `Pending` means that it was *not* accepted: there is no room yet, or (for a delete) an earlier
    /// write of the key is under way; `cx` is woken to offer it again.
    pub(crate) fn accept(
        &self,
        op: &Prepared,
        durability: Durability,
        must_exist: bool,
        room: &mut RoomWait,
        cx: &Context<'_>,
    ) -> Poll<Result<Accepted>> {
        let mut state = self.lock();
        match &state.status {
            Status::Open => {}
            Status::Closing => return Poll::Ready(Err(closed())),
            Status::Ended(error) => return Poll::Ready(Err(error.clone().with_outcome(Outcome::NotApplied))),
        }
        if must_exist {
            match self.exists(&mut state, op, cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Ok(Accepted::Absent)),
                Poll::Pending => {
                    self.ring_if_due(state);
                    return Poll::Pending;
                }
            }
        }
        if let Err(wanted) = self.fits(&state, op) {
            let poll = state.wait_for_room(wanted, room, cx);
            self.ring_if_due(state);
            return poll;
        }
        let accepted = self.stage(&mut state, op, durability, cx);
        self.ring_if_due(state);
        Poll::Ready(Ok(accepted))
    }

    /// Whether the key of the only member of `op` exists; waits while that is being decided.
    fn exists(&self, state: &mut State, op: &Prepared, cx: &Context<'_>) -> Poll<bool> {
        let Some(member) = op.members().first() else { return Poll::Ready(false) };
        let key = member.key(&op.bytes);
        if state.last_unresolved[self.bucket(key)] > self.resolved_seq.load(Ordering::Acquire) {
            state.resolve_waiters.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(self.keydir.get_ungated(key).is_some())
    }

    fn bucket(&self, key: &[u8]) -> usize {
        to_usize(self.keydir.hash(key) % UNRESOLVED_BUCKETS as u64)
    }

    /// Whether `op` may be staged now.
    fn fits(&self, state: &State, op: &Prepared) -> std::result::Result<(), RoomWanted> {
        let len = op.log_len();
        let wanted = RoomWanted { bytes: len, delete_bytes: if op.only_deletes() { len } else { 0 } };
        let staged = state.stage.len() + state.run_bytes;
        if staged > 0 && staged + len > self.limits.staging_bytes {
            return Err(wanted);
        }
        let Some(place) = &state.place else { return Err(wanted) };
        let end = place.next_offset + WATERMARK_LEN as u64 + len + FOOTER_LEN as u64;
        let reserve = if wanted.delete_bytes == 0 { self.limits.reserve_bytes } else { 0 };
        let is_fresh = place.next_offset == crate::format::SEGMENT_HEADER_LEN as u64;
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
        let index = state.stage.group.register(wait, cx.waker());
        Accepted::Waiting(Ticket { group: Arc::clone(&state.stage.group), wait, index, last_seq })
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
        let resolved = self.resolved_seq.load(Ordering::Acquire);
        let publish_members = |state: &mut State| {
            for (member, seq) in op.members().iter().zip(first_seq..) {
                let key = member.key(&op.bytes);
                let publication = Publication::new(member, position, offset, seq, PublishWhen::SweepOnly);
                publish(&self.keydir, &self.registry, segment, key, &publication);
                if member.kind == RecordKind::Tombstone {
                    // An older write of the key may still be published; until then the tombstone entry stays.
                    if state.last_unresolved[self.bucket(key)] > resolved {
                        state.stage.publish_later(publication);
                    } else {
                        self.keydir.sweep(key, seq);
                    }
                }
            }
        };
        if op.is_batch() {
            self.keydir.atomically(|| publish_members(state));
        } else {
            publish_members(state);
        }
    }

    /// Waits until everything accepted so far is durable: what to wait for, or `None` if it is.
    pub(crate) fn request_sync(&self, waker: &Waker) -> Result<Option<Ticket>> {
        let mut state = self.lock();
        match &state.status {
            Status::Open => {}
            Status::Closing => return Err(closed()),
            Status::Ended(error) => return Err(error.clone()),
        }
        let last_seq = state.next_seq - 1;
        if self.durable_seq() >= last_seq {
            return Ok(None);
        }
        state.sync_wanted = true;
        let group = Arc::clone(&state.stage.group);
        let index = group.register(WaitFor::Resolved, waker);
        self.ring_if_due(state);
        Ok(Some(Ticket { group, wait: WaitFor::Resolved, index, last_seq }))
    }

    /// Ready when `seq` is durable; does not ask for a sync.
    pub(crate) fn poll_durable(&self, seq: u64, cx: &Context<'_>) -> Poll<Result<()>> {
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        if self.durable_seq() >= seq {
            return Poll::Ready(Ok(()));
        }
        if let Status::Ended(error) = &state.status {
            return Poll::Ready(Err(error.clone()));
        }
        if seq >= state.next_seq {
            let message = format!("wait_durable: version {seq} was never given out, the next is {}", state.next_seq);
            return Poll::Ready(Err(Error::new(ErrorKind::InvalidInput, message)));
        }
        state.durable_waiters.push((seq, cx.waker().clone()));
        Poll::Pending
    }

    /// The value of a record that is not in its file yet.
    pub(crate) fn read_staged(&self, segment: u32, value_offset: u64, value_len: usize) -> Option<Bytes> {
        let state = self.lock();
        let in_runs = state
            .runs
            .iter()
            .filter(|run| run.segment == segment && (run.base..run.end).contains(&value_offset.saturating_sub(1)))
            .find_map(|run| run.read(value_offset, value_len));
        if in_runs.is_some() {
            return in_runs;
        }
        match &state.place {
            Some(place) if place.segment.id == segment => state.stage.read(value_offset, value_len),
            _ => None,
        }
    }

    /// Refuses new writes; the commit task drains what was accepted and ends.
    pub(crate) fn begin_close(&self) {
        let mut state = self.lock();
        if matches!(state.status, Status::Open) {
            state.status = Status::Closing;
        }
        let wakers = std::mem::take(&mut state.room.waiters);
        self.ring(state);
        wake::wake_all(wakers);
    }

    fn ring_if_due(&self, state: MutexGuard<'_, State>) {
        let due =
            state.is_ripe() || state.room.wanted.is_some() || (!state.task.timer_armed && !state.stage.is_empty());
        if due && !state.task.rung {
            self.ring(state);
        }
    }

    fn ring(&self, mut state: MutexGuard<'_, State>) {
        state.task.rung = true;
        drop(state);
        self.bell.rung.store(true, Ordering::Release);
        self.bell.waker.wake();
    }

    // ---- the commit task -----------------------------------------------------------------------------------------

    /// Ready when a caller rang since the last time it was.
    pub(super) fn poll_bell(&self, cx: &Context<'_>) -> Poll<()> {
        if self.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.bell.waker.register(cx.waker());
        if self.bell.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What is to be done; from here on callers ring again for anything new. If something is staged, the task looks
    /// again by itself in time for the flush interval.
    pub(super) fn demand(&self, sync_in_flight: bool, linger_for: u32) -> Demand {
        let mut state = self.lock();
        state.task = TaskView { sync_in_flight, timer_armed: !state.stage.is_empty(), rung: false, linger_for };
        Demand {
            ripe: state.is_ripe(),
            has_staged: !state.stage.is_empty(),
            staged_since: state.staged_since,
            room: state.room.wanted,
            closing: !matches!(state.status, Status::Open),
            sync_waiters: state.stage.sync_waiters,
        }
    }

    /// Staged writers that wait for the disk.
    pub(super) fn sync_waiters(&self) -> u32 {
        self.lock().stage.sync_waiters
    }

    /// Takes everything staged, and the wish for a sync. `None` if there is neither. With `stop_here`, nothing more can
    /// be staged until a new place is set.
    pub(super) fn take(&self, stop_here: bool) -> Option<Taken> {
        let mut guard = self.lock();
        let state = &mut *guard;
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
    pub(super) fn release_run(&self, taken: &Taken) {
        let wakers = {
            let mut state = self.lock();
            let is_ours = |run: &Run| run.segment == taken.segment.id && run.base == taken.base && run.end == taken.end;
            let Some(index) = state.runs.iter().position(is_ours) else { return };
            let Some(run) = state.runs.remove(index) else { return };
            state.run_bytes -= run.end - run.base;
            std::mem::take(&mut state.room.waiters)
        };
        wake::wake_all(wakers);
    }

    /// Gives a buffer back for the next group.
    pub(super) fn recycle(&self, buffer: Bytes) {
        if let Ok(mut buffer) = buffer.try_into_mut() {
            buffer.clear();
            self.lock().spare_buffer.get_or_insert(buffer);
        }
    }

    pub(super) fn set_durable(&self, seq: u64, offset: u64) {
        let wakers: Vec<Waker> = {
            let mut state = self.lock();
            self.durable_offset.store(offset, Ordering::Relaxed);
            self.durable_seq.fetch_max(seq, Ordering::AcqRel);
            state.durable_waiters.extract_if(.., |(wanted, _)| *wanted <= seq).map(|(_, waker)| waker).collect()
        };
        wake::wake_all(wakers);
    }

    /// Writes up to `seq` are published or have failed; `group`, the oldest unresolved one, is through.
    pub(super) fn set_resolved(&self, seq: u64) {
        let wakers = {
            let mut state = self.lock();
            self.resolved_seq.store(seq, Ordering::Release);
            state.unresolved.pop_front();
            std::mem::take(&mut state.resolve_waiters)
        };
        wake::wake_all(wakers);
    }

    /// Appends go to `place` from now on.
    pub(super) fn set_place(&self, place: Place) {
        let mut state = self.lock();
        self.durable_offset.store(place.next_offset, Ordering::Relaxed);
        state.place = Some(place);
    }

    /// Space is claimed up to `end` in the active segment.
    pub(super) fn set_claimed_end(&self, end: u64) {
        if let Some(place) = &mut self.lock().place {
            place.claimed_end = end;
        }
    }

    /// The next offset and the end of the claimed space, while there is an active segment.
    pub(super) fn place(&self) -> Option<(u64, u64)> {
        self.lock().place.as_ref().map(|place| (place.next_offset, place.claimed_end))
    }

    /// A number that no record has reached.
    pub(super) fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// Lets the writers that wait for room try again; `refusal` is the answer to those that still find none.
    pub(super) fn answer_room(&self, refusal: Option<(Refused, Error)>) {
        let wakers = {
            let mut state = self.lock();
            state.room.attempt += 1;
            state.room.wanted = None;
            state.room.refusal = refusal.map(|(whom, error)| (state.room.attempt, whom, error));
            std::mem::take(&mut state.room.waiters)
        };
        wake::wake_all(wakers);
    }

    /// Drops what is staged and was not taken, answering it with `error`; the numbers are spent. Returns whether
    /// nothing of it had been acknowledged.
    pub(super) fn abandon_staged(&self, error: &Error) -> bool {
        let group = {
            let mut state = self.lock();
            state.place = None;
            if state.stage.has_buffered {
                return false;
            }
            state.staged_since = None;
            let resolved = state.next_seq - 1;
            self.resolved_seq.store(resolved, Ordering::Release);
            std::mem::take(&mut state.stage).group
        };
        group.fail(error.clone());
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
            let mut wakers = std::mem::take(&mut state.room.waiters);
            wakers.append(&mut state.resolve_waiters);
            wakers.extend(state.durable_waiters.drain(..).map(|(_, waker)| waker));
            let staged = Arc::clone(&state.stage.group);
            (std::mem::take(&mut state.unresolved), staged, wakers)
        };
        // What was handed to the kernel may be found after reopening; what was only staged never will.
        for group in groups {
            group.fail(error.clone().with_outcome(Outcome::Unknown));
        }
        staged.fail(error.with_outcome(Outcome::NotApplied));
        wake::wake_all(wakers);
        self.bell.rung.store(true, Ordering::Release);
        self.bell.waker.wake();
    }
}

impl State {
    /// Whether staged records should be written without waiting for the flush interval.
    fn is_ripe(&self) -> bool {
        let stage = &self.stage;
        if stage.len() >= WRITE_BEHIND_BYTES || (self.room.wanted.is_some() && !stage.is_empty()) {
            return true;
        }
        if self.task.sync_in_flight {
            // Whoever waits for the disk waits for the next sync anyway: until then the group grows.
            return stage.awaits_written;
        }
        if self.sync_wanted || stage.awaits_written {
            return true;
        }
        let enough = self.task.linger_for.max(1);
        stage.sync_waiters >= enough
            || (self.task.linger_for == 0 && !self.resolve_waiters.is_empty() && !stage.is_empty())
    }

    fn wait_for_room(&mut self, wanted: RoomWanted, wait: &mut RoomWait, cx: &Context<'_>) -> Poll<Result<Accepted>> {
        if let (Some(since), Some((attempt, whom, error))) = (wait.since_attempt, &self.room.refusal)
            && *attempt > since
            && (*whom == Refused::Everybody || wanted.delete_bytes == 0)
        {
            return Poll::Ready(Err(error.clone()));
        }
        wait.since_attempt = Some(self.room.attempt);
        self.room.wanted = Some(match self.room.wanted {
            Some(other) => RoomWanted {
                bytes: other.bytes.max(wanted.bytes),
                delete_bytes: other.delete_bytes.max(wanted.delete_bytes),
            },
            None => wanted,
        });
        self.room.waiters.push(cx.waker().clone());
        Poll::Pending
    }
}

impl Publication {
    fn new(member: &Member, position: usize, offset: u64, seq: u64, when: PublishWhen) -> Self {
        Self {
            member: Member { position: position + member.position, ..*member },
            seq,
            offset: offset + member.position as u64,
            when,
        }
    }
}

/// Puts one record into the keydir and moves the bytes that live and die with that.
pub(super) fn publish(
    keydir: &Keydir,
    registry: &Registry,
    segment: &Arc<Segment>,
    key: &[u8],
    publication: &Publication,
) {
    let member = publication.member;
    let Published { applied, replaced } = match member.kind {
        RecordKind::Put => {
            // Segments end long before a location's reach; see the limit on `segment_bytes` and on a value.
            let Some(location) = Location::new(segment.id, publication.offset, member.value_len) else { return };
            keydir.publish(key, publication.seq, location)
        }
        _ => keydir.bury(key, publication.seq),
    };
    if applied && member.kind == RecordKind::Put {
        segment.add_live(member.record_len());
    }
    if let Some(replaced) = replaced {
        let dead = replaced.record_len(key.len());
        if replaced.segment == segment.id {
            segment.remove_live(dead);
        } else if let Some(other) = registry.get(replaced.segment) {
            other.remove_live(dead);
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}
