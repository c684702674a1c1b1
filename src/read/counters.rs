//! Counters of gets, by the place that answered them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::bypass::ProbeBypass;
use crate::sync::sharded::Sharded;

/// The counters of one shard of threads. Each get counts once. Next to them, what these threads know of the page cache.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    pub(super) from_staging: AtomicU64,
    pub(super) from_block_cache: AtomicU64,
    pub(super) from_page_cache: AtomicU64,
    pub(super) from_disk: AtomicU64,
    /// Gets that found no value, or failed before it was known where to read.
    pub(super) from_nowhere: AtomicU64,
    pub(super) bypass: ProbeBypass,
}

/// The sums over all threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadCounts {
    pub(crate) gets: u64,
    pub(crate) from_staging: u64,
    pub(crate) from_block_cache: u64,
    pub(crate) from_page_cache: u64,
    pub(crate) from_disk: u64,
}

impl ReadCounts {
    pub(crate) fn of(counters: &Sharded<ReadCounters>) -> Self {
        let mut counts = Self::default();
        for shard in counters.iter() {
            let from_staging = shard.from_staging.load(Ordering::Relaxed);
            let from_block_cache = shard.from_block_cache.load(Ordering::Relaxed);
            let from_page_cache = shard.from_page_cache.load(Ordering::Relaxed);
            let from_disk = shard.from_disk.load(Ordering::Relaxed);
            let from_nowhere = shard.from_nowhere.load(Ordering::Relaxed);
            counts.gets += from_staging + from_block_cache + from_page_cache + from_disk + from_nowhere;
            counts.from_staging += from_staging;
            counts.from_block_cache += from_block_cache;
            counts.from_page_cache += from_page_cache;
            counts.from_disk += from_disk;
        }
        counts
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
