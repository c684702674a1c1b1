//! The parts of an open store that its tasks share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::log::Log;
use crate::io::Io;
use crate::keydir::Keydir;
use crate::segment::{Reserve, SegmentSet, SharedManifest};

/// Shared by the commit task, the maintenance task and the callers. Cloning it is cheap.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) io: Arc<dyn Io>,
    pub(crate) store_id: [u8; 16],
    pub(crate) log: Arc<Log>,
    pub(crate) keydir: Arc<Keydir>,
    pub(crate) segments: Arc<SegmentSet>,
    pub(crate) manifest: SharedManifest,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) commit_counters: Arc<CommitCounters>,
}

/// Counted by the commit task, read by `stats`.
#[derive(Debug, Default)]
pub(crate) struct CommitCounters {
    pub(crate) groups: AtomicU64,
    pub(crate) group_records: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_prewritten: AtomicU64,
    pub(crate) syncs: AtomicU64,
    /// Moving average of the duration of a sync in nanoseconds; 0 before the first.
    pub(crate) sync_nanos: AtomicU64,
}

impl CommitCounters {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
