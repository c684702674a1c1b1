//! Work done early so that callers do not wait for it: preallocation, writeback, and early syncs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::testing::io::Io;
use ringcask::testing::sim::{SimBackend, SimConfig};
use ringcask::{Durability, Store};

use crate::helpers::gated_io::{GatedIo, Kind};
use crate::helpers::{block_on, close, eventually, for_each_engine, open, poll_once, put_at, skip};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;

#[test]
fn puts_do_not_wait_for_preallocation() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(backend).segment_bytes(64 * MIB).sync_interval(LONG));
        let value = vec![7; 64 << 10];
        // The first put creates the segment.
        put_at(&store, Durability::Written, "first", &value);
        if store.stats().reserve_held_bytes == 0 {
            return skip("preallocation", "this file system does not support it");
        }
        let before = gate.preallocated().len();
        let mut puts = 0;
        for round in 0..48 {
            for number in 0..15 {
                let mut put = store.put(format!("{round}-{number}"), &value).durability(Durability::Buffered);
                assert!(poll_once(&mut put).is_ready(), "the put after {puts} puts of 64 KiB is not ready");
                puts += 1;
            }
            // Waits for the commit task, so that no put waits for admission.
            put_at(&store, Durability::Written, "last", &value);
        }
        let preallocated = gate.preallocated().split_off(before);
        println!("{puts} puts, preallocated meanwhile: {preallocated:?}");
        assert!(preallocated.len() >= 2, "48 MiB need several preallocations: {preallocated:?}");
        close(store);
    });
}

#[test]
fn preallocation_ends_at_the_end_of_the_segment() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let builder = env.builder().backend(backend).segment_bytes(4 * MIB).reserve_bytes(MIB).sync_interval(LONG);
        let store = open(builder);
        let value = vec![7; 64 << 10];
        for number in 0..60 {
            put_at(&store, Durability::Written, format!("{number}"), &value);
        }
        let preallocated = gate.preallocated();
        // The first range belongs to the file RESERVE. The first preallocation of the segment starts behind its first
        // bytes, so it may end that much beyond the segment's size.
        let end = preallocated[1..].iter().map(|range| range.end).max().unwrap();
        println!("{preallocated:?}");
        assert!((4 * MIB..=5 * MIB + 4096).contains(&end), "preallocated up to {end}");
        close(store);
    });
}

#[test]
fn small_groups_are_written_back_before_a_sync() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(backend).sync_interval(LONG));
        let value = vec![7; 100_000];
        put_at(&store, Durability::Synced, "first", &value);
        let (syncs, begun) = (gate.asked(Kind::Sync), gate.writebacks().len());
        for number in 0..100 {
            put_at(&store, Durability::Written, format!("{number}"), &value);
        }
        assert_eq!(gate.asked(Kind::Sync), syncs, "an unrequested sync was made");
        let ranges = gate.writebacks().split_off(begun);
        println!("10 MB in 100 groups: {ranges:?}");
        assert!(
            ranges.iter().all(|range| range.end % PAGE == 0),
            "writeback must stop at the last full page: {ranges:?}"
        );
        assert!(ranges.iter().all(|range| range.end - range.start >= MIB), "{ranges:?}");
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
        let covered = ranges.last().unwrap().end - ranges[0].start;
        assert!(covered >= 10_000_000 - MIB - 100_000, "{covered} bytes of 10,000,000");
        close(store);
    });
}

/// Without early syncs, sealing a segment would wait for all bytes written after the last interval.
#[test]
fn many_unsynced_bytes_are_synced_early() {
    let backend = SimBackend::new(SimConfig { seed: 3, journal: false, ..SimConfig::default() });
    backend.run_until(async {
        let store = Store::builder("/db").backend(Arc::new(backend.clone())).sync_interval(LONG).open().await.unwrap();
        let value = vec![7; 1 << 20];
        let began = backend.now();
        let mut versions = Vec::new();
        for number in 0..40 {
            versions.push(store.put(format!("{number}"), &value).durability(Durability::Written).await.unwrap());
        }
        // The first two times sixteen MiB are synced early. The rest waits for the interval.
        store.wait_durable(versions[30]).await.unwrap();
        let took = backend.now() - began;
        assert!(took < LONG / 2, "{took:?}");
        store.wait_durable(versions[39]).await.unwrap();
        let took = backend.now() - began;
        assert!(took >= LONG / 2, "{took:?}: the last bytes were synced early");
        store.close().await.unwrap();
    });
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
}

/// The commit task always has something to write, and still notices that the sync has ended.
#[test]
fn a_finished_sync_is_noticed_during_continuous_writes() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(backend).sync_interval(LONG).durability(Durability::Buffered));
        let early = put_at(&store, Durability::Synced, "first", "creates the segment");
        gate.close(Kind::Sync);
        // Large enough to be written at once. Each write submits the next one before it ends.
        let value = Bytes::from(vec![7; 300 << 10]);
        let (writer, puts, noticed) = (store.clone(), AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let opened = Arc::new(AtomicBool::new(false));
        let (noticed_at, is_open) = (noticed.clone(), opened.clone());
        gate.at_writes(Some(Arc::new(move || {
            let number = puts.fetch_add(1, Ordering::Relaxed) + 1;
            if writer.durable_version() > early {
                let _ = noticed_at.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
                return;
            }
            if number == 100 {
                // The sync has started. Opening the gate may take a while.
                eventually("the gate is opened", || is_open.load(Ordering::Relaxed));
            }
            if number < 700 {
                assert!(poll_once(&mut writer.put_bytes("key", value.clone())).is_ready());
            }
        })));
        put_at(&store, Durability::Buffered, "begins", vec![7; 300 << 10]);
        gate.wait_for_held(Kind::Sync, 1);
        gate.open(Kind::Sync);
        opened.store(true, Ordering::Relaxed);
        eventually("a sync is noticed", || store.durable_version() > early);
        // A last write for the hook to record the sync, if no write has come after it.
        put_at(&store, Durability::Written, "ends", "value");
        let noticed = noticed.load(Ordering::Relaxed);
        println!("the sync was noticed at write {noticed} of 700");
        assert!(noticed < 700, "the sync was noticed only after the last write");
        gate.at_writes(None);
        close(store);
    });
}

/// Small writes do not make the store sync earlier than the interval.
#[test]
fn few_unsynced_bytes_wait_for_the_interval() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(backend).sync_interval(LONG));
        put_at(&store, Durability::Synced, "first", "value");
        let syncs = gate.asked(Kind::Sync);
        for number in 0..1000 {
            block_on(store.put(format!("{number}"), [7; 1000]).durability(Durability::Written)).unwrap();
        }
        assert_eq!(gate.asked(Kind::Sync), syncs);
        close(store);
    });
}
