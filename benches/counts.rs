//! Instructions per operation, which do not depend on the load of the machine.
//!
//! `cargo bench --bench counts` compares the counts with `benches/counts.txt` and exits with 1 when one is outside its
//! margin, above or below: a lower count must be recorded, so that the gain is kept. `-- --write` rewrites the file with
//! the median of five rounds and prints their spread, on which the margins are based; `-- --spread` only prints it.
//!
//! The benchmark fills a store and closes it. Child processes under `valgrind --tool=callgrind` then open it, run N or 2N
//! operations and close it. The difference divided by N is the count of one operation, without open, load and close.
//! `caller` counts the calling thread; `all` adds the store's threads, whose work depends on the sizes of groups. Valgrind
//! does not support io_uring, so the engine is `Engine::Threads`. Instructions inside the kernel are not counted.
//!
//! Counts depend on the compiler, and on the CPU, whose features select code at run time. When either differs from the
//! one named in the file, the benchmark prints the differences and exits with 0. Build without the feature
//! `__testing`, as users do: with it, checks for seeded bugs add some tens of instructions per operation.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    unsafe_code,
    reason = "a benchmark stops at the first error, and this one needs its own allocator"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::task::{Context, Poll, Waker};

use pollster::block_on;
use ringcask::{Batch, Durability, Engine, Store};

/// The system allocator, except that small blocks are always copied when they grow. Whether a block can grow in place
/// depends on its neighbours and so on the order in which threads run: counts of a batch varied by up to 9 %. Large blocks
/// have their own mappings and grow without a copy.
struct Copying;

/// Larger than the buffers of a batch, smaller than a block with its own mapping.
const SMALL_BYTES: usize = 64 << 10;

// SAFETY: every block comes from the system allocator with the requested layout; `realloc` preserves its content.
unsafe impl GlobalAlloc for Copying {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > SMALL_BYTES {
            // SAFETY: the caller upholds the same contract.
            return unsafe { System.realloc(pointer, layout, new_size) };
        }
        // SAFETY: the caller guarantees that the new size is not zero and is valid for the old alignment. The two blocks
        // do not overlap, and both are at least as long as the smaller of the two sizes.
        unsafe {
            let new = System.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(pointer, layout.size().min(new_size));
                System.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[global_allocator]
static ALLOCATOR: Copying = Copying;

const VALUE: [u8; 256] = [0x5A; 256];
/// Keys of a store that is not empty. Coprime with 7,919.
const KEYS: u64 = 20_000;
const BATCH: u64 = 100;
const CHILD: &str = "RINGCASK_BENCH_COUNTS";
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.txt");
const ROUNDS: usize = 5;

struct Case {
    name: &'static str,
    /// N.
    operations: u64,
    /// Keys in the store when the child opens it, given the number of operations.
    keys: fn(u64) -> u64,
    run: fn(&Store, u64),
    /// Margin of the calling thread in percent; `None` where it does none of the work.
    caller_margin: Option<f64>,
    /// Margin of all threads together in percent.
    all_margin: f64,
}

// The margins are based on sets of five rounds with two to three busy programs per CPU. Counts stayed within 1 % of the
// middle of their range, those of puts and batches within 2 %, because the log's buffer grows further in some rounds.
const CASES: [Case; 7] = [
    Case {
        name: "get_cached",
        operations: 10_000,
        keys: |_| KEYS,
        run: get_cached,
        caller_margin: Some(5.0),
        all_margin: 5.0,
    },
    Case {
        name: "get_absent",
        operations: 20_000,
        keys: |_| KEYS,
        run: get_absent,
        caller_margin: Some(5.0),
        all_margin: 5.0,
    },
    Case { name: "put_new", operations: 20_000, keys: |_| 0, run: put, caller_margin: Some(7.0), all_margin: 5.0 },
    Case {
        name: "put_overwrite",
        operations: 20_000,
        keys: |_| KEYS,
        run: put,
        caller_margin: Some(7.0),
        all_margin: 5.0,
    },
    Case {
        name: "batch_record",
        operations: 40_000,
        keys: |_| KEYS,
        run: batches,
        caller_margin: Some(7.0),
        all_margin: 5.0,
    },
    Case { name: "delete", operations: 10_000, keys: |_| KEYS, run: delete, caller_margin: Some(5.0), all_margin: 5.0 },
    Case {
        name: "hint_load_key",
        operations: 50_000,
        keys: |operations| operations,
        run: nothing,
        caller_margin: None,
        all_margin: 5.0,
    },
];

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench-key-------";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Polls once without an executor, so that its instructions do not count when the future is ready.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => block_on(future),
    }
}

fn get_cached(store: &Store, operations: u64) {
    // Each key at most once, out of order.
    for number in 0..operations {
        assert!(finish(store.get(key(number * 7_919 % KEYS))).unwrap().is_some());
    }
    let stats = store.stats();
    // The kernel may evict a page. A get that reads from the disk costs as much as several others; this few add about 1 %,
    // which is within the margin.
    assert!(stats.gets_from_page_cache >= operations - operations / 500, "{stats:?}");
}

fn get_absent(store: &Store, operations: u64) {
    for number in 0..operations {
        assert!(finish(store.get(key(1_000_000 + number))).unwrap().is_none());
    }
}

fn put(store: &Store, operations: u64) {
    for number in 0..operations {
        finish(store.put(key(number), VALUE)).unwrap();
    }
    assert_eq!(store.stats().puts, operations);
}

fn batches(store: &Store, operations: u64) {
    for first in (0..operations).step_by(usize::try_from(BATCH).unwrap()) {
        let mut batch = Batch::new();
        for number in first..first + BATCH {
            batch.put(key(number), VALUE);
        }
        finish(store.write(batch)).unwrap();
    }
    assert_eq!(store.stats().batches, operations / BATCH);
}

fn delete(store: &Store, operations: u64) {
    for number in 0..operations {
        assert!(finish(store.delete(key(number))).unwrap());
    }
}

fn nothing(store: &Store, operations: u64) {
    let report = store.recovery_report();
    assert_eq!((report.segments_scanned, store.len()), (0, usize::try_from(operations).unwrap()), "loaded from hints");
}

fn open(path: &Path) -> Store {
    // Staging holds all writes, so that no writer waits: the number of waits would depend on the disk.
    let builder = Store::builder(path).engine(Engine::Threads).durability(Durability::Buffered).staging_bytes(64 << 20);
    block_on(builder.open()).unwrap()
}

/// The counted process: `arguments` are the name of the case, the number of operations and the store's directory.
fn child(arguments: &str) {
    let mut arguments = arguments.splitn(3, ' ');
    let mut next = || arguments.next().unwrap();
    let (name, operations, path) = (next(), next().parse().unwrap(), Path::new(next()));
    let store = open(path);
    (CASES.iter().find(|case| case.name == name).unwrap().run)(&store, operations);
    block_on(store.close()).unwrap();
}

/// Instructions of the calling thread and of all threads.
#[derive(Clone, Copy)]
struct Counts {
    caller: f64,
    all: f64,
}

/// Runs `operations` of a case in a new store under callgrind.
fn count(case: &Case, operations: u64) -> Counts {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("store");
    let store = open(&path);
    for number in 0..(case.keys)(operations) {
        finish(store.put(key(number), VALUE)).unwrap();
    }
    block_on(store.close()).unwrap();
    let out = dir.path().join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--separate-threads=yes"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, format!("{} {operations} {}", case.name, path.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    let threads = threads(dir.path());
    Counts { caller: threads[&1] as f64, all: threads.values().sum::<u64>() as f64 }
}

/// Instructions by thread number, from callgrind's files `out-01`, `out-02` and so on.
fn threads(dir: &Path) -> BTreeMap<u64, u64> {
    let outs = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    outs.filter_map(|path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let number = |what: &str| text.lines().find_map(|line| line.strip_prefix(what))?.trim().parse().ok();
        Some((number("thread:")?, number("totals:")?))
    })
    .collect()
}

/// One figure: its name and the instructions per operation.
struct Figure {
    name: String,
    per_operation: f64,
    margin_percent: f64,
}

/// Counts one operation of each case.
fn measure() -> Vec<Figure> {
    let mut figures = Vec::new();
    for case in &CASES {
        let (once, twice) = (count(case, case.operations), count(case, 2 * case.operations));
        let mut add = |threads: &str, difference: f64, margin_percent| {
            let per_operation = difference / case.operations as f64;
            figures.push(Figure { name: format!("{} {threads}", case.name), per_operation, margin_percent });
        };
        if let Some(margin) = case.caller_margin {
            add("caller", twice.caller - once.caller, margin);
        }
        add("all", twice.all - once.all, case.all_margin);
    }
    figures
}

/// The compiler and the CPU, on which the counts depend. Cargo and rustup ensure that `rustc` is the one that built this
/// program. The C library and the checksums select their code by CPU features.
fn compiler() -> String {
    let output = Command::new("rustc").arg("-V").output().unwrap();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |what: &str| {
        let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == what));
        line.and_then(|line| line.split(": ").nth(1)).unwrap_or("?").to_owned()
    };
    let (name, family, model) = (of_cpu("model name"), of_cpu("cpu family"), of_cpu("model"));
    format!("{} on {name}, family {family}, model {model}", String::from_utf8(output.stdout).unwrap().trim())
}

/// The compiler and the figures in the file.
fn committed() -> (String, BTreeMap<String, f64>) {
    let text = std::fs::read_to_string(FIGURES).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let compiler = lines.next().unwrap_or_default().to_owned();
    let figure = |line: &str| line.rsplit_once(' ').map(|(name, figure)| (name.to_owned(), figure.parse().unwrap()));
    (compiler, lines.filter_map(figure).collect())
}

fn write(figures: &[Figure]) {
    let mut text =
        "# Instructions per operation. Written by `cargo bench --bench counts -- --write`; see benches/counts.rs.\n"
            .to_owned();
    text += &format!("{}\n", compiler());
    for Figure { name, per_operation, .. } in figures {
        text += &format!("{name} {per_operation:.0}\n");
    }
    std::fs::write(FIGURES, text).unwrap();
    println!("wrote {FIGURES}");
}

/// Why a figure differs from the file; `None` if it is within its margin.
fn objection(was: Option<f64>, figure: &Figure) -> Option<&'static str> {
    let Some(was) = was else { return Some("is not in the file: run with --write") };
    let percent = (figure.per_operation / was - 1.0) * 100.0;
    if percent > figure.margin_percent {
        Some("MORE than in the file: find the reason")
    } else if percent < -figure.margin_percent {
        Some("LESS than in the file: run with --write")
    } else {
        None
    }
}

/// Prints the table. Returns the number of figures outside their margins plus the lines in the file without a case.
fn compare(figures: &[Figure], mut was: BTreeMap<String, f64>) -> usize {
    let mut objections = 0;
    println!("{:24} {:>8} {:>8} {:>8} {:>8}", "instructions", "now", "file", "%", "margin");
    for figure in figures {
        let Figure { name, per_operation, margin_percent } = figure;
        let was = was.remove(name);
        let objection = objection(was, figure);
        objections += usize::from(objection.is_some());
        let was = was.unwrap_or(f64::NAN);
        let percent = (per_operation / was - 1.0) * 100.0;
        let objection = objection.unwrap_or_default();
        println!("{name:24} {per_operation:8.0} {was:8.0} {percent:+8.1} {margin_percent:8.1} {objection}");
    }
    for name in was.keys() {
        println!("{name:24} is in the file but has no case: run with --write");
    }
    objections + was.len()
}

/// The median figures of several rounds. Prints their spread, as a percentage to either side of the middle.
fn measure_often() -> Vec<Figure> {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| measure().into_iter()).collect();
    let mut middles = Vec::new();
    loop {
        let mut same: Vec<Figure> = rounds.iter_mut().filter_map(Iterator::next).collect();
        if same.is_empty() {
            return middles;
        }
        same.sort_by(|a, b| a.per_operation.total_cmp(&b.per_operation));
        let (least, most) = (same[0].per_operation, same[ROUNDS - 1].per_operation);
        let percent = (most - least) / (most + least) * 100.0;
        let middle = same.swap_remove(ROUNDS / 2);
        let Figure { name, margin_percent, .. } = &middle;
        println!("{name:24} {least:8.0} to {most:8.0}: {percent:5.2} % to either side, margin {margin_percent} %");
        middles.push(middle);
    }
}

/// Skips without valgrind. That is a failure when all checks are required.
fn skip() -> ExitCode {
    let demanded = std::env::var_os("RINGCASK_REQUIRE_ALL").is_some();
    eprintln!("SKIPPED: valgrind is not installed, so instructions are not counted (tests/install-tools)");
    ExitCode::from(u8::from(demanded))
}

fn main() -> ExitCode {
    if let Ok(arguments) = std::env::var(CHILD) {
        child(&arguments);
        return ExitCode::SUCCESS;
    }
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip();
    }
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if asked("--write") || asked("--spread") {
        let figures = measure_often();
        if asked("--write") {
            write(&figures);
        }
        return ExitCode::SUCCESS;
    }
    let figures = measure();
    let (theirs, was) = committed();
    let objections = compare(&figures, was);
    let ours = compiler();
    if ours != theirs {
        eprintln!("WARNING: the file is from {theirs}, this is {ours}: {objections} differences are ignored");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(u8::from(objections > 0))
}
