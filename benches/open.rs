//! How long an opening takes, and what a key costs in memory.
//!
//! `cargo bench --bench open -- [--keys N,N] [--key-len N,N] [--rounds N]`, by default one and ten million keys of 16, 40
//! and 100 bytes, five rounds. A store is filled with `Buffered` puts of 8-byte values and closed, so that every segment
//! has its hint file. Then child processes open it, one after the other, the page cache warm: each reports the time of
//! the opening, what its allocator has handed out meanwhile and at the most, and by how much its resident memory grew.
//! Per key everything counts: map, keys, segments, buffers, threads. But most of the keydir's entries are not the
//! allocator's: what a key takes is the resident figure. Medians of the rounds.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    unsafe_code,
    reason = "a benchmark stops at the first error, and counts what its allocator does"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pollster::block_on;
use ringcask::{Durability, Store};

/// Counts bytes on the way to the system's allocator.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static AT_MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's, with the same arguments; the counters own nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        AT_MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CHILD: &str = "RINGCASK_BENCH_OPEN";

fn key(number: u64, len: usize) -> Vec<u8> {
    let mut key = vec![b'k'; len];
    key[len - 8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn fill(path: &Path, keys: u64, key_len: usize) {
    let store = block_on(Store::open(path)).unwrap();
    let options = Durability::Buffered;
    for number in 0..keys {
        block_on(store.put(key(number, key_len), number.to_le_bytes()).durability(options)).unwrap();
    }
    block_on(store.close()).unwrap();
}

fn resident_bytes() -> usize {
    let pages: usize = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Opens the store, and says in a line: nanoseconds, bytes in use, bytes at the most, bytes resident.
fn child(path: &Path) {
    let (resident, in_use) = (resident_bytes(), IN_USE.load(Ordering::Relaxed));
    let start = Instant::now();
    let store = block_on(Store::open(path)).unwrap();
    let nanos = start.elapsed().as_nanos();
    let figures = [IN_USE.load(Ordering::Relaxed), AT_MOST.load(Ordering::Relaxed)].map(|bytes| bytes - in_use);
    println!("{nanos} {} {} {}", figures[0], figures[1], resident_bytes() - resident);
    assert_eq!(store.recovery_report().segments_scanned, 0, "every segment has a hint");
    block_on(store.close()).unwrap();
}

fn numbers(name: &str, default: &[u64]) -> Vec<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    match arguments.nth(1) {
        Some(text) => text.split(',').map(|number| number.replace('_', "").parse().unwrap()).collect(),
        None => default.to_vec(),
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    if let Some(path) = std::env::var_os(CHILD) {
        return child(Path::new(&path));
    }
    let rounds = numbers("--rounds", &[5])[0];
    println!("| keys | key bytes | open | keys/s | allocated | at the most | resident |");
    println!("|---|---|---|---|---|---|---|");
    for key_len in numbers("--key-len", &[16, 40, 100]) {
        for keys in numbers("--keys", &[1_000_000, 10_000_000]) {
            let dir = tempfile::TempDir::new_in("target").unwrap();
            fill(dir.path(), keys, usize::try_from(key_len).unwrap());
            let runs: Vec<Vec<f64>> = (0..rounds)
                .map(|_| {
                    let output =
                        Command::new(std::env::current_exe().unwrap()).env(CHILD, dir.path()).output().unwrap();
                    assert!(output.status.success(), "{output:?}");
                    let text = String::from_utf8(output.stdout).unwrap();
                    text.split_whitespace().map(|figure| figure.parse().unwrap()).collect()
                })
                .collect();
            let of = |index: usize| median(runs.iter().map(|run| run[index]).collect());
            let per_key = |index| of(index) / keys as f64;
            println!(
                "| {keys} | {key_len} | {:.0} ms | {:.2} M | {:.1} B | {:.1} B | {:.1} B |",
                of(0) / 1e6,
                keys as f64 / of(0) * 1e3,
                per_key(1),
                per_key(2),
                per_key(3)
            );
        }
    }
}
