//! What a task does to stay out of the foreground's way, as the kernel sees it.
#![allow(unsafe_code, reason = "ioprio_get has no safe wrapper; it is called here alone")]

use std::io;

use ringcask::io::Priority;

use crate::{in_every_world, in_task_of, skip};

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
