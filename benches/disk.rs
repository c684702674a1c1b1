//! ringcask relative to the disk: cold reads and large values compared with `fio`, and gets during durable writes.
//!
//! `cargo bench --bench disk -- [cold] [large] [beside] [--rounds N] [--seconds N]`; without a name, all three. `cold` and
//! `large` need `fio`; `cold` also needs root and memory cgroups (version 1 or 2). A round of `large` writes 27 GiB, at most
//! 9 GiB at a time. The store is in a fresh directory under `target`. ringcask and `fio` run in turn; the output shows
//! medians over the rounds.
//!
//! - `cold`: 64 tasks get random keys of a store of 1 GiB, in a process limited to 256 MiB of memory including its page
//!   cache. Under the same limit, `fio` reads 4 KiB of the same files at random at a queue depth of 64: through the page
//!   cache at any sector, as records lie; through the page cache at page boundaries; and with `O_DIRECT`. A record has 4,096
//!   bytes and does not begin at a page boundary, so a get needs two pages. `fio` picks every file equally often, so it
//!   does not get the last segment: that one has about 50 KiB and would soon be cached.
//! - `large`: four tasks write `Written` values of 1 MiB to a new store, and `fio` writes a new file of the same size in
//!   pieces of 1 MiB through the page cache. 192 MiB fit into one segment. With 1,000 MiB, three segments must reach the
//!   disk before the next one begins, while `fio` waits only once part of the memory is dirty. 8 GiB exceed that part on
//!   machines with up to about 40 GiB of memory. A second `fio` run makes each 256 MiB durable, as a log without holes
//!   must.
//! - `beside`: 8 readers, which sleep for a millisecond after 16 gets, alone and together with 64 `Synced` writers.
//!
//! Exits with 1 when a bound does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark stops at the first error, and its figures are printed, not computed with"
)]

#[path = "shared/keys.rs"]
mod keys;
mod shared;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use keys::{Numbers, key};
use pollster::block_on;
use ringcask::bytes::Bytes;
use ringcask::{Durability, Store};
use shared::{median, place};
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;

/// A record of 4,096 bytes, less 40 bytes of header and 16 of key.
const COLD_VALUE: usize = 4096 - 40 - 16;
const COLD_KEYS: u64 = 1024 * MIB / 4096;
const COLD_LIMIT: u64 = 256 * MIB;
const COLD_TASKS: u64 = 64;

const LARGE_MIB: [u64; 3] = [192, 1000, 8192];
const SYNC_MIB: u64 = 256;
const LARGE_TASKS: u64 = 4;

const CHILD: &str = "RINGCASK_BENCH_COLD";
const CHILD_SECONDS: &str = "RINGCASK_BENCH_SECONDS";

struct Options {
    rounds: usize,
    time: Duration,
    wanted: Vec<String>,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { rounds: 5, time: Duration::from_secs(5), wanted: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next().and_then(|text| text.parse().ok()).unwrap();
            match argument.as_str() {
                "--rounds" => options.rounds = number() as usize,
                "--seconds" => options.time = Duration::from_secs(number()),
                "--bench" => {}
                name => options.wanted.push(name.to_owned()),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted == name)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

fn verdict(name: &str, ratio: f64, holds: bool) -> bool {
    println!("{name}: ratio {ratio:.2}; {}", if holds { "holds" } else { "DOES NOT HOLD" });
    holds
}

fn has_fio() -> bool {
    let found = Command::new("fio").arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: fio is not installed, so the speed of the disk is unknown");
    }
    found
}

/// One field of `fio`'s terse output: 8 is reads per second, 48 is KiB written per second.
fn fio(command: &mut Command, field: usize) -> f64 {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("3;"));
    let figure = line.and_then(|line| line.split(';').nth(field - 1)).and_then(|figure| figure.parse().ok());
    figure.unwrap_or_else(|| panic!("fio: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

fn forget(path: &Path) {
    for segment in segments(path) {
        let file = fs::File::open(segment).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

// ---- cold --------------------------------------------------------------------------------------------------------

/// A memory cgroup, removed on drop.
struct Limit(PathBuf);

impl Limit {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("ringcask-bench-{}", std::process::id());
        for (parent, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Path::new(parent).join(&name);
            if Path::new(parent).join("cgroup.procs").exists() && fs::create_dir(&group).is_ok() {
                let limit = Self(group);
                if fs::write(limit.0.join(file), bytes.to_string()).is_ok() {
                    return Some(limit);
                }
            }
        }
        println!("SKIPPED: cannot create a memory cgroup, so the page cache cannot be limited");
        None
    }

    /// A command that runs `program` under the limit.
    fn run(&self, program: &Path, arguments: &[String]) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg("echo $$ > \"$0\" && exec \"$@\"").arg(self.0.join("cgroup.procs")).arg(program);
        command.args(arguments);
        command
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // The processes have exited, but the kernel may need a moment to release their pages.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The child process: prints gets per second, p50 and p99 in microseconds, and the fraction served from the disk.
fn cold_child(path: &Path, time: Duration) {
    let (store, runtime) = (block_on(Store::open(path)).unwrap(), runtime());
    let until = Instant::now() + time;
    let before = store.stats();
    let reader = |index: u64| {
        let store = store.clone();
        async move {
            let (mut numbers, mut taken) = (Numbers(index * 7919 + 1), Histogram::<u64>::new(3).unwrap());
            while Instant::now() < until {
                let called = Instant::now();
                let value = store.get(key(numbers.below(COLD_KEYS))).await.unwrap();
                assert_eq!(value.unwrap().len(), COLD_VALUE);
                taken.record(called.elapsed().as_nanos() as u64).unwrap();
            }
            taken
        }
    };
    let tasks: Vec<_> = (0..COLD_TASKS).map(|index| runtime.spawn(reader(index))).collect();
    let mut taken = Histogram::<u64>::new(3).unwrap();
    tasks.into_iter().for_each(|task| taken.add(runtime.block_on(task).unwrap()).unwrap());
    let after = store.stats();
    let from_disk = (after.gets_from_disk - before.gets_from_disk) as f64 / taken.len() as f64;
    let micros = |quantile| taken.value_at_quantile(quantile) as f64 / 1e3;
    println!("{} {} {} {from_disk}", taken.len() as f64 / time.as_secs_f64(), micros(0.5), micros(0.99));
    block_on(store.close()).unwrap();
}

fn cold(options: &Options) -> bool {
    let dir = place("disk");
    let path = dir.path().join("store");
    let store = block_on(Store::builder(&path).durability(Durability::Buffered).open()).unwrap();
    for number in 0..COLD_KEYS {
        block_on(store.put(key(number), vec![number as u8; COLD_VALUE])).unwrap();
    }
    block_on(store.close()).unwrap();
    let Some(limit) = has_fio().then(|| Limit::new(COLD_LIMIT)).flatten() else { return true };
    let is_full = |path: &PathBuf| fs::metadata(path).unwrap().len() > MIB;
    let full = segments(&path).into_iter().filter(is_full).map(|path| path.display().to_string());
    let names = full.collect::<Vec<_>>().join(":");
    let seconds = options.time.as_secs();
    let fio_of = |direct: u8, align: u32| {
        let arguments = format!(
            "--name=cold --readonly --rw=randread --bs=4k --iodepth=64 --ioengine=io_uring --direct={direct} \
             --blockalign={align} --norandommap --fadvise_hint=random --time_based --runtime={seconds} --minimal --filename={names}"
        );
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        fio(&mut limit.run(Path::new("fio"), &arguments), 8)
    };
    let child = || {
        let output = limit
            .run(&std::env::current_exe().unwrap(), &[])
            .env(CHILD, &path)
            .env(CHILD_SECONDS, seconds.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures: Vec<f64> = text.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        <[f64; 4]>::try_from(figures).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    };
    let (mut ours, mut cached, mut at_pages, mut direct) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        forget(&path);
        ours.push(child());
        forget(&path);
        cached.push(fio_of(0, 512));
        forget(&path);
        at_pages.push(fio_of(0, 4096));
        forget(&path);
        direct.push(fio_of(1, 4096));
    }
    let of = |index: usize| median(ours.iter().map(|figures| figures[index]).collect());
    let (cached, at_pages, direct) = (median(cached), median(at_pages), median(direct));
    println!(
        "cold: {:.0} gets/s, p50 {:.0} µs, p99 {:.0} µs, {:.0} % from the disk; fio {cached:.0}/s through the page cache, \
         {at_pages:.0}/s at page boundaries, {direct:.0}/s with O_DIRECT",
        of(0),
        of(1),
        of(2),
        of(3) * 100.0
    );
    verdict("cold, relative to fio through the page cache, at least 0.9", of(0) / cached, of(0) >= 0.9 * cached)
}

// ---- large -------------------------------------------------------------------------------------------------------

/// MiB per second of ringcask.
fn put_large(runtime: &Runtime, path: &Path, mib: u64) -> f64 {
    let store = block_on(Store::builder(path).durability(Durability::Written).open()).unwrap();
    let began = Instant::now();
    let writer = |index: u64| {
        let store = store.clone();
        async move {
            let value = Bytes::from(vec![index as u8; MIB as usize]);
            for number in 0..mib / LARGE_TASKS {
                store.put_bytes(key(number * LARGE_TASKS + index), value.clone()).await.unwrap();
            }
        }
    };
    let tasks: Vec<_> = (0..LARGE_TASKS).map(|index| runtime.spawn(writer(index))).collect();
    tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
    let seconds = began.elapsed().as_secs_f64();
    block_on(store.close()).unwrap();
    mib as f64 / seconds
}

/// MiB per second of `fio`, which syncs each [`SYNC_MIB`] or never.
fn write_large(path: &Path, mib: u64, syncs: bool) -> f64 {
    let mut command = Command::new("fio");
    command.args(["--name=large", "--rw=write", "--bs=1M", "--ioengine=psync", "--fallocate=none", "--minimal"]);
    // `--fdatasync` counts blocks, here of 1 MiB each.
    command.args(syncs.then(|| format!("--fdatasync={SYNC_MIB}")));
    command.arg(format!("--size={mib}M")).arg(format!("--filename={}", path.display()));
    fio(&mut command, 48) / 1024.0
}

fn large(options: &Options) -> bool {
    if !has_fio() {
        return true;
    }
    let (runtime, mut all_hold) = (runtime(), true);
    for mib in LARGE_MIB {
        let (mut ours, mut theirs, mut durable) = (Vec::new(), Vec::new(), Vec::new());
        let in_new_file = |write: &dyn Fn(&Path) -> f64| {
            let dir = place("disk");
            let rate = write(&dir.path().join("new"));
            drop(dir);
            rustix::fs::sync();
            rate
        };
        for _ in 0..options.rounds {
            ours.push(in_new_file(&|path| put_large(&runtime, path, mib)));
            theirs.push(in_new_file(&|path| write_large(path, mib, false)));
            if mib > SYNC_MIB {
                durable.push(in_new_file(&|path| write_large(path, mib, true)));
            }
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("large, {mib} MiB: Written puts of 1 MiB {ours:.0} MiB/s; fio {theirs:.0} MiB/s");
        if !durable.is_empty() {
            let durable = median(durable);
            println!(
                "large, {mib} MiB: fio with a sync each {SYNC_MIB} MiB {durable:.0} MiB/s, ratio {:.2}",
                ours / durable
            );
        }
        let name = format!("large, {mib} MiB, relative to fio's buffered writes, at least 0.85");
        all_hold &= verdict(&name, ours / theirs, ours >= 0.85 * theirs);
    }
    all_hold
}

// ---- beside ------------------------------------------------------------------------------------------------------

const BESIDE_KEYS: u64 = 100_000;

fn turn(runtime: &Runtime, store: &Store, time: Duration, with_writers: bool) -> (Histogram<u64>, f64) {
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = |index: u64| {
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            let (mut numbers, mut puts) = (Numbers(index * 31 + 7), 0_u64);
            let options = Durability::Synced;
            while !is_over.load(Ordering::Relaxed) {
                store.put(key(numbers.below(BESIDE_KEYS)), [1; 256]).durability(options).await.unwrap();
                puts += 1;
            }
            puts
        }
    };
    let reader = |index: u64| {
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            let (mut numbers, mut taken) = (Numbers(index * 17 + 3), Histogram::<u64>::new(3).unwrap());
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    let called = Instant::now();
                    assert!(store.get(key(numbers.below(BESIDE_KEYS))).await.unwrap().is_some());
                    taken.record(called.elapsed().as_nanos() as u64).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            taken
        }
    };
    let writers: Vec<_> = (0..if with_writers { 64 } else { 0 }).map(|index| runtime.spawn(writer(index))).collect();
    let readers: Vec<_> = (0..8).map(|index| runtime.spawn(reader(index))).collect();
    std::thread::sleep(time);
    is_over.store(true, Ordering::Relaxed);
    let puts: u64 = writers.into_iter().map(|writer| runtime.block_on(writer).unwrap()).sum();
    let mut taken = Histogram::<u64>::new(3).unwrap();
    readers.into_iter().for_each(|reader| taken.add(runtime.block_on(reader).unwrap()).unwrap());
    (taken, puts as f64 / time.as_secs_f64())
}

fn beside(options: &Options) -> bool {
    let (dir, runtime) = (place("disk"), runtime());
    let store = block_on(Store::open(dir.path().join("store"))).unwrap();
    let buffered = Durability::Buffered;
    for number in 0..BESIDE_KEYS {
        block_on(store.put(key(number), [0; 256]).durability(buffered)).unwrap();
    }
    block_on(store.sync()).unwrap();
    let (mut alone, mut beside, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        alone.push(turn(&runtime, &store, options.time, false).0);
        let (taken, per_second) = turn(&runtime, &store, options.time, true);
        beside.push(taken);
        puts.push(per_second);
    }
    block_on(store.close()).unwrap();
    let of = |turns: &[Histogram<u64>], quantile| {
        median(turns.iter().map(|taken| taken.value_at_quantile(quantile) as f64 / 1e3).collect())
    };
    let (p99_alone, p99_beside) = (of(&alone, 0.99), of(&beside, 0.99));
    println!(
        "beside: gets alone p50 {:.1} µs, p99 {p99_alone:.1} µs; during {:.0} Synced puts/s p50 {:.1} µs, p99 {p99_beside:.1} µs",
        of(&alone, 0.5),
        median(puts),
        of(&beside, 0.5)
    );
    verdict("beside, p99 of a get at most 2", p99_beside / p99_alone, p99_beside <= 2.0 * p99_alone)
}

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(CHILD) {
        let seconds = std::env::var(CHILD_SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(5);
        cold_child(Path::new(&path), Duration::from_secs(seconds));
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let mut all_hold = true;
    for (name, run) in [("cold", cold as fn(&Options) -> bool), ("large", large), ("beside", beside)] {
        if options.wants(name) {
            all_hold &= run(&options);
        }
    }
    if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
