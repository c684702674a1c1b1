//! Compares ringcask with its alternatives, under the same workloads in one run.
//!
//! In every round each store gets a fresh directory and is loaded with a million keys without syncs. Then it runs each
//! workload for a few seconds. The order of the stores rotates from round to round. Blocking stores are called in two
//! ways: from one thread per client, and the way an async service must call them, from tasks through the blocking pool
//! of a tokio runtime with two workers. The faster way counts. Async stores are called from tasks on the same runtime.
//! Every value that a get returns is checked, and a wrong one ends the run.
//!
//! The table has medians over the rounds. YCSB's workload E scans ranges, which an unordered store does not offer.

mod drive;
mod html;
mod peers;
mod report;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use drive::{Done, Plan};
use peers::{Awaited, Failure, PEERS, Peer, Ringcask, Surrealkv, TokioFs, TokioUring};
use report::Run;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use work::{WORKS, Work};

/// The numbers of clients for a workload, unless `--clients` gives others.
fn usual_clients(work: &Work) -> &'static [usize] {
    match work.name {
        "fillsync" => &[1, 16, 64, 256, 1024],
        "readrandom" | "mixed" => &[1, 8, 64],
        // One of the nine clients writes.
        "readwhilewriting" => &[9],
        "overwrite" => &[1, 8],
        _ => &[8],
    }
}

/// Compares key-value stores: operations per second of puts, gets and mixes of both, in one run
#[derive(Parser)]
struct Options {
    /// Number of rounds; the table has the medians
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Duration of each workload in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Number of keys to load
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Size of a value in bytes
    #[arg(long, default_value_t = 256)]
    value_len: usize,
    /// Seconds of uncounted warm-up for workloads that only read, so that each store has its data in memory
    #[arg(long, default_value_t = 5.0)]
    warm_up: f64,
    /// Number of extra threads that keep processors busy
    #[arg(long, default_value_t = 0)]
    busy: usize,
    /// Also load an empty store with keys in ascending order
    #[arg(long)]
    fillseq: bool,
    /// Run only these workloads, by name
    #[arg(long, value_delimiter = ',')]
    works: Vec<String>,
    /// Run only these stores, by name
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Numbers of clients, instead of the usual ones
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Directory in which the stores create theirs
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Write all runs to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with charts to this file
    #[arg(long)]
    html: Option<PathBuf>,
}

/// One store in one round.
struct Turn<'a> {
    options: &'a Options,
    works: &'a [Work],
    runtime: &'a Runtime,
    peer: Peer,
    round: usize,
    dir: TempDir,
    runs: Vec<Run>,
}

impl Turn<'_> {
    fn plans(&self, durable: bool) -> Vec<(Work, usize)> {
        let of_kind = self.works.iter().filter(|work| work.durable == durable);
        let with_clients = of_kind.flat_map(|work| {
            let given = &self.options.clients;
            let clients = if given.is_empty() { usual_clients(work).to_vec() } else { given.clone() };
            clients.into_iter().map(|clients| (work.clone(), clients))
        });
        with_clients.collect()
    }

    fn plan<'w>(&self, work: &'w Work, clients: usize) -> Plan<'w> {
        let Options { keys, value_len, seconds, .. } = *self.options;
        let time = Duration::from_secs_f64(seconds);
        Plan { work, clients, keys, value_len, time, seed: self.round as u64 * 1_000_003 }
    }

    /// The warm-up before the first of several runs of a workload that only reads data in memory: the same workload,
    /// with the largest number of clients of these runs.
    fn warm_up<'w>(&self, index: usize, plans: &'w [(Work, usize)]) -> Option<Plan<'w>> {
        let (work, _) = &plans[index];
        let mut same = plans.iter().filter(|(other, _)| other.name == work.name);
        let clients = same.clone().map(|(_, clients)| *clients).max()?;
        let is_first = same.next().is_some_and(|first| std::ptr::eq(first, &plans[index]));
        let time = Duration::from_secs_f64(self.options.warm_up);
        let plan = Plan { time, seed: self.round as u64 + 1, ..self.plan(work, clients) };
        (is_first && work.only_reads() && !time.is_zero()).then_some(plan)
    }

    fn note(&mut self, work: &str, clients: usize, called: &'static str, done: &Done) {
        let micros = |percent| done.latency.value_at_percentile(percent) as f64 / 1e3;
        let run = Run {
            peer: self.peer.name(),
            work: work.to_owned(),
            clients,
            called,
            round: self.round,
            per_second: done.operations as f64 / done.seconds,
            p50_micros: micros(50.0),
            p99_micros: micros(99.0),
            p999_micros: micros(99.9),
        };
        eprintln!(
            "round {} {:<15} {:<12} {:>5} {:<8} {:>12.0}/s  p50 {:.1} µs  p99 {:.1} µs",
            self.round, run.peer, run.work, clients, called, run.per_second, run.p50_micros, run.p99_micros
        );
        self.runs.push(run);
    }

    /// Records a result without percentiles.
    fn note_figure(&mut self, work: &str, per_second: f64) {
        eprintln!("round {} {:<15} {work:<12} {per_second:>28.0}/s", self.round, self.peer.name());
        let (peer, round, nothing) = (self.peer.name(), self.round, 0.0);
        let (p50_micros, p99_micros, p999_micros) = (nothing, nothing, nothing);
        let run = Run {
            peer,
            work: work.to_owned(),
            clients: 1,
            called: "tasks",
            round,
            per_second,
            p50_micros,
            p99_micros,
            p999_micros,
        };
        self.runs.push(run);
    }

    /// A second temporary directory.
    fn second_dir(&self) -> Result<TempDir, Failure> {
        Ok(TempDir::with_prefix_in("compare-", &self.options.dir)?)
    }

    fn blocking(&mut self) -> Result<(), Failure> {
        let Options { keys, value_len, .. } = *self.options;
        let path = self.dir.path().to_owned();
        let peer = self.peer;
        let open = |path: &Path| peer.open_blocking(path, false)?.ok_or(Failure::from("not a blocking store"));
        if self.options.fillseq {
            let dir = self.second_dir()?;
            let store = open(dir.path())?;
            let loaded = drive::load(&store, keys, value_len, work::key_in_order)?;
            self.note_figure("fillseq", loaded);
            store.settle()?;
        }
        let store = open(&path)?;
        let loaded = drive::load(&store, keys, value_len, work::key)?;
        self.note_figure("fillrandom", loaded);
        store.settle()?;
        drop(store);
        for durable in [false, true] {
            let plans = self.plans(durable);
            if plans.is_empty() {
                continue;
            }
            let start = Instant::now();
            let store = self.peer.open_blocking(&path, durable)?.ok_or("not a blocking store")?;
            store.get(&work::key(0), &mut |_| {})?;
            if !durable {
                self.note_figure("open", keys as f64 / start.elapsed().as_secs_f64());
            }
            for (index, (work, clients)) in plans.iter().enumerate() {
                if let Some(plan) = self.warm_up(index, &plans) {
                    drive::threads(&store, &plan)?;
                }
                let plan = self.plan(work, *clients);
                let done = drive::threads(&store, &plan)?;
                self.note(work.name, *clients, "threads", &done);
                let done = drive::service(&store, &plan, self.runtime)?;
                self.note(work.name, *clients, "service", &done);
            }
            store.settle()?;
        }
        Ok(())
    }

    /// `open` creates the store, and opens it again if `is_kept`. Otherwise the store cannot be reopened.
    fn awaited<S: Awaited>(
        &mut self,
        open: &dyn Fn(&Path) -> Result<Arc<S>, Failure>,
        is_kept: bool,
    ) -> Result<(), Failure> {
        let Options { keys, value_len, .. } = *self.options;
        if self.options.fillseq {
            let dir = self.second_dir()?;
            let store = open(dir.path())?;
            let loaded = drive::load_awaited(&store, keys, value_len, work::key_in_order, self.runtime)?;
            self.note_figure("fillseq", loaded);
            self.runtime.block_on(store.close())?;
        }
        let path = self.dir.path().to_owned();
        let mut store = open(&path)?;
        let loaded = drive::load_awaited(&store, keys, value_len, work::key, self.runtime)?;
        self.note_figure("fillrandom", loaded);
        if is_kept {
            self.runtime.block_on(store.close())?;
            drop(store);
            let start = Instant::now();
            store = open(&path)?;
            self.runtime.block_on(store.get(&work::key(0)))?;
            self.note_figure("open", keys as f64 / start.elapsed().as_secs_f64());
        }
        let plans: Vec<_> = self.plans(false).into_iter().chain(self.plans(true)).collect();
        for (index, (work, clients)) in plans.iter().enumerate() {
            if let Some(plan) = self.warm_up(index, &plans) {
                drive::tasks(&store, &plan, self.runtime)?;
            }
            let done = drive::tasks(&store, &self.plan(work, *clients), self.runtime)?;
            self.note(work.name, *clients, "tasks", &done);
        }
        self.runtime.block_on(store.close())
    }

    fn run(mut self) -> Result<Vec<Run>, Failure> {
        let runtime = self.runtime;
        match self.peer {
            Peer::Ringcask | Peer::RingcaskWritten => {
                let written = self.peer == Peer::RingcaskWritten;
                self.awaited(&|path| Ok(Arc::new(runtime.block_on(Ringcask::open(path, written))?)), true)?;
            }
            Peer::Surrealkv => {
                let open = |path: &Path| {
                    let _inside = runtime.enter();
                    Ok(Arc::new(Surrealkv::open(path)?))
                };
                self.awaited(&open, true)?;
            }
            Peer::TokioUring => self.awaited(&|path| Ok(Arc::new(TokioUring::create(path)?)), false)?,
            Peer::TokioFs => self.awaited(&|path| Ok(Arc::new(runtime.block_on(TokioFs::create(path))?)), false)?,
            _ => self.blocking()?,
        }
        Ok(self.runs)
    }
}

fn chosen<T: Copy>(names: &[String], all: &[T], name_of: impl Fn(T) -> &'static str) -> Result<Vec<T>, Failure> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let find = |name: &String| {
        let found = all.iter().copied().find(|item| name_of(*item) == name);
        found.ok_or_else(|| format!("unknown name {name:?}").into())
    };
    names.iter().map(find).collect()
}

/// Threads that spin until this is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start(threads: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(is_over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn compare(options: &Options) -> Result<String, Failure> {
    let _busy = Busy::start(options.busy);
    let peers = chosen(&options.peers, PEERS, Peer::name)?;
    let indexes = chosen(&options.works, &(0..WORKS.len()).collect::<Vec<_>>(), |index| WORKS[index].name)?;
    let works: Vec<Work> = indexes.into_iter().map(|index| WORKS[index].clone()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1024)
        .enable_all()
        .build()?;
    fs::create_dir_all(&options.dir)?;
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        for index in 0..peers.len() {
            let peer = peers[(index + round) % peers.len()];
            let dir = TempDir::with_prefix_in("compare-", &options.dir)?;
            let turn = Turn { options, works: &works, runtime: &runtime, peer, round, dir, runs: Vec::new() };
            runs.extend(turn.run().map_err(|error| format!("{}: {error}", peer.name()))?);
        }
    }
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(&runs)?)?;
    }
    let place_of = |name: &str| WORKS.iter().position(|work| work.name == name).map_or(0, |place| place + 1);
    if let Some(path) = &options.html {
        let Options { rounds, seconds, keys, value_len, busy, .. } = options;
        let cores = std::thread::available_parallelism()?;
        let about = format!(
            "{keys} keys of {} bytes, values of {value_len} bytes, {rounds} rounds of {seconds} s, {cores} cores, \
             {busy} extra busy threads, Linux {}",
            work::KEY_LEN,
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
        );
        fs::write(path, html::page(&runs, &about, &place_of))?;
    }
    Ok(report::table(&runs, &peers, &place_of))
}

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
