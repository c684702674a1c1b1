//! Tests under a schedule explorer: what may happen between any two steps of several threads.
//!
//! The whole store runs in [`world::World`], whose threads are the explorer's, and so do its parts in models of their
//! own. At each use of a lock or an atomic, each wait and each start of a thread, the explorer decides who goes on: at
//! random, or by priorities that change a few times (PCT), which finds what takes a few switches at the right places. A
//! schedule in which everybody waits is a failure as much as a failed assertion is: so every lost wake-up shows.
//!
//! What is explored are interleavings. Every operation is sequentially consistent here, whatever ordering it names: a
//! missing `Acquire` is not found.
//!
//! `cargo test --features shuttle --lib schedules`. The environment may set `RINGCASK_SEED`, `RINGCASK_SCHEDULES` (how
//! many), `RINGCASK_MODEL` (that one alone) and `RINGCASK_SEEDED_BUG` (that mistake built in). A failure prints
//! its schedule; with that in `RINGCASK_SCHEDULE` and its model's name in `RINGCASK_MODEL`, the test `one_schedule_again`
//! replays it.

mod cancellation;
mod history;
mod parts;
#[path = "../../../tests/proof/mod.rs"]
mod proof;
mod store;
pub(crate) mod world;

use std::any::Any;
use std::fmt::Display;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::commit::schedules as commit;
use crate::seeded_bug::{SeededBug, activate};

/// Something to be run under many schedules.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    run: fn(),
    /// What part of all schedules, in percent; half of these at random and half by priorities.
    percent: usize,
}

/// Those that take long first, so that all processors have something to do to the end.
const MODELS: [Model; 16] = [
    Model { name: "store/compaction", run: store::writes_against_compaction, percent: 15 },
    Model { name: "store/batches", run: store::batches_against_compaction, percent: 5 },
    Model { name: "store/rotation", run: store::rotation_against_everything, percent: 5 },
    Model { name: "store/queue", run: store::the_commit_queue, percent: 5 },
    Model { name: "store/close", run: store::close_against_everything, percent: 5 },
    Model { name: "store/cancellation", run: cancellation::futures_that_are_dropped, percent: 5 },
    Model { name: "store/room", run: cancellation::room_that_is_left, percent: 5 },
    Model { name: "commit/log", run: commit::callers_against_the_task, percent: 10 },
    Model { name: "commit/group", run: commit::one_outcome_for_all, percent: 5 },
    Model { name: "commit/room", run: commit::space_for_writers_that_stay, percent: 5 },
    Model { name: "commit/submit", run: commit::submitted_writes_in_order, percent: 5 },
    Model { name: "segments/pins", run: parts::pins_against_unlinking, percent: 5 },
    Model { name: "segments/moves", run: parts::a_record_that_moves, percent: 5 },
    Model { name: "keydir/relocation", run: parts::records_against_relocation, percent: 10 },
    Model { name: "keydir/batches", run: parts::batches_are_seen_whole, percent: 5 },
    Model { name: "io/slot", run: cancellation::an_operation_and_its_future, percent: 5 },
];

/// Changes of priority in a schedule of the second half.
const PRIORITY_CHANGES: usize = 3;

/// Where a mistake must show, and within how many schedules.
const MISTAKES: [(SeededBug, &str, usize); 26] = [
    (SeededBug::WakerLost, "commit/group", 5_000),
    (SeededBug::FollowerErrorDropped, "commit/group", 5_000),
    (SeededBug::BellNotHeard, "commit/log", 5_000),
    (SeededBug::RoomNotOffered, "commit/room", 5_000),
    (SeededBug::WaiterKept, "commit/room", 5_000),
    (SeededBug::QueueNotTriedAgain, "commit/submit", 5_000),
    (SeededBug::CompletionOverwritten, "io/slot", 5_000),
    (SeededBug::RelocateUnconditionally, "keydir/relocation", 5_000),
    (SeededBug::BatchEpochIgnored, "keydir/batches", 5_000),
    (SeededBug::UnlinkedUnderReader, "segments/pins", 5_000),
    (SeededBug::TombstoneUnlinkedFirst, "segments/pins", 5_000),
    (SeededBug::NotLookedAgain, "segments/moves", 5_000),
    (SeededBug::RelocateUnconditionally, "store/compaction", 10_000),
    (SeededBug::InputsRetiredBeforeKeysMoved, "store/compaction", 10_000),
    (SeededBug::OutputFoundLate, "store/compaction", 10_000),
    (SeededBug::BatchEpochIgnored, "store/batches", 10_000),
    (SeededBug::RelocateUnconditionally, "store/rotation", 10_000),
    (SeededBug::BellNotHeard, "store/close", 10_000),
    (SeededBug::BatchEpochIgnored, "store/cancellation", 10_000),
    (SeededBug::InputsRetiredBeforeKeysMoved, "store/cancellation", 10_000),
    (SeededBug::RoomNotOffered, "store/room", 10_000),
    (SeededBug::FollowerErrorDropped, "store/queue", 10_000),
    (SeededBug::AckBeforeSync, "store/queue", 10_000),
    (SeededBug::SyncCoversInFlight, "store/queue", 10_000),
    (SeededBug::WakerLost, "store/queue", 10_000),
    (SeededBug::BellNotHeard, "store/queue", 10_000),
];

/// Mistakes and panic hooks are the whole process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn variable<T: FromStr>(name: &str) -> Option<T>
where
    T::Err: Display,
{
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn model(name: &str) -> Model {
    MODELS.into_iter().find(|model| model.name == name).unwrap_or_else(|| panic!("there is no model {name:?}"))
}

/// `RINGCASK_SEEDED_BUG`, to look at one mistake alone.
fn mistake() -> Option<SeededBug> {
    let name: String = variable("RINGCASK_SEEDED_BUG")?;
    let named = MISTAKES.iter().find(|(seeded_bug, _, _)| format!("{seeded_bug:?}") == name);
    Some(named.unwrap_or_else(|| panic!("no schedule is known to show {name:?}")).0)
}

fn config(failures: FailurePersistence) -> Config {
    let mut config = Config::new();
    config.failure_persistence = failures;
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.silence_warnings = true;
    config
}

/// Runs `model` under as many schedules as `scheduler` has, or until it fails; returns how many.
fn under(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static, config: &Config) -> usize {
    Runner::new(scheduler, config.clone()).run(model)
}

/// The same, half of the schedules at random and half by priorities.
fn explore(model: impl Fn() + Clone + Send + Sync + 'static, seed: u64, schedules: usize, config: &Config) -> usize {
    let half = schedules.div_ceil(2);
    under(RandomScheduler::new_from_seed(seed, half), model.clone(), config)
        + under(PctScheduler::new_from_seed(seed, PRIORITY_CHANGES, half), model, config)
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without words")
}

/// Prints a line whether the test passes or not. What the explorer prints for each mistake found is for nobody.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Calls `each` with every item, on as many threads as there are processors; panics as the first one did.
fn over<T: Sync>(items: &[T], each: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| each(item))) {
                next.store(items.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some(panic) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

#[test]
fn every_schedule_holds() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = proof::begin("schedules");
    let (seed, schedules) = (variable("RINGCASK_SEED").unwrap_or_else(proof::first_seed), stage.floor());
    let share = |percent| usize::try_from(schedules).unwrap_or(usize::MAX).div_ceil(100) * percent;
    let only: Option<String> = variable("RINGCASK_MODEL");
    let models: Vec<Model> =
        MODELS.into_iter().filter(|model| only.as_ref().is_none_or(|only| only == model.name)).collect();
    let total = AtomicUsize::new(0);
    let config = config(FailurePersistence::Print);
    store::prepare();
    activate(mistake());
    over(&models, |model| {
        let start = Instant::now();
        let explored = explore(model.run, seed, share(model.percent), &config);
        let seconds = start.elapsed().as_secs_f64();
        let per_second = explored as f64 / seconds;
        say(format_args!("{}: {explored} schedules from seed {seed}, {per_second:.0} per second", model.name));
        total.fetch_add(explored, Ordering::Relaxed);
    });
    let total = total.into_inner();
    if only.is_none() {
        stage.end(total as u64, &format!("{} models, from seed {seed}", models.len()));
    }
}

#[test]
fn every_model_has_a_mistake_to_find() {
    for model in MODELS {
        assert!(MISTAKES.iter().any(|(_, name, _)| *name == model.name), "nothing shows that {} can fail", model.name);
    }
}

#[test]
fn every_known_mistake_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let config = config(FailurePersistence::None);
    store::prepare();
    // What fails here is meant to: nobody wants to read of every panic.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let only = mistake();
    let mut missed = Vec::new();
    for (seeded_bug, name, budget) in MISTAKES {
        if only.is_some_and(|only| only != seeded_bug) {
            continue;
        }
        let tried = Arc::new(AtomicUsize::new(0));
        let (counted, run) = (Arc::clone(&tried), model(name).run);
        let hunt = || {
            activate(Some(seeded_bug));
            let counting = move || {
                counted.fetch_add(1, Ordering::Relaxed);
                run();
            };
            explore(counting, 1, budget, &config)
        };
        let found = catch_unwind(AssertUnwindSafe(hunt));
        activate(None);
        match found {
            Ok(_) => missed.push((seeded_bug, name)),
            Err(panic) => {
                let line = text(&*panic).lines().next().unwrap_or_default();
                let tried = tried.load(Ordering::Relaxed);
                say(format_args!("{seeded_bug:?}: found in schedule {tried} of {name}: {line:.160}"));
            }
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn one_schedule_again() {
    let Some(schedule) = variable::<String>("RINGCASK_SCHEDULE") else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name: String = variable("RINGCASK_MODEL").expect("RINGCASK_MODEL names the model of RINGCASK_SCHEDULE");
    let config = config(FailurePersistence::None);
    store::prepare();
    activate(mistake());
    under(ReplayScheduler::new_from_encoded(schedule.trim()), model(&name).run, &config);
}
