//! One thread's ring: takes operations in, submits them, waits, and hands out what came back.
//!
//! Knows nothing of tasks and of who wakes whom; it never runs foreign code, so its owner can borrow it for the length of
//! a call. What is finished is put into [`Driver::finished`] and delivered by the owner after the borrow.
//!
//! # The life of an operation
//!
//! ```text
//! start ─▶ backlog ─▶ submission queue ─▶ kernel ─▶ completion queue ─▶ finished ─▶ its slot
//!          (slab owns the buffers ………………………………………………………………… until here)
//! ```
//!
//! # Invariants
//!
//! - Never more operations between the submission and the completion queue than the latter has room for (one place is
//!   the doorbell's), so it does not overflow; the rest waits in the backlog. Should the kernel overflow it regardless,
//!   NODROP keeps the completions, and the flag for it is looked at.
//! - The driver waits only if no completion is there, and not for ever unless the doorbell is armed or it drains.
//! - A ring is dropped only after its last completion, or with the buffers leaked.
//!
//! # Failure
//!
//! `EINTR` is nothing; `EAGAIN` and `EBUSY` mean that the kernel has no room at the moment: completions are reaped, then it
//! is tried again, at the latest after a millisecond. Any other error of `io_uring_enter` says nothing about what was
//! started: everything in flight fails, its memory is never freed, and every later operation fails.

// A submission hands the kernel pointers.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};

use super::super::op::Op;
use super::slab::{InFlight, Key, Slab};

/// The doorbell's `user_data`; no operation has that index.
const DOORBELL: u64 = u64::MAX;
/// How long to wait for completions when the kernel can take nothing more.
const BACKOFF: Duration = Duration::from_millis(1);

/// A finished operation and what to tell its caller.
pub(super) enum Finished {
    /// The kernel's result.
    Completed(InFlight, i32),
    /// The ring failed.
    Failed(InFlight, io::Error),
}

impl Finished {
    /// Delivers it. Runs foreign code: not while the driver is borrowed.
    pub(super) fn deliver(self) {
        match self {
            Self::Completed(in_flight, result) => in_flight.finish(result),
            Self::Failed(in_flight, error) => in_flight.fail(error),
        }
    }
}

pub(super) struct Driver {
    ring: IoUring,
    slab: Slab,
    /// Operations not yet in the submission queue.
    backlog: VecDeque<Key>,
    /// Operations in the submission queue, the kernel, or the completion queue.
    in_ring_count: usize,
    in_ring_max: usize,
    doorbell_fd: RawFd,
    /// What the read of the doorbell fills. A `Vec`, not a `Box`, because moving a `Box` asserts that nobody else writes.
    doorbell_word: Vec<u8>,
    doorbell_armed: bool,
    /// Why the ring is unusable.
    failure: Option<String>,
    /// To be delivered by the owner.
    pub(super) finished: Vec<Finished>,
}

impl Driver {
    /// Drives `ring`, whose waits end when `doorbell_fd`, an eventfd that outlives the driver, is written to.
    pub(super) fn new(ring: IoUring, doorbell_fd: RawFd) -> Self {
        let in_ring_max = (ring.params().cq_entries() as usize).saturating_sub(1).max(1);
        Self {
            ring,
            slab: Slab::default(),
            backlog: VecDeque::new(),
            in_ring_count: 0,
            in_ring_max,
            doorbell_fd,
            doorbell_word: vec![0; 8],
            doorbell_armed: false,
            failure: None,
            finished: Vec::new(),
        }
    }

    /// Takes `op` in; it goes to the kernel with the next submission. Given back with the reason if that cannot be.
    pub(super) fn start(&mut self, op: Op) -> Result<(), (Op, io::Error)> {
        if let Some(failure) = &self.failure {
            return Err((op, io::Error::other(failure.clone())));
        }
        let key = self.slab.insert(op).map_err(|op| (op, io::ErrorKind::OutOfMemory.into()))?;
        self.backlog.push_back(key);
        self.fill();
        Ok(())
    }

    /// Whether no operation is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_ring_count == 0 && self.backlog.is_empty()
    }

    /// Whether the ring is unusable.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Moves operations from the backlog to the submission queue, submitting when that is full.
    fn fill(&mut self) {
        while self.in_ring_count < self.in_ring_max
            && let Some(&key) = self.backlog.front()
        {
            let Some(entry) = self.slab.submission(key) else {
                self.backlog.pop_front();
                continue;
            };
            if self.ring.submission().is_full() {
                self.enter_submit();
                if self.ring.submission().is_full() {
                    return;
                }
            }
            // SAFETY: the entry points to the buffers and the iovec array of the operation `key`, and names a descriptor
            // that its `Arc<OsFile>` keeps open; all are owned by the slab. The slab gives them up only in `reap`, on the
            // completion that carries this key, so a future dropped before that changes nothing. If the ring goes first,
            // `Driver::drop` or `fail` has leaked the buffers. Nobody else touches them meanwhile: a read's buffer has
            // no other owner, and a write's `Bytes` are immutable.
            // Shown by `dropped_operations_run_to_their_end_and_free_their_buffers` and
            // `reads_outlive_the_thread_that_started_them_and_the_backend`; when the ring goes first, by
            // `a_dropped_driver_answers_whoever_still_waits`; that the slab keeps its word, by
            // `every_operation_stays_where_it_is_and_is_freed_once`.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                return;
            }
            self.backlog.pop_front();
            self.in_ring_count += 1;
        }
    }

    /// Submits without waiting.
    fn enter_submit(&mut self) {
        let result = self.ring.submit();
        self.judge(result);
    }

    /// Gives the kernel what is there for it: submissions, or the chance to run the completions it deferred.
    pub(super) fn submit(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.fill();
        let queue = self.ring.submission();
        let has_reason = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if has_reason {
            self.enter_submit();
        }
    }

    /// Submits everything and waits for a completion, at most `timeout`. Returns at once if one is there.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        if self.failure.is_some() {
            return;
        }
        self.fill();
        if !self.ring.completion().is_empty() {
            return;
        }
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        };
        self.judge(result);
    }

    fn judge(&mut self, result: io::Result<usize>) {
        let Err(error) = result else { return };
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => {}
            Some(libc::EAGAIN | libc::EBUSY) => self.back_off(),
            _ => self.fail(&error),
        }
    }

    /// Waits for a completion, without submitting: the kernel has no room.
    fn back_off(&mut self) {
        if !self.ring.completion().is_empty() {
            return;
        }
        let timeout = Timespec::from(BACKOFF);
        let args = SubmitArgs::new().timespec(&timeout);
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        // SAFETY: `args` is what EXT_ARG announces and lives, with the time it points to, until the call returns; nothing
        // is submitted by it. Its error does not matter: whoever comes next sees the same ring and judges again.
        // Shown by `backing_off_submits_nothing`.
        let _ = unsafe { self.ring.submitter().enter(0, 1, flags.bits(), Some(&args)) };
    }

    /// Reads the doorbell, unless that is under way. Whether it now is.
    pub(super) fn arm_doorbell(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        if self.doorbell_armed {
            return true;
        }
        if self.ring.submission().is_full() {
            self.enter_submit();
        }
        let len = u32::try_from(self.doorbell_word.len()).unwrap_or_default();
        let entry = opcode::Read::new(Fd(self.doorbell_fd), self.doorbell_word.as_mut_ptr(), len).build();
        // SAFETY: the word is the driver's, is never grown or shrunk, and is freed only if `doorbell_armed` is false, that
        // is, after the completion; `Driver::drop` leaks it otherwise. No future is involved. The descriptor is kept open
        // by the owner for the life of the driver.
        // Shown by `no_wake_up_from_a_foreign_thread_is_lost` and `a_dropped_driver_answers_whoever_still_waits`.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(DOORBELL)) };
        self.doorbell_armed = pushed.is_ok();
        self.doorbell_armed
    }

    /// Whether a wait ends when the doorbell is rung.
    pub(super) fn doorbell_armed(&self) -> bool {
        self.doorbell_armed
    }

    /// Moves what has completed to `finished`. No system call.
    pub(super) fn reap(&mut self) {
        let mut doorbell_result = 0;
        for completion in self.ring.completion() {
            if completion.user_data() == DOORBELL {
                self.doorbell_armed = false;
                doorbell_result = completion.result();
            } else if let Some(in_flight) = self.slab.remove(Key::from_user_data(completion.user_data())) {
                self.in_ring_count -= 1;
                self.finished.push(Finished::Completed(in_flight, completion.result()));
            }
        }
        let errno = doorbell_result.wrapping_neg();
        if errno > 0 && !matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            // Armed again it would fail again, and the thread would spin.
            self.fail(&io::Error::from_raw_os_error(errno));
        }
    }

    /// Everything in flight fails, and so does everything later.
    fn fail(&mut self, error: &io::Error) {
        if self.failure.is_some() {
            return;
        }
        let failure = format!("the ring failed: {error}");
        for in_flight in self.slab.leak_all() {
            self.finished.push(Finished::Failed(in_flight, io::Error::other(failure.clone())));
        }
        self.backlog.clear();
        self.in_ring_count = 0;
        self.failure = Some(failure);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Closing a ring does not stop its I/O. In order, the owner has drained it and there is nothing left.
        drop(self.slab.leak_all());
        if self.doorbell_armed {
            mem::forget(mem::take(&mut self.doorbell_word));
        }
    }
}

/// Sends an operation that does nothing through `ring`: set-up may be allowed where `io_uring_enter` is not.
pub(super) fn send_nop(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: a NOP has no buffers and no descriptor.
    // Shown by `the_probe_of_a_ring_leaves_none_behind`.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(|_| io::Error::other("no room in a new ring"))?;
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    match ring.completion().next() {
        Some(completion) if completion.result() == 0 => Ok(()),
        Some(completion) => Err(io::Error::from_raw_os_error(completion.result().wrapping_neg())),
        None => Err(io::Error::other("nothing came back from a new ring")),
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use rustix::io::ReadWriteFlags;

    use super::super::ring;
    use super::*;
    use crate::io::ReadDone;
    use crate::io::op::{Handle, slot};
    use crate::io::os::OsFile;

    fn source() -> Arc<OsFile> {
        Arc::new(OsFile::from(OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap())))
    }

    fn read(file: &Arc<OsFile>) -> (Op, Handle<ReadDone>) {
        let (done, handle) = slot();
        (
            Op::Read {
                file: Arc::clone(file),
                buf: vec![0; 64],
                at: 0,
                offset: 0,
                flags: ReadWriteFlags::empty(),
                done,
            },
            handle,
        )
    }

    fn result(handle: &mut Handle<ReadDone>) -> Option<ReadDone> {
        match Pin::new(handle).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    fn driver(entries: u32) -> (Driver, OwnedFd) {
        let doorbell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        (Driver::new(ring::build(entries).unwrap(), doorbell.as_raw_fd()), doorbell)
    }

    fn deliver(driver: &mut Driver) {
        driver.reap();
        driver.finished.drain(..).for_each(Finished::deliver);
    }

    /// `io_uring_enter` on something that is no ring says nothing about what went before: all of it fails.
    #[test]
    fn a_ring_that_fails_fails_everything_in_flight_and_everything_later() {
        let (mut driver, _doorbell) = driver(2);
        let file = source();
        let mut handles = Vec::new();
        for _ in 0..100 {
            let (op, handle) = read(&file);
            assert!(driver.start(op).is_ok());
            handles.push(handle);
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: replaces a descriptor this test owns, through the driver, and which stays open under that number.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), driver.ring.as_raw_fd()) } >= 0);
        while !driver.has_failed() {
            driver.wait(None);
            deliver(&mut driver);
        }
        deliver(&mut driver);
        assert!(driver.is_idle() && !driver.arm_doorbell());
        let mut failed_count = 0;
        for handle in &mut handles {
            match result(handle).expect("every operation has an end").result {
                Ok(count) => assert_eq!(count, 64, "it came back before the failure"),
                Err(error) => {
                    assert!(error.to_string().contains("the ring failed"), "{error}");
                    failed_count += 1;
                }
            }
        }
        assert!(failed_count > 80, "{failed_count} operations failed");
        let (op, mut handle) = read(&file);
        let (op, error) = driver.start(op).expect_err("a failed ring takes nothing in");
        op.finish(Err(error));
        assert!(result(&mut handle).expect("refused").result.is_err());
        driver.submit();
        driver.wait(None);
    }

    #[test]
    fn a_dropped_driver_answers_whoever_still_waits() {
        let (mut driver, _doorbell) = driver(4);
        let file = source();
        let mut handles = Vec::new();
        for _ in 0..100 {
            let (op, handle) = read(&file);
            assert!(driver.start(op).is_ok());
            handles.push(handle);
        }
        assert!(driver.arm_doorbell());
        drop(driver);
        for handle in &mut handles {
            assert!(result(handle).expect("every operation has an end").result.is_err());
        }
    }

    #[test]
    fn backing_off_submits_nothing() {
        let (mut driver, _doorbell) = driver(4);
        let (op, mut handle) = read(&source());
        assert!(driver.start(op).is_ok());
        // It returns for want of a completion, after its patience.
        driver.back_off();
        deliver(&mut driver);
        assert!(result(&mut handle).is_none(), "nothing was submitted, and yet it was read");
        while !driver.is_idle() {
            driver.wait(None);
            deliver(&mut driver);
        }
        driver.back_off();
        assert_eq!(result(&mut handle).expect("finished").result.unwrap(), 64);
    }

    #[test]
    fn the_probe_of_a_ring_leaves_none_behind() {
        for _ in 0..20 {
            let mut ring = ring::build(2).unwrap();
            send_nop(&mut ring).unwrap();
            assert!(ring.submission().is_empty());
            assert!(ring.completion().is_empty());
        }
    }

    #[test]
    fn a_ring_holds_no_more_than_its_completions_have_room_for() {
        let (mut driver, _doorbell) = driver(2);
        let file = source();
        let mut handles: Vec<_> = (0..1000)
            .map(|_| {
                let (op, handle) = read(&file);
                assert!(driver.start(op).is_ok());
                assert!(driver.in_ring_count <= driver.in_ring_max);
                handle
            })
            .collect();
        assert!(driver.backlog.len() > 900, "{} wait", driver.backlog.len());
        while !driver.is_idle() {
            driver.wait(None);
            assert!(!driver.ring.submission().cq_overflow());
            deliver(&mut driver);
        }
        for handle in &mut handles {
            let done = result(handle).expect("finished");
            assert_eq!((done.result.unwrap(), &done.buf[..4]), (64, &b"\x7fELF"[..]));
        }
    }
}
