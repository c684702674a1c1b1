//! `--file`: stores the lines of a file under their numbers, reopens the store, and reads them back.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ringcask::bytes::Bytes;
use ringcask::{Outcome, Store};
use tokio::task::{JoinSet, yield_now};

use crate::options::Options;
use crate::place::Place;
use crate::report::{CpuTimes, Latency, Phase, Report};
use crate::{Failure, open, or_hang};

/// The lines of a file, split at line feeds. Any other bytes are allowed: any encoding, empty lines, carriage returns,
/// and a last line without a line feed.
#[derive(Clone)]
pub(crate) struct Lines(Arc<[Bytes]>);

impl Lines {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = fs::read(path).map_err(|error| format!("cannot read --file {path:?}: {error}"))?;
        Ok(Self::split(Bytes::from(text)))
    }

    fn split(text: Bytes) -> Self {
        let mut lines = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let len = text[start..].iter().position(|&byte| byte == b'\n').unwrap_or(text.len() - start);
            lines.push(text.slice(start..start + len));
            start += len + 1;
        }
        Self(lines.into())
    }
}

/// The key of the line at `index`: its number, counted from 1 as editors do.
fn key(index: usize) -> String {
    (index + 1).to_string()
}

/// The result of one task.
#[derive(Default)]
struct TaskEnd {
    latency: Latency,
    right: u64,
    faults: Vec<String>,
}

pub(crate) async fn run(options: &Options, place: &Place, lines: Lines) -> Result<Report, Failure> {
    let store = open(options, place).await?;
    let (before, cpu_before) = (store.stats(), CpuTimes::now());
    let (puts, put_ends) = in_parallel(&store, &lines, options.writers, put).await;
    let closed = or_hang("close", store.close()).await;
    // Includes the close: with `buffered`, only the close writes a small file.
    let (after, cpu_after) = (store.stats(), CpuTimes::now());
    let mut report = Report::new(options, &before, &after);
    report.cpu_idle = CpuTimes::idle_percent(&cpu_before, &cpu_after);
    report.puts = puts;
    report.fault_all(put_ends.into_iter().flat_map(|end| end.faults));
    if let Err(error) = closed {
        report.fault(format!("close: {error:#}"));
    }
    drop(store);

    eprintln!("stored {} lines; reopening the store to read them back", lines.0.len());
    let store = open(options, place).await?;
    report.recovery = Some(store.recovery_report().clone());
    let (gets, get_ends) = in_parallel(&store, &lines, options.writers, get_and_compare).await;
    report.gets = gets;
    report.verified_keys = get_ends.iter().map(|end| end.right).sum();
    report.fault_count(lines.0.len() as u64 - report.verified_keys);
    report.fault_all(get_ends.into_iter().flat_map(|end| end.faults));
    if store.len() != lines.0.len() {
        report.fault_count(1);
        report.fault(format!("the store has {} keys for {} lines", store.len(), lines.0.len()));
    }
    or_hang("close", store.close()).await?;
    Ok(report)
}

/// Runs `work` in `tasks` tasks. Task `t` processes line `t` and every `tasks`-th line after it.
async fn in_parallel<F>(
    store: &Store,
    lines: &Lines,
    tasks: usize,
    work: impl Fn(Store, Lines, usize, usize) -> F,
) -> (Phase, Vec<TaskEnd>)
where
    F: Future<Output = TaskEnd> + Send + 'static,
{
    let begun = Instant::now();
    let tasks = tasks.min(lines.0.len());
    let mut running = JoinSet::new();
    for first in 0..tasks {
        running.spawn(work(store.clone(), lines.clone(), first, tasks));
    }
    let ends = or_hang("a put or get", running.join_all()).await;
    let mut phase = Phase { elapsed: begun.elapsed(), ..Phase::default() };
    for end in &ends {
        phase.latency.add(&end.latency);
    }
    (phase, ends)
}

async fn put(store: Store, lines: Lines, first: usize, step: usize) -> TaskEnd {
    let mut end = TaskEnd::default();
    for index in (first..lines.0.len()).step_by(step) {
        let (key, line) = (key(index), lines.0[index].clone());
        let called = Instant::now();
        match store.put_bytes(key, line).await {
            Ok(_) => end.latency.record(called.elapsed()),
            Err(error) => {
                let outcome = if error.outcome() == Outcome::Unknown { "outcome unknown" } else { "not applied" };
                end.faults.push(format!("line {}: {error:#} ({outcome})", index + 1));
                break;
            }
        }
        if (index / step).is_multiple_of(64) {
            yield_now().await;
        }
    }
    end
}

async fn get_and_compare(store: Store, lines: Lines, first: usize, step: usize) -> TaskEnd {
    let mut end = TaskEnd::default();
    for index in (first..lines.0.len()).step_by(step) {
        let key = key(index);
        let called = Instant::now();
        let result = store.get(key).await;
        end.latency.record(called.elapsed());
        let number = index + 1;
        match result {
            Ok(Some(value)) if value == lines.0[index] => end.right += 1,
            Ok(Some(value)) => end.faults.push(format!(
                "line {number}: read {} bytes that differ from the {} bytes of the file",
                value.len(),
                lines.0[index].len()
            )),
            Ok(None) => end.faults.push(format!("line {number} is missing")),
            Err(error) => end.faults.push(format!("line {number}: {error:#}")),
        }
        if (index / step).is_multiple_of(64) {
            yield_now().await;
        }
    }
    end
}
