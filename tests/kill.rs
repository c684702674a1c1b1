//! Kills a real process with SIGKILL at random moments, many times in the same directory.
//!
//! `support/killed_writer` describes the process and the check after each reopen. The kernel outlives the process, so
//! `Written` and `Synced` operations must survive. One directory in ten is on a tmpfs.
//!
//! Not tested here: power cuts, which also lose the kernel's memory; see `tests/power`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test stops where it fails"
)]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod killed_writer;
    pub mod stages;
}

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringcask::Engine;
use tempfile::TempDir;

use crate::support::killed_writer::{self, Rng, Running, State, Survivors, Totals, WRITERS, builder, check};
use crate::support::stages;

/// Number of kills before a directory is replaced. Its store has then been recovered that many times.
const GENERATIONS: u64 = 25;
/// One in this number of directories is on a tmpfs, if there is one.
const ON_TMPFS: u64 = 10;
const TMPFS: &str = "/dev/shm";

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Runs one child, kills it and checks the store.
fn cycle(test: &str, engine: Engine, dir: &Path, rng: &mut Rng, before: &[State], totals: &mut Totals) -> Vec<State> {
    let seed = rng.next();
    let path = dir.join("store");
    let mut running = Running::start(test, engine, &path, seed);
    let during_open = totals.cycles.is_multiple_of(6);
    running.wait_for(&[if during_open { "starting" } else { "ack " }]);
    let pause = if during_open { rng.below(3_000) } else { rng.below(20_000) };
    thread::sleep(Duration::from_micros(pause));
    let acks = running.kill();
    totals.cycles += 1;
    totals.during_open += u64::from(during_open);

    // Sometimes the check uses a copy, so that the next child starts with the files that the kill left.
    let copied = rng.below(3) == 0 && path.exists();
    let looked_at = if copied { dir.join("copy") } else { path.clone() };
    if copied {
        copy_directory(&path, &looked_at);
    }
    let opened = pollster::block_on(builder(engine, &looked_at, rng.next()).open());
    let store = opened.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    let after = check(&store, seed, before, &acks, Survivors::Kernel, totals);
    pollster::block_on(store.close()).unwrap();
    drop(store);
    if copied {
        fs::remove_dir_all(&looked_at).unwrap();
    }
    after
}

fn directory(number: u64) -> TempDir {
    let is_on_tmpfs = number % ON_TMPFS == 1 && Path::new(TMPFS).is_dir();
    let directory = if is_on_tmpfs {
        TempDir::with_prefix_in("ringcask-kill-", TMPFS)
    } else {
        TempDir::with_prefix("ringcask-kill-")
    };
    directory.unwrap()
}

fn kill_repeatedly(test: &str, engine: Engine) {
    if killed_writer::is_child() {
        return killed_writer::child(false);
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = stages::number("RINGCASK_SEED").unwrap_or(since_epoch.as_nanos() as u64);
    let stage = stages::begin(&format!("kills, {engine}"));
    let cycles = stage.floor();
    println!("{engine}: RINGCASK_SEED={seed}");
    let (mut rng, mut totals) = (Rng(seed), Totals::default());
    let (mut dir, mut before, mut on_tmpfs) = (directory(0), vec![State::new(); WRITERS], 0);
    for number in 0..cycles {
        if number > 0 && number % GENERATIONS == 0 {
            dir = directory(number / GENERATIONS);
            before = vec![State::new(); WRITERS];
        }
        on_tmpfs += u64::from(dir.path().starts_with(TMPFS));
        before = cycle(test, engine, dir.path(), &mut rng, &before, &mut totals);
    }
    let Totals { cycles: done, during_open, acks, lost, in_flight_kept, truncated, .. } = totals;
    let note = format!(
        "{during_open} during open, {on_tmpfs} on tmpfs, {acks} acknowledgments checked, {lost} buffered ones lost as a \
         suffix, {in_flight_kept} in flight kept, {truncated} torn tails, seed {seed}"
    );
    stage.end(done, &note);
    assert!(acks >= 40 * cycles, "{acks} acknowledgments in {cycles} cycles are too few");
    assert!(cycles < 100 || during_open * 10 >= cycles, "only {during_open} of {cycles} kills were during an open");
}

#[test]
fn repeated_kills_on_threads() {
    kill_repeatedly("repeated_kills_on_threads", Engine::Threads);
}

#[test]
fn repeated_kills_on_uring() {
    if let Some(why) = killed_writer::uring_refused() {
        return stages::begin("kills, uring").skip(&why);
    }
    kill_repeatedly("repeated_kills_on_uring", Engine::Uring);
}
