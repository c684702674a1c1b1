//! Futures that wait: the resources they hold, and the order in which they are admitted.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use ringcask::testing::io::Io;
use ringcask::{Batch, Builder, Durability, Engine, ErrorKind, Result, Store, Version};

use crate::helpers::fork::{beside_child, in_child, release_wakers, stuck_count, stuck_waker};
use crate::helpers::gated_io::{Gate, GatedIo, Kind};
use crate::helpers::{
    block_on, child_env, close, eventually, expect_success, for_each_engine, is_child, open, poll_once, put, rerun,
};

type Pending = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

fn boxed<T>(future: impl Future<Output = Result<T>> + Send + 'static) -> Pending {
    Box::pin(async move { future.await.map(drop) })
}

/// A store whose first group is held on its way to the disk, and whose buffer is full.
struct Crowded {
    backend: Arc<dyn Io>,
    store: Store,
    gate: Arc<Gate>,
    /// A version that is not durable yet.
    held: Version,
    first: Pending,
}

impl Crowded {
    fn new(engine: Engine, path: &Path) -> Self {
        let (backend, gate) = GatedIo::around(engine);
        let store = open(Store::builder(path).backend(backend.clone()).staging_bytes(64 << 10));
        let version = put(&store, "k", "v");
        gate.close(Kind::Write);
        let mut first = boxed(store.put("k", vec![1; 60 << 10]));
        assert!(poll_once(&mut first).is_pending());
        gate.wait_for_held(Kind::Write, 1);
        Self { backend, store, gate, held: Version::from(version.get() + 1), first }
    }
}

struct Ignorant;

impl Wake for Ignorant {
    fn wake(self: Arc<Self>) {}
}

/// Polls `future` many times, each time with another waker. Returns the wakers that are still held at the end.
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

/// Regression: the lists of waiting futures grew by one entry per poll. A `select!` loop around `wait_durable` made
/// them grow while it ran.
#[test]
fn a_waiting_future_holds_one_waker_and_none_when_it_is_dropped() {
    for_each_engine(|env| {
        let Crowded { store, gate, held, mut first, .. } = Crowded::new(env.engine, &env.path());
        let waiting = [
            ("a write that waits for admission", boxed(store.put("more", vec![2; 60 << 10]))),
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

/// Regression: writers without room raced with newcomers for it, and some lost for hundreds of milliseconds. The unit
/// tests of `commit/log/admission.rs` check the order of wake-ups.
#[test]
fn a_new_writer_does_not_overtake_one_that_waits_for_admission() {
    for_each_engine(|env| {
        let Crowded { store, gate, first, .. } = Crowded::new(env.engine, &env.path());
        let mut fits = store.put("fits", "v").durability(Durability::Buffered);
        assert!(poll_once(&mut fits).is_ready(), "the put fits, and no writer waits");
        let mut large = store.put("large", vec![2; 40 << 10]).durability(Durability::Buffered);
        assert!(poll_once(&mut large).is_pending());
        let mut newcomer = store.put("newcomer", "v").durability(Durability::Buffered);
        assert!(poll_once(&mut newcomer).is_pending(), "the put fits, but another writer waits");
        gate.open(Kind::Write);
        block_on(first).unwrap();
        let large = block_on(large).unwrap();
        assert!(large < block_on(newcomer).unwrap());
        close(store);
    });
}

/// A future may be kept and never polled again, for example in another arm of a `select!`.
#[test]
fn a_writer_that_ignores_its_wake_up_does_not_block_others() {
    for_each_engine(|env| {
        let Crowded { store, gate, first, .. } = Crowded::new(env.engine, &env.path());
        let large = |key: &str| store.put(key, vec![2; 40 << 10]).durability(Durability::Buffered);
        let mut forgotten = large("forgotten");
        let mut dropped = large("dropped");
        assert!(poll_once(&mut forgotten).is_pending() && poll_once(&mut dropped).is_pending());
        let mut next = large("next");
        assert!(poll_once(&mut next).is_pending());
        drop(dropped);
        gate.open(Kind::Write);
        block_on(first).unwrap();
        block_on(next).unwrap();
        block_on(large("newcomer")).unwrap();
        block_on(forgotten).unwrap();
        assert_eq!((store.len(), store.contains_key("dropped")), (4, false));
        close(store);
    });
}

/// Regression: in the child, a future that waited at the fork waited forever, or hung on a lock that a thread of the
/// parent held at that moment.
#[test]
fn futures_that_wait_at_a_fork_are_refused_in_the_child() {
    const NAME: &str = "waiting_futures::futures_that_wait_at_a_fork_are_refused_in_the_child";
    if is_child() {
        let (engine, path) = child_env();
        return fork_with_waiting_futures(engine, &path);
    }
    for_each_engine(|env| drop(expect_success(rerun(NAME, env))));
}

fn fork_with_waiting_futures(engine: Engine, path: &Path) {
    let Crowded { backend, store, gate, held, first } = Crowded::new(engine, path);
    gate.close(Kind::Read);
    let mut batch = Batch::new();
    batch.put("a", vec![3; 60 << 10]);
    let other: Builder = Store::builder(path.with_extension("other")).backend(backend);
    let mut waiting = vec![
        ("an accepted put", first),
        ("a put that waits for admission", boxed(store.put("more", vec![2; 60 << 10]))),
        ("a batch that waits for admission", boxed(store.write(batch))),
        ("a delete behind a write of its key", boxed(store.delete("k"))),
        ("a get", boxed(store.get("k"))),
        ("sync", boxed(store.sync())),
        ("wait_durable", boxed(store.wait_durable(held))),
        ("open", boxed(other.open())),
        ("close", boxed(store.close())),
    ];
    for (what, future) in &mut waiting {
        assert!(poll_once(future).is_pending(), "{what}");
    }
    // These two hold the lock of the close and the lock of the log while the child lives.
    let mut stuck = Vec::new();
    for mut future in [boxed(store.close()), boxed(store.wait_durable(held))] {
        let poll = move || future.as_mut().poll(&mut Context::from_waker(&stuck_waker())).is_pending();
        stuck.push(thread::spawn(poll));
        eventually("the lock is held", || stuck_count() == stuck.len());
    }
    let status = in_child(|| {
        let is_refused = |future: &mut Pending| match poll_once(future) {
            Poll::Ready(Err(error)) => error.kind() == ErrorKind::Forked,
            _ => false,
        };
        let wrong = waiting.iter_mut().position(|(_, future)| !is_refused(future));
        waiting.clear();
        wrong.map_or(0, |index| index as i32 + 1)
    });
    let wrong = usize::try_from(status).ok().and_then(|status| status.checked_sub(1));
    assert_eq!(wrong.map(|index| waiting[index].0), None, "not refused in the child");
    release_wakers();
    stuck.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
    [Kind::Write, Kind::Read].into_iter().for_each(|kind| gate.open(kind));
    for (_, future) in waiting {
        // These began before the close or were refused by it. Here they only must not hang.
        drop(block_on(future));
    }
}

/// Regression: methods that return no future took locks in the child as well. They hung if a thread of the parent was
/// in the log or in the maintenance task's queue at the fork.
#[test]
fn methods_without_a_future_return_in_a_forked_child() {
    const NAME: &str = "waiting_futures::methods_without_a_future_return_in_a_forked_child";
    if is_child() {
        let (engine, path) = child_env();
        return fork_with_locks_held(engine, &path);
    }
    for_each_engine(|env| drop(expect_success(rerun(NAME, env))));
}

fn fork_with_locks_held(engine: Engine, path: &Path) {
    let Crowded { store, gate, held, first, .. } = Crowded::new(engine, path);
    let engine_name = store.stats().engine;
    assert!(store.contains_key("k") && store.stats().puts > 0);
    let mut waiting = boxed(store.wait_durable(held));
    let poll = move || waiting.as_mut().poll(&mut Context::from_waker(&stuck_waker())).is_pending();
    let stuck = thread::spawn(poll);
    eventually("the log's lock is held", || stuck_count() == 1);
    let status = in_child(|| {
        store.pause_compaction();
        store.resume_compaction();
        let stats = store.stats();
        let answers = [
            !store.contains_key("k"),
            store.value_len("k").is_none(),
            store.is_empty(),
            (stats.engine, stats.keys, stats.puts, stats.segments.len()) == (engine_name, 0, 0, 0),
            store.durable_version() < held,
            store.recovery_report().damage.is_empty(),
            format!("{store:?}").contains("keys: 0"),
        ];
        answers.iter().position(|is_right| !is_right).map_or(0, |index| index as i32 + 1)
    });
    assert_eq!(status, 0, "the answer that is wrong in the child");
    release_wakers();
    assert!(stuck.join().unwrap());
    gate.open(Kind::Write);
    block_on(first).unwrap();
    assert!(store.contains_key("k"), "the parent's store works");
    close(store);
}

/// The lock belongs to an open file description, which the child shares.
#[test]
fn a_child_of_a_fork_keeps_the_directory_locked_until_it_ends() {
    const NAME: &str = "waiting_futures::a_child_of_a_fork_keeps_the_directory_locked_until_it_ends";
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine));
        put(&store, "k", "v");
        beside_child(|| {
            close(store);
            let error = block_on(Store::builder(&path).engine(engine).open()).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Locked, "{error:?}");
        });
        close(open(Store::builder(&path).engine(engine)));
        return;
    }
    for_each_engine(|env| drop(expect_success(rerun(NAME, env))));
}
