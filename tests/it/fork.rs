//! `fork`, which the standard library does not offer.
#![allow(unsafe_code, reason = "fork, waitpid and _exit are unsafe to call; this module is the only user")]

/// Forks; runs `child` in the child process and ends it with the status `child` returns. Returns that status.
pub fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: `fork` has no memory-safety precondition of its own. The child runs on a copy of this thread alone: it
    // touches only `child`'s captures, takes no lock another thread may have held except the allocator's, which glibc
    // makes usable in the child, and leaves through `_exit`, so that no destructor or exit handler runs twice.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: `_exit` takes any status and does not return.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: `status` is a live `c_int` for the whole call, and `pid` is our child, which nobody else waits for.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waitpid: {}", std::io::Error::last_os_error());
    assert!(libc::WIFEXITED(status), "the child of the fork ended by signal {}", libc::WTERMSIG(status));
    libc::WEXITSTATUS(status)
}
