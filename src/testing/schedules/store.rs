//! The whole store: callers, the commit task, the maintenance task, and compactions of what an earlier session left.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::scheduler::RandomScheduler;
use shuttle::thread::{self, JoinHandle};
use shuttle::{FailurePersistence, Runner};

use super::history::{Event, History};
use super::world::{Image, World};
use crate::format::record_len;
use crate::{Batch, Builder, Compaction, Durability, ErrorKind, Outcome, Result, Store};

/// Three sealed segments, in which three keys have the values below, and [`DELETED`] was deleted.
static IMAGE: OnceLock<Image> = OnceLock::new();

const BEFORE: [(&str, u64); 3] = [("a", 1), ("b", 5), (UNTOUCHED, 3)];

/// There all the time, and told from the others by its length.
pub(super) const UNTOUCHED: &str = "untouched";

/// Not there at any time.
const DELETED: &str = "deleted";

/// Makes the image that models start from; not within a model.
pub(super) fn prepare() {
    let sessions = || {
        let world = World::new(&Image::new());
        for session in [&[("a", 1), ("b", 2), (UNTOUCHED, 3), (DELETED, 4)][..], &[("b", 5)], &[]] {
            block_on(async {
                let store = open(&world).await;
                for &(key, value) in session {
                    store.put(key, bytes(value)).await.unwrap();
                }
                if session.is_empty() {
                    assert!(store.delete(DELETED).await.unwrap());
                }
                store.close().await.unwrap();
            });
        }
        let _ = IMAGE.set(world.image());
    };
    if IMAGE.get().is_none() {
        let config = super::config(FailurePersistence::Print);
        Runner::new(RandomScheduler::new_from_seed(1, 1), config).run(sessions);
    }
}

pub(super) fn image() -> &'static Image {
    IMAGE.get().expect("`prepare` was called")
}

pub(super) async fn open(world: &World) -> Store {
    open_with(world, |builder| builder).await
}

/// The same, with what `more` says.
pub(super) async fn open_with(world: &World, more: impl FnOnce(Builder) -> Builder) -> Store {
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    let builder = Store::builder("/db").backend(Arc::new(world.clone())).compaction(compaction);
    more(builder.max_open_files(8)).open().await.unwrap()
}

/// Long enough that a few fill a small segment.
pub(super) fn bytes(value: u64) -> String {
    format!("value {value:0240}")
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.strip_prefix("value "));
    text.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("a value nobody wrote: {value:?}"))
}

pub(super) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || block_on(task))
}

/// When an operation may begin. A compaction takes many more steps than a get: left to themselves, callers would be
/// through long before it moves a key. So they wait for one of its renames, each time another, or for its end.
#[derive(Clone)]
struct Pace {
    world: World,
    first_rename: u64,
    is_over: Arc<AtomicBool>,
}

impl Pace {
    fn new(world: &World) -> Self {
        Self { world: world.clone(), first_rename: world.renames(), is_over: Arc::default() }
    }

    fn wait(&self) {
        let until = self.first_rename + shuttle::rand::thread_rng().gen_range(0..8);
        while self.world.renames() < until && !self.is_over.load(SeqCst) {
            thread::yield_now();
        }
    }

    /// Compacts everything, so many times.
    async fn compact(&self, store: &Store, times: usize) {
        for _ in 0..times {
            store.compact().await.unwrap();
        }
        self.is_over.store(true, SeqCst);
    }
}

/// A handle whose operations go into a history.
#[derive(Clone)]
struct Client {
    store: Store,
    history: Arc<History>,
    pace: Pace,
}

impl Client {
    fn new(store: &Store, world: &World) -> Self {
        Self { store: store.clone(), history: Arc::default(), pace: Pace::new(world) }
    }

    async fn get(&self, key: &str) -> Option<u64> {
        let began = self.history.now();
        let seen = self.store.get(key).await.unwrap().map(|value| number(&value));
        self.history.record(key, began, Event::Get(seen));
        seen
    }

    async fn put(&self, key: &str, value: u64, durability: Durability) {
        self.pace.wait();
        let began = self.history.now();
        self.store.put(key, bytes(value)).durability(durability).await.unwrap();
        self.history.record(key, began, Event::Put(value));
    }

    async fn delete(&self, key: &str, durability: Durability) {
        self.pace.wait();
        let began = self.history.now();
        let existed = self.store.delete(key).durability(durability).await.unwrap();
        self.history.record(key, began, Event::Delete(existed));
    }
}

/// A sweep over all keys finds the one that is there all the time, once, and not the one that is not.
fn check_sweep(store: &Store) {
    let mut found = (0, 0);
    store.core().parts.keydir.for_each_location(|key_len, _| {
        found.0 += u32::from(key_len == UNTOUCHED.len());
        found.1 += u32::from(key_len == DELETED.len());
    });
    assert_eq!(found, (1, 0), "how often a sweep found what is untouched, and what is deleted");
}

/// Every segment's live bytes are those of the records that the keydir points at, and every such segment is there.
pub(super) fn check_live_bytes(store: &Store) {
    let core = store.core();
    let mut live = BTreeMap::<u32, u64>::new();
    core.parts.keydir.for_each_location(|key_len, location| {
        *live.entry(location.segment).or_default() += record_len(key_len, location.value_len as usize);
    });
    for segment in core.parts.segments.all() {
        let expected = live.remove(&segment.id).unwrap_or(0);
        assert_eq!(segment.live_bytes(), expected, "live bytes of segment {}", segment.id);
    }
    assert!(live.is_empty(), "keys point at segments that are gone: {live:?}");
}

/// After the close only the segments of the store are left.
pub(super) fn check_files(store: &Store, world: &World) {
    let segments = store.core().parts.segments.all().len();
    let names = world.dir().names();
    let files = names.iter().filter(|name| name.ends_with(".seg")).count();
    assert_eq!(files, segments, "files of {segments} segments: {names:?}");
    assert!(!world.is_locked(), "the directory is locked after the close");
}

/// Writers of three durabilities, a reader and a sweep over all keys, while everything is compacted twice.
pub(super) fn writes_against_compaction() {
    let world = World::new(image());
    let store = block_on(open(&world));
    let client = Client::new(&store, &world);
    let (first, second, reader, compactor) = (client.clone(), client.clone(), client.clone(), client.clone());
    let tasks = [
        spawn(async move {
            first.put("a", 10, Durability::Synced).await;
            first.delete("b", Durability::Synced).await;
            first.get("b").await;
        }),
        spawn(async move {
            second.put("b", 20, Durability::Buffered).await;
            second.put("a", 21, Durability::Written).await;
            second.delete("a", Durability::Buffered).await;
        }),
        spawn(async move {
            for _ in 0..2 {
                reader.pace.wait();
                for key in ["a", "b"] {
                    reader.get(key).await;
                }
                assert_eq!(reader.get(UNTOUCHED).await, Some(3), "nobody touches it");
                assert_eq!(reader.get(DELETED).await, None, "it was deleted long ago");
                check_sweep(&reader.store);
            }
        }),
        spawn(async move {
            compactor.pace.compact(&compactor.store, 2).await;
        }),
    ];
    for task in tasks {
        task.join().unwrap();
    }
    block_on(async {
        for key in ["a", "b", UNTOUCHED, DELETED] {
            client.get(key).await;
        }
    });
    client.history.check(&BTreeMap::from(BEFORE));
    check_live_bytes(&store);
    block_on(store.close()).unwrap();
    check_files(&store, &world);
}

/// Batches that give two keys the same number: whoever reads one and then the other sees them grow.
pub(super) fn batches_against_compaction() {
    let world = World::new(image());
    let store = block_on(open(&world));
    let (writer, reader, compactor) = (store.clone(), store.clone(), store.clone());
    let pace = Pace::new(&world);
    let (writing, reading, compacting) = (pace.clone(), pace.clone(), pace);
    let batch = |value: u64| {
        let mut batch = Batch::new();
        batch.put("a", bytes(value)).put("b", bytes(value));
        batch
    };
    let tasks = [
        spawn(async move {
            for (value, durability) in [(11, Durability::Synced), (12, Durability::Buffered), (13, Durability::Written)]
            {
                writing.wait();
                writer.write(batch(value)).durability(durability).await.unwrap();
            }
        }),
        spawn(async move {
            for _ in 0..4 {
                reading.wait();
                let first = number(&reader.get("a").await.unwrap().expect("a is never absent"));
                let second = number(&reader.get("b").await.unwrap().expect("b is never absent"));
                assert!(second >= first, "saw a of {first} and then b of {second}");
            }
        }),
        spawn(async move {
            compacting.compact(&compactor, 1).await;
        }),
    ];
    for task in tasks {
        task.join().unwrap();
    }
    check_live_bytes(&store);
    block_on(store.close()).unwrap();
    check_files(&store, &world);
}

/// What a write may say of a store that is being closed.
fn acknowledged<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
            false
        }
    }
}

/// A close in the midst of writes, a compaction, and its pause. Everybody is answered; what was acknowledged is there.
pub(super) fn close_against_everything() {
    let world = World::new(image());
    let store = block_on(open(&world));
    let (first, second, compactor, closer) = (store.clone(), store.clone(), store.clone(), store.clone());
    let writes = [
        spawn(async move { acknowledged(first.put("a", bytes(10)).await) }),
        spawn(async move {
            let buffered = Durability::Buffered;
            acknowledged(second.put("b", bytes(20)).durability(buffered).await)
        }),
    ];
    let compaction = spawn(async move {
        compactor.pause_compaction();
        let compact = compactor.compact();
        compactor.resume_compaction();
        match compact.await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error}"),
        }
        compactor.pause_compaction();
    });
    let close = spawn(async move { closer.close().await });
    let written = writes.map(|write| write.join().unwrap());
    compaction.join().unwrap();
    close.join().unwrap().unwrap();
    block_on(store.close()).unwrap();
    assert_eq!(block_on(store.get("a")).unwrap_err().kind(), ErrorKind::Closed);
    check_files(&store, &world);
    for (was_written, value) in written.into_iter().zip([10, 20]) {
        assert_eq!(world.is_durable(bytes(value).as_bytes()), was_written, "{value} after the close");
    }
}

/// Polls `future` on behalf of nobody.
pub(super) fn begin<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Begins what `future` does in one task and finishes it in another.
pub(super) async fn moved<F: Future + Unpin>(mut future: F) -> F::Output {
    match begin(&mut future) {
        Poll::Ready(output) => output,
        Poll::Pending => future.await,
    }
}

/// Begins what `future` does and goes away.
fn abandoned<F: Future + Unpin>(mut future: F) {
    let _ = begin(&mut future);
}

/// A writer of [`the_commit_queue`], on a disk that may fail.
#[derive(Clone)]
struct Writer {
    store: Store,
    world: World,
}

impl Writer {
    /// Puts `value`; what is said of it must be so at that moment. Tells whether the store has stopped.
    async fn put(&self, value: u64, durability: Durability) -> bool {
        let put = self.store.put(bytes(value), bytes(value)).durability(durability);
        let is_durable = || self.world.is_durable(bytes(value).as_bytes());
        match moved(put).await {
            Ok(version) => {
                let waited = match durability {
                    Durability::Buffered => self.store.wait_durable(version).await,
                    Durability::Written => self.store.sync().await.map(drop),
                    _ => Ok(()),
                };
                // A sync shares the fate of the group it waits for: it fails with that group's writes.
                if let Err(error) = waited {
                    return error.kind() == ErrorKind::Poisoned;
                }
                assert!(is_durable(), "{value} ({durability:?}) was acknowledged and is not durable");
                assert!(self.store.durable_version() >= version, "{value} is beyond the durable version");
                false
            }
            Err(error) => {
                let is_visible = self.store.contains_key(bytes(value));
                if error.outcome() == Outcome::NotApplied {
                    assert!(!is_visible, "{value} was said not to be applied, and is seen: {error}");
                    assert!(!is_durable(), "{value} was said not to be applied, and will be found: {error}");
                }
                let is_dirty = is_visible && durability == Durability::Synced;
                assert!(!is_dirty, "{value} is seen and not durable: {error}");
                error.kind() == ErrorKind::Poisoned
            }
        }
    }
}

/// Writers that wait for the log, for the kernel and for the disk, one of whom goes away, on a disk that may fail once.
pub(super) fn the_commit_queue() {
    let world = World::new(&Image::new());
    let store = block_on(open(&world));
    block_on(store.put("warm", "up")).unwrap();
    world.fail_once(6);
    let writer = Writer { store: store.clone(), world: world.clone() };
    let writers = [Durability::Synced, Durability::Synced, Durability::Written, Durability::Buffered]
        .into_iter()
        .zip([10, 20, 30, 40])
        .map(|(durability, value)| {
            let writer = writer.clone();
            spawn(async move {
                if value == 20 {
                    abandoned(writer.store.put("gone", "away"));
                }
                let first = writer.put(value, durability).await;
                let second = writer.put(value + 1, durability).await;
                assert!(second || !first, "{value} was acknowledged by a store that had stopped");
                second
            })
        })
        .collect::<Vec<_>>();
    let watched = store.clone();
    let watcher = spawn(async move {
        let log = &watched.core().parts.log;
        let mut last = (0, 0);
        for _ in 0..4 {
            let now = (log.durable_seq(), log.resolved_seq());
            assert!(now.0 >= last.0 && now.1 >= last.1, "durable and resolved went from {last:?} to {now:?}");
            last = now;
        }
    });
    let have_stopped: Vec<bool> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    watcher.join().unwrap();
    let closed = block_on(store.close());
    assert!(closed.is_err() || have_stopped.iter().all(|stopped| !stopped), "{have_stopped:?}, and yet {closed:?}");
}

/// Segments of a few records, which are sealed and compacted by themselves while all this goes on.
pub(super) fn rotation_against_everything() {
    let world = World::new(image());
    let compaction = Compaction::new().trigger(0.1).threshold(0.1).bytes_per_second(None);
    let store = Store::builder("/db").backend(Arc::new(world.clone())).segment_bytes(1024).compaction(compaction);
    let store = block_on(store.max_open_files(8).open()).unwrap();
    let client = Client::new(&store, &world);
    // Here the callers keep the compactions going.
    client.pace.is_over.store(true, SeqCst);
    let mut tasks: Vec<_> = [("a", 10, Durability::Synced), ("b", 20, Durability::Buffered)]
        .into_iter()
        .map(|(key, first, durability)| {
            let client = client.clone();
            spawn(async move {
                abandoned(client.store.put(format!("{key} of nobody"), [0; 300]));
                for value in first..first + 3 {
                    client.put(key, value, durability).await;
                }
            })
        })
        .collect();
    let reader = client.clone();
    tasks.push(spawn(async move {
        for _ in 0..3 {
            reader.get("a").await;
            assert_eq!(reader.get(UNTOUCHED).await, Some(3), "nobody touches it");
        }
        reader.delete("b", Durability::Written).await;
    }));
    for task in tasks {
        task.join().unwrap();
    }
    block_on(async {
        for key in ["a", "b", UNTOUCHED, DELETED] {
            client.get(key).await;
        }
        store.sync().await.unwrap();
        store.close().await.unwrap();
    });
    client.history.check(&BTreeMap::from(BEFORE));
    check_live_bytes(&store);
    check_files(&store, &world);
}
