//! Work done before a caller would have to wait for it: preallocation, writeback, and early syncs.

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
fn no_put_waits_for_space_in_the_segment() {
    for_each_engine(|env| {
        let (world, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(world).segment_bytes(64 * MIB).sync_interval(LONG));
        let value = vec![7; 64 << 10];
        // The first one finds no segment.
        put_at(&store, Durability::Written, "first", &value);
        if store.stats().reserve_held_bytes == 0 {
            return skip("claiming ahead", "this file system cannot claim space");
        }
        let before = gate.preallocated().len();
        let mut puts = 0;
        for round in 0..48 {
            for number in 0..15 {
                let mut put = store.put(format!("{round}-{number}"), &value).durability(Durability::Buffered);
                assert!(poll_once(&mut put).is_ready(), "{puts} puts of 64 KiB went before this one");
                puts += 1;
            }
            // Keeps the task in step, so that nobody waits for memory.
            put_at(&store, Durability::Written, "last", &value);
        }
        let preallocated = gate.preallocated().split_off(before);
        println!("{puts} puts, space claimed meanwhile: {preallocated:?}");
        assert!(preallocated.len() >= 2, "48 MiB are several steps: {preallocated:?}");
        close(store);
    });
}

#[test]
fn no_space_is_preallocated_that_the_segment_cannot_use() {
    for_each_engine(|env| {
        let (world, gate) = GatedIo::around(env.engine);
        let builder = env.builder().backend(world).segment_bytes(4 * MIB).reserve_bytes(MIB).sync_interval(LONG);
        let store = open(builder);
        let value = vec![7; 64 << 10];
        for number in 0..60 {
            put_at(&store, Durability::Written, format!("{number}"), &value);
        }
        let preallocated = gate.preallocated();
        // The first is that of the file RESERVE; the segment's own first step ends beyond its end by what comes before
        // it.
        let end = preallocated[1..].iter().map(|claim| claim.end).max().unwrap();
        println!("{preallocated:?}");
        assert!((4 * MIB..=5 * MIB + 4096).contains(&end), "claimed up to {end}");
        close(store);
    });
}

#[test]
fn small_groups_are_written_back_before_a_sync() {
    for_each_engine(|env| {
        let (world, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(world).sync_interval(LONG));
        let value = vec![7; 100_000];
        put_at(&store, Durability::Synced, "first", &value);
        let (syncs, begun) = (gate.asked(Kind::Sync), gate.writebacks().len());
        for number in 0..100 {
            put_at(&store, Durability::Written, format!("{number}"), &value);
        }
        assert_eq!(gate.asked(Kind::Sync), syncs, "nobody asked for one");
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

/// Otherwise sealing a segment would wait for all bytes written since the last interval.
#[test]
fn many_unsynced_bytes_are_synced_before_the_interval_ends() {
    let world = SimBackend::new(SimConfig { seed: 3, journal: false, ..SimConfig::default() });
    world.run_until(async {
        let store = Store::builder("/db").backend(Arc::new(world.clone())).sync_interval(LONG).open().await.unwrap();
        let value = vec![7; 1 << 20];
        let began = world.now();
        let mut versions = Vec::new();
        for number in 0..40 {
            versions.push(store.put(format!("{number}"), &value).durability(Durability::Written).await.unwrap());
        }
        // Two times sixteen MiB; the rest has time.
        store.wait_durable(versions[30]).await.unwrap();
        let took = world.now() - began;
        assert!(took < LONG / 2, "{took:?}");
        store.wait_durable(versions[39]).await.unwrap();
        let took = world.now() - began;
        assert!(took >= LONG / 2, "{took:?}: nobody asked for that one");
        store.close().await.unwrap();
    });
    world.shutdown();
    assert_eq!(world.panics(), Vec::<String>::new());
}

/// The task that writes is busy all the time, and still notices that the disk is done.
#[test]
fn a_sync_is_noticed_while_there_is_always_something_to_write() {
    for_each_engine(|env| {
        let (world, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(world).sync_interval(LONG).durability(Durability::Buffered));
        let early = put_at(&store, Durability::Synced, "first", "creates the segment");
        gate.close(Kind::Sync);
        // Large enough to be written at once. Each write brings the next one, before it is done itself.
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
                // The sync is begun by now. Who opens the gate may come to it late.
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
        // A last write, for the hook to see it if none came since.
        put_at(&store, Durability::Written, "ends", "value");
        let noticed = noticed.load(Ordering::Relaxed);
        println!("noticed at write {noticed} of 700");
        assert!(noticed < 700, "noticed when there was nothing more to write");
        gate.at_writes(None);
        close(store);
    });
}

/// Small writes alone do not bring the store to sync more often than it was told to.
#[test]
fn few_unsynced_bytes_wait_for_the_interval() {
    for_each_engine(|env| {
        let (world, gate) = GatedIo::around(env.engine);
        let store = open(env.builder().backend(world).sync_interval(LONG));
        put_at(&store, Durability::Synced, "first", "value");
        let syncs = gate.asked(Kind::Sync);
        for number in 0..1000 {
            block_on(store.put(format!("{number}"), [7; 1000]).durability(Durability::Written)).unwrap();
        }
        assert_eq!(gate.asked(Kind::Sync), syncs);
        close(store);
    });
}
