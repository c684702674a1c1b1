//! What the kernel is advised of, and may ignore.
//!
//! Nothing here has a result: what is refused is as if it had not been asked for.

// The calls here have no safe wrapper.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;

use super::Priority;

/// What a background thread's nice value is raised by: a third of a foreground thread's share, where both want the same
/// processor. More, and hints and outputs of a busy store would never be finished.
const NICE_STEP: i32 = 5;

// From the kernel's <linux/ioprio.h>, which libc does not have.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_BEST_EFFORT: libc::c_int = 2;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_LOWEST_LEVEL: libc::c_int = 7;

/// Gives the calling thread `priority`.
pub(super) fn take_priority(priority: Priority) {
    match priority {
        Priority::Foreground => {}
        Priority::Background => {
            lower_nice();
            lower_io_priority();
        }
    }
}

/// To Linux, a "process" in these calls is a thread.
fn lower_nice() {
    let this = Some(gettid());
    if let Ok(nice) = getpriority_process(this) {
        // Beyond the lowest priority there is, the kernel takes that.
        let _ = setpriority_process(this, nice + NICE_STEP);
    }
}

/// What a thread submits to the disk has the thread's priority, also by way of its ring: a read's requests are made in
/// its own `io_uring_enter`, or by a worker that shares its I/O context. A submission's `ioprio` would not do: the page
/// cache does not hand it on. Writes from the page cache are the kernel's, and have none.
fn lower_io_priority() {
    // SAFETY: takes two numbers, of which 0 is the calling thread, and touches no memory.
    // Shown by `a_background_task_has_a_lower_priority_and_a_foreground_task_has_not`.
    let now = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
    if now >> IOPRIO_CLASS_SHIFT == libc::c_long::from(IOPRIO_CLASS_IDLE) {
        // The whole process was told to stand behind everybody else. Best effort would be more.
        return;
    }
    let lowest = IOPRIO_CLASS_BEST_EFFORT << IOPRIO_CLASS_SHIFT | IOPRIO_LOWEST_LEVEL;
    // SAFETY: takes three numbers, of which 0 is the calling thread, and touches no memory.
    // Shown by `a_background_task_has_a_lower_priority_and_a_foreground_task_has_not`.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, lowest) };
}

/// Begins to write the range's dirty pages to the disk. Waits for none of them.
///
/// The call's flags that wait would take the error of a failed write with them, and the sync after it would succeed. This
/// one leaves errors where the next sync finds them.
pub(super) fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // To the kernel, no bytes are all up to the end of the file.
    if len > 0 {
        // SAFETY: takes numbers and a descriptor, which the borrow keeps open until it returns, and touches no memory.
        // Shown by `writeback_begins_without_a_sync_and_only_in_the_requested_range`.
        let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}
