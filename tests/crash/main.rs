//! Crash tests: the store on a simulated disk, crashed at every step, in every way the disk may come out of it.
//!
//! | what | where |
//! |---|---|
//! | what a crash may leave of a history of calls | `model` |
//! | calls made from a seed | `workload` |
//! | crash, recover, check, go on, crash again | `explore` |
//! | every operation fails once | `failures` |
//!
//! Injected: loss of unsynced sectors, truncations and names in any combination, torn sectors, stale and random contents
//! of holes, kills, crashes in recoveries, failed syncs that lose data, full disks, short and interrupted operations,
//! completions in any order, damaged hints. Not injected here: damage to synced data.
//!
//! `RINGCASK_CRASH_STATES` sets how many states are explored (the floor of the test), `RINGCASK_CRASH_SEED` where the
//! seeds begin, `RINGCASK_FAILURE_SCENARIOS` how many scenarios have each operation fail, `RINGCASK_FAILURE_FIRST` which
//! is the first of them, and `RINGCASK_CRASH_FAILURES` after how many failures a test gives up. A failed state prints a
//! line `RINGCASK_REPLAY="…"`; with that in the environment, the test `replay` does the same again and shows the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]
#![allow(unreachable_pub, reason = "modules of one test")]

mod explore;
mod failures;
mod model;
mod workload;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use explore::{Explorer, Place, run_workload};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Gives seeds, from `first_seed` on, to as many threads as there are processors, while `goes_on`; returns the failures.
fn over_seeds(
    first_seed: u64,
    goes_on: impl Fn(u64) -> bool + Sync,
    explore: impl Fn(u64) -> Result<(), String> + Sync,
) -> Vec<String> {
    let patience = usize::try_from(number("RINGCASK_CRASH_FAILURES", 1)).unwrap();
    let (next, failures) = (AtomicU64::new(first_seed), Mutex::new(Vec::new()));
    let work = || {
        while failures.lock().unwrap().len() < patience {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(seed) {
                return;
            }
            if let Err(failure) = explore(seed) {
                failures.lock().unwrap().push(failure);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    failures.into_inner().unwrap()
}

#[test]
fn every_crash_leaves_a_store_that_keeps_its_promises() {
    let floor = number("RINGCASK_CRASH_STATES", 500_000);
    let first_seed = number("RINGCASK_CRASH_SEED", 1);
    let start = Instant::now();
    let (states, total) = (AtomicU64::new(0), Mutex::new(explore::Tally::default()));
    let failures = over_seeds(
        first_seed,
        |_| states.load(Ordering::Relaxed) < floor,
        |seed| {
            // Most crash points get a few of their images, those of every 64th workload all.
            let budget = if seed.is_multiple_of(64) { 1024 } else { 5 };
            let mut explorer =
                Explorer::new(seed).map_err(|error| format!("RINGCASK_REPLAY=\"seed={seed}\": {error}"))?;
            let result = explorer.explore(budget);
            states.fetch_add(explorer.tally.states, Ordering::Relaxed);
            total.lock().unwrap().add(&explorer.tally);
            result
        },
    );
    let total = *total.lock().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{total:?}, seeds from {first_seed}, {seconds:.1} s, {:.0} states/s", total.states as f64 / seconds);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total.states >= floor, "{} of {floor} states", total.states);
    assert!(total.second_crashes * 5 >= total.states, "{} second crashes of {}", total.second_crashes, total.states);
}

#[test]
fn every_operation_can_fail() {
    let scenarios = number("RINGCASK_FAILURE_SCENARIOS", 40);
    let first = number("RINGCASK_FAILURE_FIRST", 0);
    let start = Instant::now();
    let total = Mutex::new(failures::Tally::default());
    let failures = over_seeds(
        first,
        |seed| seed < first + scenarios,
        |seed| {
            let (tally, result) = failures::fail_everything(seed);
            total.lock().unwrap().add(&tally);
            result
        },
    );
    let total = *total.lock().unwrap();
    println!("{total:?}, {:.1} s", start.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total.runs >= scenarios * 200, "{} runs with a failure in {scenarios} scenarios", total.runs);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..60 {
        let (a, b) = (run_workload(seed).unwrap(), run_workload(seed).unwrap());
        assert_eq!(a.trace, b.trace, "seed {seed}");
        assert_eq!(format!("{:?}", a.journal), format!("{:?}", b.journal), "seed {seed}");
    }
}

/// Does nothing unless `RINGCASK_REPLAY` says what failed.
#[test]
fn replay() {
    let Ok(text) = std::env::var("RINGCASK_REPLAY") else { return };
    let place: Place = text.parse().unwrap();
    let mut explorer = Explorer::new(place.seed).unwrap();
    explorer.replay(place).unwrap();
    println!("{place} holds: {:?}", explorer.tally);
}
