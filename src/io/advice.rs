//! Advice to the kernel: thread priorities and early writeback.
//!
//! The kernel may ignore advice, so no function here returns a result. A refusal has no effect.

// These system calls have no safe wrapper.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;

use super::Priority;

/// How much a background thread's nice value is raised. With 5, a background thread gets about a third of a foreground
/// thread's share of a contended processor. With more, a busy store would never finish its hint files and outputs.
const NICE_STEP: i32 = 5;

// From the kernel header <linux/ioprio.h>; libc does not define them.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_BEST_EFFORT: libc::c_int = 2;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_LOWEST_LEVEL: libc::c_int = 7;

/// Sets the priority of the calling thread.
pub(super) fn take_priority(priority: Priority) {
    match priority {
        Priority::Foreground => {}
        Priority::Background => {
            lower_nice();
            lower_io_priority();
        }
    }
}

/// Raises the nice value. In these Linux calls a "process" is a thread.
fn lower_nice() {
    let this = Some(gettid());
    if let Ok(nice) = getpriority_process(this) {
        // The kernel clamps a value beyond the lowest priority.
        let _ = setpriority_process(this, nice + NICE_STEP);
    }
}

/// Lowers the disk priority of the thread.
///
/// The kernel applies a thread's I/O priority to everything the thread submits, including through its ring: a read's
/// requests are made inside the thread's `io_uring_enter`, or by a worker that shares its I/O context. Setting `ioprio`
/// on a submission has no effect, because the page cache does not pass it on. Writeback is done by the kernel itself
/// and has no priority.
fn lower_io_priority() {
    // SAFETY: takes two numbers, of which 0 means the calling thread, and accesses no memory.
    // Shown by `a_background_task_has_a_lower_priority_and_a_foreground_task_has_not`.
    let now = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
    if now >> IOPRIO_CLASS_SHIFT == libc::c_long::from(IOPRIO_CLASS_IDLE) {
        // The process runs in the idle class. Best effort would raise its priority.
        return;
    }
    let lowest = IOPRIO_CLASS_BEST_EFFORT << IOPRIO_CLASS_SHIFT | IOPRIO_LOWEST_LEVEL;
    // SAFETY: takes three numbers, of which 0 means the calling thread, and accesses no memory.
    // Shown by `a_background_task_has_a_lower_priority_and_a_foreground_task_has_not`.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, lowest) };
}

/// Starts writeback of the range's dirty pages. Does not wait for any of them.
///
/// The call's waiting flags would consume the error of a failed write, and the next sync would then succeed. This flag
/// leaves errors for the next sync to report.
pub(super) fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // A length of 0 means "to the end of the file" to the kernel.
    if len > 0 {
        // SAFETY: takes numbers and a descriptor, which the borrow keeps open for the call, and accesses no memory.
        // Shown by `writeback_begins_without_a_sync_and_only_in_the_requested_range`.
        let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}
