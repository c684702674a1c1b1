//! The file `RESERVE`, which lets deletes succeed on a full disk: on a small ext4, a small tmpfs and a simulated quota.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use ringcask::testing::sim::{Fault, FaultKind, OpClass, Rng as SimRng, SimBackend, SimConfig};
use ringcask::{Builder, Compaction, Durability, ErrorKind, Outcome, Store};

use crate::bad_input::Mount;
use crate::helpers::{
    Env, Model, assert_holds, block_on, child_env, close, contents, eventually, files_with, for_each_engine, get,
    is_child, open, put, rerun, text_of,
};

const RESERVE_BYTES: u64 = 256 << 10;
const SEGMENT_BYTES: u64 = 16 << 10;
/// The number of keys in a store under test. Their tombstones fill several segments.
const KEYS: u32 = 1200;

/// Automatic compaction is off: it would free the space that these tests exhaust.
fn with_options(builder: Builder) -> Builder {
    let builder = builder.compaction(Compaction::new().automatic(false));
    builder.segment_bytes(SEGMENT_BYTES).reserve_bytes(RESERVE_BYTES).durability(Durability::Written)
}

fn key_of(index: u32) -> Vec<u8> {
    format!("key-{index:05}").into_bytes()
}

/// A store of `KEYS` small values.
fn stock(store: &Store) -> Model {
    let mut model = Model::new();
    for index in 0..KEYS {
        put(store, key_of(index), index.to_le_bytes());
        model.insert(key_of(index), index.to_le_bytes().to_vec());
    }
    model
}

#[track_caller]
fn delete_some(store: &Store, model: &mut Model, keys: std::ops::Range<u32>) {
    for index in keys {
        let key = key_of(index);
        let existed = block_on(store.delete(&key)).unwrap_or_else(|error| panic!("delete {index}: {error:?}"));
        assert_eq!(existed, model.remove(&key).is_some(), "delete {index}");
    }
}

#[track_caller]
fn assert_refused(store: &Store, key: &str) {
    // Longer than the space that may already be preallocated in the segment, which puts may use.
    let error = block_on(store.put(key, vec![7; 20_000])).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");
    assert!(!store.stats().poisoned);
}

/// A file that stands for another process and takes every free block.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(mount: &Mount) -> Self {
        let path = mount.point.join("ballast");
        // Blocks of a removed file may become free a moment later.
        for _ in 0..3 {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            for piece in [64 << 10, 4 << 10, 1 << 10] {
                while file.write(&vec![1; piece]).is_ok_and(|written| written > 0) {}
            }
            let _ = file.sync_all();
        }
        Self(path)
    }

    /// Frees `bytes`.
    fn shrink(&self, bytes: u64) {
        let file = fs::OpenOptions::new().write(true).open(&self.0).unwrap();
        file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
        file.sync_all().unwrap();
    }

    fn remove(self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Runs `test` on both engines, each with a small ext4 and a small tmpfs.
fn for_each_small_disk(test: impl Fn(&Env, &Mount)) {
    for_each_engine(|env| {
        if let Some(mount) = Mount::tmpfs(&env.dir.path().join("tmpfs"), "4m") {
            println!("tmpfs");
            test(env, &mount);
        }
        if let Some(mount) = Mount::ext4(&env.dir.path().join("image"), 8 << 20, &env.dir.path().join("ext4")) {
            println!("ext4");
            test(env, &mount);
        }
    });
}

#[test]
fn a_full_disk_accepts_deletes_after_an_open_and_puts_when_space_returns() {
    for_each_small_disk(|env, mount| {
        let path = mount.point.join("store");
        let builder = || with_options(env.builder_at(&path));
        let store = open(builder());
        assert_eq!(store.stats().reserve_held_bytes, RESERVE_BYTES);
        let mut model = stock(&store);
        close(store);
        let ballast = Ballast::fill(mount);
        let store = open(builder());
        assert_eq!(store.recovery_report().foreign_files, Vec::<String>::new());
        assert_refused(&store, "first");
        delete_some(&store, &mut model, 0..10);
        for round in 1..5 {
            assert_refused(&store, "between");
            delete_some(&store, &mut model, round * 10..round * 10 + 10);
        }
        let held = store.stats().reserve_held_bytes;
        assert!(held < RESERVE_BYTES && held > RESERVE_BYTES / 2, "{held} bytes are left");
        assert_holds(&store, &model);
        // The reserve takes freed space first, and 4 KiB is less than it lacks.
        ballast.shrink(4 << 10);
        assert_refused(&store, "too early");
        ballast.remove();
        put(&store, "late", "fits");
        model.insert(b"late".to_vec(), b"fits".to_vec());
        assert_eq!(store.stats().reserve_held_bytes, RESERVE_BYTES);
        assert_holds(&store, &model);
        close(store);
        let store = open(builder());
        assert_holds(&store, &model);
        close(store);
        println!("{held} of {RESERVE_BYTES} bytes held after 50 deletes");
    });
}

#[test]
fn deletes_on_a_full_disk_continue_in_the_next_segment() {
    for_each_small_disk(|env, mount| {
        let path = mount.point.join("store");
        let store = open(with_options(env.builder_at(&path)));
        let mut model = stock(&store);
        let before = store.stats().segments.len();
        for round in 0..16 {
            // The ballast takes the space that sealing a segment frees at once.
            Ballast::fill(mount);
            delete_some(&store, &mut model, round * 50..round * 50 + 50);
            assert_refused(&store, "between");
        }
        let stats = store.stats();
        assert!(stats.segments.len() >= before + 3, "{} segments before, {} after", before, stats.segments.len());
        // After a kill, all records are recovered although the disk is still full.
        drop(store);
        let store = open(with_options(env.builder_at(&path)));
        assert_holds(&store, &model);
        println!("{} segments of tombstones, {} bytes of the reserve left", stats.segments.len() - before, {
            stats.reserve_held_bytes
        });
        close(store);
    });
}

#[test]
fn deletes_beyond_the_reserve_are_refused_and_nothing_is_lost() {
    for_each_small_disk(|env, mount| {
        let path = mount.point.join("store");
        let builder = || with_options(env.builder_at(&path)).reserve_bytes(16 << 10);
        let store = open(builder());
        let mut model = stock(&store);
        let ballast = Ballast::fill(mount);
        let mut refused = 0;
        for index in 0..KEYS {
            let key = key_of(index);
            match block_on(store.delete(&key)) {
                Ok(deleted) => assert!(deleted && model.remove(&key).is_some()),
                Err(error) => {
                    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NoSpace, Outcome::NotApplied), "{error:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "16 KiB for {KEYS} tombstones");
        assert_holds(&store, &model);
        drop(store);
        ballast.shrink(512 << 10);
        let store = open(builder());
        assert_holds(&store, &model);
        let left: Vec<_> = model.keys().cloned().collect();
        for key in left {
            assert!(block_on(store.delete(&key)).unwrap());
        }
        close(store);
        println!("{refused} of {KEYS} deletes were refused");
    });
}

#[test]
fn a_store_killed_on_a_full_disk_reopens_on_the_full_disk() {
    const NAME: &str = "reserve::a_store_killed_on_a_full_disk_reopens_on_the_full_disk";
    if is_child() {
        return fill_and_be_killed();
    }
    for_each_small_disk(|env, mount| {
        // Without a reserve, recovery has only the space that the killed store had preallocated behind its log. After
        // as many deletes as possible, little of that is left, plus the part of the reserve that deletes do not use.
        for (reserve_bytes, deletes) in [(RESERVE_BYTES, false), (0, false), (RESERVE_BYTES, true)] {
            let path = mount.point.join("store");
            let mut child = rerun(NAME, env);
            child.env("RINGCASK_TEST_DIR", &path);
            if deletes {
                child.env("RINGCASK_TEST_DELETES", "1");
            }
            let output = child.output().unwrap();
            assert_eq!(output.status.signal(), Some(9), "{}", text_of(&output));
            let text = text_of(&output);
            let held = text.lines().find_map(|line| line.split_once("HELD ")).expect("the child's report").1;
            let [deleted, keys, preallocated] =
                held.split(' ').map(|word| word.parse::<u32>().unwrap()).collect::<Vec<_>>()[..]
            else {
                panic!("{held}");
            };
            let mut model: Model = (deleted..keys).map(|index| (key_of(index), vec![3; 500])).collect();
            assert!(preallocated > 0 || deletes, "no space is preallocated behind the log");
            assert_eq!(deleted > 0, deletes);
            let store = open(with_options(env.builder_at(&path)).segment_bytes(512 << 10).reserve_bytes(reserve_bytes));
            assert_holds(&store, &model);
            if reserve_bytes > 0 && !deletes {
                delete_some(&store, &mut model, 0..100);
                assert_holds(&store, &model);
            }
            close(store);
            println!(
                "{keys} keys minus {deleted} after the kill, {preallocated} blocks were preallocated behind the log"
            );
            fs::remove_dir_all(&path).unwrap();
            fs::remove_file(mount.point.join("ballast")).unwrap();
        }
    });
}

fn fill_and_be_killed() {
    let (engine, path) = child_env();
    let store = open(with_options(Store::builder(&path).engine(engine)).segment_bytes(512 << 10));
    let mut count = 0;
    while count < 20_000 && block_on(store.put(key_of(count), [3; 500])).is_ok() {
        count += 1;
    }
    let mount = std::mem::ManuallyDrop::new(Mount { point: path.parent().unwrap().to_path_buf() });
    Ballast::fill(&mount);
    let mut deleted = 0;
    if std::env::var_os("RINGCASK_TEST_DELETES").is_some() {
        while block_on(store.delete(key_of(deleted))).is_ok() {
            deleted += 1;
        }
    }
    let active = files_with(&path, "seg").pop().unwrap();
    let metadata = fs::metadata(&active).unwrap();
    let preallocated = metadata.blocks().saturating_sub(metadata.len().div_ceil(4096) * 8);
    println!("\nHELD {deleted} {count} {preallocated}");
    std::io::stdout().flush().unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

#[test]
fn the_reserve_is_created_when_a_disk_that_was_full_at_open_has_space() {
    for_each_small_disk(|env, mount| {
        let path = mount.point.join("store");
        let builder = || with_options(env.builder_at(&path));
        let store = open(builder().reserve_bytes(0));
        put(&store, "k", "v");
        close(store);
        let ballast = Ballast::fill(mount);
        let store = open(builder());
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
        assert_eq!(store.stats().reserve_held_bytes, 0);
        assert_refused(&store, "refused");
        ballast.remove();
        put(&store, "k", "again");
        assert_eq!(store.stats().reserve_held_bytes, RESERVE_BYTES);
        close(store);
    });
}

fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn the_reserve_is_an_empty_private_file_that_is_removed_when_disabled() {
    for_each_engine(|env| {
        let reserve = env.path().join("RESERVE");
        for _ in 0..2 {
            let store = open(with_options(env.builder()));
            put(&store, "k", "v");
            assert_eq!(store.recovery_report().foreign_files, Vec::<String>::new());
            let metadata = fs::metadata(&reserve).unwrap();
            assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (0, 0o600));
            // On a file system without `fallocate`, the reserve holds nothing.
            assert_eq!(allocated_bytes(&reserve), store.stats().reserve_held_bytes);
            close(store);
        }
        let store = open(with_options(env.builder()).reserve_bytes(0));
        assert_eq!((reserve.exists(), store.stats().reserve_held_bytes), (false, 0));
        put(&store, "k", "v");
        close(store);
        assert!(!reserve.exists());
    });
}

#[test]
fn a_foreign_file_named_like_the_reserve_is_reported_and_left_alone() {
    for_each_engine(|env| {
        let outside = env.dir.path().join("outside");
        fs::write(&outside, "").unwrap();
        let reserve = env.path().join("RESERVE");
        let makers: [(&str, &dyn Fn()); 4] = [
            ("a link", &|| symlink(&outside, &reserve).unwrap()),
            ("a pipe", &|| rustix::fs::mkfifoat(rustix::fs::CWD, &reserve, 0o600.into()).unwrap()),
            ("a directory", &|| fs::create_dir(&reserve).unwrap()),
            ("a file with content", &|| fs::write(&reserve, "my notes").unwrap()),
        ];
        for (what, make) in makers {
            close(open(with_options(env.builder()).reserve_bytes(0)));
            assert!(!reserve.exists());
            make();
            let before = fs::symlink_metadata(&reserve).unwrap();
            for reserve_bytes in [RESERVE_BYTES, 0] {
                let store = open(with_options(env.builder()).reserve_bytes(reserve_bytes));
                assert_eq!(store.recovery_report().foreign_files, ["RESERVE"], "{what}");
                put(&store, "k", what);
                assert!(block_on(store.delete("k")).unwrap());
                assert_eq!(store.stats().reserve_held_bytes, 0, "{what}");
                close(store);
            }
            let after = fs::symlink_metadata(&reserve).unwrap();
            assert_eq!(
                (after.ino(), after.file_type(), after.len(), after.blocks()),
                (before.ino(), before.file_type(), before.len(), before.blocks()),
                "{what}"
            );
            assert_eq!(allocated_bytes(&outside), 0, "the link was followed");
            match after.is_dir() {
                true => fs::remove_dir(&reserve).unwrap(),
                false => fs::remove_file(&reserve).unwrap(),
            }
        }
        assert!(!contents(&env.path()).contains_key("RESERVE"));
    });
}

// ---- compaction ---------------------------------------------------------------------------------------------------

#[test]
fn compaction_on_the_reserve_frees_a_full_disk_for_puts() {
    for_each_small_disk(|env, mount| {
        for automatic in [false, true] {
            let path = mount.point.join("store");
            let store = open(with_options(env.builder_at(&path)));
            let mut model = Model::new();
            // About a quarter of every segment stays live.
            for round in 0..4_u32 {
                for index in (0..KEYS).filter(|index| round == 0 || index % 4 != 0) {
                    put(&store, key_of(index), [round as u8; 60]);
                    model.insert(key_of(index), vec![round as u8; 60]);
                }
            }
            let ballast = Ballast::fill(mount);
            assert_refused(&store, "before");
            assert_holds(&store, &model);
            let before = store.stats();
            if automatic {
                close(store);
                let builder = with_options(env.builder_at(&path)).compaction(Compaction::new().bytes_per_second(None));
                let store = open(builder);
                eventually("puts work again", || block_on(store.put("after", vec![7; 20_000])).is_ok());
                model.insert(b"after".to_vec(), vec![7; 20_000]);
                assert_holds(&store, &model);
                assert!(store.stats().disk_bytes < before.disk_bytes);
                close(store);
            } else {
                let report = block_on(store.compact()).unwrap();
                assert!(report.bytes_freed > 0 && store.stats().disk_bytes < before.disk_bytes / 2, "{report:?}");
                assert_holds(&store, &model);
                put(&store, "after", vec![7; 20_000]);
                close(store);
            }
            println!("automatic {automatic}: compacted {} bytes on a full disk", before.disk_bytes);
            ballast.remove();
            fs::remove_dir_all(&path).unwrap();
        }
    });
}

#[test]
fn a_compaction_without_space_keeps_its_inputs_and_can_be_retried() {
    let backend = backend(3);
    let store = backend.run_until(simulated(&backend).reserve_bytes(0).open()).unwrap();
    let mut model = Model::new();
    backend.run_until(async {
        for round in 0..4_u8 {
            for index in (0..60).filter(|index| round == 0 || index % 3 != 0) {
                store.put(key_of(index), [round; 40]).await.unwrap();
                model.insert(key_of(index), vec![round; 40]);
            }
        }
        let before = store.stats();
        backend.set_capacity(Some(backend.used_bytes()));
        let sealed = before.segments.iter().filter(|it| it.sealed && it.live_bytes > 0).map(|it| it.id);
        let refused = store.compact().segments(sealed).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused:?}");
        assert_eq!(store.stats().segments, before.segments, "the failed compaction changed the segments");
        for (key, value) in &model {
            assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&value[..]));
        }
        backend.set_capacity(None);
        store.compact().await.unwrap();
        assert!(store.stats().disk_bytes < before.disk_bytes && store.stats().compaction_error.is_none());
        for (key, value) in &model {
            assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&value[..]));
        }
        store.close().await.unwrap();
    });
    drop(store);
    backend.shutdown();
}

// ---- on a simulated disk --------------------------------------------------------------------------------------------

fn backend(seed: u64) -> SimBackend {
    SimBackend::new(SimConfig { seed, short_percent: 10, interrupt_percent: 10, ..SimConfig::default() })
}

fn simulated(backend: &SimBackend) -> Builder {
    with_options(Store::builder("/db").backend(Arc::new(backend.clone())))
        .segment_bytes(2048)
        .reserve_bytes(8192)
        .sync_interval(Duration::from_secs(60))
}

/// Kills and power cuts of a store that uses its reserve. Every crash image opens on the full disk, holds the
/// acknowledged records, and accepts deletes.
#[test]
fn a_store_on_its_reserve_survives_crashes() {
    let (mut images, mut refused) = (0, 0);
    for seed in 0..40 {
        let backend = backend(seed);
        let describe = |error: ringcask::Error| format!("seed {seed}: {error:?}");
        let key = |index: u32| format!("k{index}");
        let store = backend.run_until(async {
            let store = simulated(&backend).open().await.map_err(describe)?;
            for index in 0..60 {
                store.put(key(index), [1; 40]).await.map_err(describe)?;
            }
            store.close().await.map_err(describe)?;
            backend.set_capacity(Some(backend.used_bytes()));
            let store = simulated(&backend).open().await.map_err(describe)?;
            for index in 0..40 {
                assert!(
                    store.delete(key(index)).durability(Durability::Synced).await.map_err(describe)?,
                    "seed {seed}"
                );
                if index % 5 == 0 {
                    let error = store.put("new", [2; 10]).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "seed {seed}: {error:?}");
                    refused += 1;
                }
            }
            Ok::<_, String>(store)
        });
        let store = store.unwrap();
        assert!(store.stats().reserve_held_bytes < 8192);
        let mut rng = SimRng::new(seed);
        let mut left = backend.crash_images(6, &mut rng);
        left.push(backend.kill_image(&mut rng));
        backend.shutdown();
        drop(store);
        for image in left {
            images += 1;
            let backend = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
            backend.set_capacity(Some(backend.used_bytes() + 8192));
            let after = backend.run_until(async {
                let store = simulated(&backend).open().await.map_err(describe)?;
                for index in 0..60 {
                    assert_eq!(
                        store.get(key(index)).await.map_err(describe)?.is_some(),
                        index >= 40,
                        "seed {seed}: {index}"
                    );
                }
                backend.set_capacity(Some(backend.used_bytes()));
                for index in 40..60 {
                    assert!(store.delete(key(index)).await.map_err(describe)?, "seed {seed}: {index}");
                }
                backend.set_capacity(None);
                store.put("new", "fits").await.map_err(describe)?;
                assert_eq!(store.stats().reserve_held_bytes, 8192, "seed {seed}");
                store.close().await.map_err(describe)
            });
            after.unwrap();
            assert_eq!(backend.panics(), Vec::<String>::new());
            backend.shutdown();
        }
    }
    println!("{images} crash images of a store on its reserve, {refused} puts refused before");
}

/// A delete waits while the commit task looks for space for a put, and the other way round. Only the put is
/// refused.
#[test]
fn a_put_is_refused_and_a_concurrent_delete_succeeds_without_space() {
    for seed in 0..30 {
        let backend = backend(seed);
        backend.run_until(async {
            let store = simulated(&backend).open().await.unwrap();
            for index in 0..20_u32 {
                store.put(index.to_le_bytes(), [1; 40]).await.unwrap();
            }
            store.close().await.unwrap();
            backend.set_capacity(Some(backend.used_bytes()));
            let store = simulated(&backend).open().await.unwrap();
            for index in 0..20_u32 {
                let (put, delete) = (store.put("new", [2; 3000]), store.delete(index.to_le_bytes()));
                let (put, deleted) = match index % 2 {
                    0 => join(put, delete).await,
                    _ => {
                        let (deleted, put) = join(delete, put).await;
                        (put, deleted)
                    }
                };
                assert_eq!(put.unwrap_err().kind(), ErrorKind::NoSpace, "seed {seed}");
                assert!(deleted.unwrap_or_else(|error| panic!("seed {seed}, delete {index}: {error:?}")));
            }
            assert!(store.stats().segments.len() < 10, "refused puts started segments: {:?}", store.stats().segments);
            store.close().await.unwrap();
        });
        assert_eq!(backend.panics(), Vec::<String>::new());
        backend.shutdown();
    }
}

/// Regression: a rename to MANIFEST failed because the directory had no room, and the store was poisoned. The old
/// MANIFEST is still in place, so the store continues.
#[test]
fn a_rename_that_fails_for_lack_of_space_changes_nothing() {
    for (kind, poisons) in [(FaultKind::ENOSPC, false), (FaultKind::EDQUOT, false), (FaultKind::EIO, true)] {
        let backend = SimBackend::new(SimConfig::default());
        let builder = || Store::builder("/sim").backend(Arc::new(backend.clone())).reserve_bytes(0);
        let left = backend.run_until(async {
            let store = builder().open().await.unwrap();
            backend.inject(Fault::once(OpClass::Rename, backend.op_count(OpClass::Rename), kind));
            // The first write starts a segment, which the MANIFEST must list.
            let error = store.put("refused", "v").await.unwrap_err();
            assert_eq!(backend.fault_count(), 1, "{kind:?}: {error:?}");
            let expected = if poisons { ErrorKind::Poisoned } else { ErrorKind::NoSpace };
            assert_eq!((error.kind(), error.outcome()), (expected, Outcome::NotApplied), "{kind:?}: {error:?}");
            assert_eq!(store.stats().poisoned, poisons, "{kind:?}");
            if !poisons {
                store.put("fits", "v").await.unwrap();
                store.close().await.unwrap();
            }
            drop(store);
            backend.image()
        });
        backend.shutdown();
        assert!(!left.names().any(|name| name.ends_with(".tmp")) || poisons, "{:?}", left.names().collect::<Vec<_>>());
        let backend = SimBackend::from_image(left, SimConfig::default());
        let builder = Store::builder("/sim").backend(Arc::new(backend.clone()));
        backend.run_until(async {
            let store = builder.open().await.unwrap();
            assert_eq!((store.contains_key("refused"), store.contains_key("fits")), (false, !poisons), "{kind:?}");
            store.close().await.unwrap();
        });
        backend.shutdown();
    }
}
