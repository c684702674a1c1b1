//! The commit task: the loop that decides what happens next to the log, and the only writer of segments.
//!
//! At most one write and one sync are in flight. During a sync the task goes on writing what cannot wait (a `Written`
//! write, a full buffer). Groups written meanwhile wait in `written` for the next sync, because a sync covers only
//! writes that completed before it was submitted. Groups are resolved in order, so one number says how far the log is
//! resolved.
//!
//! The steps are in separate files: [`append`](super::append) writes and resolves a group, [`sync`](super::sync)
//! syncs, [`rotate`](super::rotate) seals and starts segments, [`preallocate`](super::preallocate) and
//! [`prewrite`](super::prewrite) prepare disk space, [`delay`](super::delay) decides on the commit delay.
//!
//! A panic of the task poisons the store (`PanicGuard`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::active::{ActiveSegment, CommitOptions, Fatal, PREALLOCATE_BYTES_MAX};
use super::delay::CommitDelay;
use super::log::{Demand, Log};
use super::parts::Parts;
use super::stage::Taken;
use crate::error::{Error, ErrorKind};
use crate::io::OpFuture;
use crate::segment::Segment;

/// When this fraction of a segment has died in sealed segments, the maintenance task checks what to compact.
const DIED_DIVISOR: u64 = 4;

/// Force a sync at this many unsynced bytes: sealing the segment has to wait for them.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;
pub(super) struct SegmentSync {
    pub(super) op: OpFuture<io::Result<()>>,
    /// What the sync covers: the groups written before it was submitted.
    pub(super) seq: u64,
    pub(super) end: u64,
    pub(super) started: Duration,
}

/// The commit task.
pub(crate) struct Committer {
    pub(super) parts: Parts,
    pub(super) options: CommitOptions,
    pub(super) active: Option<ActiveSegment>,
    /// Called with each sealed segment.
    pub(super) sealed: Box<dyn Fn(Arc<Segment>) + Send + Sync>,
    /// Called when many bytes of sealed segments have died. Deletes and short values cause that without filling a
    /// segment.
    died: Box<dyn Fn() + Send + Sync>,
    /// Written groups that are not resolved, oldest first.
    pub(super) written: VecDeque<Taken>,
    pub(super) written_seq: u64,
    pub(super) sync: Option<SegmentSync>,
    /// Since when a written group waits for a sync that no caller waits for.
    pub(super) unsynced_since: Option<Duration>,
    pub(super) delay: CommitDelay,
    /// The size of the next preallocation.
    pub(super) preallocate_step_bytes: u64,
}

enum TaskEvent {
    Synced(io::Result<()>),
    Notified,
    Timer,
}

impl Committer {
    pub(crate) fn new(
        parts: Parts,
        options: CommitOptions,
        sealed: Box<dyn Fn(Arc<Segment>) + Send + Sync>,
        died: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let written_seq = parts.log.durable_seq();
        Self {
            parts,
            options,
            active: None,
            sealed,
            died,
            written: VecDeque::new(),
            written_seq,
            sync: None,
            unsynced_since: None,
            delay: CommitDelay::default(),
            preallocate_step_bytes: PREALLOCATE_BYTES_MAX,
        }
    }

    /// Runs until the store is closed (`Ok`) or poisoned (the error that every writer gets).
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut guard = PanicGuard(Some(Arc::clone(&self.parts.log)));
        let result = self.serve().await;
        if let Err(Fatal(error)) = &result {
            self.parts.log.end(error.clone());
            // A dropped future leaves its operation running. Nothing may follow it, so wait for it.
            if let Some(sync) = self.sync.take() {
                let _ = sync.op.await;
            }
        }
        guard.0 = None;
        result.map_err(|Fatal(error)| error)
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        loop {
            if let Some(error) = self.parts.log.ended() {
                return Err(Fatal(error));
            }
            if self.parts.segments.have_died(self.options.segment_bytes / DIED_DIVISOR) {
                (self.died)();
            }
            let syncs = self.sync.is_some();
            let demand = self.parts.log.demand(syncs, self.delay.wanted());
            if demand.seal && !demand.closing {
                // Seal first: under full load there is always other work.
                let sealed = self.seal_for_compaction().await?;
                self.parts.log.answer_seal(&sealed);
                continue;
            }
            if self.advance(&demand).await? {
                // Under constant load the task never reaches `wait`, so it looks for the end of the sync here.
                if syncs && let Some(result) = self.poll_sync().await {
                    self.finish_sync(result)?;
                    self.after_sync();
                }
                continue;
            }
            if demand.space.is_some() && (!demand.closing || demand.has_queued) {
                let answer = self.make_space(demand.space).await?;
                self.parts.log.answer_admission(answer);
                continue;
            }
            if demand.closing && self.sync.is_none() && !demand.has_queued {
                return self.seal_for_close().await;
            }

            match self.wait(self.deadline(&demand)).await {
                TaskEvent::Synced(result) => {
                    self.finish_sync(result)?;
                    self.after_sync();
                }
                TaskEvent::Notified | TaskEvent::Timer => {}
            }
        }
    }

    /// Writes the staged group if it is ready, starts the sync that is due, and then publishes and wakes the writers
    /// of the last sync. In this order the disk works while writers are told. Where a sync blocks this thread, or
    /// where a commit delay pays (see [`CommitDelay`]), the writers are told first. Returns whether anything was
    /// done.
    async fn advance(&mut self, demand: &Demand) -> Result<bool, Fatal> {
        let is_due = demand.ready || (demand.has_staged && (demand.closing || self.flush_due(demand)));
        if is_due {
            self.delay.cancel();
            if let Some(taken) = self.parts.log.take(false) {
                self.commit(taken).await?;
                self.preallocate_next_step();
            }
        }
        if !self.parts.io.sync_overlaps() {
            self.resolve();
        }
        let syncs = self.sync.is_none() && self.wants_sync(demand.closing);
        if syncs {
            if self.awaits_sync() {
                self.prewrite().await;
            }
            self.start_sync();
            self.parts.io.flush();
        }
        self.resolve();
        if let Some(until) = self.delay.deadline()
            && self.parts.io.now() >= until
        {
            self.delay.check(demand.sync_waiters, until);
            return Ok(true);
        }
        Ok(is_due || syncs)
    }

    /// After a sync: decides whether its writers are told before the next sync starts.
    fn after_sync(&mut self) {
        let durable_seq = self.parts.log.durable_seq();
        let through = self.written.iter().filter(|group| group.last_seq <= durable_seq);
        let released = through.map(|group| group.sync_waiters).sum();
        if self.delay.begin(released, self.parts.log.sync_waiters(), self.parts.io.now()) {
            self.resolve();
        }
    }

    fn flush_due(&self, demand: &Demand) -> bool {
        demand.staged_since.is_some_and(|since| self.parts.io.now() >= since + self.flush_interval())
    }

    /// A record must reach the kernel within the sync interval to be durable within it.
    fn flush_interval(&self) -> Duration {
        self.options.flush_interval.min(self.options.sync_interval)
    }

    fn wants_sync(&self, closing: bool) -> bool {
        self.awaits_sync()
            || self
                .active
                .as_ref()
                .is_some_and(|active| active.end.saturating_sub(active.durable_end) >= UNSYNCED_BYTES_MAX)
            || self
                .unsynced_since
                .is_some_and(|since| closing || self.parts.io.now() >= since + self.options.sync_interval)
    }

    /// Whether a written group waits for a sync.
    pub(super) fn awaits_sync(&self) -> bool {
        let durable_seq = self.parts.log.durable_seq();
        self.written.iter().any(|group| group.wants_sync && group.last_seq > durable_seq)
    }

    fn deadline(&self, demand: &Demand) -> Option<Duration> {
        let flush = demand.staged_since.map(|since| since + self.flush_interval());
        let sync = match self.sync {
            Some(_) => None,
            None => self.unsynced_since.map(|since| since + self.options.sync_interval),
        };
        flush.into_iter().chain(sync).chain(demand.look_again).chain(self.delay.deadline()).min()
    }

    async fn wait(&mut self, deadline: Option<Duration>) -> TaskEvent {
        let mut timer = deadline.map(|deadline| self.parts.io.sleep(deadline.saturating_sub(self.parts.io.now())));
        let (sync, log) = (&mut self.sync, &self.parts.log);
        poll_fn(|cx| {
            if let Some(sync) = sync
                && let Poll::Ready(result) = sync.op.as_mut().poll(cx)
            {
                return Poll::Ready(TaskEvent::Synced(result));
            }
            if log.poll_notified(cx).is_ready() {
                return Poll::Ready(TaskEvent::Notified);
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(cx).map(|()| TaskEvent::Timer),
                None => Poll::Pending,
            }
        })
        .await
    }

    pub(super) fn io_error(&self, operation: &str, source: io::Error) -> Error {
        let error = Error::io(operation, source).with_path(&self.parts.segments.path);
        match &self.active {
            Some(active) => error.at_segment(u64::from(active.segment.id)),
            None => error,
        }
    }

    /// The error that poisons the store, with its first cause.
    pub(super) fn poison(&self, operation: &str, source: io::Error) -> Fatal {
        let cause = self.io_error(operation, source);
        Fatal(Error::new(ErrorKind::Poisoned, "the store stopped writing").with_source(cause))
    }
}

/// Ends the log if the task unwinds.
struct PanicGuard(Option<Arc<Log>>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if let Some(log) = &self.0 {
            log.end(Error::new(ErrorKind::Poisoned, "the commit task ended before the store was closed"));
        }
    }
}
