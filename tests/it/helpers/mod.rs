//! Helpers of these tests: backends, waiting with a deadline, child processes, random numbers.
//!
//! No test depends on a sleep: [`eventually`] polls a condition until a generous deadline. A future that never resolves
//! fails its test instead of blocking it.

pub mod counting_allocator;
pub mod fork;
pub mod gated_io;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ringcask::testing::sim::{SimBackend, SimConfig};
use ringcask::{Builder, Durability, Engine, Store};
use tempfile::TempDir;

/// A wait that takes longer counts as a hang.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// All durability levels.
pub const LEVELS: [Durability; 3] = [Durability::Buffered, Durability::Written, Durability::Synced];

/// The environment variable that turns every skip into a failure.
const REQUIRE_ALL: &str = "RINGCASK_REQUIRE_ALL";
const CHILD: &str = "RINGCASK_TEST_CHILD";

/// Reports visibly that `what` did not run here.
pub fn skip(what: &str, why: &str) {
    println!("SKIPPED: {what}: {why}");
    eprintln!("SKIPPED: {what}: {why}");
    assert!(std::env::var_os(REQUIRE_ALL).is_none(), "{what} must run here ({REQUIRE_ALL} is set): {why}");
}

/// The reason why the kernel refuses a ring. The check does not use the library, which therefore cannot hide its own
/// failure.
pub fn uring_refused() -> Option<&'static str> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let ring: std::io::Result<io_uring::IoUring> =
            io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(4);
        ring.err().map(|error| format!("the kernel refuses an io_uring: {error}"))
    };
    REFUSED.get_or_init(probe).as_deref()
}

thread_local! {
    /// The simulated backend that drives this thread's futures, if any.
    static SIMULATED: RefCell<Option<SimBackend>> = const { RefCell::new(None) };
}

/// A backend and directory for a test.
pub struct Env {
    pub engine: Engine,
    pub dir: TempDir,
    simulated: Option<SimBackend>,
}

impl Env {
    pub fn new(engine: Engine) -> Self {
        Self { engine, dir: TempDir::with_prefix("ringcask-").expect("temporary directory"), simulated: None }
    }

    /// The store's directory; it does not exist before the first open.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn builder(&self) -> Builder {
        self.builder_at(self.path())
    }

    pub fn builder_at(&self, path: impl AsRef<Path>) -> Builder {
        let builder = Store::builder(path).engine(self.engine).tiny_sizes();
        match &self.simulated {
            Some(backend) => builder.backend(Arc::new(backend.clone())),
            None => builder,
        }
    }

    pub fn open(&self) -> Store {
        open(self.builder())
    }

    /// The expected `Stats::engine`.
    pub fn engine_name(&self) -> &'static str {
        match (&self.simulated, self.engine) {
            (Some(_), _) => "sim",
            (None, Engine::Uring) => "io_uring",
            _ => "threads",
        }
    }

    pub fn open_future(&self) -> ringcask::futures::Open {
        self.builder().open()
    }
}

/// Runs `test` on both engines, each with a fresh directory. Reports an engine that the kernel refuses as skipped.
pub fn for_each_engine(test: impl Fn(&Env)) {
    let mut ran = 0;
    for engine in [Engine::Threads, Engine::Uring] {
        if let (Engine::Uring, Some(why)) = (engine, uring_refused()) {
            skip("engine uring", why);
            continue;
        }
        println!("engine {engine}");
        test(&Env::new(engine));
        ran += 1;
    }
    assert!(ran == 2 || uring_refused().is_some(), "{ran} of 2 engines ran");
}

/// Runs `test` on both engines and on the simulated backend. Only this thread drives the simulated backend's futures.
pub fn for_each_backend(test: impl Fn(&Env)) {
    for_each_engine(&test);
    println!("engine sim");
    in_simulation(1, test);
}

/// Runs `test` on the simulated backend of `seed`. Only this thread drives its futures.
pub fn in_simulation(seed: u64, test: impl Fn(&Env)) {
    let config = SimConfig { seed, short_percent: 20, interrupt_percent: 10, journal: false, ..SimConfig::default() };
    let backend = SimBackend::new(config);
    SIMULATED.set(Some(backend.clone()));
    test(&Env { simulated: Some(backend.clone()), ..Env::new(Engine::Auto) });
    SIMULATED.set(None);
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
}

/// Opens a store, or fails the test with the reason.
#[track_caller]
pub fn open(builder: Builder) -> Store {
    block_on(builder.open()).unwrap_or_else(|error| panic!("open: {error:?}"))
}

#[track_caller]
pub fn close(store: Store) {
    block_on(store.close()).unwrap_or_else(|error| panic!("close: {error:?}"));
}

#[track_caller]
pub fn put(store: &Store, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> ringcask::Version {
    block_on(store.put(key, value)).unwrap_or_else(|error| panic!("put: {error:?}"))
}

#[track_caller]
pub fn put_at(store: &Store, level: Durability, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> ringcask::Version {
    block_on(store.put(key, value).durability(level)).unwrap_or_else(|error| panic!("put {level}: {error:?}"))
}

#[track_caller]
pub fn get(store: &Store, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    block_on(store.get(key)).unwrap_or_else(|error| panic!("get: {error:?}")).map(|value| value.to_vec())
}

#[track_caller]
pub fn delete(store: &Store, key: impl AsRef<[u8]>) -> bool {
    block_on(store.delete(key)).unwrap_or_else(|error| panic!("delete: {error:?}"))
}

/// The expected contents of a store.
pub type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Compares the key count, value lengths and values of the store with `model`.
#[track_caller]
pub fn assert_holds(store: &Store, model: &Model) {
    assert_eq!(store.len(), model.len(), "number of keys");
    for (key, value) in model {
        let name = String::from_utf8_lossy(&key[..key.len().min(40)]);
        assert_eq!(store.value_len(key), Some(value.len() as u64), "length of {name}");
        assert_eq!(get(store, key).as_deref(), Some(&value[..]), "value of {name}");
    }
}

struct Parker {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// A waker for this thread, and whether it was woken after the last wait.
pub struct Parked(Arc<Parker>);

impl Parked {
    pub fn new() -> Self {
        Self(Arc::new(Parker { thread: thread::current(), woken: AtomicBool::new(false) }))
    }

    pub fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// Blocks until woken.
    #[track_caller]
    pub fn wait(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.0.woken.swap(false, Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the future was not woken within {DEADLINE:?}: it hangs");
            thread::park_timeout(left);
        }
    }
}

/// Runs `future` to completion on this thread.
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    if let Some(backend) = SIMULATED.with_borrow(Clone::clone) {
        return backend.run_until(future);
    }
    let mut future = pin!(future);
    let parked = Parked::new();
    let waker = parked.waker();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        parked.wait();
    }
}

/// Polls once with a waker that does nothing.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls `done` until it returns true; fails the test after the deadline.
#[track_caller]
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_within(DEADLINE, what, done);
}

/// The same with another deadline, which must be far longer than any correct wait.
#[track_caller]
pub fn eventually_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        // Yields the processor to the engine; the result does not depend on this sleep.
        thread::sleep(Duration::from_micros(500));
    }
}

/// Whether this process is a child that a test started to rerun itself.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The engine and directory that the parent chose for this child.
pub fn child_env() -> (Engine, PathBuf) {
    let engine = std::env::var("RINGCASK_TEST_ENGINE").expect("engine of the child");
    (engine.parse().expect("engine"), PathBuf::from(std::env::var_os("RINGCASK_TEST_DIR").expect("directory")))
}

/// A command that reruns only the test `name` of this binary in a child, with `env`'s engine and directory.
pub fn rerun(name: &str, env: &Env) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("path of the test binary"));
    with_child_args(&mut command, name, env);
    command
}

/// The same with `SIGXFSZ` ignored, so that a write beyond the file-size limit returns an error.
pub fn rerun_without_xfsz(name: &str, env: &Env) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("path of the test binary"));
    with_child_args(&mut command, name, env);
    command
}

/// The same under `strace` with `options`.
pub fn rerun_traced(name: &str, env: &Env, options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(options).arg(std::env::current_exe().expect("path of the test binary"));
    with_child_args(&mut command, name, env);
    command
}

fn with_child_args(command: &mut Command, name: &str, env: &Env) {
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command.env("RINGCASK_TEST_ENGINE", env.engine.to_string()).env("RINGCASK_TEST_DIR", env.path());
}

/// Runs a child to its end. Fails this test if the child failed or did not run exactly one test.
#[track_caller]
pub fn expect_success(mut command: Command) -> String {
    let output = command.output().expect("run the child");
    let text = text_of(&output);
    assert!(output.status.success() && text.contains("1 passed"), "child: {}\n{text}", output.status);
    text
}

/// Prints a child's report without the test harness's lines. The first line of the report follows the test's name.
pub fn print_report(output: &str) {
    let lines = output.lines().map(|line| line.split_once(" ... ").map_or(line, |(_, found)| found));
    let noise =
        |line: &&str| line.is_empty() || *line == "ok" || line.starts_with("running ") || line.starts_with("test ");
    lines.filter(|line| !noise(line)).for_each(|line| println!("{line}"));
}

pub fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Copies the files of a store that receives no writes: the state that a kill of the process would leave now.
///
/// The maintenance task may still be writing hint files under temporary names that disappear.
pub fn copy_store(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create the copy");
    for entry in fs::read_dir(from).expect("list the store") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            continue;
        }
        match fs::copy(&path, to.join(path.file_name().expect("name"))) {
            Err(error) if error.kind() == ErrorKind::NotFound && path.extension().is_some_and(|end| end == "tmp") => {}
            copied => assert!(copied.is_ok(), "copy {path:?}: {copied:?}"),
        }
    }
}

/// Paths in `dir` with this extension, sorted.
pub fn files_with(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

/// The names and contents of all files in `dir`.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry"));
    let files = entries.filter(|entry| entry.file_type().expect("type").is_file());
    files.map(|entry| (entry.file_name().into_string().expect("name"), fs::read(entry.path()).expect("read"))).collect()
}

/// SplitMix64: small, and deterministic on every platform.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator whose seed comes from `RINGCASK_SEED` or the clock, and is printed.
    pub fn seeded(test: &str) -> Self {
        let given = std::env::var("RINGCASK_SEED").ok().and_then(|text| text.parse().ok());
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = given.unwrap_or(since_epoch.as_nanos() as u64);
        println!("{test}: RINGCASK_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn level(&mut self) -> Durability {
        LEVELS[self.below(3) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
