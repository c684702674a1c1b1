//! What the tests must explore, and a record of what they did.
//!
//! A stage is a test that throws one kind of fault at the store and counts what it threw. How much it must explore is its
//! floor, which the test itself enforces: of two, one for every `cargo test`, one for `./prove ci`. A stage that cannot
//! run where it is says so, and what it would have shown; where `RINGCASK_REQUIRE_ALL` is set it fails instead.
//!
//! Environment: `RINGCASK_SCALE` is `small` (the default) or `ci`; the variable named with a stage sets its floor alone;
//! `RINGCASK_ROUND` makes seeds begin elsewhere, so that no two rounds explore the same; `RINGCASK_RESULTS` names a file
//! that gets a line for each stage, of which the test `verdict` makes a table.
//!
//! A module of several tests, each of which uses a part.
#![allow(clippy::panic, clippy::expect_used, reason = "a stage below its floor is a failed test")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

/// One kind of fault.
pub struct Stage {
    pub name: &'static str,
    /// The environment variable that sets its floor.
    pub variable: &'static str,
    /// The floor in every `cargo test`; 0 of a stage that needs a build of its own, and is not run there.
    pub small: u64,
    /// The floor in `./prove ci`.
    pub ci: u64,
    /// What it shows, for those who could not run it.
    pub shows: &'static str,
}

const fn stage(name: &'static str, variable: &'static str, small: u64, ci: u64, shows: &'static str) -> Stage {
    Stage { name, variable, small, ci, shows }
}

/// All stages, in the order of the table.
pub const STAGES: &[Stage] = &[
    // Simulated disk.
    stage(
        "crash states, log",
        "RINGCASK_CRASH_STATES",
        200_000,
        600_000,
        "no crash of a simulated disk takes what was acknowledged",
    ),
    stage(
        "crash states, compaction",
        "RINGCASK_COMPACTION_STATES",
        250_000,
        1_100_000,
        "nor does one while segments are rewritten",
    ),
    stage(
        "swarm seeds",
        "RINGCASK_SWARM_SEEDS",
        2_500,
        20_000,
        "no world, however its sizes, timing and troubles are drawn, breaks a promise",
    ),
    stage("crash states, swarm", "RINGCASK_SWARM_STATES", 50_000, 400_000, "nor does a crash in one of them"),
    stage(
        "state machine cases",
        "RINGCASK_MACHINE_CASES",
        300,
        3_000,
        "a store grows old through closes, crashes and faults and keeps its promises",
    ),
    stage(
        "failed operations, log",
        "RINGCASK_FAILURES",
        8_000,
        80_000,
        "every single operation can fail, with every error",
    ),
    stage("failed operations, compaction", "RINGCASK_COMPACTION_FAILURES", 4_000, 40_000, "those of a compaction too"),
    stage("mistakes noticed", "RINGCASK_MISTAKES", 39, 39, "the crash tests notice known mistakes that are built in"),
    stage("corruptions", "RINGCASK_CORRUPTIONS", 30_000, 300_000, "damage is detected or harmless, never wrong bytes"),
    stage("fuzz, decoders", "RINGCASK_FUZZ_DECODERS", 500_000, 10_000_000, "no bytes make a decoder panic or loop"),
    stage("fuzz, directories", "RINGCASK_FUZZ_DIRECTORIES", 5_000, 100_000, "no files make an open panic or loop"),
    stage("fuzz, segments", "RINGCASK_FUZZ_SEGMENTS", 2_000, 50_000, "nor do segments whose checksums are right"),
    stage("fuzz, hints", "RINGCASK_FUZZ_HINTS", 2_000, 50_000, "nor do hints that lie under right checksums"),
    stage(
        "fuzz, operations",
        "RINGCASK_FUZZ_OPERATIONS",
        2_000,
        50_000,
        "no operations, faults and crashes, in whatever order, break a promise",
    ),
    stage("wrong reads", "RINGCASK_WRONG_READS", 1_500, 20_000, "bytes that a read gets wrong are never believed"),
    // Real kernel.
    stage("kills, threads", "RINGCASK_KILLS_THREADS", 250, 2_000, "a killed process loses nothing the kernel had"),
    stage("kills, uring", "RINGCASK_KILLS_URING", 250, 2_000, "the same on the ring"),
    stage(
        "power cuts, ext4",
        "RINGCASK_POWER_CUTS_EXT4",
        20,
        300,
        "a kernel whose disk is cut off keeps what was acknowledged as synced",
    ),
    stage("power cuts, xfs", "RINGCASK_POWER_CUTS_XFS", 8, 150, "the same on another file system"),
    stage(
        "I/O faults, FUSE",
        "RINGCASK_FUSE_FAULTS",
        40,
        400,
        "a real file system may fail every request, in every way",
    ),
    stage("full disks", "RINGCASK_FULL_DISKS", 12, 48, "a full disk refuses, loses nothing, and is written again"),
    // Memory.
    stage("tests under AddressSanitizer", "RINGCASK_SANITIZED", 0, 200, "no memory is used after it was freed"),
    // Many threads.
    stage("schedules", "RINGCASK_SCHEDULES", 20_000, 200_000, "no order of the threads' steps breaks a promise"),
    stage("histories", "RINGCASK_HISTORIES", 220, 2_000, "what threads saw of one key has an order that explains it"),
    stage(
        "small histories",
        "RINGCASK_SMALL_HISTORIES",
        2_000,
        40_000,
        "short histories of several keys and batches have an order as a whole",
    ),
    stage(
        "cancellation points",
        "RINGCASK_CANCELLATIONS",
        200,
        4_000,
        "a future may be dropped after any of its polls",
    ),
    stage(
        "seconds of soak",
        "RINGCASK_SOAK_SECONDS",
        5,
        30,
        "memory, descriptors and disk stay flat under load and kills",
    ),
];

/// Whether the larger floors hold.
pub fn is_ci_scale() -> bool {
    match std::env::var("RINGCASK_SCALE").as_deref() {
        Err(_) | Ok("small") => false,
        Ok("ci") => true,
        Ok(other) => panic!("RINGCASK_SCALE={other}: small or ci"),
    }
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Where this round's seeds begin: far from those of any other round, below 2^40 for a million rounds.
pub fn first_seed() -> u64 {
    1 + number("RINGCASK_ROUND").unwrap_or(0) * 1_000_003
}

/// A stage that is running.
pub struct Running {
    stage: &'static Stage,
    start: Instant,
}

/// A stage of which nobody expects anything: to see that one below its floor fails.
pub static CANARY: Stage = stage("canary", "RINGCASK_CANARY", 2, 2, "nothing");

/// Begins the canary.
pub fn begin_canary() -> Running {
    Running { stage: &CANARY, start: Instant::now() }
}

/// Begins the stage of this name.
pub fn begin(name: &str) -> Running {
    let stage = STAGES.iter().find(|stage| stage.name == name).unwrap_or_else(|| panic!("no stage {name:?}"));
    Running { stage, start: Instant::now() }
}

impl Running {
    /// How much must be explored.
    pub fn floor(&self) -> u64 {
        let default = if is_ci_scale() { self.stage.ci } else { self.stage.small };
        number(self.stage.variable).unwrap_or(default)
    }

    /// Ends the stage; fails the test if too little was explored.
    pub fn end(self, explored: u64, note: &str) {
        let (floor, seconds) = (self.floor(), self.start.elapsed().as_secs_f64());
        println!("{}: {explored} explored, floor {floor}, {seconds:.1} s: {note}", self.stage.name);
        record(self.stage.name, &format!("{explored}\t{seconds:.1}\t{note}"));
        assert!(explored >= floor, "{}: {explored} explored, which is below the floor of {floor}", self.stage.name);
    }

    /// Ends a stage that cannot run here.
    pub fn skip(self, why: &str) {
        let Stage { name, shows, .. } = self.stage;
        println!("SKIPPED: {name}: {why}. It would have shown: {shows}");
        assert!(std::env::var_os("RINGCASK_REQUIRE_ALL").is_none(), "{name} must run here: {why}");
        record(name, &format!("skipped\t0\t{why}"));
    }
}

/// One line a stage: its name, what was explored or `skipped`, the seconds, a note.
fn record(name: &str, rest: &str) {
    let Some(path) = std::env::var_os("RINGCASK_RESULTS") else { return };
    let line = format!("{name}\t{}\n", rest.replace('\n', " "));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("RINGCASK_RESULTS can be written");
}
