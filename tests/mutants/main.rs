//! Tests of the tests: known mistakes are built in, one at a time, and the crash tests must notice each of them.
//!
//! Every mistake is one that a store of this kind has made (see `ringcask::mutant`). The same exploration that passes
//! without them is run with each, until it fails; one that does not within its budget is a hole in the net.
//! `RINGCASK_MUTANT` names one to look at alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]
#![allow(unreachable_pub, dead_code, reason = "modules of the crash tests, of which this test uses a part")]

#[path = "../crash/callers.rs"]
mod callers;
#[path = "../crash/explore.rs"]
mod explore;
#[path = "../crash/failures.rs"]
mod failures;
#[path = "../crash/looks.rs"]
mod looks;
#[path = "../crash/machine.rs"]
mod machine;
#[path = "../crash/model.rs"]
mod model;
#[path = "../crash/phases.rs"]
mod phases;
#[path = "../proof/mod.rs"]
mod proof;
#[path = "../crash/reads.rs"]
mod reads;
#[path = "../crash/swarm.rs"]
mod swarm;
#[path = "../crash/workload.rs"]
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use explore::Explorer;
use ringcask::Store;
use ringcask::mutant::{Mutant, activate};
use ringcask::sim::{FaultKind, SimConfig, SimWorld};
use workload::COMPACTING_SEEDS;

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
    /// When bits of a sealed segment flip.
    Flips,
    /// When a second handle is opened.
    SecondHandle,
}

const MUTANTS: [(Mutant, Net); 33] = [
    (Mutant::NoDirectorySync, Net::Crashes),
    (Mutant::NoTruncateOnOpen, Net::Crashes),
    (Mutant::TailNotSynced, Net::Crashes),
    (Mutant::SealAfterTornTail, Net::Crashes),
    (Mutant::PayloadUnverified, Net::Crashes),
    (Mutant::ZerosDecode, Net::Crashes),
    (Mutant::LengthUnchecked, Net::Crashes),
    (Mutant::SkipBadRecord, Net::Crashes),
    (Mutant::BatchNotAtomic, Net::Crashes),
    (Mutant::AckBeforeSync, Net::Crashes),
    (Mutant::SyncCoversInFlight, Net::Crashes),
    (Mutant::FollowerErrorDropped, Net::Failures),
    (Mutant::SyncErrorDropped, Net::Failures),
    (Mutant::ShortWriteIgnored, Net::Crashes),
    (Mutant::ReadErrorIsEnd, Net::Failures),
    (Mutant::HintUnbound, Net::Swap),
    (Mutant::SequenceReused, Net::Crashes),
    (Mutant::FooterBeforeData, Net::Crashes),
    (Mutant::TombstoneDropped, Net::Compactions),
    (Mutant::RelocateUnconditionally, Net::Compactions),
    (Mutant::OutputNotSynced, Net::Compactions),
    (Mutant::OverwrittenByTheUndurable, Net::Compactions),
    (Mutant::UnlinkedWhileListed, Net::Compactions),
    (Mutant::OutputTooYoung, Net::Compactions),
    (Mutant::UnreadWithTombstones, Net::Compactions),
    (Mutant::CopiesNotCounted, Net::Compactions),
    (Mutant::InputErrorIsEnd, Net::Compactions),
    (Mutant::SpentIdNotDurable, Net::Compactions),
    (Mutant::BusyKeySkipped, Net::CompactionFailures),
    (Mutant::RetiredInAnyOrder, Net::Compactions),
    (Mutant::SpentNumbersForgotten, Net::Compactions),
    (Mutant::HeaderUnverified, Net::Flips),
    (Mutant::LockLate, Net::SecondHandle),
];

/// States, or scenarios, after which a mistake counts as not noticed.
const MAX_STATES: u64 = 300_000;
const MAX_SCENARIOS: u64 = 60;

/// Opens a store of two segments whose hint files have changed places.
fn swap_hints(seed: u64) -> Result<(), String> {
    let world = SimWorld::new(SimConfig { seed, ..SimConfig::default() });
    let builder = |world: &SimWorld| Store::builder("/db").world(Arc::new(world.clone()));
    let said = |error: ringcask::Error| error.to_string();
    for key in ["one", "two"] {
        world.run_until(async {
            let store = builder(&world).open().await.map_err(said)?;
            store.put(key, key).await.map_err(said)?;
            store.close().await.map_err(said)
        })?;
    }
    let mut image = world.image();
    let hints: Vec<String> = image.names().filter(|name| name.ends_with(".hint")).map(String::from).collect();
    let [first, second] = hints.as_slice() else { return Err(format!("hints: {hints:?}")) };
    let swapped = image.rename(first, "/db/aside") && image.rename(second, first) && image.rename("/db/aside", second);
    assert!(swapped, "{hints:?} in {:?}", image.names().collect::<Vec<_>>());
    let world = SimWorld::from_image(image, SimConfig { seed, ..SimConfig::default() });
    world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        for key in ["one", "two"] {
            let value = store.get(key).await.map_err(said)?;
            if value.as_deref() != Some(key.as_bytes()) {
                return Err(format!("{key} is {value:?}"));
            }
        }
        store.close().await.map_err(said)
    })
}

/// Opens a killed store with each bit of a record's header flipped: the record is gone or refused, never another.
fn flip_header_bits() -> Result<(), String> {
    let world = SimWorld::new(SimConfig::default());
    let said = |error: ringcask::Error| error.to_string();
    let builder = |world: &SimWorld| Store::builder("/db").world(Arc::new(world.clone()));
    let store = world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        for (key, value) in [("k", "first"), ("k", "second"), ("other", "third")] {
            store.put(key, value).await.map_err(said)?;
        }
        Ok::<_, String>(store)
    })?;
    let image = world.image();
    world.shutdown();
    drop(store);
    let name = image.names().find(|name| name.ends_with(".seg")).map(String::from).ok_or("no segment")?;
    // The watermark and the first record, whose payload is of the second's length.
    for bit in 512 * 8..(512 + 56 + 40) * 8 {
        let mut image = image.clone();
        image.flip_bit(&name, bit);
        let world = SimWorld::from_image(image, SimConfig::default());
        let result = world.run_until(async {
            let Ok(store) = builder(&world).open().await else { return Ok(()) };
            let value = store.get("k").await;
            match value {
                Ok(Some(value)) if *value != *b"first" && *value != *b"second" => Err(format!("{value:?}")),
                Ok(Some(value)) if *value == *b"first" => {
                    Err("an overwritten value with its successor there".to_owned())
                }
                Ok(Some(_)) if store.get("other").await.map_err(said)?.is_none() => Err("a hole".to_owned()),
                Ok(Some(_)) => Err(format!("bit {bit} of a header made no difference")),
                _ => Ok(()),
            }
        });
        world.shutdown();
        result?;
    }
    Ok(())
}

/// Opens a directory that another handle is writing to: the second is refused, and has changed nothing.
fn open_twice() -> Result<(), String> {
    let world = SimWorld::new(SimConfig::default());
    let said = |error: ringcask::Error| error.to_string();
    let builder = |world: &SimWorld| Store::builder("/db").world(Arc::new(world.clone()));
    let result = world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        store.put("k", "v").await.map_err(said)?;
        let before = world.image();
        match builder(&world).open().await {
            Err(error) if error.kind() == ringcask::ErrorKind::Locked => {}
            other => return Err(format!("a second handle: {:?}", other.map(drop))),
        }
        if world.image() != before {
            return Err("a second handle that was refused has changed the directory".to_owned());
        }
        store.put("k", "w").await.map_err(said)?;
        store.close().await.map_err(said)
    });
    world.shutdown();
    result
}

/// How the mistake was noticed, and after how much.
fn hunt(net: Net) -> Option<(u64, String)> {
    let mut states = 0;
    let first_seed = match net {
        Net::Compactions | Net::CompactionFailures => COMPACTING_SEEDS,
        Net::Crashes | Net::Failures | Net::Swap | Net::Flips | Net::SecondHandle => 0,
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
                    Err(panic) => return Some((states, explore::panic_text(&*panic))),
                }
            }
            None
        }
        Net::Swap => swap_hints(1).err().map(|failure| (1, failure)),
        Net::Flips => flip_header_bits().err().map(|failure| (1, failure)),
        Net::SecondHandle => open_twice().err().map(|failure| (1, failure)),
        Net::Failures | Net::CompactionFailures => (first_seed..first_seed + MAX_SCENARIOS).find_map(|seed| {
            let (tally, result) = failures::fail_everything(seed, &[FaultKind::EIO, FaultKind::Short(0)]);
            states += tally.runs;
            result.err().map(|failure| (states, failure))
        }),
    }
}

#[test]
fn every_known_mistake_is_noticed() {
    // The other nets are shown to hold without mistakes by the crash tests. One test, since a mistake is in all threads.
    for seed in 1..20 {
        swap_hints(seed).unwrap();
    }
    flip_header_bits().unwrap();
    open_twice().unwrap();
    // Under a mistake tasks may panic; what they print is of no use to anybody.
    std::panic::set_hook(Box::new(|_| {}));
    let stage = proof::begin("mistakes noticed");
    let mut missed = Vec::new();
    let mut noticed = 0;
    let only = std::env::var("RINGCASK_MUTANT").ok();
    for (mutant, net) in MUTANTS {
        if only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) {
            continue;
        }
        activate(Some(mutant));
        let found = hunt(net);
        activate(None);
        match found {
            Some((states, failure)) => {
                noticed += 1;
                let line = failure.lines().next().unwrap_or_default();
                println!("{mutant:?}: noticed after {states} ({net:?}): {line:.160}");
            }
            None => missed.push(mutant),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
    if only.is_none() {
        stage.end(noticed, &format!("of {}", MUTANTS.len()));
    }
}

/// The canary: a stage that explored too little is a failed test.
#[test]
fn a_stage_below_its_floor_fails() {
    proof::begin_canary().end(2, "as much as is asked for");
    let below = catch_unwind(|| proof::begin_canary().end(1, "too little"));
    assert!(below.is_err(), "a stage that explored too little has passed");
}
