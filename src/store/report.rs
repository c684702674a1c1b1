//! The values of [`Stats`], from the parts of the store.

use std::sync::atomic::Ordering;

use super::core::Core;
use crate::cache::BlockCache;
use crate::compaction;
use crate::error::ErrorKind;
use crate::io::IoKind;
use crate::read::ReadCounts;
use crate::stats::{ActiveEngine, SegmentStats, Stats};

pub(super) fn stats(core: &Core) -> Stats {
    let engine = match core.parts.io.kind() {
        IoKind::Uring => ActiveEngine::Uring,
        IoKind::Threads => ActiveEngine::Threads,
        IoKind::Sim => ActiveEngine::Simulated,
    };
    let stats = Stats { engine, ..Stats::default() };
    if core.is_forked() {
        return stats;
    }
    add_compaction(core, add_operations(core, add_sizes(core, stats)))
}

fn add_sizes(core: &Core, stats: Stats) -> Stats {
    let segments = core.parts.segments.all();
    let reported = segments.iter().map(|segment| SegmentStats {
        id: u64::from(segment.id),
        total_bytes: segment.written_end(),
        live_bytes: segment.live_bytes(),
        dead_bytes: segment.written_end().saturating_sub(segment.live_bytes()),
        sealed: segment.is_sealed(),
    });
    let reported: Vec<SegmentStats> = reported.collect();
    let live_bytes = reported.iter().map(|segment| segment.live_bytes).sum();
    let disk_bytes = reported.iter().map(|segment| segment.total_bytes).sum();
    Stats {
        engine_fallback: core.engine_fallback.clone(),
        keys: core.parts.keydir.len(),
        index_bytes: core.parts.keydir.held_bytes(),
        live_bytes,
        dead_bytes: u64::saturating_sub(disk_bytes, live_bytes),
        disk_bytes,
        segments: reported,
        cache_held_bytes: core.cache.as_ref().map_or(0, BlockCache::held_bytes),
        obsolete_bytes: core.parts.segments.obsolete.bytes(),
        hint_bytes: segments.iter().map(|segment| segment.hint_bytes()).sum(),
        reserve_held_bytes: core.parts.reserve.held_bytes(),
        ..stats
    }
}

fn add_operations(core: &Core, stats: Stats) -> Stats {
    let (counters, staged_bytes) = core.parts.log.counters();
    let (commit, read) = (&core.parts.commit_counters, ReadCounts::of(&core.read_counters));
    Stats {
        puts: counters.puts,
        deletes: counters.deletes,
        batches: counters.batches,
        batch_operations: counters.batch_operations,
        gets: read.gets,
        gets_from_staging: read.from_staging,
        gets_from_block_cache: read.from_block_cache,
        gets_from_page_cache: read.from_page_cache,
        gets_from_disk: read.from_disk,
        groups: commit.groups.load(Ordering::Relaxed),
        group_records: commit.group_records.load(Ordering::Relaxed),
        bytes_written: commit.bytes_written.load(Ordering::Relaxed),
        bytes_prewritten: commit.bytes_prewritten.load(Ordering::Relaxed),
        syncs: commit.syncs.load(Ordering::Relaxed),
        staged_bytes,
        poisoned: core.parts.log.ended().is_some_and(|error| error.kind() == ErrorKind::Poisoned),
        ..stats
    }
}

fn add_compaction(core: &Core, stats: Stats) -> Stats {
    let compaction = &core.compaction_counters;
    Stats {
        reclaimable_bytes: compaction::view(&core.parts.segments).reclaimable_bytes(),
        compactions: compaction.jobs.load(Ordering::Relaxed),
        compaction_failures: compaction.failures.load(Ordering::Relaxed),
        compaction_error: compaction.last_error(),
        compaction_bytes_read: compaction.bytes_read.load(Ordering::Relaxed),
        compaction_bytes_written: compaction.bytes_written.load(Ordering::Relaxed),
        compaction_bytes_freed: compaction.bytes_freed.load(Ordering::Relaxed),
        compaction_paused: core.control.is_paused(),
        ..stats
    }
}
