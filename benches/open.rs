//! The time to open a store, and the memory per key.
//!
//! `cargo bench --bench open -- [--keys N,N] [--key-len N,N] [--rounds N]`. The default is one and ten million keys of 16,
//! 40 and 100 bytes, in five rounds. The benchmark fills a store with `Buffered` puts of 8-byte values and closes it, so
//! every segment has a hint file. Child processes then open it one after the other with a warm page cache. Each reports
//! the time of the open, the allocated bytes after it and at their peak, and the growth of its resident memory. The table
//! shows medians over the rounds.
//!
//! The memory per key includes everything: index, keys, segments, buffers and threads. The allocator does not see most of
//! the keydir, which maps its own memory, so the memory of a key is the resident figure.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    unsafe_code,
    reason = "a benchmark stops at the first error, and this one counts allocated bytes"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pollster::block_on;
use ringcask::{Durability, Store};

/// The system allocator with a count of bytes.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static AT_MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call passes its arguments on to the system allocator unchanged; the counters own no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        AT_MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
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

/// Opens the store and prints one line: nanoseconds, bytes in use, peak bytes in use, resident bytes.
fn child(path: &Path) {
    let (resident, in_use) = (resident_bytes(), IN_USE.load(Ordering::Relaxed));
    let start = Instant::now();
    let store = block_on(Store::open(path)).unwrap();
    let nanos = start.elapsed().as_nanos();
    let figures = [IN_USE.load(Ordering::Relaxed), AT_MOST.load(Ordering::Relaxed)].map(|bytes| bytes - in_use);
    println!("{nanos} {} {} {}", figures[0], figures[1], resident_bytes() - resident);
    assert_eq!(store.recovery_report().segments_scanned, 0, "every segment has a hint file");
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
    println!("| keys | key bytes | open | keys/s | allocated | peak | resident |");
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
