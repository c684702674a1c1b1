//! Models that drop futures while the event that they wait for happens.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::thread;

use super::backend::ExplorerBackend;
use super::store::{UNTOUCHED, bytes, check_files, check_live_bytes, image, moved, open, open_with, poll_once, spawn};
use crate::io::op::slot;
use crate::{Batch, Durability, Result, Store, Version};

/// One thread completes an operation, while its future is polled by one task, moved to another, and awaited or dropped
/// there.
pub(super) fn a_completion_and_its_future() {
    let (done, mut handle) = slot::<io::Result<Arc<u32>>>();
    let value = Arc::new(7);
    let watched = Arc::downgrade(&value);
    let (is_completed, is_awaited) =
        (shuttle::rand::thread_rng().gen_bool(0.8), shuttle::rand::thread_rng().gen_bool(0.5));
    let completer = thread::spawn(move || if is_completed { done.complete(Ok(value)) } else { drop(done) });
    let caller = thread::spawn(move || {
        let early = Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(result) = early {
            return assert_eq!(result.is_ok(), is_completed);
        }
        let other = thread::spawn(move || {
            if is_awaited {
                assert_eq!(block_on(handle).is_ok(), is_completed);
            }
        });
        other.join().unwrap();
    });
    completer.join().unwrap();
    caller.join().unwrap();
    assert_eq!(watched.strong_count(), 0, "the result leaked");
}

/// A waker that does nothing. Weak references to it count the clones that the store still holds.
struct CountedWaker;

impl Wake for CountedWaker {
    fn wake(self: Arc<Self>) {}
}

/// Polls `future` once with a new waker, and drops it on another thread. Returns the waker and that thread.
fn polled_and_dropped<T: 'static>(
    future: impl Future<Output = Result<T>> + Unpin + Send + 'static,
) -> (Weak<CountedWaker>, thread::JoinHandle<()>) {
    let mut future = future;
    let counted = Arc::new(CountedWaker);
    let weak = Arc::downgrade(&counted);
    let waker = Waker::from(counted);
    let _ = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
    (weak, thread::spawn(move || drop(future)))
}

/// Polls one future of each kind once and drops it. Returns their wakers.
fn drop_one_of_each(store: &Store, version: Version) -> [Weak<CountedWaker>; 7] {
    let mut batch = Batch::new();
    batch.put("first", bytes(30)).put("second", bytes(30));
    let dropped = [
        polled_and_dropped(store.wait_durable(version)),
        polled_and_dropped(store.compact()),
        polled_and_dropped(store.write(batch)),
        polled_and_dropped(store.put("b", bytes(20))),
        // Waits for the put before it, which is not durable yet.
        polled_and_dropped(store.delete("b")),
        polled_and_dropped(store.get(UNTOUCHED)),
        polled_and_dropped(store.sync()),
    ];
    dropped.map(|(waker, thread)| {
        thread.join().unwrap();
        waker
    })
}

/// Operations of another task, which must all complete with correct results.
async fn operate_during_the_drops(store: Store, version: Version) {
    assert!(store.get(UNTOUCHED).await.unwrap().is_some());
    let first = store.get("first").await.unwrap();
    let second = store.get("second").await.unwrap();
    assert!(first.is_none() || second.is_some(), "a get saw half of a batch whose future was dropped");
    store.wait_durable(version).await.unwrap();
    moved(store.put("c", bytes(40))).await.unwrap();
    assert!(moved(store.delete("c")).await.unwrap());
    store.sync().await.unwrap();
}

/// Drops one future of each kind while the store's tasks work on it. The operations of other tasks complete, a dropped
/// write happens as a whole or not at all, and the store keeps no waker of a dropped future.
pub(super) fn dropped_futures() {
    let backend = ExplorerBackend::new(image());
    let store = block_on(open(&backend));
    let version = block_on(store.put("a", bytes(10)).durability(Durability::Buffered)).unwrap();
    let leaving = store.clone();
    let leaves = thread::spawn(move || drop_one_of_each(&leaving, version));
    let stays = spawn(operate_during_the_drops(store.clone(), version));
    let wakers = leaves.join().unwrap();
    stays.join().unwrap();
    block_on(store.sync()).unwrap();
    let members = ["first", "second"].map(|key| store.contains_key(key));
    assert_eq!(members[0], members[1], "the store has half of a batch");
    close_twice(&store);
    // `store` keeps the lists of waiters alive.
    let kept = wakers.iter().filter(|waker| waker.strong_count() > 0).count();
    assert_eq!(kept, 0, "the store keeps wakers of dropped futures");
    check_live_bytes(&store);
    check_files(&store, &backend);
}

/// Drops the future of a close, which continues, and waits for it with a second close.
fn close_twice(store: &Store) {
    polled_and_dropped(store.close()).1.join().unwrap();
    let mut close = store.close();
    if let Poll::Ready(closed) = poll_once(&mut close) {
        closed.unwrap();
    } else {
        block_on(close).unwrap();
    }
}

/// Drops the futures of some writers that wait for space in the staging buffer, which fits one write at a time. The
/// other writers are admitted.
pub(super) fn space_left_by_dropped_writers() {
    const BUFFER: usize = 64 << 10;
    let backend = ExplorerBackend::new(image());
    let store = block_on(open_with(&backend, |builder| builder.staging_bytes(BUFFER)));
    let large = || vec![7; BUFFER * 2 / 3];
    let leaving = store.clone();
    let leaves = thread::spawn(move || {
        let dropped = ["leaves 1", "leaves 2"].map(|key| polled_and_dropped(leaving.put(key, large())));
        dropped.map(|(_, thread)| thread.join().unwrap())
    });
    let stays = ["stays 1", "stays 2"].map(|key| spawn(moved(store.put(key, large()))));
    leaves.join().unwrap();
    for stays in stays {
        stays.join().unwrap().unwrap();
    }
    close_twice(&store);
    check_live_bytes(&store);
}
