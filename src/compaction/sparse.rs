//! Sparse inputs: segments with few live records, of which only those are read.
//!
//! A dead record costs a job nearly as much as a live one: its checksum, its hash, and a look-up that misses the CPU
//! cache. Where most records are dead, it is cheaper to ask the keydir the other way round: one scan over all keys
//! finds the live records of these inputs, and only those are read, verified and copied. The scan visits the entries in
//! the order of memory, so that a key costs it a tenth of a look-up or less. It is made where that pays
//! (docs/experiments/2026-11-28-sparse-inputs.md).
//!
//! # Why no live record is missed
//!
//! A record that the scan does not find is dead and stays dead:
//!
//! - Every record of an input was published before the segment could be picked. The commit task seals a segment only
//!   after all of its records are written, synced and resolved, and cuts off what a failed write left behind. Recovery
//!   publishes what it finds before the tasks start. One job runs at a time, so all keys have been repointed to the
//!   outputs of earlier jobs.
//! - A key that points elsewhere never points at an input again. The newest sequence number wins, and only repointing
//!   changes a key to a copy of the same record, in an output. A key that was removed and is written again has its
//!   record in another segment.
//! - The scan sees every entry that exists from its start to its end, although it releases the shard locks in between
//!   (`keydir/arena.rs`).
//!
//! The look-ups of an input that is read whole rely on the same argument. Both results may be outdated immediately: a
//! key that is overwritten after the scan leaves a copy that is dead from the start.
//!
//! # What is not read
//!
//! An input with tombstones is read whole, because the keydir has none of them. Damage in a dead record of a sparse
//! input is not found. It does no harm, because the record is removed with its segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::control::Gate;
use super::error::JobError;
use crate::commit::Parts;
use crate::format::{RecordHeader, RecordKind};
use crate::keydir::Live;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;

/// Reading a dead record costs as much as scanning this many keys, or more: 300 to 400 ns against 25 ns.
const KEYS_PER_DEAD_RECORD: u64 = 8;

/// Live records that a scan may collect for one job, at 24 bytes each.
const MAX_LIVE_RECORDS: u64 = 1 << 20;

/// A shorter gap between two live records is read with them: one read costs less than two.
const MIN_SKIPPED_BYTES: u64 = 256 << 10;

/// One input of a job.
pub(super) struct Input {
    pub(super) segment: Arc<Segment>,
    /// The live records in the order of their offsets if the input is sparse; `None` if it is read whole.
    pub(super) live: Option<Vec<Live>>,
}

/// Decides how each of `segments` is read, and scans the keydir for the sparse ones.
pub(super) async fn plan(parts: &Parts, segments: &[Arc<Segment>], gate: &Gate) -> Result<Vec<Input>, JobError> {
    let mut found: BTreeMap<u32, Vec<Live>> = choose(parts, segments).into_iter().map(|id| (id, Vec::new())).collect();
    if !found.is_empty() {
        let mut scan = parts.keydir.scan_live(found.keys().copied().collect());
        while !parts.keydir.advance_scan(&mut scan) {
            gate.pass().await?;
        }
        scan.into_records().for_each(|live| found.entry(live.location.segment).or_default().push(live));
    }
    for live in found.values_mut() {
        live.sort_unstable_by_key(|live| live.location.offset());
        if seeded_bug::is(SeededBug::LiveRecordLeftOut) {
            live.pop();
        }
    }
    let input = |segment: &Arc<Segment>| Input { segment: Arc::clone(segment), live: found.remove(&segment.id) };
    Ok(segments.iter().map(input).collect())
}

/// Chooses the segments to read sparsely: those with the fewest live bytes, as far as the memory for their live records
/// allows; none if the scan costs more than it saves. The estimate takes every record to be as long as the average live
/// record.
fn choose(parts: &Parts, segments: &[Arc<Segment>]) -> Vec<u32> {
    let keys = parts.keydir.len();
    let store_bytes: u64 = parts.segments.all().iter().map(|segment| segment.live_bytes()).sum();
    let record_bytes = (store_bytes / keys.max(1)).max(1);
    let measure = |segment: &Arc<Segment>| (segment.live_bytes(), segment.data_end(), segment.id);
    let mut sparse: Vec<(u64, u64, u32)> = segments.iter().filter(|segment| is_sparse(segment)).map(measure).collect();
    sparse.sort_unstable();
    let (mut live_bytes_left, mut dead_bytes) = (MAX_LIVE_RECORDS.saturating_mul(record_bytes), 0_u64);
    sparse.retain(|(live, end, _)| {
        let fits = *live <= live_bytes_left;
        if fits {
            live_bytes_left -= live;
            dead_bytes += end.saturating_sub(*live);
        }
        fits
    });
    if keys >= (dead_bytes / record_bytes).saturating_mul(KEYS_PER_DEAD_RECORD) {
        return Vec::new();
    }
    sparse.into_iter().map(|(_, _, id)| id).collect()
}

/// Whether `segment` is less than half live and has no tombstones.
fn is_sparse(segment: &Segment) -> bool {
    segment.facts().is_some_and(|facts| facts.tombstone_bytes == 0) && segment.live_bytes() < segment.data_end() / 2
}

/// Divides the live records of a segment into runs without a gap that is worth skipping.
pub(super) fn runs(live: &[Live]) -> impl Iterator<Item = &[Live]> {
    live.chunk_by(|one, next| next.location.offset().saturating_sub(one.end()) < MIN_SKIPPED_BYTES)
}

/// Whether `header` belongs to the record that the keydir entry `live` points at.
pub(super) fn is_record_of(live: &Live, header: &RecordHeader) -> bool {
    header.kind == RecordKind::Put
        && (header.seq, header.value_len, header.key_len) == (live.seq, live.location.value_len, live.key_len)
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use crate::io::sim::{SimBackend, SimConfig};
    use crate::{Builder, Compaction, CompactionReport, ErrorKind, Result, Store};

    const KEYS: u8 = 60;
    const VALUE: usize = 100 << 10;

    fn builder(world: &SimBackend) -> Builder {
        let builder = Store::builder("/db").backend(Arc::new(world.clone()));
        builder.compaction(Compaction::new().automatic(false))
    }

    fn value(key: u8, len: usize) -> Vec<u8> {
        vec![key + 1; len]
    }

    /// A closed store with one segment: a long value for each of sixty keys, then for all keys except `kept` a short
    /// value, or a delete if the key is in `deleted`.
    fn filled(kept: &[u8], deleted: &[u8]) -> (SimBackend, BTreeMap<u8, Vec<u8>>) {
        let world = SimBackend::new(SimConfig::default());
        let mut model = BTreeMap::new();
        world.run_until(async {
            let store = builder(&world).open().await.unwrap();
            for key in 0..KEYS {
                model.insert(key, value(key, VALUE));
                store.put([key], value(key, VALUE)).await.unwrap();
            }
            for key in (0..KEYS).filter(|key| !kept.contains(key)) {
                if deleted.contains(&key) {
                    model.remove(&key);
                    store.delete([key]).await.unwrap();
                } else {
                    model.insert(key, value(key, 10));
                    store.put([key], value(key, 10)).await.unwrap();
                }
            }
            store.close().await.unwrap();
        });
        (world, model)
    }

    async fn check(store: &Store, model: &BTreeMap<u8, Vec<u8>>) {
        for key in 0..KEYS {
            assert!(store.get([key]).await.unwrap().as_deref() == model.get(&key).map(Vec::as_slice), "key {key}");
        }
    }

    fn compact(world: &SimBackend, model: &BTreeMap<u8, Vec<u8>>) -> CompactionReport {
        let report = world.run_until(async {
            let store = builder(world).open().await.unwrap();
            let report = store.compact().await.unwrap();
            check(&store, model).await;
            store.close().await.unwrap();
            let store = builder(world).open().await.unwrap();
            check(&store, model).await;
            store.close().await.unwrap();
            report
        });
        assert_eq!((report.segments_read, report.records_copied), (1, model.len() as u64), "{report:?}");
        report
    }

    #[test]
    fn long_gaps_between_live_records_are_not_read() {
        let (world, model) = filled(&[5, 6, 35], &[]);
        let report = compact(&world, &model);
        let live = 3 * VALUE as u64;
        assert!((live..live + (20 << 10)).contains(&report.bytes_read), "{report:?}");
    }

    #[test]
    fn short_gaps_between_live_records_are_read_once() {
        let kept: Vec<u8> = (0..KEYS).step_by(3).collect();
        let (world, model) = filled(&kept, &[]);
        let report = compact(&world, &model);
        let all = u64::from(KEYS) * VALUE as u64;
        assert!((all..all + (20 << 10)).contains(&report.bytes_read), "{report:?}");
    }

    #[test]
    fn a_segment_with_tombstones_or_mostly_live_is_read_whole() {
        for (kept, deleted) in [(vec![5], vec![7]), ((20..KEYS).collect(), vec![])] {
            let (world, model) = filled(&kept, &deleted);
            let report = compact(&world, &model);
            assert!(report.bytes_read > u64::from(KEYS) * VALUE as u64, "{report:?}");
            assert_eq!(report.tombstones_dropped, deleted.len() as u64);
        }
    }

    /// Flips a bit in the middle of the long value of `key`, and compacts.
    fn compact_damaged(key: u8) -> (Result<CompactionReport>, usize) {
        let (world, mut model) = filled(&[5, 6, 35], &[]);
        let mut image = world.image();
        let name = image.names().find(|name| name.ends_with(".seg")).unwrap().to_owned();
        image.edit(&name, |bytes| {
            let begin = bytes.windows(99).position(|window| window == value(key, 99)).unwrap();
            bytes[begin + VALUE / 2] ^= 1;
        });
        let world = SimBackend::from_image(image, SimConfig::default());
        let result = world.run_until(async {
            let store = builder(&world).open().await.unwrap();
            let result = store.compact().await;
            if model.get(&key).is_some_and(|value| value.len() == VALUE) {
                assert_eq!(store.get([key]).await.unwrap_err().kind(), ErrorKind::Corrupt);
                model.insert(key, Vec::new());
            }
            for (key, value) in model.iter().filter(|(_, value)| !value.is_empty()) {
                assert!(store.get([*key]).await.unwrap().unwrap() == *value, "key {key}");
            }
            store.close().await.unwrap();
            result
        });
        let is_there = world.image().names().filter(|other| **other == name).count();
        (result, is_there)
    }

    #[test]
    fn a_damaged_live_record_fails_the_job_and_a_damaged_dead_record_is_removed() {
        let (result, inputs_left) = compact_damaged(6);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(inputs_left, 1, "the segment stays");
        let (result, inputs_left) = compact_damaged(7);
        assert_eq!((result.unwrap().records_copied, inputs_left), (u64::from(KEYS), 0));
    }
}
