//! Options of a store: what they mean, their ranges, and the one place that checks them.

pub(crate) mod hours;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::compaction::picker::Policy;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
pub use crate::io::probe::{EngineChoice as Engine, WritePath};
use crate::options::hours::Hours;
use crate::store::futures::Open;

/// Longest key, in bytes. The shortest is one byte.
pub const MAX_KEY_LEN: usize = crate::format::MAX_KEY_LEN;

/// Longest value, in bytes: 4 GiB − 1 less the record's header and the longest key.
pub const MAX_VALUE_LEN: u64 = crate::format::MAX_VALUE_LEN as u64;

/// Where a record is when the future of its write resolves.
///
/// Writes of a key are ordered by their versions, whatever their durability. A `Buffered` write can be seen before an
/// older `Synced` one that still waits for the disk, and stays the newer: so of a `Synced` batch, a key that was
/// overwritten while the batch waited is never seen. Writes of one durability are seen in the order of their versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Durability {
    /// In the store's log buffer and visible to every `get`. It reaches the kernel within
    /// [`flush_interval`](Builder::flush_interval) or when a buffer fills, and the disk within
    /// [`sync_interval`](Builder::sync_interval). A process kill can take it.
    Buffered,
    /// The kernel has it: it survives a kill of the process, not a power cut before the next sync.
    Written,
    /// On stable storage: it survives power loss. No reader sees the write before that.
    #[default]
    Synced,
}

/// What opening does about damage that can hold acknowledged data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recovery {
    /// The open fails with [`ErrorKind::Corrupt`] and changes nothing.
    #[default]
    Strict,
    /// The open succeeds without the damaged records, and
    /// [`RecoveryReport::damage`](crate::RecoveryReport::damage) lists what is gone. An older value of a key whose
    /// newest record was lost becomes visible again.
    ///
    /// What is cut off the end of the segment that was being written is kept in a file of its own, if there is space:
    /// [`RecoveryReport::cut_copy`](crate::RecoveryReport::cut_copy).
    Salvage,
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

/// How one write differs from the store's defaults.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct PutOptions {
    pub(crate) durability: Option<Durability>,
}

impl PutOptions {
    /// The store's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The durability of this write, instead of the store's.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }
}

/// How the space of overwritten and deleted records comes back; see [`Builder::compaction`].
///
/// Compaction begins by itself when the dead part of all sealed segments reaches the *trigger*. It then rewrites the
/// segments that free most, each at least the *threshold*, at most the *budget* at a time, no faster than the *rate*. So
/// when it has caught up, the log takes at most `1 / (1 - trigger)` times the bytes that are alive, and one segment. A
/// segment with nothing alive in it is removed unread, whatever the trigger says.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Compaction {
    pub(crate) is_automatic: bool,
    trigger: f64,
    threshold: f64,
    budget_bytes: Option<u64>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) hours: Option<Hours>,
}

impl Default for Compaction {
    fn default() -> Self {
        Self::new()
    }
}

impl Compaction {
    /// Automatic, with a trigger of 0.5, a threshold of 0.25, a budget of four segments, and 32 MiB a second.
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

    /// Whether it begins by itself. Default: yes. If not, space comes back through [`Store::compact`] alone.
    ///
    /// [`Store::compact`]: crate::Store::compact
    pub fn automatic(mut self, automatic: bool) -> Self {
        self.is_automatic = automatic;
        self
    }

    /// The dead part of all sealed segments at which it begins. Default 0.5, range 0.05 to 0.95.
    ///
    /// Less means less disk and more rewriting: in the long run each byte that is written is rewritten up to
    /// `(1 - trigger) / trigger` times.
    pub fn trigger(mut self, part: f64) -> Self {
        self.trigger = part;
        self
    }

    /// The part of a segment that rewriting it must free. Default 0.25, range 0.01 to the trigger; a default larger than
    /// the trigger is lowered to it.
    ///
    /// More means that fewer bytes are rewritten for each byte freed.
    pub fn threshold(mut self, part: f64) -> Self {
        self.threshold = part;
        self
    }

    /// Bytes of segments that one job takes. Default: four segments. Range 1 MiB to 1 TiB; one segment is always taken.
    ///
    /// A job's inputs go when all its outputs are durable, so more means more disk for the time of a job, and fewer jobs.
    /// A job holds the hints of its outputs in memory until then: 36 bytes and the key for each record it copies.
    pub fn budget_bytes(mut self, bytes: u64) -> Self {
        self.budget_bytes = Some(bytes);
        self
    }

    /// Bytes read and written a second, or `None` for no limit. Default 32 MiB, range 64 KiB to 1 TiB.
    ///
    /// The rate falls to a sixteenth of this while syncs take clearly longer than before. It rises while dead bytes pile
    /// up, and halfway between the trigger and a log that is all dead there is no limit; but not for
    /// [`Store::compact`](crate::Store::compact), which keeps to it. There is none either for a job
    /// that lives on the reserve of a full disk, which it shall not keep for long.
    pub fn bytes_per_second(mut self, bytes: Option<u64>) -> Self {
        self.bytes_per_second = bytes;
        self
    }

    /// The hours of the day, in UTC and as time since midnight, in which it may begin by itself; over midnight if `from`
    /// is later than `to`, and never if they are the same. Default: all day.
    ///
    /// A job that has begun is finished.
    pub fn hours(mut self, from: Duration, to: Duration) -> Self {
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
        if let Some(Hours { from, to }) = self.hours {
            let day = 24 * 60 * 60;
            in_range("compaction hours, from, in s", from.as_secs(), 0, day - 1)?;
            in_range("compaction hours, to, in s", to.as_secs(), 0, day)?;
        }
        Ok(())
    }

    pub(crate) fn policy(&self, segment_bytes: u64) -> Policy {
        Policy {
            trigger: self.trigger,
            threshold: self.threshold.min(self.trigger),
            budget_bytes: self.budget_bytes.unwrap_or(segment_bytes.saturating_mul(4)),
            segment_bytes,
        }
    }
}

/// What to compact; see [`Store::compact`](crate::Store::compact).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CompactOptions {
    pub(crate) segments: Option<Vec<u64>>,
}

impl CompactOptions {
    /// Everything that frees space: the segment that is being written is sealed for it.
    pub fn new() -> Self {
        Self::default()
    }

    /// These sealed segments alone, whatever it frees; their numbers are in [`Stats::segments`](crate::Stats::segments).
    pub fn segments(mut self, segments: impl IntoIterator<Item = u64>) -> Self {
        self.segments = Some(segments.into_iter().collect());
        self
    }
}

/// The options of a store that is about to be opened; see [`Store::builder`](crate::Store::builder).
///
/// Setters never fail; [`open`](Builder::open) checks every option and names the option, its value and its range.
/// All options may change from one open to the next.
///
/// # Examples
///
/// ```
/// # fn main() -> ringcask::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # pollster::block_on(async {
/// use ringcask::{Compaction, Durability, Engine, ErrorKind, Store};
///
/// let store = Store::builder(dir.path().join("db"))
///     .durability(Durability::Written)
///     .engine(Engine::Auto)
///     .segment_bytes(64 << 20)
///     .compaction(Compaction::new().trigger(0.4))
///     .open()
///     .await?;
/// store.put("key", "value").await?;
///
/// // Options are checked by `open`, which names the range.
/// let error = Store::builder(dir.path().join("other")).segment_bytes(1).open().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidConfig);
/// # store.close().await
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    pub(crate) options: Options,
}

/// Checked options.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
    pub(crate) engine: Engine,
    pub(crate) write_path: WritePath,
    pub(crate) segment_bytes: u64,
    pub(crate) flush_interval: Duration,
    pub(crate) sync_interval: Duration,
    pub(crate) fill_ahead: bool,
    pub(crate) staging_bytes: usize,
    pub(crate) max_value_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) max_open_files: usize,
    pub(crate) cache_bytes: u64,
    pub(crate) compaction: Compaction,
    pub(crate) recovery: Recovery,
    pub(crate) create: bool,
    pub(crate) world: Option<Arc<dyn Io>>,
    /// For tests: sizes down to [`TINY`] are accepted, so that a few records cause rotations, evictions and compactions.
    pub(crate) tiny_sizes: bool,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The smallest segment, cache and compaction budget of a store with [`Options::tiny_sizes`].
const TINY: u64 = KIB;

impl Builder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            options: Options {
                path: path.to_path_buf(),
                durability: Durability::Synced,
                engine: Engine::Auto,
                write_path: WritePath::Thread,
                segment_bytes: 256 * MIB,
                flush_interval: Duration::from_millis(5),
                sync_interval: Duration::from_secs(1),
                fill_ahead: true,
                staging_bytes: 8 << 20,
                max_value_bytes: MAX_VALUE_LEN,
                reserve_bytes: MIB,
                max_open_files: 512,
                cache_bytes: 0,
                compaction: Compaction::new(),
                recovery: Recovery::Strict,
                create: true,
                world: None,
                tiny_sizes: false,
            },
        }
    }

    /// Durability of writes that name none. Default: [`Durability::Synced`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Which engine carries out the I/O. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> Self {
        self.options.engine = engine;
        self
    }

    /// How the io_uring engine makes appends and syncs. Default: [`WritePath::Thread`]. Changes speed, not promises.
    pub fn write_path(mut self, write_path: WritePath) -> Self {
        self.options.write_path = write_path;
        self
    }

    /// Size in bytes at which a segment is sealed and the next one started. Default 256 MiB, range 4 KiB to 16 GiB.
    ///
    /// More means fewer files and seals; less means that space comes back in smaller steps. A record larger than this
    /// gets a segment of its own.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.options.segment_bytes = bytes;
        self
    }

    /// How long a `Buffered` write may stay in the store's own memory. Default 5 ms, range 1 ms to 60 s.
    ///
    /// More makes larger writes; less leaves less to a kill of the process.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.options.flush_interval = interval;
        self
    }

    /// How long `Buffered` and `Written` records may go without a sync. Default 1 s, range 1 ms to 60 s.
    ///
    /// More saves syncs; less leaves less to a power cut. 16 MiB without a sync get one before the interval is over, so that
    /// nobody waits for much when their segment is full.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.options.sync_interval = interval;
        self
    }

    /// Whether small groups of `Synced` writes find filler on the disk to overwrite. Default `true`.
    ///
    /// A sync of blocks that were written before takes about half as long as one that makes the file longer. So beside
    /// about every sixteenth group of at most 64 KiB the store writes up to 1 MiB of filler for the next ones, on ext4 and
    /// XFS. `false` saves these bytes, which are at most a segment's more for each segment, where a disk's wear counts for
    /// more than the time of a sync. Files of closed segments are the same either way.
    pub fn fill_ahead(mut self, fill: bool) -> Self {
        self.options.fill_ahead = fill;
        self
    }

    /// Bytes of records that may wait for the kernel at a time. Default 8 MiB, range 64 KiB to 1 GiB.
    ///
    /// Writers beyond it wait in their `await`. One record larger than this is let in alone. The store keeps up to
    /// twice this in buffers.
    pub fn staging_bytes(mut self, bytes: usize) -> Self {
        self.options.staging_bytes = bytes;
        self
    }

    /// Longest value the store accepts. Default and limit [`MAX_VALUE_LEN`]. Records already stored stay readable.
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.options.max_value_bytes = bytes;
        self
    }

    /// Disk space kept for what must go on when the disk is full: deletes, and opening. Default 1 MiB, range 0 to 1
    /// GiB.
    ///
    /// So much is claimed by the file `RESERVE` in the store's directory, and as much again for deletes behind the
    /// records of the segment that is being written. A delete takes some 60 bytes and a share of its commit group, a
    /// segment that has to be started for it two or three blocks; the last quarter of the file's share is for the next
    /// open. Puts that need more space are refused with [`ErrorKind::NoSpace`] while any of the reserve is missing;
    /// they have it claimed again as soon as there is space. Meanwhile no hint files are written.
    ///
    /// More lets more deletes through; less leaves more of a small disk to puts. 0 removes the file. A smaller number
    /// than at the last open gives the difference back only once the reserve has been used. Where the file system has
    /// no `fallocate` there is no reserve, nor where no file may become that large (`RLIMIT_FSIZE`), nor where something
    /// else has taken the name `RESERVE`: a directory, a link or a file with bytes in it is reported as a foreign file and
    /// left alone.
    pub fn reserve_bytes(mut self, bytes: u64) -> Self {
        self.options.reserve_bytes = bytes;
        self
    }

    /// Descriptors of sealed segments kept open at a time. Default 512, range 8 to 1,048,576.
    ///
    /// Beyond it the least recently used is closed; a read of it opens it again.
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.options.max_open_files = files;
        self
    }

    /// Memory for a cache of the log's blocks, in bytes: a get that finds its record there makes no system call. Default 0,
    /// no cache; otherwise 1 MiB to 1 TiB.
    ///
    /// Worth it where the same records are read often and there is memory for them twice, for the kernel's page cache has
    /// them too. Blocks of 16 KiB come from the page cache as gets read there, so it helps most where what is read often
    /// fits as a whole, or lies together. One miss in 64 brings its block, and while there is room, one more for every
    /// eight hits: a cache warms up within some sixteen gets for each of its blocks. Records beyond some 32 KiB are not kept,
    /// and of a log of more than 256 times the cache only a part.
    ///
    /// Address space is taken when the store is opened, which fails with [`ErrorKind::Io`](crate::ErrorKind::Io) where there
    /// is not so much; memory as blocks come, in large pages of 2 MiB where the kernel has them. It is kept until the last
    /// handle is dropped, and counted in [`Stats::cache_held_bytes`](crate::Stats::cache_held_bytes), but for what is free of
    /// the last large page. From 4 MiB on, up to a 64th is for hints of where a key's record was last found, by which the
    /// processor is asked for it early. In stores of small segments (below 512 KiB) blocks are smaller.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.options.cache_bytes = bytes;
        self
    }

    /// How space comes back. Default: [`Compaction::new`].
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.options.compaction = compaction;
        self
    }

    /// What opening does about damage. Default: [`Recovery::Strict`].
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.options.recovery = recovery;
        self
    }

    /// Whether a missing directory is created (mode 0700). Default: yes. If not, a missing directory is an error.
    pub fn create(mut self, create: bool) -> Self {
        self.options.create = create;
        self
    }

    /// Runs the store on `world` instead of an engine of its own choosing, and accepts tiny sizes.
    #[cfg(feature = "__testing")]
    #[doc(hidden)]
    pub fn world(mut self, world: Arc<dyn Io>) -> Self {
        self.options.world = Some(world);
        self.tiny_sizes()
    }

    /// Lowers the minimum of `segment_bytes`, `cache_bytes` and the compaction budget to 1 KiB.
    #[cfg(feature = "__testing")]
    #[doc(hidden)]
    pub fn tiny_sizes(mut self) -> Self {
        self.options.tiny_sizes = true;
        self
    }

    /// Opens the store; see [`Store::open`](crate::Store::open).
    pub fn open(self) -> Open {
        Open::new(self.options)
    }
}

impl Options {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_sizes_are_the_documented_ones_whatever_the_features() {
        let segment = |bytes| Builder::new(Path::new("db")).segment_bytes(bytes);
        let cache = |bytes| Builder::new(Path::new("db")).cache_bytes(bytes);
        let budget = |bytes| Builder::new(Path::new("db")).compaction(Compaction::new().budget_bytes(bytes));
        for builder in [segment(4 * KIB), cache(0), cache(MIB), budget(MIB)] {
            assert!(builder.options.validate().is_ok(), "{builder:?}");
        }
        for builder in [segment(4 * KIB - 1), cache(MIB - 1), budget(MIB - 1)] {
            assert!(builder.options.validate().is_err(), "{builder:?}");
            #[cfg(feature = "__testing")]
            assert!(builder.tiny_sizes().options.validate().is_ok(), "tests may go lower");
        }
    }
}
