//! Directories written by earlier versions must open forever. `tests/fixtures/<version>` is never regenerated after
//! that version is released; a version that changes what it writes adds a fixture.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringcask::testing::sim::{Image, Rng as Draws, SimBackend, SimConfig};
use ringcask::{Batch, Compaction, Durability, Store};

use crate::helpers::{Env, Model, assert_holds, block_on, close, copy_store, files_with, for_each_engine, open, put};

fn fixture(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version)
}

/// The contents of `v1`.
fn model_of_v1() -> Model {
    let mut model = Model::from([
        (b"overwritten".to_vec(), b"second".to_vec()),
        (b"overwritten across segments".to_vec(), b"in the tail".to_vec()),
        (b"empty value".to_vec(), Vec::new()),
        (b"batch a".to_vec(), b"one".to_vec()),
        (b"batch b".to_vec(), b"two".to_vec()),
        (b"large".to_vec(), vec![0xA5; 2000]),
        (b"tail batch".to_vec(), b"three".to_vec()),
        (b"tail written".to_vec(), b"not synced by itself".to_vec()),
    ]);
    model.insert(vec![0, 255, 10], b"a key of no text".to_vec());
    model
}

/// The `v1` fixture, as 0.1.0 writes it. A kill leaves segment 1 sealed with a hint file, and segment 2 unsealed.
fn write_v1() -> Image {
    let backend = SimBackend::new(SimConfig { seed: 1, ..SimConfig::default() });
    let image = backend.run_until(async {
        let builder = Store::builder("/sim").backend(Arc::new(backend.clone())).segment_bytes(4096);
        let store = builder.compaction(Compaction::new().automatic(false)).open().await.unwrap();
        let put = async |key: &[u8], value: &[u8]| store.put(key, value).await.map(drop).unwrap();
        put(b"overwritten", b"first").await;
        put(b"overwritten across segments", b"in segment 1").await;
        put(b"empty value", b"").await;
        put(&[0, 255, 10], b"a key of no text").await;
        put(b"deleted", b"gone").await;
        put(b"deleted across segments", b"gone").await;
        let mut batch = Batch::new();
        batch.put("batch a", "one").put("batch b", "two").delete("deleted");
        store.write(batch).await.unwrap();
        put(b"overwritten", b"second").await;
        put(b"large", &[0xA5; 2000]).await;
        // This put starts segment 2.
        put(b"dead", &[0x5A; 1000]).await;
        assert!(store.delete("dead").await.unwrap());
        put(b"overwritten across segments", b"in the tail").await;
        assert!(store.delete("deleted across segments").await.unwrap());
        let mut batch = Batch::new();
        batch.put("tail batch", "three").delete("no such key");
        store.write(batch).await.unwrap();
        store.put("tail written", "not synced by itself").durability(Durability::Written).await.unwrap();
        // Maintenance writes the hint file of segment 1 in the background.
        while store.stats().hint_bytes == 0 {
            store.get("large").await.unwrap();
        }
        backend.kill_image(&mut Draws::new(1))
    });
    backend.shutdown();
    image
}

fn write_image(image: &Image, path: &Path) {
    fs::create_dir_all(path).unwrap();
    for name in image.names() {
        fs::write(path.join(name), image.bytes(name).unwrap()).unwrap();
    }
}

/// Checks that this version still writes what the fixture holds. With `RINGCASK_WRITE_FIXTURE` set, the fixture is
/// rewritten; that is allowed only before the version is released.
#[test]
fn this_version_writes_the_contents_of_the_fixture() {
    let image = write_v1();
    if std::env::var_os("RINGCASK_WRITE_FIXTURE").is_some() {
        let _ = fs::remove_dir_all(fixture("v1"));
        write_image(&image, &fixture("v1"));
    }
    for_each_engine(|env| {
        write_image(&image, &env.path());
        check_v1(env);
    });
}

#[test]
fn a_v1_directory_opens_and_accepts_writes() {
    for_each_engine(|env| {
        copy_store(&fixture("v1"), &env.path());
        check_v1(env);
    });
}

fn check_v1(env: &Env) {
    assert_eq!((files_with(&env.path(), "seg").len(), files_with(&env.path(), "hint").len()), (2, 1));
    let mut model = model_of_v1();
    let store = open(env.builder());
    let report = store.recovery_report();
    assert_eq!((report.segments, report.hints_loaded, report.segments_scanned), (2, 1, 1), "{report:?}");
    assert_eq!((report.truncated_bytes, report.damage.len(), report.foreign_files.len()), (0, 0, 0), "{report:?}");
    assert_holds(&store, &model);
    for gone in ["deleted", "deleted across segments", "dead", "no such key"] {
        assert!(!store.contains_key(gone), "{gone}");
    }
    let report = block_on(store.compact()).unwrap();
    assert!(report.segments_read >= 2 && report.bytes_freed > 1000, "{report:?}");
    assert_holds(&store, &model);
    put(&store, "a later version", "writes on");
    model.insert(b"a later version".to_vec(), b"writes on".to_vec());
    close(store);
    let store = open(env.builder());
    assert_holds(&store, &model);
    close(store);
}

/// Without hint files, the segments hold all information.
#[test]
fn a_v1_directory_opens_without_its_hint_files() {
    for_each_engine(|env| {
        copy_store(&fixture("v1"), &env.path());
        files_with(&env.path(), "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap());
        let store = open(env.builder());
        assert_eq!(store.recovery_report().segments_scanned, 2);
        assert_holds(&store, &model_of_v1());
        close(store);
    });
}
