//! A disk that is really full: a small tmpfs and a small ext4, filled to the last block.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ringcask::{Batch, Builder, Durability, ErrorKind, Outcome, Store};

use crate::bad_input::Mount;
use crate::support::{
    Env, LEVELS, Model, Rng, assert_holds, at, block_on, child_env, close, expect_success, for_each_engine, get,
    is_child, open, put, rerun_without_xfsz,
};

fn builder(env: &Env, path: &Path) -> Builder {
    env.builder_at(path).segment_bytes(512 << 10).reserve_bytes(64 << 10).sync_interval(Duration::from_secs(60))
}

/// Puts values at `level` until the disk refuses one; returns how many it refused of ten tries after that.
fn fill(store: &Store, level: Durability, model: &mut Model, rng: &mut Rng) -> usize {
    let mut refused = 0;
    for index in 0_u32.. {
        let (key, value) = (format!("fill-{level}-{index}").into_bytes(), rng.bytes(16 << 10));
        match block_on(store.put_with(&key, &value, at(level))) {
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
        assert!(index < 10_000, "160 MB on a disk of a few");
    }
    refused
}

#[test]
fn a_full_tmpfs_refuses_puts_and_loses_nothing() {
    for_each_engine(|env| {
        for level in [Durability::Synced, Durability::Written] {
            let Some(mount) = Mount::tmpfs(&env.dir.path().join(level.to_string()), "6m") else { return };
            survive_a_full_disk(env, &mount, level);
        }
    });
}

#[test]
fn a_full_ext4_refuses_puts_and_loses_nothing() {
    for_each_engine(|env| {
        for level in [Durability::Synced, Durability::Written] {
            let image = env.dir.path().join(format!("{level}.img"));
            let Some(mount) = Mount::ext4(&image, 16 << 20, &env.dir.path().join(level.to_string())) else { return };
            survive_a_full_disk(env, &mount, level);
        }
    });
}

fn survive_a_full_disk(env: &Env, mount: &Mount, level: Durability) {
    let path = mount.point.join("store");
    let ballast = mount.point.join("ballast");
    let (mut model, mut rng) = (Model::new(), Rng::new(5));
    let store = open(builder(env, &path));
    // Space that comes back later.
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    fill(&store, level, &mut model, &mut rng);
    let stored = model.len();
    assert!(stored > 100, "{stored} values fit");
    assert_holds(&store, &model);
    assert!(!store.stats().poisoned);

    let mut batch = Batch::new();
    batch.put("b1", rng.bytes(20 << 10)).put("b2", rng.bytes(20 << 10)).durability(level);
    let error = block_on(store.write(batch)).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");

    let doomed: Vec<_> = model.keys().step_by(4).cloned().collect();
    let mut deleted = 0;
    for key in doomed {
        let gone = block_on(store.delete_with(&key, at(level)));
        assert!(gone.unwrap_or_else(|error| panic!("delete {deleted} on the full disk: {error:?}")));
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
        block_on(store.put_with(&key, &key, at(level))).unwrap_or_else(|error| panic!("space is back: {error:?}"));
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
fn space_that_comes_back_is_used_without_a_reopening() {
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
            // The next rounds write what the first one did, over it.
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

/// `Buffered` writes were acknowledged before the disk could refuse them: the refusal must surface in `sync`, and may
/// take away nothing but a suffix of them.
#[test]
fn buffered_writes_that_meet_a_full_disk_are_reported_and_end_in_a_suffix() {
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
            match block_on(store.put_with(&key, &value, at(Durability::Buffered))) {
                Ok(_) => accepted.push((key, value)),
                Err(error) => refusal = Some(error),
            }
        }
        let refusal = block_on(store.sync()).err().or(refusal).expect("somebody is told that the disk is full");
        assert!(matches!(refusal.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned), "{refusal:?}");
        drop(store);
        let store = open(builder(env, &path));
        for (key, value) in &durable {
            assert_eq!(get(&store, key).as_ref(), Some(value));
        }
        let found: Vec<bool> = accepted.iter().map(|(key, value)| holds(&store, key, value)).collect();
        let kept = found.iter().take_while(|there| **there).count();
        assert!(found[kept..].iter().all(|there| !there), "a hole: {found:?}");
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

#[test]
fn a_file_size_limit_is_a_full_disk() {
    const NAME: &str = "full_disk::a_file_size_limit_is_a_full_disk";
    if is_child() {
        return meet_the_file_size_limit();
    }
    for_each_engine(|env| {
        expect_success(rerun_without_xfsz(NAME, env));
        // Without the limit everything that was acknowledged is there.
        let store = env.open();
        let report = store.recovery_report();
        assert!(report.damage.is_empty(), "{report:?}");
        assert!(get(&store, "last").is_some());
    });
}

fn meet_the_file_size_limit() {
    let (engine, path) = child_env();
    let store = open(Store::builder(&path).engine(engine).reserve_bytes(0));
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
    let limit = rustix::process::Rlimit { current: Some(1 << 20), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    let (mut model, mut rng) = (Model::new(), Rng::new(2));
    let refused = fill(&store, Durability::Synced, &mut model, &mut rng);
    assert_holds(&store, &model);
    let limit = rustix::process::Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    put(&store, "last", "fits");
    for level in LEVELS {
        block_on(store.put_with("level", level.to_string(), at(level))).unwrap();
    }
    println!("{} values under the limit, {refused} refused", model.len());
    close(store);
}
