//! Long histories: hundreds of operations, closes, crashes and faults in sequence, checked against the list of writes.
//!
//! The explorer crashes short runs at every step. Here one directory is opened many times, after many crashes. A failed
//! case is shrunk: steps are removed while it still fails.
//!
//! A case is drawn from a seed or decoded from bytes. A fuzzer makes cases of bytes and learns which ones reach new
//! code.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ringcask::Store;
use ringcask::testing::sim::{Image, Rng, SimBackend, SimConfig};

use super::swarm::{Mix, OPS, fault_and_end, setup};
use super::workload::{Op, Run, Setup, read_all};
use crate::support::history_model::{Crash, Generation, State};
use crate::support::panics::{no_panics, panic_text};

/// Maximum number of runs for shrinking a failed case.
const MAX_SHRINKING: usize = 2_000;

/// Maximum number of operations in a case.
pub const MAX_OPS: usize = 200;

#[derive(Clone, Debug)]
pub enum Step {
    Do(Op),
    /// The process is killed, or the power fails. `pick` chooses the resulting image.
    Crash {
        kill: bool,
        pick: u64,
    },
}

/// The steps to run, starting with an empty directory.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    setup: Setup,
    pub steps: Vec<Step>,
}

/// Counts of what the cases did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub cases: u64,
    pub ops: u64,
    pub crashes: u64,
    pub kills: u64,
    /// Generations in which a fault was injected.
    pub faulted: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.cases += other.cases;
        self.ops += other.ops;
        self.crashes += other.crashes;
        self.kills += other.kills;
        self.faulted += other.faulted;
    }
}

/// Whether the step makes other operations fail.
fn injects_fault(step: &Step) -> bool {
    matches!(step, Step::Do(Op::Fail { .. } | Op::FailLater { .. } | Op::Space(Some(_))))
}

impl Case {
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5afe);
        let setup = setup(&mut rng);
        let mix = Mix::random(&mut rng, true);
        let count = 10 + rng.below(MAX_OPS - 9);
        let mut steps = Vec::new();
        while steps.len() < count {
            let life = 1 + rng.below(40);
            let (ops, _) = mix.ops(&mut rng, life);
            steps.extend(ops.into_iter().map(Step::Do));
            steps.push(Step::Crash { kill: rng.percent(40), pick: rng.next_u64() });
        }
        steps.truncate(count);
        Self { seed, setup, steps }
    }

    /// Decodes `input`: four bytes draw the setup, then every four bytes are one step, whose first byte is its kind.
    /// Changing, removing or moving a step leaves the others unchanged.
    pub fn from_bytes(input: &[u8]) -> Self {
        let mut words = input.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            word
        });
        let seed = u64::from(u32::from_le_bytes(words.next().unwrap_or_default()));
        let mut rng = Rng::new(seed);
        let setup = setup(&mut rng);
        let mix = Mix::random(&mut rng, true);
        let steps = words.take(MAX_OPS).map(|[kind, details @ ..]| {
            let [low, middle, high] = details;
            let mut rng = Rng::new(u64::from(u32::from_le_bytes([low, middle, high, 0])));
            match usize::from(kind) % (OPS + 5) {
                kind @ 0..OPS => Step::Do(mix.op_of(kind, &mut rng)),
                OPS => Step::Do(fault_and_end(&mut rng).0),
                kind if kind == OPS + 1 => Step::Do(Op::Heal),
                kind if kind == OPS + 2 => Step::Do(Op::Space(None)),
                kind => Step::Crash { kill: kind == OPS + 3, pick: rng.next_u64() },
            }
        });
        let steps = steps.collect();
        Self { seed, setup, steps }
    }

    /// Runs all steps. An error names a broken promise.
    pub fn run(&self) -> Result<Totals, String> {
        let mut totals = Totals { cases: 1, ..Totals::default() };
        let result = catch_unwind(AssertUnwindSafe(|| self.run_generations(&mut totals)));
        result.unwrap_or_else(|panic| Err(panic_text(&*panic))).map(|()| totals)
    }

    fn run_generations(&self, totals: &mut Totals) -> Result<(), String> {
        let mut rng = Rng::new(self.seed);
        let (mut image, mut numbers) = (Image::new(), 0);
        let mut before = (Generation::new(State::default(), 0, 0), 0, Crash::Power);
        for life in self.steps.split_inclusive(|step| matches!(step, Step::Crash { .. })) {
            let config = SimConfig { seed: rng.next_u64(), journal: false, ..self.setup.sim.clone() };
            let backend = SimBackend::from_image(image, config);
            let lived = self.run_generation(&backend, life, &before, &mut numbers, totals);
            let ended = lived.and_then(|lived| no_panics(&backend).map(|()| lived));
            let step = backend.step() + 1;
            let crash = match life.last() {
                Some(Step::Crash { kill: true, pick }) => {
                    image = backend.kill_image(&mut Rng::new(*pick));
                    totals.kills += 1;
                    // A failed sync may have lost data that a kill alone would preserve.
                    if life.iter().any(injects_fault) { Crash::Power } else { Crash::Kill }
                }
                Some(Step::Crash { kill: false, pick }) => {
                    let mut images = backend.crash_images(6, &mut Rng::new(*pick));
                    image = images.swap_remove(usize::try_from(*pick % images.len() as u64).unwrap());
                    Crash::Power
                }
                _ => {
                    image = backend.image();
                    Crash::Kill
                }
            };
            backend.shutdown();
            totals.crashes += u64::from(matches!(life.last(), Some(Step::Crash { .. })));
            totals.faulted += u64::from(life.iter().any(injects_fault));
            let (generation, store) = ended?;
            drop(store);
            before = (generation, step, crash);
        }
        Ok(())
    }

    /// Runs one generation: opens the directory that the previous one left, checks it, and continues. Returns the
    /// states that the next open may find, and the store. The caller drops the store after the power cut: a drop before
    /// it would close the store cleanly.
    fn run_generation(
        &self,
        backend: &SimBackend,
        life: &[Step],
        (before, step, crash): &(Generation, usize, Crash),
        numbers: &mut u32,
        totals: &mut Totals,
    ) -> Result<(Generation, Store), String> {
        let ops: Vec<Op> = life
            .iter()
            .filter_map(|step| match step {
                Step::Do(op) => Some(op.clone()),
                Step::Crash { .. } => None,
            })
            .collect();
        totals.ops += ops.len() as u64;
        let mut run = Run::new(backend, &self.setup, life.iter().any(injects_fault), numbers);
        let store = backend.run_until(async {
            let store = self.setup.builder(backend).open().await.map_err(|error| format!("opening: {error:?}"))?;
            let found = read_all(&store).await?;
            before.check(*step, *crash, &found)?;
            run.opened(found, before.spent(*step, &found));
            let store = run.run(store, &ops).await?;
            run.check_contents(&store).await?;
            if !matches!(life.last(), Some(Step::Crash { .. })) {
                backend.heal();
                let closed = run.close(&store).await;
                if closed.is_err() && !run.may_fail {
                    return Err(format!("closing: {closed:?}"));
                }
            }
            Ok::<_, String>(store)
        })?;
        run.settle();
        let generation = run.history.generations.last().cloned().ok_or_else(|| "no generation".to_owned())?;
        Ok((generation, store))
    }

    /// A case that also fails, with as few steps as the search finds.
    pub fn shrunk(&self) -> Self {
        let (mut least, mut tries) = (self.clone(), 0);
        let mut len = (least.steps.len() / 2).max(1);
        loop {
            let (before, mut at) = (least.steps.len(), 0);
            while at < least.steps.len() && tries < MAX_SHRINKING {
                let mut fewer = least.clone();
                fewer.steps.drain(at..(at + len).min(least.steps.len()));
                tries += 1;
                if fewer.run().is_err() { least = fewer } else { at += len }
            }
            if tries >= MAX_SHRINKING || (len == 1 && least.steps.len() == before) {
                return least;
            }
            len = (len / 2).max(1);
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case {} in {:?}:", self.seed, self.setup)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "    {step:?}"))
    }
}

/// Runs the case of `seed`.
pub fn run_case(seed: u64) -> Result<Totals, String> {
    run_named(&Case::from_seed(seed), || format!("RINGCASK_CASE={seed}"))
}

/// Runs the case of `input`.
pub fn run_input(input: &[u8]) -> Result<Totals, String> {
    let digits = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    run_named(&Case::from_bytes(input), || format!("RINGCASK_INPUT={}", digits()))
}

/// Runs `case`. A failure is reported with the smallest case found.
fn run_named(case: &Case, name: impl Fn() -> String) -> Result<Totals, String> {
    case.run().map_err(|error| {
        let least = case.shrunk();
        let last = least.run().err().unwrap_or_default();
        let (left, all) = (least.steps.len(), case.steps.len());
        format!("{}: {error}\nshrunk to {left} of {all} steps: {last}\n{least}", name())
    })
}
