//! Futures dropped before their first poll, and after each poll until they are ready.
//!
//! Before the first poll, nothing happens. After it, the operation is all or nothing: the idle store must show one of
//! the two states, and the same one after a reopen. If the future was ready, the operation happened.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ringcask::bytes::Bytes;
use ringcask::{Batch, Durability, ErrorKind, Result, Store};

use crate::helpers::gated_io::{GatedIo, Kind};
use crate::helpers::{
    DEADLINE, Env, LEVELS, Parked, block_on, child_env, close, expect_success, for_each_backend, for_each_engine, get,
    is_child, open, poll_once, print_report, put, put_at, rerun,
};

pub type Boxed = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

pub fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Boxed {
    Box::pin(async move { future.await.map(drop) })
}

/// Polls up to `polls` times, and waits for the waker in between if `patient`. Returns whether the future was ready.
///
/// The wait of a patient caller is bounded by the engine's work, never by a timer: no wait follows the last poll.
pub fn poll_then_drop(mut future: Boxed, polls: usize, patient: bool) -> bool {
    let parked = Parked::new();
    let waker = parked.waker();
    for poll in 1..=polls {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => {
                result.unwrap();
                return true;
            }
            Poll::Pending if patient && poll < polls => parked.wait(),
            Poll::Pending => {}
        }
    }
    false
}

/// The values that a key may hold after an operation on it was dropped.
struct Expect {
    allowed: Vec<Option<Vec<u8>>>,
    point: String,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put,
    PutLarge,
    Delete,
    Batch,
}

/// Starts `op` on `key`. Returns the future, and the value of the key if the operation happens.
fn start(store: &Store, op: Op, level: Durability, key: &str) -> (Boxed, Option<Vec<u8>>) {
    match op {
        Op::Put => (boxed(store.put(key, "new").durability(level)), Some(b"new".to_vec())),
        Op::PutLarge => {
            let value = vec![7; 200_000];
            let mut batch = Batch::new();
            batch.put(key, &value);
            let synced = level == Durability::Synced;
            let shared = || boxed(store.put_bytes(key, Bytes::from(vec![7; 200_000])));
            (if synced { shared() } else { boxed(store.write(batch).durability(level)) }, Some(value))
        }
        Op::Delete => (boxed(store.delete(key).durability(level)), None),
        Op::Batch => {
            let mut batch = Batch::new();
            batch.put(format!("{key}-a"), "new").put(key, "new").put(format!("{key}-b"), "new");
            (boxed(store.write(batch).durability(level)), Some(b"new".to_vec()))
        }
    }
}

fn check(store: &Store, expected: &BTreeMap<String, Expect>, settled: Option<&BTreeMap<String, Option<Vec<u8>>>>) {
    for (key, expect) in expected {
        let found = get(store, key);
        let short = found.as_ref().map(|value| value.len());
        assert!(expect.allowed.contains(&found), "{}: {key} holds {short:?} bytes", expect.point);
        if let Some(settled) = settled {
            assert!(settled[key] == found, "{}: {key} has another value after the reopen", expect.point);
        }
        let members = [get(store, format!("{key}-a")), get(store, format!("{key}-b"))];
        assert_eq!(members[0], members[1], "{}: half a batch", expect.point);
        if members[0].is_some() {
            assert_eq!(members[0], found, "{}: half a batch", expect.point);
        }
    }
}

#[test]
fn a_write_dropped_at_any_poll_is_all_or_nothing() {
    let points = Cell::new(0);
    for_each_engine(|env| {
        let quick = Duration::from_millis(2);
        let store = open(env.builder().segment_bytes(1 << 20).flush_interval(quick).sync_interval(quick));
        let mut expected = BTreeMap::new();
        for op in [Op::Put, Op::PutLarge, Op::Delete, Op::Batch] {
            for level in LEVELS {
                for patient in [true, false] {
                    for polls in 0..=8 {
                        let key = format!("{op:?}-{level}-{patient}-{polls}");
                        put_at(&store, Durability::Buffered, &key, "old");
                        let (future, new) = start(&store, op, level, &key);
                        let ready = poll_then_drop(future, polls, patient);
                        let old = Some(b"old".to_vec());
                        let allowed = match (polls, ready) {
                            (0, _) => vec![old],
                            (_, true) => vec![new],
                            _ => vec![old, new],
                        };
                        expected.insert(key.clone(), Expect { allowed, point: key });
                        points.set(points.get() + 1);
                        if ready {
                            break;
                        }
                    }
                }
            }
        }
        block_on(store.sync()).unwrap();
        check(&store, &expected, None);
        let settled = expected.keys().map(|key| (key.clone(), get(&store, key))).collect();
        close(store);
        check(&env.open(), &expected, Some(&settled));
    });
    println!("{} points", points.get());
    assert!(points.get() >= 100, "{} points", points.get());
}

#[test]
fn a_write_dropped_after_its_group_is_submitted_runs_to_its_end() {
    let points = Cell::new(0);
    for_each_engine(|env| {
        for held in [Kind::Write, Kind::Sync] {
            let path = env.dir.path().join(format!("{held:?}"));
            let (backend, gate) = GatedIo::around(env.engine);
            let store = open(env.builder_at(&path).backend(backend));
            put(&store, "segment", "exists");
            let mut keys = Vec::new();
            for op in [Op::Put, Op::PutLarge, Op::Batch] {
                for polls in 1..=12 {
                    let key = format!("{op:?}-{polls}");
                    gate.close(held);
                    let (future, _) = start(&store, op, Durability::Synced, &key);
                    assert!(!poll_then_drop(future, polls, false), "{key} is ready although its {held:?} is held");
                    gate.wait_for_held(held, 1);
                    assert_eq!(get(&store, &key), None, "{key} is visible before it is durable");
                    gate.open(held);
                    // The dropped write was accepted before this put, and is durable when this put is.
                    put(&store, "behind", "it");
                    assert!(store.contains_key(&key), "the accepted {key} did not run to its end");
                    keys.push(key);
                    points.set(points.get() + 1);
                }
            }
            close(store);
            let store = open(env.builder_at(&path));
            assert!(keys.iter().all(|key| store.contains_key(key)));
        }
    });
    println!("{} points", points.get());
    assert!(points.get() >= 100, "{} points", points.get());
}

#[test]
fn reads_syncs_and_waits_can_be_dropped_at_any_poll() {
    let points = Cell::new(0);
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let long = Duration::from_secs(60);
        let store = open(env.builder().backend(backend).flush_interval(long).sync_interval(long));
        put(&store, "k", "v");
        for polls in 0..=8 {
            gate.close(Kind::Sync);
            let version = put_at(&store, Durability::Buffered, "k", polls.to_string());
            for (what, future) in [
                ("get", boxed(store.get("k"))),
                ("get absent", boxed(store.get("absent"))),
                ("wait_durable", boxed(store.wait_durable(version))),
                ("sync", boxed(store.sync())),
                ("delete absent", boxed(store.delete("absent"))),
            ] {
                let ready = poll_then_drop(future, polls, false);
                assert!(
                    !ready || what == "get" || what.ends_with("absent"),
                    "{what} was ready while its sync was held"
                );
                points.set(points.get() + 1);
            }
            gate.open(Kind::Sync);
            block_on(store.sync()).unwrap();
            assert_eq!(get(&store, "k"), Some(polls.to_string().into_bytes()));
            assert!(store.durable_version() >= version);
        }
        close(store);
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"8"[..]));
    });
    println!("{} points", points.get());
    assert!(points.get() >= 80, "{} points", points.get());
}

#[test]
fn a_cold_read_dropped_at_any_poll_leaves_no_trace() {
    for_each_engine(|env| {
        let store = env.open();
        for index in 0..50_u32 {
            put_at(&store, Durability::Written, index.to_le_bytes(), vec![index as u8; 100_000]);
        }
        close(store);
        let mut dropped = 0;
        for polls in 0..6 {
            drop_page_cache(env);
            let store = env.open();
            for index in 0..50_u32 {
                dropped += usize::from(!poll_then_drop(boxed(store.get(index.to_le_bytes())), polls, true));
            }
            for index in 0..50_u32 {
                assert_eq!(get(&store, index.to_le_bytes()), Some(vec![index as u8; 100_000]));
            }
            close(store);
        }
        println!("{dropped} reads dropped before they were ready");
        assert!(dropped >= 50);
    });
}

/// Asks the kernel to evict the store's files, so that reads wait for the disk.
fn drop_page_cache(env: &Env) {
    for segment in crate::helpers::files_with(&env.path(), "seg") {
        let file = fs::File::open(segment).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

#[test]
fn a_write_dropped_while_it_waits_for_admission_never_happened() {
    let points = Cell::new(0);
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(backend).staging_bytes(64 << 10));
        put(&store, "segment", "exists");
        for polls in 1..=10 {
            gate.close(Kind::Write);
            let mut accepted = Vec::new();
            let waiting = loop {
                let key = format!("{polls}-{}", accepted.len());
                let mut write = store.put(&key, vec![1; 20_000]).durability(Durability::Buffered);
                if poll_once(&mut write).is_pending() {
                    break (key, write);
                }
                accepted.push(key);
                assert!(accepted.len() < 100, "the store accepted 2 MB into a buffer of 64 KiB");
            };
            let (key, mut write) = waiting;
            for _ in 1..polls {
                assert!(poll_once(&mut write).is_pending());
            }
            drop(write);
            gate.open(Kind::Write);
            block_on(store.sync()).unwrap();
            assert!(!store.contains_key(&key), "{key} was not accepted, but is stored");
            assert!(accepted.iter().all(|key| store.contains_key(key)));
            // The dropped writer leaves no other writer waiting.
            put(&store, "behind", "it");
            points.set(points.get() + 1);
        }
        let keys = store.len();
        close(store);
        assert_eq!(env.open().len(), keys);
    });
    println!("{} points", points.get());
    assert!(points.get() >= 10);
}

#[test]
fn an_open_dropped_at_any_poll_leaves_the_directory_usable() {
    for_each_engine(|env| {
        let mut points = 0;
        for round in 0..4 {
            for patient in [true, false] {
                for polls in 0..=10 {
                    let opening = env.builder().segment_bytes(4 << 10).open();
                    let ready = poll_then_drop(boxed(opening), polls, patient);
                    assert!(polls > 0 || !ready);
                    assert!(
                        polls > 0 || round > 0 || points > 0 || !env.path().exists(),
                        "the directory exists before the first poll"
                    );
                    let store = open_when_free(env);
                    put(&store, format!("{points}"), vec![round; 200]);
                    points += 1;
                    assert_eq!(store.len(), points);
                    close(store);
                    if ready {
                        break;
                    }
                }
            }
        }
        println!("{points} points");
        assert!(points >= 10);
    });
}

/// An abandoned open runs to its end, and may hold the lock for a moment.
pub fn open_when_free(env: &Env) -> Store {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match block_on(env.open_future()) {
            Ok(store) => return store,
            Err(error) if error.kind() == ErrorKind::Locked && Instant::now() < deadline => std::thread::yield_now(),
            Err(error) => panic!("open: {error:?}"),
        }
    }
}

#[test]
fn a_close_dropped_after_its_first_poll_still_closes_the_store() {
    for_each_engine(|env| {
        let mut points = 0;
        for patient in [true, false] {
            for polls in 0..=10 {
                let store = env.open();
                assert_eq!(store.len(), points);
                put_at(&store, Durability::Buffered, format!("{points}"), "v");
                points += 1;
                let ready = poll_then_drop(boxed(store.close()), polls, patient);
                if polls == 0 {
                    put(&store, "0", "still open: nothing happens before the first poll");
                } else {
                    assert_eq!(block_on(store.put("x", "y")).unwrap_err().kind(), ErrorKind::Closed);
                }
                block_on(store.close()).unwrap();
                if ready {
                    break;
                }
            }
        }
        println!("{points} points");
        assert!(points >= 4);
    });
}

#[test]
fn forgotten_futures_do_no_harm() {
    for_each_backend(|env| {
        let store = env.open();
        // With a segment to go to, a write is accepted in its first poll.
        put(&store, "segment", "exists");
        for index in 0..200_u32 {
            let mut write = store.put(index.to_le_bytes(), vec![1; 3000]).durability(LEVELS[index as usize % 3]);
            let _ = poll_once(&mut write);
            std::mem::forget(write);
            let mut read = store.get(index.to_le_bytes());
            let _ = poll_once(&mut read);
            std::mem::forget(read);
            std::mem::forget(store.sync());
        }
        block_on(store.sync()).unwrap();
        assert_eq!(store.len(), 201);
        close(store);
    });
}

#[test]
fn ten_thousand_dropped_futures_leave_nothing_behind() {
    const NAME: &str = "cancellation::ten_thousand_dropped_futures_leave_nothing_behind";
    if is_child() {
        return drop_many();
    }
    for_each_engine(|env| print_report(&expect_success(rerun(NAME, env))));
}

fn drop_many() {
    let (engine, path) = child_env();
    let store = open(Store::builder(&path).engine(engine).segment_bytes(1 << 30));
    let drop_ten_thousand = || {
        for index in 0..10_000_u32 {
            let key = (index % 64).to_le_bytes();
            let mut write = store.put(key, [1; 200]).durability(LEVELS[index as usize % 3]);
            let _ = poll_once(&mut write);
            let mut read = store.get(key);
            let _ = poll_once(&mut read);
            let mut wait = store.wait_durable(store.durable_version());
            let _ = poll_once(&mut wait);
            if index % 100 == 0 {
                let _ = poll_once(&mut store.sync());
            }
        }
        block_on(store.sync()).unwrap();
    };
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    // Two runs let every buffer reach its final size.
    (0..2).for_each(|_| drop_ten_thousand());
    let (memory, open_files) = (resident_kib(), descriptors());
    (0..4).for_each(|_| drop_ten_thousand());
    let grown = resident_kib().saturating_sub(memory);
    // The first read that waits for the disk may start the engine's read thread and its ring.
    assert!(descriptors() <= open_files + 8, "{} descriptors after {open_files}", descriptors());
    assert!(grown < 8 << 10, "{grown} KiB of growth after 40,000 dropped writes and reads");
    println!("40,000 dropped writes and reads: {grown} KiB of growth, {open_files} descriptors");
    close(store);
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
