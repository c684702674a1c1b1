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
//! - No await and no I/O happens under the lock, and no foreign waker is woken under it; one may be cloned.

mod accept;
mod admission;
mod for_task;
mod requests;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;

use self::admission::Admission;
pub(in crate::commit) use self::admission::{Refused, SpaceWanted};
use crate::commit::group::{Group, Ticket, WaitFor};
use crate::commit::stage::{Place, Run, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
use crate::keydir::Keydir;
use crate::segment::SegmentSet;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::promise::Promise;
use crate::sync::waiters::{Slot, Waiters};
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// A group this large is worth a write of its own while a sync is under way.
pub(in crate::commit) const WRITE_BEHIND_BYTES: u64 = 256 * 1024;

/// Keys are hashed to this many buckets, each with the newest sequence number that is not published at once.
const UNRESOLVED_BUCKETS: usize = 4096;

/// Callers and the commit task meet here.
pub(crate) struct Log {
    state: Mutex<State>,
    bell: Bell,
    keydir: Arc<Keydir>,
    registry: Arc<SegmentSet>,
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

pub(in crate::commit) struct State {
    place: Option<Place>,
    next_seq: u64,
    stage: Stage,
    /// Taken, but not yet in the kernel: readers still find it here. After a failed write it stays for ever.
    runs: VecDeque<Run>,
    run_bytes: u64,
    spare_buffer: Option<BytesMut>,
    last_unresolved: Vec<u64>,
    /// By the same buckets, the newest delete: an absence may rest on it.
    last_delete: Vec<u64>,
    status: Status,
    room: Admission,
    resolve_waiters: Waiters<()>,
    /// Each with the sequence number it waits for.
    durable_waiters: Waiters<u64>,
    /// Groups that are not resolved, for whoever has to fail them all.
    unresolved: VecDeque<Arc<Group>>,
    sync_wanted: bool,
    /// Who waits for the active segment to be sealed.
    seal_wanted: Vec<Promise<Result<()>>>,
    /// When the oldest staged record came; what the flush interval counts from.
    staged_since: Option<Duration>,
    /// What the commit task is doing, as far as a caller must know to decide whether to wake it.
    task: TaskView,
    pub(in crate::commit) counters: Counters,
}

#[derive(Clone, Debug)]
enum Status {
    Open,
    Closing,
    Ended(Error),
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

/// What became of an offered write.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Done, at this sequence number.
    Done(u64),
    Waiting(Ticket),
    /// A delete of a key that does not exist.
    Absent,
    /// The same, but the delete that made it so is not durable yet.
    AbsentOnce(Ticket),
}

/// What an offered write has waited for so far.
#[derive(Debug, Default)]
pub(crate) struct OfferWait {
    /// For room, in whose order; and since which attempt to make some.
    room: Slot,
    since_attempt: Option<u64>,
    /// For an earlier write of its key.
    resolve: Slot,
}

impl OfferWait {
    pub(crate) fn has_waited(&self) -> bool {
        self.room.was_used() || self.resolve.was_used()
    }
}

/// What the commit task should do next, as far as the log knows.
#[derive(Clone, Copy, Debug)]
pub(in crate::commit) struct Demand {
    /// Staged records should be written now.
    pub(in crate::commit) ripe: bool,
    pub(in crate::commit) has_staged: bool,
    pub(in crate::commit) staged_since: Option<Duration>,
    pub(in crate::commit) room: Option<SpaceWanted>,
    pub(in crate::commit) closing: bool,
    /// Somebody waits for the active segment to be sealed.
    pub(in crate::commit) seal: bool,
    /// When to look again, whatever happens.
    pub(in crate::commit) look_again: Option<Duration>,
    /// Staged writers that wait for the disk.
    pub(in crate::commit) sync_waiters: u32,
}

impl Log {
    pub(crate) fn new(
        io: Arc<dyn Io>,
        keydir: Arc<Keydir>,
        registry: Arc<SegmentSet>,
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
                last_delete: vec![0; UNRESOLVED_BUCKETS],
                status: Status::Open,
                room: Admission::default(),
                resolve_waiters: Waiters::default(),
                durable_waiters: Waiters::default(),
                unresolved: VecDeque::new(),
                sync_wanted: false,
                seal_wanted: Vec::new(),
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

    /// Writes up to this sequence number are published or have failed for ever; those after it may be too.
    pub(crate) fn resolved_seq(&self) -> u64 {
        self.resolved_seq.load(Ordering::Acquire)
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
}

impl State {
    /// A ticket of the group that is being staged, to be told when everything up to here is durable.
    fn await_group(&mut self, waker: &Waker) -> Ticket {
        let group = Arc::clone(&self.stage.group);
        Ticket::new(group, WaitFor::Resolved, waker, self.next_seq - 1)
    }

    /// Bytes of records that are not in the kernel.
    fn used_bytes(&self) -> u64 {
        self.stage.len() + self.run_bytes
    }

    /// Whether staged records should be written without waiting for the flush interval.
    fn is_ripe(&self) -> bool {
        let stage = &self.stage;
        let room_is_wanted = self.room.wanted.is_some() || self.room.is_awaited();
        if stage.len() >= WRITE_BEHIND_BYTES || (room_is_wanted && !stage.is_empty()) {
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
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}
