//! Compaction: the disk space it bounds, and its cost to other operations.
//!
//! `cargo bench --bench compaction -- [space] [foreground] [rate]`; without an argument, all three. The store is in a fresh
//! directory under `target`, on the disk that holds the build. Keys have 16 bytes, values 256.
//!
//! - `space`: eight threads overwrite a million keys ten times with `Buffered` puts at full speed, with default options.
//!   Reports the disk space of the log at its peak, when the backlog is gone, and after `compact()`,
//!   relative to the live bytes and to the documented bound.
//! - `foreground`: 64 `Synced` writers and 8 readers on tokio with two workers. Turns of five seconds alternate between
//!   compaction at its default rate limit and no compaction. Reports medians over the turns. Readers sleep for a
//!   millisecond after 16 gets: readers that never sleep occupy both CPUs, and the scheduler's slices would dominate.
//! - `rate`: compacts a store of fully live segments without a rate limit, in turn with a plain copy of the same files
//!   (reads and writes of 1 MiB, one `fdatasync` per file). The page cache drops the input files before each.
//!
//! Exits with 1 when a documented bound does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark stops at the first error, and its figures are printed, not computed with"
)]

#[path = "shared/keys.rs"]
mod keys;
mod shared;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use keys::{Numbers, key};
use pollster::block_on;
use ringcask::{Compaction, Durability, Store};
use shared::{median, place};

const SEGMENT: u64 = 64 << 20;
const RESERVE: u64 = 1 << 20;
const MIB: f64 = 1024.0 * 1024.0;

fn open(path: &Path, compaction: Compaction) -> Store {
    let builder = Store::builder(path).segment_bytes(SEGMENT).reserve_bytes(RESERVE).compaction(compaction);
    block_on(builder.durability(Durability::Buffered).open()).unwrap()
}

/// Bytes of the log, including obsolete segments that still have readers.
fn log_bytes(store: &Store) -> u64 {
    let stats = store.stats();
    stats.disk_bytes + stats.obsolete_bytes
}

/// Bytes of the blocks of all files of the store.
fn blocks(path: &Path) -> u64 {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().map_or(0, |file| file.blocks() * 512)).sum()
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "DOES NOT HOLD" }
}

// ---- space -------------------------------------------------------------------------------------------------------

const KEYS: u64 = 1_000_000;
const TURNS: u64 = 10;
const WRITERS: u64 = 8;

fn overwrite(store: &Store) {
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut value = [0x5A; 256];
                let mut numbers = Numbers(writer + 1);
                let share = KEYS / WRITERS;
                for turn in 0..TURNS {
                    for index in 0..share {
                        // The first turn writes each key once; the others pick keys at random, as updates do.
                        let number = writer * share + if turn == 0 { index } else { numbers.below(share) };
                        value[..8].copy_from_slice(&(turn * KEYS + index).to_le_bytes());
                        block_on(store.put(key(number), value)).unwrap();
                    }
                }
            });
        }
    });
    block_on(store.sync()).unwrap();
}

fn space() -> bool {
    let dir = place("compaction");
    let path = dir.path().join("store");
    let store = open(&path, Compaction::new());
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let (peak, wrote) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut peak, mut peak_ratio) = (0, 0.0_f64);
            while !done.load(Ordering::Acquire) {
                let stats = store.stats();
                let taken = stats.disk_bytes + stats.obsolete_bytes;
                peak = peak.max(taken);
                if stats.keys == KEYS {
                    peak_ratio = peak_ratio.max(taken as f64 / stats.live_bytes as f64);
                }
                thread::sleep(Duration::from_millis(20));
            }
            (peak, peak_ratio)
        });
        overwrite(&store);
        let wrote = began.elapsed();
        done.store(true, Ordering::Release);
        (watch.join().unwrap(), wrote)
    });
    let live = store.stats().live_bytes;
    println!(
        "space: {} puts in {:.1} s, {:.0}/s",
        KEYS * TURNS,
        wrote.as_secs_f64(),
        (KEYS * TURNS) as f64 / wrote.as_secs_f64()
    );
    println!(
        "  live {:.0} MiB; log at its peak {:.0} MiB, {:.2} times the live bytes",
        live as f64 / MIB,
        peak.0 as f64 / MIB,
        peak.1
    );
    let bound = live as f64 / (1.0 - 0.5) + (SEGMENT + RESERVE) as f64;
    let caught_up = Instant::now();
    while log_bytes(&store) as f64 > bound && caught_up.elapsed() < Duration::from_secs(120) {
        thread::sleep(Duration::from_millis(20));
    }
    let stats = store.stats();
    let is_within = log_bytes(&store) as f64 <= bound;
    println!(
        "  backlog gone after {:.1} s: {:.0} MiB, {:.2} times; bound {:.0} MiB {}; write amplification {:.2}",
        caught_up.elapsed().as_secs_f64(),
        log_bytes(&store) as f64 / MIB,
        log_bytes(&store) as f64 / live as f64,
        bound / MIB,
        verdict(is_within),
        stats.write_amplification(),
    );
    let forced = Instant::now();
    let report = block_on(store.compact()).unwrap();
    let (after, live) = (log_bytes(&store), store.stats().live_bytes);
    let excess = after as f64 / live as f64 - 1.0;
    println!(
        "  forced, {:.1} s, {:.0} MiB written: {:.1} MiB, {:.3} % above the live bytes; 2 % {}",
        forced.elapsed().as_secs_f64(),
        report.bytes_written as f64 / MIB,
        after as f64 / MIB,
        excess * 100.0,
        verdict(excess <= 0.02),
    );
    println!(
        "  hint files {:.1} MiB, all blocks {:.1} MiB",
        store.stats().hint_bytes as f64 / MIB,
        blocks(&path) as f64 / MIB
    );
    block_on(store.close()).unwrap();
    is_within && excess <= 0.02
}

// ---- foreground --------------------------------------------------------------------------------------------------

const TURN: Duration = Duration::from_secs(5);
const TURN_PAIRS: usize = 5;

struct Figures {
    puts_per_second: f64,
    gets_per_second: f64,
    puts: Histogram<u64>,
    gets: Histogram<u64>,
}

async fn work(store: Store, is_writer: bool, seed: u64, until: Instant) -> Histogram<u64> {
    let mut taken = Histogram::new(3).unwrap();
    let mut numbers = Numbers(seed);
    loop {
        let key = key(numbers.below(KEYS));
        let called = Instant::now();
        if is_writer {
            let options = Durability::Synced;
            store.put(key, [0xA5; 256]).durability(options).await.unwrap();
        } else {
            assert!(store.get(key).await.unwrap().is_some());
        }
        let now = Instant::now();
        taken.record((now - called).as_nanos() as u64).unwrap();
        if now >= until {
            return taken;
        }
        if !is_writer && taken.len() % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn turn(runtime: &tokio::runtime::Runtime, store: &Store) -> Figures {
    let until = Instant::now() + TURN;
    let tasks: Vec<_> =
        (0..72).map(|index| (index < 64, runtime.spawn(work(store.clone(), index < 64, index + 1, until)))).collect();
    let (mut puts, mut gets) = (Histogram::new(3).unwrap(), Histogram::new(3).unwrap());
    for (is_writer, task) in tasks {
        let taken = runtime.block_on(task).unwrap();
        if is_writer { puts.add(taken).unwrap() } else { gets.add(taken).unwrap() }
    }
    let seconds = TURN.as_secs_f64();
    Figures { puts_per_second: puts.len() as f64 / seconds, gets_per_second: gets.len() as f64 / seconds, puts, gets }
}

fn foreground() -> bool {
    let dir = place("compaction");
    let path = dir.path().join("store");
    let store = open(&path, Compaction::new().automatic(false));
    for number in 0..KEYS * 2 {
        block_on(store.put(key(number % KEYS), [1; 256])).unwrap();
    }
    block_on(store.sync()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let compacting = {
        let (store, done) = (store.clone(), Arc::clone(&done));
        store.pause_compaction();
        thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                let sealed = store.stats().segments.into_iter().filter(|it| it.sealed).map(|it| it.id);
                let _ = block_on(store.compact().segments(sealed.collect::<Vec<_>>()));
            }
        })
    };
    let _ = turn(&runtime, &store);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut moved = 0;
    for _ in 0..TURN_PAIRS {
        without.push(turn(&runtime, &store));
        let before = store.stats();
        store.resume_compaction();
        with.push(turn(&runtime, &store));
        store.pause_compaction();
        let after = store.stats();
        moved += after.compaction_bytes_read + after.compaction_bytes_written;
        moved -= before.compaction_bytes_read + before.compaction_bytes_written;
    }
    done.store(true, Ordering::Release);
    store.resume_compaction();
    let of = |turns: &[Figures], figure: &dyn Fn(&Figures) -> f64| median(turns.iter().map(figure).collect());
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    println!("foreground: 64 Synced writers, 8 readers with pauses, {TURN_PAIRS} turns of {TURN:?} each, medians");
    println!(
        "  compaction read and wrote {:.0} MiB/s on average over its turns (a job counts when it ends)",
        moved as f64 / MIB / (TURN.as_secs_f64() * TURN_PAIRS as f64)
    );
    println!("  {:<14} {:>12} {:>12} {:>8} {:>8}", "", "without", "with", "ratio", "bound");
    let mut all_hold = true;
    let mut row = |name: &str, figure: &dyn Fn(&Figures) -> f64, bound: f64| {
        let (without, with) = (of(&without, figure), of(&with, figure));
        let ratio = with / without;
        let holds = if bound < 1.0 { ratio >= bound } else { ratio <= bound };
        all_hold &= holds;
        println!("  {name:<14} {without:>12.1} {with:>12.1} {ratio:>8.2} {bound:>8.1} {}", verdict(holds));
    };
    row("puts/s", &|it| it.puts_per_second, 0.8);
    row("gets/s", &|it| it.gets_per_second, 0.8);
    row("put p50 µs", &|it| micros(it.puts.value_at_quantile(0.5)), 1.5);
    row("put p99 µs", &|it| micros(it.puts.value_at_quantile(0.99)), 1.5);
    row("get p50 µs", &|it| micros(it.gets.value_at_quantile(0.5)), 1.5);
    row("get p99 µs", &|it| micros(it.gets.value_at_quantile(0.99)), 1.5);
    block_on(store.close()).unwrap();
    compacting.join().unwrap();
    all_hold
}

// ---- rate --------------------------------------------------------------------------------------------------------

fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn copy(files: &[std::path::PathBuf], to: &Path) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    for file in files {
        let mut from = File::open(file).unwrap();
        let mut out = File::create(to.join(file.file_name().unwrap())).unwrap();
        loop {
            let count = from.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count]).unwrap();
            bytes += count as u64;
        }
        out.sync_data().unwrap();
    }
    bytes
}

fn rate_of(value_len: usize) -> bool {
    const BYTES: u64 = 768 << 20;
    let dir = place("compaction");
    let path = dir.path().join("store");
    let store = open(&path, Compaction::new().automatic(false).bytes_per_second(None));
    let value = vec![7; value_len];
    for number in 0..BYTES / (56 + value_len as u64) {
        block_on(store.put(key(number), &value)).unwrap();
    }
    block_on(store.sync()).unwrap();
    let (mut copied, mut compacted) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let sealed: Vec<u64> = store.stats().segments.iter().filter(|it| it.sealed).map(|it| it.id).collect();
        let files: Vec<_> = sealed.iter().map(|id| path.join(format!("{id:020}.seg"))).collect();
        let copies = dir.path().join("copies");
        fs::create_dir_all(&copies).unwrap();
        files.iter().for_each(|file| forget(file));
        let began = Instant::now();
        let bytes = copy(&files, &copies);
        copied.push(bytes as f64 / MIB / began.elapsed().as_secs_f64());
        fs::remove_dir_all(&copies).unwrap();
        files.iter().for_each(|file| forget(file));
        let began = Instant::now();
        let report = block_on(store.compact().segments(sealed)).unwrap();
        compacted.push(report.bytes_read as f64 / MIB / began.elapsed().as_secs_f64());
    }
    let (copied, compacted) = (median(copied), median(compacted));
    let ratio = compacted / copied;
    println!(
        "rate: values of {value_len}: copy {copied:.0} MiB/s, compaction {compacted:.0} MiB/s, ratio {ratio:.2}; 0.7 {}",
        verdict(ratio >= 0.7)
    );
    block_on(store.close()).unwrap();
    ratio >= 0.7
}

fn rate() -> bool {
    [256, 4096, 65536].map(rate_of).iter().all(|&holds| holds)
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut all_hold = true;
    if is_wanted("space") {
        all_hold &= space();
    }
    if is_wanted("foreground") {
        all_hold &= foreground();
    }
    if is_wanted("rate") {
        all_hold &= rate();
    }
    if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
