//! Futures that wait: what they hold on to while they do.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use ringcask::{Result, Store, Version};

use crate::gate::{Gate, GatedWorld, Kind};
use crate::support::{Env, block_on, for_each_engine, open, poll_once, put};

type Pending = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Pending {
    Box::pin(async move { future.await.map(drop) })
}

/// A store whose first group is on its way to the disk and held there, with no room left in its buffer.
struct Crowded {
    store: Store,
    gate: Arc<Gate>,
    /// A version that waits for the disk.
    held: Version,
    first: Pending,
}

impl Crowded {
    fn new(env: &Env) -> Self {
        let (world, gate) = GatedWorld::around(env.engine);
        let store = open(env.builder().world(world).staging_bytes(64 << 10));
        let version = put(&store, "k", "v");
        gate.close(Kind::Write);
        let mut first = boxed(store.put("k", vec![1; 60 << 10]));
        assert!(poll_once(&mut first).is_pending());
        gate.wait_for_held(Kind::Write, 1);
        Self { store, gate, held: Version::from(version.get() + 1), first }
    }
}

struct Ignorant;

impl Wake for Ignorant {
    fn wake(self: Arc<Self>) {}
}

/// Polls `future` again and again, each time with another waker; the wakers that are still held in the end.
fn poll_often(future: &mut Pending) -> Vec<Weak<Ignorant>> {
    let mut wakers = Vec::new();
    for _ in 0..100 {
        let ignorant = Arc::new(Ignorant);
        wakers.push(Arc::downgrade(&ignorant));
        let waker = Waker::from(ignorant);
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    wakers.retain(|waker| waker.strong_count() > 0);
    wakers
}

/// The store's lists of waiting futures once grew by an entry for each poll: a `select!` loop around `wait_durable` made
/// them as long as it ran.
#[test]
fn a_waiting_future_holds_one_waker_and_none_when_it_is_dropped() {
    for_each_engine(|env| {
        let Crowded { store, gate, held, mut first } = Crowded::new(env);
        let waiting = [
            ("a write that waits for room", boxed(store.put("more", vec![2; 60 << 10]))),
            ("a delete behind a write of its key", boxed(store.delete("k"))),
            ("wait_durable", boxed(store.wait_durable(held))),
            ("close", boxed(store.close())),
        ];
        for (what, mut future) in waiting {
            let held = poll_often(&mut future);
            assert_eq!(held.len(), 1, "wakers of {what}");
            drop(future);
            assert_eq!(held[0].strong_count(), 0, "the waker of {what}, which was dropped");
        }
        assert_eq!(poll_often(&mut first).len(), 1, "wakers of an accepted write");
        gate.open(Kind::Write);
        block_on(first).unwrap();
    });
}
