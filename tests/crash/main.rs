//! Crash tests: the store on a simulated disk, crashed at every step, in every way the disk may come out of it.
//!
//! | what | where |
//! |---|---|
//! | what a crash may leave of a history of calls | `model` |
//! | calls made from a seed, compactions among them | `workload` |
//! | crash, recover, check, go on, crash again | `explore` |
//! | every operation fails once; a disk without space to compact on | `failures` |
//!
//! Injected: loss of unsynced sectors, truncations and names in any combination, torn sectors, stale and random contents
//! of holes, kills, crashes in recoveries, failed syncs that lose data, full disks, short and interrupted operations,
//! completions in any order, damaged hints; while compactions run, are dropped, paused, cut off by a close, and have
//! writes, deletes and reads beside them. Of closed stores also: everything compacted, a flipped bit in a segment that is
//! compacted; of stores in which nothing is under way, a MANIFEST that is lost. Not injected here: other damage to
//! synced data.
//!
//! `RINGCASK_CRASH_STATES` sets how many states are explored (the floor of the test), `RINGCASK_CRASH_SEED` where the
//! seeds begin, `RINGCASK_FAILURE_SCENARIOS` how many scenarios have each operation fail, `RINGCASK_FAILURE_FIRST` which
//! is the first of them, and `RINGCASK_CRASH_FAILURES` after how many failures a test gives up. For workloads that
//! compact, which are those with seeds from 2^40 on, the numbers are those of `RINGCASK_COMPACTION_STATES` and
//! `RINGCASK_COMPACTION_FAILURES`. A failed state prints a line `RINGCASK_REPLAY="…"`; with that in the environment, the
//! test `replay` does the same again and shows the run.
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
use workload::COMPACTING_SEEDS;

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

/// Explores the workloads of `first_seed` and its successors until there were `floor` states.
fn explore_states(first_seed: u64, floor: u64) -> explore::Tally {
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
    total
}

#[test]
fn every_crash_leaves_a_store_that_keeps_its_promises() {
    explore_states(number("RINGCASK_CRASH_SEED", 1), number("RINGCASK_CRASH_STATES", 500_000));
}

#[test]
fn compaction_survives_every_crash() {
    let floor = number("RINGCASK_COMPACTION_STATES", 1_000_000);
    let total = explore_states(COMPACTING_SEEDS + number("RINGCASK_CRASH_SEED", 1), floor);
    assert!(total.in_jobs * 4 >= floor, "{} states of {} in compactions", total.in_jobs, total.states);
    assert!(total.unlinks * 50 >= floor, "{} states of {} with unlinks undecided", total.unlinks, total.states);
    assert!(total.salvaged * 100 >= floor, "{} states of {} without a MANIFEST", total.salvaged, total.states);
    assert!(total.compacted * 500 >= floor, "{} closed stores compacted", total.compacted);
}

#[test]
fn every_operation_can_fail() {
    fail_scenarios(number("RINGCASK_FAILURE_FIRST", 0), number("RINGCASK_FAILURE_SCENARIOS", 40));
}

#[test]
fn every_operation_of_a_compaction_can_fail() {
    let first = COMPACTING_SEEDS + number("RINGCASK_FAILURE_FIRST", 0);
    let total = fail_scenarios(first, number("RINGCASK_COMPACTION_FAILURES", 12));
    assert!(total.compacted * 5 >= total.runs, "{} of {} stores were compacted after all", total.compacted, total.runs);
}

/// Has every operation of so many scenarios fail.
fn fail_scenarios(first: u64, scenarios: u64) -> failures::Tally {
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
    total
}

#[test]
fn a_full_disk_stops_a_compaction_and_nothing_else() {
    let failed = (0..400).filter(|seed| failures::compact_on_a_full_disk(*seed).unwrap()).count();
    println!("{failed} of 400 compactions found no space");
    assert!((50..350).contains(&failed), "{failed} of 400 compactions found no space");
}

#[test]
fn large_values_survive_a_compaction() {
    let crashes: usize = (0..12).map(|seed| explore::compact_large_values(seed).unwrap()).sum();
    println!("{crashes} crashes");
}

#[test]
fn a_length_that_a_failed_sync_left_in_memory_is_made_durable() {
    let images: usize = (0..40).map(|seed| explore::seal_behind_a_failed_sync(seed).unwrap()).sum();
    println!("{images} images");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in (1..60).chain(COMPACTING_SEEDS + 1..COMPACTING_SEEDS + 60) {
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
