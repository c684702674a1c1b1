//! The doorbell wakes one thread of the store.
//!
//! # Why no wake-up is lost
//!
//! [`Doorbell`] is one atomic word. It is changed only by read-modify-write operations, so all changes have one total
//! order:
//!
//! ```text
//!            notify()                               sleep_as(): only from AWAKE
//! any ──────────────────▶ NOTIFIED      AWAKE ───────────────────▶ PARKED | IN_KERNEL
//! NOTIFIED ─ acknowledge() ─▶ AWAKE     PARKED | IN_KERNEL ─ end of sleep_as() ─▶ AWAKE
//! ```
//!
//! `notify` swaps in NOTIFIED. There are two cases:
//!
//! - The swap precedes the thread's change to PARKED or IN_KERNEL. That change then fails, and the thread does not
//!   sleep.
//! - The swap follows it. The swap then returns how the thread sleeps, and the notifier wakes it that way.
//!
//! Both ways to wake a thread are sticky (a park token, an eventfd counter), so a wake-up that arrives before the
//! thread has entered the kernel is kept. Later notifiers see NOTIFIED and leave the waking to the first one. The
//! thread calls `acknowledge` before it polls the task, so a wake-up during the poll leaves NOTIFIED behind.
//!
//! The poll sees everything that the notifier wrote before `notify`: the swap releases, `acknowledge` acquires, and the
//! read-modify-writes in between continue the release sequence.
//!
//! Notifying a thread that is awake costs one atomic swap and no system call.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;
const IN_KERNEL: u32 = 3;

/// Wakes one thread. The module documentation argues why no wake-up is lost.
#[derive(Debug)]
pub(super) struct Doorbell {
    state: AtomicU32,
    sleeper: Thread,
    eventfd: Option<OwnedFd>,
}

impl Doorbell {
    /// Creates the doorbell of the calling thread.
    pub(super) fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE), sleeper: thread::current(), eventfd: None }
    }

    /// Creates the doorbell of the calling thread, which may also sleep in a ring that reads the eventfd.
    pub(super) fn with_eventfd() -> io::Result<Self> {
        // Blocking, because a ring completes a read of an empty non-blocking eventfd with EAGAIN instead of waiting.
        Ok(Self { eventfd: Some(eventfd(0, EventfdFlags::CLOEXEC)?), ..Self::new() })
    }

    /// The descriptor that the ring reads.
    pub(super) fn eventfd(&self) -> Option<RawFd> {
        self.eventfd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Wakes the thread, or prevents it from falling asleep.
    pub(super) fn notify(&self) {
        match self.state.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => self.sleeper.unpark(),
            IN_KERNEL => self.notify_eventfd(),
            _ => {}
        }
    }

    /// Adds one to the eventfd. This blocks only after 2^64 additions, and an eventfd has no other error.
    pub(super) fn notify_eventfd(&self) {
        #[expect(clippy::host_endian_bytes, reason = "the kernel's word, in the machine's own order")]
        let one = 1u64.to_ne_bytes();
        if let Some(fd) = &self.eventfd {
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(fd, &one));
        }
    }

    pub(super) fn acknowledge(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    pub(super) fn is_notified(&self) -> bool {
        self.state.load(Ordering::Acquire) == NOTIFIED
    }

    fn sleep_as(&self, how: u32, sleep: impl FnOnce()) {
        if self.state.compare_exchange(AWAKE, how, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            sleep();
            // Fails after a notification, and then leaves NOTIFIED in place.
            let _ = self.state.compare_exchange(how, AWAKE, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Sleeps until notified or until `timeout` has passed. May return early.
    pub(super) fn park(&self, timeout: Option<Duration>) {
        self.sleep_as(PARKED, || match timeout {
            None => thread::park(),
            Some(timeout) => thread::park_timeout(timeout),
        });
    }

    /// Runs `sleep`, which must end when the eventfd is written to. Does nothing after a notification.
    pub(super) fn sleep_in_kernel(&self, sleep: impl FnOnce()) {
        self.sleep_as(IN_KERNEL, sleep);
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}
