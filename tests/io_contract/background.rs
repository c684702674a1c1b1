//! What a task does to stay out of the foreground's way, as the kernel sees it.
#![allow(unsafe_code, reason = "ioprio_get and cachestat have no safe wrapper; they are called here alone")]

use std::io;
use std::os::fd::AsRawFd;

use ringcask::bytes::Bytes;
use ringcask::io::{OpenMode, Priority, util};

use crate::{Stage, in_every_world, in_task_of, skip, wait};

/// `IOPRIO_CLASS_IDLE` and the lowest level of `IOPRIO_CLASS_BE`, in the kernel's encoding.
const IDLE: libc::c_long = 3 << 13;
const LOWEST_BEST_EFFORT: libc::c_long = 2 << 13 | 7;

/// The calling thread's nice value.
fn nice() -> i64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The name before it may contain anything.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// The calling thread's I/O priority.
fn io_priority() -> io::Result<libc::c_long> {
    // SAFETY: takes two numbers, of which 1 makes the other a thread and 0 the calling one, and touches no memory.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        priority => Ok(priority),
    }
}

/// Where in a file, as the kernel takes it.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// Pages of a range, as the kernel counts them.
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
    // The same number on every architecture; libc does not have it on all.
    const CACHESTAT: libc::c_long = 451;
    let file = std::fs::File::open(stage.path.join(name)).unwrap();
    let (range, mut pages) = (Range { offset, len }, Pages::default());
    // SAFETY: the descriptor is open; the kernel reads one structure and fills the other, which have its layout
    // (`struct cachestat_range` and `struct cachestat`) and outlive the call; there are no flags.
    match unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, 0) } {
        0 => Ok(pages),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_background_task_stands_behind_and_a_foreground_task_does_not() {
    let before = match io_priority() {
        Ok(before) => before,
        Err(error) => return skip("the I/O priority of tasks", &error.to_string()),
    };
    in_every_world(|stage| {
        let of_task = |priority| in_task_of(priority, &stage, |_, _| async { (nice(), io_priority().unwrap()) });
        let behind = if before >= IDLE { before } else { LOWEST_BEST_EFFORT };
        assert_eq!(of_task(Priority::Background), ((nice() + 5).min(19), behind));
        assert_eq!(of_task(Priority::Foreground), (nice(), before));
        assert_eq!(io_priority().unwrap(), before, "whoever spawns keeps its own");
    });
}

#[test]
fn writing_back_begins_without_a_sync_and_where_it_was_asked_for() {
    const HALF: u64 = 2 << 20;
    in_every_world(|stage| {
        let file = stage.dir().open("data", OpenMode::CreateNew).unwrap();
        wait(util::write_all(&*file, vec![Bytes::from(vec![7; 4 << 20])], 0)).unwrap();
        let dirty = |offset| pages(&stage, "data", offset, HALF).map(|pages| pages.dirty);
        match dirty(0) {
            Ok(512) => {}
            found => return skip("early write-back", &format!("512 dirty pages, counted as {found:?}")),
        }
        file.start_writeback(0, 0);
        assert_eq!((dirty(0).unwrap(), dirty(HALF).unwrap()), (512, 512), "nothing was asked for");
        file.start_writeback(HALF, HALF);
        // Handed to the disk or written already, by the call itself.
        assert_eq!((dirty(0).unwrap(), dirty(HALF).unwrap()), (512, 0));
    });
}
