//! Inputs of which little is alive: what is alive is known before they are read, and nothing else is looked at.
//!
//! A dead record costs a job nearly as much as one that is alive: its checksum, its hash, a look-up that misses the cache.
//! Where most are dead the keydir is asked the other way round: one walk over all of it tells what lives in these inputs,
//! and that alone is read, verified and copied. The walk takes the entries in the order in which they lie in memory, so a
//! key costs it a tenth of what a look-up costs, or less; it is made where that pays.
//!
//! # Why nothing that is alive is missed
//!
//! What the walk does not find must be dead, and stay so:
//!
//! - Every record of an input was published before the input was a segment that can be picked. The commit task seals a
//!   segment only when all of it was written, synced and resolved (`Committer::seal`; `resolve` publishes what was not
//!   published before), and what a failed write has left behind was cut off; recovery publishes what it finds before the
//!   tasks begin; and one job runs at a time, so the keys have been moved to the outputs of all earlier ones.
//! - A key that points elsewhere never comes back to an input: recency is decided by sequence number, and only a job's
//!   end moves keys to records that are older. One that was removed comes again with a new record, in another segment.
//! - The walk sees every entry that is there all the time, although locks are let go of in the middle of it
//!   ([`LiveScan`](crate::keydir::LiveScan), and the head of `keydir/arena.rs`).
//!
//! This is what the look-ups of a whole input rely on too, and as with them the outcome may be late: a key that is
//! overwritten after the walk leaves a copy that is dead from the start.
//!
//! # What is not read
//!
//! An input with tombstones is read whole: they are in no keydir. Of a sparse one, damage in a dead record is not found,
//! and hurts nobody: it goes with its segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compactor;
use super::control::Gate;
use super::error::JobError;
use crate::format::{RecordHeader, RecordKind};
use crate::keydir::Live;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;

/// A dead record that is looked at costs as much as so many keys in the walk, or more: 300 to 400 ns against 25.
const KEYS_PER_DEAD_RECORD: u64 = 8;

/// Records a job may know beforehand, at 24 bytes each.
const LIVE_MAX: u64 = 1 << 20;

/// What is shorter, between two records that are alive, is read with them: one read of all costs less than two.
const GAP_BYTES: u64 = 256 << 10;

/// One input of a job.
pub(super) struct Input {
    pub(super) segment: Arc<Segment>,
    /// Of a sparse one, what is alive in it, in the order of its offsets.
    pub(super) live: Option<Vec<Live>>,
}

/// Decides how each of `segments` is read, and walks the keydir for those of which little is.
pub(super) async fn plan(
    compactor: &Compactor,
    segments: &[Arc<Segment>],
    gate: &Gate,
) -> Result<Vec<Input>, JobError> {
    let mut found: BTreeMap<u32, Vec<Live>> =
        choose(compactor, segments).into_iter().map(|id| (id, Vec::new())).collect();
    if !found.is_empty() {
        let mut scan = compactor.parts.keydir.scan_live(found.keys().copied().collect());
        while !compactor.parts.keydir.advance_scan(&mut scan) {
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

/// The segments that are read for what is alive in them alone: those of which least is, as far as there is memory for it;
/// none if a walk costs more than what it saves. Records are taken to be as long as those that are alive are on average.
fn choose(compactor: &Compactor, segments: &[Arc<Segment>]) -> Vec<u32> {
    let keys = compactor.parts.keydir.len();
    let store_bytes: u64 = compactor.parts.segments.all().iter().map(|segment| segment.live_bytes()).sum();
    let record_bytes = (store_bytes / keys.max(1)).max(1);
    let of = |segment: &Arc<Segment>| (segment.live_bytes(), segment.data_end(), segment.id);
    let mut sparse: Vec<(u64, u64, u32)> = segments.iter().filter(|segment| is_sparse(segment)).map(of).collect();
    sparse.sort_unstable();
    let (mut room, mut dead) = (LIVE_MAX.saturating_mul(record_bytes), 0_u64);
    sparse.retain(|(live, end, _)| {
        let fits = *live <= room;
        if fits {
            room -= live;
            dead += end.saturating_sub(*live);
        }
        fits
    });
    if keys >= (dead / record_bytes).saturating_mul(KEYS_PER_DEAD_RECORD) {
        return Vec::new();
    }
    sparse.into_iter().map(|(_, _, id)| id).collect()
}

/// Whether less than half of it is alive, and nothing in it counts but that.
fn is_sparse(segment: &Segment) -> bool {
    segment.facts().is_some_and(|facts| facts.tombstone_bytes == 0) && segment.live_bytes() < segment.data_end() / 2
}

/// Cuts what is alive in a segment into runs without a gap that is worth leaving out.
pub(super) fn runs(live: &[Live]) -> impl Iterator<Item = &[Live]> {
    live.chunk_by(|one, next| next.location.offset().saturating_sub(one.end()) < GAP_BYTES)
}

/// Whether the record with this header is the one that the keydir means.
pub(super) fn is_meant(live: &Live, header: &RecordHeader) -> bool {
    let Live { seq, location, key_len } = *live;
    let RecordHeader { kind, seq: its_seq, value_len, key_len: its_key_len, .. } = *header;
    kind == RecordKind::Put && (seq, location.value_len, key_len) == (its_seq, value_len, its_key_len)
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

    /// A closed store of one segment: sixty long values, and short ones for all keys but `kept`, or deletes for `deleted`.
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
    fn what_lies_far_from_what_is_alive_is_not_read() {
        let (world, model) = filled(&[5, 6, 35], &[]);
        let report = compact(&world, &model);
        let alive = 3 * VALUE as u64;
        assert!((alive..alive + (20 << 10)).contains(&report.bytes_read), "{report:?}");
    }

    #[test]
    fn what_lies_between_records_that_are_near_is_read_once() {
        let kept: Vec<u8> = (0..KEYS).step_by(3).collect();
        let (world, model) = filled(&kept, &[]);
        let report = compact(&world, &model);
        let all = u64::from(KEYS) * VALUE as u64;
        assert!((all..all + (20 << 10)).contains(&report.bytes_read), "{report:?}");
    }

    #[test]
    fn a_segment_with_tombstones_or_of_which_much_is_alive_is_read_whole() {
        for (kept, deleted) in [(vec![5], vec![7]), ((20..KEYS).collect(), vec![])] {
            let (world, model) = filled(&kept, &deleted);
            let report = compact(&world, &model);
            assert!(report.bytes_read > u64::from(KEYS) * VALUE as u64, "{report:?}");
            assert_eq!(report.tombstones_dropped, deleted.len() as u64);
        }
    }

    /// Turns a bit in the middle of the long value of `key`, and compacts.
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
    fn damage_of_what_is_alive_ends_the_job_and_of_what_is_dead_goes_with_it() {
        let (result, inputs_left) = compact_damaged(6);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(inputs_left, 1, "the segment stays");
        let (result, inputs_left) = compact_damaged(7);
        assert_eq!((result.unwrap().records_copied, inputs_left), (u64::from(KEYS), 0));
    }
}
