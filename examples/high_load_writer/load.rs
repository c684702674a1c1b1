//! The tasks that load the store.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ringcask::{Durability, Error, Outcome, Stats, Store};
use tokio::task::{JoinSet, yield_now};

use crate::arrivals::{self, Arrivals};
use crate::data::{self, Rng};
use crate::options::Options;
use crate::report::{Latency, Phase, Progress};
use crate::{Failure, or_hang};

/// Puts of a task between two yields. A future that is ready at once never suspends its task. Without yields, a writer
/// of `Buffered` puts would occupy its thread, and the other tasks of that thread would starve.
const PUTS_PER_YIELD: u64 = 64;

/// The largest number of puts between two yields without readers, and of gets without writers. Tasks of one kind must
/// take turns, but rarely: a yield wakes another worker of the executor, which costs as much as dozens of operations.
const OPS_PER_YIELD_ALONE: u64 = 512;

/// Operations of all tasks of one kind between two turns of one task. A put that had to wait queues behind every task
/// that is ready. With a thousand tasks of 512 puts each, that constant would determine its latency.
const OPS_PER_ROUND: u64 = 8192;

fn ops_per_yield_alone(tasks: usize) -> u64 {
    (OPS_PER_ROUND / (tasks as u64).max(1)).clamp(GETS_PER_YIELD, OPS_PER_YIELD_ALONE)
}

/// Gets of a task between two yields while there are writers. It is small because a writer that is woken queues behind
/// every reader that is ready. With many readers, a larger number would determine the latency of a put.
const GETS_PER_YIELD: u64 = 8;

/// The state that all tasks of a run share.
pub(crate) struct Run {
    store: Store,
    /// For each key, the last acknowledged generation, or 0. Only the owner of the key changes it.
    acknowledged: Vec<AtomicU32>,
    value_bytes: usize,
}

/// The result of a run.
pub(crate) struct LoadOutcome {
    pub(crate) puts: Phase,
    pub(crate) gets: Phase,
    /// Keys whose last put failed with an unknown outcome.
    pub(crate) undecided: HashSet<usize>,
    pub(crate) read_mismatches: u64,
    /// Errors and examples of mismatches, for display.
    pub(crate) faults: Vec<String>,
}

/// The result of one task.
#[derive(Default)]
struct TaskEnd {
    latency: Latency,
    undecided: Option<usize>,
    mismatches: u64,
    fault: Option<String>,
}

/// The number of operations of one task so far. Each counter has its own cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicU64);

impl Run {
    pub(crate) fn new(store: Store, options: &Options) -> Self {
        let acknowledged = (0..options.keys).map(|_| AtomicU32::new(0)).collect();
        Self { store, acknowledged, value_bytes: options.value_bytes }
    }

    /// The last acknowledged generation of each key.
    pub(crate) fn acknowledged(&self) -> Vec<u32> {
        self.acknowledged.iter().map(|generation| generation.load(Ordering::Acquire)).collect()
    }

    /// The keys that task `task` of `tasks` owns.
    fn slice(&self, task: usize, tasks: usize) -> Range<usize> {
        let keys = self.acknowledged.len();
        task * keys / tasks..(task + 1) * keys / tasks
    }
}

/// Puts generation 1 of every key and waits until all keys are durable.
pub(crate) async fn preload(run: &Arc<Run>) -> Result<(), Failure> {
    eprintln!("storing {} keys before the run", run.acknowledged.len());
    let tasks = run.acknowledged.len().min(64);
    let mut loaders = JoinSet::new();
    for task in 0..tasks {
        let run = Arc::clone(run);
        loaders.spawn(async move {
            let mut value = vec![0; run.value_bytes];
            for index in run.slice(task, tasks) {
                data::fill(&mut value, index, 1);
                let buffered = Durability::Buffered;
                run.store.put(data::key(index), &value).durability(buffered).await?;
                run.acknowledged[index].store(1, Ordering::Release);
                if (index as u64).is_multiple_of(PUTS_PER_YIELD) {
                    yield_now().await;
                }
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(loaded) = or_hang("storing the keys", loaders.join_next()).await {
        loaded??;
    }
    or_hang("sync", run.store.sync()).await?;
    Ok(())
}

/// Runs all writers and readers for the time in the options.
pub(crate) async fn run(run: &Arc<Run>, options: &Options) -> LoadOutcome {
    let counters = |tasks: usize| -> Arc<[Counter]> { (0..tasks).map(|_| Counter::default()).collect() };
    let (put_counts, get_counts) = (counters(options.writers), counters(options.readers));
    let (stop_progress, stopped) = mpsc::channel();
    let progress = {
        let (store, puts, gets) = (run.store.clone(), Arc::clone(&put_counts), Arc::clone(&get_counts));
        thread::spawn(move || show_progress(&store, &puts, &gets, &stopped))
    };

    let begun = Instant::now();
    let deadline = begun + options.seconds;
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    let mut arrivals =
        arrivals::for_tasks(options.writers + options.readers, options.rate, begun, deadline).into_iter();
    let per_yield = if options.readers == 0 { ops_per_yield_alone(options.writers) } else { PUTS_PER_YIELD };
    for (task, arrivals) in (0..options.writers).zip(&mut arrivals) {
        let owned = run.slice(task, options.writers);
        writers.spawn(write(Arc::clone(run), owned, Arc::clone(&put_counts), task, per_yield, arrivals));
    }
    let per_yield = if options.writers == 0 { ops_per_yield_alone(options.readers) } else { GETS_PER_YIELD };
    for (task, arrivals) in (0..options.readers).zip(&mut arrivals) {
        readers.spawn(read(Arc::clone(run), Arc::clone(&get_counts), task, per_yield, arrivals));
    }
    let mut outcome = LoadOutcome {
        puts: Phase::default(),
        gets: Phase::default(),
        undecided: HashSet::new(),
        read_mismatches: 0,
        faults: Vec::new(),
    };
    // On a slow disk, a put may take longer than the deadline. Only an error ends it early.
    let wrote = or_hang("a put", writers.join_all());
    outcome.puts = outcome.gather(wrote.await, begun);
    let got = or_hang("a get", readers.join_all());
    outcome.gets = outcome.gather(got.await, begun);
    drop(stop_progress);
    if progress.join().is_err() {
        outcome.faults.push("the progress display failed".to_owned());
    }
    outcome
}

impl LoadOutcome {
    /// Adds the results of the tasks of one kind. A fault that many tasks had is reported once, with the number of
    /// tasks that had any fault.
    fn gather(&mut self, ends: Vec<TaskEnd>, begun: Instant) -> Phase {
        let mut phase = Phase { elapsed: begun.elapsed(), ..Phase::default() };
        let stopped = ends.iter().filter(|end| end.fault.is_some()).count();
        for end in ends {
            phase.latency.add(&end.latency);
            self.undecided.extend(end.undecided);
            self.read_mismatches += end.mismatches;
            if let Some(fault) = end.fault
                && self.faults.len() < 4
                && !self.faults.contains(&fault)
            {
                self.faults.push(fault);
            }
        }
        if stopped > 1 {
            self.faults.push(format!("{stopped} tasks had faults of this kind"));
        }
        phase
    }
}

async fn write(
    run: Arc<Run>,
    owned: Range<usize>,
    counts: Arc<[Counter]>,
    task: usize,
    per_yield: u64,
    mut arrivals: Arrivals,
) -> TaskEnd {
    let mut end = TaskEnd::default();
    let mut rng = Rng::new(task);
    let mut value = vec![0; run.value_bytes];
    for puts in 1.. {
        let index = owned.start + rng.below(owned.len());
        let acknowledged = &run.acknowledged[index];
        let generation = acknowledged.load(Ordering::Relaxed) + 1;
        data::fill(&mut value, index, generation);

        let Some(called) = arrivals.next().await else { break };
        let result = run.store.put(data::key(index), &value).await;
        let resolved = Instant::now();

        if let Err(error) = result {
            // Only after an unknown outcome may the reopened store have the new value.
            end.undecided = (error.outcome() == Outcome::Unknown).then_some(index);
            end.fault = Some(format!("put: {error:#}"));
            break;
        }
        acknowledged.store(generation, Ordering::Release);
        end.latency.record(resolved - called);
        counts[task].0.store(puts, Ordering::Relaxed);
        if puts.is_multiple_of(per_yield) {
            yield_now().await;
        }
    }
    end
}

async fn read(run: Arc<Run>, counts: Arc<[Counter]>, task: usize, per_yield: u64, mut arrivals: Arrivals) -> TaskEnd {
    let mut end = TaskEnd::default();
    let mut rng = Rng::new(!task);
    for gets in 1.. {
        let index = rng.below(run.acknowledged.len());
        let acknowledged = &run.acknowledged[index];
        let Some(called) = arrivals.next().await else { break };
        let oldest = acknowledged.load(Ordering::Acquire);

        let result = run.store.get(data::key(index)).await;
        let resolved = Instant::now();

        let value = match result {
            Ok(value) => value,
            Err(error) => {
                end.fault = Some(format!("get: {error:#}"));
                break;
            }
        };
        // The owner may have put one generation more than was acknowledged.
        let newest = acknowledged.load(Ordering::Acquire) + 1;
        if let Some(fault) = data::fault(value.as_deref(), run.value_bytes, index, &(oldest..newest + 1)) {
            end.mismatches += 1;
            end.fault.get_or_insert(format!("get: {fault}"));
        }
        end.latency.record(resolved - called);
        counts[task].0.store(gets, Ordering::Relaxed);
        if gets.is_multiple_of(per_yield) {
            yield_now().await;
        }
    }
    end
}

/// Prints the progress of the last second, each second, until the sender of `stopped` is dropped. Runs on its own
/// thread, so that the load does not delay it.
fn show_progress(store: &Store, puts: &[Counter], gets: &[Counter], stopped: &mpsc::Receiver<()>) {
    let total = |counts: &[Counter]| counts.iter().map(|count| count.0.load(Ordering::Relaxed)).sum::<u64>();
    let mut progress = Progress::begin(store.stats());
    let mut next = Instant::now() + Duration::from_secs(1);
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        if stopped.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
            break;
        }
        let stats: Stats = store.stats();
        progress.show(total(puts), total(gets), stats);
        next += Duration::from_secs(1);
    }
    progress.end();
}
