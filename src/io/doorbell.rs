//! What wakes one thread of the store.
//!
//! # Why no wake-up is lost
//!
//! [`Doorbell`] is one atomic word, changed by read-modify-write operations only, so that all changes have one order:
//!
//! ```text
//!          ring()                      announce(): only from AWAKE
//! any ───────────────▶ RUNG     AWAKE ─────────────▶ PARKED | IN_KERNEL
//! RUNG ── answer() ──▶ AWAKE     PARKED | IN_KERNEL ── awake() ──▶ AWAKE
//! ```
//!
//! `ring` swaps in RUNG. If its swap comes before the thread's `announce` in that order, `announce` fails and the thread
//! does not sleep. If it comes after, the swap returns how the thread sleeps, and the ringer wakes it that way; both ways
//! are sticky (a park token, an eventfd's counter), so a wake-up that comes before the thread has reached the kernel is
//! kept. Later ringers see RUNG and leave the waking to the first. `answer` is called before the task is polled, so a
//! wake during the poll leaves RUNG behind. What a ringer wrote before `ring` is seen by the poll: the swap releases,
//! `answer` acquires, and read-modify-writes in between continue the release sequence.
//!
//! A ring while the thread is awake is one atomic swap: no system call.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u32 = 0;
const RUNG: u32 = 1;
const PARKED: u32 = 2;
const IN_KERNEL: u32 = 3;

/// Wakes one thread; see the module's argument.
#[derive(Debug)]
pub(super) struct Doorbell {
    state: AtomicU32,
    sleeper: Thread,
    eventfd: Option<OwnedFd>,
}

impl Doorbell {
    /// The doorbell of the calling thread.
    pub(super) fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE), sleeper: thread::current(), eventfd: None }
    }

    /// The doorbell of the calling thread, which may also sleep in a ring that reads the eventfd.
    pub(super) fn with_eventfd() -> io::Result<Self> {
        // Not non-blocking: a ring would answer a read of an empty one with EAGAIN instead of waiting.
        Ok(Self { eventfd: Some(eventfd(0, EventfdFlags::CLOEXEC)?), ..Self::new() })
    }

    /// What the ring reads to be woken.
    pub(super) fn eventfd(&self) -> Option<RawFd> {
        self.eventfd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Wakes the thread, or keeps it from falling asleep.
    pub(super) fn ring(&self) {
        match self.state.swap(RUNG, Ordering::AcqRel) {
            PARKED => self.sleeper.unpark(),
            IN_KERNEL => self.ring_eventfd(),
            _ => {}
        }
    }

    /// Adds one to the eventfd. It blocks only 2^64 additions later, and an eventfd has no other error.
    pub(super) fn ring_eventfd(&self) {
        #[expect(clippy::host_endian_bytes, reason = "the kernel's word, in the machine's own order")]
        let one = 1u64.to_ne_bytes();
        if let Some(fd) = &self.eventfd {
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(fd, &one));
        }
    }

    pub(super) fn answer(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    pub(super) fn is_rung(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNG
    }

    fn sleep_as(&self, how: u32, sleep: impl FnOnce()) {
        if self.state.compare_exchange(AWAKE, how, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            sleep();
            // Fails if it was rung, and then leaves that in place.
            let _ = self.state.compare_exchange(how, AWAKE, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Sleeps until rung or until `timeout` is over; may return early.
    pub(super) fn park(&self, timeout: Option<Duration>) {
        self.sleep_as(PARKED, || match timeout {
            None => thread::park(),
            Some(timeout) => thread::park_timeout(timeout),
        });
    }

    /// Runs `sleep`, which must end when the eventfd is written to. Not at all if the doorbell has been rung.
    pub(super) fn sleep_in_kernel(&self, sleep: impl FnOnce()) {
        self.sleep_as(IN_KERNEL, sleep);
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
