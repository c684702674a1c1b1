//! Models of the whole store: callers, the commit task, the maintenance task, and compactions of segments that an
//! earlier session left.

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

use super::backend::{ExplorerBackend, FileImage};
use super::history::{KeyEvent, KeyHistories};
use crate::format::record_len;
use crate::{Batch, Builder, Compaction, Durability, ErrorKind, Outcome, Result, Store};

/// Three sealed segments. They have the values of [`BEFORE`], and [`DELETED`] was deleted.
static IMAGE: OnceLock<FileImage> = OnceLock::new();

const BEFORE: [(&str, u64); 3] = [("a", 1), ("b", 5), (UNTOUCHED, 3)];

/// A key that no model writes. The length of its name distinguishes it from the others.
pub(super) const UNTOUCHED: &str = "untouched";

/// A key that is absent in every model.
const DELETED: &str = "deleted";

/// Makes the image that the models start from. Must be called outside a model.
pub(super) fn prepare() {
    let sessions = || {
        let backend = ExplorerBackend::new(&FileImage::new());
        for session in [&[("a", 1), ("b", 2), (UNTOUCHED, 3), (DELETED, 4)][..], &[("b", 5)], &[]] {
            block_on(async {
                let store = open(&backend).await;
                for &(key, value) in session {
                    store.put(key, bytes(value)).await.unwrap();
                }
                if session.is_empty() {
                    assert!(store.delete(DELETED).await.unwrap());
                }
                store.close().await.unwrap();
            });
        }
        let _ = IMAGE.set(backend.image());
    };
    if IMAGE.get().is_none() {
        let config = super::config(FailurePersistence::Print);
        Runner::new(RandomScheduler::new_from_seed(1, 1), config).run(sessions);
    }
}

pub(super) fn image() -> &'static FileImage {
    IMAGE.get().expect("`prepare` was called")
}

pub(super) async fn open(backend: &ExplorerBackend) -> Store {
    open_with(backend, |builder| builder).await
}

/// Opens the store with the options that `more` adds.
pub(super) async fn open_with(backend: &ExplorerBackend, more: impl FnOnce(Builder) -> Builder) -> Store {
    let compaction = Compaction::new().automatic(false).bytes_per_second(None);
    let builder = Store::builder("/db").backend(Arc::new(backend.clone())).compaction(compaction);
    more(builder.max_open_files(8)).open().await.unwrap()
}

/// The bytes of a value. A few of them fill a small segment.
pub(super) fn bytes(value: u64) -> String {
    format!("value {value:0240}")
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.strip_prefix("value "));
    text.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no task wrote the value {value:?}"))
}

pub(super) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || block_on(task))
}

/// Decides when an operation of a caller may start, relative to a compaction.
///
/// A compaction takes many more steps than a get, so callers would finish long before it repoints the first key. Each
/// call therefore waits for a random one of the compaction's renames, or for its end.
#[derive(Clone)]
struct CompactionPace {
    backend: ExplorerBackend,
    first_rename: u64,
    is_over: Arc<AtomicBool>,
}

impl CompactionPace {
    fn new(backend: &ExplorerBackend) -> Self {
        Self { backend: backend.clone(), first_rename: backend.renames(), is_over: Arc::default() }
    }

    fn wait(&self) {
        let until = self.first_rename + shuttle::rand::thread_rng().gen_range(0..8);
        while self.backend.renames() < until && !self.is_over.load(SeqCst) {
            thread::yield_now();
        }
    }

    /// Compacts the whole store `times` times.
    async fn compact(&self, store: &Store, times: usize) {
        for _ in 0..times {
            store.compact().await.unwrap();
        }
        self.is_over.store(true, SeqCst);
    }
}

/// A store handle that records its operations.
#[derive(Clone)]
struct RecordingClient {
    store: Store,
    history: Arc<KeyHistories>,
    pace: CompactionPace,
}

impl RecordingClient {
    fn new(store: &Store, backend: &ExplorerBackend) -> Self {
        Self { store: store.clone(), history: Arc::default(), pace: CompactionPace::new(backend) }
    }

    async fn get(&self, key: &str) -> Option<u64> {
        let called = self.history.now();
        let seen = self.store.get(key).await.unwrap().map(|value| number(&value));
        self.history.record(key, called, KeyEvent::Get(seen));
        seen
    }

    async fn put(&self, key: &str, value: u64, durability: Durability) {
        self.pace.wait();
        let called = self.history.now();
        self.store.put(key, bytes(value)).durability(durability).await.unwrap();
        self.history.record(key, called, KeyEvent::Put(value));
    }

    async fn delete(&self, key: &str, durability: Durability) {
        self.pace.wait();
        let called = self.history.now();
        let existed = self.store.delete(key).durability(durability).await.unwrap();
        self.history.record(key, called, KeyEvent::Delete(existed));
    }
}

/// Checks that a pass over all keys finds [`UNTOUCHED`] once and [`DELETED`] never.
fn check_pass_over_all_keys(store: &Store) {
    let mut found = (0, 0);
    store.core().parts.keydir.for_each_location(|key_len, _| {
        found.0 += u32::from(key_len == UNTOUCHED.len());
        found.1 += u32::from(key_len == DELETED.len());
    });
    assert_eq!(found, (1, 0), "how often a pass found the untouched and the deleted key");
}

/// Checks that each segment's live bytes are those of the records that the keydir points to, and that the keydir points
/// to no other segment.
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
    assert!(live.is_empty(), "keys point to segments that do not exist: {live:?}");
}

/// Checks, after the close, that the directory has the files of the store's segments only, and is not locked.
pub(super) fn check_files(store: &Store, backend: &ExplorerBackend) {
    let segments = store.core().parts.segments.all().len();
    let names = backend.dir().names();
    let files = names.iter().filter(|name| name.ends_with(".seg")).count();
    assert_eq!(files, segments, "segment files, for {segments} segments: {names:?}");
    assert!(!backend.is_locked(), "the directory is locked after the close");
}

/// Writers of all three durability levels, a reader and passes over all keys run while the store is compacted twice.
pub(super) fn writes_against_compaction() {
    let backend = ExplorerBackend::new(image());
    let store = block_on(open(&backend));
    let client = RecordingClient::new(&store, &backend);
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
                assert_eq!(reader.get(UNTOUCHED).await, Some(3), "no task writes it");
                assert_eq!(reader.get(DELETED).await, None, "an earlier session deleted it");
                check_pass_over_all_keys(&reader.store);
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
    check_files(&store, &backend);
}

/// Batches give two keys the same, growing number. A reader of one and then the other never sees a smaller number
/// second.
pub(super) fn batches_against_compaction() {
    let backend = ExplorerBackend::new(image());
    let store = block_on(open(&backend));
    let (writer, reader, compactor) = (store.clone(), store.clone(), store.clone());
    let pace = CompactionPace::new(&backend);
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
                assert!(second >= first, "read {first} for a and then {second} for b");
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
    check_files(&store, &backend);
}

/// Whether a write was acknowledged. Otherwise its error must be that of a closed store.
fn is_acknowledged<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
            false
        }
    }
}

/// A close runs against writes, a compaction, and a pause of compaction. Every call completes, and acknowledged writes
/// are durable.
pub(super) fn close_against_everything() {
    let backend = ExplorerBackend::new(image());
    let store = block_on(open(&backend));
    let (first, second, compactor, closer) = (store.clone(), store.clone(), store.clone(), store.clone());
    let writes = [
        spawn(async move { is_acknowledged(first.put("a", bytes(10)).await) }),
        spawn(async move {
            let buffered = Durability::Buffered;
            is_acknowledged(second.put("b", bytes(20)).durability(buffered).await)
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
    check_files(&store, &backend);
    for (was_written, value) in written.into_iter().zip([10, 20]) {
        assert_eq!(backend.is_durable(bytes(value).as_bytes()), was_written, "{value} after the close");
    }
}

/// Polls `future` with a waker that does nothing.
pub(super) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls `future` once with a waker that does nothing, then awaits it, as a future does that moves to another task.
pub(super) async fn moved<F: Future + Unpin>(mut future: F) -> F::Output {
    match poll_once(&mut future) {
        Poll::Ready(output) => output,
        Poll::Pending => future.await,
    }
}

/// Polls `future` once and drops it.
fn abandoned<F: Future + Unpin>(mut future: F) {
    let _ = poll_once(&mut future);
}

/// A writer of [`the_commit_queue`], on a disk that may fail.
#[derive(Clone)]
struct QueueWriter {
    store: Store,
    backend: ExplorerBackend,
}

impl QueueWriter {
    /// Puts `value` and checks that the result is true at this moment. Returns whether the store is poisoned.
    async fn put(&self, value: u64, durability: Durability) -> bool {
        let put = self.store.put(bytes(value), bytes(value)).durability(durability);
        let is_durable = || self.backend.is_durable(bytes(value).as_bytes());
        match moved(put).await {
            Ok(version) => {
                let waited = match durability {
                    Durability::Buffered => self.store.wait_durable(version).await,
                    Durability::Written => self.store.sync().await.map(drop),
                    _ => Ok(()),
                };
                // A sync that waits for a group fails with the writes of that group.
                if let Err(error) = waited {
                    return error.kind() == ErrorKind::Poisoned;
                }
                assert!(is_durable(), "{value} ({durability:?}) was acknowledged but is not durable");
                assert!(self.store.durable_version() >= version, "the durable version is below that of {value}");
                false
            }
            Err(error) => {
                let is_visible = self.store.contains_key(bytes(value));
                if error.outcome() == Outcome::NotApplied {
                    assert!(!is_visible, "{value} was reported as not applied but is visible: {error}");
                    assert!(!is_durable(), "{value} was reported as not applied but is durable: {error}");
                }
                let is_dirty = is_visible && durability == Durability::Synced;
                assert!(!is_dirty, "{value} is visible but not durable: {error}");
                error.kind() == ErrorKind::Poisoned
            }
        }
    }
}

/// Writers of all three durability levels, one of which also drops a future, run on a disk that may fail once.
pub(super) fn the_commit_queue() {
    let backend = ExplorerBackend::new(&FileImage::new());
    let store = block_on(open(&backend));
    block_on(store.put("warm", "up")).unwrap();
    backend.fail_once(6);
    let writer = QueueWriter { store: store.clone(), backend: backend.clone() };
    let writers = [Durability::Synced, Durability::Synced, Durability::Written, Durability::Buffered]
        .into_iter()
        .zip([10, 20, 30, 40])
        .map(|(durability, value)| {
            let writer = writer.clone();
            spawn(async move {
                if value == 20 {
                    abandoned(writer.store.put("dropped", "value"));
                }
                let first = writer.put(value, durability).await;
                let second = writer.put(value + 1, durability).await;
                assert!(second || !first, "{value} was acknowledged by a poisoned store");
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
            assert!(
                now.0 >= last.0 && now.1 >= last.1,
                "the durable and resolved numbers went from {last:?} to {now:?}"
            );
            last = now;
        }
    });
    let saw_poisoned: Vec<bool> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    watcher.join().unwrap();
    let closed = block_on(store.close());
    assert!(
        closed.is_err() || saw_poisoned.iter().all(|poisoned| !poisoned),
        "writers saw a poisoned store ({saw_poisoned:?}), but close returned {closed:?}"
    );
}

/// Writers and a reader run while the store seals and compacts segments of a few records automatically.
pub(super) fn rotation_against_everything() {
    let backend = ExplorerBackend::new(image());
    let compaction = Compaction::new().trigger(0.1).threshold(0.1).bytes_per_second(None);
    let store = Store::builder("/db").backend(Arc::new(backend.clone())).segment_bytes(1024).compaction(compaction);
    let store = block_on(store.max_open_files(8).open()).unwrap();
    let client = RecordingClient::new(&store, &backend);
    // The writes of the callers trigger the compactions, so the callers must not wait for them.
    client.pace.is_over.store(true, SeqCst);
    let mut tasks: Vec<_> = [("a", 10, Durability::Synced), ("b", 20, Durability::Buffered)]
        .into_iter()
        .map(|(key, first, durability)| {
            let client = client.clone();
            spawn(async move {
                abandoned(client.store.put(format!("{key} dropped"), [0; 300]));
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
            assert_eq!(reader.get(UNTOUCHED).await, Some(3), "no task writes it");
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
    check_files(&store, &backend);
}
