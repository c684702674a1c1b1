//! The commit task: the only one that writes to segments.
//!
//! It keeps at most one write and one sync in flight. While a sync is under way it goes on writing what cannot wait
//! (a `Written` write, a full buffer); the groups so written wait in `written` for a sync that begins after them.
//! Groups are resolved in their order, so that "resolved up to" is one number.
//!
//! # Failure
//!
//! - A failed write is rolled back: the file is cut to its last good end and that is made durable. Then the group's
//!   writers get "not applied", and the segment is sealed, so that no later record ever lies where the failed ones lay.
//!   If the group held `Buffered` writes, which were acknowledged already, or if the cut fails, the store is poisoned.
//! - A failed sync poisons the store. It is never retried: the kernel may have dropped the pages it could not write.
//! - A panic poisons the store too (`PanicGuard`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::active::{Active, CommitOptions, Fatal, MAX_CLAIM_STEP_BYTES};
use super::delay::CommitDelay;
use super::log::{Demand, Log};
use super::parts::Parts;
use super::stage::Taken;
use crate::error::{Error, ErrorKind};
use crate::io::OpFuture;
use crate::segment::Segment;

/// When this part of a segment has died in sealed ones, it is time to look at what could be compacted.
const DIED_DIVISOR: u64 = 4;

/// When so much waits for a sync it gets one before its time: who seals the segment waits for that much, and for what came
/// while the sync before was under way.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;
pub(super) struct SyncInFlight {
    pub(super) op: OpFuture<io::Result<()>>,
    /// What it vouches for: the groups written before it was submitted.
    pub(super) seq: u64,
    pub(super) end: u64,
    pub(super) started: Duration,
}

/// The task's state.
pub(crate) struct Committer {
    pub(super) parts: Parts,
    pub(super) options: CommitOptions,
    pub(super) active: Option<Active>,
    /// Called with each segment that was sealed.
    pub(super) sealed: Box<dyn Fn(Arc<Segment>) + Send + Sync>,
    /// Called when much of the sealed segments has died. Deletes and short values do that without filling a segment.
    died: Box<dyn Fn() + Send + Sync>,
    /// Written groups that are not resolved, oldest first.
    pub(super) written: VecDeque<Taken>,
    pub(super) written_seq: u64,
    pub(super) sync: Option<SyncInFlight>,
    /// Since when something written waits for a sync that nobody awaits.
    pub(super) unsynced_since: Option<Duration>,
    pub(super) linger: CommitDelay,
    /// How much disk space is claimed at a time.
    pub(super) claim_step: u64,
}

enum Event {
    Synced(io::Result<()>),
    Rung,
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
            linger: CommitDelay::default(),
            claim_step: MAX_CLAIM_STEP_BYTES,
        }
    }

    /// Runs until the store is closed (`Ok`) or poisoned (the error, which every writer gets).
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut guard = PanicGuard(Some(Arc::clone(&self.parts.log)));
        let result = self.serve().await;
        if let Err(Fatal(error)) = &result {
            self.parts.log.end(error.clone());
            // An operation outlives its future, but nothing may follow it: wait for it here.
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
            let demand = self.parts.log.demand(syncs, self.linger.wanted());
            if demand.seal && !demand.closing {
                // First: under full load there is always something else to do.
                let sealed = self.seal_for_compaction().await?;
                self.parts.log.answer_seal(&sealed);
                continue;
            }
            if self.move_on(&demand).await? {
                // Where there is always something to write, the task never comes to wait for it.
                if syncs && let Some(result) = self.poll_sync().await {
                    self.finish_sync(result)?;
                    self.after_sync();
                }
                continue;
            }
            if demand.room.is_some() && !demand.closing {
                let answer = self.make_room(demand.room).await?;
                self.parts.log.answer_room(answer);
                continue;
            }
            if demand.closing && self.sync.is_none() {
                return self.seal_for_close().await;
            }

            match self.wait(self.deadline(&demand)).await {
                Event::Synced(result) => {
                    self.finish_sync(result)?;
                    self.after_sync();
                }
                Event::Rung | Event::Timer => {}
            }
        }
    }

    /// Writes what is ripe, starts the sync that is due, and only then publishes and wakes whom the last sync has served:
    /// that way the disk works while the callers are told. Where a sync blocks this thread, or where it pays to wait for
    /// the callers (see [`CommitDelay`]), they are told first.
    async fn move_on(&mut self, demand: &Demand) -> Result<bool, Fatal> {
        let is_due = demand.ripe || (demand.has_staged && (demand.closing || self.flush_due(demand)));
        if is_due {
            self.linger.cancel();
            if let Some(taken) = self.parts.log.take(false) {
                self.commit(taken).await?;
                self.claim_ahead();
            }
        }
        if !self.parts.io.sync_overlaps() {
            self.resolve();
        }
        let syncs = self.sync.is_none() && self.wants_sync(demand.closing);
        if syncs {
            if self.awaits_sync() {
                self.fill_ahead().await;
            }
            self.start_sync();
            self.parts.io.flush();
        }
        self.resolve();
        if let Some(until) = self.linger.deadline()
            && self.parts.io.now() >= until
        {
            self.linger.check(demand.sync_waiters, until);
            return Ok(true);
        }
        Ok(is_due || syncs)
    }

    /// A sync has ended: decides whether its writers are told before the next one starts.
    fn after_sync(&mut self) {
        let durable_seq = self.parts.log.durable_seq();
        let through = self.written.iter().filter(|group| group.last_seq <= durable_seq);
        let released = through.map(|group| group.sync_waiters).sum();
        if self.linger.begin(released, self.parts.log.sync_waiters(), self.parts.io.now()) {
            self.resolve();
        }
    }

    fn flush_due(&self, demand: &Demand) -> bool {
        demand.staged_since.is_some_and(|since| self.parts.io.now() >= since + self.flush_interval())
    }

    /// What is to be on the disk within the sync interval must be in the kernel by then.
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
        flush.into_iter().chain(sync).chain(demand.look_again).chain(self.linger.deadline()).min()
    }

    async fn wait(&mut self, deadline: Option<Duration>) -> Event {
        let mut timer = deadline.map(|deadline| self.parts.io.sleep(deadline.saturating_sub(self.parts.io.now())));
        let (sync, log) = (&mut self.sync, &self.parts.log);
        poll_fn(|cx| {
            if let Some(sync) = sync
                && let Poll::Ready(result) = sync.op.as_mut().poll(cx)
            {
                return Poll::Ready(Event::Synced(result));
            }
            if log.poll_bell(cx).is_ready() {
                return Poll::Ready(Event::Rung);
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(cx).map(|()| Event::Timer),
                None => Poll::Pending,
            }
        })
        .await
    }

    pub(super) fn place_error(&self, operation: &str, source: io::Error) -> Error {
        let error = Error::io(operation, source).with_path(&self.parts.segments.path);
        match &self.active {
            Some(active) => error.at_segment(u64::from(active.segment.id)),
            None => error,
        }
    }

    /// The error that ends the store, naming its first cause.
    pub(super) fn poison(&self, operation: &str, source: io::Error) -> Fatal {
        let cause = self.place_error(operation, source);
        Fatal(Error::new(ErrorKind::Poisoned, "the store stopped writing").with_source(cause))
    }
}

/// Tells everybody if the task unwinds.
struct PanicGuard(Option<Arc<Log>>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if let Some(log) = &self.0 {
            log.end(Error::new(ErrorKind::Poisoned, "the commit task ended before the store was closed"));
        }
    }
}
