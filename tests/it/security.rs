//! An attacker with control over a key, a value, a file name or an account on the machine gains nothing.
//!
//! Modes and links are tested in `recovery`, hostile contents in `tests/corruption` and `tests/fuzz`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ringcask::{Batch, Error, Recovery, Store};

use crate::helpers::{block_on, close, copy_store, files_with, for_each_engine, get, open, put};

const SECRET_KEY: &str = "secret-key-that-nobody-may-see";
const SECRET_VALUE: &str = "secret-value-that-nobody-may-see";

/// Whether `text` contains part of a secret, as text or as a list of byte values.
fn reveals_secret(text: &str) -> bool {
    let as_numbers = |secret: &str| format!("{:?}", &secret.as_bytes()[..8]).trim_matches(['[', ']']).to_owned();
    [SECRET_KEY, SECRET_VALUE].iter().any(|secret| text.contains(secret) || text.contains(&as_numbers(secret)))
}

fn texts(error: &Error) -> [String; 3] {
    let source = std::error::Error::source(error).map(|source| format!("{source} {source:?}"));
    [error.to_string(), format!("{error:?}"), source.unwrap_or_default()]
}

#[test]
fn errors_and_debug_output_reveal_no_keys_or_values() {
    assert!(
        reveals_secret(&format!("{:?}", SECRET_KEY.as_bytes())) && reveals_secret(SECRET_VALUE),
        "the check cannot fail"
    );
    for_each_engine(|env| {
        let mut collected: Vec<String> = Vec::new();
        let store = open(env.builder().max_value_bytes(100).segment_bytes(4096));
        let too_long = SECRET_VALUE.repeat(10);
        collected.extend(texts(&block_on(store.put(SECRET_KEY, &too_long)).unwrap_err()));
        collected.extend(texts(&block_on(store.put(SECRET_KEY.repeat(5000), "v")).unwrap_err()));
        let mut batch = Batch::new();
        batch.put(SECRET_KEY, SECRET_VALUE).put(SECRET_KEY, &too_long).delete(SECRET_KEY);
        collected.push(format!("{batch:?}"));
        collected.extend(texts(&block_on(store.write(batch)).unwrap_err()));
        for number in 0..40 {
            put(&store, format!("{SECRET_KEY}-{number}"), SECRET_VALUE);
        }
        collected.push(format!(
            "{:?} {:?} {:?}",
            store.put(SECRET_KEY, SECRET_VALUE),
            store.get(SECRET_KEY),
            store.delete(SECRET_KEY)
        ));
        collected.push(format!("{store:?} {:?} {:?}", store.stats(), store.recovery_report()));
        close(store.clone());
        collected.extend(texts(&block_on(store.put(SECRET_KEY, SECRET_VALUE)).unwrap_err()));
        collected.extend(texts(&block_on(store.get(SECRET_KEY)).unwrap_err()));
        collected.extend(damaged(&env.path(), &env.dir.path().join("copy")));
        println!("{} texts", collected.len());
        assert!(collected.len() > 20);
        for text in &collected {
            assert!(!reveals_secret(text), "{text}");
        }
    });
}

/// Damages copies of the store, one segment at a time. Returns the resulting errors and reports as text.
fn damaged(path: &Path, copy: &Path) -> Vec<String> {
    let mut collected = Vec::new();
    for segment in files_with(path, "seg") {
        let whole = fs::read(&segment).unwrap();
        for at in (600..whole.len()).step_by(397) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            for recovery in [Recovery::Strict, Recovery::Salvage] {
                let _ = fs::remove_dir_all(copy);
                copy_store(path, copy);
                fs::write(copy.join(segment.file_name().unwrap()), &bytes).unwrap();
                match block_on(Store::builder(copy).recovery(recovery).open()) {
                    Err(error) => collected.extend(texts(&error)),
                    Ok(store) => {
                        collected.push(format!("{:?}", store.recovery_report()));
                        let gets = (0..40).map(|number| block_on(store.get(format!("{SECRET_KEY}-{number}"))));
                        collected.extend(gets.filter_map(Result::err).flat_map(|error| texts(&error)));
                        if let Err(error) = block_on(store.compact()) {
                            collected.extend(texts(&error));
                        }
                        close(store);
                    }
                }
            }
        }
    }
    collected
}

/// Links under names that the store uses, placed before the store creates its files.
#[test]
fn a_link_under_a_name_that_the_store_uses_is_never_followed() {
    for_each_engine(|env| {
        let victim = env.dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let mut tried = 0;
        let numbered = |number: u64, end: &str| format!("{number:020}.{end}");
        let mut names: Vec<String> = ["LOCK", "MANIFEST", "MANIFEST.tmp", "RESERVE"].map(String::from).to_vec();
        names.extend(["seg", "hint", "hint.tmp"].into_iter().flat_map(|end| (1..=4).map(move |it| numbered(it, end))));
        for name in names {
            for hard in [false, true] {
                let path = env.dir.path().join(format!("store-{tried}"));
                fs::create_dir(&path).unwrap();
                let link = path.join(&name);
                if hard {
                    fs::hard_link(&victim, &link).unwrap()
                } else {
                    symlink(&victim, &link).unwrap()
                }
                // The open may be refused or work around the link, but nothing is written through it.
                if let Ok(store) = block_on(env.builder_at(&path).segment_bytes(4096).open()) {
                    for number in 0..30_u32 {
                        let _ = block_on(store.put(number.to_le_bytes(), [7; 300]));
                    }
                    let _ = block_on(store.compact());
                    let _ = block_on(store.close());
                }
                assert_eq!(fs::read(&victim).unwrap(), b"precious", "{name}, hard: {hard}");
                tried += 1;
            }
        }
        println!("{tried} links");
        assert_eq!(tried, 32);
    });
}

/// Every file that the store writes is private to its owner, whatever the umask of the process.
#[test]
fn compacted_segments_and_hint_files_are_private() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(4096));
        for number in 0..60_u32 {
            put(&store, (number % 20).to_le_bytes(), [7; 300]);
        }
        block_on(store.compact()).unwrap();
        assert_eq!(get(&store, 1_u32.to_le_bytes()).map(|value| value.len()), Some(300));
        close(store);
        let mut paths: Vec<PathBuf> = fs::read_dir(env.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() >= 5, "{paths:?}");
        for path in paths {
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.permissions().mode() & 0o777, metadata.nlink()), (0o600, 1), "{path:?}");
        }
        assert_eq!(fs::metadata(env.path()).unwrap().permissions().mode() & 0o777, 0o700);
    });
}

/// The directory holds 20,000 files that do not belong to the store.
#[test]
fn a_crowded_directory_opens() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        for number in 0..20_000_u32 {
            fs::write(env.path().join(format!("{number}.foreign")), "").unwrap();
        }
        let store = env.open();
        assert_eq!(store.recovery_report().foreign_files.len(), 20_000);
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
        close(store);
    });
}
