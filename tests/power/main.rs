//! A real kernel whose disk is cut off at random moments, many times on the same file system.
//!
//! The store is on a file system in a file. While a child process writes (see `support/killed_writer`), the file system
//! is shut down: data that has not reached its disk is lost, and every later request fails. The child is killed, either
//! immediately or after its calls have failed. The file system is mounted again, which replays its journal, and the
//! store is reopened and checked. Only `Synced` operations, and those before them, must survive. An operation requested
//! after the cut must not be acknowledged.
//!
//! Further checks: reads in the child after the cut return what was written, or fail. An open during the cut fails with
//! an error that does not report corruption. The reopened store can be written, compacted and closed, its versions are
//! higher than all before, and it has the same contents when it is reopened. One check in three works on a copy, so
//! that the next child recovers the files that the cut left, and is cut off again.
//!
//! Not tested here: disks that reorder or tear writes (the simulated disk in `tests/crash` does), and file systems that
//! cannot be shut down.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a failed check is a failed test"
)]

mod disk;
#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod killed_writer;
    pub mod stages;
}

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disk::{Cut, Disk, Kind};
use ringcask::testing::seeded_bug::SeededBug;
use ringcask::{Engine, Store};
use tempfile::TempDir;

use crate::support::killed_writer::{self, Acks, Rng, Running, State, Survivors, Totals, WRITERS, builder, check};
use crate::support::stages;

/// Number of cuts before a file system is replaced.
const GENERATIONS: u64 = 12;

/// Runs the cuts of one test.
struct Cutter {
    test: &'static str,
    kind: Kind,
    engines: Vec<Engine>,
    seeded_bug: Option<SeededBug>,
    rng: Rng,
    totals: Totals,
    journal_flushed: u64,
    /// Children that could not open their store.
    unopened: u64,
    /// Writers that got an error before their process was killed.
    refused: u64,
    by_engine: BTreeMap<String, u64>,
}

impl Cutter {
    fn new(test: &'static str, kind: Kind, seed: u64, seeded_bug: Option<SeededBug>) -> Self {
        let engines = match killed_writer::uring_refused() {
            None => vec![Engine::Uring, Engine::Threads],
            Some(why) => {
                println!("SKIPPED: power cuts on the ring: {why}");
                assert!(std::env::var_os("RINGCASK_REQUIRE_ALL").is_none(), "io_uring must be available here: {why}");
                vec![Engine::Threads]
            }
        };
        Self {
            test,
            kind,
            engines,
            seeded_bug,
            rng: Rng(seed),
            totals: Totals::default(),
            journal_flushed: 0,
            unopened: 0,
            refused: 0,
            by_engine: BTreeMap::new(),
        }
    }

    fn fresh_disk(&mut self) -> Result<Disk, String> {
        let options = self.kind.options();
        Disk::new(self.kind, options[self.rng.below(options.len() as u64) as usize])
    }

    /// Cuts `count` times. Returns the reason if no file system is available.
    fn cut_repeatedly(&mut self, count: u64) -> Result<(), String> {
        let (mut disk, mut before) = (self.fresh_disk()?, vec![State::new(); WRITERS]);
        for number in 0..count {
            if number > 0 && number % GENERATIONS == 0 {
                disk = self.fresh_disk().unwrap();
                before = vec![State::new(); WRITERS];
            }
            before = self.cycle(&mut disk, &before);
        }
        Ok(())
    }

    /// Runs one child, cuts it off once and checks the store.
    fn cycle(&mut self, disk: &mut Disk, before: &[State]) -> Vec<State> {
        let seed = self.rng.next();
        let engine = self.engines[self.rng.below(self.engines.len() as u64) as usize];
        let path = disk.point.join("store");
        let acks = self.run_and_cut(disk, &path, engine, seed);
        disk.restart();
        self.totals.cycles += 1;
        *self.by_engine.entry(engine.to_string()).or_default() += 1;
        self.unopened += u64::from(acks.unopened.is_some());
        self.refused += acks.refused.iter().filter(|refused| **refused).count() as u64;
        if let Some(message) = &acks.unopened {
            assert!(message.starts_with("unopened Io"), "an open after the cut failed with another error: {message}");
        }

        let aside = TempDir::with_prefix("ringcask-power-").unwrap();
        let copied = self.rng.below(3) == 0 && path.exists();
        let looked_at = if copied { aside.path().join("copy") } else { path };
        if copied {
            copy_directory(&disk.point.join("store"), &looked_at);
        }
        let engine = self.engines[self.rng.below(self.engines.len() as u64) as usize];
        let open = |seed| {
            let opened = pollster::block_on(builder(engine, &looked_at, seed).open());
            opened.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"))
        };
        let store = open(self.rng.next());
        let after = check(&store, seed, before, &acks, Survivors::Disk, &mut self.totals);
        let highest = acks.versions.iter().flatten().copied().max().unwrap_or(0);
        exercise(&store, highest, self.rng.below(2) == 0);
        drop(store);
        if self.rng.below(4) == 0 {
            let store = open(self.rng.next());
            let again = check(&store, seed, &after, &Acks::new(), Survivors::Disk, &mut Totals::default());
            assert!(again == after, "the contents changed between two reopens");
            pollster::block_on(store.close()).unwrap();
        }
        after
    }

    /// Runs a child until a random moment, and cuts off its disk.
    fn run_and_cut(&mut self, disk: &Disk, path: &Path, engine: Engine, seed: u64) -> Acks {
        let mut running = Running::start_with(self.test, engine, path, seed, self.seeded_bug);
        let during_open = self.totals.cycles % 5 == 4;
        self.totals.during_open += u64::from(during_open);
        running.wait_for(&[if during_open { "starting" } else { "ack " }]);
        let pause = if during_open { self.rng.below(4_000) } else { self.rng.below(60_000) };
        thread::sleep(Duration::from_micros(pause));
        let cut = if self.rng.below(3) == 0 { Cut::JournalFlushed } else { Cut::Nothing };
        self.journal_flushed += u64::from(cut == Cut::JournalFlushed);
        let begin = killed_writer::now();
        disk.cut(cut);
        let end = killed_writer::now();
        match self.rng.below(3) {
            0 => {}
            1 => thread::sleep(Duration::from_micros(self.rng.below(5_000))),
            _ => running.wait_for(&["ended", "unopened "]),
        }
        let mut acks = running.kill();
        acks.cut = Some((begin, end));
        acks
    }
}

/// Checks that a store works after a power cut: writes, compacts and closes it.
fn exercise(store: &Store, highest: u64, compacts: bool) {
    let version = pollster::block_on(store.put("after", "all")).unwrap();
    assert!(version.get() > highest, "version {version} is not above {highest}");
    assert_eq!(pollster::block_on(store.get("after")).unwrap().as_deref(), Some(&b"all"[..]));
    if compacts {
        pollster::block_on(store.compact()).unwrap();
    }
    assert!(pollster::block_on(store.delete("after")).unwrap());
    pollster::block_on(store.close()).unwrap();
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn seed() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    stages::number("RINGCASK_SEED").unwrap_or(since_epoch.as_nanos() as u64)
}

fn cut_repeatedly(test: &'static str, kind: Kind, stage: &str) {
    if killed_writer::is_child() {
        return killed_writer::child(true);
    }
    let stage = stages::begin(stage);
    let seed = seed();
    println!("{kind:?}: RINGCASK_SEED={seed}");
    let mut cutter = Cutter::new(test, kind, seed, None);
    if let Err(why) = cutter.cut_repeatedly(stage.floor()) {
        return stage.skip(&why);
    }
    let Cutter { totals, journal_flushed, unopened, refused, by_engine, .. } = cutter;
    let Totals { cycles, during_open, acks, lost, doubtful, in_flight_kept, truncated } = totals;
    let note = format!(
        "{by_engine:?}, {during_open} during open of which {unopened} failed, {journal_flushed} with the journal flushed, \
         {acks} acknowledgments checked, {lost} lost as a suffix, of which {doubtful} synced in the middle \
         of a cut, {refused} writers refused, {in_flight_kept} in flight kept, {truncated} torn tails, seed {seed}"
    );
    stage.end(cycles, &note);
    assert!(acks >= 20 * cycles, "{acks} acknowledgments in {cycles} cycles are too few");
    assert!(cycles < 10 || refused > 0 && lost > 0, "no cut failed a write, or none lost one: {note}");
}

#[test]
fn repeated_power_cuts_on_ext4() {
    cut_repeatedly("repeated_power_cuts_on_ext4", Kind::Ext4, "power cuts, ext4");
}

#[test]
fn repeated_power_cuts_on_xfs() {
    cut_repeatedly("repeated_power_cuts_on_xfs", Kind::Xfs, "power cuts, xfs");
}

/// Checks that the test finds a store that acknowledges before its sync.
#[test]
fn a_seeded_bug_is_found() {
    const CYCLES: u64 = 40;
    if killed_writer::is_child() {
        return killed_writer::child(true);
    }
    let seeded_bug = SeededBug::AckBeforeSync;
    let mut cutter = Cutter::new("a_seeded_bug_is_found", Kind::Ext4, seed(), Some(seeded_bug));
    let result = catch_unwind(AssertUnwindSafe(|| cutter.cut_repeatedly(CYCLES)));
    match result {
        Ok(Err(why)) => println!("SKIPPED: a seeded bug under power cuts: {why}"),
        Ok(Ok(())) => panic!("{seeded_bug:?} was not noticed in {CYCLES} power cuts"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or("a panic", |text| text);
            println!("{seeded_bug:?}: noticed after {} power cuts: {text:.200}", cutter.totals.cycles);
        }
    }
}
