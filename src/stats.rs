//! What a store tells of itself: counters, sizes, and how its last opening went.

use std::fmt;
use std::time::Duration;

/// The sequence number of a write: it orders writes, and no clock does.
///
/// Versions grow with every write of a store, across reopenings too, and not by one each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub(crate) u64);

impl Version {
    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Version {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment's view of a store; see [`Store::stats`](crate::Store::stats).
///
/// Counters count since the open. They are read one by one, not at one instant.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// `"io_uring"`, `"threads"` or `"sim"`.
    pub engine: &'static str,
    /// Why io_uring is not in use although it was not ruled out.
    pub engine_fallback: Option<String>,
    /// Keys that have a value.
    pub keys: u64,
    /// Bytes of the records that hold these values.
    pub live_bytes: u64,
    /// All other bytes of the segments: overwritten records, tombstones, frames, headers and footers.
    pub dead_bytes: u64,
    /// `live_bytes + dead_bytes`: the length of all segments.
    pub disk_bytes: u64,
    /// The segments, oldest first.
    pub segments: Vec<SegmentStats>,
    /// Puts accepted.
    pub puts: u64,
    /// Deletes that found their key.
    pub deletes: u64,
    /// Batches accepted.
    pub batches: u64,
    /// Gets, including those that found nothing.
    pub gets: u64,
    /// Gets answered from records that had not reached the kernel.
    pub gets_from_staging: u64,
    /// Gets answered from the store's own cache of blocks; see [`cache_bytes`](crate::Builder::cache_bytes).
    pub gets_from_block_cache: u64,
    /// Gets answered by the page cache on the caller's thread.
    pub gets_from_cache: u64,
    /// Gets handed to the engine, to wait for the disk. While most are, those that the page cache would have answered are among
    /// them, for most gets are handed on without a look.
    pub gets_from_disk: u64,
    /// Memory that the store's own cache takes so far, its blocks and what finds them; see [`cache_bytes`](crate::Builder::cache_bytes).
    pub cache_held_bytes: u64,
    /// Commit groups written: each one contiguous write.
    pub groups: u64,
    /// Records in these groups; divided by `groups`, the mean size of a group.
    pub group_records: u64,
    /// Bytes written to segments, headers and footers included.
    pub bytes_written: u64,
    /// Bytes of filler written ahead of the log; see [`fill_ahead`](crate::Builder::fill_ahead).
    pub bytes_filled: u64,
    /// Syncs of segment files that the commit task asked for.
    pub syncs: u64,
    /// Bytes of records that wait for the kernel now.
    pub staged_bytes: u64,
    /// Bytes that compacting each sealed segment by itself would free. Less than the dead ones: what is being written is
    /// not counted, nor tombstones that must stay, nor what every segment needs.
    pub reclaimable_bytes: u64,
    /// Bytes of segments that were compacted away and are not removed yet, because somebody reads them.
    pub retired_bytes: u64,
    /// Bytes of hint files.
    pub hint_bytes: u64,
    /// Compaction jobs that came to their end.
    pub compactions: u64,
    /// Compaction jobs that failed. They are tried again; see [`compaction_error`](Self::compaction_error).
    pub compaction_failures: u64,
    /// Why the last compaction job failed, if it did.
    pub compaction_error: Option<crate::Error>,
    /// Bytes that compaction has read.
    pub compaction_bytes_read: u64,
    /// Bytes that compaction has written.
    pub compaction_bytes_written: u64,
    /// Bytes by which compaction has made the log shorter.
    pub compaction_bytes_freed: u64,
    /// Whether [`pause_compaction`](crate::Store::pause_compaction) holds it.
    pub compaction_paused: bool,
    /// Disk space held in reserve for deletes on a full disk. [`reserve_bytes`](crate::Builder::reserve_bytes) of it,
    /// unless the disk is full, has been lately, or cannot hold space in reserve.
    pub reserve_held_bytes: u64,
    /// Whether a failed write or sync has stopped all further writes.
    pub poisoned: bool,
}

impl Stats {
    /// Bytes written to the disk for each byte that the log has taken in; 1.0 without compaction and without filler.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts")]
    pub fn write_amplification(&self) -> f64 {
        let written =
            self.bytes_written.saturating_add(self.bytes_filled).saturating_add(self.compaction_bytes_written);
        if self.bytes_written == 0 { 1.0 } else { written as f64 / self.bytes_written as f64 }
    }

    /// Bytes of the log for each byte that is alive; infinite if none is and there is a log.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts")]
    pub fn space_amplification(&self) -> f64 {
        let taken = self.disk_bytes.saturating_add(self.retired_bytes);
        if taken == 0 { 1.0 } else { taken as f64 / self.live_bytes as f64 }
    }
}

/// What a call of [`Store::compact`](crate::Store::compact) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactionReport {
    /// Segments that were read, and are replaced.
    pub segments_read: u64,
    /// Segments that went unread, because nothing in them was alive.
    pub segments_dropped_unread: u64,
    /// Segments written.
    pub segments_written: u64,
    /// Records copied.
    pub records_copied: u64,
    /// Tombstones that hid nothing any more.
    pub tombstones_dropped: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes by which the log is shorter.
    pub bytes_freed: u64,
}

impl CompactionReport {
    pub(crate) fn add(&mut self, other: &Self) {
        self.segments_read += other.segments_read;
        self.segments_dropped_unread += other.segments_dropped_unread;
        self.segments_written += other.segments_written;
        self.records_copied += other.records_copied;
        self.tombstones_dropped += other.tombstones_dropped;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.bytes_freed += other.bytes_freed;
    }
}

/// One segment in [`Stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentStats {
    /// The number in its file name.
    pub id: u64,
    /// Length of the file.
    pub total_bytes: u64,
    /// Bytes of records that a key still points at.
    pub live_bytes: u64,
    /// All other bytes of the file.
    pub dead_bytes: u64,
    /// Whether it is closed for ever.
    pub sealed: bool,
}

/// How the store was found when it was opened, and what was done about it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Segments found.
    pub segments: usize,
    /// Keys with a value.
    pub keys: u64,
    /// Segments whose keys came from their hint file.
    pub hints_loaded: usize,
    /// Segments that had to be scanned.
    pub segments_scanned: usize,
    /// Records read by these scans.
    pub records_scanned: u64,
    /// Bytes cut from the end of the segment that was being written when the store stopped: a torn tail, which holds
    /// nothing that was acknowledged as durable, unless the last group of writes was damaged on the disk. Filler
    /// behind it ([`fill_ahead`](crate::Builder::fill_ahead)) is cut off too, and not counted.
    pub truncated_bytes: u64,
    /// The file in the directory that [`Recovery::Salvage`](crate::Recovery::Salvage) has copied these bytes to, since they
    /// may be damaged rather than torn: `*.seg.cut`. None if nothing was cut, or there was no space for a copy. The store
    /// never reads the file nor removes it.
    pub cut_copy: Option<String>,
    /// Leftovers of an interrupted open, seal or compaction that were removed.
    pub removed_files: Vec<String>,
    /// Names in the directory that are not the store's. They are never touched.
    pub foreign_files: Vec<String>,
    /// Damage that [`Recovery::Salvage`](crate::Recovery::Salvage) went past; empty under
    /// [`Recovery::Strict`](crate::Recovery::Strict).
    pub damage: Vec<Damage>,
    /// How long the open took.
    pub duration: Duration,
}

/// A damaged stretch of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// First damaged byte, from the start of the file.
    pub offset: u64,
    /// Bytes that could not be used.
    pub len: u64,
    /// What was wrong.
    pub reason: String,
}
