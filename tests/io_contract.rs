//! The rules of the I/O seam, one suite for every world.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a failed test")]

use std::path::Path;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use ringcask::io::threads::ThreadsIo;
use ringcask::io::{Dir, Io, OpenMode, SyncKind};

/// The worlds under test. A new world is added here, and nowhere else.
fn worlds() -> Vec<(&'static str, Arc<dyn Io>)> {
    vec![("threads", Arc::new(ThreadsIo::new()))]
}

/// Runs `check` in a task of `io`, in a fresh directory, to its end.
fn in_task<F, T>(io: &Arc<dyn Io>, path: &Path, check: F)
where
    F: FnOnce(Arc<dyn Io>, Arc<dyn Dir>) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let (done, ended) = mpsc::channel();
    let dir = io.open_dir(path, true).unwrap();
    let world = Arc::clone(io);
    io.spawn(
        "contract",
        Box::pin(async move {
            check(world, dir).await;
            done.send(()).unwrap();
        }),
    )
    .unwrap();
    ended.recv().expect("the task panicked; its message is above");
}

#[test]
fn what_was_written_is_read_back() {
    for (name, io) in worlds() {
        let home = tempfile::tempdir().unwrap();
        in_task(&io, &home.path().join("a/b"), move |io, dir| async move {
            let lock = dir.lock("LOCK").unwrap().expect("nobody holds it");
            assert!(dir.lock("LOCK").unwrap().is_none(), "{name}: locked twice");
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            let pieces = vec![Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"defg")];
            assert_eq!(file.write_at(pieces, 0).await.unwrap(), 7, "{name}");
            file.sync(SyncKind::Data).await.unwrap();
            dir.sync().unwrap();
            io.sleep(std::time::Duration::from_millis(1)).await;
            let done = file.read_at(vec![0; 16], 2, 1).await;
            assert_eq!(done.result.unwrap(), 6, "{name}");
            assert_eq!(&done.buf[..8], b"\0\0bcdefg", "{name}");
            drop(lock);
            assert!(dir.lock("LOCK").unwrap().is_some(), "{name}: free after the guard");
        });
    }
}
