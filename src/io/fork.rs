//! What the application may do to the store's threads: fork, and signals.
//!
//! After a `fork` the child has a copy of every handle but none of the store's threads, and shares the lock and the
//! files with its parent. Such a handle cannot work in the child. Each handle therefore remembers the fork generation
//! in which it was created, and refuses to work in another one.

// The system calls in this file have no safe wrapper.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static GENERATION: AtomicU64 = AtomicU64::new(0);
static REGISTERED: Once = Once::new();

/// The number of forks since the first backend was created. A handle compares it with the value at its own creation.
pub(crate) fn fork_generation() -> u64 {
    // Relaxed: it changes only in a forked child, which has a single thread at that moment.
    GENERATION.load(Ordering::Relaxed)
}

/// The PID of this process. In the child of a fork it differs from the parent's.
pub(crate) fn process_id() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()
}

/// Starts counting forks. Every backend calls this; only the first call has an effect.
pub(crate) fn watch() {
    REGISTERED.call_once(|| {
        // SAFETY: `in_child` is valid for the life of the program and only performs an atomic addition, which is
        // async-signal-safe, as required in the child of a threaded process. The other two handlers may be null. If the
        // registration fails for lack of memory, forks go unnoticed, as in a program without this call.
        // Shown by `only_a_forked_child_sees_a_new_generation`.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Blocks the application's signals on the calling thread, so that handlers run on the application's threads and waits
/// here are not interrupted. Fault signals and the profiling timer stay deliverable.
pub(crate) fn block_signals() {
    const DELIVERABLE: [libc::c_int; 8] = [
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
    // SAFETY: `sigfillset` initialises the given set, a local variable. The later calls only read or change the
    // initialised set, and `pthread_sigmask` keeps no pointer to it. All signal numbers are valid.
    // Shown by `signals_are_blocked_except_faults`.
    unsafe {
        if libc::sigfillset(set.as_mut_ptr()) != 0 {
            return;
        }
        for signal in DELIVERABLE {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The set of signals blocked on the calling thread, one bit each.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn signals_are_blocked_except_faults() {
        let before = blocked();
        let inside = std::thread::spawn(|| {
            block_signals();
            blocked()
        });
        let inside = inside.join().unwrap();
        let has = |signal: libc::c_int| inside & 1 << (signal - 1) != 0;
        assert!([libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGALRM].into_iter().all(has));
        assert!(![libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGABRT, libc::SIGPROF].into_iter().any(has));
        assert_eq!(blocked(), before, "the signal mask of another thread changed");
    }

    #[test]
    fn only_a_forked_child_sees_a_new_generation() {
        watch();
        let before = fork_generation();
        // SAFETY: the child calls only an atomic load and `_exit`, both async-signal-safe.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = i32::from(fork_generation() != before + 1);
            // SAFETY: ends the child without running any of the parent's code.
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
