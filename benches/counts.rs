//! How many instructions one operation takes: a figure that a loaded machine does not change.
//!
//! `cargo bench --bench counts` compares them with those in `benches/counts.txt` and exits with 1 where one has left its
//! margin, to either side: what became cheaper is to be kept. `-- --write` writes the file anew, with the middle one of
//! five rounds, and shows how far apart those lie, which is what the margins rest on; `-- --spread` only shows it.
//!
//! A store is filled and closed. Then child processes under `valgrind --tool=callgrind` open it, do N or 2N operations and
//! close it; the difference over N is what one operation takes, without opening, loading and closing. `caller` counts the
//! thread that calls, `all` the store's threads too, whose work depends on how many records happen to be in a group.
//! Valgrind knows no rings, so the engine is `Engine::Threads`; and system calls count as what leads up to them.
//!
//! Another compiler makes other instructions, and by the processor's abilities code is chosen as the program runs: where
//! they are not those that the file names, what differs is shown and the exit code is 0. Compile without the feature
//! `__testing`, as users do: with it an operation takes some tens of instructions more, which look for seeded bugs.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    unsafe_code,
    reason = "a benchmark stops at the first error, and this one decides how memory grows"
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

/// The system's allocator, except that small blocks are always copied when they grow. Whether one can grow where it is
/// depends on what lies behind it, and so on the order in which threads run: the figures of a batch were up to 9 % from half
/// way. Large blocks have mappings of their own and grow without being copied.
struct Copying;

/// More than the buffers of a batch have, and less than a mapping.
const SMALL_BYTES: usize = 64 << 10;

// SAFETY: every block is the system allocator's, of the layout that was asked for; `realloc` keeps what is in it.
unsafe impl GlobalAlloc for Copying {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > SMALL_BYTES {
            // SAFETY: the caller's promise is passed on.
            return unsafe { System.realloc(pointer, layout, new_size) };
        }
        // SAFETY: the caller promises that the new size is not zero and goes with the old alignment; the old block and the
        // new one are apart, and both have the lesser of the two sizes.
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
/// Keys of a store that is not empty. 7,919 has no factor in common with it.
const KEYS: u64 = 20_000;
const BATCH: u64 = 100;
const CHILD: &str = "RINGCASK_BENCH_COUNTS";
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.txt");
const ROUNDS: usize = 5;

struct Case {
    name: &'static str,
    /// N.
    operations: u64,
    /// How many keys the store has when the child opens it, given the number of operations.
    keys: fn(u64) -> u64,
    run: fn(&Store, u64),
    /// Percent by which the caller's thread may differ; `None` where it does none of the work.
    caller_margin: Option<f64>,
    /// The same for all threads together.
    all_margin: f64,
}

// Measured in rounds of five with two to three times as many programs at work as there are processors: figures lay within
// 1 % to either side of half way, those of puts and batches within 2 %, as the log's buffer may grow further in one round
// than in another.
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

/// Polls by itself, so that an executor's work is not counted where there is nothing to wait for.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => block_on(future),
    }
}

fn get_cached(store: &Store, operations: u64) {
    // Each key once at the most, out of order.
    for number in 0..operations {
        assert!(finish(store.get(key(number * 7_919 % KEYS))).unwrap().is_some());
    }
    let stats = store.stats();
    // The kernel may want a page back meanwhile. A get that has to read costs several others: of so few, about a
    // hundredth of what is counted, within the margin.
    assert!(stats.gets_from_cache >= operations - operations / 500, "{stats:?}");
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
    // With room for all that is written, so that nobody waits: how often would depend on the disk.
    let builder = Store::builder(path).engine(Engine::Threads).durability(Durability::Buffered).staging_bytes(64 << 20);
    block_on(builder.open()).unwrap()
}

/// The part that is counted: `arguments` are the name of the case, the number of operations, and the store's directory.
fn child(arguments: &str) {
    let mut arguments = arguments.splitn(3, ' ');
    let mut next = || arguments.next().unwrap();
    let (name, operations, path) = (next(), next().parse().unwrap(), Path::new(next()));
    let store = open(path);
    (CASES.iter().find(|case| case.name == name).unwrap().run)(&store, operations);
    block_on(store.close()).unwrap();
}

/// Instructions of the thread that calls, and of all threads.
#[derive(Clone, Copy)]
struct Counts {
    caller: f64,
    all: f64,
}

/// Runs `operations` of a case in a store of its own, under callgrind.
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

/// Instructions by the number of the thread, from callgrind's files `out-01`, `out-02` and so on.
fn threads(dir: &Path) -> BTreeMap<u64, u64> {
    let outs = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    outs.filter_map(|path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let number = |what: &str| text.lines().find_map(|line| line.strip_prefix(what))?.trim().parse().ok();
        Some((number("thread:")?, number("totals:")?))
    })
    .collect()
}

/// One figure: what is counted, and how many instructions an operation takes.
struct Figure {
    name: String,
    per_operation: f64,
    margin_percent: f64,
}

/// What one operation of each case takes.
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

/// What makes the figures: the compiler (cargo and rustup see to it that it is the one that made this program), and the
/// processor, by whose abilities the C library and the checksums choose their code.
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

/// The compiler and the figures of the file.
fn committed() -> (String, BTreeMap<String, f64>) {
    let text = std::fs::read_to_string(FIGURES).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let compiler = lines.next().unwrap_or_default().to_owned();
    let figure = |line: &str| line.rsplit_once(' ').map(|(name, figure)| (name.to_owned(), figure.parse().unwrap()));
    (compiler, lines.filter_map(figure).collect())
}

fn write(figures: &[Figure]) {
    let mut text =
        "# Instructions an operation. Made by `cargo bench --bench counts -- --write`; see benches/counts.rs.\n"
            .to_owned();
    text += &format!("{}\n", compiler());
    for Figure { name, per_operation, .. } in figures {
        text += &format!("{name} {per_operation:.0}\n");
    }
    std::fs::write(FIGURES, text).unwrap();
    println!("{FIGURES} is written");
}

/// Why a figure is not as it was; `None` if it is.
fn objection(was: Option<f64>, figure: &Figure) -> Option<&'static str> {
    let Some(was) = was else { return Some("is not in the file: write it") };
    let percent = (figure.per_operation / was - 1.0) * 100.0;
    if percent > figure.margin_percent {
        Some("MORE than it was: find out why")
    } else if percent < -figure.margin_percent {
        Some("LESS than it was: write the new figure")
    } else {
        None
    }
}

/// Prints the table; the number of figures that have left their margins, and of lines of the file that nothing made.
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
        println!("{name:24} is in the file, and no case makes it: write the file");
    }
    objections + was.len()
}

/// The middle figures of several rounds; prints how far apart they are, as percent to either side of half way.
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

/// Without valgrind nothing can be said, which must not look like a success where everything is demanded.
fn skip() -> ExitCode {
    let demanded = std::env::var_os("RINGCASK_REQUIRE_ALL").is_some();
    eprintln!("SKIPPED: valgrind is not to be had, so nothing is known about instructions (tests/install-tools)");
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
        eprintln!("WARNING: the file is of {theirs}, this is {ours}: {objections} objections count for nothing");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(u8::from(objections > 0))
}
