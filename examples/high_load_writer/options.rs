//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ringcask::{Durability, Engine, WritePath};

use crate::Failure;

/// Loads a ringcask store with many concurrent tasks, then reopens it and checks every acknowledged write.
#[derive(Debug, Parser)]
#[command(after_help = "\
Prints a line of progress a second on stderr and the figures on stdout, and exits with 0 only if every acknowledged \
write was found again, with 1 after a mismatch or an error, with 2 after a wrong option.")]
pub(crate) struct Options {
    /// Directory of the store: new or empty, and kept. Default: a fresh one under ./target, or under the system's
    /// temporary directory if there is no ./target; it is removed at the end unless something was wrong
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Tasks that put; each owns a slice of the keys, and has one put in flight at a time
    #[arg(long, value_name = "TASKS", default_value_t = 256, value_parser = task_count, allow_negative_numbers = true)]
    pub(crate) writers: usize,

    /// Tasks that get random keys and check the bytes; if there are any, all keys are stored before the run
    #[arg(long, value_name = "TASKS", default_value_t = 0, value_parser = task_count, allow_negative_numbers = true)]
    pub(crate) readers: usize,

    /// Length of the run in seconds; fractions are fine
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = run_length, allow_negative_numbers = true)]
    pub(crate) seconds: Duration,

    /// Requests a second in all, which arrive at random whether or not earlier ones were answered; latency counts from the
    /// arrival. Default: every task makes its next request when it has the last answer
    #[arg(long, value_name = "REQUESTS", value_parser = request_rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<u64>,

    /// Length of every value in bytes, 0 to 67108864
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = value_length, allow_negative_numbers = true)]
    pub(crate) value_bytes: usize,

    /// Number of keys, of 16 bytes each: 1 to 1000000000; the check remembers 4 bytes for each
    #[arg(long, value_name = "KEYS", default_value_t = 1_000_000, value_parser = key_count, allow_negative_numbers = true)]
    pub(crate) keys: usize,

    /// When a put counts as done: buffered (in the store's log buffer), written (the kernel has it), synced (on
    /// stable storage)
    #[arg(long, value_name = "LEVEL", default_value_t = Durability::Synced)]
    pub(crate) durability: Durability,

    /// Memory that the store may use for blocks of its log: 0 for none, or 1048576 and more
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) cache_bytes: u64,

    /// What carries out the I/O: auto, uring or threads
    #[arg(long, value_name = "ENGINE", default_value_t = Engine::Auto)]
    pub(crate) engine: Engine,

    /// How the io_uring engine makes appends and syncs: thread or ring
    #[arg(long, value_name = "PATH", default_value_t = WritePath::Thread)]
    pub(crate) write_path: WritePath,

    /// Write no filler ahead of small groups
    #[arg(long)]
    pub(crate) no_fill_ahead: bool,

    /// End with the figures as one line of JSON on stdout; everything else goes to stderr
    #[arg(long)]
    pub(crate) json: bool,

    /// Instead of a timed run: store each line of this file under its number, by all writers in parallel; close,
    /// reopen, read every line back and compare. --readers, --seconds, --keys and --value-bytes do not matter then
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

impl Options {
    /// Checks what no single option shows.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.file.is_some() {
            return if self.writers == 0 { Err("--file needs at least one of --writers".into()) } else { Ok(()) };
        }
        if self.writers == 0 && self.readers == 0 {
            return Err("--writers 0 and --readers 0 leave nothing to do".into());
        }
        if self.writers * self.value_bytes > 4 << 30 {
            return Err("--writers times --value-bytes is above 4 GiB: each writer holds one value in memory".into());
        }
        if self.keys < self.writers {
            return Err(format!(
                "--keys {} is less than --writers {}: each owns at least one",
                self.keys, self.writers
            )
            .into());
        }
        Ok(())
    }
}

fn task_count(text: &str) -> Result<usize, String> {
    whole_number(text, 0, 100_000)
}

fn key_count(text: &str) -> Result<usize, String> {
    whole_number(text, 1, 1_000_000_000)
}

fn request_rate(text: &str) -> Result<u64, String> {
    whole_number(text, 1, 10_000_000).map(|rate| rate as u64)
}

fn value_length(text: &str) -> Result<usize, String> {
    whole_number(text, 0, 64 << 20)
}

fn whole_number(text: &str, min: usize, max: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("not a whole number from {min} to {max}")),
    }
}

fn run_length(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds above 0, up to 86400".to_owned()),
    }
}
