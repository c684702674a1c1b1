//! `fork`, which the standard library does not offer.
#![allow(unsafe_code, reason = "fork, waitpid and _exit are unsafe to call; this module is the only user")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{RawWaker, RawWakerVTable, Waker};
use std::thread;
use std::time::Duration;

/// A child that hangs is killed after this time.
const PATIENCE_SECONDS: u32 = 120;

/// Wakers from [`stuck_waker`] whose `clone` is in progress, and the flag that lets `clone` return.
static STUCK: AtomicUsize = AtomicUsize::new(0);
static RELEASED: AtomicUsize = AtomicUsize::new(0);

/// A waker whose `clone` blocks until [`release_wakers`]. A lock that the caller holds stays held.
pub fn stuck_waker() -> Waker {
    const VTABLE: RawWakerVTable = RawWakerVTable::new(clone, ignore, ignore, ignore);
    fn clone(_: *const ()) -> RawWaker {
        STUCK.fetch_add(1, Ordering::Release);
        while RELEASED.load(Ordering::Acquire) == 0 {
            // Yields the processor; the result does not depend on this sleep.
            thread::sleep(Duration::from_micros(500));
        }
        RawWaker::new(std::ptr::null(), &VTABLE)
    }
    fn ignore(_: *const ()) {}
    // SAFETY: the table's functions are thread-safe and never touch the data pointer, so any will do and none dangles.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &VTABLE)) }
}

/// The number of clones that are blocked now.
pub fn stuck_count() -> usize {
    STUCK.load(Ordering::Acquire)
}

/// Lets all blocked and future clones return.
pub fn release_wakers() {
    RELEASED.store(1, Ordering::Release);
}

/// Forks; runs `child` in the child process and ends it with the status `child` returns. Returns that status.
pub fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: `fork` has no memory-safety precondition. The child runs on a copy of this thread alone: it
    // touches only `child`'s captures, takes no lock another thread may have held except the allocator's, which glibc
    // makes usable in the child, and leaves through `_exit`, so that no destructor or exit handler runs twice.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: `alarm` takes any number. The signal has no handler, so it ends the child.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: `_exit` takes any status and does not return.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: `status` is a live `c_int` for the whole call, and `pid` is our child, which no other code waits for.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waitpid: {}", std::io::Error::last_os_error());
    assert!(libc::WIFEXITED(status), "the child of the fork ended by signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status)
}

/// Runs `meanwhile` while an idle forked child is alive.
pub fn beside_child(meanwhile: impl FnOnce()) {
    // SAFETY: as in `in_child`. The child calls only `alarm`, which takes any number, and `pause`, which returns only
    // after a signal handler has run. A signal ends the child.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        loop {
            // SAFETY: see above.
            unsafe {
                libc::alarm(PATIENCE_SECONDS);
                libc::pause();
            }
        }
    }
    meanwhile();
    let mut status = 0;
    // SAFETY: `pid` is our child, which no code has waited for yet, and `status` outlives the call.
    let waited = unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &raw mut status, 0)
    };
    assert_eq!(waited, pid, "waitpid: {}", std::io::Error::last_os_error());
}
