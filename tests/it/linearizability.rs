//! Histories of single keys on real threads, checked for linearizability.
//!
//! Threads put, delete and get a few keys. Each operation takes a tick before it starts and one after it ends. A
//! history is linearizable if the operations of each key can be put in one order, each at a moment between its two
//! ticks, in which every get returns the value of the last write, and every delete reports correctly whether the key
//! existed. Keys are independent, so each is checked alone. The search is Wing and Gong's with Lowe's cache of visited
//! states. A thread has one operation at a time, so a state is the progress of each thread and the value of the key.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ringcask::{Batch, Store};

use crate::helpers::{Rng, block_on, close, for_each_engine, open};
use crate::support::stages;

const THREADS: usize = 4;
const OPERATIONS: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Put(u64),
    Delete { existed: bool },
    Get { found: Option<u64> },
}

#[derive(Clone, Copy, Debug)]
struct Event {
    start: u64,
    end: u64,
    op: Op,
}

/// The operations of each thread on one key, in order.
type History = [Vec<Event>; THREADS];

/// The state after `op`, if `op` can happen in `state`.
fn apply(state: Option<u64>, op: Op) -> Option<Option<u64>> {
    match op {
        Op::Put(value) => Some(Some(value)),
        Op::Delete { existed } => (existed == state.is_some()).then_some(None),
        Op::Get { found } => (found == state).then_some(state),
    }
}

/// Whether some order explains the history, if the key starts absent.
fn is_linearizable(history: &History) -> bool {
    let mut visited = HashSet::new();
    let mut open = vec![([0_usize; THREADS], None)];
    while let Some((done, state)) = open.pop() {
        if !visited.insert((done, state)) {
            continue;
        }
        let next = |thread: usize| history[thread].get(done[thread]);
        // An event that ended before another one started must come before it.
        let Some(first_end) = (0..THREADS).filter_map(next).map(|event| event.end).min() else {
            return true;
        };
        for thread in 0..THREADS {
            let Some(event) = next(thread).filter(|event| event.start < first_end) else { continue };
            if let Some(after) = apply(state, event.op) {
                let mut further = done;
                further[thread] += 1;
                open.push((further, after));
            }
        }
    }
    false
}

#[test]
fn the_checker_accepts_good_histories_and_rejects_bad_ones() {
    let event = |start, end, op| Event { start, end, op };
    let get = |found| Op::Get { found };
    let with = |threads: [Vec<Event>; 2]| {
        let [first, second] = threads;
        is_linearizable(&[first, second, Vec::new(), Vec::new()])
    };
    // A get during a put may see the value or not. A get after the put must see it.
    assert!(with([vec![event(1, 5, Op::Put(1))], vec![event(2, 3, get(None)), event(4, 6, get(Some(1)))]]));
    assert!(!with([vec![event(1, 2, Op::Put(1))], vec![event(3, 4, get(None))]]));
    // A value that was seen must not disappear.
    assert!(!with([vec![event(1, 9, Op::Put(1))], vec![event(2, 3, get(Some(1))), event(4, 5, get(None))]]));
    // Two deletes of one value cannot both find it.
    let both = |existed| {
        let put = event(1, 2, Op::Put(1));
        let delete = event(3, 6, Op::Delete { existed: true });
        with([vec![put, delete], vec![event(4, 5, Op::Delete { existed })]])
    };
    assert!(both(false) && !both(true));
    // A delete must not report "absent" while the value exists.
    assert!(!with([vec![event(1, 2, Op::Put(1))], vec![event(3, 4, Op::Delete { existed: false })]]));
    // A value that was never put, and two puts seen in an impossible order.
    assert!(!with([vec![event(1, 2, Op::Put(1))], vec![event(3, 4, get(Some(2)))]]));
    let puts = vec![event(1, 2, Op::Put(1)), event(3, 4, Op::Put(2))];
    assert!(!with([puts, vec![event(5, 6, get(Some(1)))]]));
}

/// Runs the threads. Returns a history per key.
fn record(store: &Store, keys: u64, seed: u64, label: &str) -> Vec<History> {
    let clock = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS as u64)
        .map(|thread| {
            let (store, clock, label) = (store.clone(), clock.clone(), label.to_owned());
            thread::spawn(move || {
                let mut rng = Rng::new(seed ^ (thread + 1));
                let mut events = Vec::with_capacity(OPERATIONS);
                for index in 0..OPERATIONS as u64 {
                    let key = rng.below(keys);
                    let name = format!("{label}-{key}");
                    let unique = thread << 32 | index;
                    let start = clock.fetch_add(1, Ordering::SeqCst);
                    let op = operate(&store, &name, unique, &mut rng);
                    let end = clock.fetch_add(1, Ordering::SeqCst);
                    events.push((key as usize, Event { start, end, op }));
                }
                events
            })
        })
        .collect();
    let mut histories: Vec<History> = (0..keys).map(|_| History::default()).collect();
    for (thread, events) in threads.into_iter().enumerate() {
        for (key, event) in events.join().unwrap() {
            histories[key][thread].push(event);
        }
    }
    histories
}

fn operate(store: &Store, key: &str, unique: u64, rng: &mut Rng) -> Op {
    let level = rng.level();
    match rng.below(10) {
        0..3 => {
            let put = store.put(key, unique.to_le_bytes()).durability(level);
            if rng.below(2) == 0 { block_on(put.submit().unwrap()) } else { block_on(put) }.unwrap();
            Op::Put(unique)
        }
        3 => {
            // No other member of the batch touches this key, so the batch acts as a put of it.
            let mut batch = Batch::new();
            batch.put(format!("{key}-other"), "x").put(key, unique.to_le_bytes());
            block_on(store.write(batch).durability(level)).unwrap();
            Op::Put(unique)
        }
        4..6 => {
            let delete = store.delete(key).durability(level);
            let existed = if rng.below(2) == 0 { block_on(delete.submit().unwrap()) } else { block_on(delete) };
            Op::Delete { existed: existed.unwrap() }
        }
        _ => {
            let found = block_on(store.get(key)).unwrap();
            Op::Get { found: found.map(|value| u64::from_le_bytes(value[..].try_into().unwrap())) }
        }
    }
}

#[test]
fn every_key_is_linearizable() {
    let stage = stages::begin("histories");
    let (seed, histories, total) = (Rng::seeded("linearizability").next(), stage.floor().div_ceil(2), Cell::new(0));
    for_each_engine(|env| {
        // Segments are small, so that histories cross many rotations and reads find values in all locations.
        let builder = env.builder().segment_bytes(32 << 10).flush_interval(Duration::from_millis(1));
        let store = open(builder.sync_interval(Duration::from_millis(3)));
        let (mut checked, mut operations) = (0, 0);
        for history in 0..histories {
            let keys = 3 + history % 3;
            let label = format!("h{history}");
            for (key, events) in record(&store, keys, seed.wrapping_add(history << 8), &label).into_iter().enumerate() {
                operations += events.iter().map(Vec::len).sum::<usize>();
                assert!(is_linearizable(&events), "seed {seed}, history {history}, key {key}: {events:#?}");
            }
            checked += 1;
        }
        close(store);
        println!("{checked} histories, {operations} operations of {THREADS} threads");
        assert_eq!(operations, checked as usize * THREADS * OPERATIONS);
        total.set(total.get() + checked);
    });
    stage.end(total.get(), &format!("seed {seed}"));
}
