//! Options as plain data: their meaning, their ranges, and the one place that checks them. The builder is in `store`.

pub(crate) mod hours;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use hours::Hours;
pub use hours::TimeOfDay;

/// Length of the longest key, in bytes. The shortest key has one byte.
pub const MAX_KEY_LEN: usize = crate::format::MAX_KEY_LEN;

/// Length of the longest value, in bytes: a little less than 4 GiB.
pub const MAX_VALUE_LEN: u64 = crate::format::MAX_VALUE_LEN as u64;

/// Where a record is when the future of its write resolves.
///
/// Versions order the writes of a key, whatever their durability. A `Buffered` write can be visible before an older `Synced` one
/// that still waits for the disk, and it stays the newer one. So a key of a `Synced` batch that is overwritten while the batch
/// waits never becomes visible. Writes of one durability become visible in the order of their versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Durability {
    /// In the store's memory and visible to every `get`. It reaches the kernel within
    /// [`flush_interval`](crate::Builder::flush_interval) or when a buffer fills, and the disk within
    /// [`sync_interval`](crate::Builder::sync_interval). A kill of the process can lose it.
    Buffered,
    /// In the kernel. It survives a kill of the process, but not a power loss before the next sync.
    Written,
    /// On stable storage (default). It survives power loss. No reader sees the write before that.
    #[default]
    Synced,
}

/// What an open does about damage that may affect acknowledged data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recovery {
    /// The open fails with [`ErrorKind::Corrupt`] and changes nothing (default).
    #[default]
    Strict,
    /// The open succeeds without the damaged records, and [`RecoveryReport::damage`](crate::RecoveryReport::damage) lists the
    /// damaged ranges. If the newest record of a key is lost, an older value becomes visible again.
    ///
    /// If there is space, a file keeps what was cut off the end of the segment that was being written; see
    /// [`RecoveryReport::cut_copy`](crate::RecoveryReport::cut_copy).
    Salvage,
}

/// The engine that carries out the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// io_uring if the system supports and permits it, otherwise blocking calls on threads (default). The environment
    /// variable `RINGCASK_ENGINE` (`uring` or `threads`) overrides this value.
    #[default]
    Auto,
    /// io_uring (Linux 6.1 or later). Opening the store fails if io_uring is unavailable.
    Uring,
    /// Blocking calls on the store's own threads.
    Threads,
}

/// How the engine [`Uring`](Engine::Uring) carries out appends and syncs. Reads use a ring in both cases.
///
/// On ext4, buffered writes and syncs never complete within `io_uring_enter`: the kernel hands each to a worker thread.
/// These wake-ups usually cost more than the overlap gains. Where wake-ups are cheap and the disk is fast,
/// [`Ring`](Self::Ring) may be faster; measure it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WritePath {
    /// The commit thread makes the system calls itself (default).
    #[default]
    Thread,
    /// The commit thread submits to its ring. The next group's sync can run while this group's writers are notified.
    Ring,
}

macro_rules! named_variants {
    ($type:ty, $what:literal, $($variant:ident = $name:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $name),+ })
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::new(
                        ErrorKind::InvalidConfig,
                        format!("{} {text:?} is none of {}", $what, [$($name),+].join(", ")),
                    )),
                }
            }
        }
    };
}

named_variants!(Durability, "durability", Buffered = "buffered", Written = "written", Synced = "synced");
named_variants!(Engine, "engine", Auto = "auto", Uring = "uring", Threads = "threads");
named_variants!(WritePath, "write path", Thread = "thread", Ring = "ring");
named_variants!(Recovery, "recovery", Strict = "strict", Salvage = "salvage");

/// How the space of overwritten and deleted records comes back; see [`Builder::compaction`](crate::Builder::compaction).
///
/// Compaction starts by itself when the dead part of all sealed segments reaches the *trigger*. It rewrites the segments that
/// free most, each at least the *threshold*, at most the *budget* at a time and no faster than the *rate*. Once it has caught
/// up, the log takes at most `1 / (1 - trigger)` times the live bytes, plus one segment. A segment without live records is
/// removed without being read, regardless of the trigger.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Compaction {
    pub(crate) is_automatic: bool,
    pub(crate) trigger: f64,
    pub(crate) threshold: f64,
    pub(crate) budget_bytes: Option<u64>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) hours: Option<Hours>,
}

impl Default for Compaction {
    fn default() -> Self {
        Self::new()
    }
}

impl Compaction {
    /// The defaults of all options.
    pub fn new() -> Self {
        Self {
            is_automatic: true,
            trigger: 0.5,
            threshold: 0.25,
            budget_bytes: None,
            bytes_per_second: Some(32 * MIB),
            hours: None,
        }
    }

    /// Whether compaction starts by itself. Default: `true`. If not, only [`Store::compact`](crate::Store::compact) gives space
    /// back.
    pub fn automatic(mut self, automatic: bool) -> Self {
        self.is_automatic = automatic;
        self
    }

    /// The dead part of all sealed segments at which compaction starts. Default: 0.5. Range: 0.05 to 0.95.
    ///
    /// A smaller value needs less disk and rewrites more: in the long run, each byte written is rewritten up to
    /// `(1 - trigger) / trigger` times.
    pub fn trigger(mut self, part: f64) -> Self {
        self.trigger = part;
        self
    }

    /// The part of a segment that rewriting it must free. Default: 0.25, or the trigger if that is smaller. Range: 0.01 to the
    /// trigger.
    ///
    /// A larger value rewrites fewer bytes for each byte freed.
    pub fn threshold(mut self, part: f64) -> Self {
        self.threshold = part;
        self
    }

    /// Bytes of segments that one job takes. Default: four segments. Range: 1 MiB to 1 TiB. A job always takes at least one
    /// segment.
    ///
    /// A job removes its inputs when all its outputs are durable, so a larger budget needs more disk during a job. A job also
    /// holds the hints of its outputs in memory: 36 bytes and the key for each record it copies.
    pub fn budget_bytes(mut self, bytes: u64) -> Self {
        self.budget_bytes = Some(bytes);
        self
    }

    /// Bytes that compaction reads and writes per second, or `None` for no limit. Default: 32 MiB. Range: 64 KiB to 1 TiB.
    ///
    /// Compaction slows down while it makes syncs clearly slower, and speeds up, beyond this limit if needed, while dead bytes
    /// pile up. [`Store::compact`](crate::Store::compact) never exceeds the limit. On a full disk, a job that uses the reserve
    /// ignores it.
    pub fn bytes_per_second(mut self, bytes: Option<u64>) -> Self {
        self.bytes_per_second = bytes;
        self
    }

    /// The part of every day, in UTC, in which compaction may start by itself. It spans midnight if `from` is later than
    /// `to`, and is empty if they are the same. Default: all day.
    ///
    /// A job that has started continues to its end.
    pub fn hours(mut self, from: TimeOfDay, to: TimeOfDay) -> Self {
        self.hours = Some(Hours { from, to });
        self
    }

    fn validate(&self, min_budget_bytes: u64) -> Result<()> {
        part_in_range("compaction trigger", self.trigger, 0.05, 0.95)?;
        part_in_range("compaction threshold", self.threshold, 0.01, self.trigger.max(Self::new().threshold))?;
        if let Some(bytes) = self.budget_bytes {
            in_range("compaction budget_bytes", bytes, min_budget_bytes, 1024 * GIB)?;
        }
        if let Some(bytes) = self.bytes_per_second {
            in_range("compaction bytes_per_second", bytes, 64 * KIB, 1024 * GIB)?;
        }
        if let Some(Hours { from, to }) = self.hours
            && let Some(time) = [from, to].into_iter().find(|time| !time.is_valid())
        {
            let message = format!("option compaction hours has {time}, outside 00:00..=24:00");
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        Ok(())
    }
}

/// The options of one store, as the builder collects them.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
    pub(crate) engine: Engine,
    pub(crate) write_path: WritePath,
    pub(crate) segment_bytes: u64,
    pub(crate) flush_interval: Duration,
    pub(crate) sync_interval: Duration,
    pub(crate) prewrite: bool,
    pub(crate) staging_bytes: usize,
    pub(crate) max_value_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) max_open_files: usize,
    pub(crate) cache_bytes: u64,
    pub(crate) compaction: Compaction,
    pub(crate) recovery: Recovery,
    pub(crate) create: bool,
    /// For tests: sizes down to [`TINY`] are accepted, so that a few records cause rotations, evictions and compactions.
    pub(crate) tiny_sizes: bool,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The smallest segment, cache and compaction budget of a store with [`Options::tiny_sizes`].
const TINY: u64 = KIB;

impl Options {
    /// The defaults, for the directory `path`.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            durability: Durability::Synced,
            engine: Engine::Auto,
            write_path: WritePath::Thread,
            segment_bytes: 256 * MIB,
            flush_interval: Duration::from_millis(5),
            sync_interval: Duration::from_secs(1),
            prewrite: true,
            staging_bytes: 8 << 20,
            max_value_bytes: MAX_VALUE_LEN,
            reserve_bytes: MIB,
            max_open_files: 512,
            cache_bytes: 0,
            compaction: Compaction::new(),
            recovery: Recovery::Strict,
            create: true,
            tiny_sizes: false,
        }
    }

    /// Checks every option.
    pub(crate) fn validate(&self) -> Result<()> {
        let millis = |interval: Duration| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let at_least = |bytes: u64| if self.tiny_sizes { TINY } else { bytes };
        in_range("segment_bytes", self.segment_bytes, at_least(4 * KIB), 16 * GIB)?;
        in_range("flush_interval in ms", millis(self.flush_interval), 1, 60_000)?;
        in_range("sync_interval in ms", millis(self.sync_interval), 1, 60_000)?;
        in_range("staging_bytes", self.staging_bytes as u64, 64 * KIB, GIB)?;
        in_range("max_value_bytes", self.max_value_bytes, 0, MAX_VALUE_LEN)?;
        in_range("reserve_bytes", self.reserve_bytes, 0, GIB)?;
        if self.cache_bytes > 0 {
            in_range("cache_bytes, if not 0,", self.cache_bytes, at_least(MIB), 1024 * GIB)?;
        }
        in_range("max_open_files", self.max_open_files as u64, 8, 1 << 20)?;
        self.compaction.validate(at_least(MIB))?;
        if self.path.as_os_str().is_empty() {
            return Err(Error::new(ErrorKind::InvalidConfig, "option path is empty"));
        }
        Ok(())
    }
}

fn part_in_range(option: &str, value: f64, min: f64, max: f64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidConfig, format!("option {option} is {value}, outside {min}..={max}")))
}

fn in_range(option: &str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidConfig, format!("option {option} is {value}, outside {min}..={max}")))
}
