//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ringcask::{Durability, Engine, WritePath};

use crate::Failure;

/// Loads a ringcask store with many concurrent tasks, then reopens it and checks every acknowledged write.
#[derive(Debug, Parser)]
#[command(after_help = "\
Prints one line of progress per second to stderr and the figures to stdout. Exits with 0 if every acknowledged write \
was found, with 1 after a mismatch or an error, and with 2 after an invalid option.")]
pub(crate) struct Options {
    /// Directory of the store: new or empty, and kept. Default: a new one in ./target, or in the system's temporary
    /// directory if ./target does not exist; it is removed at the end unless there was a fault
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Tasks that put. Each owns a part of the keys and has one put in progress at a time
    #[arg(long, value_name = "TASKS", default_value_t = 256, value_parser = task_count, allow_negative_numbers = true)]
    pub(crate) writers: usize,

    /// Tasks that get random keys and check the bytes. If there are any, all keys are stored before the run
    #[arg(long, value_name = "TASKS", default_value_t = 0, value_parser = task_count, allow_negative_numbers = true)]
    pub(crate) readers: usize,

    /// Length of the run in seconds; may be a fraction
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = run_length, allow_negative_numbers = true)]
    pub(crate) seconds: Duration,

    /// Requests per second of all tasks. They arrive at random and do not wait for earlier ones; latency counts from
    /// the arrival. Default: every task makes a request when its previous one completes
    #[arg(long, value_name = "REQUESTS", value_parser = request_rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<u64>,

    /// Length of every value in bytes, 0 to 67108864
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = value_length, allow_negative_numbers = true)]
    pub(crate) value_bytes: usize,

    /// Number of keys, of 16 bytes each: 1 to 1000000000. The check needs 4 bytes of memory for each
    #[arg(long, value_name = "KEYS", default_value_t = 1_000_000, value_parser = key_count, allow_negative_numbers = true)]
    pub(crate) keys: usize,

    /// Where the record is when a put completes: buffered (in the store's memory), written (in the kernel), synced (on
    /// stable storage)
    #[arg(long, value_name = "LEVEL", default_value_t = Durability::Synced)]
    pub(crate) durability: Durability,

    /// Size of the block cache in bytes: 0 for none, or at least 1048576
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) cache_bytes: u64,

    /// Engine for the I/O: auto, uring or threads
    #[arg(long, value_name = "ENGINE", default_value_t = Engine::Auto)]
    pub(crate) engine: Engine,

    /// How the io_uring engine appends and syncs: thread or ring
    #[arg(long, value_name = "PATH", default_value_t = WritePath::Thread)]
    pub(crate) write_path: WritePath,

    /// Do not prewrite space ahead of small groups
    #[arg(long)]
    pub(crate) no_fill_ahead: bool,

    /// Print the figures as one line of JSON to stdout, and everything else to stderr
    #[arg(long)]
    pub(crate) json: bool,

    /// Store each line of this file under its number, instead of a timed run: all writers store lines in parallel, then
    /// the store is reopened and every line is compared. Ignores --readers, --seconds, --keys and --value-bytes
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

impl Options {
    /// Checks conditions that involve several options.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.file.is_some() {
            return if self.writers == 0 { Err("--file needs --writers of at least 1".into()) } else { Ok(()) };
        }
        if self.writers == 0 && self.readers == 0 {
            return Err("--writers and --readers must not both be 0".into());
        }
        if self.writers * self.value_bytes > 4 << 30 {
            return Err("--writers times --value-bytes exceeds 4 GiB: each writer has one value in memory".into());
        }
        if self.keys < self.writers {
            return Err(format!(
                "--keys {} is less than --writers {}: each writer owns at least one key",
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
