//! What the process may do to our threads: fork, and signals.
//!
//! After a `fork` the child has a copy of every handle and none of the threads behind them, and shares the lock and the
//! files with its parent. There is nothing it can do right with such a handle, so handles remember the generation they
//! were made in and refuse to work in another one.

// The two calls here have no safe wrapper.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static GENERATION: AtomicU64 = AtomicU64::new(0);
static REGISTERED: Once = Once::new();

/// How many forks lie between this process and the first world: compare it with what it was when a handle was made.
pub(crate) fn fork_generation() -> u64 {
    // Relaxed: it changes only in a child that has, at that moment, this one thread.
    GENERATION.load(Ordering::Relaxed)
}

/// Begins to count forks. Called by every world; only the first call does something.
pub(crate) fn watch() {
    REGISTERED.call_once(|| {
        // SAFETY: `in_child` is a function for the life of the program and does nothing but an atomic addition, which
        // is async-signal-safe, as the child of a threaded process demands. The other two handlers may be absent.
        // A refusal (out of memory) leaves forks unnoticed, as in a program without this call.
        // Shown by `a_child_sees_another_generation_and_its_parent_does_not`.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Keeps the process's signals away from this thread: handlers run on the application's threads, and waits here are not
/// interrupted. Faults stay deliverable, and so does the profilers' clock.
pub(crate) fn block_signals() {
    const LEFT_OPEN: [libc::c_int; 8] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGSYS,
        libc::SIGPROF,
    ];
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the set it is given, which is ours; the calls after it only read or change that
    // initialised set, and `pthread_sigmask` keeps no pointer to it. All signal numbers are valid.
    // Shown by `signals_are_kept_away_and_faults_are_not`.
    unsafe {
        if libc::sigfillset(set.as_mut_ptr()) != 0 {
            return;
        }
        for signal in LEFT_OPEN {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signals that the calling thread does not get, a bit each.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn signals_are_kept_away_and_faults_are_not() {
        let before = blocked();
        let inside = std::thread::spawn(|| {
            block_signals();
            blocked()
        });
        let inside = inside.join().unwrap();
        let has = |signal: libc::c_int| inside & 1 << (signal - 1) != 0;
        assert!([libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGALRM].into_iter().all(has));
        assert!(![libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGABRT, libc::SIGPROF].into_iter().any(has));
        assert_eq!(blocked(), before, "another thread's signals");
    }

    #[test]
    fn a_child_sees_another_generation_and_its_parent_does_not() {
        watch();
        let before = fork_generation();
        // SAFETY: the child calls nothing but an atomic load and `_exit`, both async-signal-safe.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = i32::from(fork_generation() != before + 1);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(status) };
        }
        assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
        let mut status = -1;
        // SAFETY: `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child did not see the next generation");
        assert_eq!(fork_generation(), before);
    }
}
