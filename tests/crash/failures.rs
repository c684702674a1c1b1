//! Every operation of a scenario fails, in every way an operation can fail.
//!
//! A run without faults says how many operations there are. Then, for each of them and for each kind of failure, the
//! scenario runs again with that operation failing, once or from there on. Calls may then fail, but what they say must
//! be true: of a power cut there and then, of the store that is opened again when the fault is gone, and of a power cut
//! after that.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringcask::Store;
use ringcask::sim::{Fault, FaultKind, Image, OpClass, Rng, SimConfig, SimWorld};

use crate::explore::{no_panics, panic_text, recover};
use crate::model::{Crash, EXTRA_KEY, Generation, State};
use crate::workload::{Op, Run, Setup, Workload, read_all};

/// How an operation is made to fail.
const KINDS: [FaultKind; 6] =
    [FaultKind::EIO, FaultKind::ENOSPC, FaultKind::EINTR, FaultKind::EMFILE, FaultKind::Short(1), FaultKind::Short(0)];

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub scenarios: u64,
    /// Runs in which an operation failed.
    pub runs: u64,
    /// Of these, runs in which the store could not be opened.
    pub unopened: u64,
    pub crashes: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.scenarios += other.scenarios;
        self.runs += other.runs;
        self.unopened += other.unopened;
        self.crashes += other.crashes;
    }
}

/// A disk to begin with, what a store shows of it, and what is then done with it.
struct Scenario {
    seed: u64,
    image: Image,
    base: State,
    highest_version: u64,
    setup: Setup,
    ops: Vec<Op>,
    numbers: u32,
}

impl Scenario {
    /// Every second one begins with what a crash left.
    fn from_seed(seed: u64) -> Result<Self, String> {
        let mut rng = Rng::new(seed ^ 0xfa11);
        let mut setup = Setup::random(&mut rng);
        setup.segment_bytes = 1024;
        (setup.world.short_percent, setup.world.interrupt_percent) = (0, 0);
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
        if seed.is_multiple_of(2) {
            let world = SimWorld::new(scenario.setup.world.clone());
            let mut run = Run::new(&world, &scenario.setup, false, &mut numbers);
            let ran = world.run_until(async {
                let store = scenario.setup.builder(&world).open().await.map_err(|error| format!("{error:?}"))?;
                run.opened(State::default(), 0);
                run.run(store, &Workload::sequel(&mut rng)).await
            });
            run.settle();
            let images = world.crash_images(1 + rng.below(8), &mut rng);
            scenario.image = images.last().cloned().ok_or("no image")?;
            let last = run.history.generations.last().cloned().ok_or("no generation")?;
            world.shutdown();
            ran?;
            scenario.base = recover(scenario.image.clone(), &scenario.setup, seed, false)?.state;
            scenario.highest_version = last.spent(usize::MAX - 1, &scenario.base);
        }
        scenario.numbers = numbers;
        while scenario.ops.len() < 4 {
            let ops = Workload::sequel(&mut rng).into_iter();
            // Opening again is what comes after the fault.
            scenario.ops.extend(ops.filter(|op| !matches!(op, Op::Reopen)).take(2));
        }
        let at = rng.below(scenario.ops.len());
        scenario.ops.insert(at, Workload::group(&mut rng));
        Ok(scenario)
    }

    /// Runs with `fault`; says how many operations there were, and how many failed.
    fn run(&self, fault: Option<Fault>, tally: &mut Tally) -> Result<(u64, u64), String> {
        let world = SimWorld::from_image(self.image.clone(), SimConfig { journal: false, ..self.setup.world.clone() });
        let result = catch_unwind(AssertUnwindSafe(|| self.run_in(&world, fault, tally)));
        let panics = no_panics(&world);
        world.shutdown();
        let counts = result.unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
        panics?;
        Ok(counts)
    }

    fn run_in(&self, world: &SimWorld, fault: Option<Fault>, tally: &mut Tally) -> Result<(u64, u64), String> {
        if let Some(fault) = fault {
            world.inject(fault);
        }
        let mut numbers = self.numbers;
        let mut run = Run::new(world, &self.setup, fault.is_some(), &mut numbers);
        let opened = world.run_until(async {
            let Ok(store) = self.setup.builder(world).open().await else { return Ok(false) };
            run.opened(self.base, self.highest_version);
            let store = run.run(store, &self.ops).await?;
            let closed = store.close().await;
            if fault.is_none() {
                closed.map_err(|error| format!("closing: {error:?}"))?;
            }
            Ok::<_, String>(true)
        })?;
        if !opened && fault.is_none() {
            return Err("the store cannot be opened".to_owned());
        }
        run.settle();
        let counts = (world.op_count(OpClass::Any), world.fault_count());
        tally.runs += u64::from(counts.1 > 0);
        tally.unopened += u64::from(!opened);
        let before = Generation::new(self.base, 0, self.highest_version);
        let generation = run.history.generations.last().unwrap_or(&before);
        self.aftermath(world, generation, tally)?;
        Ok(counts)
    }

    fn aftermath(&self, world: &SimWorld, generation: &Generation, tally: &mut Tally) -> Result<(), String> {
        let mut rng = Rng::new(self.seed);
        let now = usize::MAX - 1;
        let step = world.step() + 1;
        for image in world.crash_images(2, &mut rng) {
            tally.crashes += 1;
            let state = recover(image, &self.setup, rng.next_u64(), false)
                .map_err(|error| format!("after a power cut with the fault: {error}"))?
                .state;
            generation.check(step, Crash::Power, &state).map_err(|error| format!("a power cut: {error}"))?;
        }
        world.heal();
        let (store, state) = world.run_until(async {
            let store = self.setup.builder(world).open().await;
            let store = store.map_err(|error| format!("opening without the fault: {error:?}"))?;
            let state = read_all(&store).await?;
            Ok::<(Store, State), String>((store, state))
        })?;
        generation.check(now, Crash::Power, &state).map_err(|error| format!("opened again: {error}"))?;
        let version =
            world.run_until(store.put(EXTRA_KEY, "there")).map_err(|error| format!("a put after all: {error:?}"))?;
        let spent = generation.spent(now, &state);
        if version.get() <= spent {
            return Err(format!("version {version} after {spent}"));
        }
        let image = world.crash_images(3, &mut rng).pop().ok_or("no image")?;
        tally.crashes += 1;
        let later = recover(image, &self.setup, rng.next_u64(), false)
            .map_err(|error| format!("after a power cut without the fault: {error}"))?;
        let kept = later.get_extra().map_err(|error| format!("after all: {error}"))?;
        if later.state != state || kept.as_deref() != Some(&b"there"[..]) {
            return Err(format!("a later power cut left {:x?}, {kept:?} of {state:x?}", later.state));
        }
        world.run_until(store.close()).map_err(|error| format!("closing after all: {error:?}"))
    }
}

/// The scenario of `seed`, with every operation failing in turn.
pub fn fail_everything(seed: u64) -> (Tally, Result<(), String>) {
    let mut tally = Tally { scenarios: 1, ..Tally::default() };
    let result = fail_each(seed, &mut tally);
    (tally, result)
}

fn fail_each(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let scenario = Scenario::from_seed(seed).map_err(|error| format!("scenario {seed}: {error}"))?;
    let (ops, _) = scenario.run(None, tally).map_err(|error| format!("scenario {seed} without a fault: {error}"))?;
    for nth in 0..ops {
        for kind in KINDS {
            for fault in [Fault::once(OpClass::Any, nth, kind), Fault::sticky(OpClass::Any, nth, kind)] {
                scenario.run(Some(fault), tally).map_err(|error| format!("scenario {seed}, {fault:?}: {error}"))?;
            }
        }
    }
    Ok(())
}
