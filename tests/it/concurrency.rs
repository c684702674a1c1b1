//! Many tasks and threads on the same keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ringcask::{Batch, Compaction, Durability, Store};

use crate::helpers::{LEVELS, Rng, block_on, close, delete, for_each_engine, get, open, put};

/// A value that names its writer and is long enough to show tearing or mixing.
fn value_of(writer: u64, index: u64) -> Vec<u8> {
    let mut value = Rng::new(writer << 32 | index).bytes(40 + (index % 200) as usize);
    value[..8].copy_from_slice(&(writer << 32 | index).to_le_bytes());
    value
}

fn assert_was_written(value: &[u8]) {
    let tag = u64::from_le_bytes(value[..8].try_into().unwrap());
    assert!(value == value_of(tag >> 32, tag & 0xFFFF_FFFF), "a value that was never written: {tag:x}");
}

#[test]
fn sixty_four_tasks_with_mixed_operations_read_only_written_values() {
    let seed = Rng::seeded("64 tasks").next();
    for_each_engine(|env| {
        let builder = env.builder().segment_bytes(256 << 10).staging_bytes(64 << 10);
        let store = open(builder.flush_interval(Duration::from_millis(1)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        let (gets, writes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let (store, gets, writes) = (store.clone(), gets.clone(), writes.clone());
                runtime.spawn(async move {
                    let mut rng = Rng::new(seed ^ task);
                    for index in 0..300 {
                        if mixed_operation(&store, task, index, &mut rng).await {
                            writes.fetch_add(1, Ordering::Relaxed);
                        } else {
                            gets.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        runtime.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
        block_on(store.sync()).unwrap();
        let before: BTreeMap<_, _> = (0..32_u64).map(|key| (key, get(&store, key.to_le_bytes()))).collect();
        assert_eq!(before.values().flatten().count(), store.len());
        close(store);
        let store = env.open();
        for (key, value) in before {
            assert_eq!(get(&store, key.to_le_bytes()), value, "key {key} changed across the reopen");
        }
        println!("seed {seed}: {gets:?} gets, {writes:?} writes");
    });
}

/// Runs a random operation. Returns whether it was a write.
async fn mixed_operation(store: &Store, task: u64, index: u64, rng: &mut Rng) -> bool {
    let key = rng.below(32).to_le_bytes();
    let level = rng.level();
    match rng.below(8) {
        0..3 => {
            store.put(key, value_of(task, index)).durability(level).await.unwrap();
        }
        3 => {
            store.put_bytes(key, value_of(task, index).into()).await.unwrap();
        }
        4 => {
            store.delete(key).durability(level).await.unwrap();
        }
        5 => {
            let mut batch = Batch::new();
            batch.put(key, value_of(task, index)).delete(rng.below(32).to_le_bytes());
            store.write(batch).durability(level).await.unwrap();
        }
        _ => {
            if let Some(value) = store.get(key).await.unwrap() {
                assert_was_written(&value);
            }
            return false;
        }
    }
    true
}

#[test]
fn exactly_one_of_several_concurrent_deletes_finds_the_key() {
    for_each_engine(|env| {
        let store = env.open();
        let mut rounds = 0;
        for level in LEVELS {
            for other in LEVELS {
                for round in 0..40_u32 {
                    let key = format!("{level}-{other}-{round}");
                    put(&store, &key, "v");
                    let barrier = std::sync::Barrier::new(3);
                    let found = thread::scope(|scope| {
                        let handles = [level, other, level].map(|level| {
                            let (store, key, barrier) = (&store, &key, &barrier);
                            scope.spawn(move || {
                                barrier.wait();
                                block_on(store.delete(key).durability(level)).unwrap()
                            })
                        });
                        handles.map(|handle| handle.join().unwrap())
                    });
                    assert_eq!(found.iter().filter(|found| **found).count(), 1, "{key}: {found:?}");
                    assert!(!store.contains_key(&key));
                    rounds += 1;
                }
            }
        }
        assert_eq!((rounds, store.len()), (360, 0));
    });
}

#[test]
fn a_concurrent_put_and_delete_are_ordered() {
    for_each_engine(|env| {
        let store = env.open();
        let (mut found, mut missed) = (0, 0);
        for round in 0..200_usize {
            let key = format!("{round}");
            let (first, second) = (LEVELS[round % 3], LEVELS[round / 3 % 3]);
            let existed = thread::scope(|scope| {
                let put = scope.spawn(|| block_on(store.put(&key, "v").durability(first)).unwrap());
                let delete = scope.spawn(|| block_on(store.delete(&key).durability(second)).unwrap());
                put.join().unwrap();
                delete.join().unwrap()
            });
            assert_eq!(
                store.contains_key(&key),
                !existed,
                "the delete must either find the put's value or come before the put"
            );
            if existed {
                found += 1;
                assert!(!delete(&store, &key));
            } else {
                missed += 1;
            }
        }
        println!("{found} found the put, {missed} came before the put");
        assert_eq!(store.len(), missed);
    });
}

#[test]
fn a_batch_is_never_partly_visible() {
    for_each_engine(|env| {
        for level in LEVELS {
            let path = env.dir.path().join(level.to_string());
            let store = open(env.builder_at(&path).segment_bytes(64 << 10));
            let stop = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..2)
                .map(|reader| {
                    let (store, stop) = (store.clone(), stop.clone());
                    thread::spawn(move || read_pairs(&store, reader, &stop))
                })
                .collect();
            let rounds = if level == Durability::Synced { 400 } else { 3000 };
            for round in 1..=rounds {
                let value = u64::to_le_bytes(round);
                let mut batch = Batch::new();
                batch.put("first", value).put("middle", [0; 300]).put("second", value);
                block_on(store.write(batch).durability(level)).unwrap();
            }
            stop.store(true, Ordering::Release);
            let pairs: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
            println!("{level}: {rounds} batches, {pairs} pairs read");
            assert!(pairs > 0);
            close(store);
        }
    });
}

/// Reads one key of the pair and then the other. The second value can never be older than the first.
fn read_pairs(store: &Store, reader: usize, stop: &AtomicBool) -> u64 {
    let keys = if reader == 0 { ["first", "second"] } else { ["second", "first"] };
    let number =
        |key: &str| get(store, key).map_or(0, |value| u64::from_le_bytes(value.try_into().expect("eight bytes")));
    let mut pairs = 0;
    while !stop.load(Ordering::Acquire) || pairs == 0 {
        let earlier = number(keys[0]);
        let later = number(keys[1]);
        assert!(later >= earlier, "{keys:?}: batch {earlier} was seen, then {later}");
        pairs += 1;
    }
    pairs
}

#[test]
fn every_writer_that_waits_for_admission_is_admitted() {
    for_each_engine(|env| {
        let store = open(env.builder().staging_bytes(64 << 10).segment_bytes(1 << 20));
        let writers: Vec<_> = (0..16_u64)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    for index in 0..40_u64 {
                        // Some values fit into the buffer, some are larger than it.
                        let len = if index % 10 == 0 { 100_000 } else { 20_000 };
                        let key = [writer.to_le_bytes(), index.to_le_bytes()].concat();
                        let level = LEVELS[(index % 3) as usize];
                        block_on(store.put(key, vec![writer as u8; len]).durability(level)).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(store.len(), 640);
        close(store);
        let store = env.open();
        for writer in 0..16_u64 {
            for index in 0..40_u64 {
                let value = get(&store, [writer.to_le_bytes(), index.to_le_bytes()].concat()).unwrap();
                assert!(value.iter().all(|byte| *byte == writer as u8));
            }
        }
    });
}

#[test]
fn concurrent_synced_writers_share_syncs() {
    for_each_engine(|env| {
        let store = env.open();
        let writers: Vec<_> = (0..16_u64)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    for index in 0..100_u64 {
                        let key = [writer.to_le_bytes(), index.to_le_bytes()].concat();
                        block_on(store.put(key, "v")).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let stats = store.stats();
        println!("{} records in {} groups with {} syncs", stats.group_records, stats.groups, stats.syncs);
        assert_eq!(stats.puts, 1600);
        // Group commit lets the sixteen writers share syncs.
        assert!(stats.syncs < 1600, "{} syncs for 1600 writes", stats.syncs);
        close(store);
        assert_eq!(env.open().len(), 1600);
    });
}

#[test]
fn reads_from_memory_and_disk_see_the_newest_value_during_rotation() {
    for_each_engine(|env| {
        // Compaction is off, so that there are more segments than may be open.
        let compaction = Compaction::new().automatic(false);
        let store = open(env.builder().segment_bytes(8 << 10).max_open_files(8).compaction(compaction));
        let stop = Arc::new(AtomicBool::new(false));
        let newest = Arc::new(AtomicU64::new(0));
        let readers: Vec<_> = (0..3_u64)
            .map(|seed| {
                let (store, stop, newest) = (store.clone(), stop.clone(), newest.clone());
                thread::spawn(move || {
                    let (mut rng, mut reads) = (Rng::new(seed), 0_u64);
                    while !stop.load(Ordering::Acquire) || reads == 0 {
                        let known = newest.load(Ordering::Acquire);
                        let key = rng.below(50);
                        let value = get(&store, key.to_le_bytes());
                        let round = value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().unwrap()));
                        assert!(round >= known, "key {key}: round {round} after round {known} was acknowledged");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for round in 1..=40_u64 {
            for key in 0..50_u64 {
                let mut value = vec![0; 100];
                value[..8].copy_from_slice(&round.to_le_bytes());
                let level = if key % 25 == 0 { Durability::Synced } else { LEVELS[key as usize % 2] };
                block_on(store.put(key.to_le_bytes(), value).durability(level)).unwrap();
            }
            newest.store(round, Ordering::Release);
        }
        stop.store(true, Ordering::Release);
        let reads: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        println!("{reads} reads over {} segments", store.stats().segments.len());
        assert!(store.stats().segments.len() > 20 && reads > 0);
        close(store);
    });
}
