//! What a store reports about itself: counters, sizes, and what its open found.

use std::fmt;
use std::time::Duration;

/// The sequence number of a write. Versions order the writes of a store; no clock does.
///
/// Versions grow with every write of a store, across reopens too, in steps of one or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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

/// The engine that does a store's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ActiveEngine {
    /// io_uring.
    #[default]
    Uring,
    /// Blocking calls on the store's own threads.
    Threads,
    /// A simulated disk, in tests of this crate.
    Simulated,
}

impl fmt::Display for ActiveEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uring => "io_uring",
            Self::Threads => "threads",
            Self::Simulated => "sim",
        })
    }
}

/// Sizes and counters of a store; see [`Store::stats`](crate::Store::stats).
///
/// Counters start at zero when the store is opened. They are read one after the other, not at one instant.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// The engine in use.
    pub engine: ActiveEngine,
    /// Why the store uses threads although io_uring was not ruled out.
    pub engine_fallback: Option<String>,
    /// Keys that have a value.
    pub keys: u64,
    /// Memory of the index of all keys, in bytes: what it has allocated.
    pub index_bytes: u64,
    /// Bytes of the records that hold the current values.
    pub live_bytes: u64,
    /// All other bytes of the segments: overwritten records, tombstones, frames, headers and footers.
    pub dead_bytes: u64,
    /// `live_bytes + dead_bytes`: the length of all segments.
    pub disk_bytes: u64,
    /// The segments, oldest first.
    pub segments: Vec<SegmentStats>,
    /// Puts accepted, without those in batches.
    pub puts: u64,
    /// Deletes that found their key, without those in batches.
    pub deletes: u64,
    /// Batches accepted.
    pub batches: u64,
    /// Operations inside these batches.
    pub batch_operations: u64,
    /// Gets, including those that found nothing.
    pub gets: u64,
    /// Gets answered from records that had not reached the kernel.
    pub gets_from_staging: u64,
    /// Gets answered from the store's own cache; see [`cache_bytes`](crate::Builder::cache_bytes).
    pub gets_from_block_cache: u64,
    /// Gets answered from the page cache on the caller's thread.
    pub gets_from_page_cache: u64,
    /// Gets that waited for the engine. When few gets hit the page cache, most do not probe it, so some of these may have been
    /// answered from memory.
    pub gets_from_disk: u64,
    /// Memory that the store's own cache holds, its blocks and its index; see [`cache_bytes`](crate::Builder::cache_bytes).
    pub cache_held_bytes: u64,
    /// Commit groups written. Each is one contiguous write.
    pub groups: u64,
    /// Records in these groups. Divided by `groups`, the mean size of a group.
    pub group_records: u64,
    /// Bytes written to segments, including headers and footers.
    pub bytes_written: u64,
    /// Bytes prewritten ahead of the log; see [`prewrite`](crate::Builder::prewrite).
    pub bytes_prewritten: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Bytes of records that have not reached the kernel yet.
    pub staged_bytes: u64,
    /// Bytes that compacting each sealed segment by itself would free. Less than the dead bytes: tombstones that must stay,
    /// the segment being written and what every segment needs do not count.
    pub reclaimable_bytes: u64,
    /// Bytes of segments that compaction has replaced and that are not removed yet, because a reader still uses them.
    pub obsolete_bytes: u64,
    /// Bytes of hint files.
    pub hint_bytes: u64,
    /// Compaction jobs that completed.
    pub compactions: u64,
    /// Compaction jobs that failed. They are retried; see [`compaction_error`](Self::compaction_error).
    pub compaction_failures: u64,
    /// Why the last compaction job failed, if it did.
    #[cfg_attr(feature = "serde", serde(serialize_with = "message"))]
    pub compaction_error: Option<crate::Error>,
    /// Bytes that compaction has read.
    pub compaction_bytes_read: u64,
    /// Bytes that compaction has written.
    pub compaction_bytes_written: u64,
    /// Bytes by which compaction has made the log shorter.
    pub compaction_bytes_freed: u64,
    /// Whether [`pause_compaction`](crate::Store::pause_compaction) holds compaction.
    pub compaction_paused: bool,
    /// Disk space held in reserve for deletes on a full disk. Equals [`reserve_bytes`](crate::Builder::reserve_bytes), unless
    /// the disk is full, was full recently, or cannot hold space in reserve.
    pub reserve_held_bytes: u64,
    /// Whether a failed write or sync has stopped all further writes.
    pub poisoned: bool,
}

/// An error as its message and those of its causes.
#[cfg(feature = "serde")]
fn message<S: serde::Serializer>(error: &Option<crate::Error>, serializer: S) -> Result<S::Ok, S::Error> {
    match error {
        Some(error) => serializer.serialize_some(&error.chain().to_string()),
        None => serializer.serialize_none(),
    }
}

impl Stats {
    /// Bytes written to disk for each byte of the log: 1.0 without compaction and prewriting.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts")]
    pub fn write_amplification(&self) -> f64 {
        let written =
            self.bytes_written.saturating_add(self.bytes_prewritten).saturating_add(self.compaction_bytes_written);
        if self.bytes_written == 0 { 1.0 } else { written as f64 / self.bytes_written as f64 }
    }

    /// Bytes of the log for each live byte. Infinite if there is a log without live bytes.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts")]
    pub fn space_amplification(&self) -> f64 {
        let taken = self.disk_bytes.saturating_add(self.obsolete_bytes);
        if taken == 0 { 1.0 } else { taken as f64 / self.live_bytes as f64 }
    }
}

/// What a call of [`Store::compact`](crate::Store::compact) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CompactionReport {
    /// Segments that were read and replaced.
    pub segments_read: u64,
    /// Segments removed without being read, because nothing in them was live.
    pub segments_dropped_unread: u64,
    /// Segments written.
    pub segments_written: u64,
    /// Records copied.
    pub records_copied: u64,
    /// Tombstones dropped because they no longer hid anything.
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
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SegmentStats {
    /// The number in its file name.
    pub id: u64,
    /// Length of the file.
    pub total_bytes: u64,
    /// Bytes of records that a key points at.
    pub live_bytes: u64,
    /// All other bytes of the file.
    pub dead_bytes: u64,
    /// Whether it is complete and never changes again.
    pub sealed: bool,
}

/// What an open found, and what it did.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Segments found.
    pub segments: usize,
    /// Keys with a value.
    pub keys: u64,
    /// Segments loaded from their hint files.
    pub hints_loaded: usize,
    /// Segments that had to be scanned.
    pub segments_scanned: usize,
    /// Records read by these scans.
    pub records_scanned: u64,
    /// Bytes cut from the end of the segment that was being written when the store stopped: a torn tail. It holds nothing that
    /// was acknowledged as durable, unless the last group of writes was damaged on disk. Prewritten space behind it is cut too
    /// and does not count.
    pub truncated_bytes: u64,
    /// The file in the store's directory, `*.seg.cut`, that holds a copy of these bytes.
    /// [`Recovery::Salvage`](crate::Recovery::Salvage) makes it, because they may be damaged rather than torn. `None` if nothing
    /// was cut or there was no space for a copy. The store never reads or removes the file.
    pub cut_copy: Option<String>,
    /// Leftovers of an interrupted open, seal or compaction that were removed.
    pub removed_files: Vec<String>,
    /// Names in the directory that are not the store's. The store never touches them.
    pub foreign_files: Vec<String>,
    /// Damage that [`Recovery::Salvage`](crate::Recovery::Salvage) skipped. Empty with
    /// [`Recovery::Strict`](crate::Recovery::Strict).
    pub damage: Vec<Damage>,
    /// How long the open took.
    pub duration: Duration,
}

/// A damaged range of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Offset of the first damaged byte in the file.
    pub offset: u64,
    /// Bytes that could not be used.
    pub len: u64,
    /// What was wrong.
    pub reason: String,
}

#[cfg(test)]
#[cfg(feature = "serde")]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn stats_serialize_with_names_for_the_engine_and_text_for_errors() {
        let error = Error::io("compact", std::io::Error::other("the cause"));
        let stats = Stats {
            engine: ActiveEngine::Threads,
            segments: vec![SegmentStats { id: 3, sealed: true, ..SegmentStats::default() }],
            compaction_error: Some(error.with_path("/db")),
            ..Stats::default()
        };
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["engine"], "threads");
        assert_eq!(json["segments"][0]["id"], 3);
        assert_eq!(json["compaction_error"], "compact in /db: the cause");
        assert_eq!(serde_json::to_value(Stats::default()).unwrap()["compaction_error"], serde_json::Value::Null);
        assert_eq!(serde_json::to_value(Version(7)).unwrap(), 7);
        assert_eq!(serde_json::to_value(ActiveEngine::Uring).unwrap(), "uring");
        let locked = Error::new(ErrorKind::Locked, "open: another handle has it");
        let report = Stats { compaction_error: Some(locked.clone()), ..Stats::default() };
        assert_eq!(serde_json::to_value(&report).unwrap()["compaction_error"], locked.to_string());
        assert!(serde_json::to_value(RecoveryReport::default()).unwrap()["duration"].is_object());
    }
}
