//! One group: write it, publish it, resolve it, or roll it back.
//!
//! # Failure
//!
//! A failed write is rolled back: the file is cut back to its last valid end, and the cut is synced. Then the writers
//! of the group get an error with the outcome "not applied", and the segment is sealed, so that no later record lies
//! where the failed ones did. If the group held `Buffered` writes, which were already acknowledged, or if the cut
//! fails, the store is poisoned.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use super::active::Fatal;
use super::group::Phase;
use super::parts::CommitCounters;
use super::publish::publish_many;
use super::stage::{PublishWhen, Taken, is_delete};
use super::task::Committer;
use crate::error::{Error, ErrorKind};
use crate::io::{File, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};

/// Writeback starts when this many bytes have gathered that no sync is about to write.
const WRITEBACK_BYTES_MIN: u64 = 1 << 20;
/// Writeback stops at the last full page; the next append continues the partial one. With larger pages, a partial
/// page is written twice.
const PAGE_BYTES: u64 = 4096;

impl Committer {
    /// Writes a group and wakes the writers that wait for the kernel only.
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

    /// The one contiguous write. A sync that ends meanwhile is handled at once.
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
                        // The kernel may still be writing. Nothing else may happen to the file before that ends.
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

    /// Starts writeback of the full pages, so that a seal or a later sync does not wait for hundreds of MiB.
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

    /// Publishes the records whose durability is `Written`.
    fn publish_written(&self, taken: &mut Taken) {
        if taken.publications.iter().any(|publication| publication.when == PublishWhen::Written) {
            self.publish(taken, PublishWhen::Written);
            // The group may wait long for a sync. Only publications that still need their keys stay.
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

    /// Resolves, in order, the groups that have reached what their writers asked for.
    pub(super) fn resolve(&mut self) {
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

    /// Handles a failed write: removes what may have reached the file.
    async fn roll_back(&mut self, taken: Taken, cause: io::Error) -> Result<(), Fatal> {
        let error = self.io_error("append", cause).at_offset(taken.base);
        self.settle_sync().await?;
        let cut = match &mut self.active {
            Some(active) => {
                active.must_seal = true;
                active.prewritten_end = active.end;
                cut_back(&*active.file, active.end).await
            }
            None => Ok(()),
        };
        if let Err(cut_error) = cut {
            return Err(self.poison("truncate after a failed append", cut_error));
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
            let message = "buffered writes could not be written";
            return Err(Fatal(Error::new(ErrorKind::Poisoned, message).with_source(error)));
        }
        self.parts.log.release_run(&taken);
        taken.group.fail(error);
        // The spent sequence numbers need no sync.
        let spent = self.parts.log.next_seq() - 1;
        self.written_seq = spent;
        self.parts.log.set_durable(spent, taken.base);
        self.parts.log.set_resolved(spent);
        Ok(())
    }
}

async fn cut_back(file: &dyn File, end: u64) -> io::Result<()> {
    file.truncate(end)?;
    file.sync(SyncKind::All).await
}
