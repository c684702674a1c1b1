//! The contract of the I/O backend: one suite for every implementation.
//!
//! Each check runs on every backend, and never at the same time as another check. Afterwards the process must have the
//! same number of open descriptors as before, so every check also finds leaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]

mod all_backends;
mod background;
mod files;
mod operations;
mod tasks;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ringcask::WritePath;
use ringcask::testing::io::threads::ThreadsIo;
use ringcask::testing::io::uring::{DEFAULT_ENTRIES, UringIo};
use ringcask::testing::io::{Dir, File, Io, OpenMode, Priority, ReadDone};

/// Time after which a check counts as hung, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

type MakeBackend = fn() -> Arc<dyn Io>;

/// The real backends. Checks that need no real file system also run on the simulated one (`all_backends`).
fn backends() -> Vec<(&'static str, MakeBackend)> {
    let mut backends: Vec<(&'static str, MakeBackend)> = vec![("threads", || Arc::new(ThreadsIo::new()))];
    if std::env::var_os("RINGCASK_ENGINE").is_some_and(|engine| engine == "threads") {
        println!("RINGCASK_ENGINE=threads: io_uring is not tested");
    } else {
        backends.push(("uring", || Arc::new(UringIo::new(DEFAULT_ENTRIES).expect("io_uring is unavailable here"))));
        backends.push(("uring of 2 entries, writes on the ring", || {
            Arc::new(UringIo::with_write_path(2, WritePath::Ring).unwrap())
        }));
    }
    backends
}

/// A backend, and a directory for it.
struct Stage {
    name: &'static str,
    io: Arc<dyn Io>,
    path: PathBuf,
}

impl Stage {
    fn dir(&self) -> Arc<dyn Dir> {
        self.io.open_dir(&self.path, true).unwrap()
    }

    /// A file that is not in the page cache, with `blocks` blocks of 4 KiB. Every byte identifies its block.
    fn cold_file(&self, blocks: u32) -> Arc<dyn File> {
        let content: Vec<u8> = (0..blocks).flat_map(|block| block.to_le_bytes().repeat(1024)).collect();
        std::fs::write(self.path.join("cold"), &content).unwrap();
        std::fs::File::open(self.path.join("cold")).unwrap().sync_all().unwrap();
        let file = self.dir().open("cold", OpenMode::Read).unwrap();
        file.evict();
        file
    }
}

fn check_block(done: ReadDone, block: u32) {
    assert_eq!(done.result.unwrap(), 4096, "block {block}");
    assert_eq!(done.buf, block.to_le_bytes().repeat(1024), "block {block}");
}

/// Reports that `what` was not tested. Fails if `RINGCASK_REQUIRE_ALL` is set.
fn skip(what: &str, why: &str) {
    println!("SKIPPED: {what}: {why}");
    eprintln!("SKIPPED: {what}: {why}");
    assert!(std::env::var_os("RINGCASK_REQUIRE_ALL").is_none(), "{what} must run here: {why}");
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs `check` once per backend, in a directory that does not exist yet.
fn on_every_backend(check: impl Fn(Stage)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, make) in backends() {
        let home = tempfile::tempdir().unwrap();
        let before = open_descriptors();
        let start = Instant::now();
        check(Stage { name, io: make(), path: home.path().join("a/b") });
        // An engine thread that was told to stop may still be exiting.
        while open_descriptors() != before {
            assert!(
                start.elapsed() < PATIENCE,
                "{name}: {before} open descriptors before, {} after",
                open_descriptors()
            );
            thread::yield_now();
        }
        println!("{name}: {:?}", start.elapsed());
    }
}

/// Runs a task of the stage's backend to its end. Returns its result.
fn in_task<R: Send + 'static, T: Future<Output = R> + Send + 'static>(
    stage: &Stage,
    task: impl FnOnce(Arc<dyn Io>, Arc<dyn Dir>) -> T,
) -> R {
    in_task_of(Priority::Foreground, stage, task)
}

fn in_task_of<R: Send + 'static, T: Future<Output = R> + Send + 'static>(
    priority: Priority,
    stage: &Stage,
    task: impl FnOnce(Arc<dyn Io>, Arc<dyn Dir>) -> T,
) -> R {
    let (done, result) = mpsc::channel();
    let task = task(Arc::clone(&stage.io), stage.dir());
    stage.io.spawn("contract", priority, Box::pin(async move { done.send(task.await).unwrap() })).unwrap();
    result.recv_timeout(PATIENCE).expect("the task hangs, or it panicked: see the message above")
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future` on this thread, which does not belong to the backend.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "no wake-up within the time limit");
        thread::park_timeout(PATIENCE);
    }
}

/// The owner of a written buffer. Counts its drop.
struct Owner(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.fill(0xee);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}
