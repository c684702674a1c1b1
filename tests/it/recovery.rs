//! The state that a reopen finds after a close, a drop and a kill: torn tails, and foreign files in the directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringcask::testing::format::{Binding, RecordKind, SegmentHeader, Watermark, read_record};
use ringcask::{Batch, Compaction, Durability, Engine, ErrorKind, Store};

use crate::bad_input::open_error;
use crate::helpers::{
    Env, LEVELS, Model, Rng, assert_holds, block_on, child_env, close, contents, copy_store, delete, eventually,
    expect_success, files_with, for_each_engine, get, is_child, open, put, put_at, rerun,
};

/// A record of a segment file, as decoded by the format.
#[derive(Clone, Debug)]
pub struct Found {
    pub offset: u64,
    pub end: u64,
    pub kind: RecordKind,
    /// The durable offset of a watermark; 0 for other records.
    pub durable_offset: u64,
}

/// All records of the segment in `path`, up to the first bytes that are not a record.
pub fn records(path: &Path) -> Vec<Found> {
    let bytes = fs::read(path).unwrap();
    let header = SegmentHeader::decode(&bytes).unwrap();
    let binding = Binding::new(header.salt, header.segment_id);
    let (mut offset, mut found) = (ringcask::testing::format::SEGMENT_HEADER_LEN as u64, Vec::new());
    while let Ok(record) = read_record(&bytes[offset as usize..], &binding, offset) {
        let end = offset + record.len;
        let kind = record.header.kind;
        let mark = || Watermark::decode_value(record.value).unwrap().durable_offset;
        let durable_offset = if kind == RecordKind::Watermark { mark() } else { 0 };
        found.push(Found { offset, end, kind, durable_offset });
        offset = end;
        if offset >= bytes.len() as u64 {
            break;
        }
    }
    found
}

/// The files that a kill would leave of a store with one unsealed segment, whose last records were never synced.
struct Unsealed {
    image: PathBuf,
    segment: PathBuf,
    records: Vec<Found>,
    /// The store's contents before the first write and after each write.
    states: Vec<Model>,
    /// The end of each write's records.
    ends: Vec<u64>,
}

fn unsealed(env: &Env) -> Unsealed {
    let store = open(env.builder().sync_interval(Duration::from_secs(60)).flush_interval(Duration::from_secs(60)));
    let (mut rng, mut model) = (Rng::new(21), Model::new());
    let (mut states, mut ends) = (vec![model.clone()], vec![0]);
    for index in 0..16_u32 {
        let level = if index < 8 { Durability::Synced } else { Durability::Written };
        let key = format!("k{}", index % 9).into_bytes();
        if index == 13 {
            let mut batch = Batch::new();
            batch.put("b1", "one").delete(&key).put("b2", rng.bytes(30));
            model.remove(&key);
            model.insert(b"b1".to_vec(), b"one".to_vec());
            block_on(store.write(batch).durability(level)).unwrap();
            model.insert(b"b2".to_vec(), get(&store, "b2").unwrap());
        } else if index == 14 {
            assert!(block_on(store.delete("k0").durability(level)).unwrap());
            model.remove(&b"k0"[..]);
        } else {
            let value = rng.bytes(10 + 3 * index as usize);
            put_at(&store, level, &key, &value);
            model.insert(key, value);
        }
        states.push(model.clone());
        let segment = files_with(&env.path(), "seg").remove(0);
        ends.push(records(&segment).last().unwrap().end);
    }
    let image = env.dir.path().join("image");
    copy_store(&env.path(), &image);
    close(store);
    let segment = files_with(&image, "seg").remove(0);
    let records = records(&segment);
    assert!(records.iter().all(|record| record.kind != RecordKind::Footer), "the copy is sealed");
    Unsealed { image, segment, records, states, ends }
}

impl Unsealed {
    /// Makes a copy of the store whose active segment contains `bytes`.
    fn with(&self, env: &Env, bytes: &[u8]) -> PathBuf {
        let path = env.path().with_file_name("work");
        let _ = fs::remove_dir_all(&path);
        copy_store(&self.image, &path);
        fs::write(path.join(self.segment.file_name().unwrap()), bytes).unwrap();
        path
    }

    /// The state after the writes whose records end by `cut`.
    fn state_at(&self, cut: u64) -> &Model {
        let whole = self.ends.iter().skip(1).take_while(|end| **end <= cut).count();
        &self.states[whole]
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    for_each_engine(|env| {
        let unsealed = unsealed(env);
        let bytes = fs::read(&unsealed.segment).unwrap();
        let end = unsealed.records.last().unwrap().end;
        let first = unsealed.ends[12];
        let mut cuts = 0;
        // The cut does not depend on the engine: test every byte on one, and every seventh on the other.
        for cut in (first..=end).step_by(if env.engine == Engine::Threads { 1 } else { 7 }) {
            let path = unsealed.with(env, &bytes[..cut as usize]);
            let store = open(env.builder_at(&path));
            let expected = unsealed.state_at(cut);
            assert_eq!(store.len(), expected.len(), "cut at {cut} of {first}..={end}");
            assert_holds(&store, expected);
            assert!(store.recovery_report().damage.is_empty());
            if cut % 14 == 0 {
                // Writes continue behind the cut, and the next open sees one history.
                put(&store, "after", "the cut");
                close(store);
                let mut expected = expected.clone();
                expected.insert(b"after".to_vec(), b"the cut".to_vec());
                assert_holds(&open(env.builder_at(&path)), &expected);
            }
            cuts += 1;
        }
        println!("{cuts} cuts between {first} and {end}");
        assert!(cuts > 40);
    });
}

#[test]
fn zeros_and_garbage_behind_the_last_record_are_cut() {
    for_each_engine(|env| {
        let unsealed = unsealed(env);
        let bytes = fs::read(&unsealed.segment).unwrap();
        let end = unsealed.records.last().unwrap().end as usize;
        let mut rng = Rng::new(4);
        let stale = bytes[600..900].to_vec();
        let tails =
            [vec![0; 1], vec![0; 4096], vec![0; 100_000], vec![0xFF; 4096], rng.bytes(7), rng.bytes(5000), stale];
        for (index, tail) in tails.iter().enumerate() {
            let path = unsealed.with(env, &[&bytes[..end], tail].concat());
            let store = open(env.builder_at(&path));
            assert_holds(&store, unsealed.states.last().unwrap());
            let cut = store.recovery_report().truncated_bytes;
            assert!(tail.iter().all(|byte| *byte == 0) || cut > 0, "tail {index}: {cut} bytes cut");
            close(store);
            assert_holds(&open(env.builder_at(&path)), unsealed.states.last().unwrap());
        }
    });
}

#[test]
fn a_torn_tail_is_cut_once() {
    for_each_engine(|env| {
        let unsealed = unsealed(env);
        let bytes = fs::read(&unsealed.segment).unwrap();
        let cut = unsealed.ends[14] as usize + 9;
        let path = unsealed.with(env, &bytes[..cut]);
        let first = open(env.builder_at(&path));
        assert!(first.recovery_report().truncated_bytes >= 9);
        close(first);
        for _ in 0..3 {
            let store = open(env.builder_at(&path));
            assert_eq!(store.recovery_report().truncated_bytes, 0);
            assert_holds(&store, &unsealed.states[14]);
            close(store);
        }
    });
}

#[test]
fn a_reopen_after_close_drop_and_kill_finds_the_same_contents() {
    for_each_engine(|env| {
        let mut model = Model::new();
        let mut rng = Rng::new(17);
        for (round, ending) in ["close", "drop", "copy", "close", "copy", "drop"].into_iter().enumerate() {
            let path = env.dir.path().join(format!("round-{round}"));
            if round > 0 {
                copy_store(&env.dir.path().join(format!("round-{}", round - 1)), &path);
            }
            // The files are copied one after the other, so no compaction may replace any of them.
            let compaction = Compaction::new().automatic(false);
            let store = open(env.builder_at(&path).segment_bytes(4 << 10).compaction(compaction));
            assert_holds(&store, &model);
            for index in 0..40 {
                let level = LEVELS[index % 3];
                let (key, value) = (format!("{}", rng.below(60)).into_bytes(), rng.bytes(200));
                put_at(&store, level, &key, &value);
                model.insert(key, value);
            }
            block_on(store.sync()).unwrap();
            match ending {
                "close" => close(store),
                "drop" => drop(store),
                // The next round opens a copy made while this store was open.
                _ => {
                    copy_store(&path, &env.dir.path().join("killed"));
                    close(store);
                    fs::remove_dir_all(&path).unwrap();
                    fs::rename(env.dir.path().join("killed"), &path).unwrap();
                }
            }
        }
    });
}

#[test]
fn the_recovery_report_describes_the_open() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(4 << 10));
        assert_eq!((store.recovery_report().segments, store.recovery_report().keys), (0, 0));
        for index in 0..60_u32 {
            put(&store, index.to_le_bytes(), [1; 300]);
        }
        let copy = env.dir.path().join("copy");
        // Maintenance writes the hint files in the background.
        let count = |extension| files_with(&env.path(), extension).len();
        eventually("a hint beside every sealed segment", || count("hint") + 1 == count("seg"));
        copy_store(&env.path(), &copy);
        close(store);
        let store = env.open();
        let report = store.recovery_report().clone();
        assert!(report.segments >= 4 && report.hints_loaded == report.segments, "{report:?}");
        assert_eq!((report.keys, report.segments_scanned, report.records_scanned), (60, 0, 0), "{report:?}");
        assert!(report.damage.is_empty() && report.foreign_files.is_empty() && report.removed_files.is_empty());
        close(store);
        let killed = open(env.builder_at(&copy));
        let report = killed.recovery_report();
        assert_eq!((report.keys, report.segments_scanned), (60, 1), "only the unsealed segment is scanned: {report:?}");
        assert!(report.records_scanned > 0);
    });
}

#[test]
fn missing_and_broken_hint_files_do_not_change_the_contents() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(4 << 10));
        let (mut model, mut rng) = (Model::new(), Rng::new(33));
        for index in 0..80_u32 {
            let (key, value) = (format!("{}", rng.below(30)).into_bytes(), rng.bytes(150));
            if index % 7 == 6 && delete(&store, &key) {
                model.remove(&key);
            } else {
                put(&store, &key, &value);
                model.insert(key, value);
            }
        }
        close(store);
        let pristine = env.dir.path().join("pristine");
        fs::rename(env.path(), &pristine).unwrap();
        let hints = files_with(&pristine, "hint");
        assert!(hints.len() >= 3, "{hints:?}");
        let mut broken = 0;
        let mut check = |what: &str, breakage: &dyn Fn(&Path)| {
            let _ = fs::remove_dir_all(env.path());
            copy_store(&pristine, &env.path());
            breakage(&env.path());
            let store = env.open();
            assert_holds(&store, &model);
            assert!(store.recovery_report().damage.is_empty(), "{what}: a broken hint file is reported as damage");
            close(store);
            assert_holds(&env.open(), &model);
            broken += 1;
        };
        check("all deleted", &|path| files_with(path, "hint").iter().for_each(|hint| fs::remove_file(hint).unwrap()));
        check("emptied", &|path| files_with(path, "hint").iter().for_each(|hint| fs::write(hint, "").unwrap()));
        check("swapped", &|path| {
            let hints = files_with(path, "hint");
            let first = fs::read(&hints[0]).unwrap();
            fs::copy(&hints[1], &hints[0]).unwrap();
            fs::write(&hints[1], first).unwrap();
        });
        for name in &hints {
            let name = name.file_name().unwrap();
            let whole = fs::read(pristine.join(name)).unwrap();
            check("removed", &|path| fs::remove_file(path.join(name)).unwrap());
            for at in (0..whole.len()).step_by(53) {
                check("bit flipped", &|path| {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 1 << (at % 8);
                    fs::write(path.join(name), bytes).unwrap();
                });
                check("cut", &|path| fs::write(path.join(name), &whole[..at]).unwrap());
            }
            check("longer", &|path| fs::write(path.join(name), [&whole[..], &[0; 8]].concat()).unwrap());
        }
        println!("{broken} kinds of broken hints");
        assert!(broken > 30);
    });
}

#[test]
fn foreign_files_are_reported_and_not_changed() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        let path = env.path();
        let outside = env.dir.path().join("outside");
        fs::write(&outside, "foreign").unwrap();
        let mut foreign = vec![".DS_Store", "._00000000000000000001.seg", "1.seg", "notes.tmp", "K", "lost+found"];
        for name in foreign.iter().filter(|name| **name != "lost+found") {
            fs::write(path.join(name), name).unwrap();
        }
        fs::create_dir(path.join("lost+found")).unwrap();
        fs::write(path.join("lost+found/00000000000000000001.seg"), "inside").unwrap();
        foreign.extend(["00000000000000000077.seg", "00000000000000000078.seg", "00000000000000000079.seg", "sock"]);
        symlink(&outside, path.join("00000000000000000077.seg")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join("00000000000000000078.seg"), 0o600.into()).unwrap();
        fs::create_dir(path.join("00000000000000000079.seg")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path.join("sock")).unwrap();
        for _ in 0..2 {
            let store = env.open();
            assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
            let mut reported = store.recovery_report().foreign_files.clone();
            reported.sort();
            foreign.sort_unstable();
            assert_eq!(reported, foreign);
            put(&store, "k2", "continues");
            close(store);
        }
        for name in &foreign {
            let kind = fs::symlink_metadata(path.join(name)).unwrap().file_type();
            if kind.is_file() {
                assert_eq!(fs::read(path.join(name)).unwrap(), name.as_bytes());
            }
        }
        assert_eq!(fs::read(&outside).unwrap(), b"foreign");
        assert_eq!(fs::read(path.join("lost+found/00000000000000000001.seg")).unwrap(), b"inside");
    });
}

#[test]
fn a_link_or_pipe_in_place_of_a_store_file_is_refused_and_its_target_unchanged() {
    for_each_engine(|env| {
        let pristine = env.dir.path().join("pristine");
        let store = open(env.builder_at(&pristine));
        put(&store, "k", "v");
        close(store);
        let segment = files_with(&pristine, "seg").remove(0).file_name().unwrap().to_owned();
        let outside = env.dir.path().join("outside");
        for name in [segment.to_str().unwrap(), "LOCK", "MANIFEST"] {
            for pipe in [false, true] {
                let _ = fs::remove_dir_all(env.path());
                copy_store(&pristine, &env.path());
                let place = env.path().join(name);
                fs::rename(&place, &outside).unwrap();
                let before = fs::read(&outside).unwrap();
                if pipe {
                    rustix::fs::mkfifoat(rustix::fs::CWD, &place, 0o600.into()).unwrap();
                } else {
                    symlink(&outside, &place).unwrap();
                }
                let error = open_error(env.builder());
                println!("{name}, pipe {pipe}: {error}");
                assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt), "{error:?}");
                assert_eq!(fs::read(&outside).unwrap(), before);
            }
        }
    });
}

#[test]
fn leftovers_of_an_interrupted_step_are_removed_and_reported() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        let leftovers = ["00000000000000000001.hint.tmp", "00000000000000000044.hint.tmp", "MANIFEST.tmp"];
        for name in leftovers {
            fs::write(env.path().join(name), "half-written").unwrap();
        }
        let store = env.open();
        let mut removed = store.recovery_report().removed_files.clone();
        removed.sort();
        assert_eq!(removed, leftovers);
        assert!(leftovers.iter().all(|name| !env.path().join(name).exists()));
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
        close(store);
        assert!(env.open().recovery_report().removed_files.is_empty());
    });
}

#[test]
fn files_are_private_for_every_umask() {
    const NAME: &str = "recovery::files_are_private_for_every_umask";
    if is_child() {
        rustix::process::umask(rustix::fs::Mode::empty());
        let (engine, path) = child_env();
        let store = open(Store::builder(path.join("deep")).engine(engine).segment_bytes(4 << 10));
        for index in 0..40_u32 {
            put(&store, index.to_le_bytes(), [1; 300]);
        }
        return close(store);
    }
    for_each_engine(|env| {
        expect_success(rerun(NAME, env));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&env.path()), mode(&env.path().join("deep"))), (0o700, 0o700));
        let names = contents(&env.path().join("deep"));
        for name in names.keys() {
            assert_eq!(mode(&env.path().join("deep").join(name)), 0o600, "{name}");
        }
        for ending in ["LOCK", "MANIFEST", "RESERVE", ".seg", ".hint"] {
            assert!(names.keys().any(|name| name.ends_with(ending)), "no {ending} in {:?}", names.keys());
        }
    });
}

#[test]
fn the_content_of_the_lock_file_does_not_matter() {
    for_each_engine(|env| {
        for content in [&b""[..], b"999999", b"garbage \xFF\x00", &[0; 10_000]] {
            close(env.open());
            fs::write(env.path().join("LOCK"), content).unwrap();
            let store = env.open();
            put(&store, "k", "v");
            assert_eq!(open_error(env.builder()).kind(), ErrorKind::Locked);
            close(store);
        }
        fs::remove_file(env.path().join("LOCK")).unwrap();
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn an_open_and_a_close_change_no_file() {
    for_each_engine(|env| {
        // An open that lasts long enough would compact short segments.
        let builder = || env.builder().segment_bytes(4 << 10).compaction(Compaction::new().automatic(false));
        let store = open(builder());
        for index in 0..60_u32 {
            put(&store, index.to_le_bytes(), [1; 300]);
        }
        close(store);
        close(open(builder()));
        let before = contents(&env.path());
        for _ in 0..3 {
            close(open(builder()));
        }
        let after = contents(&env.path());
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        for (name, bytes) in before.iter().filter(|(name, _)| *name != "MANIFEST") {
            assert!(after[name] == *bytes, "{name} changed");
        }
    });
}

#[test]
fn an_empty_store_can_be_reopened() {
    for_each_engine(|env| {
        for _ in 0..4 {
            let store = env.open();
            assert!(store.is_empty() && store.stats().segments.is_empty());
            close(store);
        }
        assert!(files_with(&env.path(), "seg").is_empty(), "a segment was created before the first write");
        fs::create_dir(env.path().with_file_name("made")).unwrap();
        put(&open(env.builder_at(env.path().with_file_name("made"))), "k", "v");
    });
}

#[test]
fn a_moved_directory_opens() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        let moved = env.dir.path().join("moved");
        fs::rename(env.path(), &moved).unwrap();
        assert_eq!(get(&open(env.builder_at(&moved)), "k").as_deref(), Some(&b"v"[..]));
    });
}
