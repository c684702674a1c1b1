//! Futures that are dropped while what they wait for happens.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::thread;

use super::store::{UNTOUCHED, begin, bytes, check_files, check_live_bytes, image, moved, open, open_with, spawn};
use super::world::World;
use crate::io::op::slot;
use crate::{Batch, Durability, Result, Store, Version};

/// An operation that is finished by one thread, while the future of its result goes from task to task or is dropped.
pub(super) fn an_operation_and_its_future() {
    let (done, mut handle) = slot::<io::Result<Arc<u32>>>();
    let value = Arc::new(7);
    let watched = Arc::downgrade(&value);
    let (is_carried_out, is_awaited) =
        (shuttle::rand::thread_rng().gen_bool(0.8), shuttle::rand::thread_rng().gen_bool(0.5));
    let engine = thread::spawn(move || if is_carried_out { done.complete(Ok(value)) } else { drop(done) });
    let caller = thread::spawn(move || {
        let early = Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(result) = early {
            return assert_eq!(result.is_ok(), is_carried_out);
        }
        let other = thread::spawn(move || {
            if is_awaited {
                assert_eq!(block_on(handle).is_ok(), is_carried_out);
            }
        });
        other.join().unwrap();
    });
    engine.join().unwrap();
    caller.join().unwrap();
    assert_eq!(watched.strong_count(), 0, "a result that nobody has, and nobody has freed");
}

struct Ignorant;

impl Wake for Ignorant {
    fn wake(self: Arc<Self>) {}
}

/// Begins what `future` does, with a waker of its own, and has another thread drop it. That waker, and that thread.
fn dropped_elsewhere<T: 'static>(
    future: impl Future<Output = Result<T>> + Unpin + Send + 'static,
) -> (Weak<Ignorant>, thread::JoinHandle<()>) {
    let mut future = future;
    let ignorant = Arc::new(Ignorant);
    let held = Arc::downgrade(&ignorant);
    let waker = Waker::from(ignorant);
    let _ = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
    (held, thread::spawn(move || drop(future)))
}

/// One future of each kind is begun and dropped.
fn begin_and_drop_all(store: &Store, version: Version) -> [Weak<Ignorant>; 7] {
    let mut batch = Batch::new();
    batch.put("first", bytes(30)).put("second", bytes(30));
    let dropped = [
        dropped_elsewhere(store.wait_durable(version)),
        dropped_elsewhere(store.compact()),
        dropped_elsewhere(store.write(batch)),
        dropped_elsewhere(store.put("b", bytes(20))),
        // Behind the put, which is not durable yet.
        dropped_elsewhere(store.delete("b")),
        dropped_elsewhere(store.get(UNTOUCHED)),
        dropped_elsewhere(store.sync()),
    ];
    dropped.map(|(held, thread)| {
        thread.join().unwrap();
        held
    })
}

/// What others do meanwhile is answered, and rightly.
async fn go_on_among_the_dropped(store: Store, version: Version) {
    assert!(store.get(UNTOUCHED).await.unwrap().is_some());
    let first = store.get("first").await.unwrap();
    let second = store.get("second").await.unwrap();
    assert!(first.is_none() || second.is_some(), "half a batch, whose caller has gone");
    store.wait_durable(version).await.unwrap();
    moved(store.put("c", bytes(40))).await.unwrap();
    assert!(moved(store.delete("c")).await.unwrap());
    store.sync().await.unwrap();
}

/// One future of each kind is dropped while the store's tasks serve it; those of others are answered, what is dropped is
/// all or nothing, and nobody holds a waker of one that is gone.
pub(super) fn futures_that_are_dropped() {
    let world = World::new(image());
    let store = block_on(open(&world));
    let version = block_on(store.put("a", bytes(10)).durability(Durability::Buffered)).unwrap();
    let leaving = store.clone();
    let leaves = thread::spawn(move || begin_and_drop_all(&leaving, version));
    let stays = spawn(go_on_among_the_dropped(store.clone(), version));
    let held = leaves.join().unwrap();
    stays.join().unwrap();
    block_on(store.sync()).unwrap();
    let members = ["first", "second"].map(|key| store.contains_key(key));
    assert_eq!(members[0], members[1], "half a batch");
    close_by_two(&store);
    // The store still has all its lists.
    let left = held.iter().filter(|held| held.strong_count() > 0).count();
    assert_eq!(left, 0, "wakers of futures that are gone are held");
    check_live_bytes(&store);
    check_files(&store, &world);
}

/// The close that was dropped goes on, and another waits for its end.
fn close_by_two(store: &Store) {
    dropped_elsewhere(store.close()).1.join().unwrap();
    let mut close = store.close();
    if let Poll::Ready(closed) = begin(&mut close) {
        closed.unwrap();
    } else {
        block_on(close).unwrap();
    }
}

/// Writers of whom one at a time has room in the buffer, and of whom some go away: those who stay are let in.
pub(super) fn room_that_is_left() {
    const BUFFER: usize = 64 << 10;
    let world = World::new(image());
    let store = block_on(open_with(&world, |builder| builder.staging_bytes(BUFFER)));
    let large = || vec![7; BUFFER * 2 / 3];
    let leaving = store.clone();
    let leaves = thread::spawn(move || {
        let dropped = ["goes 1", "goes 2"].map(|key| dropped_elsewhere(leaving.put(key, large())));
        dropped.map(|(_, thread)| thread.join().unwrap())
    });
    let stays = ["stays 1", "stays 2"].map(|key| spawn(moved(store.put(key, large()))));
    leaves.join().unwrap();
    for stays in stays {
        stays.join().unwrap().unwrap();
    }
    close_by_two(&store);
    check_live_bytes(&store);
}
