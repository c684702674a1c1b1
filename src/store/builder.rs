//! The options of a store, one setter each.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::open::Open;
use crate::io::Io;
use crate::options::{Compaction, Durability, Engine, Options, Recovery, WritePath};

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
    options: Options,
    /// Instead of an engine of the store's own choosing.
    backend: Option<Arc<dyn Io>>,
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Self {
        Self { options: Options::new(path), backend: None }
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

    /// Bytes of records that may wait for the kernel at a time. Default 8 MiB, range 64 KiB to 1 GiB.
    ///
    /// Writers beyond it wait in their `await`. One record larger than this is let in alone. The store keeps up to
    /// twice this in buffers.
    pub fn staging_bytes(mut self, bytes: usize) -> Self {
        self.options.staging_bytes = bytes;
        self
    }

    /// Longest value the store accepts. Default and limit [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN). Records already stored stay readable.
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
    /// open. Puts that need more space are refused with [`NoSpace`](crate::ErrorKind::NoSpace) while any of the reserve is missing;
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

    /// Runs the store on `world` instead of an engine of its own choosing.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    pub fn world(mut self, world: Arc<dyn Io>) -> Self {
        self.backend = Some(world);
        self
    }

    /// Opens the store; see [`Store::open`](crate::Store::open).
    pub fn open(self) -> Open {
        Open::new(self.options, self.backend)
    }
}
