//! A store under mixed load for a long time, killed at random: memory, descriptors and disk use stay flat.
//!
//! The child is this binary, restarted with the same test. Six threads put, overwrite, delete and get, compaction runs
//! automatically, and every 100 ms the child reports its resource use. One thread writes `Synced` and reports each
//! acknowledgment. The parent kills the child at random moments, restarts it in the same directory, and compares.
//!
//! Checked: every acknowledged write survives each kill. Disk use stays within the bound of the options plus the amount
//! that can be in flight. Memory and descriptors at the end of a child's life, and in the last third of all lives, are
//! within a tolerance of their values once the load has settled.
//!
//! `RINGCASK_SOAK_SECONDS` sets the duration (600 for a long soak).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a failed check is a failed test"
)]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod stages;
}

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pollster::block_on;
use ringcask::{Builder, Compaction, Durability, Store};
use tempfile::TempDir;

use crate::support::stages;

const TEST: &str = "memory_descriptors_and_disk_stay_flat";
const KEYS: u64 = 40_000;
const SEGMENT: u64 = 4 << 20;
const RESERVE: u64 = 64 << 10;
const TRIGGER: f64 = 0.5;
/// Samples of a life before the load counts as settled.
const WARM_UP: usize = 20;
const LIVES_MIN: usize = 3;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn builder(path: &Path) -> Builder {
    let compaction = Compaction::new().trigger(TRIGGER).bytes_per_second(None);
    let builder = Store::builder(path).segment_bytes(SEGMENT).reserve_bytes(RESERVE).compaction(compaction);
    builder.durability(Durability::Buffered).staging_bytes(1 << 20)
}

// ---- the child ---------------------------------------------------------------------------------------------------

/// Writes a line to the parent with one system call. Ends the process if the parent is gone.
fn send(line: &str) {
    if rustix::io::write(std::io::stdout().as_fd(), line.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn child(path: &Path) {
    let store = block_on(builder(path).open()).unwrap();
    assert!(store.recovery_report().damage.is_empty());
    send("\nopen\n");
    let seed = stages::number("RINGCASK_SOAK_SEED").unwrap();
    for worker in 0..5 {
        let store = store.clone();
        thread::spawn(move || mix(&store, worker, Rng(seed ^ worker << 40)));
    }
    {
        let store = store.clone();
        thread::spawn(move || acknowledge(&store));
    }
    loop {
        // Sets the rate of samples. Nothing waits for this sleep.
        thread::sleep(Duration::from_millis(100));
        let stats = store.stats();
        assert!(!stats.poisoned && stats.compaction_failures == 0, "{stats:?}");
        let disk = stats.disk_bytes + stats.obsolete_bytes;
        let (resident, descriptors) = (resident_kib(), descriptors());
        let (live, jobs) = (stats.live_bytes, stats.compactions);
        send(&format!("sample {resident} {descriptors} {disk} {live} {jobs}\n"));
    }
}

/// Runs a random mix of operations. Every value begins with the number of its key, so a value of another key is
/// detected.
fn mix(store: &Store, worker: u64, mut rng: Rng) {
    loop {
        let key = rng.below(KEYS);
        match rng.below(10) {
            0..5 => {
                let mut value = vec![worker as u8; 16 + rng.below(500) as usize];
                value[..8].copy_from_slice(&key.to_le_bytes());
                block_on(store.put(key.to_be_bytes(), value)).unwrap();
            }
            5 => drop(block_on(store.delete(key.to_be_bytes())).unwrap()),
            _ => {
                let value = block_on(store.get(key.to_be_bytes())).unwrap();
                assert!(
                    value.is_none_or(|value| value[..8] == key.to_le_bytes()),
                    "key {key} has the value of another key"
                );
            }
        }
        // Leaves time for compaction: the test measures resource use, not speed.
        if rng.below(64) == 0 {
            thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Overwrites a few keys that no other thread writes, and reports each acknowledgment.
fn acknowledge(store: &Store) {
    let key = |index: u64| format!("acknowledged-{index}");
    let mut newest: Vec<u64> = (0..8)
        .map(|index| {
            let value = block_on(store.get(key(index))).unwrap();
            value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().unwrap()))
        })
        .collect();
    for step in 0_u64.. {
        let index = step % 8;
        newest[index as usize] += 1;
        let options = Durability::Synced;
        let value = newest[index as usize].to_le_bytes();
        block_on(store.put(key(index), value).durability(options)).unwrap();
        send(&format!("ack {index} {}\n", newest[index as usize]));
    }
}

// ---- the parent --------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Sample {
    resident_kib: u64,
    descriptors: u64,
    disk_bytes: u64,
    live_bytes: u64,
}

#[derive(Default)]
struct Life {
    samples: Vec<Sample>,
    compactions: u64,
}

struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

fn start(path: &Path, seed: u64) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
    command.env("RINGCASK_SOAK_DIR", path).env("RINGCASK_SOAK_SEED", seed.to_string());
    let mut child = command.spawn().unwrap();
    let pipe = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || pipe.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    Running { child, lines }
}

/// Starts a child and kills it after `duration`.
fn run_and_kill(path: &Path, seed: u64, duration: Duration, acknowledged: &mut BTreeMap<u64, u64>) -> Life {
    let Running { mut child, lines } = start(path, seed);
    let mut life = Life::default();
    let take = |life: &mut Life, line: &str, acknowledged: &mut BTreeMap<u64, u64>| {
        let numbers: Vec<u64> = line.split(' ').skip(1).map_while(|word| word.parse().ok()).collect();
        match (line.split(' ').next(), &numbers[..]) {
            (Some("ack"), &[index, value]) => drop(acknowledged.insert(index, value)),
            (Some("sample"), &[resident_kib, descriptors, disk_bytes, live_bytes, compactions]) => {
                life.samples.push(Sample { resident_kib, descriptors, disk_bytes, live_bytes });
                life.compactions = compactions;
            }
            _ => {}
        }
    };
    let end = Instant::now() + duration;
    while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        take(&mut life, &line, acknowledged);
    }
    assert!(child.try_wait().unwrap().is_none(), "the child exited before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    // Acknowledgments in the pipe at the time of the kill count. A line that was cut short lacks its number.
    let rest: Vec<String> = lines.iter().collect();
    rest.iter().take(rest.len().saturating_sub(1)).for_each(|line| take(&mut life, line, acknowledged));
    life
}

fn check_acknowledged(path: &Path, acknowledged: &BTreeMap<u64, u64>) {
    let store = block_on(builder(path).open()).unwrap();
    for (index, value) in acknowledged {
        let found =
            block_on(store.get(format!("acknowledged-{index}"))).unwrap().expect("an acknowledged key is missing");
        let found = u64::from_le_bytes(found[..8].try_into().unwrap());
        assert!(
            found == *value || found == value + 1,
            "key {index} has the value {found}, but {value} was acknowledged"
        );
    }
    block_on(store.close()).unwrap();
}

fn mean(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> f64 {
    samples.iter().map(|sample| of(sample) as f64).sum::<f64>() / samples.len().max(1) as f64
}

#[test]
fn memory_descriptors_and_disk_stay_flat() {
    if let Some(path) = std::env::var_os("RINGCASK_SOAK_DIR") {
        return child(&PathBuf::from(path));
    }
    let stage = stages::begin("seconds of soak");
    let (seconds, seed) = (stage.floor(), stages::first_seed());
    let dir = TempDir::with_prefix("ringcask-soak-").unwrap();
    let path = dir.path().join("store");
    let mut rng = Rng(seed);
    let mut acknowledged = BTreeMap::new();
    let mut lives: Vec<Life> = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    // Long soaks have long lives, so that slow leaks become visible.
    let longest = (seconds / 5).clamp(5, 60);
    while Instant::now() < end || lives.len() < LIVES_MIN {
        let long = Duration::from_millis(3000 + rng.below(longest * 1000 - 3000 + 1));
        lives.push(run_and_kill(&path, seed + lives.len() as u64, long, &mut acknowledged));
        check_acknowledged(&path, &acknowledged);
    }
    let settled: Vec<&[Sample]> = lives.iter().map(|life| life.samples.get(WARM_UP..).unwrap_or_default()).collect();
    let samples: Vec<Sample> = settled.iter().flat_map(|samples| samples.iter().copied()).collect();
    let compactions: u64 = lives.iter().map(|life| life.compactions).sum();
    let third = samples.len() / 3;
    let (first, last) = (&samples[..third], &samples[samples.len() - third..]);
    let note = format!(
        "seed {seed}, {} lives, {} samples, {compactions} compactions, {} acknowledged; \
         first third against last: memory {:.1} and {:.1} MiB, descriptors {:.1} and {:.1}, disk {:.1} and {:.1} MiB",
        lives.len(),
        samples.len(),
        acknowledged.values().sum::<u64>(),
        mean(first, |it| it.resident_kib) / 1024.0,
        mean(last, |it| it.resident_kib) / 1024.0,
        mean(first, |it| it.descriptors),
        mean(last, |it| it.descriptors),
        mean(first, |it| it.disk_bytes) / 1048576.0,
        mean(last, |it| it.disk_bytes) / 1048576.0,
    );
    println!("{note}");
    assert!(
        third >= 5 && compactions > 0 && !acknowledged.is_empty(),
        "too few samples, compactions or acknowledgments"
    );
    assert!(mean(last, |it| it.resident_kib) <= mean(first, |it| it.resident_kib) * 1.25 + 4096.0, "memory grows");
    assert!(
        mean(last, |it| it.descriptors) <= mean(first, |it| it.descriptors) + 8.0,
        "the number of descriptors grows"
    );
    for life in settled.iter().filter(|life| life.len() >= 30) {
        let part = life.len() / 3;
        let (young, old) = (&life[..part], &life[life.len() - part..]);
        assert!(mean(old, |it| it.resident_kib) <= mean(young, |it| it.resident_kib) * 1.25 + 4096.0, "memory grows");
    }
    // The bound once compaction has caught up, plus its possible backlog and the work in progress: twice the budget of
    // a job.
    let bound = |live: f64| live / (1.0 - TRIGGER) + (SEGMENT + RESERVE) as f64 + (8 * SEGMENT) as f64;
    let (disk, live) = (mean(last, |it| it.disk_bytes), mean(last, |it| it.live_bytes));
    assert!(disk <= bound(live), "the log takes {disk} bytes for {live} live bytes");
    stage.end(seconds, &note);
}
