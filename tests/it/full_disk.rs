//! Full disks: a small tmpfs and a small ext4, filled to the last block, and a file-size limit whose signal is ignored
//! or handled. Each round fills the disk, is refused, deletes, reopens, and continues when space is free. Also a file
//! system that becomes read-only under an open store.
#![allow(unsafe_code, reason = "setting a signal handler needs it; this file is the only place")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringcask::{Batch, Builder, Durability, ErrorKind, Outcome, Store};

use crate::bad_input::{Mount, open_error};
use crate::helpers::{
    Env, LEVELS, Model, Rng, assert_holds, block_on, child_env, close, expect_success, for_each_engine, get, is_child,
    open, put, put_at, rerun, rerun_without_xfsz,
};
use crate::support::stages;

fn builder(env: &Env, path: &Path) -> Builder {
    env.builder_at(path).segment_bytes(512 << 10).reserve_bytes(64 << 10).sync_interval(Duration::from_secs(60))
}

/// A random value of 16 KiB on average.
fn fill_value(rng: &mut Rng) -> Vec<u8> {
    let len = (8 << 10) + rng.below(16 << 10) as usize;
    rng.bytes(len)
}

/// Puts values at `level` until the disk has refused ten, and returns that number.
fn fill(store: &Store, level: Durability, model: &mut Model, rng: &mut Rng) -> usize {
    let mut refused = 0;
    for index in 0_u32.. {
        let (key, value) = (format!("fill-{level}-{index}").into_bytes(), fill_value(rng));
        match block_on(store.put(&key, &value).durability(level)) {
            Ok(_) => drop(model.insert(key, value)),
            Err(error) => {
                assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");
                assert_eq!(get(store, &key).as_ref(), model.get(&key), "a refused put changed its key");
                refused += 1;
                if refused == 10 {
                    return refused;
                }
            }
        }
        assert!(index < 10_000, "the disk of a few MB accepted 160 MB");
    }
    refused
}

#[test]
fn a_full_disk_refuses_writes_and_loses_no_data() {
    const NAME: &str = "full_disk::a_full_disk_refuses_writes_and_loses_no_data";
    if is_child() {
        return fill_to_the_file_size_limit();
    }
    let stage = stages::begin("full disks");
    let (floor, first_seed) = (stage.floor(), stages::first_seed());
    let (rounds, refused_mount) = (Cell::new(0), Cell::new(false));
    for seed in first_seed.. {
        for_each_engine(|env| {
            for level in [Durability::Synced, Durability::Written] {
                let point = |kind: &str| env.dir.path().join(format!("{kind}-{level}"));
                let tmpfs = Mount::tmpfs(&point("tmpfs"), "6m");
                let ext4 = Mount::ext4(&point("image"), 16 << 20, &point("ext4"));
                let (Some(tmpfs), Some(ext4)) = (tmpfs, ext4) else { return refused_mount.set(true) };
                check_full_disk(env, &tmpfs, level, seed);
                check_full_disk(env, &ext4, level, seed);
                rounds.set(rounds.get() + 2);
            }
            for rerun in [rerun_without_xfsz, rerun] {
                let env = Env::new(env.engine);
                let mut child = rerun(NAME, &env);
                child.env("RINGCASK_TEST_SEED", seed.to_string());
                expect_success(child);
                // Without the limit, all acknowledged writes are found.
                for level in LEVELS {
                    let store = open(env.builder_at(limited_path(&env.path(), level)));
                    let report = store.recovery_report();
                    assert!(report.damage.is_empty(), "{report:?}");
                    assert!(get(&store, "last").is_some());
                    close(store);
                }
                rounds.set(rounds.get() + 1);
            }
        });
        if refused_mount.get() {
            return stage.skip("small file systems cannot be mounted");
        }
        if rounds.get() >= floor {
            return stage.end(rounds.get(), &format!("tmpfs, ext4 and RLIMIT_FSIZE, seeds {first_seed} to {seed}"));
        }
    }
}

fn check_full_disk(env: &Env, mount: &Mount, level: Durability, seed: u64) {
    let path = mount.point.join("store");
    let ballast = mount.point.join("ballast");
    let (mut model, mut rng) = (Model::new(), Rng::new(seed));
    let store = open(builder(env, &path));
    // Space that is freed later.
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    fill(&store, level, &mut model, &mut rng);
    let stored = model.len();
    assert!(stored > 100, "{stored} values fit");
    assert_holds(&store, &model);
    assert!(!store.stats().poisoned);

    let mut batch = Batch::new();
    batch.put("b1", rng.bytes(20 << 10)).put("b2", rng.bytes(20 << 10));
    let error = block_on(store.write(batch).durability(level)).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");

    let doomed: Vec<_> = model.keys().step_by(4).cloned().collect();
    let mut deleted = 0;
    for key in doomed {
        let existed = block_on(store.delete(&key).durability(level));
        assert!(existed.unwrap_or_else(|error| panic!("delete {deleted} on the full disk: {error:?}")));
        model.remove(&key);
        deleted += 1;
    }
    assert_holds(&store, &model);
    drop(store);
    let store = open(builder(env, &path));
    assert_holds(&store, &model);

    fs::remove_file(&ballast).unwrap();
    for index in 0..10_u32 {
        let key = format!("after-{index}").into_bytes();
        block_on(store.put(&key, &key).durability(level))
            .unwrap_or_else(|error| panic!("put after space was freed: {error:?}"));
        model.insert(key.clone(), key);
    }
    assert_holds(&store, &model);
    close(store);
    let store = open(builder(env, &path));
    assert_holds(&store, &model);
    println!("{} {level}: {stored} values until full, {deleted} deletes on the full disk", mount.point.display());
    close(store);
}

#[test]
fn freed_space_is_used_without_a_reopen() {
    for_each_engine(|env| {
        let Some(mount) = Mount::tmpfs(&env.dir.path().join("mount"), "4m") else { return };
        let (mut model, mut rng) = (Model::new(), Rng::new(9));
        let ballast = |round: u32| mount.point.join(format!("ballast-{round}"));
        (0..5).for_each(|round| fs::write(ballast(round), vec![1; 256 << 10]).unwrap());
        let store = open(builder(env, &mount.point.join("store")));
        for round in 0..5_u32 {
            fill(&store, Durability::Synced, &mut model, &mut rng);
            fs::remove_file(ballast(round)).unwrap();
            let key = format!("round-{round}").into_bytes();
            put(&store, &key, "fits again");
            model.insert(key, b"fits again".to_vec());
            // In the next rounds, the fill overwrites the keys of the first round.
            let doomed: Vec<_> = model.keys().filter(|key| key.starts_with(b"fill")).take(3).cloned().collect();
            for key in doomed {
                assert!(block_on(store.delete(&key)).unwrap());
                model.remove(&key);
            }
            assert_holds(&store, &model);
        }
        close(store);
        assert_holds(&open(builder(env, &mount.point.join("store"))), &model);
    });
}

/// `Buffered` writes are acknowledged before the disk can refuse them. A refusal must be reported by `sync`, and may
/// lose only a suffix of them.
#[test]
fn a_full_disk_under_buffered_writes_is_reported_and_loses_only_a_suffix() {
    for_each_engine(|env| {
        let Some(mount) = Mount::tmpfs(&env.dir.path().join("mount"), "4m") else { return };
        let path = mount.point.join("store");
        let store = open(builder(env, &path).flush_interval(Duration::from_millis(1)));
        let mut rng = Rng::new(13);
        let mut durable = Model::new();
        for index in 0..20_u32 {
            let (key, value) = (format!("durable-{index}").into_bytes(), rng.bytes(1000));
            put(&store, &key, &value);
            durable.insert(key, value);
        }
        let (mut accepted, mut refusal) = (Vec::new(), None);
        while refusal.is_none() && accepted.len() < 1000 {
            let value = rng.bytes(16 << 10);
            let key = format!("buffered-{:04}", accepted.len());
            match block_on(store.put(&key, &value).durability(Durability::Buffered)) {
                Ok(_) => accepted.push((key, value)),
                Err(error) => refusal = Some(error),
            }
        }
        let refusal = block_on(store.sync()).err().or(refusal).expect("no call reported the full disk");
        assert!(matches!(refusal.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned), "{refusal:?}");
        drop(store);
        let store = open(builder(env, &path));
        for (key, value) in &durable {
            assert_eq!(get(&store, key).as_ref(), Some(value));
        }
        let found: Vec<bool> = accepted.iter().map(|(key, value)| holds(&store, key, value)).collect();
        let kept = found.iter().take_while(|there| **there).count();
        assert!(found[kept..].iter().all(|there| !there), "a lost write before a kept one: {found:?}");
        println!("{kept} of {} buffered writes fitted", accepted.len());
        assert!(kept > 50 && kept < accepted.len() + 1);
    });
}

fn holds(store: &Store, key: &str, value: &[u8]) -> bool {
    match get(store, key) {
        Some(found) => {
            assert!(found == value, "{key} holds bytes that were never written there");
            true
        }
        None => false,
    }
}

extern "C" fn on_xfsz(_: libc::c_int) {}

/// The directory of the store for `level` in the child that runs [`fill_to_the_file_size_limit`].
fn limited_path(path: &Path, level: Durability) -> PathBuf {
    path.with_extension(level.to_string())
}

fn limit_file_size(bytes: Option<u64>) {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
    let limit = rustix::process::Rlimit { current: bytes.or(maximum), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
}

/// Fills a store at each level under a file-size limit. Handles the signal unless the parent has made the child ignore
/// it.
fn fill_to_the_file_size_limit() {
    let (engine, path) = child_env();
    let seed = stages::number("RINGCASK_TEST_SEED").unwrap();
    // SAFETY: the handler does nothing, which is safe at any time.
    let before = unsafe { libc::signal(libc::SIGXFSZ, on_xfsz as *const () as libc::sighandler_t) };
    if before == libc::SIG_IGN {
        // SAFETY: `SIG_IGN` installs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
    for level in LEVELS {
        let store = open(Store::builder(limited_path(&path, level)).engine(engine).reserve_bytes(0));
        limit_file_size(Some(1 << 20));
        let (mut model, mut rng) = (Model::new(), Rng::new(seed));
        let refused = fill(&store, level, &mut model, &mut rng);
        assert!(model.len() > 30, "{} values fit into a megabyte", model.len());
        assert_holds(&store, &model);
        // All accepted writes fit under the limit, even if the file system lets the store preallocate beyond it.
        block_on(store.sync()).unwrap_or_else(|error| panic!("{level}: {error:?}"));
        limit_file_size(None);
        put(&store, "last", "fits");
        for level in LEVELS {
            block_on(store.put("level", level.to_string()).durability(level)).unwrap();
        }
        println!("{level}: {} values under the limit, {refused} refused", model.len());
        close(store);
    }
}

/// An ext4 that finds itself damaged, or whose disk fails, refuses all writes from then on.
#[test]
fn writes_to_an_ext4_that_turns_read_only_fail_and_reads_continue() {
    for_each_engine(|env| {
        let (image, point) = (env.dir.path().join("image"), env.dir.path().join("ext4"));
        let Some(mount) = Mount::ext4(&image, 32 << 20, &point) else { return };
        let path = mount.point.join("store");
        let store = open(builder(env, &path));
        let (mut model, mut rng, mut unknown) = (Model::new(), Rng::new(3), BTreeMap::new());
        for index in 0..100_u32 {
            let (key, value) = (format!("key-{index}").into_bytes(), rng.bytes(1000));
            put(&store, &key, &value);
            model.insert(key, value);
        }
        mount.remount("abort");
        for level in LEVELS.into_iter().rev() {
            let key = format!("late-{level}");
            let value = rng.bytes(1000);
            match block_on(store.put(&key, &value).durability(level)) {
                Ok(_) => assert_eq!(level, Durability::Buffered, "{level} on a read-only file system"),
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error:?}");
                    if error.outcome() == Outcome::NotApplied {
                        continue;
                    }
                }
            }
            unknown.insert(key.into_bytes(), value);
        }
        for (key, value) in &model {
            assert_eq!(get(&store, key).as_ref(), Some(value), "a read after the abort");
        }
        let sync_or_close = block_on(store.sync()).err().or(block_on(store.close()).err());
        drop(store);
        let error = open_error(builder(env, &path));
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        mount.restart(&image);
        let store = open(builder(env, &path));
        for (key, value) in &model {
            assert_eq!(get(&store, key).as_ref(), Some(value), "a read after the remount");
        }
        assert!(store.len() <= model.len() + unknown.len(), "a write that was not applied is stored");
        put_at(&store, Durability::Synced, "after", "it");
        println!("{} of 3 late writes unknown, {sync_or_close:?}", unknown.len());
        close(store);
    });
}
