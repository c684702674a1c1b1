//! The cost of prewriting log space, by when the prewrite happens.
//!
//! `cargo bench --bench prewrite -- [--rounds N] [--seconds S]`. One thread appends groups to a file in a fresh directory
//! under `target`, each with a `pwrite` and an `fdatasync`:
//!
//! - *in place*: the file already has data there. This is the lower bound; an append-only log cannot reach it.
//! - *preallocated*: the space beyond the end of the file is preallocated and not prewritten.
//! - *with each Nth group*: every Nth group prewrites space for the next N groups; its own sync covers both.
//! - *second thread*: groups are written in place, while a second thread prewrites and syncs a second file, one piece at a
//!   time, as it would for the next segment. It pauses when it is [`AHEAD_BYTES`] ahead.
//!
//! Every round runs all cells in turn and yields a mean, a median and a 99th percentile per cell. The table shows the
//! median of each over all rounds.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark stops at the first error, and its figures are printed, not computed with"
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
static FILL: [u8; MIB as usize] = [0xA5; MIB as usize];
const FILE_BYTES: u64 = 256 * MIB;
/// How far the second thread may be ahead of the log.
const AHEAD_BYTES: u64 = 8 * MIB;
/// The group sizes of 64, 128 and 512 writers.
const GROUPS: [usize; 3] = [20_000, 40_000, 160_000];

#[derive(Clone, Copy, Debug)]
enum Way {
    InPlace,
    Preallocated,
    WithGroups(u64),
    SecondThread(usize),
}

const WAYS: [(Way, &str); 7] = [
    (Way::InPlace, "in place"),
    (Way::Preallocated, "preallocated"),
    (Way::WithGroups(4), "with each 4th group"),
    (Way::WithGroups(16), "with each 16th group"),
    (Way::WithGroups(64), "with each 64th group"),
    (Way::SecondThread(256 << 10), "second thread, 256 KiB"),
    (Way::SecondThread(1 << 20), "second thread, 1 MiB"),
];

/// Mean, median and 99th percentile of the time per group, in microseconds.
type Figures = [f64; 3];

fn preallocated(path: &Path) -> File {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, FILE_BYTES).unwrap();
    file
}

fn prewrite(file: &File, from: u64, until: u64) {
    for offset in (from..until).step_by(FILL.len()) {
        let len = FILL.len().min((until - offset) as usize);
        file.write_all_at(&FILL[..len], offset).unwrap();
    }
}

/// Prewrites and syncs pieces after the first [`AHEAD_BYTES`] until `stop` is set.
fn prewrite_pieces(file: &File, piece: usize, logged: &AtomicU64, stop: &AtomicBool) {
    let (mut filled, piece) = (AHEAD_BYTES, piece as u64);
    while !stop.load(Ordering::Relaxed) {
        let wanted = logged.load(Ordering::Relaxed) + AHEAD_BYTES;
        if filled + piece > wanted.min(FILE_BYTES) {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        prewrite(file, filled, filled + piece);
        file.sync_data().unwrap();
        filled += piece;
    }
}

/// Stops the second thread on drop, so that it also stops when this thread panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes groups of `len` bytes for `time`, or until the file is full.
fn run(dir: &Path, way: Way, len: usize, time: Duration) -> Figures {
    let (file, next) = (preallocated(&dir.join("log")), preallocated(&dir.join("next")));
    if matches!(way, Way::InPlace | Way::SecondThread(_)) {
        prewrite(&file, 0, FILE_BYTES);
    }
    if matches!(way, Way::SecondThread(_)) {
        prewrite(&next, 0, AHEAD_BYTES);
    }
    file.sync_all().unwrap();
    next.sync_all().unwrap();
    let (logged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let taken = thread::scope(|scope| {
        if let Way::SecondThread(piece) = way {
            let (next, logged, stop) = (&next, &logged, &stop);
            scope.spawn(move || prewrite_pieces(next, piece, logged, stop));
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
            prewrite(file, end.max(filled_end), until);
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
    let dir = place("prewrite");
    let mut cells = vec![Vec::new(); WAYS.len() * GROUPS.len()];
    for _ in 0..rounds {
        let mut each = cells.iter_mut();
        for (way, _) in WAYS {
            for len in GROUPS {
                each.next().unwrap().push(run(dir.path(), way, len, time));
            }
        }
    }
    println!("\nµs per group: mean, median (p99)\n");
    println!("| prewrite |{}", GROUPS.map(|len| format!(" {len} bytes |")).concat());
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
