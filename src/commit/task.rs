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
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use crc32fast::Hasher;

use super::delay::CommitDelay;
use super::group::Phase;
use super::log::{Demand, Log};
use super::parts::{CommitCounters, Parts};
use super::publish::publish_many;
use super::rotate::MAX_CLAIM_STEP_BYTES;
use super::stage::{PublishWhen, Taken, is_delete};
use crate::error::{Error, ErrorKind};
use crate::io::{File, OpFuture, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;

/// When this part of a segment has died in sealed ones, it is time to look at what could be compacted.
const DIED_DIVISOR: u64 = 4;

/// So much that waits for no sync is on its way to the disk before anybody asks for one.
const WRITEBACK_BYTES_MIN: u64 = 1 << 20;
/// When so much waits for a sync it gets one before its time: who seals the segment waits for that much, and for what came
/// while the sync before was under way.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;
/// The last page of a write is gone on with by the next one: it is left out of writing back. Where pages are larger it is
/// written twice.
const PAGE_BYTES: u64 = 4096;

/// What the task needs to know of the options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitOptions {
    pub(crate) segment_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) prewrite: bool,
    pub(crate) flush_interval: Duration,
    pub(crate) sync_interval: Duration,
}

/// The segment that is being appended to, or that a failed write has left to be sealed.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn File>,
    /// Everything before this offset is written and good.
    pub(super) end: u64,
    /// Everything before this offset is durable.
    pub(super) durable_end: u64,
    /// Up to here there may be filler behind `end`; see [`ahead`](super::ahead).
    pub(super) filled_end: u64,
    /// Whether there should be.
    pub(super) fills: bool,
    /// The disk was told to begin with everything before this offset.
    pub(super) writeback_end: u64,
    /// Checksum of the bytes before `end`.
    pub(super) crc: Hasher,
    pub(super) records: u32,
    pub(super) min_seq: u64,
    pub(super) max_seq: u64,
    pub(super) tombstone_bytes: u64,
    /// No more appends: seal it.
    pub(super) retired: bool,
}

struct SyncInFlight {
    op: OpFuture<io::Result<()>>,
    /// What it vouches for: the groups written before it was submitted.
    seq: u64,
    end: u64,
    started: Duration,
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
    written: VecDeque<Taken>,
    written_seq: u64,
    sync: Option<SyncInFlight>,
    /// Since when something written waits for a sync that nobody awaits.
    unsynced_since: Option<Duration>,
    linger: CommitDelay,
    /// How much disk space is claimed at a time.
    pub(super) claim_step: u64,
}

/// Why the task cannot go on.
pub(super) struct Fatal(pub(super) Error);

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
                self.prewrite().await;
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
    fn awaits_sync(&self) -> bool {
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

    // ---- a group -------------------------------------------------------------------------------------------------

    /// Writes a group and moves it on.
    pub(super) async fn commit(&mut self, mut taken: Taken) -> Result<(), Fatal> {
        if seeded_bug::is(SeededBug::SyncCoversInFlight) && self.sync.is_none() {
            self.written_seq = taken.last_seq;
            self.start_sync();
        }
        if taken.end > taken.base {
            if let Err(error) = self.write(&mut taken).await? {
                return self.roll_back(taken, error).await;
            }
            self.account(&taken);
            self.start_writeback(&taken);
            self.publish_written(&mut taken);
            self.parts.log.release_run(&taken);
            taken.group.advance(Phase::Written);
            if taken.publications.is_empty() {
                self.parts.log.recycle(std::mem::take(&mut taken.buffer));
            }
            let since = taken.staged_since.unwrap_or_else(|| self.parts.io.now());
            self.unsynced_since.get_or_insert(since);
        }
        self.written_seq = taken.last_seq;
        self.written.push_back(taken);
        Ok(())
    }

    /// The one contiguous write; syncs that complete meanwhile are dealt with at once.
    async fn write(&mut self, taken: &mut Taken) -> Result<io::Result<()>, Fatal> {
        let Some(active) = &self.active else {
            return Ok(Err(io::Error::other("no active segment")));
        };
        for piece in &taken.pieces {
            debug_assert!(!piece.is_empty(), "an empty piece in a group");
        }
        let file = Arc::clone(&active.file);
        let pieces = std::mem::take(&mut taken.pieces);
        let (base, crc_pieces) = (taken.base, pieces.clone());
        let mut write = Box::pin(async move { util::write_all(&*file, pieces, base).await });
        let result = loop {
            let sync = &mut self.sync;
            let event = poll_fn(|cx| {
                if let Poll::Ready(result) = write.as_mut().poll(cx) {
                    return Poll::Ready(Ok(result));
                }
                match sync {
                    Some(sync) => sync.op.as_mut().poll(cx).map(Err),
                    None => Poll::Pending,
                }
            })
            .await;
            match event {
                Ok(result) => break result,
                Err(synced) => {
                    if let Err(fatal) = self.finish_sync(synced) {
                        // The kernel may still be writing: nothing else may happen to the file before it is done.
                        let _ = write.await;
                        return Err(fatal);
                    }
                }
            }
        };
        if result.is_ok()
            && let Some(active) = &mut self.active
        {
            for piece in &crc_pieces {
                active.crc.update(piece);
            }
        }
        Ok(result)
    }

    /// Has the disk begin with what has gathered, while the next group is copied: at a seal, or when a second is over,
    /// hundreds of MiB would wait for it.
    fn start_writeback(&mut self, taken: &Taken) {
        let is_synced_next = taken.wants_sync && self.sync.is_none();
        let Some(active) = &mut self.active else { return };
        let from = active.writeback_end.max(active.durable_end);
        let until = active.end / PAGE_BYTES * PAGE_BYTES;
        if until >= from + WRITEBACK_BYTES_MIN && !is_synced_next {
            active.file.start_writeback(from, until - from);
            active.writeback_end = until;
        }
    }

    fn account(&mut self, taken: &Taken) {
        if let Some(active) = &mut self.active {
            active.end = taken.end;
            active.records = taken.next_ordinal;
            if active.min_seq == 0 {
                active.min_seq = taken.first_seq;
            }
            active.max_seq = taken.last_seq;
            active.tombstone_bytes += taken.tombstone_bytes;
            active.segment.set_written_end(taken.end);
        }
        CommitCounters::add(&self.parts.commit_counters.groups, 1);
        CommitCounters::add(&self.parts.commit_counters.group_records, u64::from(taken.records));
        CommitCounters::add(&self.parts.commit_counters.bytes_written, taken.end - taken.base);
    }

    /// Publishes what the kernel's having it is enough for.
    fn publish_written(&self, taken: &mut Taken) {
        if taken.publications.iter().any(|publication| publication.when == PublishWhen::Written) {
            self.publish(taken, PublishWhen::Written);
            // The group may wait long for a sync; what it still needs its keys for is all that stays.
            taken.publications.retain(|rest| rest.when != PublishWhen::Written || is_delete(rest));
        }
    }

    fn publish(&self, taken: &Taken, when: PublishWhen) {
        let due = taken.publications.iter().filter(|publication| publication.when == when);
        let records = due.map(|publication| (taken.key(publication), publication));
        let publish_all = || publish_many(&self.parts.keydir, &self.parts.segments, &taken.segment, records);
        if taken.has_batch {
            self.parts.keydir.atomically(publish_all);
        } else {
            publish_all();
        }
    }

    /// Resolves, in their order, the groups that have what they asked for.
    fn resolve(&mut self) {
        let durable_seq = self.parts.log.durable_seq();
        while let Some(taken) = self.written.front() {
            if taken.wants_sync && taken.last_seq > durable_seq && !seeded_bug::is(SeededBug::AckBeforeSync) {
                return;
            }
            let Some(taken) = self.written.pop_front() else { return };
            self.publish(&taken, PublishWhen::Resolved);
            for publication in taken.publications.iter().filter(|publication| is_delete(publication)) {
                self.parts.keydir.sweep(taken.key(publication), publication.seq);
            }
            self.parts.log.set_resolved(taken.last_seq);
            taken.group.advance(Phase::Resolved);
            self.parts.log.recycle(taken.buffer);
        }
    }

    // ---- syncs ---------------------------------------------------------------------------------------------------

    /// A sync that nobody waits for may have 16 MiB of writes and more to bring to the disk: it is done behind the task,
    /// which goes on writing.
    fn start_sync(&mut self) {
        let is_awaited = self.awaits_sync();
        let Some(active) = &self.active else {
            // Everything was synced when the last segment was sealed.
            self.unsynced_since = None;
            self.parts.log.set_durable(self.written_seq, 0);
            return;
        };
        self.unsynced_since = None;
        CommitCounters::add(&self.parts.commit_counters.syncs, 1);
        self.sync = Some(SyncInFlight {
            started: self.parts.io.now(),
            op: if is_awaited { active.file.sync(SyncKind::Data) } else { active.file.sync_behind(SyncKind::Data) },
            seq: self.written_seq,
            end: active.end,
        });
    }

    fn finish_sync(&mut self, result: io::Result<()>) -> Result<(), Fatal> {
        let Some(sync) = self.sync.take() else { return Ok(()) };
        if let Err(error) = result
            && !seeded_bug::is(SeededBug::SyncErrorDropped)
        {
            return Err(self.poison("sync", error));
        }
        if let Some(active) = &mut self.active {
            active.durable_end = sync.end;
        }
        self.linger.observe_sync(self.parts.io.now().saturating_sub(sync.started));
        let nanos = u64::try_from(self.linger.sync_time().as_nanos()).unwrap_or(u64::MAX);
        self.parts.commit_counters.sync_nanos.store(nanos, Ordering::Relaxed);
        self.parts.log.set_durable(sync.seq, sync.end);
        Ok(())
    }

    /// How the sync in flight ended, if there is one and it did.
    async fn poll_sync(&mut self) -> Option<io::Result<()>> {
        let sync = self.sync.as_mut()?;
        poll_fn(|cx| match sync.op.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// Waits for the sync in flight, if there is one.
    pub(super) async fn settle_sync(&mut self) -> Result<(), Fatal> {
        if let Some(sync) = &mut self.sync {
            let result = sync.op.as_mut().await;
            self.finish_sync(result)?;
        }
        Ok(())
    }

    /// Makes everything written durable, now.
    pub(super) async fn sync_now(&mut self) -> Result<(), Fatal> {
        self.settle_sync().await?;
        let is_clean = self.active.as_ref().is_none_or(|active| active.durable_end == active.end);
        if !is_clean || !self.written.is_empty() {
            self.start_sync();
            self.settle_sync().await?;
        }
        self.resolve();
        Ok(())
    }

    // ---- failure -------------------------------------------------------------------------------------------------

    /// A write failed. Takes back what of it may have reached the file.
    async fn roll_back(&mut self, taken: Taken, cause: io::Error) -> Result<(), Fatal> {
        let error = self.place_error("append", cause).at_offset(taken.base);
        self.settle_sync().await?;
        let cut = match &mut self.active {
            Some(active) => {
                active.retired = true;
                active.filled_end = active.end;
                cut_back(&*active.file, active.end).await
            }
            None => Ok(()),
        };
        if let Err(cut_error) = cut {
            return Err(self.poison("cut back after a failed append", cut_error));
        }
        // The cut was synced, and with it everything before it.
        if let Some(active) = &mut self.active {
            active.durable_end = active.end;
            self.parts.log.set_durable(self.written_seq, active.end);
            self.unsynced_since = None;
        }
        self.resolve();
        let nothing_acknowledged = !taken.has_buffered && self.parts.log.abandon_staged(&error);
        if !nothing_acknowledged {
            let message = format!("buffered writes could not be written: {error}");
            return Err(Fatal(Error::new(ErrorKind::Poisoned, message).with_source(error)));
        }
        self.parts.log.release_run(&taken);
        taken.group.fail(error);
        // The spent numbers are as durable as they will ever be.
        let spent = self.parts.log.next_seq() - 1;
        self.written_seq = spent;
        self.parts.log.set_durable(spent, taken.base);
        self.parts.log.set_resolved(spent);
        Ok(())
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

async fn cut_back(file: &dyn File, end: u64) -> io::Result<()> {
    file.truncate(end)?;
    file.sync(SyncKind::All).await
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
