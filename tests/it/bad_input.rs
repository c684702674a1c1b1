//! Invalid arguments, options and directories: each gives a clear error, and no data is lost.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringcask::{Batch, Builder, Durability, Error, ErrorKind, MAX_KEY_LEN, MAX_VALUE_LEN, Outcome, Store};

use crate::helpers::{
    Env, LEVELS, Model, Rng, assert_holds, block_on, child_env, close, contents, eventually, expect_success,
    for_each_engine, get, is_child, open, put, rerun, skip,
};

/// The error of an open that must fail.
#[track_caller]
pub fn open_error(builder: Builder) -> Error {
    match block_on(builder.open()) {
        Ok(_) => panic!("the open succeeded"),
        Err(error) => error,
    }
}

#[track_caller]
fn assert_names(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not name {part:?}");
    }
}

#[test]
fn every_call_refuses_an_empty_key() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        let before = store.stats().bytes_written;
        let mut batch = Batch::new();
        batch.put("good", "1").put("", "2");
        let mut deleting = Batch::new();
        deleting.delete("k").delete("");
        let errors = [
            block_on(store.get("")).unwrap_err(),
            block_on(store.put("", "v")).unwrap_err(),
            block_on(store.put_bytes("", "v".into())).unwrap_err(),
            block_on(store.delete("")).unwrap_err(),
            block_on(store.write(batch)).unwrap_err(),
            block_on(store.write(deleting)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidInput, Outcome::NotApplied), "{error}");
            assert_names(&error, &["key"]);
        }
        assert_eq!((store.contains_key(""), store.value_len("")), (false, None));
        assert_eq!(get(&store, "good"), None, "part of a refused batch is stored");
        assert!(store.contains_key("k"));
        block_on(store.sync()).unwrap();
        assert_eq!(store.stats().bytes_written, before);
    });
}

#[test]
fn a_key_over_the_limit_is_refused_with_its_length_and_the_limit() {
    for_each_engine(|env| {
        let store = env.open();
        let long = vec![b'k'; MAX_KEY_LEN + 1];
        let mut batch = Batch::new();
        batch.put("good", "1").put(&long, "2");
        let errors = [
            block_on(store.put(&long, "v")).unwrap_err(),
            block_on(store.delete(&long)).unwrap_err(),
            block_on(store.write(batch)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied), "{error}");
            assert_names(&error, &["65536", "65535"]);
        }
        assert_eq!((store.contains_key(&long), store.value_len(&long), store.len()), (false, None, 0));
    });
}

#[test]
fn a_value_over_the_limit_is_refused_with_its_length_and_the_limit() {
    for_each_engine(|env| {
        let store = open(env.builder().max_value_bytes(1000));
        put(&store, "fits", [7; 1000]);
        let mut batch = Batch::new();
        batch.put("good", "1").put("bad", [7; 1001]);
        let errors = [
            block_on(store.put("bad", [7; 1001])).unwrap_err(),
            block_on(store.put_bytes("bad", vec![7; 1001].into())).unwrap_err(),
            block_on(store.put("bad", [7; 1001]).durability(Durability::Buffered)).unwrap_err(),
            block_on(store.write(batch)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied), "{error}");
            assert_names(&error, &["1001", "1000"]);
        }
        assert_eq!((store.len(), get(&store, "fits").map(|value| value.len())), (1, Some(1000)));
        close(store);
        let smaller = open(env.builder().max_value_bytes(10));
        assert_eq!(
            get(&smaller, "fits").map(|value| value.len()),
            Some(1000),
            "a stored value over the new limit is not readable"
        );
    });
}

#[test]
fn an_option_out_of_range_is_refused_with_its_name_and_range() {
    for_each_engine(|env| {
        let fresh = || env.builder();
        let (ns, ms, s) = (Duration::from_nanos, Duration::from_millis, Duration::from_secs);
        let cases: Vec<(Builder, &str)> = vec![
            (fresh().segment_bytes(0), "segment_bytes"),
            (fresh().segment_bytes(1023), "segment_bytes"),
            (fresh().segment_bytes((16 << 30) + 1), "segment_bytes"),
            (fresh().segment_bytes(u64::MAX), "segment_bytes"),
            (fresh().flush_interval(Duration::ZERO), "flush_interval"),
            (fresh().flush_interval(ns(999_999)), "flush_interval"),
            (fresh().flush_interval(ms(60_001)), "flush_interval"),
            (fresh().sync_interval(Duration::ZERO), "sync_interval"),
            (fresh().sync_interval(s(61)), "sync_interval"),
            (fresh().sync_interval(Duration::MAX), "sync_interval"),
            (fresh().staging_bytes(0), "staging_bytes"),
            (fresh().staging_bytes((64 << 10) - 1), "staging_bytes"),
            (fresh().staging_bytes((1 << 30) + 1), "staging_bytes"),
            (fresh().staging_bytes(usize::MAX), "staging_bytes"),
            (fresh().max_value_bytes(MAX_VALUE_LEN + 1), "max_value_bytes"),
            (fresh().reserve_bytes((1 << 30) + 1), "reserve_bytes"),
            (fresh().max_open_files(0), "max_open_files"),
            (fresh().max_open_files(7), "max_open_files"),
            (fresh().max_open_files(usize::MAX), "max_open_files"),
            (env.builder_at(""), "path"),
        ];
        assert_eq!(cases.len(), 20);
        for (builder, option) in cases {
            let error = open_error(builder);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{option}: {error:?}");
            assert_names(&error, &[option]);
            if option != "path" {
                assert_names(&error, &["..="]);
            }
        }
        assert!(!env.path().exists(), "a refused option created the directory");
    });
}

#[test]
fn options_at_the_ends_of_their_ranges_are_accepted() {
    for_each_engine(|env| {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let smallest = env.builder().segment_bytes(1 << 10).flush_interval(ms(1)).sync_interval(ms(1));
        let smallest = smallest.staging_bytes(64 << 10).max_value_bytes(0).reserve_bytes(0).max_open_files(8);
        let store = open(smallest);
        for index in 0..100_u32 {
            put(&store, index.to_le_bytes(), "");
        }
        assert_eq!(block_on(store.put("k", "v")).unwrap_err().kind(), ErrorKind::TooLarge);
        close(store);
        let largest = env.builder().segment_bytes(16 << 30).flush_interval(s(60)).sync_interval(s(60));
        let largest = largest.staging_bytes(1 << 30).max_value_bytes(MAX_VALUE_LEN).max_open_files(1 << 20);
        let store = open(largest);
        assert_eq!(store.len(), 100);
        for level in LEVELS {
            block_on(store.put(level.to_string(), vec![1; 100_000]).durability(level)).unwrap();
        }
        close(store);
        assert_eq!(env.open().len(), 103);
    });
}

#[test]
fn a_file_in_place_of_the_directory_is_an_error_with_its_path() {
    for_each_engine(|env| {
        fs::write(env.path(), "a file").unwrap();
        let error = open_error(env.builder());
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        assert_names(&error, &[&env.path().display().to_string()]);
        assert_eq!(fs::read(env.path()).unwrap(), b"a file");
        let error = open_error(env.builder_at(env.path().join("below")));
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        assert_eq!(error.os_error(), Some(libc::ENOTDIR));
    });
}

#[test]
fn a_missing_directory_is_created_only_on_request() {
    for_each_engine(|env| {
        let path = env.dir.path().join("a/b/c");
        let error = open_error(env.builder_at(&path).create(false));
        assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::ENOENT)), "{error:?}");
        assert_names(&error, &[&path.display().to_string()]);
        assert!(!env.dir.path().join("a").exists());
        let store = open(env.builder_at(&path));
        put(&store, "k", "v");
        close(store);
        let store = open(env.builder_at(&path).create(false));
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn an_open_without_write_permission_is_an_error_and_keeps_the_data() {
    const NAME: &str = "bad_input::an_open_without_write_permission_is_an_error_and_keeps_the_data";
    if is_child() {
        return open_as_nobody();
    }
    if !rustix::process::geteuid().is_root() {
        return skip("unwritable directory", "dropping privileges needs root");
    }
    for_each_engine(|env| {
        fs::set_permissions(env.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        let before = contents(&env.path());
        expect_success(rerun(NAME, env));
        fs::set_permissions(env.path(), fs::Permissions::from_mode(0o555)).unwrap();
        expect_success(rerun(NAME, env));
        assert_eq!(contents(&env.path()), before);
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"v"[..]));
    });
}

fn open_as_nobody() {
    let (engine, path) = child_env();
    let nobody = rustix::process::Uid::from_raw(65_534);
    // This thread and the threads that it starts from now on lose root's right to bypass permissions.
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    let error = open_error(Store::builder(&path).engine(engine));
    assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::EACCES)), "{error:?}");
    assert_names(&error, &[&path.display().to_string()]);
    let error = open_error(Store::builder(path.with_file_name("new")).engine(engine));
    assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::EACCES)), "{error:?}");
}

/// A mounted file system that is unmounted when the value is dropped.
pub struct Mount {
    pub point: std::path::PathBuf,
}

impl Mount {
    /// A tmpfs of `size` at `point`; reports a skip and returns `None` where mounting is not allowed.
    pub fn tmpfs(point: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(point).unwrap();
        Self::at(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], point)
    }

    /// An ext4 in the file `image` of `size` bytes at `point`.
    pub fn ext4(image: &Path, size: u64, point: &Path) -> Option<Self> {
        fs::create_dir_all(point).unwrap();
        fs::File::create(image).unwrap().set_len(size).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image).output();
        match made {
            Ok(output) if output.status.success() => {}
            other => {
                skip("ext4 image", &format!("mkfs.ext4: {other:?}"));
                return None;
            }
        }
        let image = image.display().to_string();
        Self::at(&["-o", "loop", &image], point)
    }

    fn at(arguments: &[&str], point: &Path) -> Option<Self> {
        match Command::new("mount").args(arguments).arg(point).output() {
            Ok(output) if output.status.success() => Some(Self { point: point.to_path_buf() }),
            other => {
                skip("mount", &format!("mount {arguments:?}: {other:?}"));
                None
            }
        }
    }

    /// Unmounts the file system and mounts `image` again, as after a restart.
    pub fn restart(&self, image: &Path) {
        let run = |command: &mut Command| command.output().unwrap().status.success();
        eventually("the mount is not busy", || run(Command::new("umount").arg(&self.point)));
        assert!(run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.point)), "mount {image:?} again");
    }

    /// Remounts the file system with `option`. A closed store releases its descriptors a moment later, and until then
    /// the mount is busy.
    pub fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        let mount = || Command::new("mount").args(["-o", &option]).arg(&self.point).output().unwrap();
        eventually("the mount is not busy", || mount().status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a store that was just dropped may hold a descriptor for a moment, and a store of a failed test for
        // longer.
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}

#[test]
fn an_open_on_a_read_only_mount_is_an_error_and_keeps_the_data() {
    for_each_engine(|env| {
        let Some(mount) = Mount::tmpfs(&env.dir.path().join("mount"), "16m") else { return };
        let path = mount.point.join("store");
        let store = open(env.builder_at(&path));
        put(&store, "k", "v");
        close(store);
        let before = contents(&path);
        mount.remount("ro");
        for path in [path.clone(), mount.point.join("new")] {
            let error = open_error(env.builder_at(&path));
            assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::EROFS)), "{error:?}");
            assert_names(&error, &[&path.display().to_string()]);
        }
        assert_eq!(contents(&path), before);
        mount.remount("rw");
        let store = open(env.builder_at(&path));
        assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]));
        close(store);
    });
}

#[test]
fn a_store_of_many_segments_works_with_few_descriptors() {
    const NAME: &str = "bad_input::a_store_of_many_segments_works_with_few_descriptors";
    if is_child() {
        return run_store_of_many_segments();
    }
    for_each_engine(|env| {
        expect_success(rerun(NAME, env));
    });
}

/// Opens, writes and reads with a limit far below the number of segments, then opens with a limit below what an open
/// needs.
fn run_store_of_many_segments() {
    let (engine, path) = child_env();
    let builder = || Store::builder(&path).engine(engine).segment_bytes(4 << 10).max_open_files(8);
    let (mut model, mut rng) = (Model::new(), Rng::new(1));
    let used = used_descriptors();
    limit_descriptors(used + 40);
    for round in 0..3 {
        let store = open(builder());
        for index in 0..100 {
            let (key, value) = (format!("{round}-{index}").into_bytes(), rng.bytes(2000));
            put(&store, &key, &value);
            model.insert(key, value);
        }
        assert!(store.stats().segments.len() > 45, "{} segments", store.stats().segments.len());
        assert_holds(&store, &model);
        close(store);
    }
    for spare in 0..12 {
        limit_descriptors(1000);
        limit_descriptors(used_descriptors() + spare);
        match block_on(builder().open()) {
            Ok(store) => close(store),
            // The engine itself needs descriptors: without one for the ring, io_uring is unsupported.
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Unsupported), "{error:?}");
                assert_eq!(error.os_error(), Some(libc::EMFILE), "{error:?}");
            }
        }
    }
    limit_descriptors(1000);
    let store = open(builder());
    assert_holds(&store, &model);
    close(store);
    println!("{} values in {} segments", model.len(), crate::helpers::files_with(&path, "seg").len());
}

pub fn used_descriptors() -> u64 {
    // The listing itself uses one descriptor.
    fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1
}

pub fn limit_descriptors(count: u64) {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: Some(count), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

#[test]
fn a_get_without_free_descriptors_is_an_error_not_a_missing_key() {
    const NAME: &str = "bad_input::a_get_without_free_descriptors_is_an_error_not_a_missing_key";
    if is_child() {
        return read_without_descriptors();
    }
    for_each_engine(|env: &Env| {
        expect_success(rerun(NAME, env));
    });
}

fn read_without_descriptors() {
    let (engine, path) = child_env();
    let store = open(Store::builder(&path).engine(engine).segment_bytes(4 << 10).max_open_files(8));
    let mut model = Model::new();
    for index in 0..60_u32 {
        put(&store, index.to_le_bytes(), [1; 2000]);
        model.insert(index.to_le_bytes().to_vec(), vec![1; 2000]);
    }
    limit_descriptors(used_descriptors());
    let (mut read, mut refused) = (0, 0);
    for (key, value) in &model {
        match block_on(store.get(key)) {
            Ok(found) => {
                assert_eq!(found.as_deref(), Some(&value[..]), "key {key:?}");
                read += 1;
            }
            Err(error) => {
                assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::EMFILE)), "{error:?}");
                refused += 1;
            }
        }
    }
    println!("{read} read, {refused} refused");
    limit_descriptors(1000);
    assert_holds(&store, &model);
    close(store);
}
