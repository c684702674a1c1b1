//! Many tasks write and read one store for some seconds. Then the store is closed and reopened, and every byte of every
//! acknowledged write is checked.
//!
//! ```text
//! cargo run --release --example high_load_writer -- --writers 256 --seconds 5
//! cargo run --release --example high_load_writer -- --help
//! ```
//!
//! Every writer owns a part of the keys and puts random ones, chosen uniformly. A value is computed from its key and
//! its generation: how many times that key was put. So all bytes can be checked without keeping the values; four bytes
//! per key hold the last acknowledged generation.
//!
//! Latency is the time from the call, or with `--rate` from the arrival of the request, until the future resolves. The
//! clock is read twice per operation. Throughput is the number of acknowledged operations divided by the time from the
//! first call to the last result. A task yields to its executor every 64 puts or 8 gets, or up to 512 if all tasks are
//! of one kind. Otherwise operations that are ready at once, such as `Buffered` puts and cached gets, would never let
//! another task of the same thread run.

mod arrivals;
mod data;
mod lines;
mod load;
mod options;
mod place;
mod report;
mod verify;

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use ringcask::Store;

use crate::load::Run;
use crate::options::Options;
use crate::place::Place;
use crate::report::{CpuTimes, Report};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An operation that takes longer than this is reported as a hang. No working disk is that slow.
const STALL_LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the load or the file. Returns false if a result was wrong.
fn run(options: &Options) -> Result<bool, Failure> {
    options.check()?;
    let lines = options.file.as_deref().map(lines::Lines::read).transpose()?;
    let place = Place::prepare(options.dir.as_deref())?;
    eprintln!("{place}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build()?;
    let report = runtime.block_on(async {
        match lines {
            Some(lines) => lines::run(options, &place, lines).await,
            None => load_and_verify(options, &place).await,
        }
    })?;
    report.print(options.json);
    place.clean_up(report.is_good());
    Ok(report.is_good())
}

async fn load_and_verify(options: &Options, place: &Place) -> Result<Report, Failure> {
    let store = open(options, place).await?;
    let run = Arc::new(Run::new(store.clone(), options));
    if options.readers > 0 {
        load::preload(&run).await?;
    }

    let (before, cpu_before) = (store.stats(), CpuTimes::now());
    let outcome = load::run(&run, options).await;
    let (after, cpu_after) = (store.stats(), CpuTimes::now());

    let mut report = Report::new(options, &before, &after);
    report.cpu_idle = CpuTimes::idle_percent(&cpu_before, &cpu_after);
    report.puts = outcome.puts;
    report.gets = outcome.gets;
    report.fault_count(outcome.read_mismatches);
    report.faults.extend(outcome.faults);

    // The close makes buffered writes durable, so its error counts as a fault.
    if let Err(error) = or_hang("close", store.close()).await {
        report.fault(format!("close: {error:#}"));
    }
    let acknowledged = run.acknowledged();
    drop((store, run));

    eprintln!("closed the store; reopening it to check every acknowledged key");
    let store = open(options, place).await?;
    let verified = verify::verify(&store, acknowledged, outcome.undecided, options.value_bytes).await;
    report.recovery = Some(store.recovery_report().clone());
    report.verified_keys = verified.keys;
    report.fault_count(verified.mismatches);
    report.faults.extend(verified.samples);
    or_hang("close", store.close()).await?;
    Ok(report)
}

/// Opens the store at `place` with the given options.
async fn open(options: &Options, place: &Place) -> Result<Store, Failure> {
    let builder = Store::builder(place.path())
        .durability(options.durability)
        .engine(options.engine)
        .write_path(options.write_path)
        .prewrite(!options.no_fill_ahead)
        .cache_bytes(options.cache_bytes);
    Ok(or_hang("open", builder.open()).await?)
}

/// Waits for `future`, but ends the process after [`STALL_LIMIT`], so that a hang does not look like a long run.
async fn or_hang<F: Future>(what: impl Display, future: F) -> F::Output {
    match tokio::time::timeout(STALL_LIMIT, future).await {
        Ok(output) => output,
        Err(_) => {
            eprintln!("error: {what} has not finished within {} s", STALL_LIMIT.as_secs());
            std::process::exit(1);
        }
    }
}
