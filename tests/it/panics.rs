//! Panics of the store's tasks, of wakers, and of callers that hold futures; and forgotten futures.
//!
//! After any panic, every waiting caller gets a result, no acknowledged write is lost, and the store can be closed and
//! reopened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Once, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use ringcask::bytes::Bytes;
use ringcask::{Batch, Builder, Compaction, ErrorKind, Result, Store};

use crate::helpers::gated_io::{Gate, GatedIo, Kind};
use crate::helpers::{
    DEADLINE, Env, LEVELS, block_on, close, eventually, for_each_engine, get, open, poll_once, put, skip,
};

const KINDS: [Kind; 3] = [Kind::Write, Kind::Sync, Kind::Read];

type Boxed = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Boxed {
    Box::pin(async move { future.await.map(drop) })
}

/// Suppresses the backtraces of expected panics, whose messages contain "on purpose".
pub fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let literal = payload.downcast_ref::<&str>().copied();
            let text = literal.or(payload.downcast_ref::<String>().map(String::as_str));
            if !text.is_some_and(|text| text.contains("on purpose")) {
                hook(info);
            }
        }));
    });
}

/// Runs `body` on a separate thread, so that a hang is a failure.
#[track_caller]
fn with_deadline(what: &str, body: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let runner = thread::spawn(move || {
        body();
        done.send(()).unwrap();
    });
    match is_done.recv_timeout(DEADLINE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
    }
    if let Err(panic) = runner.join() {
        println!("{what}:");
        std::panic::resume_unwind(panic);
    }
}

fn builder(env: &Env, name: &str) -> Builder {
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    env.builder_at(env.dir.path().join(name)).staging_bytes(64 << 10).segment_bytes(256 << 10).compaction(compaction)
}

/// Creates a store with sealed segments that are worth a compaction by two threads.
fn stock(builder: Builder) {
    let store = open(builder);
    for index in 0..60_u32 {
        put(&store, index.to_le_bytes(), vec![index as u8; 20_000]);
    }
    for index in (0..60_u32).step_by(5) {
        put(&store, index.to_le_bytes(), "overwritten");
    }
    close(store);
}

fn assert_stock(store: &Store) {
    for index in 0..60_u32 {
        let expected = if index % 5 == 0 { b"overwritten".to_vec() } else { vec![index as u8; 20_000] };
        assert_eq!(get(store, index.to_le_bytes()), Some(expected), "{index}");
    }
}

/// One call of every kind, each with the key that it writes, if any.
fn all_calls(store: &Store, round: usize) -> Vec<(Option<String>, Boxed)> {
    let mut calls = Vec::new();
    for level in LEVELS {
        let key = format!("{round}-{level}");
        calls.push((Some(key.clone()), boxed(store.put(&key, vec![1; 9000]).durability(level))));
        calls.push((None, boxed(store.delete(format!("{key}-gone")).durability(level))));
    }
    let (shared, batch_key) = (format!("{round}-shared"), format!("{round}-batch"));
    calls.push((Some(shared.clone()), boxed(store.put_bytes(shared, Bytes::from(vec![2; 70_000])))));
    let mut batch = Batch::new();
    batch.put(&batch_key, "b").put("other", "b");
    calls.push((Some(batch_key), boxed(store.write(batch))));
    calls.push((None, boxed(store.sync())));
    calls.push((None, boxed(store.get(7_u32.to_le_bytes()))));
    calls.push((None, boxed(store.compact())));
    calls
}

/// Makes `thread` panic after `spared` operations of `kind`, with calls of every kind in progress. Returns whether it
/// did.
fn panic_once(env: &Env, kind: Kind, thread: &'static str, spared: u64) -> bool {
    let name = format!("{thread}-{kind:?}-{spared}");
    let (backend, gate) = GatedIo::around(env.engine);
    stock(builder(env, &name));
    let store = open(builder(env, &name).backend(backend));
    gate.panic_in(kind, thread, spared);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut calls = all_calls(&store, round);
        // All calls start before the first is awaited.
        let mut results: Vec<_> = calls.iter_mut().map(|(_, future)| poll_once(future)).collect();
        for ((key, future), result) in calls.into_iter().zip(&mut results) {
            let result = match std::mem::replace(result, Poll::Pending) {
                Poll::Ready(result) => result,
                Poll::Pending => block_on(future),
            };
            match result {
                Ok(()) => acknowledged.extend(key),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Poisoned, "{name}: {error:?}"),
            }
        }
    }
    let has_panicked = gate.has_panicked(kind);
    let is_fatal = has_panicked && thread != "ringcask-copy";
    if is_fatal {
        // A task ends a moment after its waiting callers get their results.
        eventually("the store is poisoned", || store.stats().poisoned);
        assert_eq!(block_on(store.put("k", "v")).unwrap_err().kind(), ErrorKind::Poisoned, "{name}");
        assert_stock(&store);
        let second = block_on(builder(env, &name).open()).expect_err("the open succeeded while a handle exists");
        assert_eq!(second.kind(), ErrorKind::Locked, "{name}: {second:?}");
    }
    let closed = block_on(store.close());
    assert_eq!(closed.is_err(), is_fatal, "{name}: {closed:?}");
    drop(store);
    let store = open(builder(env, &name));
    assert_stock(&store);
    for key in acknowledged.iter().filter(|key| !is_fatal || !key.contains("buffered") && !key.contains("written")) {
        assert!(store.contains_key(key), "{name}: the acknowledged {key} is missing");
    }
    put(&store, "k", "v");
    close(store);
    has_panicked
}

#[test]
fn a_panic_in_a_task_poisons_the_store_and_resolves_every_call() {
    silence_expected_panics();
    for_each_engine(|env| {
        for thread in ["ringcask-commit", "ringcask-maint", "ringcask-copy"] {
            let mut panics = 0;
            for kind in KINDS {
                for spared in [0, 1, 2, 5, 11] {
                    if !panic_once(env, kind, thread, spared) {
                        break;
                    }
                    panics += 1;
                }
            }
            println!("{panics} panics in {thread}");
            assert!(panics >= 4, "{panics} panics in {thread}");
        }
    });
}

#[test]
fn a_panic_in_an_open_is_an_error_and_unlocks_the_directory() {
    silence_expected_panics();
    for_each_engine(|env| {
        let (mut panics, mut tries) = ([0, 0], 0);
        for (index, thread) in ["ringcask-open", "ringcask-load"].into_iter().enumerate() {
            for kind in if index == 0 { &KINDS[..] } else { &[Kind::Read] } {
                for spared in 0..20_u64 {
                    let (kind, spared) = (*kind, if index == 0 { spared } else { spared % 2 });
                    let name = format!("{thread}-{kind:?}-{tries}");
                    tries += 1;
                    stock(builder(env, &name));
                    let path = env.dir.path().join(&name);
                    // Without hint files, several threads read the segments.
                    crate::helpers::files_with(&path, "hint").into_iter().for_each(|hint| {
                        std::fs::remove_file(hint).unwrap();
                    });
                    let (backend, gate) = GatedIo::around(env.engine);
                    gate.panic_in(kind, thread, spared);
                    if thread == "ringcask-load" {
                        // Otherwise the open may finish before its helper starts.
                        gate.let_read_first(thread);
                    }
                    let opened = block_on(builder(env, &name).backend(backend).open());
                    let has_panicked = gate.has_panicked(kind);
                    match opened {
                        Ok(store) => {
                            assert!(!has_panicked, "{name} succeeded after the panic");
                            close(store);
                        }
                        Err(error) => assert!(has_panicked, "{name}: {error:?}"),
                    }
                    let store = open(builder(env, &name));
                    assert_stock(&store);
                    close(store);
                    panics[index] += u32::from(has_panicked);
                    // An open has a limited number of operations.
                    if !has_panicked && thread == "ringcask-open" {
                        break;
                    }
                }
            }
        }
        println!("{panics:?} panics in the open and its helpers");
        assert!(panics[0] >= 3, "{panics:?}");
        match thread::available_parallelism() {
            Ok(processors) if processors.get() > 1 => assert!(panics[1] >= 10, "{panics:?}"),
            _ => skip("panics in the helpers of an open", "an open has no helpers on one processor"),
        }
    });
}

/// A store with one pending future of each kind. They stay pending until the gate is opened.
struct Stuck {
    store: Store,
    gate: Arc<Gate>,
    futures: Vec<(&'static str, Boxed)>,
}

impl Stuck {
    const KINDS: usize = 9;

    fn new(env: &Env, name: &str) -> Self {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(builder(env, name).backend(backend.clone()));
        let version = put(&store, "k", "v");
        put(&store, "cold", vec![9; 3000]);
        gate.close(Kind::Read);
        gate.close(Kind::Write);
        let mut futures = vec![("put", boxed(store.put("k", vec![1; 60 << 10])))];
        assert!(poll_once(&mut futures[0].1).is_pending());
        gate.wait_for_held(Kind::Write, 1);
        let mut batch = Batch::new();
        batch.put("batch", vec![3; 30 << 10]).put("k", "batch");
        futures.extend([
            ("put that waits for admission", boxed(store.put("more", vec![2; 60 << 10]))),
            ("batch", boxed(store.write(batch))),
            ("delete", boxed(store.delete("k"))),
            ("get", boxed(store.get("cold"))),
            ("wait_durable", boxed(store.wait_durable((version.get() + 2).into()))),
            ("sync", boxed(store.sync())),
            ("compact", boxed(store.compact())),
            ("open", boxed(builder(env, &format!("{name}-second")).backend(backend).open())),
        ]);
        assert_eq!(futures.len(), Self::KINDS);
        Self { store, gate, futures }
    }

    /// Opening the gate wakes held reads on this thread.
    fn open_gate(gate: &Gate) {
        KINDS.into_iter().for_each(|kind| drop(catch_unwind(AssertUnwindSafe(|| gate.open(kind)))));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ill {
    /// `wake` panics.
    Panics,
    /// `wake` drops the last handle.
    WakeDropsStore,
    /// The waker owns the last handle, and is dropped when another waker replaces it.
    OwnsStore,
}

struct IllWaker(Ill, Arc<Gate>, Mutex<Option<Store>>);

impl Wake for IllWaker {
    fn wake(self: Arc<Self>) {
        match self.0 {
            Ill::Panics => panic!("a waker's panic on purpose"),
            Ill::WakeDropsStore => drop(self.2.lock().unwrap().take()),
            Ill::OwnsStore => {}
        }
    }
}

impl Drop for IllWaker {
    fn drop(&mut self) {
        if self.2.get_mut().unwrap().is_some() {
            // Otherwise the drop of the handle would wait for operations that the test holds.
            Stuck::open_gate(&self.1);
        }
    }
}

/// Polls future `index` of a stuck store with an ill waker and the others with no-op wakers, then lets all of them run.
fn poll_with_ill_waker(env: &Env, index: usize, ill: Ill) {
    let name = format!("{ill:?}-{index}");
    let Stuck { store, gate, mut futures } = Stuck::new(env, &name);
    let handle = (ill != Ill::Panics).then(|| store.clone());
    let waker = Waker::from(Arc::new(IllWaker(ill, gate.clone(), Mutex::new(handle))));
    for (at, (what, future)) in futures.iter_mut().enumerate() {
        let by = if at == index { &waker } else { Waker::noop() };
        assert!(future.as_mut().poll(&mut Context::from_waker(by)).is_pending(), "{what} is not pending");
    }
    drop(waker);
    let (what, mut victim) = futures.swap_remove(index);
    let mut last = None;
    if ill == Ill::OwnsStore {
        drop(store);
        // This poll drops the ill waker, which closes the store.
        let _ = victim.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // A read's waker is dropped here instead, because the gate keeps every waker that it has seen.
        Stuck::open_gate(&gate);
    } else {
        last = (ill == Ill::Panics).then_some(store);
        Stuck::open_gate(&gate);
        if let Some(store) = &last {
            put(store, "after", "panic");
            assert!(!store.stats().poisoned, "{what}");
        }
    }
    for (other, future) in futures {
        let result = block_on(future);
        let may_fail = ill != Ill::Panics;
        let is_fine = result.as_ref().err().is_none_or(|error| may_fail && error.kind() == ErrorKind::Closed);
        assert!(is_fine, "{other}, beside {what} with {ill:?}: {result:?}");
    }
    let result = block_on(victim);
    let is_fine = result.as_ref().err().is_none_or(|error| ill != Ill::Panics && error.kind() == ErrorKind::Closed);
    assert!(is_fine, "{what} with {ill:?}: {result:?}");
    drop(last);
    // The last handle is gone or will be soon.
    eventually("the directory is free", || match block_on(builder(env, &name).open()) {
        Ok(store) => {
            assert_eq!(get(&store, "cold"), Some(vec![9; 3000]));
            close(store);
            true
        }
        Err(error) => error.kind() != ErrorKind::Locked && panic!("{error:?}"),
    });
}

#[test]
fn wakers_that_panic_or_own_the_store_do_no_harm() {
    silence_expected_panics();
    for_each_engine(|env| {
        let engine = env.engine;
        for ill in [Ill::Panics, Ill::WakeDropsStore, Ill::OwnsStore] {
            for index in 0..Stuck::KINDS {
                with_deadline(&format!("{ill:?} with future {index}"), move || {
                    poll_with_ill_waker(&Env::new(engine), index, ill);
                });
            }
        }
    });
}

#[test]
fn a_store_with_forgotten_futures_of_every_kind_can_be_closed() {
    for_each_engine(|env| {
        let engine = env.engine;
        for index in 0..Stuck::KINDS {
            for is_dropped in [false, true] {
                with_deadline(&format!("a store with future {index} forgotten"), move || {
                    let env = Env::new(engine);
                    let Stuck { store, gate, mut futures } = Stuck::new(&env, "s");
                    futures.iter_mut().for_each(|(_, future)| drop(poll_once(future)));
                    std::mem::forget(futures.swap_remove(index).1);
                    Stuck::open_gate(&gate);
                    for (what, future) in futures {
                        block_on(future).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    }
                    match is_dropped {
                        true => drop(store),
                        false => close(store),
                    }
                    let store = open(builder(&env, "s"));
                    assert_eq!(get(&store, "cold"), Some(vec![9; 3000]));
                });
            }
        }
    });
}

#[test]
fn a_caller_that_panics_with_pending_futures_leaves_a_store_that_closes() {
    silence_expected_panics();
    for_each_engine(|env| {
        let engine = env.engine;
        for is_polled in [false, true] {
            with_deadline("a caller that panics", move || {
                let env = Env::new(engine);
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let Stuck { store, gate, mut futures } = Stuck::new(&env, "s");
                    if is_polled {
                        futures.iter_mut().for_each(|(_, future)| drop(poll_once(future)));
                    }
                    Stuck::open_gate(&gate);
                    // The futures are dropped first. The handle is dropped last, and closes the store while the thread
                    // unwinds.
                    let _all = (futures, store);
                    panic!("the caller's panic on purpose");
                }));
                assert!(caught.is_err());
                let store = open(builder(&env, "s"));
                assert_eq!(get(&store, "cold"), Some(vec![9; 3000]));
                assert_eq!(get(&store, "k").map(|value| value.len() > 5), Some(true), "the accepted put is missing");
            });
        }
    });
}

/// The memory of a value whose drop runs foreign code.
struct Cursed(Vec<u8>, Option<Store>);

impl AsRef<[u8]> for Cursed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Cursed {
    fn drop(&mut self) {
        match self.1.take() {
            Some(store) => drop(store),
            None if thread::panicking() => {}
            None => panic!("a value's panic on purpose"),
        }
    }
}

/// Values of 64 KiB and more are shared, and their last user frees them. Regression: that happened under the log's
/// lock. Memory that owned the last handle of the store blocked it forever, and memory that panicked poisoned it.
#[test]
fn values_whose_memory_panics_or_owns_the_store_do_no_harm() {
    silence_expected_panics();
    for_each_engine(|env| {
        let engine = env.engine;
        for owns_store in [false, true] {
            with_deadline(&format!("a value that owns the store: {owns_store}"), move || {
                let env = Env::new(engine);
                let (backend, gate) = GatedIo::around(engine);
                let store = open(env.builder().backend(backend));
                put(&store, "k", "v");
                gate.close(Kind::Write);
                let cursed = Bytes::from_owner(Cursed(vec![5; 100_000], owns_store.then(|| store.clone())));
                let mut write = store.put_bytes("cursed", cursed);
                let mut beside = store.put("beside", "it");
                assert!(poll_once(&mut write).is_pending() && poll_once(&mut beside).is_pending());
                let store = (!owns_store).then_some(store);
                gate.open(Kind::Write);
                assert!(block_on(write).is_ok() && block_on(beside).is_ok());
                if let Some(store) = store {
                    put(&store, "after", "panic");
                    assert!(!store.stats().poisoned);
                    close(store);
                }
                eventually("the directory is free", || match block_on(env.open_future()) {
                    Ok(store) => {
                        assert_eq!(get(&store, "cursed"), Some(vec![5; 100_000]));
                        assert!(store.contains_key("beside"));
                        true
                    }
                    Err(error) => error.kind() != ErrorKind::Locked && panic!("{error:?}"),
                });
            });
        }
    });
}

#[test]
fn a_close_during_calls_of_every_kind_resolves_them_all() {
    for_each_engine(|env| {
        let (mut answered, mut refused) = (0, 0);
        for round in 0..20 {
            let store = open(builder(env, "s"));
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let store = store.clone();
                    thread::spawn(move || {
                        let calls = (0..4).flat_map(|turn| all_calls(&store, 100 * round + 10 * thread + turn));
                        let mut done = Vec::new();
                        for (key, future) in calls {
                            match block_on(future) {
                                Ok(()) => done.push((key, true)),
                                Err(error) => {
                                    assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}");
                                    done.push((key, false));
                                }
                            }
                        }
                        done
                    })
                })
                .collect();
            // Each round closes the store a little later.
            let len = store.len();
            eventually("the threads have started", || store.len() >= len + round / 2 || threads[0].is_finished());
            close(store.clone());
            drop(store);
            let done: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            let store = open(builder(env, "s"));
            for (key, is_done) in done {
                answered += u32::from(is_done);
                refused += u32::from(!is_done);
                if let Some(key) = key {
                    assert_eq!(store.contains_key(&key), is_done, "{key}");
                }
            }
            close(store);
        }
        println!("{answered} answered, {refused} refused");
        assert!(answered > 50 && refused > 50, "{answered} answered, {refused} refused");
    });
}
