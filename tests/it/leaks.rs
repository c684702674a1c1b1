//! Descriptors, threads and memory: a store lifetime releases all that it used.
//!
//! Each kind of lifetime is repeated in a separate process, in which nothing else opens a file or allocates.
//! Allocations that only the first rounds make (thread buffers, tables) are not counted.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ringcask::{Batch, Builder, Compaction, Durability, Engine, ErrorKind, Outcome, Result, Store};

use crate::bad_input::{limit_descriptors, used_descriptors};
use crate::helpers::counting_allocator::bytes_in_use;
use crate::helpers::gated_io::{Gate, GatedIo, Kind};
use crate::helpers::{
    DEADLINE, Env, LEVELS, Model, Rng, assert_holds, block_on, child_env, close, eventually, expect_success,
    files_with, for_each_engine, get, is_child, open, poll_once, print_report, put, put_at, rerun, text_of,
};
use crate::panics::silence_expected_panics;

type Boxed = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Boxed {
    Box::pin(async move { future.await.map(drop) })
}

fn builder(engine: Engine, path: &Path) -> Builder {
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    let builder = Store::builder(path).engine(engine).segment_bytes(16 << 10).staging_bytes(64 << 10);
    builder.max_open_files(8).compaction(compaction)
}

fn gated(engine: Engine, path: &Path) -> (Store, Arc<Gate>) {
    let (backend, gate) = GatedIo::around(engine);
    (open(builder(engine, path).backend(backend)), gate)
}

fn every_call(store: &Store) -> Vec<Boxed> {
    let mut batch = Batch::new();
    batch.put("a", [1; 900]).put("b", [2; 900]);
    let mut calls: Vec<Boxed> = LEVELS.map(|level| boxed(store.put("k", [3; 900]).durability(level))).into();
    calls.extend([
        boxed(store.put_bytes("shared", vec![4; 70_000].into())),
        boxed(store.put("room", vec![5; 60 << 10])),
        boxed(store.put("more room", vec![5; 60 << 10])),
        boxed(store.delete("k")),
        boxed(store.write(batch)),
        boxed(store.get("cold")),
        boxed(store.sync()),
        boxed(store.wait_durable(store.durable_version())),
        boxed(store.compact()),
    ]);
    calls
}

fn fill(store: &Store) {
    for index in 0..40_u32 {
        put_at(store, LEVELS[index as usize % 3], (index % 16).to_le_bytes(), [index as u8; 1000]);
    }
}

fn closed(engine: Engine, path: &Path) {
    let store = open(builder(engine, path));
    fill(&store);
    close(store);
}

fn dropped(engine: Engine, path: &Path) {
    let store = open(builder(engine, path));
    fill(&store);
    assert_eq!(get(&store, 0_u32.to_le_bytes()).map(|value| value.len()), Some(1000));
}

fn refused(engine: Engine, path: &Path) {
    let refused = |builder: Builder, kind| {
        let error = block_on(builder.open()).expect_err("the open succeeded");
        assert_eq!(error.kind(), kind, "{error:?}");
    };
    let store = open(builder(engine, path));
    put(&store, "k", "v");
    refused(builder(engine, path), ErrorKind::Locked);
    refused(builder(engine, Path::new("/dev/null")), ErrorKind::Io);
    refused(builder(engine, path).segment_bytes(1), ErrorKind::InvalidConfig);
    refused(builder(engine, &path.with_extension("absent")).create(false), ErrorKind::Io);
    close(store);
    for name in ["MANIFEST", &segment_name(path)] {
        let (whole, file) = (fs::read(path.join(name)).unwrap(), path.join(name));
        let mut damaged = whole.clone();
        damaged[9] ^= 1;
        fs::write(&file, &damaged).unwrap();
        refused(builder(engine, path), ErrorKind::Corrupt);
        fs::remove_file(&file).unwrap();
        refused(builder(engine, path), ErrorKind::Corrupt);
        fs::write(&file, &whole).unwrap();
    }
}

fn segment_name(path: &Path) -> String {
    let segments = files_with(path, "seg");
    segments[0].file_name().unwrap().to_str().unwrap().to_owned()
}

fn opens_dropped(engine: Engine, path: &Path) {
    for polls in 0..3 {
        let mut opening = builder(engine, path).open();
        for _ in 0..polls {
            if let Poll::Ready(result) = poll_once(&mut opening) {
                drop(result);
                break;
            }
        }
        drop(opening);
        wait_until_free(engine, path);
    }
}

fn wait_until_free(engine: Engine, path: &Path) {
    eventually("the directory is free", || match block_on(builder(engine, path).open()) {
        Ok(store) => {
            close(store);
            true
        }
        Err(error) => error.kind() != ErrorKind::Locked && panic!("{error:?}"),
    });
}

fn futures_dropped(engine: Engine, path: &Path) {
    let (store, gate) = gated(engine, path);
    put(&store, "cold", [9; 3000]);
    [Kind::Write, Kind::Read].into_iter().for_each(|kind| gate.close(kind));
    for polls in 0..3 {
        let mut calls = every_call(&store);
        for _ in 0..polls {
            calls.retain_mut(|call| poll_once(call).is_pending());
        }
        drop(calls);
    }
    [Kind::Write, Kind::Read].into_iter().for_each(|kind| gate.open(kind));
    block_on(store.sync()).unwrap();
    drop(store);
}

fn poisoned(engine: Engine, path: &Path) {
    let (store, gate) = gated(engine, path);
    fill(&store);
    gate.fail(Kind::Sync, Some(libc::EIO));
    let mut calls = every_call(&store);
    calls.retain_mut(|call| poll_once(call).is_pending());
    assert_eq!(block_on(store.put("k", "v")).unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(block_on(store.close()).is_err());
}

fn compactions_dropped(engine: Engine, path: &Path) {
    let (store, gate) = gated(engine, path);
    fill(&store);
    for held in [Kind::Read, Kind::Sync, Kind::Write] {
        gate.close(held);
        let mut compaction = store.compact();
        assert!(poll_once(&mut compaction).is_pending());
        gate.wait_for_held(held, 1);
        drop(compaction);
        gate.open(held);
    }
    block_on(store.compact()).unwrap();
    close(store);
}

fn tasks_that_panic(engine: Engine, path: &Path) {
    silence_expected_panics();
    for thread in ["ringcask-commit", "ringcask-maint"] {
        let (store, gate) = gated(engine, path);
        fill(&store);
        gate.panic_in(Kind::Write, thread, 1);
        let calls = every_call(&store);
        for call in calls {
            let _ = block_on(call);
        }
        // The thread that writes each part of a compaction varies, and so does the time of a hint write. Continue until
        // both have happened.
        eventually("the store is poisoned", || {
            let _ = block_on(store.compact());
            block_on(store.put("once more", [6; 900])).is_err()
        });
        assert!(gate.has_panicked(Kind::Write), "{thread}");
        assert!(block_on(store.close()).is_err());
    }
}

/// Forgotten futures hold the same resources as a handle on the closed store, but neither its lock nor its two tasks.
fn futures_forgotten(engine: Engine, path: &Path) {
    let store = open(builder(engine, path));
    fill(&store);
    let mut calls = every_call(&store);
    calls.retain_mut(|call| poll_once(call).is_pending());
    assert!(!calls.is_empty(), "nothing to forget");
    calls.into_iter().for_each(std::mem::forget);
    close(store);
    wait_until_free(engine, path);
}

/// An open whose future is dropped before it starts, and which starts long afterwards.
fn opens_late(engine: Engine, path: &Path) {
    let (backend, gate) = GatedIo::around(engine);
    gate.close(Kind::Start);
    let mut opening = builder(engine, path).backend(backend).open();
    assert!(poll_once(&mut opening).is_pending());
    drop(opening);
    std::thread::spawn(move || {
        // The sleep makes the start late; the result does not depend on it.
        std::thread::sleep(Duration::from_millis(80));
        gate.open(Kind::Start);
    });
}

/// Resources in use, or a limit for them.
#[derive(Clone, Copy, Debug)]
struct Use {
    descriptors: usize,
    threads: usize,
    bytes: i64,
}

impl Use {
    fn now() -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
        Self { descriptors: count("fd"), threads: count("task"), bytes: bytes_in_use() }
    }

    /// This use, plus the resources that `lives` lifetimes may keep.
    fn after(self, lives: usize, keeps: Self) -> Self {
        Self {
            descriptors: self.descriptors + lives * keeps.descriptors,
            threads: self.threads + lives * keeps.threads,
            bytes: self.bytes + lives as i64 * keeps.bytes + SLACK_BYTES,
        }
    }

    /// The resources in use once threads and descriptors are within `limit`.
    ///
    /// A lifetime may end for the caller long before its threads and the kernel's workers of its ring end. An open
    /// whose future was dropped still runs to its end, and on a busy machine may barely have started. Only the
    /// resources in use after its threads have ended are kept, however long that takes.
    fn after_settling(limit: Self) -> Self {
        let mut now = Self::now();
        eventually("the threads end and the files are closed", || {
            now = Self::now();
            now.threads <= limit.threads && now.descriptors <= limit.descriptors
        });
        now
    }

    /// The growth over `self`, or a message for each resource that is still over `limit` after `patience`.
    fn growth(self, limit: Self, patience: Duration) -> std::result::Result<[(&'static str, i64); 3], Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let now = Self::now();
            let all = [
                ("descriptors", now.descriptors as i64, self.descriptors as i64, limit.descriptors as i64),
                ("threads", now.threads as i64, self.threads as i64, limit.threads as i64),
                ("bytes", now.bytes, self.bytes, limit.bytes),
            ];
            if all.iter().all(|(_, now, _, limit)| now <= limit) {
                return Ok(all.map(|(what, now, before, _)| (what, now - before)));
            }
            if Instant::now() > deadline {
                let over_limit = all.iter().filter(|(_, now, _, limit)| now > limit);
                let message = |&(what, now, before, limit): &(&str, i64, i64, i64)| {
                    format!("{} more {what}, allowed are {}", now - before, limit - before)
                };
                return Err(over_limit.map(message).collect());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const NOTHING: Use = Use { descriptors: 0, threads: 0, bytes: 0 };

/// A kind of lifetime, and the resources that each repetition may keep forever.
struct Life {
    name: &'static str,
    lead: fn(Engine, &Path),
    keeps: Use,
}

const fn life(name: &'static str, lead: fn(Engine, &Path), keeps: Use) -> Life {
    Life { name, lead, keeps }
}

const LIVES: [Life; 10] = [
    life("closed", closed, NOTHING),
    life("dropped", dropped, NOTHING),
    life("refused", refused, NOTHING),
    life("opens dropped", opens_dropped, NOTHING),
    life("opens late", opens_late, NOTHING),
    life("futures dropped", futures_dropped, NOTHING),
    life("poisoned", poisoned, NOTHING),
    life("compactions dropped", compactions_dropped, NOTHING),
    // The payload of a panic is never dropped, because its drop could panic again.
    life("tasks that panic", tasks_that_panic, Use { bytes: 400, ..NOTHING }),
    life("futures forgotten", futures_forgotten, FORGOTTEN),
];

/// A kind of lifetime that leaks on purpose, for the check that allows no leak.
const CANARY: Life = life("canary", futures_forgotten, FORGOTTEN);

/// The maximum number of open segments, the directory, and the read thread with its eventfd and its ring.
const FORGOTTEN: Use = Use { descriptors: 12, threads: 1, bytes: 1 << 20 };

/// For all rounds together. One waker leaked per round is more.
const SLACK_BYTES: i64 = 400;

/// Lifetimes before the count, and counted lifetimes.
const WARM_UP: usize = 3;
const ROUNDS: usize = 12;

/// Repeats a lifetime. Fails if the counted repetitions keep more than `allowed` each.
fn repeat_life(life: &Life, allowed: Use, patience: Duration) {
    let (engine, path) = child_env();
    let (name, lead, keeps) = (life.name, life.lead, life.keeps);
    let idle = Use::now();
    let one = |lifetimes_before: usize| {
        let path = path.clone();
        // Each lifetime runs in a new thread, whose pool of record buffers is freed when the thread ends.
        std::thread::spawn(move || lead(engine, &path)).join().unwrap();
        let now = Use::after_settling(idle.after(lifetimes_before + 1, keeps));
        // No task is left that could recreate the directory.
        fs::remove_dir_all(child_env().1).unwrap();
        now
    };
    let warm = (0..WARM_UP).map(&one).fold(idle, |_, after| after);
    for lifetimes_before in WARM_UP..WARM_UP + ROUNDS {
        one(lifetimes_before);
    }
    match warm.growth(warm.after(ROUNDS, allowed), patience) {
        Ok(more) => {
            let [(_, descriptors), (_, threads), (_, bytes)] = more;
            println!(
                "{name}: {descriptors} descriptors, {threads} threads, {bytes} bytes of growth after {ROUNDS} lifetimes"
            );
        }
        Err(over_limit) => panic!("{name}, {ROUNDS} lifetimes: {over_limit:?}"),
    }
}

const LIFE: &str = "RINGCASK_TEST_LIFE";

/// A command that reruns the test `test` with the lifetime `life`.
fn rerun_life(test: &str, env: &Env, life: &str) -> Command {
    let mut command = rerun(test, &Env::new(env.engine));
    command.env(LIFE, life);
    command
}

#[test]
fn every_store_lifetime_releases_its_resources() {
    const NAME: &str = "leaks::every_store_lifetime_releases_its_resources";
    if is_child() {
        let name = std::env::var(LIFE).unwrap();
        let life = LIVES.iter().find(|life| life.name == name).unwrap();
        return repeat_life(life, life.keeps, DEADLINE);
    }
    for_each_engine(|env| {
        for life in LIVES {
            print_report(&expect_success(rerun_life(NAME, env, life.name)));
        }
    });
}

#[test]
fn a_leaking_store_lifetime_is_detected() {
    const NAME: &str = "leaks::a_leaking_store_lifetime_is_detected";
    if is_child() {
        // Resources still in use after all lifetimes do not disappear later, so a long wait is useless.
        return repeat_life(&CANARY, NOTHING, Duration::from_millis(200));
    }
    for_each_engine(|env| {
        let output = rerun_life(NAME, env, CANARY.name).output().unwrap();
        let text = text_of(&output);
        assert!(!output.status.success(), "not noticed: {text}");
        // On the ring, the two tasks do the store's reads, so there is no separate read thread.
        let counted = ["descriptors", "bytes", "threads"];
        let expected = if env.engine == Engine::Threads { &counted[..] } else { &counted[..2] };
        let is_reported = |what: &&str| text.contains(&format!(" more {what}, allowed are "));
        assert!(expected.iter().all(is_reported), "{text}");
    });
}

/// A store with too few descriptors for every operation to get one.
struct Scarce {
    rng: Rng,
    model: Model,
    calls: u64,
    refused: u64,
}

impl Scarce {
    /// Checks for an error caused by a missing descriptor, directly or as a consequence.
    fn check_refused(&mut self, error: &ringcask::Error) {
        self.refused += 1;
        let is_allowed = match error.kind() {
            ErrorKind::Poisoned => true,
            ErrorKind::Io | ErrorKind::Unsupported => error.os_error() == Some(libc::EMFILE),
            _ => false,
        };
        assert!(is_allowed, "{error:?}");
    }

    /// Reads and rewrites keys. Each call returns the right result or is refused.
    fn read_and_write(&mut self, store: &Store, round: u32) {
        for _ in 0..8 {
            let key = (self.rng.below(200) as u32).to_le_bytes().to_vec();
            match block_on(store.get(&key)) {
                Ok(found) => assert_eq!(found.as_deref(), self.model.get(&key).map(|value| &value[..]), "{key:?}"),
                Err(error) => self.check_refused(&error),
            }
            let value = vec![round as u8; 700];
            match block_on(store.put(&key, &value).durability(Durability::Synced)) {
                Ok(_) => drop(self.model.insert(key, value)),
                Err(error) => {
                    assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
                    self.check_refused(&error);
                }
            }
            self.calls += 2;
        }
        if round.is_multiple_of(5)
            && let Err(error) = block_on(store.compact())
        {
            self.check_refused(&error);
        }
        assert_eq!(store.len(), self.model.len());
    }
}

/// A missing descriptor causes errors, never a missing file or key.
fn run_with_few_descriptors() {
    let (engine, path) = child_env();
    let mut scarce =
        Scarce { rng: Rng::new(crate::support::stages::first_seed()), model: Model::new(), calls: 0, refused: 0 };
    let mut store = Some(open(builder(engine, &path)));
    for round in 0..400_u32 {
        limit_descriptors(1000);
        limit_descriptors(used_descriptors() + scarce.rng.below(12));
        if let Some(store) = &store {
            scarce.read_and_write(store, round);
        }
        if round.is_multiple_of(7) {
            // A close may find no descriptor for its hint files, and still loses nothing.
            drop(store.take());
        }
        if store.is_none() {
            match block_on(builder(engine, &path).open()) {
                Ok(opened) => store = Some(opened),
                Err(error) => scarce.check_refused(&error),
            }
        }
    }
    limit_descriptors(1000);
    drop(store);
    let store = open(builder(engine, &path));
    assert_holds(&store, &scarce.model);
    close(store);
    println!("{} reads and writes, {} refused for a missing descriptor", scarce.calls, scarce.refused);
    assert!(scarce.refused > 50, "{}", scarce.refused);
}

#[test]
fn no_key_is_missing_when_descriptors_run_out() {
    const NAME: &str = "leaks::no_key_is_missing_when_descriptors_run_out";
    if is_child() {
        return run_with_few_descriptors();
    }
    for_each_engine(|env| print_report(&expect_success(rerun(NAME, env))));
}
