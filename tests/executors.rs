//! Runs one scenario on every kind of executor: the futures need no runtime, reactor or timer of the executor.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a failed check is a failed test"
)]

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::future::{RemoteHandle, join_all};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use ringcask::{Batch, Durability, Engine, ErrorKind, Store};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts a task on the executor of the scenario.
type Spawn<'a> = &'a dyn Fn(Task);

const LEVELS: [Durability; 3] = [Durability::Buffered, Durability::Written, Durability::Synced];

/// Spawns a task and returns a handle to its result, the same way on every executor.
fn spawn<T: Send + 'static>(spawn: Spawn<'_>, future: impl Future<Output = T> + Send + 'static) -> RemoteHandle<T> {
    let (task, handle) = future.remote_handle();
    spawn(Box::pin(task));
    handle
}

async fn scenario(engine: Engine, path: PathBuf, spawner: Spawn<'_>) {
    let store = Store::builder(&path).engine(engine).segment_bytes(64 << 10).open().await.unwrap();
    let mut last = store.durable_version();
    for level in LEVELS {
        let options = level;
        last = store.put("k", level.to_string()).durability(options).await.unwrap();
        assert_eq!(store.get("k").await.unwrap().unwrap(), level.to_string());
        assert!(store.delete("k").durability(options).await.unwrap());
        assert_eq!(store.get("k").await.unwrap(), None);
        let mut batch = Batch::new();
        batch.put(format!("{level}-1"), "1").put(format!("{level}-2"), "2");
        assert!(store.write(batch).durability(level).await.unwrap() > last);
    }
    assert!(store.sync().await.unwrap() >= last);
    store.wait_durable(last).await.unwrap();

    let tasks = (0..16_u32).map(|task| spawn(spawner, writer(store.clone(), task)));
    let written: u32 = join_all(tasks).await.into_iter().sum();
    assert_eq!(store.len(), 6 + 16 * 20);
    assert_eq!(written, 16 * 20);

    // Many futures in one task, which complete in any order.
    let values =
        stream::iter(0..320_u32).map(|index| store.get([index / 20, index % 20].map(u32::to_le_bytes).concat()));
    let found =
        values.buffer_unordered(64).filter(|value| std::future::ready(value.as_ref().unwrap().is_some())).count();
    assert_eq!(found.await, 320);

    store.close().await.unwrap();
    assert_eq!(store.put("k", "v").await.unwrap_err().kind(), ErrorKind::Closed);
    drop(store);
    let store = Store::builder(&path).engine(engine).open().await.unwrap();
    assert_eq!(store.len(), 6 + 16 * 20);
    store.close().await.unwrap();
}

async fn writer(store: Store, task: u32) -> u32 {
    for index in 0..20_u32 {
        let key = [task, index].map(u32::to_le_bytes).concat();
        let options = LEVELS[(index % 3) as usize];
        store.put(&key, vec![u8::try_from(index).unwrap(); 2000]).durability(options).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().len(), 2000);
    }
    20
}

fn tokio_multi_thread(engine: Engine, path: PathBuf) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    runtime.block_on(scenario(engine, path, &|task| drop(tokio::spawn(task))));
}

fn tokio_current_thread_without_drivers(engine: Engine, path: PathBuf) {
    // Without `enable_io` and `enable_time`: a future that needs either would panic.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(scenario(engine, path, &|task| drop(tokio::spawn(task))));
}

fn smol_executor(engine: Engine, path: PathBuf) {
    smol::block_on(scenario(engine, path, &|task| smol::spawn(task).detach()));
}

fn pollster_and_threads(engine: Engine, path: PathBuf) {
    let spawn = |task| drop(std::thread::spawn(move || pollster::block_on(task)));
    pollster::block_on(scenario(engine, path, &spawn));
}

fn futures_thread_pool(engine: Engine, path: PathBuf) {
    let pool = futures_executor::ThreadPool::builder().pool_size(2).create().unwrap();
    futures_executor::block_on(scenario(engine, path, &|task| pool.spawn_ok(task)));
}

/// A single-threaded executor that uses io_uring itself, with an older version of the bindings.
fn tokio_uring_executor(engine: Engine, path: PathBuf) {
    tokio_uring::start(scenario(engine, path, &|task| drop(tokio_uring::spawn(task))));
}

type Run = fn(Engine, PathBuf);

const EXECUTORS: [(&str, Run); 6] = [
    ("tokio multi-thread", tokio_multi_thread),
    ("tokio current-thread, no drivers", tokio_current_thread_without_drivers),
    ("smol", smol_executor),
    ("pollster and threads", pollster_and_threads),
    ("futures thread pool", futures_thread_pool),
    ("tokio-uring", tokio_uring_executor),
];

#[test]
fn the_scenario_passes_on_every_executor_and_engine() {
    let ring: std::io::Result<io_uring::IoUring> =
        io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(4);
    let refused = ring.err();
    let skip = |what: &str| {
        println!("SKIPPED: {what}: io_uring is unavailable: {refused:?}");
        assert!(std::env::var_os("RINGCASK_REQUIRE_ALL").is_none(), "{what} must run here");
    };
    let mut runs = 0;
    for engine in [Engine::Threads, Engine::Uring] {
        for (name, run) in EXECUTORS {
            if refused.is_some() && (engine == Engine::Uring || name == "tokio-uring") {
                skip(&format!("{name} on {engine}"));
                continue;
            }
            let dir = tempfile::TempDir::with_prefix("ringcask-").unwrap();
            run(engine, dir.path().join("store"));
            println!("{name} on {engine}: passed");
            runs += 1;
        }
    }
    println!("{runs} combinations of executor and engine");
    assert_eq!(runs, if refused.is_some() { 5 } else { 12 });
}
