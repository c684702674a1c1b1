//! The active segment, and what the files of the commit task share about it.

use std::sync::Arc;
use std::time::Duration;

use crc32fast::Hasher;

use crate::error::Error;
use crate::io::File;
use crate::segment::Segment;

/// Disk space is preallocated in steps of up to this size, or of the segment's size if that is smaller.
pub(super) const PREALLOCATE_BYTES_MAX: u64 = 16 << 20;

/// The options of the commit task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitOptions {
    pub(crate) segment_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) prewrite: bool,
    pub(crate) flush_interval: Duration,
    pub(crate) sync_interval: Duration,
}

/// The segment that receives appends, or that must be sealed after a failed write.
pub(super) struct ActiveSegment {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn File>,
    /// Everything before this offset is written and valid.
    pub(super) end: u64,
    /// Everything before this offset is durable.
    pub(super) durable_end: u64,
    /// Between `end` and this offset there may be prewritten bytes; see [`prewrite`](super::prewrite).
    pub(super) prewritten_end: u64,
    /// Whether space is prewritten in this segment.
    pub(super) prewrites: bool,
    /// Writeback was started for everything before this offset.
    pub(super) writeback_end: u64,
    /// Checksum of the bytes before `end`.
    pub(super) crc: Hasher,
    pub(super) records: u32,
    pub(super) min_seq: u64,
    pub(super) max_seq: u64,
    pub(super) tombstone_bytes: u64,
    /// No more appends; the segment must be sealed.
    pub(super) must_seal: bool,
}

/// The error that ends the commit task.
pub(super) struct Fatal(pub(super) Error);
