//! Directories, names and the lock.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use ringcask::testing::io::{DirEntry, EntryKind, OpenMode};

use crate::on_every_backend;

#[test]
fn only_regular_files_with_plain_names_open() {
    on_every_backend(|stage| {
        let before = rustix::process::umask(rustix::fs::Mode::empty());
        let dir = stage.dir();
        let open = |name: &str, mode| dir.open(name, mode).map(drop).map_err(|error| error.kind());
        assert_eq!(open("data", OpenMode::Read), Err(ErrorKind::NotFound));
        assert_eq!(open("data", OpenMode::ReadWrite), Err(ErrorKind::NotFound));
        assert_eq!(open("data", OpenMode::CreateNew), Ok(()));
        assert_eq!(open("data", OpenMode::CreateNew), Err(ErrorKind::AlreadyExists));
        drop(dir.lock("LOCK").unwrap());
        rustix::process::umask(before);

        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for directory in [&*stage.path, stage.path.parent().unwrap()] {
            assert_eq!(mode(directory), 0o700, "{}", directory.display());
        }
        for file in ["data", "LOCK"] {
            assert_eq!(mode(&stage.path.join(file)), 0o600, "{file}");
        }
        symlink("data", stage.path.join("link")).unwrap();
        symlink("nowhere", stage.path.join("dangling")).unwrap();
        std::fs::create_dir(stage.path.join("directory")).unwrap();
        std::fs::hard_link(stage.path.join("data"), stage.path.join("twin")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, stage.path.join("fifo"), fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(stage.path.join("socket")).unwrap());
        for name in ["link", "dangling", "directory", "fifo", "socket", "", ".", "..", "a/b", "/etc/passwd", "nul\0"] {
            assert_eq!(open(name, OpenMode::Read), Err(ErrorKind::InvalidInput), "{name:?} for reading");
            assert_eq!(open(name, OpenMode::ReadWrite), Err(ErrorKind::InvalidInput), "{name:?} for writing");
            assert_eq!(dir.lock(name).map(drop).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?} as a lock");
        }
        assert_eq!(open("twin", OpenMode::ReadWrite), Ok(()), "a hard link must open");
        let missing = stage.path.join("missing");
        assert_eq!(stage.io.open_dir(&missing, false).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_is_exclusive_and_freed_by_its_guard() {
    on_every_backend(|stage| {
        let (dir, again) = (stage.dir(), stage.dir());
        let lock = dir.lock("LOCK").unwrap().expect("the lock is free");
        assert!(dir.lock("LOCK").unwrap().is_none());
        assert!(again.lock("LOCK").unwrap().is_none());
        assert!(dir.lock("OTHER").unwrap().is_some(), "locks of different names are independent");
        drop(lock);
        assert!(again.lock("LOCK").unwrap().is_some());
        // A lock on a file that was renamed no longer protects the old name.
        let lock = dir.lock("LOCK").unwrap().expect("the lock is free again");
        dir.rename("LOCK", "MOVED").unwrap();
        assert!(again.lock("LOCK").unwrap().is_some());
        assert!(again.lock("MOVED").unwrap().is_none());
        drop(lock);
        assert_eq!(
            dir.list().unwrap().iter().filter(|entry| entry.kind == EntryKind::File).count(),
            3,
            "no file is removed"
        );
    });
}

#[test]
fn names_are_listed_renamed_and_removed() {
    on_every_backend(|stage| {
        let dir = stage.dir();
        assert_eq!(dir.list().unwrap(), []);
        let names: BTreeSet<String> = (0..300).map(|number| format!("{:03}", (number * 7) % 300)).collect();
        for name in &names {
            dir.open(name, OpenMode::CreateNew).unwrap();
        }
        std::fs::create_dir(stage.path.join("directory")).unwrap();
        symlink("000", stage.path.join("link")).unwrap();
        let entry = |name: &str, kind| DirEntry { name: name.into(), kind };
        let mut expected: Vec<_> = names.iter().map(|name| entry(name, EntryKind::File)).collect();
        expected.extend([entry("directory", EntryKind::Other), entry("link", EntryKind::Other)]);
        assert_eq!(dir.list().unwrap(), expected);
        assert_eq!(dir.list().unwrap(), expected, "a second listing is the same");

        dir.rename("000", "001").unwrap();
        dir.unlink("002").unwrap();
        dir.sync().unwrap();
        expected.remove(2);
        expected.remove(0);
        assert_eq!(dir.list().unwrap(), expected);
        assert_eq!(dir.unlink("002").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(dir.rename("002", "x").unwrap_err().kind(), ErrorKind::NotFound);
        for bad in ["../x", "", "."] {
            assert_eq!(dir.unlink(bad).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(dir.rename("001", bad).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    });
}
