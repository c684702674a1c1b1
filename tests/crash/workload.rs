//! Workloads: made from a seed, run against a store, and written down as a history.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::io::{Io, OpFuture};
use ringcask::sim::{DirOrder, Fault, FaultKind, OpClass, Rng, SimConfig, SimWorld};
use ringcask::{
    Batch, Builder, CompactOptions, Compaction, Durability, ErrorKind, Outcome, PutOptions, Recovery, Store,
};

use crate::model::{
    COMMON_KEYS, Crash, EXTRA_KEY, Fate, Generation, History, State, WriteRec, identify, is_shared, key_name,
    value_bytes, value_id,
};
use crate::swarm::{self, Mix, is_swarm};

/// Workloads with seeds from here on compact, and delete more.
pub const COMPACTING_SEEDS: u64 = 1 << 40;

/// Whether the workload of `seed` compacts.
pub fn compacts(seed: u64) -> bool {
    if is_swarm(seed) { seed.is_multiple_of(2) } else { seed >= COMPACTING_SEEDS }
}

/// One call, or several at once.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: usize,
        durability: Durability,
    },
    Delete {
        key: usize,
        durability: Durability,
    },
    Batch {
        keys: Vec<(usize, bool)>,
        durability: Durability,
    },
    /// Several puts and batches, polled once each in this order, this much simulated time apart; then awaited together.
    Together {
        ops: Vec<Op>,
        apart_micros: u64,
    },
    /// Several callers, each of which waits for one call before it makes the next; puts, deletes, batches and gets.
    Callers {
        lists: Vec<Vec<Op>>,
    },
    /// A put whose future is polled so many times and dropped.
    Dropped {
        key: usize,
        durability: Durability,
        polls: usize,
    },
    Get {
        key: usize,
    },
    Sync,
    Sleep {
        millis: u64,
    },
    /// Time in which a compaction comes a few steps on.
    Wait {
        micros: u64,
    },
    /// A compaction of all segments, or of the sealed ones whose bit is set, beside other operations.
    Compact {
        which: Option<u64>,
        /// A write that is under way when the compaction is asked for.
        early: Option<Box<Op>>,
        ops: Vec<Op>,
        end: End,
    },
    /// Compaction is held where it is, or goes on.
    Pause(bool),
    /// Close and open again, without a crash.
    Reopen,
    /// This much more than is used now, or no limit.
    Space(Option<u64>),
    /// The next operation of this class fails.
    Fail {
        class: OpClass,
        kind: FaultKind,
    },
    /// The operation of this class that so many others go before fails, and perhaps all that follow.
    FailLater {
        class: OpClass,
        after: u64,
        kind: FaultKind,
        sticky: bool,
    },
    /// Nothing fails from here on.
    Heal,
}

/// What becomes of a compaction when the operations beside it are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Awaited,
    Dropped,
    /// The store is closed and opened again while it runs.
    Closed,
}

/// How a store is run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub world: SimConfig,
    pub segment_bytes: u64,
    pub reserve_bytes: u64,
    pub compaction: Compaction,
    pub is_automatic: bool,
    pub staging_bytes: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Workload {
    pub setup: Setup,
    pub ops: Vec<Op>,
    /// Operations may fail: faults or a full disk are among the ops.
    pub may_fail: bool,
    /// Of the swarm, what is done after a crash, too.
    pub mix: Option<Mix>,
}

pub fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())].clone()
}

pub fn durability(rng: &mut Rng, mix: u8) -> Durability {
    match mix {
        0 => Durability::Synced,
        1 => Durability::Written,
        2 => Durability::Buffered,
        _ => pick(rng, &[Durability::Synced, Durability::Written, Durability::Buffered]),
    }
}

impl Setup {
    pub fn random(rng: &mut Rng) -> Self {
        let rough = rng.percent(25);
        let seed = rng.next_u64();
        let (compaction, is_automatic) = random_compaction(&mut Rng::new(seed ^ 0xc0));
        Self {
            compaction,
            is_automatic,
            staging_bytes: None,
            world: SimConfig {
                seed,
                sector_bytes: pick(rng, &[512, 512, 4096]),
                dir_order: pick(rng, &[DirOrder::Posix, DirOrder::Posix, DirOrder::Ext4Ordered]),
                nowait_miss_percent: pick(rng, &[0, 30, 100]),
                short_percent: if rough { 20 } else { 0 },
                interrupt_percent: if rough { 10 } else { 0 },
                late_percent: 0,
                allocate: !rng.percent(10),
                capacity_bytes: None,
                journal: true,
            },
            segment_bytes: pick(rng, &[1024, 1500, 2048, 4096]),
            reserve_bytes: pick(rng, &[0, 0, 1024, 8192]),
        }
    }

    pub fn builder(&self, world: &SimWorld) -> Builder {
        let io: Arc<dyn Io> = Arc::new(world.clone());
        let builder = match self.staging_bytes {
            Some(bytes) => Store::builder("/db").staging_bytes(bytes),
            None => Store::builder("/db"),
        };
        builder
            .world(io)
            .segment_bytes(self.segment_bytes)
            .reserve_bytes(self.reserve_bytes)
            .compaction(self.compaction.clone())
    }

    /// For a directory that has lost its MANIFEST.
    pub fn salvaging(&self, world: &SimWorld) -> Builder {
        self.builder(world).recovery(Recovery::Salvage)
    }
}

/// Compaction as a store may be told to do it, and whether by itself.
fn random_compaction(rng: &mut Rng) -> (Compaction, bool) {
    let is_automatic = rng.percent(50);
    let compaction = Compaction::new()
        .automatic(is_automatic)
        .trigger(pick(rng, &[0.05, 0.2, 0.5, 0.8]))
        .threshold(pick(rng, &[0.01, 0.05, 0.25]))
        .budget_bytes(pick(rng, &[1024, 4096, 1 << 20]))
        .bytes_per_second(pick(rng, &[None, None, None, Some(64 << 10)]));
    (compaction, is_automatic)
}

impl Workload {
    pub fn from_seed(seed: u64) -> Self {
        if is_swarm(seed) {
            return swarm::workload(seed);
        }
        let mut rng = Rng::new(seed);
        let setup = Setup::random(&mut rng);
        let count = 3 + rng.below(26);
        let trouble = rng.below(10);
        let mix = u8::try_from(rng.below(6)).unwrap();
        let random_op = if compacts(seed) { compacting_op } else { random_op };
        let mut ops: Vec<Op> = (0..count).map(|_| random_op(&mut rng, mix)).collect();
        let mut insert = |rng: &mut Rng, op: Op| {
            let at = rng.below(ops.len() + 1);
            ops.insert(at, op);
        };
        match trouble {
            0 => {
                for _ in 0..1 + rng.below(3) {
                    let space = rng.below(2500) as u64;
                    insert(&mut rng, Op::Space(Some(space)));
                    insert(&mut rng, Op::Space(None));
                }
            }
            1 => {
                let kinds = [FaultKind::SyncKept, FaultKind::SyncLost, FaultKind::SyncPartial, FaultKind::EIO];
                let kind = pick(&mut rng, &kinds);
                insert(&mut rng, Op::Fail { class: OpClass::Sync, kind });
                ops.push(Op::Reopen);
                ops.extend((0..4).map(|_| random_op(&mut rng, mix)));
            }
            2 => {
                for _ in 0..1 + rng.below(2) {
                    let kind = pick(&mut rng, &[FaultKind::EIO, FaultKind::ENOSPC, FaultKind::Short(0)]);
                    insert(&mut rng, Op::Fail { class: OpClass::Write, kind });
                }
            }
            _ => {}
        }
        Self { setup, ops, may_fail: trouble < 3, mix: None }
    }

    /// Synced writes that share their groups.
    pub fn group(rng: &mut Rng) -> Op {
        together(rng, 0)
    }

    /// A compaction beside other operations, which it is waited for after.
    pub fn compaction(rng: &mut Rng) -> Op {
        let ops = (0..2 + rng.below(3)).map(|_| beside_op(rng, 3)).collect();
        // Of what is sealed, mostly: then nothing waits for the write that is under way.
        let which = rng.percent(70).then_some(u64::MAX);
        let early = Op::Put { key: rng.below(COMMON_KEYS), durability: Durability::Synced };
        Op::Compact { which, early: Some(Box::new(early)), ops, end: End::Awaited }
    }

    /// A few operations for a store that was just recovered; none of them may fail.
    pub fn sequel(rng: &mut Rng, compacts: bool) -> Vec<Op> {
        let mix = u8::try_from(rng.below(6)).unwrap();
        let count = 2 + rng.below(5);
        let random_op = if compacts { compacting_op } else { random_op };
        (0..count).map(|_| random_op(rng, mix)).collect()
    }
}

fn random_op(rng: &mut Rng, mix: u8) -> Op {
    let key = rng.below(COMMON_KEYS);
    let durability = durability(rng, mix);
    match rng.below(100) {
        0..45 => Op::Put { key, durability },
        45..55 => Op::Delete { key, durability },
        55..65 => random_batch(rng, durability),
        65..75 => together(rng, mix),
        75..80 => Op::Dropped { key, durability, polls: rng.below(4) },
        80..87 => Op::Get { key },
        87..92 => Op::Sync,
        92..96 => Op::Sleep { millis: pick(rng, &[1, 6, 1100]) },
        _ => Op::Reopen,
    }
}

/// One operation of a workload that compacts.
fn compacting_op(rng: &mut Rng, mix: u8) -> Op {
    match rng.below(100) {
        0..20 => random_compact(rng, mix),
        20..24 => Op::Reopen,
        24..26 => Op::Pause(rng.percent(50)),
        26..29 => together(rng, mix),
        _ => beside_op(rng, mix),
    }
}

/// One operation that may go on beside a compaction.
fn beside_op(rng: &mut Rng, mix: u8) -> Op {
    let key = rng.below(COMMON_KEYS);
    let durability = durability(rng, mix);
    match rng.below(100) {
        0..38 => Op::Put { key, durability },
        38..64 => Op::Delete { key, durability },
        64..72 => random_batch(rng, durability),
        72..74 => Op::Dropped { key, durability, polls: rng.below(4) },
        74..82 => Op::Get { key },
        82..86 => Op::Sync,
        86..97 => Op::Wait { micros: pick(rng, &[20, 100, 300, 1000, 3000]) },
        _ => Op::Sleep { millis: pick(rng, &[6, 60, 1100]) },
    }
}

pub fn random_compact(rng: &mut Rng, mix: u8) -> Op {
    let which = rng.percent(60).then(|| rng.next_u64());
    let key = rng.below(COMMON_KEYS);
    // Most of those that are under way when a job begins wait for the disk: their numbers are given out, and no more.
    let durability = if rng.percent(60) { Durability::Synced } else { durability(rng, mix) };
    let early = rng
        .percent(45)
        .then(|| Box::new(if rng.percent(80) { Op::Delete { key, durability } } else { Op::Put { key, durability } }));
    let count = if rng.percent(50) { 0 } else { 1 + rng.below(5) };
    let mut ops: Vec<Op> = (0..count).map(|_| beside_op(rng, mix)).collect();
    if rng.percent(10) {
        ops.insert(0, Op::Pause(true));
        ops.push(Op::Pause(false));
    }
    let end = pick(rng, &[End::Awaited, End::Awaited, End::Awaited, End::Awaited, End::Dropped, End::Closed]);
    Op::Compact { which, early, ops, end }
}

pub fn together(rng: &mut Rng, mix: u8) -> Op {
    let ops = (0..2 + rng.below(6)).map(|_| {
        let durability = durability(rng, mix);
        match rng.below(4) {
            0 => random_batch(rng, durability),
            _ => Op::Put { key: rng.below(COMMON_KEYS), durability },
        }
    });
    Op::Together { ops: ops.collect(), apart_micros: pick(rng, &[0, 0, 30, 100, 300]) }
}

pub fn random_batch(rng: &mut Rng, durability: Durability) -> Op {
    let keys = (0..1 + rng.below(4)).map(|_| (rng.below(COMMON_KEYS), rng.percent(25))).collect();
    Op::Batch { keys, durability }
}

pub type WriteFuture = Pin<Box<dyn Future<Output = Result<Option<u64>, ringcask::Error>>>>;

/// A run of operations and what came of it.
pub struct Run<'w> {
    pub world: &'w SimWorld,
    pub setup: &'w Setup,
    pub may_fail: bool,
    pub history: History,
    pub numbers: &'w mut u32,
    /// A compaction that nobody waits for may take segments that are named to the next one.
    is_unwatched: bool,
    /// The step at which the opening that is on began.
    opening: usize,
}

impl<'w> Run<'w> {
    pub fn new(world: &'w SimWorld, setup: &'w Setup, may_fail: bool, numbers: &'w mut u32) -> Self {
        let is_unwatched = setup.is_automatic;
        Self { world, setup, may_fail, history: History::default(), numbers, is_unwatched, opening: 0 }
    }

    pub fn generation(&mut self) -> &mut Generation {
        self.history.generations.last_mut().expect("an open store")
    }

    /// A store that has been opened and shows `base`.
    pub fn opened(&mut self, base: State, highest_version: u64) {
        let step = self.world.step();
        self.history.recoveries.push((self.opening, step));
        self.history.generations.push(Generation::new(base, step, highest_version));
    }

    pub async fn close(&mut self, store: &Store) -> Result<(), ringcask::Error> {
        let began = self.world.step();
        let closed = store.close().await;
        self.opening = self.world.step();
        self.history.closes.push((began, self.opening));
        closed
    }

    /// Runs `ops`; returns the store, open, unless it could not be opened again.
    pub async fn run(&mut self, mut store: Store, ops: &[Op]) -> Result<Store, String> {
        for op in ops {
            let (before, jobs) = (self.world.step(), jobs_over(&store));
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
                    self.history.jobs.push((before, self.world.step()));
                }
                op => self.call(&store, op).await?,
            }
            if jobs_over(&store) != jobs {
                self.history.jobs.push((before, self.world.step()));
            }
            let observed = (self.world.step(), store.durable_version().get());
            self.generation().durable_versions.push(observed);
        }
        Ok(store)
    }

    /// Runs one operation that neither closes the store nor compacts it.
    async fn call(&mut self, store: &Store, op: &Op) -> Result<(), String> {
        match op {
            Op::Get { key } => self.get(store, *key).await?,
            Op::Sync => self.sync(store).await?,
            Op::Sleep { millis } => self.world.sleep(Duration::from_millis(*millis)).await,
            Op::Wait { micros } => self.world.sleep(Duration::from_micros(*micros)).await,
            Op::Pause(true) => store.pause_compaction(),
            Op::Pause(false) => store.resume_compaction(),
            Op::Space(space) => self.world.set_capacity(space.map(|space| self.world.used_bytes() + space)),
            Op::Fail { class, kind } => {
                self.world.inject(Fault::once(*class, self.world.op_count(*class), *kind));
            }
            Op::FailLater { class, after, kind, sticky } => {
                let nth = self.world.op_count(*class) + after;
                self.world.inject(Fault { class: *class, nth, kind: *kind, sticky: *sticky });
            }
            Op::Heal => self.world.heal(),
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

    /// Asks for a compaction while the write `early` is under way, and then runs `ops`.
    async fn compact(
        &mut self,
        store: &Store,
        which: Option<u64>,
        early: Option<&Op>,
        ops: &[Op],
    ) -> Result<Running, String> {
        let first = self.generation().writes.len();
        let mut under_way = Vec::new();
        if let Some(op) = early {
            let (mut future, record) = self.begin(store, op);
            self.generation().writes.push(record);
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => self.resolve(first, result)?,
                Poll::Pending => under_way.push(Some(future)),
            }
        }
        let mut future = Box::pin(store.compact(options(store, which)));
        let early_result = match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result.map(drop)),
            Poll::Pending => None,
        };
        self.drive(first, &mut under_way, usize::MAX, None).await?;
        for op in ops {
            self.call(store, op).await?;
        }
        Ok(match early_result {
            Some(result) => Running::Over(result),
            None => Running::On(Box::pin(async move { future.await.map(drop) })),
        })
    }

    async fn await_compaction(&mut self, store: &Store, running: Running) -> Result<(), String> {
        store.resume_compaction();
        let result = match running {
            Running::Over(result) => result,
            Running::On(future) => future.await,
        };
        match result {
            Ok(()) => self.look(store).await,
            Err(_) if self.may_fail => Ok(()),
            Err(error) if self.is_unwatched && error.kind() == ErrorKind::InvalidInput => Ok(()),
            Err(error) => Err(format!("a compaction failed without a fault: {error:?}")),
        }
    }

    /// What can be read must be what was written, all of it.
    pub async fn look(&mut self, store: &Store) -> Result<(), String> {
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
        expected.check(usize::MAX - 1, Crash::Power, &found).map_err(|error| format!("an open store: {error}"))
    }

    pub fn settle(&mut self) {
        for generation in &mut self.history.generations {
            generation.settle();
        }
    }

    /// Makes the future of a write and the note of it.
    pub fn begin(&mut self, store: &Store, op: &Op) -> (WriteFuture, WriteRec) {
        let started = self.world.step();
        let mut new_value = |key: usize| {
            *self.numbers += 1;
            value_id(key, *self.numbers)
        };
        match op {
            Op::Delete { key, durability } => {
                let delete = store.delete_with(key_name(*key), PutOptions::new().durability(*durability));
                // Told apart from a write by having no version: `Some(0)` is "it existed".
                let future = Box::pin(async move { Ok(delete.await?.then_some(0)) });
                (future, WriteRec::new(vec![(*key, 0)], started, *durability))
            }
            Op::Batch { keys, durability } => {
                let mut batch = Batch::new();
                batch.durability(*durability);
                let mut effects = Vec::new();
                for (key, delete) in keys {
                    let id = if *delete { 0 } else { new_value(*key) };
                    if *delete {
                        batch.delete(key_name(*key));
                    } else {
                        batch.put(key_name(*key), value_bytes(id));
                    }
                    effects.push((*key, id));
                }
                let write = store.write(batch);
                let future = Box::pin(async move { Ok(Some(write.await?.get())) });
                (future, WriteRec::new(effects, started, *durability))
            }
            Op::Put { key, durability } => {
                let id = new_value(*key);
                let options = PutOptions::new().durability(*durability);
                let put = store.put_with(key_name(*key), value_bytes(id), options);
                let future = Box::pin(async move { Ok(Some(put.await?.get())) });
                (future, WriteRec::new(vec![(*key, id)], started, *durability))
            }
            other => unreachable!("{other:?} is no write"),
        }
    }

    async fn write(
        &mut self,
        store: &Store,
        ops: &[Op],
        apart_micros: u64,
        polls: Option<usize>,
    ) -> Result<(), String> {
        let first = self.generation().writes.len();
        let mut futures = Vec::new();
        for op in ops {
            let (mut future, record) = self.begin(store, op);
            self.generation().writes.push(record);
            let index = first + futures.len();
            // A poll in the order of the calls gives them versions in this order, while there is room.
            let early = match polls {
                Some(_) => Poll::Pending,
                None => future.as_mut().poll(&mut Context::from_waker(Waker::noop())),
            };
            match early {
                Poll::Ready(result) => {
                    self.resolve(index, result)?;
                    futures.push(None);
                }
                Poll::Pending => futures.push(Some(future)),
            }
            if apart_micros > 0 {
                let pause = self.world.sleep(Duration::from_micros(apart_micros));
                self.drive(first, &mut futures, usize::MAX, Some(pause)).await?;
            }
        }
        self.drive(first, &mut futures, polls.unwrap_or(usize::MAX), None).await?;
        if polls.is_some() {
            let write = &mut self.generation().writes[first];
            if write.fate == Fate::InFlight {
                write.fate = Fate::Dropped;
            }
        }
        Ok(())
    }

    /// Polls `futures`, the first of which is write `first`, until all are ready, or the pause is over, or they have
    /// been polled often enough.
    async fn drive(
        &mut self,
        first: usize,
        futures: &mut [Option<WriteFuture>],
        mut polls_left: usize,
        mut pause: Option<OpFuture<()>>,
    ) -> Result<(), String> {
        poll_fn(|cx| {
            if polls_left == 0 {
                return Poll::Ready(Ok(()));
            }
            polls_left -= 1;
            for (offset, place) in futures.iter_mut().enumerate() {
                let Some(future) = place else { continue };
                if let Poll::Ready(result) = future.as_mut().poll(cx) {
                    *place = None;
                    if let Err(failure) = self.resolve(first + offset, result) {
                        return Poll::Ready(Err(failure));
                    }
                }
            }
            let is_over = match &mut pause {
                Some(pause) => pause.as_mut().poll(cx).is_ready(),
                None => futures.iter().all(Option::is_none) || polls_left == 0,
            };
            if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    pub fn resolve(&mut self, index: usize, result: Result<Option<u64>, ringcask::Error>) -> Result<(), String> {
        let step = self.world.step();
        let may_fail = self.may_fail;
        let generation = self.generation();
        let highest = generation.highest_version;
        let write = &mut generation.writes[index];
        write.resolved = step;
        match result {
            Ok(None) => {
                // There was nothing to delete, and nothing was written.
                write.fate = Fate::NotApplied;
                write.resolved = 0;
                write.effects.clear();
            }
            Ok(Some(version)) => {
                write.fate = Fate::Acked;
                if version > 0 {
                    write.version = Some(version);
                    if version <= highest {
                        return Err(format!("version {version} was given out before, when {highest} was the highest"));
                    }
                }
                if write.durability == Durability::Synced {
                    write.durable = step;
                }
                if write.durability != Durability::Buffered {
                    write.written = step;
                }
            }
            Err(error) if may_fail => {
                write.fate = match error.outcome() {
                    Outcome::NotApplied => Fate::NotApplied,
                    _ => Fate::Unknown,
                };
            }
            Err(error) => return Err(format!("a write failed without a fault: {error:?}")),
        }
        Ok(())
    }

    async fn sync(&mut self, store: &Store) -> Result<(), String> {
        let covered = self.generation().writes.len();
        match store.sync().await {
            Ok(_) => {
                let step = self.world.step();
                for write in &mut self.generation().writes[..covered] {
                    if write.fate == Fate::Acked {
                        write.durable = write.durable.min(step);
                    }
                }
                Ok(())
            }
            Err(_) if self.may_fail => Ok(()),
            Err(error) => Err(format!("a sync failed without a fault: {error:?}")),
        }
    }

    async fn get(&mut self, store: &Store, key: usize) -> Result<(), String> {
        let result = store.get(key_name(key)).await;
        self.saw(key, result)
    }

    /// What a reader was told of `key` was written to it, and is durable if its writer asks for that.
    pub fn saw(&mut self, key: usize, result: Result<Option<Bytes>, ringcask::Error>) -> Result<(), String> {
        let found = match result {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(_) if self.may_fail => return Ok(()),
            Err(error) => return Err(format!("a get failed: {error:?}")),
        };
        let step = self.world.step();
        let generation = self.generation();
        let mut possible = vec![generation.base[key]];
        for write in &generation.writes {
            let Some((_, id)) = write.effects.iter().rev().find(|(changed, _)| *changed == key) else { continue };
            match write.fate {
                Fate::Acked if !write.overlaps => possible = vec![*id],
                Fate::NotApplied => {}
                _ => possible.push(*id),
            }
        }
        // Writes made together are ordered by their versions, which this does not look at.
        let together = generation.writes.iter().filter(|write| write.fate == Fate::Acked);
        let issued = together.flat_map(|write| &write.effects).any(|(changed, id)| *changed == key && *id == found);
        if !possible.contains(&found) && !issued {
            return Err(format!("a get of key {key} showed {found:#x}, not one of {possible:x?}"));
        }
        for write in &mut generation.writes {
            if write.durability == Durability::Synced
                && found != 0
                && write.effects.iter().any(|(changed, id)| (*changed, *id) == (key, found))
                && !is_shared(found)
            {
                write.durable = write.durable.min(step);
            }
        }
        Ok(())
    }

    async fn reopen(&mut self, store: Store) -> Result<Store, String> {
        self.look(&store).await?;
        let is_over = |write: &WriteRec| matches!(write.fate, Fate::Acked | Fate::NotApplied);
        let is_still = !self.may_fail && self.generation().writes.iter().all(is_over);
        let live_bytes = store.stats().live_bytes;
        let closed = self.close(&store).await;
        drop(store);
        if closed.is_err() && !self.may_fail {
            return Err(format!("closing failed without a fault: {closed:?}"));
        }
        self.world.heal();
        self.world.set_capacity(None);
        let step = self.world.step();
        self.opening = step;
        if closed.is_ok() {
            for write in &mut self.generation().writes {
                if write.fate == Fate::Acked {
                    write.durable = write.durable.min(step);
                }
            }
        }
        let store = self.setup.builder(self.world).open().await.map_err(|error| format!("reopening: {error:?}"))?;
        let counted = store.stats().live_bytes;
        if is_still && counted != live_bytes {
            return Err(format!("{live_bytes} bytes were alive, and now {counted} are"));
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

/// A compaction that was asked for.
enum Running {
    Over(Result<(), ringcask::Error>),
    On(Pin<Box<dyn Future<Output = Result<(), ringcask::Error>>>>),
}

/// How many jobs have come to their end, or failed.
fn jobs_over(store: &Store) -> u64 {
    let stats = store.stats();
    stats.compactions + stats.compaction_failures
}

fn options(store: &Store, which: Option<u64>) -> CompactOptions {
    let Some(bits) = which else { return CompactOptions::new() };
    let sealed: Vec<u64> = store.stats().segments.iter().filter(|it| it.sealed).map(|it| it.id).collect();
    let named = sealed.iter().enumerate().filter(|(nth, _)| bits >> (nth % 64) & 1 == 1).map(|(_, id)| *id);
    CompactOptions::new().segments(named)
}

/// Reads every key: each has what is `held` of it, or is reported as damaged.
pub async fn read_undamaged(store: &Store, held: &State) -> Result<(), String> {
    for (key, id) in held.iter().enumerate() {
        let found = match store.get(key_name(key)).await {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(error) if error.kind() == ErrorKind::Corrupt => continue,
            Err(error) => return Err(format!("get of key {key}: {error:?}")),
        };
        if found != *id {
            return Err(format!("key {key} holds {found:#x} instead of {id:#x}"));
        }
    }
    Ok(())
}

/// Everything in the store, by all the ways there are to look at it.
pub async fn read_all(store: &Store) -> Result<State, String> {
    let mut state = State::default();
    let mut count = usize::from(store.contains_key(EXTRA_KEY));
    for (key, held) in state.iter_mut().enumerate() {
        // Only the longest key is left. It takes as long to look up as all else takes together, and is not there.
        if key == COMMON_KEYS && store.len() == count {
            break;
        }
        let name = key_name(key);
        let value = store.get(name).await.map_err(|error| format!("get of key {key}: {error:?}"))?;
        if store.contains_key(name) != value.is_some()
            || store.value_len(name) != value.as_ref().map(|bytes| bytes.len() as u64)
        {
            return Err(format!("the views of key {key} differ"));
        }
        *held = value.map_or(Ok(0), |bytes| identify(key, &bytes))?;
        count += usize::from(*held != 0);
    }
    if store.len() != count {
        return Err(format!("len() is {}, but {count} keys have values", store.len()));
    }
    Ok(state)
}
