//! From one seed to thousands of crash states: run, crash at every step, recover, check, continue, crash again.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ringcask::bytes::Bytes;
use ringcask::testing::sim::{Image, Journal, OpClass, Rng, SimBackend, SimConfig};
use ringcask::{Builder, Store};

use super::phases::{Counts, Phases};
use super::swarm::is_swarm;
use super::workload::{Run, Setup, Workload, compacts, read_all};
use crate::support::history_model::{Crash, EXTRA_KEY, Generation, History, State};
use crate::support::panics::{no_panics, panic_text};

/// The longest chain of crashes.
const DEPTH: usize = 3;

/// Counts of what was explored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub workloads: u64,
    /// Images that were recovered and checked.
    pub states: u64,
    /// The part of `states` that follows a second or third crash.
    pub second_crashes: u64,
    /// The part of `states` that follows a crash during a recovery.
    pub in_recovery: u64,
    pub kills: u64,
    pub crash_points: u64,
    /// Stores that were recovered, written to, closed and reopened.
    pub sequels: u64,
    /// The part of `states` that follows a crash while compaction was running.
    pub in_jobs: u64,
    /// The part of `in_jobs` with segments unlinked since the directory was last synced.
    pub unlinks: u64,
    /// Stores that were compacted completely after a close.
    pub compacted: u64,
    /// Closed stores that were compacted with one bit of a segment flipped.
    pub damaged: u64,
    /// States that were also opened without their MANIFEST.
    pub salvaged: u64,
    /// Recovered stores that were closed, reopened, used, and then crashed again.
    pub used_further: u64,
    /// States by the phase in which the crash happened.
    pub phases: Counts,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.workloads += other.workloads;
        self.states += other.states;
        self.second_crashes += other.second_crashes;
        self.in_recovery += other.in_recovery;
        self.kills += other.kills;
        self.crash_points += other.crash_points;
        self.sequels += other.sequels;
        self.in_jobs += other.in_jobs;
        self.unlinks += other.unlinks;
        self.compacted += other.compacted;
        self.damaged += other.damaged;
        self.salvaged += other.salvaged;
        self.used_further += other.used_further;
        for (phase, more) in self.phases.iter_mut().zip(other.phases) {
            *phase += more;
        }
    }
}

/// Identifies one crash state of a workload, so that it can be reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub seed: u64,
    pub step: usize,
    pub number: u64,
    pub kill: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, step, number, kill } = self;
        write!(f, "seed={seed},step={step},image={number},kill={kill}")
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut place = Self { seed: 0, step: usize::MAX, number: 0, kill: false };
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or("RINGCASK_REPLAY has a part without =")?;
            let bad = |_| format!("{name}={value}");
            match name {
                "seed" => place.seed = value.parse().map_err(bad)?,
                "step" => place.step = value.parse().map_err(bad)?,
                "image" => place.number = value.parse().map_err(bad)?,
                "kill" => place.kill = value == "true",
                _ => return Err(format!("RINGCASK_REPLAY has an unknown field {name}")),
            }
        }
        Ok(place)
    }
}

/// A store recovered from an image, and its simulated backend.
pub struct Recovered {
    pub backend: SimBackend,
    pub store: Option<Store>,
    pub state: State,
}

impl Recovered {
    /// Files that the open removed.
    pub fn removed(&self) -> Vec<String> {
        self.store.as_ref().map_or_else(Vec::new, |store| store.recovery_report().removed_files.clone())
    }

    /// The value of a key that no workload uses.
    pub fn get_extra(&self) -> Result<Option<Bytes>, String> {
        let store = self.store.as_ref().ok_or("closed")?;
        self.backend.run_until(store.get(EXTRA_KEY)).map_err(|error| format!("{error:?}"))
    }

    fn power_off(&mut self) {
        // The power goes off before the store is dropped: with the power on, the drop would close the store cleanly.
        self.backend.shutdown();
        self.store = None;
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        self.power_off();
    }
}

pub fn recover(image: Image, setup: &Setup, seed: u64, journal: bool) -> Result<Recovered, String> {
    let config = SimConfig { seed, journal, ..setup.sim.clone() };
    let backend = SimBackend::from_image(image, config);
    let builder = setup.builder(&backend);
    recover_with(backend, builder)
}

pub fn recover_with(backend: SimBackend, builder: Builder) -> Result<Recovered, String> {
    let found = backend.image();
    let opened = backend.run_until(async {
        let store = builder.open().await.map_err(|error| format!("opening: {error:?}"))?;
        check_opening(&backend, &found)?;
        let state = read_all(&store).await?;
        Ok::<_, String>((store, state))
    });
    match opened {
        Ok((store, state)) => {
            let recovered = Recovered { backend, store: Some(store), state };
            no_panics(&recovered.backend)?;
            Ok(recovered)
        }
        Err(error) => {
            backend.shutdown();
            Err(error)
        }
    }
}

/// The number of operations that any open may take.
const OPENING_OPS: u64 = 100;
/// Additional operations for each file and for each KiB.
const OPENING_OPS_EACH: u64 = 12;

/// Checks that the open took a bounded number of operations. The bound depends on the files that the open `found`.
fn check_opening(backend: &SimBackend, found: &Image) -> Result<(), String> {
    let (ops, files) = (backend.op_count(OpClass::Any), found.names().count() as u64);
    let bound = OPENING_OPS + OPENING_OPS_EACH * (files + found.total_bytes() / 1024);
    if ops > bound {
        return Err(format!("the open took {ops} operations, the limit is {bound}, for {found:?}"));
    }
    Ok(())
}

/// A finished run of a workload, with its journal.
pub struct Explored {
    pub workload: Workload,
    pub history: History,
    pub journal: Journal,
    pub numbers: u32,
    pub trace: u64,
}

/// Runs the workload of `seed` once, to its end.
pub fn run_workload(seed: u64) -> Result<Explored, String> {
    let workload = Workload::from_seed(seed);
    let backend = SimBackend::new(workload.setup.sim.clone());
    let mut numbers = 0;
    let mut run = Run::new(&backend, &workload.setup, workload.may_fail, &mut numbers);
    let ran = backend.run_until(async {
        let store =
            workload.setup.builder(&backend).open().await.map_err(|error| format!("the first open: {error:?}"))?;
        run.opened(State::default(), 0);
        let store = run.run(store, &workload.ops).await?;
        run.check_contents(&store).await?;
        let closed = run.close(&store).await;
        if closed.is_err() && !workload.may_fail {
            return Err(format!("the last close failed without an injected fault: {closed:?}"));
        }
        Ok(())
    });
    run.settle();
    let history = run.history;
    let ran = ran.and_then(|()| no_panics(&backend));
    let (journal, trace) = (backend.take_journal(), backend.trace_hash());
    backend.shutdown();
    ran?;
    Ok(Explored { workload, history, journal, numbers, trace })
}

/// Explores the crashes of one workload.
pub struct Explorer {
    pub explored: Explored,
    pub seed: u64,
    pub totals: Totals,
    /// True in a replay: a failure then prints the steps that led to it.
    is_replay: bool,
}

impl Explorer {
    pub fn new(seed: u64) -> Result<Self, String> {
        let explored = catch_unwind(|| run_workload(seed)).unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
        Ok(Self { explored, seed, totals: Totals { workloads: 1, ..Totals::default() }, is_replay: false })
    }

    /// Visits all crash points, with up to `budget` images and a kill at each. An error names the place.
    pub fn explore(&mut self, budget: usize) -> Result<(), String> {
        let mut walk = self.explored.journal.replay();
        let mut rng = Rng::new(self.seed ^ 0xc4a5);
        let mut seen = HashSet::new();
        let mut unlinked = false;
        let phases = Phases::of(&self.explored.journal, &self.explored.history);
        loop {
            self.totals.crash_points += 1;
            let step = walk.step();
            let is_in_job = self.explored.history.is_in_job(step);
            if let Some(last) = step.checked_sub(1).filter(|_| is_in_job) {
                let event = self.explored.journal.describe(last);
                unlinked = !event.starts_with("DirSynced")
                    && (unlinked || (event.starts_with("Unlinked") && event.contains(".seg")));
            }
            let states = self.totals.states;
            let picks: Vec<u64> = walk.crash_point().sample(budget, &mut rng).collect();
            let point = walk.crash_point();
            for number in picks {
                let image = point.image(number, self.image_seed(step));
                // Skips a disk image that was already checked with the same obligations.
                if seen.insert((image.hash(), self.obligations(step))) {
                    self.visit(image, Place { seed: self.seed, step, number, kill: false })?;
                }
            }
            let kill = walk.kill_image(&mut Rng::new(self.image_seed(step)));
            if !seen.contains(&(kill.hash(), self.obligations(step))) {
                self.visit(kill, Place { seed: self.seed, step, number: 0, kill: true })?;
            }
            phases.count(step, self.totals.states - states, &mut self.totals.phases);
            if is_in_job {
                self.totals.in_jobs += self.totals.states - states;
                self.totals.unlinks += if unlinked { self.totals.states - states } else { 0 };
            }
            if !walk.advance() {
                return Ok(());
            }
        }
    }

    /// Visits `points` random crash points, with one image at each, and sometimes a kill.
    pub fn sample(&mut self, points: usize) -> Result<(), String> {
        let mut rng = Rng::new(self.seed ^ 0xc4a5);
        let mut steps: Vec<usize> = (0..points).map(|_| rng.below(self.explored.journal.len() + 1)).collect();
        steps.sort_unstable();
        let phases = Phases::of(&self.explored.journal, &self.explored.history);
        let mut walk = self.explored.journal.replay();
        for step in steps {
            walk.advance_to(step);
            self.totals.crash_points += 1;
            let states = self.totals.states;
            let number = rng.below(usize::try_from(walk.crash_point().image_count()).unwrap()) as u64;
            let image = walk.crash_point().image(number, self.image_seed(step));
            self.visit(image, Place { seed: self.seed, step, number, kill: false })?;
            if rng.percent(25) {
                let kill = walk.kill_image(&mut Rng::new(self.image_seed(step)));
                self.visit(kill, Place { seed: self.seed, step, number: 0, kill: true })?;
            }
            phases.count(step, self.totals.states - states, &mut self.totals.phases);
        }
        Ok(())
    }

    /// Reproduces one crash state.
    pub fn replay(&mut self, place: Place) -> Result<(), String> {
        let mut walk = self.explored.journal.replay();
        walk.advance_to(place.step);
        let image = if place.kill {
            walk.kill_image(&mut Rng::new(self.image_seed(place.step)))
        } else {
            walk.crash_point().image(place.number, self.image_seed(place.step))
        };
        for step in 0..self.explored.journal.len().min(place.step + 2) {
            println!("{}{step:4} {}", if step == place.step { ">" } else { " " }, self.explored.journal.describe(step));
        }
        println!("{:#?}", self.explored.workload);
        println!("{image:#?}");
        self.is_replay = true;
        self.visit(image, place)
    }

    fn image_seed(&self, step: usize) -> u64 {
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step as u64
    }

    /// A hash of the writes that a crash after `step` steps must, may or must not preserve.
    fn obligations(&self, step: usize) -> u64 {
        let Some(generation) = self.explored.history.at(step) else { return 0 };
        let changes = |at: usize| u64::from(at <= step);
        generation.writes.iter().fold(generation.opened as u64 + 1, |hash, write| {
            let bits = changes(write.started + 1) | changes(write.durable) << 1 | changes(write.resolved) << 2;
            Rng::new(hash ^ bits).next_u64()
        })
    }

    fn visit(&mut self, image: Image, place: Place) -> Result<(), String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.check_image(image, place)));
        let result = result.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        result.map_err(|error| format!("RINGCASK_REPLAY=\"{place}\": {error}"))
    }

    fn check_image(&mut self, image: Image, place: Place) -> Result<(), String> {
        let seed = Rng::new(self.image_seed(place.step) ^ place.number ^ u64::from(place.kill) << 40).next_u64();
        let mut rng = Rng::new(seed);
        // A failed sync may have lost data that a kill alone would preserve.
        let crash = if place.kill && !self.explored.workload.may_fail { Crash::Kill } else { Crash::Power };
        self.totals.kills += u64::from(place.kill);
        let generation = self.explored.history.at(place.step).cloned().unwrap_or_default();
        let numbers = self.explored.numbers;
        let setup = self.explored.workload.setup.clone();
        if !place.kill && compacts(self.seed) {
            self.check_salvaged(&image, &setup, &generation, place.step, &mut rng)?;
        }
        self.chain(image, &setup, &generation, place.step, crash, numbers, &mut rng, 1)
    }

    /// Recovers the `image` that a crash after `step` steps of `generation` left, and checks it. For a random share of
    /// the images, runs more operations and crashes again.
    #[expect(clippy::too_many_arguments, reason = "the state of a search, which nothing else holds")]
    fn chain(
        &mut self,
        image: Image,
        setup: &Setup,
        generation: &Generation,
        step: usize,
        crash: Crash,
        mut numbers: u32,
        rng: &mut Rng,
        depth: usize,
    ) -> Result<(), String> {
        self.totals.states += 1;
        self.totals.second_crashes += u64::from(depth > 1);
        // Swarm workloads visit few images, so a larger share of them continues.
        let percent = match (is_swarm(self.seed), depth) {
            (true, _) => 40,
            (false, 1) => 12,
            (false, _) => 25,
        };
        let continues = depth < DEPTH && rng.percent(percent);
        let mut recovered =
            recover(image, setup, rng.next_u64(), continues).map_err(|e| format!("depth {depth}: {e}"))?;
        generation.check(step, crash, &recovered.state).map_err(|error| format!("depth {depth}: {error}"))?;
        if !continues {
            return if rng.percent(3) { self.use_further(recovered, setup, rng) } else { Ok(()) };
        }
        let opened = recovered.backend.step();
        let base = recovered.state;
        let highest = generation.spent(step, &base);
        let store = recovered.store.take().ok_or("no store")?;
        let backend = recovered.backend.clone();
        let (ops, may_fail) = match &self.explored.workload.mix {
            Some(mix) => mix.sequel(rng),
            None => (Workload::sequel(rng, compacts(self.seed)), false),
        };
        let mut run = Run::new(&backend, setup, may_fail, &mut numbers);
        run.opened(base, highest);
        let ends_closed = rng.percent(50);
        let ran = backend.run_until(async {
            let store = run.run(store, &ops).await?;
            run.check_contents(&store).await?;
            let closed = if ends_closed { run.close(&store).await } else { Ok(()) };
            if !may_fail {
                closed.map_err(|error| format!("closing: {error:?}"))?;
            }
            Ok::<_, String>(store)
        });
        let ran = ran.and_then(|store| no_panics(&backend).map(|()| store));
        run.settle();
        let history = run.history;
        let journal = backend.take_journal();
        let closed_image = (ends_closed && !may_fail).then(|| backend.image());
        recovered.store = ran.as_ref().ok().cloned();
        recovered.power_off();
        ran.map_err(|error| format!("depth {depth}, continuing with {ops:?}: {error}"))?;
        self.totals.sequels += 1;
        if let Some(image) = closed_image {
            self.check_closed(&image, setup, &history, rng)?;
        }
        // Crashes during the work above: in the recovery, and after it.
        let phases = Phases::of(&journal, &history);
        let mut walk = journal.replay();
        let mut steps: Vec<usize> = (0..2).map(|_| rng.below(opened + 1)).collect();
        steps.extend((0..3).map(|_| opened + rng.below(journal.len() - opened + 1)));
        steps.sort_unstable();
        for second in steps {
            walk.advance_to(second);
            let images = walk.crash_point().image_count();
            let number = rng.below(usize::try_from(images).unwrap()) as u64;
            let image = walk.crash_point().image(number, rng.next_u64());
            phases.count(second, 1, &mut self.totals.phases);
            let is_replay = self.is_replay;
            let left = is_replay.then(|| image.clone());
            let context = |error| {
                if let Some(left) = left {
                    println!(
                        "crash {depth}, from state {:?}, left {left:?} after these steps, seed {}:",
                        base, setup.sim.seed
                    );
                    (0..second).for_each(|step| println!("{step:4} {}", journal.describe(step)));
                }
                format!("depth {depth}, second crash after step {second} of {}: {error}", journal.len())
            };
            if history.is_in_job(second) {
                self.totals.in_jobs += 1;
            }
            match history.at(second) {
                Some(later) => {
                    let later = later.clone();
                    self.chain(image, setup, &later, second, Crash::Power, numbers, rng, depth + 1).map_err(context)?;
                }
                None => {
                    // No caller observed the state of that recovery. The next recovery usually finds the same state,
                    // but it may differ: bytes that the first one truncated may reappear in place of the footer and
                    // complete a torn record.
                    self.totals.in_recovery += 1;
                    self.chain(image, setup, generation, step, crash, numbers, rng, depth + 1).map_err(context)?;
                }
            }
        }
        Ok(())
    }
}
