//! Runs operations in sequence and records their results.

use std::time::Duration;

use ringcask::Store;
use ringcask::testing::io::Io;
use ringcask::testing::sim::{Fault, SimBackend};

use super::{End, Op, Setup, read_all};
use crate::support::history_model::{Crash, Fate, Generation, History, State, WriteRec};

/// A run of operations and its results.
pub struct Run<'w> {
    pub backend: &'w SimBackend,
    pub setup: &'w Setup,
    pub may_fail: bool,
    pub history: History,
    pub numbers: &'w mut u32,
    /// True while an unawaited compaction may take the segments that the next compaction names.
    pub(super) is_unwatched: bool,
    /// The step at which the current open began.
    opening: usize,
}

impl<'w> Run<'w> {
    pub fn new(backend: &'w SimBackend, setup: &'w Setup, may_fail: bool, numbers: &'w mut u32) -> Self {
        let is_unwatched = setup.is_automatic;
        Self { backend, setup, may_fail, history: History::default(), numbers, is_unwatched, opening: 0 }
    }

    pub fn generation(&mut self) -> &mut Generation {
        self.history.generations.last_mut().expect("an open store")
    }

    /// Records an open that found `base`.
    pub fn opened(&mut self, base: State, highest_version: u64) {
        let step = self.backend.step();
        self.history.recoveries.push((self.opening, step));
        self.history.generations.push(Generation::new(base, step, highest_version));
    }

    pub async fn close(&mut self, store: &Store) -> Result<(), ringcask::Error> {
        let began = self.backend.step();
        let closed = store.close().await;
        self.opening = self.backend.step();
        self.history.closes.push((began, self.opening));
        closed
    }

    /// Runs `ops`. Returns the open store, unless a reopen failed.
    pub async fn run(&mut self, mut store: Store, ops: &[Op]) -> Result<Store, String> {
        for op in ops {
            let (before, jobs) = (self.backend.step(), jobs_over(&store));
            match op {
                Op::Reopen => store = self.reopen(store).await?,
                Op::Compact { which, early, ops, end } => {
                    let running = self.compact(&store, *which, early.as_deref(), ops).await?;
                    match end {
                        End::Awaited => self.await_compaction(&store, running).await?,
                        End::Dropped => {
                            self.is_unwatched = true;
                            drop(running);
                        }
                        End::Closed => {
                            store = self.reopen(store).await?;
                            drop(running);
                        }
                    }
                    self.history.jobs.push((before, self.backend.step()));
                }
                op => self.call(&store, op).await?,
            }
            if jobs_over(&store) != jobs {
                self.history.jobs.push((before, self.backend.step()));
            }
            let observed = (self.backend.step(), store.durable_version().get());
            self.generation().durable_versions.push(observed);
        }
        Ok(store)
    }

    /// Runs one operation that neither closes nor compacts the store.
    pub(super) async fn call(&mut self, store: &Store, op: &Op) -> Result<(), String> {
        match op {
            Op::Get { key } => self.get(store, *key).await?,
            Op::Sync => self.sync(store).await?,
            Op::Sleep { millis } => self.backend.sleep(Duration::from_millis(*millis)).await,
            Op::Wait { micros } => self.backend.sleep(Duration::from_micros(*micros)).await,
            Op::Pause(true) => store.pause_compaction(),
            Op::Pause(false) => store.resume_compaction(),
            Op::Space(space) => self.backend.set_capacity(space.map(|space| self.backend.used_bytes() + space)),
            Op::Fail { class, kind } => {
                self.backend.inject(Fault::once(*class, self.backend.op_count(*class), *kind));
            }
            Op::FailLater { class, after, kind, sticky } => {
                let nth = self.backend.op_count(*class) + after;
                self.backend.inject(Fault { class: *class, nth, kind: *kind, sticky: *sticky });
            }
            Op::Heal => self.backend.heal(),
            Op::Callers { lists } => self.callers(store, lists).await?,
            Op::Together { ops, apart_micros } => self.write(store, ops, *apart_micros, None).await?,
            Op::Dropped { key, durability, polls } => {
                let put = Op::Put { key: *key, durability: *durability };
                self.write(store, &[put], 0, Some(*polls)).await?;
            }
            Op::Put { .. } | Op::Delete { .. } | Op::Batch { .. } => {
                self.write(store, std::slice::from_ref(op), 0, None).await?;
            }
            Op::Reopen | Op::Compact { .. } => unreachable!("{op:?} beside a compaction"),
        }
        Ok(())
    }

    /// Checks that reading everything returns exactly what was written.
    pub async fn check_contents(&mut self, store: &Store) -> Result<(), String> {
        let is_over = |write: &WriteRec| matches!(write.fate, Fate::Acked | Fate::NotApplied);
        if self.may_fail || !self.generation().writes.iter().all(is_over) {
            return Ok(());
        }
        let found = read_all(store).await?;
        let mut expected = self.generation().clone();
        for write in expected.writes.iter_mut().filter(|write| write.fate == Fate::Acked) {
            write.durable = 0;
        }
        expected.settle();
        expected.check(usize::MAX - 1, Crash::Power, &found).map_err(|error| format!("in the open store: {error}"))
    }

    pub fn settle(&mut self) {
        for generation in &mut self.history.generations {
            generation.settle();
        }
    }

    pub(super) async fn sync(&mut self, store: &Store) -> Result<(), String> {
        let covered = self.generation().writes.len();
        match store.sync().await {
            Ok(_) => {
                let step = self.backend.step();
                for write in &mut self.generation().writes[..covered] {
                    if write.fate == Fate::Acked {
                        write.durable = write.durable.min(step);
                    }
                }
                Ok(())
            }
            Err(_) if self.may_fail => Ok(()),
            Err(error) => Err(format!("a sync failed without an injected fault: {error:?}")),
        }
    }

    async fn reopen(&mut self, store: Store) -> Result<Store, String> {
        self.check_contents(&store).await?;
        let is_over = |write: &WriteRec| matches!(write.fate, Fate::Acked | Fate::NotApplied);
        let is_still = !self.may_fail && self.generation().writes.iter().all(is_over);
        let live_bytes = store.stats().live_bytes;
        let closed = self.close(&store).await;
        drop(store);
        if closed.is_err() && !self.may_fail {
            return Err(format!("closing failed without an injected fault: {closed:?}"));
        }
        self.backend.heal();
        self.backend.set_capacity(None);
        let step = self.backend.step();
        self.opening = step;
        if closed.is_ok() {
            for write in &mut self.generation().writes {
                if write.fate == Fate::Acked {
                    write.durable = write.durable.min(step);
                }
            }
        }
        let store = self.setup.builder(self.backend).open().await.map_err(|error| format!("reopening: {error:?}"))?;
        let counted = store.stats().live_bytes;
        if is_still && counted != live_bytes {
            return Err(format!("{live_bytes} bytes were live before reopening, {counted} after"));
        }
        let found = read_all(&store).await?;
        let last = self.generation();
        let mut settled = last.clone();
        settled.settle();
        settled.check(usize::MAX - 1, Crash::Power, &found).map_err(|e| format!("after reopening: {e}"))?;
        let highest = settled.writes.iter().filter_map(|write| write.version).max();
        let highest = highest.unwrap_or(0).max(settled.highest_version);
        self.opened(found, highest);
        Ok(store)
    }
}

/// Number of compaction jobs that have finished or failed.
fn jobs_over(store: &Store) -> u64 {
    let stats = store.stats();
    stats.compactions + stats.compaction_failures
}
