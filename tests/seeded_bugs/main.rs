//! Tests of the tests: known mistakes are built in, one at a time, and the crash tests must notice each of them.
//!
//! Every mistake is one that a store of this kind has made (see `ringcask::seeded_bug`). The same exploration that passes
//! without them is run with each, until it fails; one that does not within its budget is a hole in the net.
//! `RINGCASK_SEEDED_BUG` names one to look at alone.
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

use ringcask::seeded_bug::{SeededBug, activate};
use ringcask::sim::FaultKind;

use crate::support::crash::explore::Explorer;
use crate::support::crash::swarm::SWARM_SEEDS;
use crate::support::crash::workload::COMPACTING_SEEDS;
use crate::support::crash::{failed_operations, state_machine};
use crate::support::{panics, stages};

/// Where a mistake shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    /// In what a crash leaves.
    Crashes,
    /// When an operation fails.
    Failures,
    /// In what a crash leaves of a store that compacts.
    Compactions,
    /// When an operation of a store that compacts fails.
    CompactionFailures,
    /// When two segments' hint files change places, which no crash can do.
    Swap,
    /// When a segment has the hint file of another one of the same number, from another copy of the directory.
    OldHint,
    /// When a hint file tells lies under right checksums.
    LyingHint,
    /// When a directory is opened that is open.
    SecondHandle,
}

const SEEDED_BUGS: [(SeededBug, Net); 39] = [
    (SeededBug::NoDirectorySync, Net::Crashes),
    (SeededBug::NoTruncateOnOpen, Net::Crashes),
    (SeededBug::TailNotSynced, Net::Crashes),
    (SeededBug::SealAfterTornTail, Net::Crashes),
    (SeededBug::PayloadUnverified, Net::Crashes),
    (SeededBug::ZerosDecode, Net::Crashes),
    (SeededBug::LengthUnchecked, Net::Crashes),
    (SeededBug::SkipBadRecord, Net::Crashes),
    (SeededBug::BatchNotAtomic, Net::Crashes),
    (SeededBug::AckBeforeSync, Net::Crashes),
    (SeededBug::SyncCoversInFlight, Net::Crashes),
    (SeededBug::FollowerErrorDropped, Net::Failures),
    (SeededBug::SyncErrorDropped, Net::Failures),
    (SeededBug::ShortWriteIgnored, Net::Crashes),
    (SeededBug::ReadErrorIsEnd, Net::Failures),
    (SeededBug::HintUnbound, Net::Swap),
    (SeededBug::SequenceReused, Net::Crashes),
    (SeededBug::FooterBeforeData, Net::Crashes),
    (SeededBug::TombstoneDropped, Net::Compactions),
    (SeededBug::RelocateUnconditionally, Net::Compactions),
    (SeededBug::OutputNotSynced, Net::Compactions),
    (SeededBug::OverwrittenByTheUndurable, Net::Compactions),
    (SeededBug::UnlinkedWhileListed, Net::Compactions),
    (SeededBug::OutputTooYoung, Net::Compactions),
    (SeededBug::UnreadWithTombstones, Net::Compactions),
    (SeededBug::CopiesNotCounted, Net::Compactions),
    (SeededBug::InputErrorIsEnd, Net::Compactions),
    (SeededBug::SpentIdNotDurable, Net::Compactions),
    (SeededBug::BusyKeySkipped, Net::CompactionFailures),
    (SeededBug::LiveRecordLeftOut, Net::Compactions),
    (SeededBug::RetiredInAnyOrder, Net::Compactions),
    (SeededBug::SpentNumbersForgotten, Net::Compactions),
    (SeededBug::HeaderUnverified, Net::Crashes),
    (SeededBug::StaleHint, Net::OldHint),
    (SeededBug::BatchFrameCopied, Net::Compactions),
    (SeededBug::KeyNotCompared, Net::LyingHint),
    (SeededBug::LockAfterRecovery, Net::SecondHandle),
    (SeededBug::FillerOverRecords, Net::Crashes),
    (SeededBug::FillerNotCut, Net::Crashes),
];

/// Ways to fail that tell mistakes from each other; the others cost time.
const FAILURES: [FaultKind; 2] = [FaultKind::EIO, FaultKind::Short(0)];

/// States, or scenarios, after which a mistake counts as not noticed.
const MAX_STATES: u64 = 300_000;
const MAX_SCENARIOS: u64 = 60;

/// How the mistake was noticed, and after how much.
fn hunt(net: Net) -> Option<(u64, String)> {
    let mut states = 0;
    let first_seed = match net {
        Net::Compactions | Net::CompactionFailures => COMPACTING_SEEDS,
        _ => 0,
    };
    // What a compaction does wrong often shows only after the next one: many workloads find it, not many images.
    let images = if net == Net::Compactions { 4 } else { 64 };
    match net {
        Net::Crashes | Net::Compactions => {
            for seed in first_seed + 1.. {
                let tried = catch_unwind(AssertUnwindSafe(|| {
                    let mut explorer = Explorer::new(seed)?;
                    let result = explorer.explore(images);
                    states += explorer.tally.states;
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
        Net::Swap => forged_directories::swap_hints(1).err().map(|failure| (1, failure)),
        Net::OldHint => forged_directories::bring_an_old_hint(1).err().map(|failure| (1, failure)),
        Net::LyingHint => forged_directories::exchange_places_in_a_hint(1).err().map(|failure| (1, failure)),
        Net::SecondHandle => forged_directories::open_twice(1).err().map(|failure| (1, failure)),
        Net::Failures | Net::CompactionFailures => (first_seed..first_seed + MAX_SCENARIOS).find_map(|seed| {
            let (tally, result) = failed_operations::fail_everything(seed, &FAILURES);
            states += tally.runs;
            result.err().map(|failure| (states, failure))
        }),
    }
}

/// A store that says "durable" before it is. Every harness must notice it, or what else it says is worth nothing; and none
/// may complain of the store as it is.
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
        assert_eq!(complaint, None, "{name} complains of a store without mistakes");
        activate(Some(SeededBug::AckBeforeSync));
        let noticed = (1..200).find_map(fails);
        activate(None);
        let noticed = noticed.unwrap_or_else(|| panic!("{name} says that a store which loses writes is right"));
        let line = noticed.lines().find(|line| line.starts_with("shrunk")).or(noticed.lines().next());
        println!("canary, {name}: {:.160}", line.unwrap_or_default());
    }
    std::panic::set_hook(hook);
}

#[test]
fn every_known_mistake_is_noticed() {
    // The other nets are shown to hold without mistakes by the crash tests. One test, since a mistake is in all threads.
    for seed in 1..20 {
        forged_directories::swap_hints(seed).unwrap();
        forged_directories::bring_an_old_hint(seed).unwrap();
        forged_directories::exchange_places_in_a_hint(seed).unwrap();
        forged_directories::open_twice(seed).unwrap();
    }
    check_canary();
    // Under a mistake tasks may panic; what they print is of no use to anybody.
    std::panic::set_hook(Box::new(|_| {}));
    let stage = stages::begin("mistakes noticed");
    let mut missed = Vec::new();
    let mut noticed = 0;
    let only = std::env::var("RINGCASK_SEEDED_BUG").ok();
    for (seeded_bug, net) in SEEDED_BUGS {
        if only.as_ref().is_some_and(|only| *only != format!("{seeded_bug:?}")) {
            continue;
        }
        activate(Some(seeded_bug));
        let found = hunt(net);
        activate(None);
        match found {
            Some((states, failure)) => {
                noticed += 1;
                let line = failure.lines().next().unwrap_or_default();
                println!("{seeded_bug:?}: noticed after {states} ({net:?}): {line:.160}");
            }
            None => missed.push(seeded_bug),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
    if only.is_none() {
        stage.end(noticed, &format!("of {}", SEEDED_BUGS.len()));
    }
}

/// A stage that explored too little is a failed test.
#[test]
fn a_stage_below_its_floor_fails() {
    stages::begin_canary().end(2, "as much as is asked for");
    let below = catch_unwind(|| stages::begin_canary().end(1, "too little"));
    assert!(below.is_err(), "a stage that explored too little has passed");
}
