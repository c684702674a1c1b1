//! The builder: one setter for each option.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::open::Open;
use crate::io::Io;
use crate::options::{Compaction, Durability, Engine, Options, Recovery, WritePath};

/// Options for opening a store; see [`Store::builder`](crate::Store::builder).
///
/// Setters never fail. [`open`](Builder::open) checks every option; its error names the option, the value and the range. Every
/// option may change from one open to the next.
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
/// // `open` checks the options and names the range.
/// let error = Store::builder(dir.path().join("other")).segment_bytes(1).open().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidConfig);
/// # store.close().await
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    options: Options,
    /// Instead of an engine of the store's own choosing.
    backend: Option<Arc<dyn Io>>,
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Self {
        Self { options: Options::new(path), backend: None }
    }

    /// Durability of writes that set none. Default: [`Durability::Synced`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// The engine that does the I/O. Default: [`Engine::Auto`].
    pub fn engine(mut self, engine: Engine) -> Self {
        self.options.engine = engine;
        self
    }

    /// How the io_uring engine appends and syncs. Default: [`WritePath::Thread`]. It affects speed only.
    pub fn write_path(mut self, write_path: WritePath) -> Self {
        self.options.write_path = write_path;
        self
    }

    /// Size in bytes at which a segment is sealed and the next one started. Default: 256 MiB. Range: 4 KiB to 16 GiB.
    ///
    /// Larger segments mean fewer files and fewer seals. With smaller ones, space comes back in smaller steps. A record larger
    /// than this gets its own segment.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.options.segment_bytes = bytes;
        self
    }

    /// How long a `Buffered` write may stay in the store's memory. Default: 5 ms. Range: 1 ms to 60 s.
    ///
    /// A longer interval makes larger writes. A shorter one loses less when the process is killed.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.options.flush_interval = interval;
        self
    }

    /// How long `Buffered` and `Written` records may stay unsynced. Default: 1 s. Range: 1 ms to 60 s.
    ///
    /// A longer interval saves syncs. A shorter one loses less when the power fails. Under load the store syncs earlier.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.options.sync_interval = interval;
        self
    }

    /// Whether the store prewrites space for small groups of `Synced` writes. Default: `true`.
    ///
    /// A sync of blocks that were written before takes about half as long as one that extends the file. So on ext4 and XFS the
    /// store writes space ahead of the log from time to time, and later groups overwrite it. It writes at most one more segment
    /// for each segment; [`Stats::bytes_prewritten`](crate::Stats::bytes_prewritten) counts. `false` saves these writes, where
    /// wear of the disk matters more than the time of a sync. Sealed segments are the same either way.
    pub fn prewrite(mut self, fill: bool) -> Self {
        self.options.prewrite = fill;
        self
    }

    /// Bytes of records that may wait to be written. Default: 8 MiB. Range: 64 KiB to 1 GiB.
    ///
    /// Beyond that, writers wait in their `await`. A record larger than this is admitted alone. The store holds up to twice this
    /// much in buffers.
    pub fn staging_bytes(mut self, bytes: usize) -> Self {
        self.options.staging_bytes = bytes;
        self
    }

    /// Length of the longest value that the store accepts. Default and limit: [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN). Longer
    /// values that are already stored stay readable.
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.options.max_value_bytes = bytes;
        self
    }

    /// Disk space kept for deletes and opens on a full disk. Default: 1 MiB. Range: 0 to 1 GiB.
    ///
    /// The file `RESERVE` in the store's directory holds this much, and the segment that is being written holds as much again
    /// for deletes. A delete takes about 60 bytes. The next open needs the last quarter of the file's space. While a part of the
    /// reserve is missing, puts that need more space are refused with [`NoSpace`](crate::ErrorKind::NoSpace); they restore it as
    /// soon as there is space. No hint files are written meanwhile.
    ///
    /// A larger reserve allows more deletes. A smaller one leaves more of a small disk to puts, and 0 removes the file. A
    /// smaller number than at the last open gives the difference back only after the reserve has been used. There is no reserve
    /// where the file system does not support `fallocate`, where `RLIMIT_FSIZE` is too small, or where something else has the
    /// name `RESERVE`: a directory, a link or a file with contents is reported as a foreign file and left alone.
    pub fn reserve_bytes(mut self, bytes: u64) -> Self {
        self.options.reserve_bytes = bytes;
        self
    }

    /// Descriptors of sealed segments kept open. Default: 512. Range: 8 to 1,048,576.
    ///
    /// Beyond that, the least recently used one is closed. A read of its segment opens it again.
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.options.max_open_files = files;
        self
    }

    /// Memory for the store's own cache, in bytes. Default: 0, which turns it off. Range: 1 MiB to 1 TiB. A get that hits the
    /// cache makes no system call.
    ///
    /// It pays where the same records are read often and there is memory for them twice, because the kernel's page cache has them
    /// too. Gets that hit the page cache fill it, in blocks of the log: it helps most if everything that is read often fits, or
    /// lies close together. It does not hold large records, of more than about 32 KiB.
    ///
    /// The open takes address space for the whole cache and fails with [`Io`](crate::ErrorKind::Io) if there is not enough.
    /// Memory grows on demand, in large pages where the kernel has them, and is released with the last handle.
    /// [`Stats::cache_held_bytes`](crate::Stats::cache_held_bytes) reports it.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.options.cache_bytes = bytes;
        self
    }

    /// How space comes back. Default: [`Compaction::new`].
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.options.compaction = compaction;
        self
    }

    /// What the open does about damage. Default: [`Recovery::Strict`].
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.options.recovery = recovery;
        self
    }

    /// Whether the open creates a missing directory, with mode 0700. Default: `true`. If not, a missing directory is an error.
    pub fn create(mut self, create: bool) -> Self {
        self.options.create = create;
        self
    }

    /// Runs the store on `backend` instead of an engine that the store chooses, and accepts tiny sizes.
    #[cfg(feature = "__testing")]
    #[doc(hidden)]
    pub fn backend(mut self, backend: Arc<dyn Io>) -> Self {
        self.backend = Some(backend);
        self.tiny_sizes()
    }

    /// Lowers the minimum of `segment_bytes`, `cache_bytes` and the compaction budget to 1 KiB.
    #[cfg(feature = "__testing")]
    #[doc(hidden)]
    pub fn tiny_sizes(mut self) -> Self {
        self.options.tiny_sizes = true;
        self
    }

    /// Resolves to the open store; see [`Store::open`](crate::Store::open).
    pub fn open(self) -> Open {
        Open::new(self.options, self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

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
