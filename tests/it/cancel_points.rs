//! Every public future, dropped after any number of polls, among others that are pending: the counted form of `cancel`.
//!
//! Each point is one future that is dropped before it is ready, or polled until it is. Several are pending at a time and go
//! in any order. Afterwards every key holds what its operation may have left, the store counts rightly, nothing waits for
//! anything, and a reopening shows the same.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::{Batch, CompactOptions, Compaction, Durability, PutOptions, Store};

use crate::cancel::{Boxed, boxed, open_when_free, poll_then_drop};
use crate::proof;
use crate::support::{Env, Rng, at, block_on, close, for_each_engine, get, put_at};

/// The futures there are, by the names of their types: a new one must be added to [`begin`], and here.
const FUTURES: [&str; 9] = ["Close", "Compact", "Delete", "Get", "Open", "Put", "Sync", "WaitDurable", "Write"];

/// Points of one store's life.
const POINTS_A_LIFE: u64 = 120;

/// Futures that are pending at a time.
const PENDING_MAX: usize = 6;

#[test]
fn every_public_future_is_among_those_that_are_dropped() {
    let source = include_str!("../../src/futures.rs");
    let is_future = |name: &&str| source.contains(&format!("Future for {name} "));
    let types = source.lines().filter_map(|line| line.strip_prefix("pub struct ")?.split([' ', '(', '<']).next());
    let mut found: Vec<&str> = types.filter(is_future).collect();
    found.sort_unstable();
    assert_eq!(found, FUTURES);
}

/// What a key may hold.
type Allowed = BTreeMap<String, Vec<Option<Vec<u8>>>>;

/// A future, and what its key holds before it and after it, if it has a key.
struct Begun {
    future: Boxed,
    writes: Option<(String, Option<Vec<u8>>)>,
}

/// Begins some operation on `key`, which holds "old".
fn begin(store: &Store, rng: &mut Rng, key: &str) -> Begun {
    let level = rng.level();
    let new = Some(b"new".to_vec());
    let write = |future, after| Begun { future, writes: Some((key.to_owned(), after)) };
    let look = |future| Begun { future, writes: None };
    match rng.below(12) {
        0 | 1 => write(boxed(store.put_with(key, "new", at(level))), new),
        2 => write(boxed(store.put(key, "new")), new),
        3 => write(boxed(store.put_bytes(key, Bytes::from_static(b"new"))), new),
        4 => write(boxed(store.put_with(key, vec![7; 60_000], at(level))), Some(vec![7; 60_000])),
        5 => write(boxed(store.delete_with(key, at(level))), None),
        6 => {
            let mut batch = Batch::new();
            batch.put(format!("{key}-beside"), "new").put(key, "new").durability(level);
            write(boxed(store.write(batch)), new)
        }
        7 => look(boxed(store.get(key))),
        8 => look(boxed(store.get("absent"))),
        9 => look(boxed(store.sync())),
        10 => look(boxed(store.wait_durable(store.durable_version()))),
        _ => look(boxed(store.compact(CompactOptions::new()))),
    }
}

fn open_some(env: &Env, rng: &mut Rng) -> Store {
    for polls in 0..rng.below(4) as usize {
        poll_then_drop(boxed(builder(env).open()), polls, rng.below(2) == 0);
    }
    open_when_free(env)
}

fn builder(env: &Env) -> ringcask::Builder {
    let quick = Duration::from_millis(2);
    let builder = env.builder().segment_bytes(64 << 10).flush_interval(quick).sync_interval(quick);
    builder.compaction(Compaction::new().automatic(false))
}

/// One future among others, for some polls. `true` if it came to its end.
fn poll_some(future: &mut Boxed, polls: u64) -> bool {
    (0..polls).any(|_| Pin::as_mut(future).poll(&mut Context::from_waker(Waker::noop())).is_ready())
}

/// Opens the store, drops futures, closes it; returns how many there were.
fn live(env: &Env, rng: &mut Rng, life: u64, allowed: &mut Allowed) -> u64 {
    let store = open_some(env, rng);
    let mut pending: Vec<Boxed> = Vec::new();
    for point in 0..POINTS_A_LIFE {
        let key = format!("{life}-{point}");
        put_at(&store, Durability::Buffered, &key, "old");
        let Begun { mut future, writes } = begin(&store, rng, &key);
        let (polls, patient) = (rng.below(7), rng.below(2) == 0);
        let is_ready = if rng.below(2) == 0 {
            poll_then_drop(future, polls as usize, patient)
        } else {
            let is_ready = poll_some(&mut future, polls);
            pending.push(future);
            is_ready
        };
        let old = Some(b"old".to_vec());
        let may_hold = match writes {
            Some((_, after)) if is_ready => vec![after],
            Some((_, after)) if polls > 0 => vec![old, after],
            _ => vec![old],
        };
        allowed.insert(key, may_hold);
        while pending.len() > PENDING_MAX || (!pending.is_empty() && rng.below(3) == 0) {
            let index = rng.below(pending.len() as u64) as usize;
            drop(pending.swap_remove(index));
        }
    }
    // Some are still pending when the store is closed, by a future that may be dropped too.
    if rng.below(2) == 0 {
        pending.clear();
    }
    let polls = rng.below(4) as usize;
    poll_then_drop(boxed(store.close()), polls, rng.below(2) == 0);
    close(store);
    drop(pending);
    POINTS_A_LIFE + 1
}

fn check(env: &Env, allowed: &mut Allowed) {
    let store = open_when_free(env);
    for (key, may_hold) in allowed.iter_mut() {
        let found = get(&store, key);
        assert!(may_hold.contains(&found), "{key} holds {:?} bytes", found.map(|found| found.len()));
        // What is there now stays.
        *may_hold = vec![found];
    }
    let stats = store.stats();
    assert!(!stats.poisoned, "{stats:?}");
    block_on(store.put_with("after", "all", PutOptions::new())).unwrap();
    close(store);
}

#[test]
fn every_future_can_be_dropped_at_any_poll() {
    let stage = proof::begin("cancellation points");
    let seed = Rng::seeded("cancellation points").next();
    let (floor, total) = (stage.floor().div_ceil(2), Cell::new(0));
    for_each_engine(|env| {
        let (mut rng, mut allowed, mut points, mut life) = (Rng::new(seed), Allowed::new(), 0, 0);
        while points < floor {
            points += live(env, &mut rng, life, &mut allowed);
            check(env, &mut allowed);
            life += 1;
        }
        total.set(total.get() + points);
    });
    stage.end(total.get(), &format!("seed {seed}"));
}
