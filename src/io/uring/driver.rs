//! Drives the ring of one thread: accepts operations, submits them, waits, and returns what has completed.
//!
//! The driver knows nothing of tasks and wakers. It never runs foreign code, so its owner can borrow it for the length
//! of a call. It puts finished operations into [`Driver::finished`], and the owner delivers them after the borrow.
//!
//! # The life of an operation
//!
//! ```text
//! start ─▶ backlog ─▶ submission queue ─▶ kernel ─▶ completion queue ─▶ finished ─▶ its result slot
//!          (slab owns the buffers ………………………………………………………………… until here)
//! ```
//!
//! # Invariants
//!
//! - The number of operations between the submission queue and the completion queue never exceeds the capacity of the
//!   completion queue (one entry of which is reserved for the doorbell), so that queue does not overflow. Further
//!   operations wait in the backlog. If the kernel overflows the queue anyway, NODROP keeps the completions, and
//!   `submit` checks the overflow flag.
//! - The driver waits only if no completion is available. It waits without a limit only if the doorbell is armed or the
//!   ring is being drained.
//! - A ring is dropped only after its last completion, or with its buffers leaked.
//!
//! # Failure
//!
//! `EINTR` is ignored. `EAGAIN` and `EBUSY` mean that the kernel has no room at the moment: the driver reaps
//! completions and retries, after at most one millisecond. After any other error of `io_uring_enter`, the state of the
//! started operations is unknown: everything in flight fails, its memory is never freed, and all later operations fail.

// A submission passes pointers to the kernel.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};

use super::super::op::Op;
use super::slab::{OpInFlight, OpKey, Slab};

/// The doorbell's `user_data`. No operation has this index.
const DOORBELL: u64 = u64::MAX;
/// How long to wait for a completion when the kernel has no room.
const BACKOFF: Duration = Duration::from_millis(1);

/// A finished operation and its result.
pub(super) enum FinishedOp {
    /// The kernel completed it with this result.
    Completed(OpInFlight, i32),
    /// The ring failed with this error.
    Failed(OpInFlight, io::Error),
}

impl FinishedOp {
    /// Delivers the result. Runs foreign code, so the driver must not be borrowed.
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
    backlog: VecDeque<OpKey>,
    /// Operations in the submission queue, the kernel, or the completion queue.
    in_ring_count: usize,
    in_ring_max: usize,
    doorbell_fd: RawFd,
    /// Buffer for the read of the doorbell. A `Vec`, because moving a `Box` asserts exclusive access to its contents.
    doorbell_word: Vec<u8>,
    doorbell_armed: bool,
    /// The reason why the ring is unusable.
    failure: Option<String>,
    /// Finished operations, for the owner to deliver.
    pub(super) finished: Vec<FinishedOp>,
}

impl Driver {
    /// Drives `ring`. A write to `doorbell_fd`, an eventfd that outlives the driver, ends its waits.
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

    /// Accepts `op`, which goes to the kernel with the next submission. On failure returns it with the reason.
    pub(super) fn start(&mut self, op: Op) -> Result<(), (Op, io::Error)> {
        if let Some(failure) = &self.failure {
            return Err((op, io::Error::other(failure.clone())));
        }
        let key = self.slab.insert(op).map_err(|op| (op, io::ErrorKind::OutOfMemory.into()))?;
        self.backlog.push_back(key);
        self.fill();
        Ok(())
    }

    /// Whether no operation is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.in_ring_count == 0 && self.backlog.is_empty()
    }

    /// Whether the ring is unusable.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Moves operations from the backlog to the submission queue, and submits when the queue is full.
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
            // SAFETY: the entry points to the buffers and the iovec array of the operation `key`, and names a
            // descriptor that the operation's `Arc<FileDescriptor>` keeps open. The slab owns all of them. It releases
            // them only in `reap`, on the completion that carries this key, so dropping the future earlier has no
            // effect. If the ring is dropped first, `Driver::drop` or `fail` has leaked the buffers. Nobody else
            // accesses the buffers meanwhile: a read's buffer has no other owner, and a write's `Bytes` are immutable.
            // Shown by `dropped_operations_run_to_their_end_and_free_their_buffers` and
            // `reads_outlive_the_thread_that_started_them_and_the_backend`; if the ring is dropped first, by
            // `dropping_the_driver_fails_pending_operations`; for the slab, by `buffers_never_move_and_are_freed_once`.
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

    /// Enters the kernel if there are submissions, deferred completions to run, or overflowed completions.
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

    /// Submits everything and waits for a completion, at most `timeout`. Returns at once if a completion is available.
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

    /// Waits for a completion without submitting, because the kernel has no room.
    fn back_off(&mut self) {
        if !self.ring.completion().is_empty() {
            return;
        }
        let timeout = Timespec::from(BACKOFF);
        let args = SubmitArgs::new().timespec(&timeout);
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        // SAFETY: `args` has the type that EXT_ARG requires and, like the time it points to, lives until the call
        // returns. The call submits nothing. Its error can be ignored, because the next call sees the same ring and
        // judges it again.
        // Shown by `backing_off_submits_nothing`.
        let _ = unsafe { self.ring.submitter().enter(0, 1, flags.bits(), Some(&args)) };
    }

    /// Starts a read of the doorbell unless one is in progress. Returns whether one is in progress now.
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
        // SAFETY: the driver owns the word, never resizes it, and frees it only if `doorbell_armed` is false, that is,
        // after the completion; otherwise `Driver::drop` leaks it. No future is involved. The owner keeps the
        // descriptor open for the life of the driver.
        // Shown by `no_wake_up_from_a_foreign_thread_is_lost` and `dropping_the_driver_fails_pending_operations`.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(DOORBELL)) };
        self.doorbell_armed = pushed.is_ok();
        self.doorbell_armed
    }

    /// Whether notifying the doorbell ends a wait.
    pub(super) fn doorbell_armed(&self) -> bool {
        self.doorbell_armed
    }

    /// Moves completed operations to `finished`. Makes no system call.
    pub(super) fn reap(&mut self) {
        let mut doorbell_result = 0;
        for completion in self.ring.completion() {
            if completion.user_data() == DOORBELL {
                self.doorbell_armed = false;
                doorbell_result = completion.result();
            } else if let Some(in_flight) = self.slab.remove(OpKey::from_user_data(completion.user_data())) {
                self.in_ring_count -= 1;
                self.finished.push(FinishedOp::Completed(in_flight, completion.result()));
            }
        }
        let errno = doorbell_result.wrapping_neg();
        if errno > 0 && !matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            // A new read would fail again, and the thread would spin.
            self.fail(&io::Error::from_raw_os_error(errno));
        }
    }

    /// Fails everything in flight and all later operations.
    fn fail(&mut self, error: &io::Error) {
        if self.failure.is_some() {
            return;
        }
        let failure = format!("the ring failed: {error}");
        for in_flight in self.slab.leak_all() {
            self.finished.push(FinishedOp::Failed(in_flight, io::Error::other(failure.clone())));
        }
        self.backlog.clear();
        self.in_ring_count = 0;
        self.failure = Some(failure);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Closing a ring does not stop its I/O. In an orderly shutdown the owner has drained the ring, and nothing is
        // left.
        drop(self.slab.leak_all());
        if self.doorbell_armed {
            mem::forget(mem::take(&mut self.doorbell_word));
        }
    }
}

/// Sends a NOP through `ring`, because the system may permit the setup but not `io_uring_enter`.
pub(super) fn send_nop(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: a NOP has no buffers and no descriptor.
    // Shown by `the_nop_leaves_both_queues_empty`.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(|_| io::Error::other("the submission queue of a new ring is full"))?;
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
        None => Err(io::Error::other("a new ring returned no completion")),
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
    use crate::io::descriptor::FileDescriptor;
    use crate::io::op::{OpHandle, slot};

    fn source() -> Arc<FileDescriptor> {
        Arc::new(FileDescriptor::from(OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap())))
    }

    fn read(file: &Arc<FileDescriptor>) -> (Op, OpHandle<ReadDone>) {
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

    fn result(handle: &mut OpHandle<ReadDone>) -> Option<ReadDone> {
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
        driver.finished.drain(..).for_each(FinishedOp::deliver);
    }

    /// An error of `io_uring_enter` leaves the state of earlier submissions unknown, so all of them must fail.
    #[test]
    fn a_ring_failure_fails_operations_in_flight_and_later() {
        let (mut driver, _doorbell) = driver(2);
        let file = source();
        let mut handles = Vec::new();
        for _ in 0..100 {
            let (op, handle) = read(&file);
            assert!(driver.start(op).is_ok());
            handles.push(handle);
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: replaces a descriptor that this test owns through the driver. The number stays open.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), driver.ring.as_raw_fd()) } >= 0);
        while !driver.has_failed() {
            driver.wait(None);
            deliver(&mut driver);
        }
        deliver(&mut driver);
        assert!(driver.is_idle() && !driver.arm_doorbell());
        let mut failed_count = 0;
        for handle in &mut handles {
            match result(handle).expect("every operation finishes").result {
                Ok(count) => assert_eq!(count, 64, "it completed before the failure"),
                Err(error) => {
                    assert!(error.to_string().contains("the ring failed"), "{error}");
                    failed_count += 1;
                }
            }
        }
        assert!(failed_count > 80, "{failed_count} operations failed");
        let (op, mut handle) = read(&file);
        let (op, error) = driver.start(op).expect_err("a failed ring accepts nothing");
        op.finish(Err(error));
        assert!(result(&mut handle).expect("refused").result.is_err());
        driver.submit();
        driver.wait(None);
    }

    #[test]
    fn dropping_the_driver_fails_pending_operations() {
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
            assert!(result(handle).expect("every operation finishes").result.is_err());
        }
    }

    #[test]
    fn backing_off_submits_nothing() {
        let (mut driver, _doorbell) = driver(4);
        let (op, mut handle) = read(&source());
        assert!(driver.start(op).is_ok());
        // Returns after its timeout, because there is no completion.
        driver.back_off();
        deliver(&mut driver);
        assert!(result(&mut handle).is_none(), "the read was submitted");
        while !driver.is_idle() {
            driver.wait(None);
            deliver(&mut driver);
        }
        driver.back_off();
        assert_eq!(result(&mut handle).expect("finished").result.unwrap(), 64);
    }

    #[test]
    fn the_nop_leaves_both_queues_empty() {
        for _ in 0..20 {
            let mut ring = ring::build(2).unwrap();
            send_nop(&mut ring).unwrap();
            assert!(ring.submission().is_empty());
            assert!(ring.completion().is_empty());
        }
    }

    #[test]
    fn operations_in_a_ring_never_exceed_its_completion_queue() {
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
        assert!(driver.backlog.len() > 900, "{} operations wait", driver.backlog.len());
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
