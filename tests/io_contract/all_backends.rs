//! The part of the contract that needs no real file system, as one task that runs on every backend, the simulated one
//! included. Results of the crash tests apply to real disks only as far as the backends agree.

use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::testing::io::util::{read_exact, read_full, read_full_once, write_all};
use ringcask::testing::io::{Dir, EntryKind, Io, OpenMode, Priority, SyncKind};
use ringcask::testing::sim::{SimBackend, SimConfig};

use super::{in_task, on_every_backend};

/// Runs every check in turn. Returns the number of checks.
async fn contract(io: Arc<dyn Io>, dir: Arc<dyn Dir>) -> u32 {
    names(&*dir).await;
    bytes_and_ends(&*dir).await;
    space(&*dir).await;
    lock(&*dir);
    dropped_operations(&*dir).await;
    tasks_and_time(&*io).await;
    6
}

async fn names(dir: &dyn Dir) {
    assert_eq!(dir.open("a", OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound);
    let file = dir.open("a", OpenMode::CreateNew).unwrap();
    write_all(&*file, vec![Bytes::from_static(b"of a")], 0).await.unwrap();
    assert_eq!(dir.open("a", OpenMode::CreateNew).unwrap_err().kind(), ErrorKind::AlreadyExists);
    drop(dir.open("b", OpenMode::CreateNew).unwrap());
    dir.rename("a", "b").unwrap();
    dir.sync().unwrap();
    let names: Vec<_> = dir.list().unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
    assert_eq!(names, [(String::from("b"), EntryKind::File)]);
    assert_eq!(read_exact(&*dir.open("b", OpenMode::Read).unwrap(), 0, 4).await.unwrap(), b"of a");
    dir.unlink("b").unwrap();
    assert_eq!(dir.unlink("b").unwrap_err().kind(), ErrorKind::NotFound);
    // An open file outlives its name.
    assert_eq!(read_exact(&*file, 0, 4).await.unwrap(), b"of a");
    for name in ["", ".", "..", "x/y", "/x"] {
        assert!(dir.open(name, OpenMode::CreateNew).is_err(), "{name:?} is not a valid name");
    }
}

async fn bytes_and_ends(dir: &dyn Dir) {
    let file = dir.open("bytes", OpenMode::CreateNew).unwrap();
    let pieces: Vec<Bytes> = (0..40_u8).map(|piece| Bytes::from(vec![piece; 100])).collect();
    write_all(&*file, pieces.clone(), 10).await.unwrap();
    assert_eq!(file.len().unwrap(), 4010);
    for (offset, len) in [(0, 4010), (100, 1), (0, 0), (1 << 40, 1), (u64::MAX, u64::MAX)] {
        file.start_writeback(offset, len);
    }
    file.sync(SyncKind::Data).await.unwrap();
    file.sync_behind(SyncKind::All).await.unwrap();
    let (read, filled) = read_full(&*file, vec![9; 5000], 50, 0).await.unwrap();
    assert_eq!(filled, 4060, "the read ends at the end of the file");
    assert_eq!(read[..50], [9; 50], "bytes before `at` do not change");
    assert_eq!(read[50..60], [0; 10], "a hole reads as zeros");
    assert_eq!(read[60..4060], pieces.concat()[..]);
    assert_eq!(
        read_full_once(&*file, vec![9; 5000], 50, 0).await.unwrap(),
        (read, filled),
        "read_once returns the same"
    );
    assert_eq!(read_exact(&*file, 4000, 11).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(file.read_at(vec![0; 8], 0, 4010).await.result.unwrap(), 0, "a read at the end is not an error");
    write_all(&*file, vec![Bytes::from_static(b"over")], 20).await.unwrap();
    assert_eq!(read_exact(&*file, 19, 6).await.unwrap(), b"\0over\0");
    // Returns the bytes, or reports that the read would wait or that the backend cannot do it.
    let mut now = [7; 4];
    match file.read_nowait(&mut now, 20) {
        Ok(count) => assert_eq!(now[..count], b"over"[..count]),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Unsupported), "{error}"),
    }
}

async fn space(dir: &dyn Dir) {
    let file = dir.open("space", OpenMode::CreateNew).unwrap();
    write_all(&*file, vec![Bytes::from_static(b"0123456789")], 0).await.unwrap();
    match file.allocate(10, 1 << 16) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    assert_eq!(file.len().unwrap(), 10, "preallocation does not change the length");
    file.truncate(4).unwrap();
    file.sync(SyncKind::All).await.unwrap();
    file.evict();
    file.expect_random_reads();
    file.start_reading(2, 1 << 20);
    file.truncate(8).unwrap();
    assert_eq!(read_exact(&*file, 0, 8).await.unwrap(), b"0123\0\0\0\0", "truncated bytes read as zeros");
}

fn lock(dir: &dyn Dir) {
    let held = dir.lock("LOCK").unwrap().expect("the lock is free");
    assert!(dir.lock("LOCK").unwrap().is_none(), "the lock is held");
    drop(held);
    assert!(dir.lock("LOCK").unwrap().is_some(), "the lock is free again");
}

async fn dropped_operations(dir: &dyn Dir) {
    let file = dir.open("dropped", OpenMode::CreateNew).unwrap();
    for turn in 0..50_u8 {
        let mut write = file.write_at(vec![Bytes::from(vec![turn; 64])], u64::from(turn) * 64);
        if turn % 2 == 0 {
            let _ = pin!(&mut write).poll(&mut Context::from_waker(Waker::noop()));
        }
        drop(write);
        drop(file.read_at(vec![0; 64], 0, 0));
    }
    // Every started write runs to its end. It is complete, because the test injects no short writes. The content is the
    // only sign of its completion.
    loop {
        let (read, filled) = read_full(&*file, vec![0; 50 * 64], 0, 0).await.unwrap();
        if filled == read.len() && (0..50_u8).all(|turn| read[usize::from(turn) * 64..][..64] == [turn; 64]) {
            return;
        }
    }
}

async fn tasks_and_time(io: &dyn Io) {
    let (done, start) = (Arc::new(AtomicU32::new(0)), io.now());
    let task = Arc::clone(&done);
    let add = async move {
        task.fetch_add(1, Ordering::SeqCst);
    };
    io.spawn("contract-2", Priority::Background, Box::pin(add)).unwrap();
    // The sleep gives the other task its turn. The result does not depend on how long that task takes.
    while done.load(Ordering::SeqCst) == 0 {
        io.sleep(Duration::from_millis(1)).await;
    }
    io.sleep(Duration::from_millis(3)).await;
    assert!(io.now() >= start + Duration::from_millis(3), "a sleep ended early");
    let mut flushed = false;
    std::future::poll_fn(|cx| {
        io.flush();
        cx.waker().wake_by_ref();
        if std::mem::replace(&mut flushed, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert_ne!(io.random_u64().unwrap(), io.random_u64().unwrap());
}

#[test]
fn real_backends_pass_the_simulated_contract() {
    on_every_backend(|stage| assert_eq!(in_task(&stage, contract), 6));
}

#[test]
fn the_simulated_backend_passes_the_contract() {
    let seeds = 200;
    for seed in 0..seeds {
        let backend =
            SimBackend::new(SimConfig { seed, short_percent: 0, interrupt_percent: 0, ..SimConfig::default() });
        let io: Arc<dyn Io> = Arc::new(backend.clone());
        let dir = io.open_dir(Path::new("/contract/deep"), true).unwrap();
        assert_eq!(backend.run_until(contract(io, dir)), 6, "seed {seed}");
        assert_eq!(backend.panics(), Vec::<String>::new(), "seed {seed}");
        backend.shutdown();
    }
    println!("{seeds} seeds of the simulated backend");
}
