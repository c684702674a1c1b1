//! Crash tests: the store on a simulated disk, crashed at every step, in every state that the disk may be left in.
//!
//! | job | module |
//! |---|---|
//! | which states a crash may leave of a history of calls | `support/history_model.rs` |
//! | calls drawn from a seed, compactions included | `support/crash/workload` |
//! | crash, recover, check, continue, crash again | `support/crash/explore.rs` |
//! | every operation fails once; a full disk during a compaction | `support/crash/failed_operations.rs` |
//!
//! Injected faults: loss of unsynced sectors, truncations and names in any combination, torn sectors, stale and random
//! contents of holes, kills, crashes during recovery, failed syncs that lose data, full disks, short and interrupted
//! operations, completions in any order, damaged hint files. All of these also happen while compactions run, are
//! dropped, paused or ended by a close, with writes, deletes and reads beside them. Closed stores are also compacted
//! completely, and compacted with a flipped bit in a segment. Stores without running operations are also opened without
//! their MANIFEST. Not injected here: other damage to synced data.
//!
//! `support/stages.rs` has the floors and the variables that set them. Seeds from 2^40 on belong to workloads that
//! compact. `RINGCASK_PATIENCE` is the number of failures after which a test stops. A failed state prints a line
//! `RINGCASK_REPLAY="…"`. With that line in the environment, the test `replay` repeats and prints the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]
#![allow(unreachable_pub, reason = "modules of one test")]

mod scenarios;
#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod byte_mutator;
    pub mod corpus;
    pub mod crash;
    pub mod history_model;
    pub mod panics;
    pub mod stages;
}

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ringcask::testing::sim::Rng;

use crate::support::crash::explore::{self, Explorer, Place, run_workload};
use crate::support::crash::phases::Phase;
use crate::support::crash::swarm::{SWARM_SEEDS, is_swarm};
use crate::support::crash::workload::COMPACTING_SEEDS;
use crate::support::crash::{failed_operations, state_machine, wrong_reads};
use crate::support::stages::{begin, first_seed, number};
use crate::support::{byte_mutator, corpus};

/// Crash points of each swarm seed.
const SWARM_POINTS: usize = 3;

/// Runs `explore` on the seeds from `first_seed` on, with one thread per processor, while `continues` returns true.
/// Returns the failures.
fn over_seeds(
    first_seed: u64,
    continues: impl Fn(u64) -> bool + Sync,
    explore: impl Fn(u64) -> Result<(), String> + Sync,
) -> Vec<String> {
    let patience = usize::try_from(number("RINGCASK_PATIENCE").unwrap_or(1)).unwrap();
    let (next, failures) = (AtomicU64::new(first_seed), Mutex::new(Vec::new()));
    let work = || {
        while failures.lock().unwrap().len() < patience {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !continues(seed) {
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

/// Explores the workloads of the seeds from `first_seed` on, while `continues` returns true for the seed and the number
/// of states.
fn explore_while(first_seed: u64, continues: impl Fn(u64, u64) -> bool + Sync) -> explore::Totals {
    let start = Instant::now();
    let (states, total) = (AtomicU64::new(0), Mutex::new(explore::Totals::default()));
    let failures = over_seeds(
        first_seed,
        |seed| continues(seed, states.load(Ordering::Relaxed)),
        |seed| {
            // Every 128th workload explores all images of each crash point, the others only a few.
            let budget = if seed.is_multiple_of(128) { 1024 } else { 3 };
            let mut explorer =
                Explorer::new(seed).map_err(|error| format!("RINGCASK_REPLAY=\"seed={seed}\": {error}"))?;
            let result = if is_swarm(seed) { explorer.sample(SWARM_POINTS) } else { explorer.explore(budget) };
            states.fetch_add(explorer.totals.states, Ordering::Relaxed);
            total.lock().unwrap().add(&explorer.totals);
            result
        },
    );
    let total = *total.lock().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{total:?}, seeds from {first_seed}, {seconds:.1} s, {:.0} states/s", total.states as f64 / seconds);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(
        total.second_crashes * 5 >= total.states,
        "{} second crashes in {} states",
        total.second_crashes,
        total.states
    );
    assert!(
        total.used_further * 200 >= total.states,
        "{} of {} recovered stores were used further",
        total.used_further,
        total.states
    );
    total
}

/// Explores until the floor of the stage is reached. Every phase must occur: each comes with a number, and at least one
/// state in that number must be of the phase.
fn explore_states(name: &str, first_seed: u64, phases: &[(Phase, u64)]) -> explore::Totals {
    let stage = begin(name);
    let floor = stage.floor();
    let total = explore_while(first_seed, |_, states| states < floor);
    let note =
        format!("{} workloads, {} second crashes; {}", total.workloads, total.second_crashes, count_phases(&total));
    stage.end(total.states, &note);
    check_phases(&total, phases);
    total
}

fn count_phases(total: &explore::Totals) -> String {
    let counts = Phase::ALL.iter().zip(total.phases).map(|(phase, count)| format!("{phase:?} {count}"));
    counts.collect::<Vec<_>>().join(", ")
}

fn check_phases(total: &explore::Totals, phases: &[(Phase, u64)]) {
    for (phase, one_in) in phases {
        let count = total.phases[*phase as usize];
        assert!(count * one_in >= total.states, "{count} states of {} in phase {phase:?}", total.states);
    }
}

#[test]
fn every_crash_state_recovers_with_all_promises_kept() {
    let phases = [
        (Phase::Append, 40),
        (Phase::Batch, 40),
        (Phase::Rotate, 40),
        (Phase::Seal, 40),
        (Phase::Hint, 40),
        (Phase::Manifest, 40),
        (Phase::Recovery, 40),
        (Phase::Close, 40),
    ];
    explore_states("crash states, log", first_seed(), &phases);
}

#[test]
fn compaction_survives_every_crash() {
    let phases = Phase::ALL.map(|phase| (phase, 40));
    let total = explore_states("crash states, compaction", COMPACTING_SEEDS + first_seed(), &phases);
    let states = total.states;
    assert!(total.in_jobs * 4 >= states, "{} states of {states} during a compaction", total.in_jobs);
    assert!(total.unlinks * 100 >= states, "{} states of {states} with unsynced unlinks", total.unlinks);
    assert!(total.salvaged * 100 >= states, "{} states of {states} without a MANIFEST", total.salvaged);
    assert!(total.compacted * 500 >= states, "{} closed stores compacted, of {states} states", total.compacted);
}

#[test]
fn every_swarm_seed_keeps_all_promises() {
    let (seeds, states) = (begin("swarm seeds"), begin("crash states, swarm"));
    let (first, floor) = (SWARM_SEEDS + first_seed(), seeds.floor());
    let total = explore_while(first, |seed, _| seed < first + floor);
    seeds.end(total.workloads, &format!("from {first}"));
    states.end(total.states, &format!("{} second crashes; {}", total.second_crashes, count_phases(&total)));
    check_phases(&total, &Phase::ALL.map(|phase| (phase, 50)));
}

#[test]
fn promises_hold_across_many_reopens() {
    let stage = begin("state machine cases");
    let (first, floor) = (first_seed(), stage.floor());
    let total = Mutex::new(state_machine::Totals::default());
    let failures = over_seeds(
        first,
        |seed| seed < first + floor,
        |seed| state_machine::run_case(seed).map(|totals| total.lock().unwrap().add(&totals)),
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let total = *total.lock().unwrap();
    stage.end(total.cases, &format!("from seed {first}: {total:?}"));
    assert!(total.ops >= total.cases * 80 && total.crashes >= total.cases * 3, "{total:?}");
}

/// Steps of a fuzzed case before it is mutated.
const FUZZED_STEPS: usize = 40;

#[test]
fn fuzzed_operations_break_no_promise() {
    let stage = begin("fuzz, operations");
    let (floor, total) = (stage.floor(), Mutex::new(state_machine::Totals::default()));
    let run = |input: &[u8]| state_machine::run_input(input).map(|totals| total.lock().unwrap().add(&totals));
    let kept = corpus::corpus("operations");
    kept.iter().for_each(|input| run(input).unwrap());
    let first = first_seed() << 24;
    let failures = over_seeds(
        first,
        |number| number < first + floor,
        |number| {
            let mut rng = Rng::new(number);
            let mut input = kept[rng.below(kept.len())].clone();
            if rng.percent(50) {
                input.clear();
                input.resize_with(4 + 4 * rng.below(FUZZED_STEPS), || rng.next_u64().to_le_bytes()[0]);
            }
            byte_mutator::mutate(&mut input, &kept[rng.below(kept.len())], &mut rng);
            run(&input)
        },
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let total = *total.lock().unwrap();
    stage.end(total.cases, &format!("{} saved inputs, {total:?}", kept.len()));
    assert!(total.crashes >= total.cases && total.faulted * 4 >= total.cases, "{total:?}");
}

#[test]
fn no_wrong_read_is_returned() {
    let stage = begin("wrong reads");
    let (floor, runs, noticed) = (stage.floor(), AtomicU64::new(0), AtomicU64::new(0));
    // Every second scenario compacts.
    let seed_of = |nth: u64| if nth.is_multiple_of(2) { nth } else { COMPACTING_SEEDS + nth };
    let failures = over_seeds(
        first_seed(),
        |_| runs.load(Ordering::Relaxed) < floor,
        |nth| {
            let (more, more_noticed, result) = wrong_reads::misread_everything(seed_of(nth));
            runs.fetch_add(more, Ordering::Relaxed);
            noticed.fetch_add(more_noticed, Ordering::Relaxed);
            result
        },
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let (runs, noticed) = (runs.into_inner(), noticed.into_inner());
    stage.end(runs, &format!("{noticed} were errors"));
    assert!(noticed * 4 >= runs, "{noticed} of {runs} wrong reads were detected");
}

#[test]
fn every_operation_can_fail() {
    fail_scenarios("failed operations, log", first_seed());
}

#[test]
fn every_operation_of_a_compaction_can_fail() {
    let total = fail_scenarios("failed operations, compaction", COMPACTING_SEEDS + first_seed());
    assert!(
        total.compacted * 5 >= total.runs,
        "{} of {} stores were compacted after the fault",
        total.compacted,
        total.runs
    );
}

/// Makes every operation of the scenarios fail, until the floor of the stage is reached.
fn fail_scenarios(name: &str, first_seed: u64) -> failed_operations::Totals {
    let stage = begin(name);
    let (floor, runs, total) = (stage.floor(), AtomicU64::new(0), Mutex::new(failed_operations::Totals::default()));
    let failures = over_seeds(
        first_seed,
        |_| runs.load(Ordering::Relaxed) < floor,
        |seed| {
            let (totals, result) = failed_operations::fail_everything(seed, &failed_operations::KINDS);
            runs.fetch_add(totals.runs, Ordering::Relaxed);
            total.lock().unwrap().add(&totals);
            result
        },
    );
    let total = *total.lock().unwrap();
    println!("{total:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    stage.end(total.runs, &format!("{} scenarios, {} crashes", total.scenarios, total.crashes));
    total
}

#[test]
fn a_full_disk_fails_only_the_compaction() {
    let failed = (0..400).filter(|seed| failed_operations::compact_on_a_full_disk(*seed).unwrap()).count();
    println!("{failed} of 400 compactions found no space");
    assert!((50..350).contains(&failed), "{failed} of 400 compactions found no space");
}

#[test]
fn large_values_survive_a_compaction() {
    let crashes: usize = (0..12).map(|seed| scenarios::compact_large_values(seed).unwrap()).sum();
    println!("{crashes} crashes");
}

#[test]
fn sealing_makes_the_length_durable_after_a_failed_sync() {
    let images: usize = (0..40).map(|seed| scenarios::seal_behind_a_failed_sync(seed).unwrap()).sum();
    println!("{images} images");
}

#[test]
fn a_lying_disk_is_detected_or_leaves_an_earlier_state() {
    let mut lies = scenarios::Lies::default();
    (1..300).for_each(|seed| scenarios::trust_a_lying_disk(seed, &mut lies).unwrap());
    println!("{lies:?}");
    // Both kinds must occur: detected losses, and losses that no store can detect.
    assert!(lies.detected * 10 > lies.images && lies.silent > 0, "{lies:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let seeds = (1..60).chain(COMPACTING_SEEDS + 1..COMPACTING_SEEDS + 60);
    for seed in seeds.chain(SWARM_SEEDS + 1..SWARM_SEEDS + 60) {
        let (a, b) = (run_workload(seed).unwrap(), run_workload(seed).unwrap());
        assert_eq!(a.trace, b.trace, "seed {seed}");
        assert_eq!(format!("{:?}", a.journal), format!("{:?}", b.journal), "seed {seed}");
    }
}

/// Repeats the failure in `RINGCASK_REPLAY`, `RINGCASK_CASE` or `RINGCASK_INPUT`. Does nothing without one.
#[test]
fn replay() {
    if let Ok(digits) = std::env::var("RINGCASK_INPUT") {
        let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        let input: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        println!("{:?}", state_machine::run_input(&input).unwrap());
    }
    if let Some(seed) = number("RINGCASK_CASE") {
        println!("{:?}", state_machine::run_case(seed).unwrap());
    }
    let Ok(text) = std::env::var("RINGCASK_REPLAY") else { return };
    let place: Place = text.parse().unwrap();
    let mut explorer = Explorer::new(place.seed).unwrap();
    explorer.replay(place).unwrap();
    println!("{place} holds: {:?}", explorer.totals);
}
