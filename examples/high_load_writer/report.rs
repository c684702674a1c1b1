//! The figures: collected during the run and printed at its end.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringcask::{RecoveryReport, Stats};

use crate::options::Options;

/// Latencies of one or more tasks, with two significant digits: 36 KB each, with an error below one percent.
pub(crate) struct Latency(Option<Histogram<u64>>);

impl Default for Latency {
    fn default() -> Self {
        // These bounds are valid. Without a histogram, nothing would be recorded and 0 would be shown.
        Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 2).ok())
    }
}

impl Latency {
    pub(crate) fn record(&mut self, latency: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Adding fails only if the bounds differ, and all histograms have the same.
            let _ = histogram.add(other);
        }
    }

    fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The latency in microseconds at the percentile `percent`.
    fn micros(&self, percent: f64) -> f64 {
        self.0.as_ref().filter(|histogram| !histogram.is_empty()).map_or(0.0, |histogram| {
            let nanos = if percent >= 100.0 { histogram.max() } else { histogram.value_at_percentile(percent) };
            Duration::from_nanos(nanos).as_secs_f64() * 1e6
        })
    }
}

/// All operations of one kind.
#[derive(Default)]
pub(crate) struct Phase {
    pub(crate) latency: Latency,
    pub(crate) elapsed: Duration,
}

impl Phase {
    fn per_second(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { to_float(self.latency.count()) / self.elapsed.as_secs_f64() }
    }
}

/// Everything that is printed at the end.
pub(crate) struct Report {
    setting: String,
    engine: String,
    pub(crate) puts: Phase,
    pub(crate) gets: Phase,
    groups: u64,
    group_records: u64,
    fsyncs: u64,
    bytes_written: u64,
    pub(crate) cpu_idle: Option<f64>,
    pub(crate) recovery: Option<RecoveryReport>,
    pub(crate) verified_keys: u64,
    mismatches: u64,
    /// Errors, and examples of mismatches.
    pub(crate) faults: Vec<String>,
}

impl Report {
    /// A report on the time between two snapshots of the statistics.
    pub(crate) fn new(options: &Options, before: &Stats, after: &Stats) -> Self {
        let setting = match &options.file {
            Some(file) => format!("lines of {}, {} writers, {}", file.display(), options.writers, options.durability),
            None => format!(
                "{} writers, {} readers{}, {}, values of {} bytes, {} keys",
                options.writers,
                options.readers,
                options.rate.map(|rate| format!(", {} requests per second", grouped(rate))).unwrap_or_default(),
                options.durability,
                options.value_bytes,
                grouped(options.keys as u64)
            ),
        };
        let mut engine = after.engine.to_string();
        if let Some(reason) = &after.engine_fallback {
            // Writing to a String cannot fail.
            let _ = write!(engine, " (no io_uring: {reason})");
        }
        Self {
            setting,
            engine,
            puts: Phase::default(),
            gets: Phase::default(),
            groups: after.groups - before.groups,
            group_records: after.group_records - before.group_records,
            fsyncs: after.syncs - before.syncs,
            bytes_written: after.bytes_written + after.bytes_prewritten
                - before.bytes_written
                - before.bytes_prewritten,
            cpu_idle: None,
            recovery: None,
            verified_keys: 0,
            mismatches: 0,
            faults: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Adds the first few distinct faults.
    pub(crate) fn fault_all(&mut self, faults: impl Iterator<Item = String>) {
        for fault in faults {
            if self.faults.len() < 8 && !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    pub(crate) fn fault_count(&mut self, mismatches: u64) {
        self.mismatches += mismatches;
    }

    /// Whether there was no mismatch and no error.
    pub(crate) fn is_good(&self) -> bool {
        self.mismatches == 0 && self.faults.is_empty()
    }

    /// Prints the figures to stdout. With `json`, prints them to stderr and the line of JSON to stdout.
    pub(crate) fn print(&self, json: bool) {
        for fault in &self.faults {
            eprintln!("fault: {fault}");
        }
        if json {
            eprint!("{self}");
            println!("{}", self.to_json());
        } else {
            print!("{self}");
        }
    }

    fn mean_group(&self) -> f64 {
        if self.groups == 0 { 0.0 } else { to_float(self.group_records) / to_float(self.groups) }
    }

    fn to_json(&self) -> String {
        let Self { puts, gets, groups, fsyncs, verified_keys, mismatches, .. } = self;
        format!(
            "{{\"puts_per_s\":{:.1},\"gets_per_s\":{:.1},\"put_p50_us\":{:.2},\"put_p99_us\":{:.2},\
             \"get_p50_us\":{:.2},\"get_p99_us\":{:.2},\"groups\":{groups},\"mean_group\":{:.2},\"fsyncs\":{fsyncs},\
             \"verified_keys\":{verified_keys},\"mismatches\":{mismatches}}}",
            puts.per_second(),
            gets.per_second(),
            puts.latency.micros(50.0),
            puts.latency.micros(99.0),
            gets.latency.micros(50.0),
            gets.latency.micros(99.0),
            self.mean_group(),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run       {}", self.setting)?;
        writeln!(f, "engine    {}", self.engine)?;
        for (name, phase) in [("puts", &self.puts), ("gets", &self.gets)] {
            let count = phase.latency.count();
            if count == 0 {
                continue;
            }
            writeln!(
                f,
                "{name}      {} in {:.2} s: {}/s; p50 {}, p99 {}, p99.9 {}, max {}",
                grouped(count),
                phase.elapsed.as_secs_f64(),
                rounded(phase.per_second()),
                Micros(phase.latency.micros(50.0)),
                Micros(phase.latency.micros(99.0)),
                Micros(phase.latency.micros(99.9)),
                Micros(phase.latency.micros(100.0)),
            )?;
        }
        writeln!(
            f,
            "log       {} groups of {:.1} records on average, {} fsyncs, {:.1} MB written",
            grouped(self.groups),
            self.mean_group(),
            grouped(self.fsyncs),
            to_float(self.bytes_written) / 1e6
        )?;
        if let Some(idle) = self.cpu_idle {
            writeln!(f, "cpu       {idle:.0} % idle, over all cores")?;
        }
        if let Some(recovery) = &self.recovery {
            writeln!(
                f,
                "reopened  in {:.3} s: {} keys; {} segments, {} of them loaded from hint files",
                recovery.duration.as_secs_f64(),
                grouped(recovery.keys),
                recovery.segments,
                recovery.hints_loaded
            )?;
        }
        writeln!(f, "verified_keys {}", self.verified_keys)?;
        writeln!(f, "mismatches {}", self.mismatches)
    }
}

/// A time, displayed in a suitable unit.
struct Micros(f64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros if micros < 1_000.0 => write!(f, "{micros:.1} µs"),
            micros if micros < 1_000_000.0 => write!(f, "{:.2} ms", micros / 1e3),
            micros => write!(f, "{:.2} s", micros / 1e6),
        }
    }
}

/// Prints one line per second during the run.
pub(crate) struct Progress {
    begun: Instant,
    shown: Instant,
    puts: u64,
    gets: u64,
    stats: Stats,
    in_place: bool,
}

impl Progress {
    pub(crate) fn begin(stats: Stats) -> Self {
        let now = Instant::now();
        Self { begun: now, shown: now, puts: 0, gets: 0, stats, in_place: std::io::stderr().is_terminal() }
    }

    /// Shows the rates since the last line. `puts` and `gets` are totals.
    pub(crate) fn show(&mut self, puts: u64, gets: u64, stats: Stats) {
        let seconds = self.shown.elapsed().as_secs_f64();
        self.shown = Instant::now();
        let rate = |new: u64, old: u64| rounded(to_float(new - old) / seconds);
        let groups = stats.groups - self.stats.groups;
        let records = stats.group_records - self.stats.group_records;
        let line = format!(
            "{:>4.0} s {:>11} puts/s {:>11} gets/s {:>9} fsyncs/s, {:.1} records per group",
            self.begun.elapsed().as_secs_f64(),
            rate(puts, self.puts),
            rate(gets, self.gets),
            rate(stats.syncs, self.stats.syncs),
            if groups == 0 { 0.0 } else { to_float(records) / to_float(groups) },
        );
        if self.in_place {
            // Returns to the first column and clears the rest of the previous line.
            eprint!("\r{line}\x1b[K");
        } else {
            eprintln!("{line}");
        }
        (self.puts, self.gets, self.stats) = (puts, gets, stats);
    }

    /// Ends the last line.
    pub(crate) fn end(&self) {
        if self.in_place {
            eprintln!();
        }
    }
}

/// The sum of the ticks of all cores, from `/proc/stat`.
pub(crate) struct CpuTimes {
    idle: u64,
    total: u64,
}

impl CpuTimes {
    /// `None` if `/proc/stat` cannot be read or parsed.
    pub(crate) fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        // user nice system idle iowait irq softirq steal. The two fields after them are parts of user and nice.
        let ticks: Vec<u64> =
            text.lines().next()?.split_whitespace().skip(1).take(8).map_while(|tick| tick.parse().ok()).collect();
        // A core that waits for a disk is idle too.
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, total: ticks.iter().sum() })
    }

    pub(crate) fn idle_percent(before: &Option<Self>, after: &Option<Self>) -> Option<f64> {
        let (before, after) = (before.as_ref()?, after.as_ref()?);
        let total = after.total.checked_sub(before.total).filter(|&total| total > 0)?;
        Some(100.0 * to_float(after.idle.saturating_sub(before.idle)) / to_float(total))
    }
}

/// Exact, because counters stay far below 2⁵³.
fn to_float(count: u64) -> f64 {
    count as f64
}

fn rounded(number: f64) -> String {
    grouped(format!("{number:.0}").parse().unwrap_or(0))
}

/// The number with a comma between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
