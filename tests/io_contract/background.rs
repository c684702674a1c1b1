//! How background tasks keep out of the way of foreground I/O, as reported by the kernel.
#![allow(unsafe_code, reason = "ioprio_get and cachestat have no safe wrapper; this file contains the only calls")]

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use futures_util::future::join_all;
use ringcask::bytes::Bytes;
use ringcask::testing::io::{File, OpenMode, Priority, util};
use rustix::io::ReadWriteFlags;

use crate::{PATIENCE, Stage, check_block, in_task_of, on_every_backend, skip, wait};

/// `IOPRIO_CLASS_IDLE` and the lowest level of `IOPRIO_CLASS_BE`, in the kernel's encoding.
const IDLE: libc::c_long = 3 << 13;
const LOWEST_BEST_EFFORT: libc::c_long = 2 << 13 | 7;

/// `f_type` of tmpfs, from the kernel's <linux/magic.h>.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// The calling thread's nice value.
fn nice() -> i64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The process name in front may contain any character.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// The calling thread's I/O priority.
fn io_priority() -> io::Result<libc::c_long> {
    // SAFETY: the call takes two numbers and touches no memory: 1 selects a thread, and 0 is the calling one.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        priority => Ok(priority),
    }
}

/// The kernel's `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// The kernel's `struct cachestat`: page counts of a range.
#[repr(C)]
#[derive(Debug, Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    in_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The pages of the stage's file `name` in the page cache.
fn pages(stage: &Stage, name: &str, offset: u64, len: u64) -> io::Result<Pages> {
    // The number is the same on every architecture, but libc does not define it on all of them.
    const CACHESTAT: libc::c_long = 451;
    let file = std::fs::File::open(stage.path.join(name)).unwrap();
    let (range, mut pages) = (Range { offset, len }, Pages::default());
    // SAFETY: the descriptor is open. The kernel reads one structure and writes the other. Both have the layout that it
    // expects (`struct cachestat_range` and `struct cachestat`) and outlive the call. There are no flags.
    match unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, 0) } {
        0 => Ok(pages),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_background_task_has_a_lower_priority_and_a_foreground_task_has_not() {
    let before = match io_priority() {
        Ok(before) => before,
        Err(error) => return skip("the I/O priority of tasks", &error.to_string()),
    };
    on_every_backend(|stage| {
        let of_task = |priority| in_task_of(priority, &stage, |_, _| async { (nice(), io_priority().unwrap()) });
        let behind = if before >= IDLE { before } else { LOWEST_BEST_EFFORT };
        assert_eq!(of_task(Priority::Background), ((nice() + 5).min(19), behind));
        assert_eq!(of_task(Priority::Foreground), (nice(), before));
        assert_eq!(io_priority().unwrap(), before, "the spawning thread keeps its priority");
    });
}

/// Checks that `look` returns `expected` within ten tries: other processes may use memory or sync the disk meanwhile,
/// but not every time.
#[track_caller]
fn assert_within_ten_tries<T: PartialEq + Debug>(look: impl Fn() -> T, expected: T) {
    let seen: Vec<T> = (0..10).map(|_| look()).take_while(|seen| *seen != expected).collect();
    assert!(seen.len() < 10, "{seen:?} instead of {expected:?}");
}

/// Whether the file system of `directory` supports reads that leave nothing in the page cache.
fn has_uncached_reads(directory: &Path) -> bool {
    let file = tempfile::tempfile_in(directory).unwrap();
    let dontcache = ReadWriteFlags::from_bits_retain(0x80);
    rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut [0])], 0, dontcache).is_ok()
}

/// Reads all blocks of `file` with `read_once`, 16 at a time, and checks them.
async fn read_all_once(file: &dyn File, blocks: u32) {
    for first in (0..blocks).step_by(16) {
        let (read, filled) = util::read_full_once(file, vec![0; 16 << 12], 0, u64::from(first) << 12).await.unwrap();
        assert_eq!(filled, read.len());
        for (block, bytes) in (first..).zip(read.chunks(4096)) {
            assert_eq!(bytes, block.to_le_bytes().repeat(1024), "block {block}");
        }
    }
}

#[test]
fn data_read_once_leaves_the_page_cache_unchanged() {
    const BLOCKS: u32 = 1024;
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let cached = || pages(&stage, "cold", 0, 0).unwrap().cached;
        let file = stage.cold_file(BLOCKS);
        if let Err(error) = pages(&stage, "cold", 0, 0) {
            return skip("uncached reads", &error.to_string());
        }
        if !has_uncached_reads(&stage.path) {
            return skip("uncached reads", "the kernel or the file system has none");
        }
        let by_the_read_thread = || wait(read_all_once(&*file, BLOCKS));
        let by_a_task = || {
            in_task_of(Priority::Background, &stage, |_, dir| async move {
                read_all_once(&*dir.open("cold", OpenMode::Read).unwrap(), BLOCKS).await;
            });
        };
        for read_once in [&by_the_read_thread as &dyn Fn(), &by_a_task] {
            assert_within_ten_tries(
                || {
                    file.evict();
                    let before = cached();
                    read_once();
                    (before, cached())
                },
                (0, 0),
            );
            assert_within_ten_tries(
                || {
                    wait(util::read_full(&*file, vec![0; 4096 * BLOCKS as usize], 0, 0)).unwrap();
                    let before = cached();
                    read_once();
                    (before, cached())
                },
                (u64::from(BLOCKS), u64::from(BLOCKS)),
            );
        }
    });
}

#[test]
fn random_reads_cache_only_the_requested_pages() {
    const BLOCKS: u32 = 1024;
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let file = stage.cold_file(BLOCKS);
        let cached = || pages(&stage, "cold", 0, 0).map(|pages| pages.cached);
        if let Err(error) = cached() {
            return skip("random reads", &error.to_string());
        }
        if rustix::fs::statfs(&stage.path).unwrap().f_type == TMPFS_MAGIC {
            return skip("random reads", "the directory is on a tmpfs");
        }
        let read_two = || {
            file.evict();
            for block in [0, BLOCKS / 2] {
                check_block(wait(file.read_at(vec![0; 4096], 0, u64::from(block) << 12)), block);
            }
            cached().unwrap()
        };
        let read_ahead = read_two();
        println!("{read_ahead} pages for two reads, by default");
        if read_ahead <= 2 {
            return skip("random reads", "the kernel reads nothing ahead by default");
        }
        file.expect_random_reads();
        assert_within_ten_tries(read_two, 2);
        file.evict();
        file.start_reading(1 << 20, 1 << 20);
        let started = Instant::now();
        while cached().unwrap() < 256 {
            assert!(started.elapsed() < PATIENCE, "{} pages of 256", cached().unwrap());
            std::thread::yield_now();
        }
        assert_eq!(cached().unwrap(), 256, "only the requested pages are read ahead");
    });
}

#[test]
fn read_once_falls_back_where_uncached_reads_are_unsupported() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() || has_uncached_reads(memory) {
        return skip("a file system without uncached reads", "/dev/shm supports them, or is missing");
    }
    on_every_backend(|stage| {
        let home = tempfile::tempdir_in(memory).unwrap();
        let stage = Stage { path: home.path().to_owned(), ..stage };
        let file = stage.cold_file(64);
        wait(read_all_once(&*file, 64));
        in_task_of(Priority::Background, &stage, |_, dir| async move {
            read_all_once(&*dir.open("cold", OpenMode::Read).unwrap(), 64).await;
            // All at once, so that several are refused before the backend remembers the refusal.
            let reads = (0..64).map(|block| file.read_once(vec![0; 4096], 0, block << 12));
            for (block, done) in (0..).zip(join_all(reads).await) {
                check_block(done, block);
            }
        });
    });
}

#[test]
fn writeback_begins_without_a_sync_and_only_in_the_requested_range() {
    const HALF: u64 = 2 << 20;
    on_every_backend(|stage| {
        let dir = stage.dir();
        let dirty = |offset| pages(&stage, "data", offset, HALF).map(|pages| pages.dirty);
        // A new file each time: the kernel skips pages that are already being written.
        let create = || {
            let _ = dir.unlink("data");
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            wait(util::write_all(&*file, vec![Bytes::from(vec![7; 4 << 20])], 0)).unwrap();
            file
        };
        let mut counts = (0..10).map(|_| {
            create();
            dirty(0)
        });
        match counts.find(|count| !matches!(count, Ok(0))) {
            Some(Ok(_)) => {}
            None => return skip("early writeback", "this file system has no dirty pages"),
            Some(Err(error)) => return skip("early writeback", &error.to_string()),
        }
        let halves = || (dirty(0).unwrap(), dirty(HALF).unwrap());
        let look = || {
            let file = create();
            file.start_writeback(0, 0);
            let after_empty_range = halves();
            file.start_writeback(HALF, HALF);
            // Now the pages are under writeback, or already written.
            (after_empty_range, halves())
        };
        assert_within_ten_tries(look, ((512, 512), (512, 0)));
    });
}
