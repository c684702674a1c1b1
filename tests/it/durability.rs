//! The promises of each durability level, and the moment when a write becomes visible.

use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use ringcask::{Batch, Builder, Durability, ErrorKind, Outcome, Store, Version};

use crate::helpers::gated_io::{Gate, GatedIo, Kind};
use crate::helpers::{
    Env, LEVELS, assert_holds, block_on, close, copy_store, delete, eventually, eventually_within, for_each_engine,
    get, open, poll_once, put, put_at,
};

const LONG: Duration = Duration::from_secs(60);

/// A store behind a gate, whose intervals are too long for an automatic flush or sync.
fn gated(env: &Env, builder: Builder) -> (Store, Arc<Gate>) {
    let (backend, gate) = GatedIo::around(env.engine);
    (open(builder.backend(backend).flush_interval(LONG).sync_interval(LONG)), gate)
}

#[test]
fn a_resolved_write_is_visible_to_every_thread_at_every_level() {
    for_each_engine(|env| {
        let store = env.open();
        for level in LEVELS {
            for round in 0..50_u32 {
                let value = format!("{level}-{round}");
                put_at(&store, level, "k", &value);
                let (here, elsewhere) = (store.clone(), store.clone());
                let seen = thread::spawn(move || get(&elsewhere, "k")).join().unwrap();
                assert_eq!(seen.as_deref(), Some(value.as_bytes()));
                assert_eq!(get(&here, "k"), seen);
            }
            assert!(block_on(store.delete("k").durability(level)).unwrap());
            let elsewhere = store.clone();
            assert_eq!(thread::spawn(move || get(&elsewhere, "k")).join().unwrap(), None);
        }
    });
}

#[test]
fn a_buffered_write_is_visible_before_any_io() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        // The first write of a store creates the segment, and waits for it at every level.
        put(&store, "segment", "exists");
        gate.close(Kind::Write);
        gate.close(Kind::Sync);
        let mut first = store.put("k", "v").durability(Durability::Buffered);
        assert!(matches!(poll_once(&mut first), Poll::Ready(Ok(_))), "not ready at its first poll");
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
        let mut batch = Batch::new();
        batch.put("b1", "1").put("b2", "2");
        assert!(matches!(poll_once(&mut store.write(batch).durability(Durability::Buffered)), Poll::Ready(Ok(_))));
        assert!(matches!(poll_once(&mut store.delete("b1").durability(Durability::Buffered)), Poll::Ready(Ok(true))));
        assert_eq!((get(&store, "b1"), get(&store, "b2").as_deref()), (None, Some(&b"2"[..])));
        assert_eq!(store.len(), 3);
        assert!(store.stats().staged_bytes > 0);
        gate.open(Kind::Write);
        gate.open(Kind::Sync);
        close(store);
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn a_written_write_resolves_only_after_its_write_to_the_kernel() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "first", "segment exists");
        gate.close(Kind::Write);
        let mut write = store.put("k", "v").durability(Durability::Written);
        assert!(poll_once(&mut write).is_pending());
        gate.wait_for_held(Kind::Write, 1);
        assert!(poll_once(&mut write).is_pending());
        gate.open(Kind::Write);
        let version = block_on(write).unwrap();
        // The record no longer depends on the process: a copy of the files contains it.
        let copy = env.dir.path().join("copy");
        copy_store(&env.path(), &copy);
        assert_eq!(get(&open(env.builder_at(&copy)), "k").as_deref(), Some(&b"v"[..]));
        assert!(store.durable_version() < version, "the write was synced");
    });
}

#[test]
fn a_synced_write_is_not_visible_before_its_sync_completes() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "k", "old");
        put(&store, "doomed", "still here");
        let durable = store.durable_version();
        gate.close(Kind::Sync);
        let mut write = store.put("k", "new, and longer");
        let mut fresh = store.put("fresh", "value");
        let mut deletion = store.delete("doomed");
        let mut batch = Batch::new();
        batch.put("b1", "1").put("k", "from the batch").delete("doomed");
        let mut whole = store.write(batch);
        for _ in 0..3 {
            assert!(poll_once(&mut write).is_pending());
            assert!(poll_once(&mut fresh).is_pending());
            assert!(poll_once(&mut deletion).is_pending());
            assert!(poll_once(&mut whole).is_pending());
            gate.wait_for_held(Kind::Sync, 1);
            assert_eq!(get(&store, "k").as_deref(), Some(&b"old"[..]));
            assert_eq!(store.value_len("k"), Some(3));
            assert_eq!(get(&store, "doomed").as_deref(), Some(&b"still here"[..]));
            assert_eq!((get(&store, "fresh"), get(&store, "b1"), store.contains_key("fresh")), (None, None, false));
            assert_eq!((store.len(), store.durable_version()), (2, durable));
        }
        gate.open(Kind::Sync);
        let version = block_on(write).unwrap();
        block_on(fresh).unwrap();
        assert!(block_on(deletion).unwrap());
        let last = block_on(whole).unwrap();
        assert!(version < last && store.durable_version() >= last);
        assert_eq!(get(&store, "k").as_deref(), Some(&b"from the batch"[..]));
        assert_eq!((get(&store, "doomed"), store.len()), (None, 3));
    });
}

#[test]
fn a_buffered_write_after_a_pending_synced_one_stays_the_newer_value() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "k", "old");
        gate.close(Kind::Sync);
        let mut pending = store.put("k", "pending");
        assert!(poll_once(&mut pending).is_pending());
        gate.wait_for_held(Kind::Sync, 1);
        put_at(&store, Durability::Buffered, "k", "buffered");
        assert_eq!(get(&store, "k").as_deref(), Some(&b"buffered"[..]));
        gate.open(Kind::Sync);
        block_on(pending).unwrap();
        assert_eq!(
            get(&store, "k").as_deref(),
            Some(&b"buffered"[..]),
            "the order of the log decides, not the order of the syncs"
        );
        close(store);
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"buffered"[..]));
    });
}

#[test]
fn writes_that_arrive_during_a_sync_share_the_next_one() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "first", "segment exists");
        let (before, asked) = (store.stats(), gate.asked(Kind::Sync));
        gate.close(Kind::Sync);
        let mut leader = store.put("leader", "0");
        assert!(poll_once(&mut leader).is_pending());
        gate.wait_for_held(Kind::Sync, 1);
        let mut followers: Vec<_> = (0..200_u32).map(|index| store.put(index.to_le_bytes(), "v")).collect();
        for follower in &mut followers {
            assert!(poll_once(follower).is_pending());
        }
        gate.open(Kind::Sync);
        block_on(leader).unwrap();
        for follower in followers {
            block_on(follower).unwrap();
        }
        let after = store.stats();
        assert_eq!(after.groups - before.groups, 2, "the leader alone, then all followers");
        assert_eq!(after.syncs - before.syncs, 2);
        assert_eq!(gate.asked(Kind::Sync) - asked, 2, "syncs by the backend's count");
        assert!(after.group_records - before.group_records >= 201);
    });
}

/// A sync covers the writes that were complete when it began, and no later ones.
#[test]
fn a_written_write_during_a_sync_neither_waits_for_it_nor_is_covered_by_it() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "first", "segment exists");
        gate.close(Kind::Sync);
        let mut leader = store.put("leader", "synced");
        assert!(poll_once(&mut leader).is_pending());
        gate.wait_for_held(Kind::Sync, 1);
        let written = put_at(&store, Durability::Written, "behind", "written");
        gate.open(Kind::Sync);
        let synced = block_on(leader).unwrap();
        assert!(synced < written);
        let durable = store.durable_version();
        assert!(
            (synced..written).contains(&durable),
            "{durable}: the sync of {synced} began before {written} was written"
        );
        block_on(store.sync()).unwrap();
        assert!(store.durable_version() >= written);
    });
}

#[test]
fn sync_makes_everything_acknowledged_durable() {
    for_each_engine(|env| {
        let (store, _gate) = gated(env, env.builder());
        let mut last = put(&store, "first", "synced");
        for round in 0..20_u32 {
            for level in [Durability::Buffered, Durability::Written] {
                last = put_at(&store, level, round.to_le_bytes(), level.to_string());
            }
            assert!(store.durable_version() < last);
            let synced = block_on(store.sync()).unwrap();
            assert!(synced >= last, "{synced} does not cover {last}");
            assert!(store.durable_version() >= synced);
        }
        let before = store.stats().syncs;
        assert!(block_on(store.sync()).unwrap() >= last);
        assert_eq!(store.stats().syncs, before, "a sync without unsynced writes reached the disk");
    });
}

#[test]
fn a_synced_write_makes_all_earlier_writes_durable() {
    for_each_engine(|env| {
        let (store, _gate) = gated(env, env.builder());
        let buffered = put_at(&store, Durability::Buffered, "a", "1");
        let written = put_at(&store, Durability::Written, "b", "2");
        let synced = put(&store, "c", "3");
        assert!(buffered < written && written < synced);
        assert!(store.durable_version() >= synced);
        block_on(store.wait_durable(buffered)).unwrap();
    });
}

#[test]
fn wait_durable_resolves_when_its_version_is_durable_and_not_before() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        let durable = put(&store, "k", "v");
        assert!(matches!(poll_once(&mut store.wait_durable(durable)), Poll::Ready(Ok(()))));
        assert!(matches!(poll_once(&mut store.wait_durable(Version::from(0))), Poll::Ready(Ok(()))));
        gate.close(Kind::Sync);
        let version = put_at(&store, Durability::Buffered, "k", "w");
        let mut waiting = store.wait_durable(version);
        assert!(poll_once(&mut waiting).is_pending());
        let mut sync = store.sync();
        assert!(poll_once(&mut sync).is_pending());
        gate.wait_for_held(Kind::Sync, 1);
        assert!(poll_once(&mut waiting).is_pending());
        assert!(store.durable_version() < version);
        gate.open(Kind::Sync);
        block_on(waiting).unwrap();
        assert!(store.durable_version() >= version);
        block_on(sync).unwrap();
    });
}

#[test]
fn a_failed_sync_poisons_the_writer_and_is_never_retried() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "k", "durable");
        gate.fail(Kind::Sync, Some(libc::EIO));
        let mut leader = store.put("k", "unknown");
        assert!(poll_once(&mut leader).is_pending());
        let error = block_on(leader).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::Io), "{error:?}");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
        assert_eq!(error.os_error(), Some(libc::EIO), "the cause is not in the chain: {error:?}");
        let asked = gate.asked(Kind::Sync);
        gate.fail(Kind::Sync, None);
        for level in LEVELS {
            let error = block_on(store.put("later", "x").durability(level)).unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Poisoned, Outcome::NotApplied), "{error:?}");
        }
        assert_eq!(block_on(store.delete("k")).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(block_on(store.sync()).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(get(&store, "k").as_deref(), Some(&b"durable"[..]), "a read after the failed sync");
        assert_eq!(get(&store, "later"), None);
        assert!(store.stats().poisoned);
        drop(store);
        assert_eq!(gate.asked(Kind::Sync), asked, "a failed sync was followed by another one");
        let mut found = Vec::new();
        for _ in 0..2 {
            let store = env.open();
            found.push(get(&store, "k").unwrap());
            assert_eq!(get(&store, "later"), None);
            close(store);
        }
        assert!(found[0] == b"durable" || found[0] == b"unknown");
        assert_eq!(found[0], found[1], "two reopens found different values");
    });
}

/// A group of fifty writes that is staged but not yet written, behind a durable leader.
fn group_of_fifty(store: &Store, gate: &Gate) -> (ringcask::futures::Put, Vec<ringcask::futures::Put>) {
    put(store, "k", "durable");
    gate.close(Kind::Sync);
    let mut leader = store.put("leader", "0");
    assert!(poll_once(&mut leader).is_pending());
    gate.wait_for_held(Kind::Sync, 1);
    let mut followers: Vec<_> = (0..50_u32).map(|index| store.put(index.to_le_bytes(), "v")).collect();
    followers.iter_mut().for_each(|follower| assert!(poll_once(follower).is_pending()));
    gate.close(Kind::Write);
    gate.open(Kind::Sync);
    // The leader may resolve before the write of the group begins or after it ends. Both orders are allowed here.
    gate.wait_for_held(Kind::Write, 1);
    (leader, followers)
}

#[test]
fn a_failed_sync_fails_every_member_of_its_group() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        let (leader, followers) = group_of_fifty(&store, &gate);
        gate.fail(Kind::Sync, Some(libc::EIO));
        gate.open(Kind::Write);
        block_on(leader).unwrap();
        let mut failed = 0;
        for (index, follower) in followers.into_iter().enumerate() {
            let error = block_on(follower).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::Io), "follower {index}: {error:?}");
            assert_eq!(error.outcome(), Outcome::Unknown, "follower {index}: {error:?}");
            failed += 1;
        }
        assert_eq!((failed, store.len()), (50, 2), "all members failed, and none is visible");
    });
}

#[test]
fn a_failed_write_fails_every_member_of_its_group() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        let (leader, followers) = group_of_fifty(&store, &gate);
        gate.fail(Kind::Write, Some(libc::ENOSPC));
        gate.open(Kind::Write);
        block_on(leader).unwrap();
        for (index, follower) in followers.into_iter().enumerate() {
            let error = block_on(follower).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace, "follower {index}: {error:?}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "follower {index}: {error:?}");
        }
        gate.fail(Kind::Write, None);
        put(&store, "after", "it");
        assert_eq!(store.len(), 3);
        close(store);
        assert_eq!(env.open().len(), 3, "a write that was not applied is stored after the reopen");
    });
}

#[test]
fn a_failed_write_is_not_acknowledged_and_not_visible() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "k", "durable");
        gate.fail(Kind::Write, Some(libc::EIO));
        let error = block_on(store.put("k", "refused")).unwrap_err();
        gate.fail(Kind::Write, None);
        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}");
        assert_eq!(get(&store, "k").as_deref(), Some(&b"durable"[..]));
        let not_applied = error.outcome() == Outcome::NotApplied;
        let later = block_on(store.put("later", "x"));
        drop(store);
        let store = env.open();
        let found = get(&store, "k").unwrap();
        assert!(found == b"durable" || (!not_applied && found == b"refused"), "{error:?}, then {found:?}");
        assert_eq!(get(&store, "later").is_some(), later.is_ok(), "{later:?}");
    });
}

#[test]
fn a_full_disk_is_no_space_and_writes_work_again_afterwards() {
    for_each_engine(|env| {
        let (store, gate) = gated(env, env.builder());
        put(&store, "k", "durable");
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            gate.fail(Kind::Write, Some(errno));
            let error = block_on(store.put("k", "refused")).unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");
            assert_eq!(error.os_error(), Some(errno));
            gate.fail(Kind::Write, None);
            assert_eq!(get(&store, "k").as_deref(), Some(&b"durable"[..]));
            put(&store, errno.to_le_bytes(), "space is back");
        }
        close(store);
        let store = env.open();
        assert_eq!(get(&store, "k").as_deref(), Some(&b"durable"[..]));
        assert_eq!(store.len(), 4);
    });
}

#[test]
fn the_flush_interval_is_kept_without_further_calls() {
    for_each_engine(|env| {
        for interval in [1, 20] {
            let builder = env.builder().flush_interval(Duration::from_millis(interval)).sync_interval(LONG);
            let store = open(builder);
            for round in 0..5_u32 {
                put_at(&store, Durability::Buffered, "k", round.to_le_bytes());
                eventually("the record reaches the kernel", || store.stats().staged_bytes == 0);
                let copy = env.dir.path().join(format!("copy-{interval}-{round}"));
                copy_store(&env.path(), &copy);
                assert_eq!(get(&open(env.builder_at(&copy)), "k").as_deref(), Some(&round.to_le_bytes()[..]));
            }
            assert!(delete(&store, "k"));
            close(store);
        }
    });
}

#[test]
fn the_sync_interval_is_kept_without_further_calls() {
    for_each_engine(|env| {
        let ms = Duration::from_millis;
        for (flush, sync) in [(ms(1), ms(1)), (ms(5), ms(40)), (LONG, ms(20))] {
            let store = open(env.builder().flush_interval(flush).sync_interval(sync));
            for level in [Durability::Buffered, Durability::Written] {
                let version = put_at(&store, level, "k", level.to_string());
                // Far longer than the sync interval, and far shorter than the flush interval of the last case.
                let patience = LONG / 3;
                eventually_within(patience, "the record reaches the disk", || store.durable_version() >= version);
                block_on(store.wait_durable(version)).unwrap();
            }
            close(store);
        }
    });
}

#[test]
fn an_idle_store_neither_writes_nor_syncs() {
    for_each_engine(|env| {
        let (backend, gate) = GatedIo::around(env.engine);
        let quick = Duration::from_millis(1);
        let store = open(env.builder().backend(backend).flush_interval(quick).sync_interval(quick));
        let version = put_at(&store, Durability::Buffered, "k", "v");
        block_on(store.wait_durable(version)).unwrap();
        let asked = (gate.asked(Kind::Write), gate.asked(Kind::Sync));
        // A hundred intervals are not a proof, but a timer that keeps writing is found at once.
        thread::sleep(quick * 100);
        assert_eq!((gate.asked(Kind::Write), gate.asked(Kind::Sync)), asked);
    });
}

#[test]
fn a_copy_of_a_running_store_contains_all_written_records() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(8 << 10).sync_interval(LONG));
        let mut model = crate::helpers::Model::new();
        for index in 0..60_u32 {
            let level = if index % 2 == 0 { Durability::Written } else { Durability::Synced };
            let (key, value) = (index.to_le_bytes().to_vec(), vec![index as u8; 500]);
            put_at(&store, level, &key, &value);
            model.insert(key, value);
            if index % 10 == 9 {
                let copy = env.dir.path().join(format!("copy-{index}"));
                copy_store(&env.path(), &copy);
                let copied = open(env.builder_at(&copy));
                assert_holds(&copied, &model);
                close(copied);
            }
        }
    });
}
