//! The cost of a durable group, by system call and by the state of the file.
//!
//! `cargo bench --bench write_path -- [--rounds N] [--groups N]`. One thread appends groups of three sizes to a file in a
//! fresh directory under `target`:
//!
//! - *calls*: `pwrite` and `fdatasync`; `pwritev2` with `RWF_DSYNC`; `pwrite` to a file opened with `O_DIRECT` and
//!   `O_DSYNC`, in whole blocks of 4 KiB, so the next group rewrites the block in which the last one ended.
//! - *file*: empty; preallocated beyond its end (`fallocate` with the size kept); preallocated with the length set;
//!   prewritten.
//! - *CPUs*: idle; each of them busy with a loop that never blocks.
//!
//! Every round runs all cells in turn and yields a median and a p99 per cell. The table shows the median of each over all
//! rounds.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark stops at the first error, and its figures are printed, not computed with"
)]

mod shared;

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::ReadWriteFlags;
use shared::{median, place};

const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;
/// A single record with a value of 256 bytes, and the group sizes of 64 and 450 writers.
const GROUPS: [usize; 3] = [360, 20_000, 140_000];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Calls {
    WriteAndSync,
    DsyncWrite,
    DirectDsync,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Empty,
    Preallocated,
    PreallocatedWithLength,
    Prewritten,
}

const CALLS: [(Calls, &str); 3] = [
    (Calls::WriteAndSync, "pwrite, fdatasync"),
    (Calls::DsyncWrite, "pwritev2, RWF_DSYNC"),
    (Calls::DirectDsync, "O_DIRECT, O_DSYNC"),
];
const CONTENTS: [(Content, &str); 4] = [
    (Content::Empty, "empty"),
    (Content::Preallocated, "preallocated"),
    (Content::PreallocatedWithLength, "preallocated, length set"),
    (Content::Prewritten, "prewritten"),
];

/// Creates the file and opens it for `calls`.
fn prepare(path: &Path, calls: Calls, content: Content) -> File {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    let preallocate = |flags| rustix::fs::fallocate(&file, flags, 0, FILE_BYTES).unwrap();
    match content {
        Content::Empty => {}
        Content::Preallocated => preallocate(FallocateFlags::KEEP_SIZE),
        Content::PreallocatedWithLength => preallocate(FallocateFlags::empty()),
        Content::Prewritten => {
            let piece = vec![0xA5; 1 << 20];
            (0..FILE_BYTES).step_by(piece.len()).for_each(|offset| file.write_all_at(&piece, offset).unwrap());
        }
    }
    file.sync_all().unwrap();
    if calls != Calls::DirectDsync {
        return file;
    }
    let flags = OFlags::DIRECT | OFlags::DSYNC;
    OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path).unwrap()
}

/// A buffer, and the index of its first byte on a block boundary.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let buffer = vec![7; len + 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    (buffer, start)
}

/// Writes `count` groups. Returns the median and the 99th percentile of the time per group, in microseconds.
fn run(path: &Path, calls: Calls, content: Content, len: usize, count: usize) -> (f64, f64) {
    let file = prepare(path, calls, content);
    let (buffer, start) = aligned(len + BLOCK);
    let (mut offset, mut taken) = (0, Vec::with_capacity(count));
    for _ in 0..count {
        let begun = Instant::now();
        match calls {
            Calls::WriteAndSync => {
                file.write_all_at(&buffer[start..start + len], offset).unwrap();
                file.sync_data().unwrap();
            }
            Calls::DsyncWrite => {
                let bytes = [IoSlice::new(&buffer[start..start + len])];
                assert_eq!(rustix::io::pwritev2(&file, &bytes, offset, ReadWriteFlags::DSYNC).unwrap(), len);
            }
            Calls::DirectDsync => {
                let first = offset / BLOCK as u64 * BLOCK as u64;
                let blocks = ((offset - first) as usize + len).next_multiple_of(BLOCK);
                file.write_all_at(&buffer[start..start + blocks], first).unwrap();
            }
        }
        taken.push(begun.elapsed().as_nanos() as f64 / 1e3);
        offset += len as u64;
        if offset + (len + BLOCK) as u64 > FILE_BYTES {
            offset = 0;
        }
    }
    taken.sort_by(f64::total_cmp);
    (taken[count / 2], taken[count * 99 / 100])
}

/// Keeps every CPU busy until dropped.
struct Busy(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

impl Busy {
    fn all() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let loops = (0..thread::available_parallelism().unwrap().get()).map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
        });
        let loops = loops.collect();
        Self(stop, loops)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|busy| busy.join().unwrap());
    }
}

fn number(name: &str, default: usize) -> usize {
    let arguments: Vec<String> = std::env::args().collect();
    let value = arguments.iter().position(|argument| argument == name).and_then(|index| arguments.get(index + 1));
    value.map_or(default, |value| value.parse().unwrap())
}

fn main() {
    let (rounds, groups) = (number("--rounds", 3), number("--groups", 400));
    let dir = place("write-path");
    let path = dir.path().join("log");
    for is_busy in [false, true] {
        // With busy CPUs each group costs up to a scheduler slice, so the full count would take minutes.
        let count = if is_busy { groups / 8 } else { groups };
        let _busy = is_busy.then(Busy::all);
        println!("\nCPUs {}: µs per group, median (p99)\n", if is_busy { "busy" } else { "idle" });
        println!("| calls | file |{}", GROUPS.map(|len| format!(" {len} bytes |")).concat());
        println!("|---|---|{}", GROUPS.map(|_| "---|").concat());
        let mut cells = vec![(Vec::new(), Vec::new()); CALLS.len() * CONTENTS.len() * GROUPS.len()];
        for _ in 0..rounds {
            let mut each = cells.iter_mut();
            for (calls, _) in CALLS {
                for (content, _) in CONTENTS {
                    for len in GROUPS {
                        let (p50, p99) = run(&path, calls, content, len, count);
                        let cell = each.next().unwrap();
                        cell.0.push(p50);
                        cell.1.push(p99);
                    }
                }
            }
        }
        let mut each = cells.into_iter();
        for (_, calls) in CALLS {
            for (_, content) in CONTENTS {
                let row = GROUPS.map(|_| {
                    let (p50, p99) = each.next().unwrap();
                    format!(" {:.0} ({:.0}) |", median(p50), median(p99))
                });
                println!("| {calls} | {content} |{}", row.concat());
            }
        }
    }
}
