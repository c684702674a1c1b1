//! The stages: what the tests must explore, and a record of what they did.
//!
//! A stage is a test that injects one kind of fault and counts the injections. Its floor is the number that it must
//! reach, which the test itself enforces. There are two floors: one for `./prove`, one for `./prove ci`. A
//! stage that cannot run on this machine prints that, and what it would have shown; if `RINGCASK_REQUIRE_ALL` is set,
//! it fails instead.
//!
//! Environment: `RINGCASK_SCALE` is `small` (the default) or `ci`; the variable named with a stage sets its floor
//! alone; `RINGCASK_ROUND` changes the first seed, so that no two rounds explore the same; `RINGCASK_RESULTS` names a
//! file that gets a line for each stage, of which the test `verdict` makes a table.
//!
//! `README.md` in this folder says how tests share modules.
#![allow(clippy::panic, clippy::expect_used, reason = "a stage below its floor is a failed test")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

/// One kind of fault.
pub struct Stage {
    pub name: &'static str,
    /// The environment variable that sets its floor.
    pub variable: &'static str,
    /// The floor of `./prove` at the small scale; 0 for a stage that needs a separate build and does not run there.
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
        "no crash during a compaction does either",
    ),
    stage(
        "swarm seeds",
        "RINGCASK_SWARM_SEEDS",
        2_500,
        20_000,
        "no drawn combination of sizes, timing and faults breaks a promise",
    ),
    stage("crash states, swarm", "RINGCASK_SWARM_STATES", 50_000, 400_000, "no crash in one of them does either"),
    stage(
        "state machine cases",
        "RINGCASK_MACHINE_CASES",
        300,
        3_000,
        "a store keeps its promises through many closes, crashes and faults",
    ),
    stage(
        "failed operations, log",
        "RINGCASK_FAILURES",
        8_000,
        80_000,
        "every single operation can fail, with every error",
    ),
    stage(
        "failed operations, compaction",
        "RINGCASK_COMPACTION_FAILURES",
        4_000,
        40_000,
        "every operation of a compaction can fail too",
    ),
    stage("seeded bugs found", "RINGCASK_SEEDED_BUGS_FOUND", 39, 39, "the crash tests find every seeded bug"),
    stage("corruptions", "RINGCASK_CORRUPTIONS", 30_000, 300_000, "damage is detected or harmless, never wrong bytes"),
    stage("fuzz, decoders", "RINGCASK_FUZZ_DECODERS", 500_000, 10_000_000, "no bytes make a decoder panic or loop"),
    stage("fuzz, directories", "RINGCASK_FUZZ_DIRECTORIES", 5_000, 100_000, "no files make an open panic or loop"),
    stage(
        "fuzz, segments",
        "RINGCASK_FUZZ_SEGMENTS",
        2_000,
        50_000,
        "no forged segments with valid checksums do either",
    ),
    stage("fuzz, hints", "RINGCASK_FUZZ_HINTS", 2_000, 50_000, "no false hint files with valid checksums do either"),
    stage(
        "fuzz, operations",
        "RINGCASK_FUZZ_OPERATIONS",
        2_000,
        50_000,
        "no order of operations, faults and crashes breaks a promise",
    ),
    stage("wrong reads", "RINGCASK_WRONG_READS", 1_500, 20_000, "a read that gets wrong bytes never returns them"),
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
    stage(
        "full disks",
        "RINGCASK_FULL_DISKS",
        12,
        48,
        "a full disk refuses writes, loses nothing, and accepts writes again",
    ),
    // Memory.
    stage("tests under AddressSanitizer", "RINGCASK_SANITIZED", 0, 200, "no memory is used after it was freed"),
    // Many threads.
    stage("schedules", "RINGCASK_SCHEDULES", 20_000, 200_000, "no order of the threads' steps breaks a promise"),
    stage("histories", "RINGCASK_HISTORIES", 220, 2_000, "the history of each key is linearizable"),
    stage(
        "small histories",
        "RINGCASK_SMALL_HISTORIES",
        2_000,
        40_000,
        "short histories of several keys and batches are linearizable as a whole",
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

/// A stage for the test that a stage below its floor fails.
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
