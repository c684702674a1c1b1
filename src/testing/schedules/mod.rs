//! Models for a schedule explorer, which runs each of them under many interleavings of its threads.
//!
//! The whole store runs on [`backend::ExplorerBackend`], whose threads are the explorer's. Parts of the store have
//! separate models. At each use of a lock or an atomic, each wait and each start of a thread, the explorer chooses
//! the thread that runs next. It chooses at random, or by priorities that change a few times (PCT): these find bugs
//! that need a few switches at the right places. A deadlock fails a schedule as a failed assertion does, so every lost
//! wake-up is found.
//!
//! Only interleavings are explored. Every atomic operation is sequentially consistent here, whatever ordering it names,
//! so a missing `Acquire` is not found.
//!
//! `cargo test --features __shuttle --lib schedules` runs them. Environment variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `RINGCASK_SEED` | the seed of the schedules |
//! | `RINGCASK_SCHEDULES` | the number of schedules |
//! | `RINGCASK_MODEL` | run this model only |
//! | `RINGCASK_SEEDED_BUG` | run with this seeded bug |
//! | `RINGCASK_SCHEDULE` | replay this schedule of `RINGCASK_MODEL`, in the test `one_schedule_again` |
//!
//! A failure prints its schedule.

pub(crate) mod backend;
mod cancellation;
mod history;
mod parts;
mod store;

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
use crate::testing::stages;

/// A program that runs under many schedules.
#[derive(Clone, Copy)]
struct ScheduleModel {
    name: &'static str,
    run: fn(),
    /// The model's share of all schedules, in percent. Half of them are chosen at random, half by priorities.
    percent: usize,
}

/// Long models come first, so that all processors are busy until the end.
const MODELS: [ScheduleModel; 16] = [
    ScheduleModel { name: "store/compaction", run: store::writes_against_compaction, percent: 15 },
    ScheduleModel { name: "store/batches", run: store::batches_against_compaction, percent: 5 },
    ScheduleModel { name: "store/rotation", run: store::rotation_against_everything, percent: 5 },
    ScheduleModel { name: "store/queue", run: store::the_commit_queue, percent: 5 },
    ScheduleModel { name: "store/close", run: store::close_against_everything, percent: 5 },
    ScheduleModel { name: "store/cancellation", run: cancellation::dropped_futures, percent: 5 },
    ScheduleModel { name: "store/admission", run: cancellation::space_left_by_dropped_writers, percent: 5 },
    ScheduleModel { name: "commit/log", run: commit::callers_against_the_task, percent: 10 },
    ScheduleModel { name: "commit/group", run: commit::one_outcome_for_all, percent: 5 },
    ScheduleModel { name: "commit/admission", run: commit::space_for_writers_that_stay, percent: 5 },
    ScheduleModel { name: "commit/submit", run: commit::submitted_writes_in_order, percent: 5 },
    ScheduleModel { name: "segments/pins", run: parts::pins_against_unlinking, percent: 5 },
    ScheduleModel { name: "segments/moves", run: parts::a_lookup_of_a_record_that_moves, percent: 5 },
    ScheduleModel { name: "keydir/relocation", run: parts::records_against_relocation, percent: 10 },
    ScheduleModel { name: "keydir/batches", run: parts::batches_against_readers, percent: 5 },
    ScheduleModel { name: "io/slot", run: cancellation::a_completion_and_its_future, percent: 5 },
];

/// Changes of priority in one schedule by priorities.
const PRIORITY_CHANGES: usize = 3;

/// Each seeded bug with a model that must find it, and the number of schedules within which it must.
const SEEDED_BUGS: [(SeededBug, &str, usize); 26] = [
    (SeededBug::WakerLost, "commit/group", 5_000),
    (SeededBug::FollowerErrorDropped, "commit/group", 5_000),
    (SeededBug::BellNotHeard, "commit/log", 5_000),
    (SeededBug::RoomNotOffered, "commit/admission", 5_000),
    (SeededBug::WaiterKept, "commit/admission", 5_000),
    (SeededBug::SubmittedOvertaken, "commit/submit", 5_000),
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
    (SeededBug::RoomNotOffered, "store/admission", 10_000),
    (SeededBug::FollowerErrorDropped, "store/queue", 10_000),
    (SeededBug::AckBeforeSync, "store/queue", 10_000),
    (SeededBug::SyncCoversInFlight, "store/queue", 10_000),
    (SeededBug::WakerLost, "store/queue", 10_000),
    (SeededBug::BellNotHeard, "store/queue", 10_000),
];

/// Held by each test, because seeded bugs and panic hooks are global to the process.
static ALONE: Mutex<()> = Mutex::new(());

fn variable<T: FromStr>(name: &str) -> Option<T>
where
    T::Err: Display,
{
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn model(name: &str) -> ScheduleModel {
    MODELS.into_iter().find(|model| model.name == name).unwrap_or_else(|| panic!("there is no model {name:?}"))
}

/// The bug that `RINGCASK_SEEDED_BUG` names.
fn chosen_bug() -> Option<SeededBug> {
    let name: String = variable("RINGCASK_SEEDED_BUG")?;
    let named = SEEDED_BUGS.iter().find(|(seeded_bug, _, _)| format!("{seeded_bug:?}") == name);
    Some(named.unwrap_or_else(|| panic!("no model is known to find {name:?}")).0)
}

fn config(failures: FailurePersistence) -> Config {
    let mut config = Config::new();
    config.failure_persistence = failures;
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.silence_warnings = true;
    config
}

/// Runs `model` under all schedules of `scheduler`, or until it fails. Returns the number of schedules.
fn run_with(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static, config: &Config) -> usize {
    Runner::new(scheduler, config.clone()).run(model)
}

/// Runs `model` under random schedules, and under as many by priorities, or until it fails.
fn explore(model: impl Fn() + Clone + Send + Sync + 'static, seed: u64, schedules: usize, config: &Config) -> usize {
    let half = schedules.div_ceil(2);
    run_with(RandomScheduler::new_from_seed(seed, half), model.clone(), config)
        + run_with(PctScheduler::new_from_seed(seed, PRIORITY_CHANGES, half), model, config)
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

/// Prints a line even if the test passes. The test harness captures what the explorer prints for each bug that is
/// found.
fn report(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Calls `each` with every item, on one thread per processor. Resumes the first panic.
fn for_each_in_parallel<T: Sync>(items: &[T], each: impl Fn(&T) + Sync) {
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
    let stage = stages::begin("schedules");
    let (seed, schedules) = (variable("RINGCASK_SEED").unwrap_or_else(stages::first_seed), stage.floor());
    let share = |percent| usize::try_from(schedules).unwrap_or(usize::MAX).div_ceil(100) * percent;
    let only: Option<String> = variable("RINGCASK_MODEL");
    let models: Vec<ScheduleModel> =
        MODELS.into_iter().filter(|model| only.as_ref().is_none_or(|only| only == model.name)).collect();
    let total = AtomicUsize::new(0);
    let config = config(FailurePersistence::Print);
    store::prepare();
    activate(chosen_bug());
    for_each_in_parallel(&models, |model| {
        let start = Instant::now();
        let explored = explore(model.run, seed, share(model.percent), &config);
        let seconds = start.elapsed().as_secs_f64();
        let per_second = explored as f64 / seconds;
        report(format_args!("{}: {explored} schedules from seed {seed}, {per_second:.0} per second", model.name));
        total.fetch_add(explored, Ordering::Relaxed);
    });
    let total = total.into_inner();
    if only.is_none() {
        stage.end(total as u64, &format!("{} models, from seed {seed}", models.len()));
    }
}

#[test]
fn every_model_finds_a_seeded_bug() {
    for model in MODELS {
        assert!(
            SEEDED_BUGS.iter().any(|(_, name, _)| *name == model.name),
            "no seeded bug shows that {} can fail",
            model.name
        );
    }
}

#[test]
fn every_seeded_bug_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let config = config(FailurePersistence::None);
    store::prepare();
    // These failures are expected, so their panics are not printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let only = chosen_bug();
    let mut missed = Vec::new();
    for (seeded_bug, name, budget) in SEEDED_BUGS {
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
                report(format_args!("{seeded_bug:?}: found in schedule {tried} of {name}: {line:.160}"));
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
    activate(chosen_bug());
    run_with(ReplayScheduler::new_from_encoded(schedule.trim()), model(&name).run, &config);
}
