//! The log as callers see it: one mutex that gives a write its sequence number, its position and its place in the
//! buffer.
//!
//! The steps of one write are told in [`crate::commit`]. The parts here:
//!
//! - [`accept`]: a caller offers a write.
//! - [`admission`]: the order in which writers that wait for space go on.
//! - [`submit`]: the queue of submitted writes that do not fit yet.
//! - [`requests`]: sync, wait, seal, read what is staged, close; and when to notify the commit task.
//! - [`for_task`]: the commit task's side.
//!
//! # Invariants
//!
//! - Sequence numbers, ordinals and offsets grow together. A record is staged only in the segment of
//!   [`LogState::append_point`].
//! - `resolved_seq` < `next_seq`: writes up to it are published or have failed for good. A delete whose key may have
//!   an unresolved write (its bucket of `last_unresolved` says so) waits for that write before it decides whether the
//!   key exists.
//! - Staged bytes stay within `staging_bytes`, except for a single larger write.
//! - Disk space up to `preallocated_end` belongs to the segment. An accepted write cannot fail for lack of space,
//!   where the file system supports preallocation.
//! - No `await` and no I/O happens under the lock. Wakers are the caller's code: under the lock one may be cloned,
//!   but none is woken or dropped.

mod accept;
mod admission;
mod for_task;
mod offer;
mod queue;
mod requests;
mod submit;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;

use self::admission::Admission;
pub(in crate::commit) use self::admission::{Refused, SpaceWanted};
pub(crate) use self::offer::{Accepted, OfferWait};
pub(crate) use self::queue::Submission;
use self::queue::SubmitQueue;
use crate::commit::group::{Group, Ticket, WaitFor};
use crate::commit::stage::{AppendPoint, Run, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
use crate::keydir::Keydir;
use crate::segment::SegmentSet;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::promise::Promise;
use crate::sync::waiters::Waiters;
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// While a sync is in flight, a group of this size is written without waiting for it.
pub(in crate::commit) const WRITE_BEHIND_BYTES: u64 = 256 * 1024;

/// Keys are hashed to this many buckets. Each holds the newest sequence number that was not published on acceptance.
const UNRESOLVED_BUCKETS: usize = 4096;

/// The meeting point of the callers and the commit task.
pub(crate) struct Log {
    state: Mutex<LogState>,
    notifier: Notifier,
    keydir: Arc<Keydir>,
    segments: Arc<SegmentSet>,
    io: Arc<dyn Io>,
    limits: Limits,
    resolved_seq: AtomicU64,
    durable_seq: AtomicU64,
    /// The durable length of the active segment, which watermarks carry.
    durable_offset: AtomicU64,
}

/// The options that the log enforces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) segment_bytes: u64,
    pub(crate) staging_bytes: u64,
    pub(crate) reserve_bytes: u64,
}

pub(in crate::commit) struct LogState {
    append_point: Option<AppendPoint>,
    next_seq: u64,
    stage: Stage,
    /// Taken by the commit task, but not yet readable from the file: readers find these records here. After a failed
    /// write that poisons the store, the run stays.
    runs: VecDeque<Run>,
    run_bytes: u64,
    spare_buffer: Option<BytesMut>,
    last_unresolved: Vec<u64>,
    /// The newest delete per bucket: the absence of a key may depend on it.
    last_delete: Vec<u64>,
    status: LogStatus,
    admission: Admission,
    queue: SubmitQueue,
    resolve_waiters: Waiters<()>,
    /// Each with the sequence number it waits for.
    durable_waiters: Waiters<u64>,
    /// Groups that are not resolved, oldest first. `end` fails them all.
    unresolved: VecDeque<Arc<Group>>,
    sync_wanted: bool,
    /// Callers that wait for the active segment to be sealed.
    seal_wanted: Vec<Promise<Result<()>>>,
    /// When the oldest staged record was accepted; the flush interval starts there.
    staged_since: Option<Duration>,
    /// What the commit task is doing, as far as a caller needs it to decide whether to notify the task.
    task: TaskView,
    pub(in crate::commit) counters: OperationCounts,
}

#[derive(Clone, Debug)]
enum LogStatus {
    Open,
    Closing,
    Ended(Error),
}

#[derive(Clone, Copy, Debug, Default)]
struct TaskView {
    sync_in_flight: bool,
    timer_armed: bool,
    notified: bool,
    /// Number of waiting writers that make a group worth starting during a commit delay; 0 outside of one.
    delay_writers: u32,
}

/// Counted under the log's lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OperationCounts {
    pub(crate) puts: u64,
    pub(crate) deletes: u64,
    pub(crate) batches: u64,
    pub(crate) batch_operations: u64,
}

/// Tells the commit task that there is something to do.
#[derive(Default)]
struct Notifier {
    is_set: AtomicBool,
    waker: AtomicWaker,
}

/// What the commit task should do next, as far as the log knows.
#[derive(Clone, Copy, Debug)]
pub(in crate::commit) struct Demand {
    /// The staged records should be written now.
    pub(in crate::commit) ready: bool,
    pub(in crate::commit) has_staged: bool,
    pub(in crate::commit) staged_since: Option<Duration>,
    pub(in crate::commit) space: Option<SpaceWanted>,
    pub(in crate::commit) closing: bool,
    /// A caller waits for the active segment to be sealed.
    pub(in crate::commit) seal: bool,
    /// When to look again even if no notification arrives.
    pub(in crate::commit) look_again: Option<Duration>,
    /// Staged writers that wait for a sync.
    pub(in crate::commit) sync_waiters: u32,
    /// Submitted writes wait to be accepted.
    pub(in crate::commit) has_queued: bool,
}

impl Log {
    pub(crate) fn new(
        io: Arc<dyn Io>,
        keydir: Arc<Keydir>,
        segments: Arc<SegmentSet>,
        limits: Limits,
        next_seq: u64,
    ) -> Self {
        let durable = next_seq.saturating_sub(1);
        Self {
            state: Mutex::new(LogState {
                append_point: None,
                next_seq,
                stage: Stage::default(),
                runs: VecDeque::new(),
                run_bytes: 0,
                spare_buffer: None,
                last_unresolved: vec![0; UNRESOLVED_BUCKETS],
                last_delete: vec![0; UNRESOLVED_BUCKETS],
                status: LogStatus::Open,
                admission: Admission::default(),
                queue: SubmitQueue::default(),
                resolve_waiters: Waiters::default(),
                durable_waiters: Waiters::default(),
                unresolved: VecDeque::new(),
                sync_wanted: false,
                seal_wanted: Vec::new(),
                staged_since: None,
                task: TaskView::default(),
                counters: OperationCounts::default(),
            }),
            notifier: Notifier::default(),
            keydir,
            segments,
            io,
            limits,
            resolved_seq: AtomicU64::new(durable),
            durable_seq: AtomicU64::new(durable),
            durable_offset: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes up to this sequence number are published or have failed for good. Later ones may be, too.
    pub(crate) fn resolved_seq(&self) -> u64 {
        self.resolved_seq.load(Ordering::Acquire)
    }

    /// Writes up to this sequence number are on stable storage, or were never applied.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq.load(Ordering::Acquire)
    }

    pub(crate) fn counters(&self) -> (OperationCounts, u64) {
        let state = self.lock();
        (state.counters, state.stage.len() + state.run_bytes)
    }

    /// The error that stopped the store, if one did.
    pub(crate) fn ended(&self) -> Option<Error> {
        match &self.lock().status {
            LogStatus::Ended(error) => Some(error.clone()),
            _ => None,
        }
    }
}

impl LogState {
    /// A ticket of the group that is being staged, for a caller that waits until everything accepted so far is
    /// durable.
    fn await_group(&mut self, waker: &Waker) -> Ticket {
        let group = Arc::clone(&self.stage.group);
        Ticket::new(group, WaitFor::Resolved, waker, self.next_seq - 1)
    }

    /// Bytes of records that are not in the kernel yet.
    fn used_bytes(&self) -> u64 {
        self.stage.len() + self.run_bytes
    }

    /// Whether the staged records should be written without waiting for the flush interval.
    fn is_ready(&self) -> bool {
        let stage = &self.stage;
        let space_is_wanted = self.admission.wanted.is_some() || self.admission.has_waiters();
        if stage.len() >= WRITE_BEHIND_BYTES || (space_is_wanted && !stage.is_empty()) {
            return true;
        }
        if self.task.sync_in_flight {
            // Writers that wait for a sync must wait for the next one anyway. Until then the group grows.
            return stage.awaits_written;
        }
        if self.sync_wanted || stage.awaits_written {
            return true;
        }
        let enough = self.task.delay_writers.max(1);
        stage.sync_waiters >= enough
            || (self.task.delay_writers == 0 && !self.resolve_waiters.is_empty() && !stage.is_empty())
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}
