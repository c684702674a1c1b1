//! Compaction frees space and changes nothing else: no value, no version, no deleted key.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringcask::{Batch, Builder, Compaction, CompactionReport, Durability, ErrorKind, Store, TimeOfDay};

use crate::helpers::gated_io::{GatedIo, Kind};
use crate::helpers::{
    Env, LEVELS, Model, Rng, assert_holds, block_on, close, delete, eventually, files_with, for_each_backend,
    for_each_engine, get, open, poll_once, put, put_at,
};

const SEGMENT: u64 = 16 << 10;

fn manual() -> Compaction {
    Compaction::new().automatic(false).bytes_per_second(None)
}

fn builder(env: &Env, compaction: Compaction) -> Builder {
    env.builder().segment_bytes(SEGMENT).durability(Durability::Buffered).compaction(compaction)
}

#[track_caller]
fn compact(store: &Store) -> CompactionReport {
    block_on(store.compact()).unwrap_or_else(|error| panic!("compact: {error:?}"))
}

#[track_caller]
fn compact_only(store: &Store, segments: &[u64]) -> CompactionReport {
    block_on(store.compact().segments(segments.iter().copied()))
        .unwrap_or_else(|error| panic!("compact {segments:?}: {error:?}"))
}

fn sealed_ids(store: &Store) -> Vec<u64> {
    store.stats().segments.iter().filter(|segment| segment.sealed).map(|segment| segment.id).collect()
}

/// Random puts, deletes and batches.
fn churn(store: &Store, model: &mut Model, rng: &mut Rng, count: usize) {
    for _ in 0..count {
        // A few writes wait for a write or a sync.
        let level = LEVELS[2_usize.saturating_sub(rng.below(16) as usize)];
        let key = format!("key-{}", rng.below(120)).into_bytes();
        match rng.below(10) {
            0..6 => {
                let len = rng.below(300) as usize;
                let value = rng.bytes(len);
                put_at(store, level, &key, &value);
                model.insert(key, value);
            }
            6..9 => assert_eq!(delete(store, &key), model.remove(&key).is_some()),
            _ => {
                let (other, value) = (format!("key-{}", rng.below(120)).into_bytes(), rng.bytes(50));
                let mut batch = Batch::new();
                batch.put(&other, &value).delete(&key);
                block_on(store.write(batch).durability(level)).unwrap();
                model.insert(other, value);
                model.remove(&key);
            }
        }
    }
}

#[test]
fn forced_compaction_leaves_only_live_records_and_segment_overhead() {
    for_each_backend(|env| {
        let store = open(builder(env, manual()));
        let (mut model, mut rng) = (Model::new(), Rng::new(31));
        churn(&store, &mut model, &mut rng, 3000);
        // Staged records have no location on the disk yet.
        block_on(store.sync()).unwrap();
        let before = store.stats();
        let report = compact(&store);
        let after = store.stats();
        assert_holds(&store, &model);
        assert!(before.disk_bytes > 4 * before.live_bytes, "{before:?}");
        assert_eq!(after.live_bytes, before.live_bytes, "live bytes changed");
        // Besides live records, only the header and footer of each segment are left.
        let overhead = after.disk_bytes - after.live_bytes;
        assert_eq!(overhead, 592 * after.segments.len() as u64, "{after:?}");
        assert_eq!(
            report.bytes_freed,
            before.disk_bytes + 80 - after.disk_bytes,
            "{report:?}: sealing the active segment adds a footer"
        );
        assert!(report.segments_read > 0 && report.tombstones_dropped > 0, "{report:?}");
        assert_eq!(after.reclaimable_bytes, 0);
        let again = compact(&store);
        assert_eq!(again, CompactionReport::default(), "a second compaction found work");
        churn(&store, &mut model, &mut rng, 100);
        assert_holds(&store, &model);
        close(store);
        let store = open(builder(env, manual()));
        assert_holds(&store, &model);
        assert_eq!(store.recovery_report().removed_files, Vec::<String>::new());
        close(store);
    });
}

#[test]
fn compaction_keeps_versions_and_new_versions_are_higher() {
    for_each_backend(|env| {
        let store = open(builder(env, manual()));
        let first = put(&store, "a", "1");
        let second = put(&store, "b", "2");
        compact(&store);
        let third = put(&store, "c", "3");
        assert!(first < second && second < third);
        close(store);
        let store = open(builder(env, manual()));
        assert!(put(&store, "d", "4") > third);
        close(store);
    });
}

#[test]
fn a_deleted_key_stays_deleted_through_every_partial_compaction() {
    for_each_engine(|env| {
        let mut rng = Rng::new(5);
        for round in 0..30 {
            let path = env.dir.path().join(format!("round-{round}"));
            let open_it = || open(env.builder_at(&path).segment_bytes(1 << 10).compaction(manual()));
            let (mut store, mut model) = (open_it(), Model::new());
            for _ in 0..6 {
                churn(&store, &mut model, &mut rng, 20);
                let mut ids = sealed_ids(&store);
                ids.retain(|_| rng.below(2) == 0);
                compact_only(&store, &ids);
                assert_holds(&store, &model);
                if rng.below(2) == 0 {
                    close(store);
                    if rng.below(2) == 0 {
                        files_with(&path, "hint").into_iter().for_each(|hint| fs::remove_file(hint).unwrap());
                    }
                    store = open_it();
                    assert_holds(&store, &model);
                }
            }
            compact(&store);
            assert_holds(&store, &model);
            close(store);
        }
    });
}

#[test]
fn automatic_compaction_keeps_the_log_within_its_bound() {
    for_each_engine(|env| {
        let compaction = Compaction::new().trigger(0.4).bytes_per_second(None);
        let store = open(builder(env, compaction));
        let mut rng = Rng::new(3);
        let values: Vec<Vec<u8>> = (0..200).map(|_| rng.bytes(200)).collect();
        for round in 0..40 {
            for key in 0..200_u32 {
                put(&store, key.to_le_bytes(), &values[(key as usize + round) % 200]);
            }
        }
        block_on(store.sync()).unwrap();
        let bound = |store: &Store| {
            let stats = store.stats();
            stats.disk_bytes as f64 <= stats.live_bytes as f64 / (1.0 - 0.4) + (2 * SEGMENT) as f64
        };
        eventually("the log is within the bound", || bound(&store));
        let stats = store.stats();
        println!("{} compactions, write amplification {:.2}", stats.compactions, stats.write_amplification());
        assert!(
            stats.compactions > 0 && stats.compaction_bytes_freed > 0 && stats.compaction_failures == 0,
            "{stats:?}"
        );
        for key in 0..200_u32 {
            assert_eq!(get(&store, key.to_le_bytes()).as_ref(), Some(&values[(key as usize + 39) % 200]));
        }
        close(store);
        let on_disk: u64 = files_with(&env.path(), "seg").iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(on_disk <= stats.disk_bytes + SEGMENT, "removed segments still have files: {on_disk}");
    });
}

#[test]
fn segments_without_live_bytes_are_removed_without_reading_them() {
    for_each_backend(|env| {
        let store = open(builder(env, manual()));
        for _ in 0..3 {
            for key in 0..100_u32 {
                put(&store, key.to_le_bytes(), [7; 200]);
            }
        }
        block_on(store.sync()).unwrap();
        let dead: Vec<u64> = store.stats().segments.iter().filter(|it| it.live_bytes == 0).map(|it| it.id).collect();
        assert!(dead.len() > 2, "{dead:?}");
        let report = compact_only(&store, &dead);
        assert_eq!((report.segments_dropped_unread, report.bytes_read), (dead.len() as u64, 0), "{report:?}");
        assert!(sealed_ids(&store).iter().all(|id| !dead.contains(id)));
        assert_eq!(store.len(), 100);
        close(store);
    });
}

#[test]
fn large_values_are_copied_in_pieces() {
    for_each_backend(|env| {
        let store = open(builder(env, manual()));
        let mut rng = Rng::new(9);
        let large = rng.bytes(3 << 20);
        put(&store, "small", "1");
        put(&store, "large", &large);
        put(&store, "other", "2");
        put(&store, "small", "3");
        compact(&store);
        for _ in 0..2 {
            let report = compact_only(&store, &sealed_ids(&store));
            assert!(report.bytes_written > large.len() as u64, "{report:?}");
            assert_eq!(get(&store, "large"), Some(large.clone()));
        }
        close(store);
        let store = open(builder(env, manual()));
        assert_eq!(get(&store, "large"), Some(large));
        assert_eq!(get(&store, "small").as_deref(), Some(&b"3"[..]));
        close(store);
    });
}

#[test]
fn reads_and_writes_are_right_during_repeated_compactions() {
    for_each_engine(|env| {
        let store = open(builder(env, Compaction::new().trigger(0.2).threshold(0.1).bytes_per_second(None)));
        let stop = Arc::new(AtomicBool::new(false));
        let compacting = {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Acquire) {
                    compact(&store);
                    count += 1;
                }
                count
            })
        };
        let workers: Vec<_> = (0..3_u8)
            .map(|worker| {
                let store = store.clone();
                thread::spawn(move || {
                    let mut rng = Rng::new(u64::from(worker));
                    let mut mine = Model::new();
                    for step in 0..4000_u32 {
                        let key = vec![worker, rng.below(60) as u8];
                        match rng.below(8) {
                            0 => assert_eq!(delete(&store, &key), mine.remove(&key).is_some(), "step {step}"),
                            1..4 => {
                                let len = 1 + rng.below(400) as usize;
                                let value = rng.bytes(len);
                                put_at(&store, LEVELS[2_usize.saturating_sub(step as usize % 97)], &key, &value);
                                mine.insert(key, value);
                            }
                            _ => assert_eq!(get(&store, &key).as_ref(), mine.get(&key), "step {step}"),
                        }
                    }
                    mine
                })
            })
            .collect();
        let mut model = Model::new();
        for worker in workers {
            model.extend(worker.join().unwrap());
        }
        stop.store(true, Ordering::Release);
        let count = compacting.join().unwrap();
        assert_holds(&store, &model);
        let stats = store.stats();
        println!(
            "{count} forced compactions, {} jobs, {} bytes freed",
            stats.compactions, stats.compaction_bytes_freed
        );
        assert!(count > 5 && stats.compaction_failures == 0, "{stats:?}");
        close(store);
        let store = open(builder(env, manual()));
        assert_holds(&store, &model);
        close(store);
    });
}

/// A store of several segments behind a gate. Half of the bytes are dead.
fn gated(env: &Env, compaction: Compaction) -> (Store, Arc<crate::helpers::gated_io::Gate>, Model) {
    let (backend, gate) = GatedIo::around(env.engine);
    let store = open(builder(env, compaction).backend(backend));
    let (mut model, mut rng) = (Model::new(), Rng::new(77));
    churn(&store, &mut model, &mut rng, 600);
    block_on(store.sync()).unwrap();
    (store, gate, model)
}

#[test]
fn gets_use_random_access_advice_and_compaction_does_not() {
    for_each_engine(|env| {
        let (mut store, gate, model) = gated(env, manual());
        // Before any get, every sealed segment has been read for its hint file.
        let sealed = sealed_ids(&store).len();
        eventually("the hint files are written", || files_with(&env.path(), "hint").len() == sealed);
        assert!(sealed > 1 && gate.asked(Kind::Read) >= sealed as u64);
        assert_eq!(gate.random_reads(), 0, "reads for hint files");
        for opened in ["as written", "from its files"] {
            let before = gate.random_reads();
            model.keys().for_each(|key| drop(get(&store, key)));
            let records = gate.random_reads() - before;
            assert!(records >= model.len() as u64, "{opened}: {records} of {} records", model.len());
            let random = gate.random_reads();
            assert!(compact_only(&store, &sealed_ids(&store)).segments_read > 0);
            assert_eq!(gate.random_reads(), random, "{opened}: compaction used random-access advice");
            close(store);
            store = open(builder(env, manual()).backend(GatedIo::behind(env.engine, &gate)));
        }
        close(store);
    });
}

#[test]
fn sequential_misses_trigger_read_ahead() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().compaction(manual()).backend(backend));
        for key in ["a", "b", "c", "d", "e"] {
            put_at(&store, Durability::Synced, key, [7; 100]);
        }
        gate.close(Kind::Read);
        let (mut gets, mut windows) = (Vec::new(), Vec::new());
        for key in ["a", "c", "e", "d"] {
            let mut get = store.get(key);
            assert!(poll_once(&mut get).is_pending());
            gets.push(get);
            windows.push(gate.read_ahead().len());
        }
        assert_eq!(
            windows,
            [0, 1, 1, 1],
            "the second get is sequential, and its read-ahead window contains the others"
        );
        let window = &gate.read_ahead()[0];
        assert!(window.start >= 512 + 2 * 144 && window.end - window.start == 1 << 20, "{window:?}");
        gate.open(Kind::Read);
        for get in gets {
            assert_eq!(block_on(get).unwrap().as_deref(), Some(&[7; 100][..]));
        }
        close(store);
    });
}

#[test]
fn a_dropped_compaction_leaves_the_old_segments() {
    for_each_engine(|env| {
        let (store, _gate, model) = gated(env, manual());
        let before = sealed_ids(&store);
        store.pause_compaction();
        let mut compaction = store.compact().segments(before.iter().copied());
        assert!(poll_once(&mut compaction).is_pending());
        drop(compaction);
        store.resume_compaction();
        assert_eq!(sealed_ids(&store), before);
        assert_holds(&store, &model);
        // A drop at any later time leaves either the old segments or the new ones.
        for polls in 0..12 {
            let mut compaction = store.compact();
            for _ in 0..polls {
                let _ = poll_once(&mut compaction);
                thread::yield_now();
            }
            drop(compaction);
            assert_holds(&store, &model);
        }
        compact(&store);
        assert_holds(&store, &model);
        close(store);
    });
}

#[test]
fn a_paused_compaction_continues_when_resumed() {
    for_each_engine(|env| {
        let (store, _gate, model) = gated(env, manual());
        store.pause_compaction();
        assert!(store.stats().compaction_paused);
        let mut compaction = store.compact();
        assert!(poll_once(&mut compaction).is_pending());
        put(&store, "meanwhile", "written");
        assert_eq!(store.stats().compactions, 0);
        store.resume_compaction();
        block_on(compaction).unwrap();
        assert!(store.stats().compactions > 0 && !store.stats().compaction_paused);
        assert_eq!(store.len(), model.len() + 1);
        close(store);
    });
}

#[test]
fn a_store_can_be_closed_during_a_compaction() {
    for_each_engine(|env| {
        let (store, gate, model) = gated(env, manual());
        gate.close(Kind::Read);
        let mut compaction = store.compact();
        assert!(poll_once(&mut compaction).is_pending());
        gate.wait_for_held(Kind::Read, 1);
        let mut closing = store.close();
        assert!(poll_once(&mut closing).is_pending());
        gate.open(Kind::Read);
        block_on(closing).unwrap();
        assert_eq!(block_on(compaction).unwrap_err().kind(), ErrorKind::Closed);
        let late = block_on(store.compact()).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Closed);
        drop(store);
        let store = open(builder(env, manual()));
        assert_holds(&store, &model);
        assert_eq!(
            store.recovery_report().removed_files,
            Vec::<String>::new(),
            "the interrupted compaction left files"
        );
        close(store);
    });
}

#[test]
fn a_failed_compaction_leaves_the_old_segments_and_the_next_one_succeeds() {
    for_each_engine(|env| {
        for (kind, spared, errno, expected) in [
            (Kind::Write, 0, libc::ENOSPC, ErrorKind::NoSpace),
            (Kind::Write, 1, libc::ENOSPC, ErrorKind::NoSpace),
            (Kind::Write, 2, libc::EIO, ErrorKind::Io),
            (Kind::Write, 3, libc::ENOSPC, ErrorKind::NoSpace),
            (Kind::Sync, 0, libc::EIO, ErrorKind::Io),
            (Kind::Sync, 1, libc::EIO, ErrorKind::Io),
            (Kind::Sync, 2, libc::EIO, ErrorKind::Io),
            (Kind::Read, 0, libc::EIO, ErrorKind::Io),
            (Kind::Read, 1, libc::EIO, ErrorKind::Io),
        ] {
            let path = env.dir.path().join(format!("{kind:?}-{spared}-{errno}"));
            let (backend, gate) = GatedIo::around(env.engine);
            let store = open(env.builder_at(&path).segment_bytes(SEGMENT).compaction(manual()).backend(backend));
            let (mut model, mut rng) = (Model::new(), Rng::new(77));
            churn(&store, &mut model, &mut rng, 400);
            block_on(store.sync()).unwrap();
            let ids = sealed_ids(&store);
            eventually("the hint files are written", || files_with(&path, "hint").len() == ids.len());
            gate.fail_after(kind, spared, errno);
            let error = block_on(store.compact().segments(ids.iter().copied())).unwrap_err();
            gate.fail(kind, None);
            assert_eq!(error.kind(), expected, "{kind:?} after {spared}: {error:?}");
            assert_eq!(sealed_ids(&store), ids, "{kind:?}");
            assert_holds(&store, &model);
            put_at(&store, Durability::Synced, "after", "it");
            model.insert(b"after".to_vec(), b"it".to_vec());
            let stats = store.stats();
            // For lack of space, a second attempt with the reserve has failed as well.
            assert!((1..=2).contains(&stats.compaction_failures), "{stats:?}");
            assert_eq!(stats.compaction_error.map(|error| error.kind()), Some(expected));
            compact(&store);
            assert!(store.stats().compaction_error.is_none());
            assert_holds(&store, &model);
            close(store);
            let store = open(env.builder_at(&path));
            assert_holds(&store, &model);
            close(store);
        }
    });
}

#[test]
fn damage_found_by_compaction_is_reported_and_not_copied() {
    for_each_engine(|env| {
        let store = open(builder(env, manual()));
        let (mut model, mut rng) = (Model::new(), Rng::new(4));
        churn(&store, &mut model, &mut rng, 600);
        block_on(store.sync()).unwrap();
        let ids = sealed_ids(&store);
        let damaged = ids[ids.len() / 2];
        let path = env.path().join(format!("{damaged:020}.seg"));
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&path, bytes).unwrap();
        let error = block_on(store.compact()).unwrap_err();
        assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(damaged)), "{error:?}");
        assert!(error.offset().is_some_and(|offset| offset <= middle as u64), "{error:?}");
        assert!(path.exists(), "the damaged segment, the only copy of its intact records, was removed");
        // The other segments can still be compacted, and intact records can be read.
        compact(&store);
        assert!(sealed_ids(&store).contains(&damaged) && path.exists());
        let mut lost = 0;
        for (key, value) in &model {
            match block_on(store.get(key)) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&value[..])),
                Err(error) => {
                    assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(damaged)));
                    lost += 1;
                }
            }
        }
        assert!(lost <= 1, "one bit cost {lost} keys");
        let named = block_on(store.compact().segments([damaged])).unwrap_err();
        assert_eq!(named.kind(), ErrorKind::InvalidInput, "{named:?}");
        close(store);
    });
}

#[test]
fn a_pending_read_keeps_its_segment() {
    for_each_engine(|env| {
        let (store, gate, model) = gated(env, manual());
        let key = model.keys().next().unwrap().clone();
        // A reader that waits for the disk keeps its segment.
        gate.close(Kind::Read);
        let mut reading = store.get(&key);
        assert!(poll_once(&mut reading).is_pending());
        gate.wait_for_held(Kind::Read, 1);
        let dead: Vec<u64> = store.stats().segments.iter().map(|segment| segment.id).collect();
        for key in model.keys() {
            delete(&store, key);
        }
        let mut compaction = store.compact();
        assert!(poll_once(&mut compaction).is_pending());
        gate.open(Kind::Read);
        block_on(compaction).unwrap();
        assert_eq!(block_on(reading).unwrap().as_deref(), model.get(&key).map(Vec::as_slice));
        eventually("the file is removed after the read", || store.stats().obsolete_bytes == 0);
        let left = files_with(&env.path(), "seg");
        assert!(dead.iter().all(|id| !left.contains(&env.path().join(format!("{id:020}.seg")))), "{left:?}");
        close(store);
    });
}

#[test]
fn automatic_compaction_runs_only_in_its_hours() {
    let midnight = TimeOfDay::utc(0, 0);
    for_each_engine(|env| {
        // An empty time window, from midnight to midnight.
        let never = Compaction::new().hours(midnight, midnight);
        let store = open(builder(env, never));
        for _ in 0..20 {
            for key in 0..100_u32 {
                put(&store, key.to_le_bytes(), [3; 200]);
            }
        }
        block_on(store.sync()).unwrap();
        eventually("the hint files are written", || files_with(&env.path(), "hint").len() == sealed_ids(&store).len());
        assert_eq!(store.stats().compactions, 0);
        assert!(store.stats().reclaimable_bytes > store.stats().live_bytes);
        compact(&store);
        assert!(store.stats().compactions > 0, "a requested compaction must run at any hour");
        close(store);
        let always = Compaction::new().hours(midnight, TimeOfDay::utc(24, 0));
        let store = open(builder(env, always));
        for _ in 0..20 {
            for key in 0..100_u32 {
                put(&store, key.to_le_bytes(), [3; 200]);
            }
        }
        eventually("automatic compaction has run", || store.stats().compactions > 0);
        close(store);
    });
}

#[test]
fn compaction_options_out_of_range_are_refused_with_their_name() {
    let env = Env::new(ringcask::Engine::Auto);
    for (compaction, name) in [
        (Compaction::new().trigger(0.0), "trigger"),
        (Compaction::new().trigger(1.0), "trigger"),
        (Compaction::new().trigger(f64::NAN), "trigger"),
        (Compaction::new().threshold(0.6), "threshold"),
        (Compaction::new().threshold(-1.0), "threshold"),
        (Compaction::new().budget_bytes(0), "budget_bytes"),
        (Compaction::new().bytes_per_second(Some(1)), "bytes_per_second"),
        (Compaction::new().hours(TimeOfDay::utc(25, 0), TimeOfDay::utc(0, 0)), "hours"),
        (Compaction::new().hours(TimeOfDay::utc(0, 0), TimeOfDay::utc(24, 1)), "hours"),
    ] {
        let error = block_on(env.builder().compaction(compaction).open()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(name), "{error}");
    }
    let store = open(env.builder());
    for segments in [vec![9], vec![u64::MAX]] {
        let error = block_on(store.compact().segments(segments)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    }
    assert_eq!(compact(&store), CompactionReport::default(), "an empty store has nothing to compact");
    close(store);
}
