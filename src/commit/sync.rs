//! Syncs of the active segment: at most one is in flight, and it covers the groups written before it was submitted.
//!
//! A failed sync poisons the store. It is never retried: the kernel may have dropped the pages that it could not
//! write.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::Ordering;
use std::task::Poll;

use super::active::Fatal;
use super::parts::CommitCounters;
use super::task::{Committer, SegmentSync};
use crate::io::SyncKind;
use crate::seeded_bug::{self, SeededBug};

impl Committer {
    /// Starts a sync. One that no caller waits for may have to write 16 MiB or more: it runs in the background, and
    /// the task goes on writing.
    pub(super) fn start_sync(&mut self) {
        let is_awaited = self.awaits_sync();
        let Some(active) = &self.active else {
            // Everything was synced when the last segment was sealed.
            self.unsynced_since = None;
            self.parts.log.set_durable(self.written_seq, 0);
            return;
        };
        self.unsynced_since = None;
        CommitCounters::add(&self.parts.commit_counters.syncs, 1);
        self.sync = Some(SegmentSync {
            started: self.parts.io.now(),
            op: if is_awaited { active.file.sync(SyncKind::Data) } else { active.file.sync_behind(SyncKind::Data) },
            seq: self.written_seq,
            end: active.end,
        });
    }

    pub(super) fn finish_sync(&mut self, result: io::Result<()>) -> Result<(), Fatal> {
        let Some(sync) = self.sync.take() else { return Ok(()) };
        if let Err(error) = result
            && !seeded_bug::is(SeededBug::SyncErrorDropped)
        {
            return Err(self.poison("sync", error));
        }
        if let Some(active) = &mut self.active {
            active.durable_end = sync.end;
        }
        self.delay.observe_sync(self.parts.io.now().saturating_sub(sync.started));
        let nanos = u64::try_from(self.delay.sync_time().as_nanos()).unwrap_or(u64::MAX);
        self.parts.commit_counters.sync_nanos.store(nanos, Ordering::Relaxed);
        self.parts.log.set_durable(sync.seq, sync.end);
        Ok(())
    }

    /// The result of the sync in flight, if it has ended.
    pub(super) async fn poll_sync(&mut self) -> Option<io::Result<()>> {
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

    /// Makes everything written durable before it returns.
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
}
