//! Tests of the tests: with each seeded bug, the crash tests must fail.
//!
//! Every seeded bug is one that stores of this kind have had (see `ringcask::testing::seeded_bug`). The exploration
//! that passes without the bug runs with it until a check fails. A bug that is not found within the budget shows a gap
//! in the tests. `RINGCASK_SEEDED_BUG` selects a single bug.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]
#![allow(unreachable_pub, reason = "modules of one test")]

mod forged_directories;
#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod crash;
    pub mod history_model;
    pub mod panics;
    pub mod stages;
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringcask::testing::seeded_bug::{SeededBug, activate};
use ringcask::testing::sim::FaultKind;

use crate::support::crash::explore::Explorer;
use crate::support::crash::swarm::SWARM_SEEDS;
use crate::support::crash::workload::COMPACTING_SEEDS;
use crate::support::crash::{failed_operations, state_machine};
use crate::support::{panics, stages};

/// The check that finds a seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detector {
    /// The checks after a crash.
    Crashes,
    /// The checks after a failed operation.
    Failures,
    /// The checks after a crash of a store that compacts.
    Compactions,
    /// The checks after a failed operation of a store that compacts.
    CompactionFailures,
    /// Two segments have each other's hint files, which no crash can cause.
    Swap,
    /// A segment has the hint file of a segment with the same number in another copy of the directory.
    OldHint,
    /// A hint file has false entries with valid checksums.
    LyingHint,
    /// An open directory is opened again.
    SecondHandle,
}

const SEEDED_BUGS: [(SeededBug, Detector); 39] = [
    (SeededBug::NoDirectorySync, Detector::Crashes),
    (SeededBug::NoTruncateOnOpen, Detector::Crashes),
    (SeededBug::TailNotSynced, Detector::Crashes),
    (SeededBug::SealAfterTornTail, Detector::Crashes),
    (SeededBug::PayloadUnverified, Detector::Crashes),
    (SeededBug::ZerosDecode, Detector::Crashes),
    (SeededBug::LengthUnchecked, Detector::Crashes),
    (SeededBug::SkipBadRecord, Detector::Crashes),
    (SeededBug::BatchNotAtomic, Detector::Crashes),
    (SeededBug::AckBeforeSync, Detector::Crashes),
    (SeededBug::SyncCoversInFlight, Detector::Crashes),
    (SeededBug::FollowerErrorDropped, Detector::Failures),
    (SeededBug::SyncErrorDropped, Detector::Failures),
    (SeededBug::ShortWriteIgnored, Detector::Crashes),
    (SeededBug::ReadErrorIsEnd, Detector::Failures),
    (SeededBug::HintUnbound, Detector::Swap),
    (SeededBug::SequenceReused, Detector::Crashes),
    (SeededBug::FooterBeforeData, Detector::Crashes),
    (SeededBug::TombstoneDropped, Detector::Compactions),
    (SeededBug::RelocateUnconditionally, Detector::Compactions),
    (SeededBug::OutputNotSynced, Detector::Compactions),
    (SeededBug::OverwrittenByTheUndurable, Detector::Compactions),
    (SeededBug::UnlinkedWhileListed, Detector::Compactions),
    (SeededBug::OutputTooYoung, Detector::Compactions),
    (SeededBug::UnreadWithTombstones, Detector::Compactions),
    (SeededBug::CopiesNotCounted, Detector::Compactions),
    (SeededBug::InputErrorIsEnd, Detector::Compactions),
    (SeededBug::SpentIdNotDurable, Detector::Compactions),
    (SeededBug::BusyKeySkipped, Detector::CompactionFailures),
    (SeededBug::LiveRecordLeftOut, Detector::Compactions),
    (SeededBug::RetiredInAnyOrder, Detector::Compactions),
    (SeededBug::SpentNumbersForgotten, Detector::Compactions),
    (SeededBug::HeaderUnverified, Detector::Crashes),
    (SeededBug::StaleHint, Detector::OldHint),
    (SeededBug::BatchFrameCopied, Detector::Compactions),
    (SeededBug::KeyNotCompared, Detector::LyingHint),
    (SeededBug::LockAfterRecovery, Detector::SecondHandle),
    (SeededBug::FillerOverRecords, Detector::Crashes),
    (SeededBug::FillerNotCut, Detector::Crashes),
];

/// The kinds of failures that reveal seeded bugs. The other kinds only cost time.
const FAILURES: [FaultKind; 2] = [FaultKind::EIO, FaultKind::Short(0)];

/// Number of states or scenarios after which a seeded bug counts as missed.
const MAX_STATES: u64 = 300_000;
const MAX_SCENARIOS: u64 = 60;

/// Searches for the bug. Returns the number of states explored and the failure that revealed it.
fn hunt(detector: Detector) -> Option<(u64, String)> {
    let mut states = 0;
    let first_seed = match detector {
        Detector::Compactions | Detector::CompactionFailures => COMPACTING_SEEDS,
        _ => 0,
    };
    // An error of one compaction often shows only after the next one: more workloads find it, more images do not.
    let images = if detector == Detector::Compactions { 4 } else { 64 };
    match detector {
        Detector::Crashes | Detector::Compactions => {
            for seed in first_seed + 1.. {
                let tried = catch_unwind(AssertUnwindSafe(|| {
                    let mut explorer = Explorer::new(seed)?;
                    let result = explorer.explore(images);
                    states += explorer.totals.states;
                    result
                }));
                match tried {
                    Ok(Ok(())) if states < MAX_STATES => {}
                    Ok(Ok(())) => return None,
                    Ok(Err(failure)) => return Some((states, failure)),
                    Err(panic) => return Some((states, panics::panic_text(&*panic))),
                }
            }
            None
        }
        Detector::Swap => forged_directories::swap_hints(1).err().map(|failure| (1, failure)),
        Detector::OldHint => forged_directories::move_an_old_hint(1).err().map(|failure| (1, failure)),
        Detector::LyingHint => forged_directories::exchange_locations_in_a_hint(1).err().map(|failure| (1, failure)),
        Detector::SecondHandle => forged_directories::open_twice(1).err().map(|failure| (1, failure)),
        Detector::Failures | Detector::CompactionFailures => {
            (first_seed..first_seed + MAX_SCENARIOS).find_map(|seed| {
                let (totals, result) = failed_operations::fail_everything(seed, &FAILURES);
                states += totals.runs;
                result.err().map(|failure| (states, failure))
            })
        }
    }
}

/// Checks every harness with a store that acknowledges writes too early. A harness that misses this bug proves nothing.
/// No harness may report a failure of the store without the bug.
fn check_canary() {
    type Harness = (&'static str, fn(u64) -> Result<(), String>);
    let explored = |seed: u64| Explorer::new(seed).and_then(|mut explorer| explorer.explore(16));
    let sampled = |seed: u64| Explorer::new(SWARM_SEEDS + seed).and_then(|mut explorer| explorer.sample(6));
    let harnesses: [Harness; 5] = [
        ("crash states", explored),
        ("crash states, compaction", |seed| Explorer::new(COMPACTING_SEEDS + seed)?.explore(4)),
        ("swarm", sampled),
        ("state machine", |seed| state_machine::run_case(seed).map(drop)),
        ("failed operations", |seed| failed_operations::fail_everything(seed, &FAILURES).1),
    ];
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for (name, harness) in harnesses {
        let fails =
            |seed| catch_unwind(|| harness(seed)).unwrap_or_else(|panic| Err(panics::panic_text(&*panic))).err();
        let complaint = (1..4).find_map(fails);
        assert_eq!(complaint, None, "{name} reports a failure of a store without a seeded bug");
        activate(Some(SeededBug::AckBeforeSync));
        let noticed = (1..200).find_map(fails);
        activate(None);
        let noticed = noticed.unwrap_or_else(|| panic!("{name} accepts a store that loses writes"));
        let line = noticed.lines().find(|line| line.starts_with("shrunk")).or(noticed.lines().next());
        println!("canary, {name}: {:.160}", line.unwrap_or_default());
    }
    std::panic::set_hook(hook);
}

#[test]
fn every_seeded_bug_is_found() {
    // The crash tests run the other checks without a bug. This is a single test, because a seeded bug is active in all
    // threads.
    for seed in 1..20 {
        forged_directories::swap_hints(seed).unwrap();
        forged_directories::move_an_old_hint(seed).unwrap();
        forged_directories::exchange_locations_in_a_hint(seed).unwrap();
        forged_directories::open_twice(seed).unwrap();
    }
    check_canary();
    // Tasks may panic because of a seeded bug. The hook hides their messages.
    std::panic::set_hook(Box::new(|_| {}));
    let stage = stages::begin("seeded bugs found");
    let mut missed = Vec::new();
    let mut noticed = 0;
    let only = std::env::var("RINGCASK_SEEDED_BUG").ok();
    for (seeded_bug, detector) in SEEDED_BUGS {
        if only.as_ref().is_some_and(|only| *only != format!("{seeded_bug:?}")) {
            continue;
        }
        activate(Some(seeded_bug));
        let found = hunt(detector);
        activate(None);
        match found {
            Some((states, failure)) => {
                noticed += 1;
                let line = failure.lines().next().unwrap_or_default();
                println!("{seeded_bug:?}: found after {states} ({detector:?}): {line:.160}");
            }
            None => missed.push(seeded_bug),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
    if only.is_none() {
        stage.end(noticed, &format!("of {}", SEEDED_BUGS.len()));
    }
}

/// A stage below its floor fails its test.
#[test]
fn a_stage_below_its_floor_fails() {
    stages::begin_canary().end(2, "exactly the floor");
    let below = catch_unwind(|| stages::begin_canary().end(1, "below the floor"));
    assert!(below.is_err(), "a stage below its floor passed");
}
