//! Short histories of several keys, checked as a whole for linearizability.
//!
//! The check per key in `linearizability.rs` cannot see that two keys of a batch changed at different times. Here a
//! history is short enough to search all keys together. A few threads run a few operations each (puts, deletes, gets
//! and batches over two or three keys) while compactions run one after the other. On the real engines the threads are
//! real. In simulations they are futures on one thread, and a seed replays the run.
//!
//! All writes of a history have the same durability, because writes of different levels have no common order across
//! keys. A `Buffered` put over a `Synced` batch that waits for the disk is visible at once and stays the newer of the
//! two, so the batch becomes visible without that key. Each key alone still has an order.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use futures_util::future::{join, join_all};
use ringcask::testing::seeded_bug::{SeededBug, activate};
use ringcask::{Batch, Builder, Compaction, Durability, Engine, Store};

use crate::helpers::{Env, Rng, block_on, close, for_each_engine, in_simulation, is_child, open, rerun, text_of};
use crate::support::stages;

const CLIENTS: usize = 4;
const OPERATIONS: usize = 14;
const KEYS: usize = 3;

type Value = u32;
type State = [Option<Value>; KEYS];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    Put(usize, Value),
    /// The value, or the absence, that the batch leaves for each key that it changes.
    Batch([Option<Option<Value>>; KEYS]),
    Delete {
        key: usize,
        existed: bool,
    },
    Get {
        key: usize,
        found: Option<Value>,
    },
}

#[derive(Clone, Debug)]
struct Event {
    start: u64,
    end: u64,
    op: Op,
}

/// The operations of each client, in order.
type History = Vec<Vec<Event>>;

/// The state after `op`, if `op` can happen in `state`.
fn apply(mut state: State, op: &Op) -> Option<State> {
    match *op {
        Op::Put(key, value) => state[key] = Some(value),
        Op::Batch(members) => {
            for (slot, member) in state.iter_mut().zip(members) {
                *slot = member.unwrap_or(*slot);
            }
        }
        Op::Delete { key, existed } => {
            if existed != state[key].is_some() {
                return None;
            }
            state[key] = None;
        }
        Op::Get { key, found } => return (found == state[key]).then_some(state),
    }
    Some(state)
}

/// Whether some order explains the history, if all keys start absent.
fn is_linearizable(history: &History) -> bool {
    let mut visited = HashSet::new();
    let mut open = vec![(vec![0_usize; history.len()], [None; KEYS])];
    while let Some((done, state)) = open.pop() {
        if !visited.insert((done.clone(), state)) {
            continue;
        }
        let next = |client: usize| history[client].get(done[client]);
        // An event that ended before another one started must come before it.
        let Some(first_end) = (0..history.len()).filter_map(next).map(|event| event.end).min() else {
            return true;
        };
        for client in 0..history.len() {
            let Some(event) = next(client).filter(|event| event.start < first_end) else { continue };
            if let Some(after) = apply(state, &event.op) {
                let mut further = done.clone();
                further[client] += 1;
                open.push((further, after));
            }
        }
    }
    false
}

#[test]
fn the_checker_of_short_histories_accepts_good_and_rejects_bad_ones() {
    let event = |start, end, op| Event { start, end, op };
    let get = |key, found| Op::Get { key, found };
    let batch = |value| Op::Batch([Some(value), Some(value), None]);
    // A get during a batch may see it or not. Once part of the batch is seen, all of it is visible.
    let seen_then = |found| {
        let reader = vec![event(2, 3, get(0, Some(1))), event(4, 5, get(1, found))];
        is_linearizable(&vec![vec![event(1, 9, batch(Some(1)))], reader])
    };
    assert!(seen_then(Some(1)) && !seen_then(None), "half a batch");
    // One of two concurrent batches wins all keys.
    let winners = |first, second| {
        let batches = [1, 2].map(|value| vec![event(1, 9, batch(Some(value)))]);
        let reader = vec![event(10, 11, get(0, Some(first))), event(12, 13, get(1, Some(second)))];
        is_linearizable(&batches.into_iter().chain([reader]).collect())
    };
    assert!(winners(1, 1) && winners(2, 2) && !winners(1, 2) && !winners(2, 1), "batches mixed up");
    // A delete reports correctly whether the key existed, and is visible.
    let put_then = |op| is_linearizable(&vec![vec![event(1, 2, Op::Put(2, 7))], vec![event(3, 4, op)]]);
    assert!(put_then(Op::Delete { key: 2, existed: true }) && !put_then(Op::Delete { key: 2, existed: false }));
    assert!(put_then(get(2, Some(7))) && !put_then(get(2, None)) && !put_then(get(2, Some(8))));
    // The same for a batch that deletes.
    let deleted_then = |found| {
        let first = vec![event(1, 2, batch(Some(7))), event(3, 4, batch(None))];
        is_linearizable(&vec![first, vec![event(5, 6, get(0, found))]])
    };
    assert!(deleted_then(None) && !deleted_then(Some(7)));
}

/// Values are long enough that segments fill and are compacted.
fn bytes(value: Value) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn level(rng: &mut Rng) -> Durability {
    // A sync takes as long as a hundred other operations. Few are synced, so that operations overlap.
    match rng.below(12) {
        0 => Durability::Synced,
        1..4 => Durability::Written,
        _ => Durability::Buffered,
    }
}

/// Runs the next operation of a client.
async fn operate(store: &Store, label: &str, (keys, level): (usize, Durability), unique: Value, rng: &mut Rng) -> Op {
    let key = rng.below(keys as u64) as usize;
    let name = |key: usize| format!("{label}-{key}");
    match rng.below(10) {
        0..2 => {
            let put = store.put(name(key), bytes(unique)).durability(level);
            if rng.below(2) == 0 { put.submit().unwrap().await } else { put.await }.unwrap();
            Op::Put(key, unique)
        }
        2..4 => {
            let mut members = [None; KEYS];
            let mut batch = Batch::new();
            for (key, member) in members.iter_mut().enumerate().take(keys) {
                if rng.below(4) == 0 {
                    batch.delete(name(key));
                    *member = Some(None);
                } else {
                    batch.put(name(key), bytes(unique));
                    *member = Some(Some(unique));
                }
            }
            store.write(batch).durability(level).await.unwrap();
            Op::Batch(members)
        }
        4 => Op::Delete { key, existed: store.delete(name(key)).durability(level).await.unwrap() },
        _ => {
            let found = store.get(name(key)).await.unwrap();
            Op::Get { key, found: found.map(|value| Value::from_le_bytes(value[..4].try_into().unwrap())) }
        }
    }
}

/// Runs the operations of one client in history number `history`.
async fn client(store: &Store, clock: &AtomicU64, seed: u64, history: u64, client: usize) -> Vec<Event> {
    let mut shape = Rng::new(seed ^ history << 20);
    let (clients, keys, level) = (3 + shape.below(2) as usize, 2 + shape.below(2) as usize, level(&mut shape));
    let mut events = Vec::new();
    if client >= clients {
        return events;
    }
    let mut rng = Rng::new(seed ^ history << 20 ^ (client as u64 + 1) << 8);
    for index in 0..OPERATIONS / clients {
        let unique = (client * OPERATIONS + index + 1) as Value;
        let start = clock.fetch_add(1, Ordering::SeqCst);
        let op = operate(store, &format!("{seed}-{history}"), (keys, level), unique, &mut rng).await;
        let end = clock.fetch_add(1, Ordering::SeqCst);
        events.push(Event { start, end, op });
    }
    events
}

fn builder(env: &Env) -> Builder {
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    let quick = Duration::from_millis(1);
    env.builder().segment_bytes(8 << 10).compaction(compaction).flush_interval(quick).sync_interval(quick)
}

/// Runs and checks `histories` histories on real threads.
fn on_threads(env: &Env, seed: u64, histories: u64) {
    let store = open(builder(env));
    let (clock, barrier) = (Arc::new(AtomicU64::new(0)), Arc::new(Barrier::new(CLIENTS)));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (store, clock, barrier) = (store.clone(), clock.clone(), barrier.clone());
            let one = move |history| {
                barrier.wait();
                block_on(client(&store, &clock, seed, history, number))
            };
            thread::spawn(move || (0..histories).map(one).collect::<Vec<_>>())
        })
        .collect();
    let (compacting, over) = (store.clone(), is_over.clone());
    let compactor = thread::spawn(move || {
        let mut jobs = 0;
        while !over.load(Ordering::Relaxed) {
            block_on(compacting.compact()).unwrap();
            jobs += 1;
        }
        jobs
    });
    let parts: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    is_over.store(true, Ordering::Relaxed);
    println!("{histories} histories during {} compactions", compactor.join().unwrap());
    close(store);
    for number in 0..histories as usize {
        let history: History = parts.iter().map(|part| part[number].clone()).collect();
        assert!(is_linearizable(&history), "seed {seed}, history {number}: {history:?}");
    }
}

/// The number of histories per simulated store.
const OF_A_SIMULATION: u64 = 10;

fn simulated(seed: u64) {
    in_simulation(seed, |env| {
        let store = open(builder(env));
        let (clock, is_over) = (AtomicU64::new(0), Cell::new(false));
        let histories = RefCell::new(Vec::new());
        let clients = async {
            for history in 0..OF_A_SIMULATION {
                let parts = join_all((0..CLIENTS).map(|number| client(&store, &clock, seed, history, number))).await;
                histories.borrow_mut().push(parts);
            }
            is_over.set(true);
        };
        let compactor = async {
            while !is_over.get() {
                store.compact().await.unwrap();
            }
        };
        block_on(join(clients, compactor));
        for (number, history) in histories.take().iter().enumerate() {
            assert!(is_linearizable(history), "RINGCASK_SEED={seed}, history {number}: {history:?}");
        }
        close(store.clone());
    });
}

#[test]
fn short_histories_are_linearizable_over_all_keys() {
    let stage = stages::begin("small histories");
    let only = stages::number("RINGCASK_SEED");
    let first = only.unwrap_or_else(stages::first_seed);
    let (each, total) = (stage.floor().div_ceil(4), Cell::new(0));
    for_each_engine(|env| {
        on_threads(env, first, each);
        total.set(total.get() + each);
    });
    // Simulations fill in for a real engine that cannot run here.
    let (real, missing) = (total.get(), stage.floor().saturating_sub(total.get()));
    let seeds = if only.is_some() { 1 } else { missing.div_ceil(OF_A_SIMULATION) };
    (first..first + seeds).for_each(simulated);
    let simulated = seeds * OF_A_SIMULATION;
    stage.end(real + simulated, &format!("{real} on real threads, {simulated} simulated, from seed {first}"));
}

/// The number of simulations in which a seeded bug must be found.
const SEEDS_WITH_A_BUG: u64 = 2_000;

#[test]
fn short_histories_find_a_seeded_bug() {
    const NAME: &str = "small_histories::short_histories_find_a_seeded_bug";
    if is_child() {
        activate(Some(SeededBug::RelocateUnconditionally));
        return (1..SEEDS_WITH_A_BUG).for_each(simulated);
    }
    let output = rerun(NAME, &Env::new(Engine::Threads)).output().unwrap();
    let text = text_of(&output);
    assert!(!output.status.success() && text.contains("RINGCASK_SEED="), "the seeded bug was not found: {text}");
    let seed = text.split("RINGCASK_SEED=").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    println!("a compaction that repoints overwritten keys was found in the simulation of seed {seed}");
}
