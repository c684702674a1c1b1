//! Reads, writes and syncs, and the resources that they release.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use ringcask::testing::io::{File, OpFuture, OpenMode, ReadDone, SyncKind, util};

use crate::{Owner, PATIENCE, check_block, in_task, on_every_backend, wait};

#[test]
fn reads_return_what_was_written_and_are_short_at_the_end() {
    on_every_backend(|stage| {
        in_task(&stage, |_, dir| async move {
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            let pieces = vec![Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"defg")];
            assert_eq!(file.write_at(pieces, 0).await.unwrap(), 7);
            assert_eq!(file.write_at(vec![Bytes::from_static(b"XY")], 9).await.unwrap(), 2);
            assert_eq!(file.write_at(vec![Bytes::new()], 99).await.unwrap(), 0);
            assert_eq!(file.write_at(Vec::new(), 99).await.unwrap(), 0);
            file.sync(SyncKind::Data).await.unwrap();
            file.sync(SyncKind::All).await.unwrap();
            assert_eq!(file.len().unwrap(), 11);
            let done = file.read_at(vec![1; 16], 2, 1).await;
            assert_eq!(done.result.unwrap(), 10);
            assert_eq!(done.buf, b"\x01\x01bcdefg\0\0XY\x01\x01\x01\x01");
            assert_eq!(file.read_at(vec![0; 4], 0, 11).await.result.unwrap(), 0, "a read at the end returns 0");
            assert_eq!(file.read_at(vec![0; 4], 4, 0).await.result.unwrap(), 0, "a read into a full buffer returns 0");
            assert_eq!(util::read_exact(&*file, 3, 4).await.unwrap(), b"defg");
            assert_eq!(util::read_exact(&*file, 3, 99).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);

            let beyond = u64::MAX;
            let invalid = Some(ErrorKind::InvalidInput);
            let done = file.read_at(vec![7; 4], 5, 0).await;
            assert_eq!((done.result.err().map(|error| error.kind()), done.buf), (invalid, vec![7; 4]));
            let done = file.read_once(vec![7; 4], 5, 0).await;
            assert_eq!((done.result.err().map(|error| error.kind()), done.buf), (invalid, vec![7; 4]));
            assert_eq!(file.read_once(vec![0; 4], 0, beyond).await.result.err().map(|error| error.kind()), invalid);
            assert_eq!(
                file.read_once(vec![0; 4], 4, 0).await.result.unwrap(),
                0,
                "a read into a full buffer returns 0"
            );
            assert_eq!(file.read_once(vec![0; 4], 0, 11).await.result.unwrap(), 0, "a read at the end returns 0");
            assert_eq!(file.read_at(vec![0; 4], 0, beyond).await.result.err().map(|error| error.kind()), invalid);
            let written = file.write_at(vec![Bytes::from_static(b"z")], beyond).await;
            assert_eq!(written.err().map(|error| error.kind()), invalid);
            assert_eq!(file.read_nowait(&mut [0; 4], beyond).err().map(|error| error.kind()), invalid);

            let read_only = dir.open("data", OpenMode::Read).unwrap();
            assert!(read_only.write_at(vec![Bytes::from_static(b"z")], 0).await.is_err());
            assert_eq!(file.len().unwrap(), 11);
        });
    });
}

#[test]
fn many_pieces_and_large_pieces_are_written_completely() {
    on_every_backend(|stage| {
        in_task(&stage, |_, dir| async move {
            let file = dir.open("pieces", OpenMode::CreateNew).unwrap();
            let pieces: Vec<Bytes> = (0..5000u32).map(|n| Bytes::from(n.to_le_bytes().to_vec())).collect();
            let first = file.write_at(pieces.clone(), 0).await.unwrap();
            assert!((1..=20_000).contains(&first), "{first} bytes");
            util::write_all(&*file, pieces.clone(), 10).await.unwrap();
            assert_eq!(util::read_exact(&*file, 10, 20_000).await.unwrap(), pieces.concat());

            let large: Vec<u8> = (0..8_000_000u32).flat_map(u32::to_le_bytes).collect();
            util::write_all(&*file, vec![Bytes::from(large.clone())], 30_000).await.unwrap();
            file.sync(SyncKind::Data).await.unwrap();
            file.evict();
            assert!(
                util::read_exact(&*file, 30_000, large.len()).await.unwrap() == large,
                "the 32 MB read differ from those written"
            );
        });
    });
}

#[test]
fn a_probe_of_a_cached_block_does_not_wait() {
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let file = stage.cold_file(64);
        let (mut buf, mut misses) = (vec![0; 4096], 0);
        for block in 0..64u32 {
            let offset = u64::from(block) * 4096;
            match file.read_nowait(&mut buf, offset) {
                // The first probe may already hit: the disk may complete the kernel's read-ahead before it.
                Ok(count) => assert_eq!(buf[..count], block.to_le_bytes().repeat(1024)[..count]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    misses += 1;
                    check_block(wait(file.read_at(vec![0; 4096], 0, offset)), block);
                }
            }
        }
        for block in 0..64u32 {
            assert_eq!(file.read_nowait(&mut buf, u64::from(block) * 4096).unwrap(), 4096, "the block is now cached");
            assert_eq!(buf, block.to_le_bytes().repeat(1024));
        }
        assert_eq!(file.read_nowait(&mut buf, 64 * 4096).unwrap(), 0, "a read at the end never waits");
        println!("{}: 64 hits, after {misses} misses", stage.name);
    });
}

#[test]
fn preallocated_space_is_not_length_and_can_be_freed() {
    on_every_backend(|stage| {
        let dir = stage.dir();
        let file = dir.open("data", OpenMode::CreateNew).unwrap();
        let on_disk = || std::fs::metadata(stage.path.join("data")).unwrap().blocks() * 512;
        wait(file.write_at(vec![Bytes::from(vec![7; 5000])], 0)).unwrap();
        wait(file.sync(SyncKind::All)).unwrap();
        let before = on_disk();
        file.allocate(0, 8 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 5000);
        assert!(on_disk() >= 8 << 20, "{} bytes preallocated", on_disk());
        file.truncate(5000).unwrap();
        assert_eq!(
            (file.len().unwrap(), on_disk()),
            (5000, before),
            "truncating to the same length frees the preallocated rest"
        );
        file.truncate(4097).unwrap();
        assert_eq!(wait(file.read_at(vec![0; 9999], 0, 0)).result.unwrap(), 4097);
        file.truncate(6000).unwrap();
        let done = wait(file.read_at(vec![1; 9999], 0, 0));
        assert_eq!(done.result.unwrap(), 6000);
        assert_eq!(done.buf[4097..6000], [0; 1903], "truncated bytes read as zeros");
    });
}

/// Dropping a future only abandons its result: the writes complete, and every buffer is freed, once.
#[test]
fn dropped_operations_run_to_their_end_and_free_their_buffers() {
    const WRITES: u32 = 1000;
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let cold = stage.cold_file(WRITES);
        let freed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&freed);
        in_task(&stage, |_, dir| async move {
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            for n in 0..WRITES {
                let pieces = (0..n % 3 + 1).map(|_| {
                    let owner = Owner(n.to_le_bytes().repeat(256), Arc::clone(&counter));
                    Bytes::from_owner(owner)
                });
                drop(file.write_at(pieces.collect(), u64::from(n) * 4096));
                let mut read = cold.read_at(vec![0; 4096], 0, u64::from(n) * 4096);
                if n % 2 == 0 {
                    // Polled once and then dropped, which leaves a waker behind.
                    let _ = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
                }
                drop(read);
                if n % 100 == 0 {
                    check_block(cold.read_at(vec![0; 4096], 0, u64::from(n) * 4096).await, n);
                }
            }
        });
        for n in 0..WRITES {
            // From a thread outside the backend as well.
            drop(stage.dir().open("cold", OpenMode::Read).unwrap().read_at(vec![0; 4096], 0, u64::from(n) * 4096));
        }
        let pieces: usize = (0..WRITES as usize).map(|n| n % 3 + 1).sum();
        let start = Instant::now();
        while freed.load(Ordering::SeqCst) < pieces {
            assert!(start.elapsed() < PATIENCE, "{} of {pieces} buffers freed", freed.load(Ordering::SeqCst));
            thread::yield_now();
        }
        let content = std::fs::read(stage.path.join("data")).unwrap();
        for n in 0..WRITES as usize {
            let written = &content[n * 4096..][..(n % 3 + 1) * 1024];
            assert_eq!(written, u32::try_from(n).unwrap().to_le_bytes().repeat(256 * (n % 3 + 1)), "write {n}");
        }
        println!("{}: {WRITES} dropped writes, {} dropped reads, {pieces} buffers freed", stage.name, 2 * WRITES);
        assert_eq!(freed.load(Ordering::SeqCst), pieces);
    });
}

#[test]
fn thousands_of_reads_from_foreign_threads_all_complete() {
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let file = stage.cold_file(1024);
        let read_count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for thread in 0..8u32 {
                let (file, read_count) = (&file, &read_count);
                scope.spawn(move || {
                    for round in 0..4u32 {
                        let block = |n: u32| (n * 37 + thread * 101 + round) % 1024;
                        let reads = (0..256).map(|n| file.read_at(vec![0; 4096], 0, u64::from(block(n)) * 4096));
                        for (n, done) in (0..).zip(wait(join_all(reads))) {
                            check_block(done, block(n));
                            read_count.fetch_add(1, Ordering::Relaxed);
                        }
                        file.evict();
                    }
                });
            }
        });
        assert_eq!(read_count.into_inner(), 8192);
    });
}

#[test]
fn reads_outlive_the_thread_that_started_them_and_the_backend() {
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let file = stage.cold_file(512);
        let start = |file: &Arc<dyn File>| -> Vec<OpFuture<ReadDone>> {
            (0..512u64).map(|block| file.read_at(vec![0; 4096], 0, block * 4096)).collect()
        };
        let reads = thread::scope(|scope| scope.spawn(|| start(&file)).join().unwrap());
        for (block, done) in (0..).zip(wait(join_all(reads))) {
            check_block(done, block);
        }
        file.evict();
        let reads = start(&file);
        // Dropping the last handles waits for all started operations and ends the threads.
        drop((file, stage));
        for (block, mut read) in (0..).zip(reads) {
            match read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => check_block(done, block),
                Poll::Pending => panic!("the read of block {block} is still pending"),
            }
        }
    });
}

#[test]
fn one_task_runs_ten_thousand_operations_at_once() {
    on_every_backend(|stage| {
        let written: usize = in_task(&stage, |_, dir| async move {
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            let block = |n: u32| Bytes::from(n.to_le_bytes().repeat(16));
            let writes = (0..10_000).map(|n| file.write_at(vec![block(n)], u64::from(n) * 64));
            let written = join_all(writes).await.into_iter().map(|count| count.unwrap()).sum();
            file.sync(SyncKind::Data).await.unwrap();
            let reads = (0..10_000).map(|n| file.read_at(vec![0; 64], 0, n * 64));
            for (n, done) in (0..).zip(join_all(reads).await) {
                assert_eq!((done.result.unwrap(), done.buf), (64, block(n).to_vec()), "block {n}");
            }
            written
        });
        assert_eq!(written, 640_000);
    });
}
