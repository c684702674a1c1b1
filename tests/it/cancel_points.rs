//! Every public future, dropped after each possible number of polls.
//!
//! A round uses one store on one backend. Each call starts and is dropped after every number of polls: with and without
//! waiting for its waker, on an idle store, among writers that wait for admission, and behind a write of the same key.
//! At the end, each write must have happened as a whole or not at all, before and after a reopen. Concurrent calls must
//! have completed, the counters must add up, and no waker may still be held.
//!
//! [`the_sweeps_cover_every_future_of_the_crate`] reads the source, so that a new future cannot be left out.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::{Batch, Builder, Compaction, Durability, Engine, ErrorKind, Result, Store};

use crate::helpers::{Env, LEVELS, block_on, close, get, in_simulation, open, put_at, skip, uring_refused};
use crate::support::stages;

type Boxed = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// The public calls that return a future, each with the future's name. Each is a [`Call`] or has a separate sweep.
const CALLS: [(&str, &str); 15] = [
    ("open", "Open"),
    ("open", "Open"),
    ("get", "Get"),
    ("multi_get", "MultiGet"),
    ("put", "Put"),
    ("put_bytes", "Put"),
    ("delete", "Delete"),
    ("write", "Write"),
    ("sync", "Sync"),
    ("wait_durable", "WaitDurable"),
    ("compact", "Compact"),
    ("close", "Close"),
    // On the futures of a put, a delete and a batch.
    ("submit", "Submitted"),
    ("submit", "Submitted"),
    ("submit", "Submitted"),
];

#[test]
fn the_sweeps_cover_every_future_of_the_crate() {
    let futures = [
        include_str!("../../src/store/futures.rs"),
        include_str!("../../src/store/open.rs"),
        include_str!("../../src/store/multi_get.rs"),
    ]
    .concat();
    let named: BTreeSet<&str> = futures
        .lines()
        .filter_map(|line| {
            line.strip_prefix("impl Future for ").or(line.strip_prefix("impl<T> Future for "))?.strip_suffix(" {")
        })
        .map(|name| name.trim_end_matches("<T>"))
        .filter(|name| futures.contains(&format!("pub struct {name}")))
        .collect();
    assert_eq!(named, CALLS.iter().map(|(_, future)| *future).collect());
    let sources =
        [include_str!("../../src/store/mod.rs"), include_str!("../../src/store/builder.rs"), &futures].concat();
    let mut found: Vec<(&str, &str)> = Vec::new();
    for declaration in sources.split("\n    pub fn ").skip(1) {
        let head = declaration.split(" {").next().unwrap();
        let Some((_, returned)) = head.split_once("-> ") else { continue };
        let returned = returned.trim_start_matches("Result<").split('<').next().unwrap();
        if named.contains(returned) || returned.contains("Future") {
            found.push((declaration.split(['(', '<']).next().unwrap(), returned));
        }
    }
    let sorted = |mut calls: Vec<_>| {
        calls.sort_unstable();
        calls
    };
    assert_eq!(sorted(found), sorted(CALLS.to_vec()), "the futures of the crate and the futures that the sweeps drop");
}

/// Passes a wake-up on, and counts the holders of its waker.
#[derive(Default)]
struct Forward(Mutex<Option<Waker>>);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        if let Some(waker) = self.0.lock().unwrap().take() {
            waker.wake();
        }
    }
}

/// Polls a future a given number of times and drops it; returns its output if it was ready.
struct Polls {
    future: Option<Boxed>,
    left: usize,
    is_patient: bool,
    forward: Arc<Forward>,
}

impl Future for Polls {
    type Output = Option<Result<()>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(future) = this.future.as_mut().filter(|_| this.left > 0) else {
            this.future = None;
            return Poll::Ready(None);
        };
        this.left -= 1;
        *this.forward.0.lock().unwrap() = Some(cx.waker().clone());
        let waker = Waker::from(this.forward.clone());
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if this.left == 0 => {
                this.future = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                if !this.is_patient {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

fn boxed<T: 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Boxed {
    Box::pin(async move { future.await.map(drop) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Get,
    MultiGet,
    Put,
    PutBytes,
    Delete,
    DeleteAbsent,
    Write,
    SubmitPut,
    SubmitDelete,
    SubmitWrite,
    Sync,
    WaitDurable,
    Compact,
}

impl Call {
    const ALL: [Self; 13] = [
        Self::Get,
        Self::MultiGet,
        Self::Put,
        Self::PutBytes,
        Self::Delete,
        Self::DeleteAbsent,
        Self::Write,
        Self::SubmitPut,
        Self::SubmitDelete,
        Self::SubmitWrite,
        Self::Sync,
        Self::WaitDurable,
        Self::Compact,
    ];

    /// Whether the call submits a write, which then happens without a poll.
    fn is_submitted(self) -> bool {
        matches!(self, Self::SubmitPut | Self::SubmitDelete | Self::SubmitWrite)
    }

    fn levels(self) -> &'static [Durability] {
        let is_write =
            matches!(self, Self::Put | Self::Delete | Self::DeleteAbsent | Self::Write) || self.is_submitted();
        if is_write { &LEVELS } else { &[Durability::Synced] }
    }

    /// The value, or the absence, that the call leaves for `key`, if it changes the key.
    fn effect(self) -> Option<Option<Vec<u8>>> {
        match self {
            Self::Put | Self::Write | Self::SubmitPut | Self::SubmitWrite => Some(Some(b"new".to_vec())),
            Self::PutBytes => Some(Some(vec![7; 70_000])),
            Self::Delete | Self::SubmitDelete => Some(None),
            _ => None,
        }
    }

    fn begin(self, store: &Store, key: &str, level: Durability) -> Boxed {
        match self {
            Self::Get => boxed(store.get(key)),
            Self::MultiGet => boxed(store.multi_get([key, "absent", key])),
            Self::Put => boxed(store.put(key, "new").durability(level)),
            Self::PutBytes => boxed(store.put_bytes(key, Bytes::from(vec![7; 70_000]))),
            Self::Delete => boxed(store.delete(key).durability(level)),
            Self::DeleteAbsent => boxed(store.delete(format!("{key}-absent")).durability(level)),
            Self::SubmitPut => boxed(store.put(key, "new").durability(level).submit().unwrap()),
            Self::SubmitDelete => boxed(store.delete(key).durability(level).submit().unwrap()),
            Self::SubmitWrite => boxed(store.write(batch_of_three(key)).durability(level).submit().unwrap()),
            Self::Write => boxed(store.write(batch_of_three(key)).durability(level)),
            Self::Sync => boxed(store.sync()),
            Self::WaitDurable => boxed(store.wait_durable(put_at(store, Durability::Buffered, key, "old"))),
            Self::Compact => boxed(store.compact()),
        }
    }
}

fn batch_of_three(key: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(format!("{key}-a"), "new").put(key, "new").put(format!("{key}-b"), "new");
    batch
}

/// Activity beside the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// Writes that fill the buffer, and one that waits for admission.
    Crowd,
    /// A write of the same key that is not durable yet.
    SameKey,
}

/// An impatient caller needs no more polls: nothing happens between them.
const IMPATIENT_POLLS: usize = 4;
/// An upper bound for the polls of any call.
const MAX_POLLS: usize = 300;

#[derive(Default)]
struct Round {
    /// The allowed values of each key.
    allowed: BTreeMap<String, Vec<Option<Vec<u8>>>>,
    wakers: Vec<Weak<Forward>>,
    points: u64,
    /// The number of puts that certainly happened, and of those that may have.
    puts: (u64, u64),
}

impl Round {
    fn polls(&mut self, future: Boxed, left: usize, is_patient: bool) -> Polls {
        let forward = Arc::new(Forward::default());
        self.wakers.push(Arc::downgrade(&forward));
        self.points += 1;
        Polls { future: Some(future), left, is_patient, forward }
    }

    fn put(&mut self, store: &Store, key: &str, value: &str) {
        put_at(store, Durability::Buffered, key, value);
        self.puts.0 += 1;
        self.allowed.insert(key.into(), vec![Some(value.into())]);
    }

    /// Starts `call` and drops it after `polls` polls. Returns whether it was ready.
    fn drop_after(
        &mut self,
        store: &Store,
        (call, level, beside): (Call, Durability, Beside),
        polls: usize,
        patient: bool,
    ) -> bool {
        let key = format!("{call:?}-{level}-{beside:?}-{patient}-{polls}");
        self.put(store, &key, "old");
        let mut neighbours = Vec::new();
        let mut beside_it = |key: String, len: usize, level| {
            let value = vec![b'n'; len];
            let mut future = boxed(store.put(&key, &value).durability(level));
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            self.puts.0 += 1;
            self.allowed.insert(key, vec![Some(value)]);
            match polled {
                Poll::Ready(result) => result.unwrap(),
                Poll::Pending => neighbours.push(future),
            }
        };
        match beside {
            Beside::Nothing => {}
            Beside::Crowd => (0..3).for_each(|index| beside_it(format!("{key}-crowd-{index}"), 30_000, LEVELS[index])),
            Beside::SameKey => beside_it(key.clone(), 100, Durability::Synced),
        }
        if call == Call::WaitDurable {
            self.puts.0 += 1;
        }
        let future = call.begin(store, &key, level);
        if call == Call::WaitDurable {
            self.allowed.insert(key.clone(), vec![Some(b"old".to_vec())]);
        }
        let polls_future = self.polls(future, polls, patient);
        let ready = block_on(polls_future);
        if let Some(result) = &ready {
            assert!(result.is_ok(), "{key}: {result:?}");
        }
        if let Some(after) = call.effect() {
            let allowed = self.allowed.get_mut(&key).unwrap();
            match (polls, ready.is_some()) {
                _ if call.is_submitted() => *allowed = vec![after],
                (0, _) => {}
                (_, true) => *allowed = vec![after],
                _ => allowed.push(after),
            }
            self.puts.0 += u64::from(call == Call::SubmitPut);
            if matches!(call, Call::Put | Call::PutBytes) {
                self.puts.0 += u64::from(ready.is_some());
                self.puts.1 += u64::from(ready.is_none() && polls > 0);
            }
        }
        for future in neighbours {
            block_on(future).unwrap_or_else(|error| panic!("beside {key}: {error:?}"));
        }
        ready.is_some()
    }

    /// Checks that every key holds an allowed value. Returns the values.
    fn check(&self, store: &Store) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        for (key, allowed) in &self.allowed {
            let value = get(store, key);
            let short = value.as_ref().map(Vec::len);
            assert!(allowed.contains(&value), "{key} holds {short:?} bytes");
            let members = ["a", "b"].map(|end| format!("{key}-{end}"));
            let both = members.each_ref().map(|member| get(store, member));
            assert_eq!(both[0], both[1], "half of {key}");
            if both[0].is_some() {
                assert_eq!(both[0], value, "half of {key}");
            }
            let whole =
                (key.starts_with("Write") || key.starts_with("SubmitWrite")) && value.as_deref() == Some(b"new");
            assert!(!whole || both[0].is_some(), "half of {key}");
            found.extend(members.into_iter().zip(both));
            found.insert(key.clone(), value);
        }
        let present = found.values().filter(|value| value.is_some()).count();
        assert_eq!(store.len(), present, "number of keys");
        found
    }
}

fn builder(env: &Env) -> Builder {
    let quick = Duration::from_millis(2);
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    let builder = env.builder().segment_bytes(256 << 10).staging_bytes(64 << 10).compaction(compaction);
    builder.flush_interval(quick).sync_interval(quick)
}

/// Runs all calls except `open` and `close` on one store. Returns the number of cancellation points.
fn every_call(env: &Env) -> u64 {
    let store = open(builder(env));
    let mut round = Round::default();
    for call in Call::ALL {
        for &level in call.levels() {
            for beside in [Beside::Nothing, Beside::Crowd, Beside::SameKey] {
                for patient in [true, false] {
                    let last = if patient { MAX_POLLS } else { IMPATIENT_POLLS };
                    let was_ready =
                        (0..=last).any(|polls| round.drop_after(&store, (call, level, beside), polls, patient));
                    assert!(was_ready || !patient, "{call:?} is not ready after {last} polls");
                }
            }
        }
    }
    block_on(store.sync()).unwrap();
    let found = round.check(&store);
    let stats = store.stats();
    let (least, most) = (round.puts.0, round.puts.0 + round.puts.1);
    assert!((least..=most).contains(&stats.puts), "{} puts counted of {least} to {most}", stats.puts);
    assert_eq!(stats.staged_bytes, 0, "records of dropped writes are still staged");
    close(store.clone());
    // The handle keeps all lists of the store alive.
    let held = round.wakers.iter().filter(|waker| waker.strong_count() > 0).count();
    assert_eq!(held, 0, "wakers of dropped futures are held");
    drop(store);
    let reopened = open(builder(env));
    assert_eq!(round.check(&reopened), found, "the values after the reopen");
    assert_eq!(reopened.stats().live_bytes, stats.live_bytes, "live bytes after the reopen");
    close(reopened);
    round.points
}

/// Drops opens and closes after every number of polls. Returns the number of cancellation points.
fn opens_and_closes(env: &Env) -> u64 {
    let mut round = Round::default();
    for (patient, last) in [(true, MAX_POLLS), (false, IMPATIENT_POLLS)] {
        for polls in 0..=last {
            let opening = round.polls(boxed(builder(env).open()), polls, patient);
            let was_opened = block_on(opening).map(Result::unwrap).is_some();
            let store = open_when_free(env);
            round.put(&store, &format!("{patient}-{polls}"), "value");
            let closing = round.polls(boxed(store.close()), polls, patient);
            let was_closed = block_on(closing).map(Result::unwrap).is_some();
            if polls == 0 {
                put_at(&store, Durability::Synced, "open", "still");
                round.allowed.insert("open".into(), vec![Some(b"still".to_vec())]);
            } else {
                assert_eq!(block_on(store.get("open")).unwrap_err().kind(), ErrorKind::Closed);
            }
            close(store);
            if was_opened && was_closed {
                break;
            }
            assert!(!patient || polls < last, "neither open nor closed after {last} polls");
        }
    }
    let store = open_when_free(env);
    round.check(&store);
    close(store);
    round.points
}

/// A store whose open was dropped closes a moment later.
fn open_when_free(env: &Env) -> Store {
    let deadline = std::time::Instant::now() + crate::helpers::DEADLINE;
    loop {
        match block_on(builder(env).open()) {
            Ok(store) => return store,
            Err(error) if error.kind() == ErrorKind::Locked && std::time::Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("open: {error:?}"),
        }
    }
}

#[test]
fn every_future_can_be_dropped_after_any_poll() {
    let stage = stages::begin("cancellation points");
    let only = stages::number("RINGCASK_SEED");
    let (first, floor) = (only.unwrap_or_else(stages::first_seed), stage.floor());
    let (mut points, mut seed) = ([0_u64; 3], first);
    // Most points are in simulations, where every seed gives another order of events.
    while seed == first || (only.is_none() && points.iter().sum::<u64>() < floor) {
        let is_due = seed == first || points[2] > 3 * (points[0] + points[1]);
        for (index, engine) in [Engine::Threads, Engine::Uring].into_iter().enumerate().filter(|_| is_due) {
            match uring_refused().filter(|_| engine == Engine::Uring) {
                Some(why) => skip("engine uring", why),
                None => points[index] += every_call(&Env::new(engine)) + opens_and_closes(&Env::new(engine)),
            }
        }
        let simulated = std::cell::Cell::new(0);
        println!("RINGCASK_SEED={seed}");
        in_simulation(seed, |env| simulated.set(simulated.get() + every_call(env)));
        in_simulation(seed, |env| simulated.set(simulated.get() + opens_and_closes(env)));
        points[2] += simulated.get();
        seed += 1;
    }
    let [threads, uring, sim] = points;
    let note = format!("threads {threads}, uring {uring}, simulated {sim}, from seed {first}");
    stage.end(threads + uring + sim, &note);
}
