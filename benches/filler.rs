//! What it costs to have every group find blocks that were written before, by when those are written.
//!
//! `cargo bench --bench filler -- [--rounds N] [--seconds S]`. One thread writes groups to a file in a fresh directory under
//! `target`, with `pwrite` and `fdatasync`, each behind the last:
//!
//! - *in place*: over bytes that are there. What would be had for nothing; in an append-only log it is not to be had.
//! - *claimed*: behind the end of the file, in claimed space, without filler.
//! - *with the groups*: each so many groups, filler for as many more goes with the group's own sync.
//! - *behind*: in place, while another thread writes and syncs as much filler to a second file, a piece at a time, for
//!   the log to find there later. It waits while it is [`AHEAD_BYTES`] ahead.
//!
//! Each cell is the median over rounds, which go through all cells in turn, of a round's mean, median and 99th percentile.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark stops at the first error, and its figures are for reading"
)]

mod shared;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use shared::{median, place};

const MIB: u64 = 1 << 20;
static FILLER: [u8; MIB as usize] = [0xA5; MIB as usize];
const FILE_BYTES: u64 = 256 * MIB;
/// How far filler in a second file may be ahead of the log in the first.
const AHEAD_BYTES: u64 = 8 * MIB;
/// The groups of 64, 128 and 512 writers.
const GROUPS: [usize; 3] = [20_000, 40_000, 160_000];

#[derive(Clone, Copy, Debug)]
enum Way {
    InPlace,
    Claimed,
    WithGroups(u64),
    Behind(usize),
}

const WAYS: [(Way, &str); 7] = [
    (Way::InPlace, "in place"),
    (Way::Claimed, "claimed"),
    (Way::WithGroups(4), "with each 4th group"),
    (Way::WithGroups(16), "with each 16th group"),
    (Way::WithGroups(64), "with each 64th group"),
    (Way::Behind(256 << 10), "behind, 256 KiB"),
    (Way::Behind(1 << 20), "behind, 1 MiB"),
];

/// The mean, the median and the 99th percentile of what groups took, in microseconds.
type Figures = [f64; 3];

fn claimed(path: &Path) -> File {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, FILE_BYTES).unwrap();
    file
}

fn fill(file: &File, from: u64, until: u64) {
    for offset in (from..until).step_by(FILLER.len()) {
        let len = FILLER.len().min((until - offset) as usize);
        file.write_all_at(&FILLER[..len], offset).unwrap();
    }
}

/// Writes and syncs pieces of filler behind the first [`AHEAD_BYTES`], until it is told to stop.
fn fill_behind(file: &File, piece: usize, logged: &AtomicU64, stop: &AtomicBool) {
    let (mut filled, piece) = (AHEAD_BYTES, piece as u64);
    while !stop.load(Ordering::Relaxed) {
        let wanted = logged.load(Ordering::Relaxed) + AHEAD_BYTES;
        if filled + piece > wanted.min(FILE_BYTES) {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        fill(file, filled, filled + piece);
        file.sync_data().unwrap();
        filled += piece;
    }
}

/// Has the other thread stop, also where this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes groups of `len` bytes for `time`, or until the file is full.
fn run(dir: &Path, way: Way, len: usize, time: Duration) -> Figures {
    let (file, next) = (claimed(&dir.join("log")), claimed(&dir.join("next")));
    if matches!(way, Way::InPlace | Way::Behind(_)) {
        fill(&file, 0, FILE_BYTES);
    }
    if matches!(way, Way::Behind(_)) {
        fill(&next, 0, AHEAD_BYTES);
    }
    file.sync_all().unwrap();
    next.sync_all().unwrap();
    let (logged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let taken = thread::scope(|scope| {
        if let Way::Behind(piece) = way {
            let (next, logged, stop) = (&next, &logged, &stop);
            scope.spawn(move || fill_behind(next, piece, logged, stop));
        }
        let _stop = Stop(&stop);
        log(&file, way, len, time, &logged)
    });
    figures(taken)
}

fn log(file: &File, way: Way, len: usize, time: Duration, logged: &AtomicU64) -> Vec<f64> {
    let (group, len) = (vec![7; len], len as u64);
    let (mut end, mut filled_end, mut taken) = (0, 0, Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < time && end + len <= FILE_BYTES {
        let group_begun = Instant::now();
        file.write_all_at(&group, end).unwrap();
        end += len;
        if let Way::WithGroups(groups) = way
            && end + len > filled_end
        {
            let until = (end + groups * len).min(FILE_BYTES);
            fill(file, end.max(filled_end), until);
            filled_end = until;
        }
        file.sync_data().unwrap();
        taken.push(group_begun.elapsed().as_nanos() as f64 / 1e3);
        logged.store(end, Ordering::Relaxed);
    }
    taken
}

fn figures(mut taken: Vec<f64>) -> Figures {
    taken.sort_by(f64::total_cmp);
    let count = taken.len();
    [taken.iter().sum::<f64>() / count as f64, taken[count / 2], taken[count * 99 / 100]]
}

fn number(name: &str, default: f64) -> f64 {
    let arguments: Vec<String> = std::env::args().collect();
    let value = arguments.iter().position(|argument| argument == name).and_then(|index| arguments.get(index + 1));
    value.map_or(default, |value| value.parse().unwrap())
}

fn main() {
    let (rounds, time) = (number("--rounds", 5.0) as usize, Duration::from_secs_f64(number("--seconds", 1.0)));
    let dir = place("filler");
    let mut cells = vec![Vec::new(); WAYS.len() * GROUPS.len()];
    for _ in 0..rounds {
        let mut each = cells.iter_mut();
        for (way, _) in WAYS {
            for len in GROUPS {
                each.next().unwrap().push(run(dir.path(), way, len, time));
            }
        }
    }
    println!("\nµs a group: mean, median (p99)\n");
    println!("| filler |{}", GROUPS.map(|len| format!(" {len} bytes |")).concat());
    println!("|---|{}", GROUPS.map(|_| "---|").concat());
    let mut each = cells.iter();
    for (_, name) in WAYS {
        let row = GROUPS.map(|_| {
            let rounds: &Vec<Figures> = each.next().unwrap();
            let [mean, p50, p99] = [0, 1, 2].map(|which| median(rounds.iter().map(|figures| figures[which]).collect()));
            format!(" {mean:.0}, {p50:.0} ({p99:.0}) |")
        });
        println!("| {name} |{}", row.concat());
    }
}
