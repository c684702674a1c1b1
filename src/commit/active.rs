//! The active segment and the options of the commit task.

use std::sync::Arc;
use std::time::Duration;

use crc32fast::Hasher;

use crate::error::Error;
use crate::io::File;
use crate::segment::Segment;

/// Disk space is claimed in steps of up to this size, or the segment's if that is smaller.
pub(super) const MAX_CLAIM_STEP_BYTES: u64 = 16 << 20;

/// What the task needs to know of the options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitOptions {
    pub(crate) segment_bytes: u64,
    pub(crate) reserve_bytes: u64,
    pub(crate) fill_ahead: bool,
    pub(crate) flush_interval: Duration,
    pub(crate) sync_interval: Duration,
}

/// The segment that is being appended to, or that a failed write has left to be sealed.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn File>,
    /// Everything before this offset is written and good.
    pub(super) end: u64,
    /// Everything before this offset is durable.
    pub(super) durable_end: u64,
    /// Up to here there may be filler behind `end`; see [`ahead`](super::ahead).
    pub(super) filled_end: u64,
    /// Whether there should be.
    pub(super) fills: bool,
    /// The disk was told to begin with everything before this offset.
    pub(super) writeback_end: u64,
    /// Checksum of the bytes before `end`.
    pub(super) crc: Hasher,
    pub(super) records: u32,
    pub(super) min_seq: u64,
    pub(super) max_seq: u64,
    pub(super) tombstone_bytes: u64,
    /// No more appends: seal it.
    pub(super) retired: bool,
}

/// Why the task cannot go on.
pub(super) struct Fatal(pub(super) Error);
