//! Submitted writes: their order is the order of the calls, and each future resolves with the result of its write.

use std::sync::Arc;
use std::thread;

use ringcask::futures::Submitted;
use ringcask::testing::sim::{SimBackend, SimConfig};
use ringcask::{Batch, Durability, Error, ErrorKind, Outcome, Store, Version};

use crate::helpers::gated_io::{Gate, GatedIo, Kind};
use crate::helpers::{Env, LEVELS, block_on, close, for_each_engine, get, open, poll_once, put};

fn submit(store: &Store, key: &str, value: impl AsRef<[u8]>) -> Submitted<Version> {
    store.put(key, value).submit().unwrap()
}

/// A store whose first write of 60 KiB is held on its way to the disk, with a buffer of 64 KiB.
struct Full {
    store: Store,
    gate: Arc<Gate>,
    first: Submitted<Version>,
}

impl Full {
    fn new(env: &Env) -> Self {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(Store::builder(env.path()).backend(backend).staging_bytes(64 << 10));
        put(&store, "key", "before");
        gate.close(Kind::Write);
        let first = submit(&store, "key", vec![1; 60 << 10]);
        gate.wait_for_held(Kind::Write, 1);
        Self { store, gate, first }
    }
}

#[test]
fn the_order_of_two_submits_is_the_order_of_the_writes() {
    for_each_engine(|env| {
        // The first two writes find no active segment.
        let store = env.open();
        for level in LEVELS {
            for round in 0..20 {
                let key = format!("{level}-{round}");
                let first = store.put(&key, "first").durability(level).submit().unwrap();
                let second = store.put(&key, "second").durability(level).submit().unwrap();
                // The futures are awaited in the opposite order, on other threads.
                let second = thread::spawn(move || block_on(second).unwrap());
                let second = second.join().unwrap();
                let first = thread::spawn(move || block_on(first).unwrap()).join().unwrap();
                assert!(first < second, "{first:?} and then {second:?}");
                assert_eq!(get(&store, &key).as_deref(), Some(&b"second"[..]));
            }
        }
        close(store);
    });
}

#[test]
fn deletes_and_batches_keep_the_order_of_the_calls() {
    for_each_engine(|env| {
        let store = env.open();
        for level in LEVELS {
            let put = store.put("key", "value").durability(level).submit().unwrap();
            let delete = store.delete("key").durability(level).submit().unwrap();
            let again = store.delete("key").durability(level).submit().unwrap();
            let mut batch = Batch::new();
            batch.put("key", "of the batch").put("other", "of the batch");
            let batch = store.write(batch).durability(level).submit().unwrap();
            let polled = store.delete("key").durability(level);
            assert!(block_on(polled).unwrap(), "a polled delete overtook a submitted batch");
            assert!(!block_on(again).unwrap(), "the key was deleted twice");
            assert!(block_on(delete).unwrap(), "a submitted delete overtook a submitted put");
            assert!(block_on(put).unwrap() < block_on(batch).unwrap());
            assert_eq!(get(&store, "key"), None);
        }
        block_on(store.write(Batch::new()).submit().unwrap()).unwrap();
        close(store);
    });
}

#[test]
fn a_full_buffer_queues_submitted_writes_and_nothing_overtakes_them() {
    for_each_engine(|env| {
        let Full { store, gate, first } = Full::new(env);
        let second = submit(&store, "key", vec![2; 40 << 10]);
        let third = submit(&store, "key", "third");
        let mut polled = store.put("key", "polled").durability(Durability::Buffered);
        assert!(poll_once(&mut polled).is_pending(), "a polled write overtook the queue");
        let error = store.put("key", vec![3; 40 << 10]).submit().unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied), "{error:?}");
        assert!(error.to_string().contains("await the write"), "{error}");
        gate.open(Kind::Write);
        let versions = [block_on(first), block_on(second), block_on(third), block_on(polled)].map(Result::unwrap);
        assert!(versions.is_sorted(), "{versions:?}");
        assert_eq!(get(&store, "key").as_deref(), Some(&b"polled"[..]));
        close(store);
    });
}

#[test]
fn a_close_writes_the_queued_writes() {
    for_each_engine(|env| {
        let Full { store, gate, first } = Full::new(env);
        let queued: Vec<_> = (0..10).map(|index| submit(&store, &format!("queued-{index}"), [4; 1000])).collect();
        drop(submit(&store, "dropped", "value"));
        let delete = store.delete("key").submit().unwrap();
        let mut closing = store.close();
        assert!(poll_once(&mut closing).is_pending());
        assert_eq!(store.put("late", "value").submit().unwrap_err().kind(), ErrorKind::Closed);
        gate.open(Kind::Write);
        block_on(closing).unwrap();
        block_on(first).unwrap();
        assert!(block_on(delete).unwrap());
        for submitted in queued {
            block_on(submitted).unwrap();
        }
        drop(store);
        let store = env.open();
        assert_eq!((store.len(), get(&store, "dropped").is_some()), (11, true));
        close(store);
    });
}

#[test]
fn a_poisoned_store_refuses_the_queued_writes() {
    for_each_engine(|env| {
        let Full { store, gate, first } = Full::new(env);
        let queued = [submit(&store, "second", vec![2; 40 << 10]), submit(&store, "third", "value")];
        gate.fail(Kind::Sync, Some(libc::EIO));
        gate.open(Kind::Write);
        let is_poisoned = |result: Result<Version, Error>| result.unwrap_err().kind() == ErrorKind::Poisoned;
        assert!(is_poisoned(block_on(first)));
        assert!(queued.into_iter().all(|submitted| is_poisoned(block_on(submitted))));
        let refused = store.put("late", "value").submit().unwrap_err();
        assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Poisoned, Outcome::NotApplied));
    });
}

#[test]
fn a_dropped_submitted_write_runs_to_its_end() {
    for_each_engine(|env| {
        let store = env.open();
        drop(submit(&store, "first write of the store", "value"));
        let last = submit(&store, "last", "value");
        block_on(last).unwrap();
        assert!(get(&store, "first write of the store").is_some());
        close(store);
    });
}

#[test]
fn a_sync_covers_queued_writes() {
    for_each_engine(|env| {
        let Full { store, gate, first } = Full::new(env);
        let queued = store.put("key", vec![2; 40 << 10]).durability(Durability::Buffered).submit().unwrap();
        let mut sync = store.sync();
        assert!(poll_once(&mut sync).is_pending());
        gate.open(Kind::Write);
        let synced = block_on(sync).unwrap();
        assert!(block_on(first).unwrap() < synced && block_on(queued).unwrap() <= synced);
        assert!(store.durable_version() >= synced);
        close(store);
    });
}

#[test]
fn invalid_input_is_refused_at_once() {
    for_each_engine(|env| {
        let store = env.open();
        assert_eq!(store.put("", "value").submit().unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(store.delete("").submit().unwrap_err().kind(), ErrorKind::InvalidInput);
        close(store.clone());
        assert_eq!(store.write(Batch::new()).submit().unwrap_err().kind(), ErrorKind::Closed);
    });
}

#[test]
fn submitted_puts_are_refused_without_space_and_deletes_succeed() {
    let backend = SimBackend::new(SimConfig::default());
    let builder = Store::builder("/sim").backend(Arc::new(backend.clone())).reserve_bytes(64 << 10);
    let store = backend.run_until(builder.segment_bytes(512 << 10).open()).unwrap();
    backend.run_until(store.put("key", "value")).unwrap();
    backend.set_capacity(Some(backend.used_bytes()));
    // Enough puts to use up the preallocated space.
    let puts: Vec<_> = (0..40).map(|index| submit(&store, &format!("{index}"), [5; 20 << 10])).collect();
    let delete = store.delete("key").submit().unwrap();
    let results: Vec<_> = puts.into_iter().map(|put| backend.run_until(put)).collect();
    let refused = results.iter().filter_map(|result| result.as_ref().err());
    assert!(refused.clone().count() > 0, "no put was refused on the full disk");
    assert!(refused.clone().all(|error| error.kind() == ErrorKind::NoSpace), "{:?}", refused.collect::<Vec<_>>());
    assert!(backend.run_until(delete).unwrap());
    backend.set_capacity(None);
    backend.run_until(submit(&store, "space", "is back")).unwrap();
    backend.run_until(store.close()).unwrap();
    drop(store);
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
}
