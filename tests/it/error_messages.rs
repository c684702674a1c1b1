//! The content of error messages: the value, the limit or the position, and the remedy; never a key or a value of the
//! store.

use std::error::Error as _;
use std::fs;
use std::sync::Arc;

use ringcask::testing::sim::{Fault, FaultKind, OpClass, SimBackend, SimConfig};
use ringcask::{Batch, Error, ErrorKind, Outcome, Store};

use crate::helpers::{block_on, close, files_with, for_each_engine, open, put};

#[track_caller]
fn assert_message(error: &Error, kind: ErrorKind, parts: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    if let Some(source) = error.source() {
        assert!(!message.contains(&source.to_string()), "{message:?} repeats its source");
    }
}

#[test]
fn an_error_of_a_batch_names_the_operation() {
    for_each_engine(|env| {
        let store = open(env.builder().max_value_bytes(10));
        let mut batch = Batch::new();
        batch.put("a", "1").delete("b").put("", "2");
        let error = block_on(store.write(batch)).unwrap_err();
        assert_message(&error, ErrorKind::InvalidInput, &["operation 2 of the batch", "empty", "65535"]);
        let mut batch = Batch::new();
        batch.put("a", "1").put_bytes("b", vec![0; 11].into());
        let error = block_on(store.write(batch)).unwrap_err();
        assert_message(&error, ErrorKind::TooLarge, &["operation 1 of the batch", "11 bytes", "10"]);
        assert!(store.is_empty(), "an operation of a refused batch was applied");
        close(store);
    });
}

#[test]
fn a_shared_value_of_a_batch_is_written_like_a_copied_one() {
    for_each_engine(|env| {
        let store = env.open();
        let mut batch = Batch::new();
        batch.put_bytes("a", "one".into()).put("b", "two").put_bytes("c", vec![3; 100_000].into()).delete("b");
        let copy = batch.clone();
        block_on(store.write(batch)).unwrap();
        assert_eq!(block_on(store.get("a")).unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(block_on(store.get("b")).unwrap(), None);
        assert_eq!(block_on(store.get("c")).unwrap().as_deref(), Some(&[3; 100_000][..]));
        let stats = store.stats();
        assert_eq!((stats.batches, stats.batch_operations), (1, 4));
        let mut cleared = copy;
        cleared.clear();
        assert_eq!((cleared.len(), cleared.byte_len()), (0, 0));
        cleared.put_bytes("d", "four".into());
        block_on(store.write(cleared)).unwrap();
        close(store);
        assert_eq!(block_on(env.open().get("d")).unwrap().as_deref(), Some(&b"four"[..]));
    });
}

#[test]
fn a_missing_directory_with_create_off_is_an_error_with_its_path() {
    for_each_engine(|env| {
        let path = env.path().join("missing");
        let error = block_on(env.builder_at(&path).create(false).open()).map(drop).unwrap_err();
        let path = path.display().to_string();
        assert_message(&error, ErrorKind::Io, &["the directory is missing", "create(false)", &path]);
        assert_eq!(error.os_error(), Some(libc::ENOENT));
    });
}

#[test]
fn a_damage_error_names_the_file_the_offset_and_the_remedy_but_not_the_key() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "secret-key", "the value of the secret key");
        close(store);
        let store = env.open();
        let [segment] = &files_with(&env.path(), "seg")[..] else { panic!("one segment") };
        let mut bytes = fs::read(segment).unwrap();
        let at = bytes.windows(9).position(|window| window == b"the value").unwrap();
        bytes[at] ^= 1;
        fs::write(segment, bytes).unwrap();
        let error = block_on(store.get("secret-key")).unwrap_err();
        let file = segment.display().to_string();
        assert_message(&error, ErrorKind::Corrupt, &["checksum", &file, "at offset", "Recovery::Salvage"]);
        assert_eq!(error.key(), Some(&b"secret-key"[..]));
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    });
}

#[test]
fn a_poisoned_error_recommends_a_reopen() {
    let backend = SimBackend::new(SimConfig::default());
    let store = backend.run_until(Store::builder("/db").backend(Arc::new(backend.clone())).open()).unwrap();
    backend.run_until(store.put("k", "v")).unwrap();
    backend.inject(Fault::once(OpClass::Sync, backend.op_count(OpClass::Sync), FaultKind::EIO));
    let error = backend.run_until(store.put("k", "w")).unwrap_err();
    assert_message(&error, ErrorKind::Poisoned, &["close the store and open it again"]);
    assert_eq!(error.outcome(), Outcome::Unknown);
    let converted = std::io::Error::from(error);
    assert!(converted.to_string().contains("close the store and open it again"), "{converted}");
    backend.shutdown();
}

#[test]
fn option_errors_name_the_option_the_value_and_the_range() {
    for_each_engine(|env| {
        for (builder, parts) in [
            (Store::builder(env.path()).segment_bytes(1), ["segment_bytes", "is 1,", "4096..=17179869184"]),
            (Store::builder(env.path()).max_open_files(7), ["max_open_files", "is 7,", "8..=1048576"]),
        ] {
            let error = block_on(builder.open()).map(drop).unwrap_err();
            assert_message(&error, ErrorKind::InvalidConfig, &parts);
        }
    });
}
