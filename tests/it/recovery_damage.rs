//! Damage that no crash explains is found and reported with its position, and costs only the records that it touches.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringcask::testing::format::{Manifest, RecordKind};
use ringcask::testing::sim::{Image, Rng as Draws, SimBackend, SimConfig};
use ringcask::{ErrorKind, Recovery, Store};

use crate::bad_input::open_error;
use crate::helpers::gated_io::{GatedIo, Kind};
use crate::helpers::{
    Env, Model, Rng, assert_holds, block_on, close, contents, copy_store, files_with, for_each_engine, get, open, put,
};
use crate::recovery::records;

/// A closed store of several sealed segments: its directory, segment files and contents.
fn sealed(env: &Env) -> (PathBuf, Vec<PathBuf>, Model) {
    let pristine = env.dir.path().join("pristine");
    let store = open(env.builder_at(&pristine).segment_bytes(2 << 10));
    let (mut model, mut rng) = (Model::new(), Rng::new(8));
    for index in 0..24_u32 {
        let (key, value) = (format!("key-{}", index % 20).into_bytes(), rng.bytes(100));
        put(&store, &key, &value);
        model.insert(key, value);
    }
    close(store);
    let segments = files_with(&pristine, "seg");
    assert!(segments.len() >= 3, "{segments:?}");
    (pristine, segments, model)
}

fn fresh_copy(env: &Env, pristine: &Path) -> PathBuf {
    let path = env.path();
    let _ = fs::remove_dir_all(&path);
    copy_store(pristine, &path);
    path
}

fn flip(path: &Path, at: u64, bit: u32) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

fn id_of(path: &Path) -> u64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// Checks that each key returns the right value or an error that names the damaged segment. Returns the number of
/// errors.
#[track_caller]
fn assert_right_or_refused(store: &Store, model: &Model, segment: u64) -> usize {
    assert_eq!(store.len(), model.len(), "number of keys");
    let mut refused = 0;
    for (key, value) in model {
        match block_on(store.get(key)) {
            Ok(found) => assert!(found.as_deref() == Some(&value[..]), "{}", String::from_utf8_lossy(key)),
            Err(error) => {
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(segment)), "{error:?}");
                assert!(error.offset().is_some(), "{error:?}");
                refused += 1;
            }
        }
    }
    refused
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_never_read_as_data() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        let mut rng = Rng::seeded("sealed bit flips");
        let (mut at_open, mut at_get, mut harmless) = (0, 0, 0);
        for segment in &segments {
            let len = fs::metadata(segment).unwrap().len();
            let mut place = rng.below(8);
            while place < len {
                let path = fresh_copy(env, &pristine);
                flip(&path.join(segment.file_name().unwrap()), place, rng.below(8) as u32);
                match block_on(env.builder().open()) {
                    Ok(store) => match assert_right_or_refused(&store, &model, id_of(segment)) {
                        0 => harmless += 1,
                        1 => at_get += 1,
                        more => panic!("one bit at {place} cost {more} keys"),
                    },
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                        assert_eq!(error.segment(), Some(id_of(segment)), "{error:?}");
                        at_open += 1;
                    }
                }
                place += 1 + rng.below(24);
            }
        }
        println!("{at_open} found at open, {at_get} at get, {harmless} outside values");
        assert!(at_open + at_get + harmless > 150 && at_get > 50 && at_open > 10);
    });
}

#[test]
fn salvage_without_hint_files_keeps_the_undamaged_records_of_a_sealed_segment() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        let mut rng = Rng::seeded("salvage");
        let mut salvaged = 0;
        for segment in &segments {
            let name = segment.file_name().unwrap();
            for record in records(segment) {
                let path = fresh_copy(env, &pristine);
                let place = record.offset + rng.below(record.end - record.offset);
                flip(&path.join(name), place, rng.below(8) as u32);
                files_with(&path, "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap());
                let before = contents(&path);
                let error = match block_on(env.builder().open()) {
                    Err(error) => error,
                    // Without its footer, the newest segment looks like one whose seal a crash interrupted. Nothing is
                    // lost.
                    Ok(store) if record.kind == RecordKind::Footer && Some(segment) == segments.last() => {
                        assert_holds(&store, &model);
                        continue;
                    }
                    Ok(_) => panic!("{segment:?}: damage at {place} in {record:?} went unnoticed"),
                };
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(id_of(segment))), "{error:?}");
                let offset = error.offset().expect("the offset of the damage");
                assert!((record.offset..=record.end).contains(&offset), "{place} in {record:?}: {error:?}");
                assert!(contents(&path) == before, "a refused open changed the directory");

                let store = open(env.builder().recovery(Recovery::Salvage));
                let damage = &store.recovery_report().damage;
                let named = damage.iter().any(|damage| damage.segment == id_of(segment) && damage.offset <= place);
                assert!(named, "{place}: {damage:?}");
                let lost = model.iter().filter(|(key, value)| get(&store, key).as_ref() != Some(value)).count();
                assert!(lost <= 1, "one bit in {record:?} cost {lost} keys");
                for key in model.keys() {
                    assert!(get(&store, key).is_none_or(|value| value.len() == 100));
                }
                put(&store, "after", "salvage");
                close(store);
                let again = open(env.builder().recovery(Recovery::Salvage));
                assert_eq!(get(&again, "after").as_deref(), Some(&b"salvage"[..]));
                salvaged += 1;
            }
        }
        println!("{salvaged} salvages");
        assert!(salvaged > 25);
    });
}

/// One unsealed segment, synced after every put, so that its watermarks cover nearly all of it.
#[test]
fn damage_below_the_watermark_is_corrupt_and_above_it_a_torn_tail() {
    for_each_engine(|env| {
        let pristine = env.dir.path().join("pristine");
        let store = open(env.builder().sync_interval(Duration::from_secs(60)));
        let (mut model, mut rng) = (Model::new(), Rng::seeded("watermark"));
        let mut states = vec![(0, model.clone())];
        for index in 0..12_u32 {
            let value = rng.bytes(40);
            put(&store, index.to_le_bytes(), &value);
            model.insert(index.to_le_bytes().to_vec(), value);
            states.push((records(&files_with(&env.path(), "seg")[0]).last().unwrap().end, model.clone()));
        }
        copy_store(&env.path(), &pristine);
        close(store);
        let segment = files_with(&pristine, "seg").remove(0);
        let found = records(&segment);
        let (mut corrupt, mut torn) = (0, 0);
        for record in &found {
            let others = found.iter().filter(|other| other.offset != record.offset);
            let watermark = others.map(|other| other.durable_offset).max().unwrap();
            for _ in 0..6 {
                let path = fresh_copy(env, &pristine);
                let place = record.offset + rng.below(record.end - record.offset);
                flip(&path.join(segment.file_name().unwrap()), place, rng.below(8) as u32);
                let opened = block_on(env.builder().open());
                if record.offset < watermark {
                    let error = opened.map(drop).expect_err("acknowledged data is damaged");
                    assert_eq!(
                        (error.kind(), error.segment()),
                        (ErrorKind::Corrupt, Some(id_of(&segment))),
                        "{error:?}"
                    );
                    let offset = error.offset().expect("the offset of the damage");
                    assert!((record.offset..=place).contains(&offset), "{place} in {record:?}: {error:?}");
                    corrupt += 1;
                } else {
                    let store = opened.unwrap_or_else(|error| panic!("{record:?}: {error:?}"));
                    let kept = states.iter().rev().find(|(end, _)| *end <= record.offset).unwrap();
                    assert_holds(&store, &kept.1);
                    torn += 1;
                }
            }
        }
        println!("{corrupt} corrupt, {torn} torn");
        assert!(corrupt > 50 && torn > 0);
    });
}

#[test]
fn salvage_of_a_damaged_active_segment_keeps_every_other_record() {
    for_each_engine(|env| {
        let pristine = env.dir.path().join("pristine");
        let store = env.open();
        let mut model = Model::new();
        for index in 0..20_u32 {
            put(&store, index.to_le_bytes(), [index as u8; 64]);
            model.insert(index.to_le_bytes().to_vec(), vec![index as u8; 64]);
        }
        copy_store(&env.path(), &pristine);
        close(store);
        let segment = files_with(&pristine, "seg").remove(0);
        let puts: Vec<_> = records(&segment).into_iter().filter(|record| record.kind == RecordKind::Put).collect();
        for (index, record) in puts.iter().enumerate().take(18) {
            let path = fresh_copy(env, &pristine);
            // Damage the header, which holds the lengths, and the value in turn.
            let place = if index % 2 == 0 { record.offset + 12 } else { record.end - 20 };
            flip(&path.join(segment.file_name().unwrap()), place, 3);
            assert_eq!(open_error(env.builder()).kind(), ErrorKind::Corrupt);
            let store = open(env.builder().recovery(Recovery::Salvage));
            let mut expected = model.clone();
            expected.remove(&(index as u32).to_le_bytes()[..]);
            assert_holds(&store, &expected);
            assert_eq!(store.recovery_report().damage.len(), 1, "{:?}", store.recovery_report().damage);
            close(store);
        }
    });
}

#[test]
fn a_damaged_segment_header_is_corrupt_and_not_a_foreign_file() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        for segment in &segments {
            for place in (0..512).step_by(31) {
                let path = fresh_copy(env, &pristine);
                flip(&path.join(segment.file_name().unwrap()), place, 1);
                files_with(&path, "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap());
                let error = open_error(env.builder());
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(id_of(segment))), "{error:?}");
            }
            for bytes in [&b""[..], &[0; 512], &[0; 100_000], b"hello"] {
                let path = fresh_copy(env, &pristine);
                fs::write(path.join(segment.file_name().unwrap()), bytes).unwrap();
                let error = open_error(env.builder());
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(id_of(segment))), "{error:?}");
                let store = open(env.builder().recovery(Recovery::Salvage));
                assert!(!store.recovery_report().damage.is_empty());
                for (key, value) in &model {
                    assert!(get(&store, key).is_none_or(|found| found.len() == value.len()));
                }
            }
        }
    });
}

#[test]
fn a_sealed_segment_cut_anywhere_is_corrupt() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        let (mut cuts, mut whole) = (0, 0);
        for segment in &segments {
            let bytes = fs::read(segment).unwrap();
            for cut in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
                let path = fresh_copy(env, &pristine);
                fs::write(path.join(segment.file_name().unwrap()), &bytes[..cut]).unwrap();
                match block_on(env.builder().open()) {
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {cut}: {error:?}"),
                    // A cut in the newest segment's footer is what a crash during the seal leaves. Nothing is lost.
                    Ok(store) => {
                        let lost = model.iter().filter(|(key, value)| get(&store, key).as_ref() != Some(value));
                        assert_eq!(lost.count(), 0, "{segment:?} cut at {cut} of {} bytes: silent loss", bytes.len());
                        whole += 1;
                    }
                }
                cuts += 1;
            }
        }
        println!("{cuts} cuts, {whole} of them without loss");
        assert!(cuts > 50);
    });
}

#[test]
fn a_missing_segment_is_corrupt_and_salvage_lists_it() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        for segment in &segments {
            for with_hint in [true, false] {
                let path = fresh_copy(env, &pristine);
                fs::remove_file(path.join(segment.file_name().unwrap())).unwrap();
                if !with_hint {
                    files_with(&path, "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap());
                }
                let error = open_error(env.builder());
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(id_of(segment))), "{error:?}");
                let store = open(env.builder().recovery(Recovery::Salvage));
                let damage = &store.recovery_report().damage;
                assert!(damage.iter().any(|damage| damage.segment == id_of(segment)), "{damage:?}");
                let kept = model.iter().filter(|(key, value)| get(&store, key).as_ref() == Some(value)).count();
                assert!(kept < model.len() && kept > model.len() / 3, "{kept} of {} kept", model.len());
            }
        }
    });
}

#[test]
fn a_missing_or_damaged_manifest_is_never_an_empty_store() {
    for_each_engine(|env| {
        let (pristine, _, model) = sealed(env);
        let whole = fs::read(pristine.join("MANIFEST")).unwrap();
        let mut cases: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::from([("missing".into(), None)]);
        for cut in (0..whole.len()).step_by(7) {
            cases.insert(format!("cut at {cut}"), Some(whole[..cut].to_vec()));
            let mut bytes = whole.clone();
            bytes[cut] ^= 0x10;
            cases.insert(format!("flipped at {cut}"), Some(bytes));
        }
        let (mut refused, mut rebuilt) = (0, 0);
        for (what, manifest) in cases {
            for recovery in [Recovery::Strict, Recovery::Salvage] {
                let path = fresh_copy(env, &pristine);
                match &manifest {
                    Some(bytes) => fs::write(path.join("MANIFEST"), bytes).unwrap(),
                    None => fs::remove_file(path.join("MANIFEST")).unwrap(),
                }
                let before = contents(&path);
                match block_on(env.builder().recovery(recovery).open()) {
                    Ok(store) => {
                        assert_holds(&store, &model);
                        rebuilt += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}");
                        assert!(contents(&path) == before, "{what}: a refused open changed the directory");
                        refused += 1;
                    }
                }
            }
        }
        println!("{refused} refused, {rebuilt} rebuilt");
        assert!(refused + rebuilt > 20);
    });
}

/// The n-th read fails, for every n. A read error is not the end of a log and no reason to change files.
#[test]
fn a_read_error_fails_the_open_and_changes_nothing() {
    for_each_engine(|env| {
        let (pristine, _, mut model) = sealed(env);
        let active = env.dir.path().join("active");
        let store = open(env.builder_at(&pristine).segment_bytes(1 << 20));
        for index in 0..10_u32 {
            put(&store, index.to_le_bytes(), [7; 100]);
            model.insert(index.to_le_bytes().to_vec(), vec![7; 100]);
        }
        copy_store(&pristine, &active);
        close(store);
        let (mut failed, mut spared) = (0, 0);
        for errno in [libc::EIO, libc::ENOMEM] {
            for with_hints in [true, false] {
                spared = 0;
                loop {
                    let path = fresh_copy(env, &active);
                    if !with_hints {
                        files_with(&path, "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap());
                    }
                    let before = contents(&path);
                    let (backend, gate) = GatedIo::around(env.engine);
                    gate.fail_after(Kind::Read, spared, errno);
                    spared += 1;
                    match block_on(env.builder().backend(backend).open()) {
                        Err(error) => {
                            assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(errno)), "{error:?}");
                            assert!(
                                contents(&path) == before,
                                "read {spared} failed, and the open changed the directory"
                            );
                            failed += 1;
                            assert_holds(&env.open(), &model);
                        }
                        Ok(store) => {
                            gate.fail(Kind::Read, None);
                            assert_holds(&store, &model);
                            if gate.asked(Kind::Read) < spared {
                                break;
                            }
                        }
                    }
                }
            }
        }
        println!("{failed} opens failed; with {spared} reads spared, the last one succeeded");
        assert!(failed > 20);
    });
}

/// Sets fields of the 40-byte prelude that starts every file of the store, and recomputes the checksums.
fn patch_prelude(path: &Path, at: usize, value: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let (name, end) = (path.file_name().unwrap().to_str().unwrap(), bytes.len());
    let header_len = match path.extension().and_then(|extension| extension.to_str()) {
        Some("seg") => ringcask::testing::format::SEGMENT_HEADER_LEN,
        Some("hint") => ringcask::testing::format::HINT_HEADER_LEN,
        _ => ringcask::testing::format::MANIFEST_HEADER_LEN,
    };
    bytes[at..at + value.len()].copy_from_slice(value);
    let crc = crc32fast::hash(&bytes[..header_len - 4]);
    bytes[header_len - 4..header_len].copy_from_slice(&crc.to_le_bytes());
    if name == "MANIFEST" {
        let crc = crc32fast::hash(&bytes[header_len - 4..end - 4]);
        bytes[end - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

/// Offsets of prelude fields, each with a value that a newer version would write.
fn newer_formats() -> [(usize, Vec<u8>); 3] {
    let major = (ringcask::testing::format::FORMAT_MAJOR + 1).to_le_bytes().to_vec();
    let feature = (1_u32 << 31).to_le_bytes().to_vec();
    [(8, major), (16, feature.clone()), (20, feature)]
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_modified() {
    for_each_engine(|env| {
        let (pristine, segments, _) = sealed(env);
        let manifest = PathBuf::from("MANIFEST");
        for (at, value) in newer_formats() {
            for (target, has_manifest) in
                [(&manifest, true)].into_iter().chain(segments.iter().flat_map(|path| [(path, true), (path, false)]))
            {
                let path = fresh_copy(env, &pristine);
                let target = path.join(target.file_name().unwrap());
                patch_prelude(&target, at, &value);
                fs::write(path.join("MANIFEST.tmp"), "a leftover").unwrap();
                let mut refusing = vec![Recovery::Strict, Recovery::Salvage];
                if !has_manifest {
                    // Only salvage rebuilds the MANIFEST. It must check the segments before it writes.
                    fs::remove_file(path.join("MANIFEST")).unwrap();
                    refusing = vec![Recovery::Salvage];
                }
                let before = contents(&path);
                for recovery in refusing {
                    let error = open_error(env.builder().recovery(recovery));
                    assert_eq!(error.kind(), ErrorKind::IncompatibleFormat, "{at}, {target:?}: {error:?}");
                    assert!(error.path().is_some() || error.segment().is_some(), "{error:?}");
                    assert!(error.to_string().contains("this build"), "no format of this build in: {error}");
                    assert!(contents(&path) == before, "{target:?} under {recovery}: the open changed the directory");
                }
            }
        }
    });
}

/// Regression: a MANIFEST with valid checksums may hold a `next_seq` near the limit. An open accepted it; later writes
/// got used sequence numbers or tombstone bits, and disappeared at the next open.
#[test]
fn a_store_without_free_sequence_numbers_is_refused_and_not_modified() {
    for_each_engine(|env| {
        let (pristine, _, model) = sealed(env);
        for (next_seq, is_refused) in [((1 << 62) - 1000, false), ((1 << 62) + 1, true), ((1 << 63) - 1, true)] {
            let path = fresh_copy(env, &pristine);
            let target = path.join("MANIFEST");
            let manifest = Manifest::decode(&fs::read(&target).unwrap()).unwrap();
            fs::write(&target, Manifest { next_seq, ..manifest }.encode()).unwrap();
            if is_refused {
                let before = contents(&path);
                for recovery in [Recovery::Strict, Recovery::Salvage] {
                    let error = open_error(env.builder().recovery(recovery));
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                    assert!(contents(&path) == before, "{next_seq} under {recovery}: the open changed the directory");
                }
                continue;
            }
            for expected in [&b"newer"[..], b"newest"] {
                let store = env.open();
                put(&store, "key-0", expected);
                close(store);
                let store = env.open();
                assert_eq!(get(&store, "key-0").as_deref(), Some(expected));
                assert_eq!(store.len(), model.len());
                close(store);
            }
        }
    });
}

/// A hint file of any version holds only information that its segment also holds.
#[test]
fn a_hint_file_of_a_newer_format_is_ignored_and_rewritten() {
    for_each_engine(|env| {
        let (pristine, segments, model) = sealed(env);
        for (at, value) in newer_formats() {
            let path = fresh_copy(env, &pristine);
            for hint in files_with(&path, "hint") {
                patch_prelude(&hint, at, &value);
            }
            let store = open(env.builder());
            let report = store.recovery_report();
            assert_eq!((report.hints_loaded, report.segments_scanned), (0, segments.len()), "{at}: {report:?}");
            assert_holds(&store, &model);
            close(store);
            let store = open(env.builder());
            assert_eq!(store.recovery_report().hints_loaded, segments.len(), "{at}: hint files were not rewritten");
            assert_holds(&store, &model);
            close(store);
        }
    });
}

#[test]
fn a_segment_of_another_store_is_refused() {
    for_each_engine(|env| {
        let (pristine, segments, _) = sealed(env);
        let other = env.dir.path().join("other");
        let store = open(env.builder_at(&other).segment_bytes(2 << 10));
        for index in 0..40_u32 {
            put(&store, index.to_le_bytes(), [9; 100]);
        }
        close(store);
        for segment in &segments {
            let name = segment.file_name().unwrap();
            let path = fresh_copy(env, &pristine);
            fs::copy(other.join(name), path.join(name)).unwrap();
            let hint = PathBuf::from(name).with_extension("hint");
            for with_hint in [false, true] {
                if with_hint {
                    fs::copy(other.join(&hint), path.join(&hint)).unwrap();
                }
                let error = open_error(env.builder());
                assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(id_of(segment))), "{error:?}");
            }
        }
    });
}

/// The image of a killed store with garbage behind its last record, the name of the copy that salvage makes, and the
/// garbage.
fn torn(seed: u64) -> (Image, String, Vec<u8>) {
    let backend = SimBackend::new(SimConfig { seed, ..SimConfig::default() });
    let (image, name) = backend.run_until(async {
        let store = Store::builder("/sim").backend(Arc::new(backend.clone())).prewrite(false).open().await.unwrap();
        for number in 0..4 {
            store.put(format!("key-{number}"), "value").await.unwrap();
        }
        let image = backend.kill_image(&mut Draws::new(seed));
        let name = image.names().find(|name| name.ends_with(".seg")).unwrap().to_owned();
        (image, name)
    });
    backend.shutdown();
    let (mut image, garbage) = (image, Rng::new(seed).bytes(20_000));
    assert!(image.edit(&name, |bytes| bytes.extend_from_slice(&garbage)));
    (image, format!("{name}.cut"), garbage)
}

/// Opens `image`, checks the store and closes it. Returns the backend, and the name of the copy from the report.
fn open_torn(image: Image, recovery: Recovery, capacity_bytes: Option<u64>) -> (SimBackend, Option<String>) {
    let backend = SimBackend::from_image(image, SimConfig { seed: 3, capacity_bytes, ..SimConfig::default() });
    let copy = backend.run_until(async {
        let builder = Store::builder("/sim").backend(Arc::new(backend.clone())).recovery(recovery);
        let store = builder.open().await.unwrap();
        let report = store.recovery_report().clone();
        assert!(report.damage.is_empty() && report.foreign_files.is_empty(), "{report:?}");
        for number in 0..4 {
            assert_eq!(store.get(format!("key-{number}")).await.unwrap().as_deref(), Some(&b"value"[..]));
        }
        store.close().await.unwrap();
        report.cut_copy
    });
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
    (backend, copy)
}

/// Regression: bytes behind the last whole record may have been acknowledged. Salvage discarded them.
#[test]
fn a_salvage_interrupted_at_any_step_keeps_a_copy_of_the_cut_bytes() {
    let (torn, name, garbage) = torn(5);
    let (backend, copy) = open_torn(torn.clone(), Recovery::Salvage, None);
    assert_eq!(copy.as_deref(), Some(&name[..]));
    assert_eq!(backend.image().bytes(&name), Some(&garbage[..]));
    let (journal, mut rng, mut states, mut made_again) = (backend.take_journal(), Draws::new(7), 0, 0);
    for step in 0..=journal.len() {
        let mut left: Vec<_> = journal.crash_images(step, 6, &mut rng).collect();
        left.push(journal.kill_image(step, &mut rng));
        for image in left {
            let (backend, copy) = open_torn(image, Recovery::Salvage, None);
            let image = backend.image();
            assert!(image.bytes(&name) == Some(&garbage[..]), "step {step}, {}", journal.describe(step));
            assert!(!image.names().any(|name| name.ends_with(".tmp")), "step {step}");
            made_again += u64::from(copy.is_some());
            states += 1;
            // Later opens leave the copy alone.
            let (backend, copy) = open_torn(image, Recovery::Strict, None);
            assert_eq!((copy, backend.image().bytes(&name)), (None, Some(&garbage[..])));
        }
    }
    assert!(made_again > 20 && states > made_again, "{made_again} of {states} copied again");
}

#[test]
fn a_strict_open_or_a_full_disk_makes_no_copy_of_the_cut_bytes() {
    let (torn, name, _) = torn(5);
    let (backend, copy) = open_torn(torn.clone(), Recovery::Strict, None);
    assert_eq!((copy, backend.image().bytes(&name)), (None, None));
    let used = torn.total_bytes();
    let (backend, copy) = open_torn(torn, Recovery::Salvage, Some(used + 1000));
    let image = backend.image();
    assert_eq!((copy, image.bytes(&name)), (None, None));
    assert!(!image.names().any(|name| name.ends_with(".tmp")));
}
