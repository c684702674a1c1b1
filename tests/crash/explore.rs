//! From one seed to thousands of crash states: run, crash everywhere, recover, look, go on, crash again.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ringcask::bytes::Bytes;
use ringcask::sim::{Fault, FaultKind, Image, Journal, OpClass, Rng, SimConfig, SimWorld};
use ringcask::{Builder, CompactOptions, Compaction, Durability, ErrorKind, PutOptions, Stats, Store};

use crate::model::{Crash, EXTRA_KEY, Generation, History, State};
use crate::phase::{PHASES, Phase, Phases};
use crate::workload::{Run, Setup, Workload, compacts, read_all, read_undamaged};

/// How often a crash may follow a crash.
const DEPTH: usize = 3;

/// What was explored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub workloads: u64,
    /// Images that were recovered and checked.
    pub states: u64,
    /// Of these, after a second or third crash.
    pub second_crashes: u64,
    /// Of these, after a crash during a recovery.
    pub in_recovery: u64,
    pub kills: u64,
    pub crash_points: u64,
    /// Stores that were written to, closed and reopened after a recovery.
    pub sequels: u64,
    /// Of the states, after a crash while compaction was at work.
    pub in_jobs: u64,
    /// Of these, with segments unlinked since the directory was last synced.
    pub unlinks: u64,
    /// Stores that were compacted as a whole after a close.
    pub compacted: u64,
    /// Closed stores that were compacted with a bit of a segment flipped.
    pub damaged: u64,
    /// States that were opened without their MANIFEST, too.
    pub salvaged: u64,
    /// States after a crash in each of [`PHASES`].
    pub phases: [u64; PHASES.len()],
}

impl Tally {
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
        self.phases.iter_mut().zip(other.phases).for_each(|(sum, more)| *sum += more);
    }
}

/// One crash state of a workload, to be made again.
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
            let (name, value) = part.trim().split_once('=').ok_or("no = in RINGCASK_REPLAY")?;
            let bad = |_| format!("{name}={value}");
            match name {
                "seed" => place.seed = value.parse().map_err(bad)?,
                "step" => place.step = value.parse().map_err(bad)?,
                "image" => place.number = value.parse().map_err(bad)?,
                "kill" => place.kill = value == "true",
                _ => return Err(format!("{name} in RINGCASK_REPLAY")),
            }
        }
        Ok(place)
    }
}

/// A store recovered from an image, and the world it runs in.
pub struct Recovered {
    world: SimWorld,
    store: Option<Store>,
    pub state: State,
}

impl Recovered {
    /// Files that the opening removed.
    fn removed(&self) -> Vec<String> {
        self.store.as_ref().map_or_else(Vec::new, |store| store.recovery_report().removed_files.clone())
    }

    /// The value of the key that no workload uses.
    pub fn get_extra(&self) -> Result<Option<Bytes>, String> {
        let store = self.store.as_ref().ok_or("closed")?;
        self.world.run_until(store.get(EXTRA_KEY)).map_err(|error| format!("{error:?}"))
    }

    fn power_off(&mut self) {
        // Before the store: a store that is dropped with the power on would close in good order.
        self.world.shutdown();
        self.store = None;
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        self.power_off();
    }
}

pub fn recover(image: Image, setup: &Setup, seed: u64, journal: bool) -> Result<Recovered, String> {
    let config = SimConfig { seed, journal, ..setup.world.clone() };
    let world = SimWorld::from_image(image, config);
    let builder = setup.builder(&world);
    recover_with(world, builder)
}

fn recover_with(world: SimWorld, builder: Builder) -> Result<Recovered, String> {
    let opened = world.run_until(async {
        let store = builder.open().await.map_err(|error| format!("opening: {error:?}"))?;
        let state = read_all(&store).await?;
        Ok::<_, String>((store, state))
    });
    match opened {
        Ok((store, state)) => {
            let recovered = Recovered { world, store: Some(store), state };
            no_panics(&recovered.world)?;
            Ok(recovered)
        }
        Err(error) => {
            world.shutdown();
            Err(error)
        }
    }
}

pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a text"))
}

pub fn no_panics(world: &SimWorld) -> Result<(), String> {
    let panics = world.panics();
    if panics.is_empty() { Ok(()) } else { Err(format!("panics: {panics:?}")) }
}

/// Everything that is in the directory of a store that is closed.
fn check_names(image: &Image) -> Result<(), String> {
    for name in image.names() {
        let is_ours =
            matches!(name, "LOCK" | "MANIFEST" | "RESERVE") || name.ends_with(".seg") || name.ends_with(".hint");
        if !is_ours {
            return Err(format!("{name} is left in the directory"));
        }
    }
    Ok(())
}

/// Bytes of a segment without a record.
const EMPTY_SEGMENT_BYTES: u64 = 512 + 80;

/// What may be dead in a store in which everything was compacted: what every segment needs, and the little that is not
/// worth rewriting a segment for.
fn check_space(stats: &Stats) -> Result<(), String> {
    let bound = stats.segments.len() as u64 * EMPTY_SEGMENT_BYTES + stats.disk_bytes / 64;
    if stats.dead_bytes > bound {
        return Err(format!("{} bytes are dead after a compaction, expected {bound}: {stats:?}", stats.dead_bytes));
    }
    Ok(())
}

/// A run of a workload, and its journal.
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
    let world = SimWorld::new(workload.setup.world.clone());
    let mut numbers = 0;
    let mut run = Run::new(&world, &workload.setup, workload.may_fail, &mut numbers);
    let ran = world.run_until(async {
        let store = workload.setup.builder(&world).open().await.map_err(|error| format!("first opening: {error:?}"))?;
        run.opened(State::default(), 0);
        let store = run.run(store, &workload.ops).await?;
        run.look(&store).await?;
        let closed = store.close().await;
        if closed.is_err() && !workload.may_fail {
            return Err(format!("the last close failed without a fault: {closed:?}"));
        }
        Ok(())
    });
    run.settle();
    let history = run.history;
    let ran = ran.and_then(|()| no_panics(&world));
    let (journal, trace) = (world.take_journal(), world.trace_hash());
    world.shutdown();
    ran?;
    Ok(Explored { workload, history, journal, numbers, trace })
}

/// A failed sync leaves the last bytes of a group in memory only, the next life seals the segment behind them, and the
/// power goes at every step of that. Returns how many images there were.
///
/// The bytes are zeros that pad a record. They read as zeros after the failed sync, but the file's length on the disk did
/// not include them, and what a crash then left there was anything.
pub fn seal_behind_a_failed_sync(seed: u64) -> Result<usize, String> {
    let config = SimConfig { seed, sector_bytes: 512, ..SimConfig::default() };
    let world = SimWorld::new(config.clone());
    let open = async |world: &SimWorld| {
        let builder = Store::builder("/db").world(Arc::new(world.clone()));
        builder.open().await.map_err(|error| format!("seed {seed}, opening: {error:?}"))
    };
    let began = world.run_until(async {
        let store = open(&world).await?;
        let said = |error: ringcask::Error| format!("{error:?}");
        // 56 bytes of watermark, 40 of header, a key of 1 and a value of 26: 5 bytes of padding.
        let put = store.put_with("k", [7; 26], PutOptions::new().durability(Durability::Buffered));
        put.await.map_err(said)?;
        // The segment's header and two MANIFESTs were written before.
        world.inject(Fault::once(OpClass::Write, world.op_count(OpClass::Write), FaultKind::Short(123)));
        world.inject(Fault::once(OpClass::Sync, world.op_count(OpClass::Sync), FaultKind::SyncPartial));
        if store.sync().await.is_ok() {
            return Err("the sync did not fail".to_owned());
        }
        let _ = store.close().await;
        let began = world.step();
        open(&world).await?.close().await.map_err(said)?;
        Ok(began)
    });
    let journal = world.take_journal();
    world.shutdown();
    let mut images = 0;
    for step in began?..=journal.len() {
        for image in journal.crash_images(step, 32, &mut Rng::new(seed ^ step as u64)) {
            images += 1;
            let world = SimWorld::from_image(image, SimConfig { journal: false, ..config.clone() });
            let opened = world.run_until(open(&world));
            world.shutdown();
            opened.map_err(|error| format!("after step {step}: {error}"))?;
        }
    }
    Ok(images)
}

/// Values of more than a MiB are copied a piece at a time: compacts some, crashed at some of the steps. Returns how many
/// crashes there were.
pub fn compact_large_values(seed: u64) -> Result<usize, String> {
    let mut rng = Rng::new(seed);
    let mut setup = Setup::random(&mut rng);
    (setup.segment_bytes, setup.world.interrupt_percent) = (4 << 20, 0);
    (setup.is_automatic, setup.compaction) = (false, Compaction::new().automatic(false));
    let value = |key: u8, len: usize| vec![key.wrapping_mul(31) ^ u8::try_from(seed % 251).unwrap(); len];
    let mut len = |_| {
        let more = if rng.percent(50) { 400 } else { 2 << 20 };
        (1 << 20) - 200 + rng.below(more)
    };
    let lens: Vec<usize> = (0..5).map(&mut len).collect();
    let holds = async |store: &Store| {
        for (key, len) in (0_u8..).zip(&lens) {
            let found = store.get([key]).await.map_err(|error| format!("{error:?}"))?;
            let expected = (key % 2 == 0).then(|| value(key, *len));
            if found.as_deref() != expected.as_deref() {
                return Err(format!("key {key} has {:?} bytes of {len}", found.map(|found| found.len())));
            }
        }
        Ok(())
    };
    let world = SimWorld::new(setup.world.clone());
    let ran = world.run_until(async {
        let said = |error: ringcask::Error| format!("{error:?}");
        let store = setup.builder(&world).open().await.map_err(said)?;
        for (key, len) in (0_u8..).zip(&lens) {
            store.put([key], value(key, *len)).await.map_err(said)?;
        }
        for key in [1, 3] {
            store.delete([key]).await.map_err(said)?;
        }
        let began = world.step();
        store.compact(CompactOptions::new()).await.map_err(said)?;
        holds(&store).await?;
        // What has nothing dead in it was left alone; named, it is copied too.
        let all = store.stats().segments.into_iter().map(|segment| segment.id);
        let report = store.compact(CompactOptions::new().segments(all)).await.map_err(said)?;
        holds(&store).await?;
        if report.records_copied != 3 {
            return Err(format!("{report:?}"));
        }
        Ok(began)
    });
    let journal = world.take_journal();
    world.shutdown();
    let began = ran?;
    let mut steps: Vec<usize> = (0..8).map(|_| began + rng.below(journal.len() - began + 1)).collect();
    steps.sort_unstable();
    let mut walk = journal.walk();
    for step in &steps {
        walk.advance_to(*step);
        let number = rng.below(usize::try_from(walk.crash_point().image_count()).unwrap()) as u64;
        let image = walk.crash_point().image(number, rng.next_u64());
        let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.world.clone() };
        let world = SimWorld::from_image(image, config);
        let looked = world.run_until(async {
            let store = setup.builder(&world).open().await.map_err(|error| format!("{error:?}"))?;
            holds(&store).await
        });
        world.shutdown();
        looked.map_err(|error| format!("seed {seed}, a crash after step {step}, image {number}: {error}"))?;
    }
    Ok(steps.len())
}

/// The search through the crashes of one workload.
pub struct Explorer {
    explored: Explored,
    seed: u64,
    pub tally: Tally,
    /// Replaying: failures come with the steps that led to them.
    is_replay: bool,
}

impl Explorer {
    pub fn new(seed: u64) -> Result<Self, String> {
        let explored = catch_unwind(|| run_workload(seed)).unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
        Ok(Self { explored, seed, tally: Tally { workloads: 1, ..Tally::default() }, is_replay: false })
    }

    /// All crash points; at each, up to `budget` images and a kill. An error says where it happened.
    pub fn explore(&mut self, budget: usize) -> Result<(), String> {
        let mut walk = self.explored.journal.walk();
        let mut rng = Rng::new(self.seed ^ 0xc4a5);
        let mut seen = HashSet::new();
        let mut unlinked = false;
        let (mut phases, mut phase) = (Phases::default(), None);
        loop {
            self.tally.crash_points += 1;
            let step = walk.step();
            let is_in_job = self.explored.history.is_in_job(step);
            let event = step.checked_sub(1).map(|last| self.explored.journal.describe(last));
            if let Some(event) = &event {
                phase = phases.after(event);
            }
            if let Some(event) = event.filter(|_| is_in_job) {
                unlinked = !event.starts_with("DirSynced")
                    && (unlinked || (event.starts_with("Unlinked") && event.contains(".seg")));
            }
            let states = self.tally.states;
            let picks: Vec<u64> = walk.crash_point().sample(budget, &mut rng).collect();
            let point = walk.crash_point();
            for number in picks {
                let image = point.image(number, self.image_seed(step));
                // The same disk with the same obligations has been looked at.
                if seen.insert((image.hash(), self.obligations(step))) {
                    self.visit(image, Place { seed: self.seed, step, number, kill: false })?;
                }
            }
            let kill = walk.kill_image(&mut Rng::new(self.image_seed(step)));
            if !seen.contains(&(kill.hash(), self.obligations(step))) {
                self.visit(kill, Place { seed: self.seed, step, number: 0, kill: true })?;
            }
            self.note_phase(phase, self.tally.states - states);
            if is_in_job {
                self.tally.in_jobs += self.tally.states - states;
                self.tally.unlinks += if unlinked { self.tally.states - states } else { 0 };
            }
            if !walk.advance() {
                return Ok(());
            }
        }
    }

    fn note_phase(&mut self, phase: Option<Phase>, states: u64) {
        if let Some(index) = PHASES.iter().position(|it| Some(*it) == phase) {
            self.tally.phases[index] += states;
        }
    }

    /// Some crash points, an image or a kill at each.
    pub fn sample(&mut self, points: usize) -> Result<(), String> {
        let mut rng = Rng::new(self.seed ^ 0x5a3b);
        let mut steps: Vec<usize> = (0..points).map(|_| rng.below(self.explored.journal.len() + 1)).collect();
        steps.sort_unstable();
        let mut walk = self.explored.journal.walk();
        for step in steps {
            self.tally.crash_points += 1;
            walk.advance_to(step);
            let kill = rng.percent(20);
            let number = walk.crash_point().sample(1, &mut rng).next().unwrap_or(0);
            let image = if kill {
                walk.kill_image(&mut Rng::new(self.image_seed(step)))
            } else {
                walk.crash_point().image(number, self.image_seed(step))
            };
            self.visit(image, Place { seed: self.seed, step, number, kill })?;
        }
        Ok(())
    }

    /// One crash state again.
    pub fn replay(&mut self, place: Place) -> Result<(), String> {
        let mut walk = self.explored.journal.walk();
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

    /// A number that changes when what a crash must leave does.
    fn obligations(&self, step: usize) -> u64 {
        let Some(generation) = self.explored.history.at(step) else { return 0 };
        let changes = |at: usize| u64::from(at <= step);
        generation.writes.iter().fold(generation.opened as u64 + 1, |hash, write| {
            let bits = changes(write.started + 1) | changes(write.durable) << 1 | changes(write.resolved) << 2;
            Rng::new(hash ^ bits).next_u64()
        })
    }

    fn visit(&mut self, image: Image, place: Place) -> Result<(), String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.look(image, place)));
        let result = result.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        result.map_err(|error| format!("RINGCASK_REPLAY=\"{place}\": {error}"))
    }

    fn look(&mut self, image: Image, place: Place) -> Result<(), String> {
        let seed = Rng::new(self.image_seed(place.step) ^ place.number ^ u64::from(place.kill) << 40).next_u64();
        let mut rng = Rng::new(seed);
        // A sync that failed may have cost what a kill alone leaves.
        let crash = if place.kill && !self.explored.workload.may_fail { Crash::Kill } else { Crash::Power };
        self.tally.kills += u64::from(place.kill);
        let generation = self.explored.history.at(place.step).cloned().unwrap_or_default();
        let numbers = self.explored.numbers;
        let setup = self.explored.workload.setup.clone();
        if !place.kill && compacts(self.seed) {
            self.look_salvaged(&image, &setup, &generation, place.step, &mut rng)?;
        }
        self.chain(image, &setup, &generation, place.step, crash, numbers, &mut rng, 1)
    }

    /// Recovers `image`, left by a crash after `step` steps of `generation`, and perhaps goes on from there.
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
        self.tally.states += 1;
        self.tally.second_crashes += u64::from(depth > 1);
        let goes_on = depth < DEPTH && rng.percent(if depth == 1 { 12 } else { 25 });
        let mut recovered =
            recover(image, setup, rng.next_u64(), goes_on).map_err(|e| format!("depth {depth}: {e}"))?;
        generation.check(step, crash, &recovered.state).map_err(|error| format!("depth {depth}: {error}"))?;
        if !goes_on {
            return Ok(());
        }
        let opened = recovered.world.step();
        let base = recovered.state;
        let highest = generation.spent(step, &base);
        let store = recovered.store.take().ok_or("no store")?;
        let world = recovered.world.clone();
        let mut run = Run::new(&world, setup, false, &mut numbers);
        run.opened(base, highest);
        let ops = Workload::sequel(rng, compacts(self.seed));
        let ends_closed = rng.percent(50);
        let ran = world.run_until(async {
            let store = run.run(store, &ops).await?;
            run.look(&store).await?;
            if ends_closed {
                store.close().await.map_err(|error| format!("closing: {error:?}"))?;
            }
            Ok::<_, String>(store)
        });
        let ran = ran.and_then(|store| no_panics(&world).map(|()| store));
        run.settle();
        let history = run.history;
        let journal = world.take_journal();
        let closed_image = ends_closed.then(|| world.image());
        recovered.store = ran.as_ref().ok().cloned();
        recovered.power_off();
        ran.map_err(|error| format!("depth {depth}, going on with {ops:?}: {error}"))?;
        self.tally.sequels += 1;
        if let Some(image) = closed_image {
            self.look_closed(&image, setup, &history, rng)?;
        }
        // Crashes in what was just done: in the recovery, and after it.
        let mut walk = journal.walk();
        let mut steps: Vec<usize> = (0..2).map(|_| rng.below(opened + 1)).collect();
        steps.extend((0..3).map(|_| opened + rng.below(journal.len() - opened + 1)));
        steps.sort_unstable();
        for second in steps {
            walk.advance_to(second);
            let images = walk.crash_point().image_count();
            let number = rng.below(usize::try_from(images).unwrap()) as u64;
            let image = walk.crash_point().image(number, rng.next_u64());
            let is_replay = self.is_replay;
            let left = is_replay.then(|| image.clone());
            let told = |error| {
                if let Some(left) = left {
                    println!("crash {depth} of {:?} left {left:?} after these steps, seed {}:", base, setup.world.seed);
                    (0..second).for_each(|step| println!("{step:4} {}", journal.describe(step)));
                }
                format!("depth {depth}, second crash after step {second} of {}: {error}", journal.len())
            };
            if history.is_in_job(second) {
                self.tally.in_jobs += 1;
            }
            match history.at(second) {
                Some(later) => {
                    let later = later.clone();
                    self.chain(image, setup, &later, second, Crash::Power, numbers, rng, depth + 1).map_err(told)?;
                }
                None => {
                    // Nobody was told of what that recovery found. Mostly it is found again; but bytes that it cut off
                    // may have come back in the place of the footer, and completed a record that was torn.
                    self.tally.in_recovery += 1;
                    self.chain(image, setup, generation, step, crash, numbers, rng, depth + 1).map_err(told)?;
                }
            }
        }
        Ok(())
    }

    /// A store that was closed in good order: nothing is left over, and the hints make no difference.
    fn look_closed(&mut self, image: &Image, setup: &Setup, history: &History, rng: &mut Rng) -> Result<(), String> {
        check_names(image)?;
        let generation = history.generations.last().ok_or("no generation")?;
        let mut end = generation.clone();
        for write in &mut end.writes {
            if write.fate == crate::model::Fate::Acked {
                write.durable = 0;
            }
        }
        let reopened = recover(image.clone(), setup, rng.next_u64(), false).map_err(|e| format!("closed: {e}"))?;
        let (first, removed) = (reopened.state, reopened.removed());
        drop(reopened);
        if !removed.is_empty() {
            return Err(format!("a closed store has left {removed:?}"));
        }
        end.check(usize::MAX - 1, Crash::Power, &first).map_err(|error| format!("after a close: {error}"))?;
        let mut without_hints = image.clone();
        let mut damaged_hints = image.clone();
        for name in image.names().filter(|name| name.ends_with(".hint")) {
            without_hints.remove(name);
            let bits = image.bytes(name).map_or(0, |bytes| bytes.len() * 8);
            damaged_hints.flip_bit(name, rng.below(bits) as u64);
        }
        let mut exchanged_hints = image.clone();
        let hints: Vec<&str> = image.names().filter(|name| name.ends_with(".hint")).collect();
        for (name, other) in hints.iter().zip(hints.iter().cycle().skip(1)) {
            let bytes = image.bytes(other).unwrap_or_default();
            exchanged_hints.edit(name, |hint| *hint = bytes.to_vec());
        }
        for (what, image) in [
            ("without hints", without_hints),
            ("with damaged hints", damaged_hints),
            ("with exchanged hints", exchanged_hints),
        ] {
            let state = recover(image, setup, rng.next_u64(), false).map_err(|error| format!("{what}: {error}"))?.state;
            if state != first {
                return Err(format!("{what} the store holds {state:x?} instead of {first:x?}"));
            }
        }
        if compacts(self.seed) || rng.percent(25) {
            self.look_compacted(image, setup, &first, rng)?;
            self.look_damaged(image, setup, &first, rng)?;
        }
        Ok(())
    }

    /// Compacting everything changes nothing that can be read, and leaves next to nothing that is dead.
    fn look_compacted(&mut self, image: &Image, setup: &Setup, held: &State, rng: &mut Rng) -> Result<(), String> {
        self.tally.compacted += 1;
        let told = |error: String| format!("compacted after a close: {error}");
        let mut recovered = recover(image.clone(), setup, rng.next_u64(), false).map_err(told)?;
        let store = recovered.store.take().ok_or("no store")?;
        let world = recovered.world.clone();
        let compacted = world.run_until(async {
            // Tombstones that segments of a later job hold back go the second time.
            for _ in 0..2 {
                store.compact(CompactOptions::new()).await.map_err(|error| format!("{error:?}"))?;
            }
            check_space(&store.stats())?;
            let state = read_all(&store).await?;
            store.close().await.map_err(|error| format!("closing: {error:?}"))?;
            Ok::<_, String>(state)
        });
        no_panics(&world)?;
        let image = world.image();
        drop(store);
        drop(recovered);
        let mut without_hints = image.clone();
        for name in image.names().filter(|name| name.ends_with(".hint")) {
            without_hints.remove(name);
        }
        let mut states = vec![compacted.map_err(told)?];
        check_names(&image).map_err(told)?;
        for image in [image, without_hints] {
            let again = recover(image, setup, rng.next_u64(), false).map_err(told)?;
            if !again.removed().is_empty() {
                return Err(told(format!("left {:?}", again.removed())));
            }
            states.push(again.state);
        }
        match states.iter().find(|state| *state != held) {
            Some(state) => Err(told(format!("the store holds {state:x?} instead of {held:x?}"))),
            None => Ok(()),
        }
    }

    /// Bits that rot in a sealed segment are found by a compaction and not passed on: every key has its value, or an error.
    fn look_damaged(&mut self, image: &Image, setup: &Setup, held: &State, rng: &mut Rng) -> Result<(), String> {
        let segments: Vec<&str> = image.names().filter(|name| name.ends_with(".seg")).collect();
        let Some(name) = segments.get(rng.below(segments.len().max(1))) else { return Ok(()) };
        let mut image = image.clone();
        let bit = rng.below(image.bytes(name).map_or(1, |bytes| bytes.len() * 8)) as u64;
        image.flip_bit(name, bit);
        self.tally.damaged += 1;
        let told = |error: String| format!("with bit {bit} of {name} flipped: {error}");
        for _ in 0..2 {
            let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.world.clone() };
            let world = SimWorld::from_image(image, config);
            let looked = world.run_until(async {
                let store = match setup.builder(&world).open().await {
                    Ok(store) => store,
                    Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(false),
                    Err(error) => return Err(format!("opening: {error:?}")),
                };
                match store.compact(CompactOptions::new()).await {
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(format!("compacting: {error:?}")),
                    _ => {}
                }
                read_undamaged(&store, held).await?;
                store.close().await.map_err(|error| format!("closing: {error:?}"))?;
                Ok(true)
            });
            no_panics(&world)?;
            image = world.image();
            world.shutdown();
            if !looked.map_err(told)? {
                break;
            }
        }
        Ok(())
    }

    /// Where nothing was under way, the segments alone tell what the store holds, whatever compaction has left of them.
    fn look_salvaged(
        &mut self,
        image: &Image,
        setup: &Setup,
        generation: &Generation,
        step: usize,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let Some(held) = generation.certain(step).filter(|_| !self.explored.workload.may_fail) else { return Ok(()) };
        let mut image = image.clone();
        image.remove("MANIFEST");
        self.tally.salvaged += 1;
        let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.world.clone() };
        let world = SimWorld::from_image(image, config);
        let builder = setup.salvaging(&world);
        let state = recover_with(world, builder).map_err(|error| format!("without a MANIFEST: {error}"))?.state;
        if state != held {
            return Err(format!("without a MANIFEST the store holds {state:x?} instead of {held:x?}"));
        }
        Ok(())
    }
}
