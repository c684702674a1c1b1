//! Fails every operation of a scenario, in every way an operation can fail.
//!
//! A run without faults counts the operations. Then the scenario runs again for each operation and each kind of
//! failure, with that operation failing once or from there on. Calls may fail in such a run, but their results must be
//! true: after an immediate power cut, in the store that is reopened without the fault, and after a power cut of that
//! store.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use ringcask::testing::sim::{Fault, FaultKind, Image, OpClass, Rng, SimBackend, SimConfig};
use ringcask::{Compaction, ErrorKind, Store};

use super::explore::recover;
use super::workload::{End, Op, Run, Setup, Workload, compacts, read_all};
use crate::support::history_model::{Crash, EXTRA_KEY, Generation, State};
use crate::support::panics::{no_panics, panic_text};

/// The ways an operation is made to fail.
pub const KINDS: [FaultKind; 12] = [
    FaultKind::EIO,
    FaultKind::ENOSPC,
    FaultKind::EDQUOT,
    FaultKind::EFBIG,
    FaultKind::ENOMEM,
    FaultKind::EMFILE,
    FaultKind::EINTR,
    FaultKind::EAGAIN,
    FaultKind::ECANCELED,
    FaultKind::Short(1),
    FaultKind::Short(0),
    FaultKind::Late(30_000),
];

/// Whether calls may fail because of this fault. A fault that still carries out the operation is no excuse.
fn may_fail(fault: Option<Fault>) -> bool {
    fault.is_some_and(|fault| !matches!(fault.kind, FaultKind::Late(_)))
}

/// Counts of what was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub scenarios: u64,
    /// Runs in which an operation failed.
    pub runs: u64,
    /// The part of `runs` in which the store could not be opened.
    pub unopened: u64,
    pub crashes: u64,
    /// Stores that were compacted after the fault ended and before they were closed.
    pub compacted: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.scenarios += other.scenarios;
        self.runs += other.runs;
        self.unopened += other.unopened;
        self.crashes += other.crashes;
        self.compacted += other.compacted;
    }
}

/// An initial disk image, the state that a store shows of it, and the operations to run on that store.
pub struct Scenario {
    seed: u64,
    pub image: Image,
    pub base: State,
    pub highest_version: u64,
    pub setup: Setup,
    pub ops: Vec<Op>,
    pub numbers: u32,
}

impl Scenario {
    /// Every second scenario starts from an image that a crash left.
    pub fn from_seed(seed: u64) -> Result<Self, String> {
        let mut rng = Rng::new(seed ^ 0xfa11);
        let mut setup = Setup::random(&mut rng);
        setup.segment_bytes = 1024;
        (setup.sim.short_percent, setup.sim.interrupt_percent) = (0, 0);
        let mut numbers = 0;
        let mut scenario = Self {
            seed,
            image: Image::new(),
            base: State::default(),
            highest_version: 0,
            ops: Vec::new(),
            numbers: 0,
            setup,
        };
        if seed.is_multiple_of(2) || compacts(seed) {
            let backend = SimBackend::new(scenario.setup.sim.clone());
            let mut run = Run::new(&backend, &scenario.setup, false, &mut numbers);
            let ran = backend.run_until(async {
                let store = scenario.setup.builder(&backend).open().await.map_err(|error| format!("{error:?}"))?;
                run.opened(State::default(), 0);
                run.run(store, &Workload::sequel(&mut rng, false)).await
            });
            run.settle();
            let images = backend.crash_images(1 + rng.below(8), &mut rng);
            scenario.image = images.last().cloned().ok_or("no image")?;
            let last = run.history.generations.last().cloned().ok_or("no generation")?;
            backend.shutdown();
            ran?;
            scenario.base = recover(scenario.image.clone(), &scenario.setup, seed, false)?.state;
            scenario.highest_version = last.spent(usize::MAX - 1, &scenario.base);
        }
        scenario.numbers = numbers;
        while scenario.ops.len() < 4 {
            let ops = Workload::sequel(&mut rng, false).into_iter();
            // `aftermath` reopens the store after the fault, so the operations leave it out.
            scenario.ops.extend(ops.filter(|op| !matches!(op, Op::Reopen)).take(2));
        }
        let at = rng.below(scenario.ops.len());
        scenario.ops.insert(at, Workload::group(&mut rng));
        if compacts(seed) {
            // One compaction with operations beside it, and at the end a compaction of everything.
            let at = rng.below(scenario.ops.len());
            scenario.ops.insert(at, Workload::compaction(&mut rng));
            scenario.ops.push(Op::Compact { which: None, early: None, ops: Vec::new(), end: End::Awaited });
        }
        Ok(scenario)
    }

    /// Runs with `fault`. Returns the number of operations and the number of failed ones.
    fn run(&self, fault: Option<Fault>, totals: &mut Totals) -> Result<(u64, u64), String> {
        let backend =
            SimBackend::from_image(self.image.clone(), SimConfig { journal: false, ..self.setup.sim.clone() });
        let result = catch_unwind(AssertUnwindSafe(|| self.run_in(&backend, fault, totals)));
        let panics = no_panics(&backend);
        backend.shutdown();
        let counts = result.unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
        panics?;
        Ok(counts)
    }

    fn run_in(&self, backend: &SimBackend, fault: Option<Fault>, totals: &mut Totals) -> Result<(u64, u64), String> {
        if let Some(fault) = fault {
            backend.inject(fault);
        }
        let mut numbers = self.numbers;
        let mut run = Run::new(backend, &self.setup, may_fail(fault), &mut numbers);
        let opened = backend.run_until(async {
            let Ok(store) = self.setup.builder(backend).open().await else { return Ok(false) };
            run.opened(self.base, self.highest_version);
            let store = run.run(store, &self.ops).await?;
            if fault.is_some_and(|fault| compacts(self.seed) && fault.nth.is_multiple_of(2)) {
                backend.heal();
                totals.compacted += u64::from(compact_after_the_fault(&store).await?);
            }
            let closed = store.close().await;
            if !may_fail(fault) {
                closed.map_err(|error| format!("closing: {error:?}"))?;
            }
            Ok::<_, String>(true)
        })?;
        if !opened && !may_fail(fault) {
            return Err("the store cannot be opened".to_owned());
        }
        run.settle();
        let counts = (backend.op_count(OpClass::Any), backend.fault_count());
        totals.runs += u64::from(counts.1 > 0);
        totals.unopened += u64::from(!opened);
        let before = Generation::new(self.base, 0, self.highest_version);
        let generation = run.history.generations.last().unwrap_or(&before);
        self.aftermath(backend, generation, totals)?;
        Ok(counts)
    }

    pub fn aftermath(&self, backend: &SimBackend, generation: &Generation, totals: &mut Totals) -> Result<(), String> {
        let mut rng = Rng::new(self.seed);
        let now = usize::MAX - 1;
        let step = backend.step() + 1;
        for image in backend.crash_images(2, &mut rng) {
            totals.crashes += 1;
            let state = recover(image, &self.setup, rng.next_u64(), false)
                .map_err(|error| format!("after a power cut during the fault: {error}"))?
                .state;
            generation.check(step, Crash::Power, &state).map_err(|error| format!("after a power cut: {error}"))?;
        }
        backend.heal();
        let (store, state) = backend.run_until(async {
            let store = self.setup.builder(backend).open().await;
            let store = store.map_err(|error| format!("the open after the fault: {error:?}"))?;
            let state = read_all(&store).await?;
            Ok::<(Store, State), String>((store, state))
        })?;
        generation.check(now, Crash::Power, &state).map_err(|error| format!("after reopening: {error}"))?;
        let version = backend
            .run_until(store.put(EXTRA_KEY, "there"))
            .map_err(|error| format!("a put after the fault: {error:?}"))?;
        let spent = generation.spent(now, &state);
        if version.get() <= spent {
            return Err(format!("version {version} was assigned, but {spent} was already used"));
        }
        let image = backend.crash_images(3, &mut rng).pop().ok_or("no image")?;
        totals.crashes += 1;
        let later = recover(image, &self.setup, rng.next_u64(), false)
            .map_err(|error| format!("after a power cut after the fault: {error}"))?;
        let kept = later.get_extra().map_err(|error| format!("a get after the fault: {error}"))?;
        if later.state != state || kept.as_deref() != Some(&b"there"[..]) {
            return Err(format!("a later power cut left {:x?}, {kept:?} of {state:x?}", later.state));
        }
        backend.run_until(store.close()).map_err(|error| format!("closing after the fault: {error:?}"))
    }
}

/// If the store still works after the fault, a compaction must succeed and must not change its contents.
async fn compact_after_the_fault(store: &Store) -> Result<bool, String> {
    if store.stats().poisoned {
        return Ok(false);
    }
    let before = read_all(store).await?;
    store.resume_compaction();
    let compacted = store.compact().await;
    compacted.map_err(|error| format!("a compaction after the fault: {error:?}"))?;
    let after = read_all(store).await?;
    if before == after { Ok(true) } else { Err(format!("a compaction changed {before:x?} to {after:x?}")) }
}

/// Compacts on a nearly full disk. The compaction may fail, but no other call may, and it works once there is space.
/// Returns whether the compaction failed.
pub fn compact_on_a_full_disk(seed: u64) -> Result<bool, String> {
    let mut rng = Rng::new(seed);
    let mut setup = Setup::random(&mut rng);
    (setup.segment_bytes, setup.reserve_bytes) = (4096, 0);
    (setup.is_automatic, setup.compaction) = (false, Compaction::new().automatic(false));
    (setup.sim.allocate, setup.sim.journal) = (true, false);
    let backend = SimBackend::new(setup.sim.clone());
    let error_text = |error: ringcask::Error| format!("{error:?}");
    let result = backend.run_until(async {
        let store = setup.builder(&backend).open().await.map_err(error_text)?;
        for number in 0..60 {
            store.put([b'k', number % 20], vec![number; 200]).await.map_err(error_text)?;
        }
        // Starts a fresh active segment, whose space is preallocated.
        store.compact().segments([]).await.map_err(error_text)?;
        let sealed: Vec<u64> = store.stats().segments.iter().filter(|it| it.sealed).map(|it| it.id).collect();
        let used = backend.used_bytes();
        backend.set_capacity(Some(used + rng.below(14_000) as u64));
        let mut compaction = Box::pin(store.compact().segments(sealed.clone()));
        let mut result = None;
        for number in 0..4 {
            if result.is_none()
                && let Poll::Ready(over) = compaction.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                result = Some(over);
            }
            store.delete([b'k', number]).await.map_err(|error| format!("a delete during the compaction: {error:?}"))?;
            store
                .put([b'k', 18 + number % 2], [number])
                .await
                .map_err(|error| format!("a put during the compaction: {error:?}"))?;
        }
        let result = match result {
            Some(result) => result,
            None => compaction.await,
        };
        let has_failed = match result {
            Ok(_) => false,
            Err(error) if error.kind() == ErrorKind::NoSpace && backend.used_bytes() <= used => true,
            Err(error) => {
                return Err(format!("{} bytes used, {used} before the compaction, {error:?}", backend.used_bytes()));
            }
        };
        store.put([b'k', 19], b"after it").await.map_err(error_text)?;
        backend.set_capacity(None);
        if has_failed {
            store.compact().segments(sealed).await.map_err(error_text)?;
        }
        for number in 4..18 {
            let value = store.get([b'k', number]).await.map_err(error_text)?;
            if value.as_deref() != Some(&[40 + number; 200][..]) {
                return Err(format!("key {number} has the value {value:?}"));
            }
        }
        store.close().await.map_err(error_text)?;
        Ok(has_failed)
    });
    let panics = no_panics(&backend);
    backend.shutdown();
    panics.and(result).map_err(|error| format!("full disk, seed {seed}: {error}"))
}

/// Runs the scenario of `seed` with each operation failing in turn, in each of these ways.
pub fn fail_everything(seed: u64, kinds: &[FaultKind]) -> (Totals, Result<(), String>) {
    let mut totals = Totals { scenarios: 1, ..Totals::default() };
    let result = fail_each(seed, kinds, &mut totals);
    (totals, result)
}

fn fail_each(seed: u64, kinds: &[FaultKind], totals: &mut Totals) -> Result<(), String> {
    let scenario = Scenario::from_seed(seed).map_err(|error| format!("scenario {seed}: {error}"))?;
    let (ops, _) = scenario.run(None, totals).map_err(|error| format!("scenario {seed} without a fault: {error}"))?;
    // In every eighth scenario each operation fails in all ways. In the others it fails in a third of the ways, which
    // rotate from one operation to the next.
    let one_in = if kinds.len() < KINDS.len() || seed.is_multiple_of(8) { 1 } else { 3 };
    for nth in 0..ops {
        for (_, &kind) in (nth..).zip(kinds).filter(|(turn, _)| turn % one_in == 0) {
            for fault in [Fault::once(OpClass::Any, nth, kind), Fault::sticky(OpClass::Any, nth, kind)] {
                scenario.run(Some(fault), totals).map_err(|error| format!("scenario {seed}, {fault:?}: {error}"))?;
            }
        }
    }
    Ok(())
}
