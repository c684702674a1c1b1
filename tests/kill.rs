//! A real process, killed with SIGKILL at random moments, again and again in the same directory.
//!
//! The child is this binary, running one test again: it opens the store, and four writers at different durabilities
//! write an acknowledgment to a pipe after each resolved future. The parent kills it, drains the pipe, reopens the store
//! and checks. What a writer does follows from the seed, so the parent knows every value that was ever issued.
//!
//! Checked of every reopening, `acked` being the acknowledgments that reached the pipe:
//! - each writer's keys are what some prefix of its operations leaves: no value never issued, no half batch, no
//!   resurrected delete, and nothing of another writer's;
//! - that prefix includes every acknowledged `Written` and `Synced` operation (the kernel outlives the process), and
//!   ends at most one operation after the last acknowledged one;
//! - what is lost of the acknowledged `Buffered` operations is a suffix of the log, over all writers.
//!
//! Not tested here: power cuts, which take the kernel's memory too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test stops where it fails"
)]

mod proof;

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringcask::{Batch, Builder, Compaction, Durability, Engine, PutOptions, Store};
use tempfile::TempDir;

const WRITERS: usize = 4;
const KEYS: u64 = 12;
/// Kills of one directory before a fresh one: what it holds by then was recovered that many times.
const GENERATIONS: u64 = 25;
const DEADLINE: Duration = Duration::from_secs(60);

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

type State = BTreeMap<String, Vec<u8>>;

fn key_of(writer: usize, key: u64) -> String {
    format!("writer-{writer}-key-{key}")
}

/// One operation: keys and their new values (`None` deletes). More than one key is a batch.
struct Op {
    level: Durability,
    changes: Vec<(String, Option<Vec<u8>>)>,
}

/// What a writer does in one generation, operation after operation; the same in the child and in the parent.
struct Script {
    rng: Rng,
    writer: usize,
    present: Vec<bool>,
}

impl Script {
    fn new(seed: u64, writer: usize, contains: impl Fn(&str) -> bool) -> Self {
        let present = (0..KEYS).map(|key| contains(&key_of(writer, key))).collect();
        Self { rng: Rng(seed ^ (writer as u64 + 1) << 56), writer, present }
    }

    fn next_op(&mut self) -> Op {
        let level = match self.writer {
            0 => Durability::Synced,
            1 => Durability::Written,
            2 => Durability::Buffered,
            _ => [Durability::Buffered, Durability::Written, Durability::Synced][self.rng.below(3) as usize],
        };
        let first = self.rng.below(KEYS);
        let count = if self.rng.below(5) == 0 { 2 + self.rng.below(3) } else { 1 };
        let changes = (0..count).map(|index| self.change((first + index) % KEYS)).collect();
        Op { level, changes }
    }

    /// A delete only where there is something: one that finds nothing writes nothing and would leave no trace to check.
    fn change(&mut self, key: u64) -> (String, Option<Vec<u8>>) {
        let was_present = std::mem::replace(&mut self.present[key as usize], true);
        if was_present && self.rng.below(4) == 0 {
            self.present[key as usize] = false;
            return (key_of(self.writer, key), None);
        }
        let len = if self.rng.below(40) == 0 { 4000 + self.rng.below(16_000) } else { 16 + self.rng.below(400) };
        let mut value = Vec::with_capacity(len as usize + 8);
        while value.len() < len as usize {
            value.extend_from_slice(&self.rng.next().to_le_bytes());
        }
        (key_of(self.writer, key), Some(value))
    }
}

fn builder(engine: Engine, path: &Path, seed: u64) -> Builder {
    let interval = |ms| Duration::from_millis(ms);
    let builder =
        Store::builder(path).engine(engine).segment_bytes(16 << 10 << (2 * (seed % 4))).reserve_bytes(64 << 10);
    // Compaction is what the kill meets as often as anything else; every other store is compacted all the time.
    let compaction = if seed.is_multiple_of(2) {
        Compaction::new().trigger(0.1).threshold(0.05).bytes_per_second(None)
    } else {
        Compaction::new()
    };
    let builder = builder.compaction(compaction);
    builder.flush_interval(interval(1 + seed % 4)).sync_interval(interval(1 + seed % 20)).staging_bytes(64 << 10)
}

// ---------------------------------------------------------------------------------------------------------------------
// The child
// ---------------------------------------------------------------------------------------------------------------------

/// Writes a line to the parent in one system call; ends the process when the parent is gone.
fn tell(line: &str) {
    if rustix::io::write(std::io::stdout().as_fd(), line.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

fn child() {
    let variable = |name: &str| std::env::var(name).expect("a variable of the child's");
    let engine: Engine = variable("RINGCASK_KILL_ENGINE").parse().unwrap();
    let seed: u64 = variable("RINGCASK_KILL_SEED").parse().unwrap();
    let path = PathBuf::from(variable("RINGCASK_KILL_DIR"));
    tell("\nstarting\n");
    let store = pollster::block_on(builder(engine, &path, seed).open()).unwrap();
    assert!(store.recovery_report().damage.is_empty());
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        thread::spawn(move || write_for_ever(&store, seed, writer))
    });
    writers.collect::<Vec<_>>().into_iter().for_each(|writer| writer.join().unwrap());
}

fn write_for_ever(store: &Store, seed: u64, writer: usize) {
    let mut script = Script::new(seed, writer, |key| store.contains_key(key));
    for index in 0_u64.. {
        let op = script.next_op();
        let options = PutOptions::new().durability(op.level);
        let version = match &op.changes[..] {
            [(key, Some(value))] => pollster::block_on(store.put_with(key, value, options)).unwrap().get(),
            [(key, None)] => {
                assert!(pollster::block_on(store.delete_with(key, options)).unwrap(), "{key} was there");
                0
            }
            changes => {
                let mut batch = Batch::with_capacity(changes.len());
                batch.durability(op.level);
                for (key, value) in changes {
                    match value {
                        Some(value) => batch.put(key, value),
                        None => batch.delete(key),
                    };
                }
                pollster::block_on(store.write(batch)).unwrap().get()
            }
        };
        tell(&format!("ack {writer} {index} {version}\n"));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The parent
// ---------------------------------------------------------------------------------------------------------------------

/// The acknowledgments of one generation: the version of each writer's operations, in their order.
type Acks = Vec<Vec<u64>>;

struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    acks: Acks,
}

impl Running {
    fn start(test: &str, engine: Engine, path: &Path, seed: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
        command.env("RINGCASK_KILL_ENGINE", engine.to_string()).env("RINGCASK_KILL_DIR", path);
        let mut child = command.env("RINGCASK_KILL_SEED", seed.to_string()).spawn().unwrap();
        let pipe = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // A last line that the kill cut short has no end, and may have lost digits of its number.
            let whole = |line: &Vec<u8>| line.ends_with(b"\n");
            let mut pipe = pipe;
            loop {
                let mut line = Vec::new();
                let read = pipe.read_until(b'\n', &mut line);
                if !read.is_ok_and(|count| count > 0) || !whole(&line) {
                    break;
                }
                let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Self { child, lines, acks: vec![Vec::new(); WRITERS] }
    }

    fn note(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("ack ") else { return };
        let numbers: Vec<u64> = rest.split(' ').map(|word| word.parse().unwrap()).collect();
        let acks = &mut self.acks[numbers[0] as usize];
        assert_eq!(acks.len() as u64, numbers[1], "acknowledgments of a writer come in order");
        acks.push(numbers[2]);
    }

    /// Waits for a line that begins with `prefix`.
    fn wait_for(&mut self, prefix: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no {prefix:?}: {error}"));
            self.note(&line);
            if line.starts_with(prefix) {
                return;
            }
        }
    }

    /// Kills the child and returns what it acknowledged before.
    fn kill(mut self) -> Acks {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "the child: {status}");
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.note(&line);
        }
        self.acks
    }
}

fn fingerprint(key: &str, value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// One writer's keys as they were before a generation, and what it was acknowledged in it.
struct Replay {
    /// Fingerprints of the state after each number of operations; the last is that of the one perhaps in flight.
    prefixes: Vec<u64>,
    levels: Vec<Durability>,
}

impl Replay {
    fn new(seed: u64, writer: usize, before: &State, acked: usize) -> Self {
        let mut script = Script::new(seed, writer, |key| before.contains_key(key));
        let mut state = before.clone();
        let mut sum = state.iter().fold(0, |sum, (key, value)| sum ^ fingerprint(key, value));
        let (mut prefixes, mut levels) = (vec![sum], Vec::new());
        for _ in 0..=acked {
            let op = script.next_op();
            for (key, value) in op.changes {
                let old = match value {
                    Some(value) => {
                        sum ^= fingerprint(&key, &value);
                        state.insert(key.clone(), value)
                    }
                    None => state.remove(&key),
                };
                sum ^= old.map_or(0, |old| fingerprint(&key, &old));
            }
            prefixes.push(sum);
            levels.push(op.level);
        }
        Self { prefixes, levels }
    }
}

#[derive(Default)]
struct Totals {
    cycles: u64,
    during_open: u64,
    acks: u64,
    lost: u64,
    in_flight_kept: u64,
    truncated: u64,
}

/// Reads a writer's keys.
fn state_of(store: &Store, writer: usize) -> State {
    let keys = (0..KEYS).map(|key| key_of(writer, key));
    let read = |key: String| pollster::block_on(store.get(&key)).unwrap().map(|value| (key, value.to_vec()));
    keys.filter_map(read).collect()
}

/// Checks a reopened store against what was acknowledged; returns the writers' states, for the next generation.
fn check(store: &Store, seed: u64, before: &[State], acks: &Acks, totals: &mut Totals) -> Vec<State> {
    let report = store.recovery_report();
    assert!(report.damage.is_empty() && report.foreign_files.is_empty(), "{report:?}");
    totals.truncated += u64::from(report.truncated_bytes > 0);
    let after: Vec<State> = (0..WRITERS).map(|writer| state_of(store, writer)).collect();
    assert_eq!(store.len(), after.iter().map(BTreeMap::len).sum::<usize>(), "keys that nobody wrote");

    let replays: Vec<Replay> =
        (0..WRITERS).map(|writer| Replay::new(seed, writer, &before[writer], acks[writer].len())).collect();
    // The last acknowledged operation that the kernel had, by its version: all of the log before it was there, too.
    let kernel_had = |writer: usize, index: usize| replays[writer].levels[index] != Durability::Buffered;
    let acked = || (0..WRITERS).flat_map(|writer| (0..acks[writer].len()).map(move |index| (writer, index)));
    let floor =
        acked().filter(|&(writer, index)| kernel_had(writer, index)).map(|(w, i)| acks[w][i]).max().unwrap_or(0);
    let mut newest_kept = 0;
    let mut kept_at_most = Vec::new();
    for writer in 0..WRITERS {
        let sum = after[writer].iter().fold(0, |sum, (key, value)| sum ^ fingerprint(key, value));
        let matching: Vec<usize> =
            (0..replays[writer].prefixes.len()).filter(|&count| replays[writer].prefixes[count] == sum).collect();
        let count = acks[writer].len();
        let (Some(&least), Some(&most)) = (matching.first(), matching.last()) else {
            panic!(
                "writer {writer}: no prefix of its {count} acknowledged operations explains {:?}",
                lens(&after[writer])
            );
        };
        let due = (0..count)
            .filter(|&index| kernel_had(writer, index) || acks[writer][index] != 0 && acks[writer][index] <= floor);
        let due = due.map(|index| index + 1).max().unwrap_or(0);
        assert!(
            most >= due,
            "writer {writer}: {most} of {count} operations are there, {due} were in the kernel's hands"
        );
        newest_kept = newest_kept.max(acks[writer][..least.min(count)].iter().copied().max().unwrap_or(0));
        totals.acks += count as u64;
        totals.lost += count.saturating_sub(most) as u64;
        totals.in_flight_kept += u64::from(least > count);
        kept_at_most.push(most);
    }
    for (writer, &most) in kept_at_most.iter().enumerate() {
        let lost = acks[writer].iter().skip(most).find(|&&version| version != 0 && version < newest_kept);
        assert_eq!(lost, None, "writer {writer}: lost, while version {newest_kept} is there: a hole in the log");
    }
    after
}

fn lens(state: &State) -> Vec<(&String, usize)> {
    state.iter().map(|(key, value)| (key, value.len())).collect()
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// One child, one kill, one check.
fn cycle(test: &str, engine: Engine, dir: &Path, rng: &mut Rng, before: &[State], totals: &mut Totals) -> Vec<State> {
    let seed = rng.next();
    let path = dir.join("store");
    let mut running = Running::start(test, engine, &path, seed);
    let during_open = rng.below(6) == 0;
    running.wait_for(if during_open { "starting" } else { "ack " });
    let pause = if during_open { rng.below(3_000) } else { rng.below(30_000) };
    thread::sleep(Duration::from_micros(pause));
    let acks = running.kill();
    totals.cycles += 1;
    totals.during_open += u64::from(during_open);

    // Now and then the check works on a copy, so that the next child finds what the kill left, and is killed upon it.
    let copied = rng.below(3) == 0 && path.exists();
    let looked_at = if copied { dir.join("copy") } else { path.clone() };
    if copied {
        copy_directory(&path, &looked_at);
    }
    let opened = pollster::block_on(builder(engine, &looked_at, rng.next()).open());
    let store = opened.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    let after = check(&store, seed, before, &acks, totals);
    pollster::block_on(store.close()).unwrap();
    drop(store);
    if copied {
        fs::remove_dir_all(&looked_at).unwrap();
    }
    after
}

fn kill_again_and_again(test: &str, engine: Engine) {
    if std::env::var_os("RINGCASK_KILL_DIR").is_some() {
        return child();
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = proof::number("RINGCASK_SEED").unwrap_or(since_epoch.as_nanos() as u64);
    let stage = proof::begin(&format!("kills, {engine}"));
    let cycles = stage.floor();
    println!("{engine}: RINGCASK_SEED={seed}");
    let (mut rng, mut totals) = (Rng(seed), Totals::default());
    let (mut dir, mut before) = (TempDir::with_prefix("ringcask-kill-").unwrap(), vec![State::new(); WRITERS]);
    for number in 0..cycles {
        if number % GENERATIONS == 0 {
            dir = TempDir::with_prefix("ringcask-kill-").unwrap();
            before = vec![State::new(); WRITERS];
        }
        before = cycle(test, engine, dir.path(), &mut rng, &before, &mut totals);
    }
    let Totals { cycles: done, during_open, acks, lost, in_flight_kept, truncated } = totals;
    let note = format!(
        "{during_open} during open, {acks} acknowledgments checked, {lost} buffered ones lost as a suffix, \
         {in_flight_kept} in flight kept, {truncated} torn tails, seed {seed}"
    );
    stage.end(done, &note);
    assert!(acks >= 40 * cycles, "{acks} acknowledgments in {cycles} cycles are too few to mean anything");
}

#[test]
fn killed_again_and_again_on_threads() {
    kill_again_and_again("killed_again_and_again_on_threads", Engine::Threads);
}

#[test]
fn killed_again_and_again_on_uring() {
    let ring: std::io::Result<io_uring::IoUring> =
        io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(4);
    if let Err(error) = ring {
        return proof::begin("kills, uring").skip(&format!("the kernel refuses an io_uring: {error}"));
    }
    kill_again_and_again("killed_again_and_again_on_uring", Engine::Uring);
}
