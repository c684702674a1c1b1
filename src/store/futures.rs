//! The named futures that the operations of a store return.
//!
//! Each is `Send + Unpin + 'static`, needs no runtime, and may be dropped at any time. For every write the same holds: dropped
//! before the first poll, nothing happens; once accepted, the write continues without the caller; while it still waits to be
//! accepted (for room in the buffer, or behind an earlier write of the same key), dropping it cancels it. A submitted
//! write ([`Put::submit`]) needs no poll, and dropping its future does not cancel it.
//!
//! Options, such as the durability of a write, are set on the future before its first poll.
//!
//! A future that is leaked (`mem::forget`) keeps the store's memory, open files and reading thread even after a close, but not
//! the lock on the directory.
//!
//! In a forked child, every future resolves to [`Forked`](crate::ErrorKind::Forked) at its next poll, even if it was in progress
//! at the fork. Neither that poll nor a drop takes a lock, which a thread of the parent may have held.

pub use super::multi_get::MultiGet;
pub use super::open::Open;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::core::Core;
use super::polled_after_completion;
use super::pool;
use crate::batch::check_key;
use crate::commit::{Accepted, OfferWait, Prepared, Submission, Ticket};
use crate::compaction::control::CompactionRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::io::OpFuture;
use crate::keydir::Key;
use crate::options::Durability;
use crate::read::{Lookup, look_up};
use crate::stats::{CompactionReport, Version};
use crate::sync::promise::Promise;
use crate::sync::sharded::Share;
use crate::sync::waiters::Slot;

/// A write: offered to the log until it is accepted, then waited for.
pub(crate) struct WriteOp {
    core: Share<Core>,
    durability: Durability,
    /// A delete, which writes nothing if the key does not exist.
    must_exist: bool,
    state: WriteState,
}

enum WriteState {
    Invalid(Error),
    Offered(Prepared, OfferWait),
    /// Submitted, and queued in the log.
    Queued(Promise<Result<Accepted>>),
    /// Submitted, and done with this result.
    Ready(Option<u64>),
    Waiting(Ticket),
    /// A delete that found no key, until the absence is durable.
    WaitingAbsent(Ticket),
    Done,
}

impl WriteOp {
    pub(crate) fn new(core: Share<Core>, durability: Durability, must_exist: bool, op: Result<Prepared>) -> Self {
        let state = match op {
            Ok(op) => WriteState::Offered(op, OfferWait::default()),
            Err(error) => WriteState::Invalid(error),
        };
        Self { core, durability, must_exist, state }
    }

    /// Sets the durability of a write that was not polled yet. Prefetches the key's keydir slot where the write is going to be
    /// published under the log's lock.
    fn set_durability(&mut self, durability: Durability) {
        let WriteState::Offered(op, wait) = &self.state else { return };
        if wait.has_waited() {
            return;
        }
        if durability == Durability::Buffered
            && self.durability != durability
            && let [member] = op.members()
        {
            self.core.prefetch(member.key(&op.bytes));
        }
        self.durability = durability;
    }

    /// Accepts the write now, or queues it in the log. Without effect on a write that a poll has accepted already.
    fn submit(mut self) -> Result<Self> {
        self.core.check_fork()?;
        match std::mem::replace(&mut self.state, WriteState::Done) {
            WriteState::Invalid(error) => return Err(error),
            WriteState::Offered(op, mut wait) => {
                self.core.parts.log.withdraw(&mut wait);
                self.core.check()?;
                self.state = match self.core.parts.log.submit(op, self.durability, self.must_exist)? {
                    Submission::Accepted(accepted, op) => {
                        pool::give_back(op.bytes);
                        WriteState::submitted(accepted)
                    }
                    Submission::Queued(promise) => WriteState::Queued(promise),
                };
            }
            state => self.state = state,
        }
        Ok(self)
    }

    /// The sequence number of the write's last record, or `None` if there was nothing to delete.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<Option<u64>>> {
        self.core.check_fork()?;
        match &mut self.state {
            WriteState::Invalid(error) => {
                let error = error.clone();
                self.state = WriteState::Done;
                Poll::Ready(Err(error))
            }
            WriteState::Offered(op, wait) => {
                let offered = match self.core.check() {
                    Ok(()) => self.core.parts.log.accept(op, self.durability, self.must_exist, wait, cx),
                    Err(error) => Poll::Ready(Err(error)),
                };
                let Poll::Ready(accepted) = offered else { return Poll::Pending };
                self.core.parts.log.withdraw(wait);
                pool::give_back(std::mem::take(&mut op.bytes));
                self.state = WriteState::Done;
                match accepted? {
                    Accepted::Done(seq) => Poll::Ready(Ok(Some(seq))),
                    Accepted::Absent => Poll::Ready(Ok(None)),
                    Accepted::AbsentOnce(ticket) => {
                        self.state = WriteState::WaitingAbsent(ticket);
                        Poll::Pending
                    }
                    // The waker is registered, and the group cannot be done yet.
                    Accepted::Waiting(ticket) => {
                        self.state = WriteState::Waiting(ticket);
                        Poll::Pending
                    }
                }
            }
            WriteState::Queued(promise) => {
                let Poll::Ready(accepted) = promise.poll(cx) else { return Poll::Pending };
                self.state = WriteState::Done;
                self.state = WriteState::submitted(accepted?);
                // A ticket has no waker of this future yet.
                self.poll(cx)
            }
            WriteState::Ready(seq) => {
                let seq = *seq;
                self.state = WriteState::Done;
                Poll::Ready(Ok(seq))
            }
            WriteState::Waiting(ticket) => {
                let Poll::Ready(result) = ticket.poll(cx) else { return Poll::Pending };
                let seq = ticket.last_seq;
                self.state = WriteState::Done;
                Poll::Ready(result.map(|()| Some(seq)))
            }
            WriteState::WaitingAbsent(ticket) => {
                let Poll::Ready(result) = ticket.poll(cx) else { return Poll::Pending };
                self.state = WriteState::Done;
                Poll::Ready(result.map(|()| None))
            }
            WriteState::Done => polled_after_completion(),
        }
    }
}

impl WriteState {
    /// The state of a submitted write that the log has accepted.
    fn submitted(accepted: Accepted) -> Self {
        match accepted {
            Accepted::Done(seq) => Self::Ready(Some(seq)),
            Accepted::Absent => Self::Ready(None),
            Accepted::AbsentOnce(ticket) => Self::WaitingAbsent(ticket),
            Accepted::Waiting(ticket) => Self::Waiting(ticket),
        }
    }
}

impl Drop for WriteOp {
    fn drop(&mut self) {
        if let WriteState::Offered(_, wait) = &mut self.state
            && !self.core.is_forked()
        {
            self.core.parts.log.withdraw(wait);
        }
    }
}

macro_rules! opaque_debug {
    ($($future:ident),+) => {
        $(impl fmt::Debug for $future {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($future)).finish_non_exhaustive()
            }
        })+
    };
}

opaque_debug!(Get, Put, Delete, Write, Sync, WaitDurable, Compact, Close);

/// The future of [`Store::put`](crate::Store::put) and [`Store::put_bytes`](crate::Store::put_bytes).
#[must_use = "futures do nothing unless polled"]
pub struct Put(pub(crate) WriteOp);

impl Put {
    /// Sets the durability of this write, instead of the store's. Without effect once the future was polled.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.0.set_durability(durability);
        self
    }

    /// Accepts the write now and returns a future for its end.
    ///
    /// The other futures of this crate do nothing before their first poll, so the order in which two of them are spawned
    /// decides nothing. The order of two calls of `submit` is the order of the two writes, whichever tasks make
    /// the calls, if one call returns before the other begins.
    ///
    /// A [`sync`](crate::Store::sync) that begins after this call covers the write, too.
    ///
    /// A write that does not fit at once (the [staging buffer](crate::Builder::staging_bytes) is full, the store starts a
    /// segment, a delete waits for an earlier write of its key) is queued in the store, and no later write overtakes it.
    ///
    /// # Durability
    ///
    /// As of the awaited write: the returned [`Submitted`] resolves when the write has reached its durability.
    ///
    /// # Errors
    ///
    /// What is known at once: [`InvalidInput`](ErrorKind::InvalidInput), [`TooLarge`](ErrorKind::TooLarge),
    /// [`Closed`](ErrorKind::Closed), [`Poisoned`](ErrorKind::Poisoned), [`Forked`](ErrorKind::Forked), and
    /// [`Busy`](ErrorKind::Busy) if more than [`staging_bytes`](crate::Builder::staging_bytes) of submitted writes
    /// wait already: await a write instead. None of these was applied. Everything else, such as
    /// [`NoSpace`](ErrorKind::NoSpace), comes from [`Submitted`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the [`Submitted`] does not cancel the write.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// let first = store.put("state", "started").submit()?;
    /// let second = store.put("state", "finished").submit()?;
    /// // In any order, in any task.
    /// let newer = second.await?;
    /// assert!(first.await? < newer);
    /// assert_eq!(store.get("state").await?.as_deref(), Some(&b"finished"[..]));
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    pub fn submit(self) -> Result<Submitted<Version>> {
        Submitted::new(self.0, |seq| Version(seq.unwrap_or(0)))
    }
}

impl Future for Put {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map_ok(|seq| Version(seq.unwrap_or(0)))
    }
}

/// The future of [`Store::delete`](crate::Store::delete).
#[must_use = "futures do nothing unless polled"]
pub struct Delete(pub(crate) WriteOp);

impl Delete {
    /// Sets the durability of this delete, instead of the store's. Without effect once the future was polled.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.0.set_durability(durability);
        self
    }

    /// Accepts the delete now and returns a future that tells whether the key existed. See [`Put::submit`].
    ///
    /// While the delete waits for an earlier write of its key to become visible, it holds up the writes after it.
    pub fn submit(self) -> Result<Submitted<bool>> {
        Submitted::new(self.0, |seq| seq.is_some())
    }
}

impl Future for Delete {
    type Output = Result<bool>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map_ok(|seq| seq.is_some())
    }
}

/// The future of [`Store::write`](crate::Store::write).
#[must_use = "futures do nothing unless polled"]
pub struct Write(pub(crate) WriteInner);

pub(crate) enum WriteInner {
    Op(WriteOp),
    /// An empty batch. There is nothing to do, but the store must be open.
    Empty(Share<Core>),
}

impl Write {
    /// Sets the durability of this batch, instead of the store's. Without effect once the future was polled.
    pub fn durability(mut self, durability: Durability) -> Self {
        if let WriteInner::Op(op) = &mut self.0 {
            op.set_durability(durability);
        }
        self
    }

    /// Accepts the batch now and returns a future for its end. See [`Put::submit`].
    pub fn submit(self) -> Result<Submitted<Version>> {
        let op = match self.0 {
            WriteInner::Op(op) => op,
            WriteInner::Empty(core) => {
                core.check()?;
                let state = WriteState::Ready(Some(core.parts.log.durable_seq()));
                WriteOp { core, durability: Durability::Buffered, must_exist: false, state }
            }
        };
        Submitted::new(op, |seq| Version(seq.unwrap_or(0)))
    }
}

impl Future for Write {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            WriteInner::Op(op) => op.poll(cx).map_ok(|seq| Version(seq.unwrap_or(0))),
            WriteInner::Empty(core) => Poll::Ready(core.check().map(|()| Version(core.parts.log.durable_seq()))),
        }
    }
}

/// The future of a submitted write: see [`Put::submit`].
///
/// Resolves as the awaited write does: to the version of a put or a batch, or to whether the key of a delete existed.
/// The write runs to its end whether this is polled, dropped or forgotten.
pub struct Submitted<T> {
    op: WriteOp,
    output: fn(Option<u64>) -> T,
}

impl<T> Submitted<T> {
    fn new(op: WriteOp, output: fn(Option<u64>) -> T) -> Result<Self> {
        Ok(Self { op: op.submit()?, output })
    }
}

impl<T> fmt::Debug for Submitted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted").finish_non_exhaustive()
    }
}

impl<T> Future for Submitted<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let output = self.output;
        self.op.poll(cx).map_ok(output)
    }
}

/// The future of [`Store::get`](crate::Store::get).
#[must_use = "futures do nothing unless polled"]
pub struct Get {
    core: Share<Core>,
    state: GetState,
}

enum GetState {
    Start(Key),
    Disk(OpFuture<Result<Bytes>>),
    Done,
}

impl Get {
    pub(crate) fn new(core: Share<Core>, key: &[u8]) -> Self {
        Self { core, state: GetState::Start(Key::new(key)) }
    }
}

impl Future for Get {
    type Output = Result<Option<Bytes>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.check_fork()?;
        let state = std::mem::replace(&mut self.state, GetState::Done);
        let mut read = match state {
            GetState::Start(key) => {
                self.core.check()?;
                check_key(key.as_slice())?;
                match look_up(self.core.sources(), key.as_slice()).map_err(|error| self.core.located(error))? {
                    Lookup::Ready(value) => return Poll::Ready(Ok(value)),
                    Lookup::Disk(read) => Box::pin(read.finish(key)),
                }
            }
            GetState::Disk(read) => read,
            GetState::Done => return polled_after_completion(),
        };
        match read.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(Some).map_err(|error| self.core.located(error))),
            Poll::Pending => {
                self.state = GetState::Disk(read);
                Poll::Pending
            }
        }
    }
}

impl Drop for Get {
    fn drop(&mut self) {
        if matches!(self.state, GetState::Disk(_)) && self.core.is_forked() {
            // Dropping an operation locks its slot.
            std::mem::forget(std::mem::replace(&mut self.state, GetState::Done));
        }
    }
}

/// The future of [`Store::sync`](crate::Store::sync).
#[must_use = "futures do nothing unless polled"]
pub struct Sync {
    core: Share<Core>,
    /// Behind submitted writes that are queued.
    queued: Option<Promise<Result<Accepted>>>,
    ticket: Option<Ticket>,
}

impl Sync {
    pub(crate) fn new(core: Share<Core>) -> Self {
        Self { core, queued: None, ticket: None }
    }
}

impl Future for Sync {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.check_fork()?;
        if self.ticket.is_none() && self.queued.is_none() {
            self.core.check()?;
            self.queued = self.core.parts.log.submit_sync();
        }
        if let Some(promise) = &self.queued {
            let Poll::Ready(accepted) = promise.poll(cx) else { return Poll::Pending };
            self.queued = None;
            match accepted? {
                Accepted::AbsentOnce(ticket) => self.ticket = Some(ticket),
                _ => return Poll::Ready(Ok(Version(self.core.parts.log.durable_seq()))),
            }
        }
        if self.ticket.is_none() {
            match self.core.parts.log.request_sync(cx.waker())? {
                Some(ticket) => self.ticket = Some(ticket),
                None => return Poll::Ready(Ok(Version(self.core.parts.log.durable_seq()))),
            }
        }
        let Some(ticket) = &self.ticket else { return Poll::Pending };
        ticket.poll(cx).map_ok(|()| Version(ticket.last_seq))
    }
}

/// The future of [`Store::wait_durable`](crate::Store::wait_durable).
#[must_use = "futures do nothing unless polled"]
pub struct WaitDurable {
    core: Share<Core>,
    seq: u64,
    slot: Slot,
}

impl WaitDurable {
    pub(crate) fn new(core: Share<Core>, seq: u64) -> Self {
        Self { core, seq, slot: Slot::default() }
    }
}

impl Future for WaitDurable {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { core, seq, slot } = self.get_mut();
        core.check_fork()?;
        core.parts.log.poll_durable(*seq, slot, cx)
    }
}

impl Drop for WaitDurable {
    fn drop(&mut self) {
        if self.slot.was_used() && !self.core.is_forked() {
            self.core.parts.log.leave_durable(&mut self.slot);
        }
    }
}

/// The future of [`Store::compact`](crate::Store::compact).
#[must_use = "futures do nothing unless polled"]
pub struct Compact {
    core: Share<Core>,
    state: CompactState,
}

enum CompactState {
    /// With the segments to compact, or all that free space.
    Start(Option<Vec<u64>>),
    Waiting(Arc<CompactionRequest>),
    Done,
}

impl Compact {
    pub(crate) fn new(core: Share<Core>) -> Self {
        Self { core, state: CompactState::Start(None) }
    }

    /// Compacts these sealed segments alone, however little that frees. Their numbers are in
    /// [`Stats::segments`](crate::Stats::segments). Without effect once the future was polled.
    pub fn segments(mut self, segments: impl IntoIterator<Item = u64>) -> Self {
        if let CompactState::Start(named) = &mut self.state {
            *named = Some(segments.into_iter().collect());
        }
        self
    }

    fn start(&self, segments: Option<Vec<u64>>) -> Result<Arc<CompactionRequest>> {
        self.core.check()?;
        let short = |id: u64| {
            u32::try_from(id).map_err(|_| {
                let message = format!("compact: {id} is not the number of a segment");
                Error::new(ErrorKind::InvalidInput, message)
            })
        };
        let segments = segments.map(|segments| segments.into_iter().map(short).collect::<Result<Vec<u32>>>());
        Ok(self.core.control.request(segments.transpose()?))
    }
}

impl Future for Compact {
    type Output = Result<CompactionReport>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.core.is_forked() {
            self.core.check()?;
        }
        let request = match std::mem::replace(&mut self.state, CompactState::Done) {
            CompactState::Start(segments) => self.start(segments)?,
            CompactState::Waiting(request) => request,
            CompactState::Done => return polled_after_completion(),
        };
        match request.answer.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                self.state = CompactState::Waiting(request);
                Poll::Pending
            }
        }
    }
}

impl Drop for Compact {
    fn drop(&mut self) {
        if let CompactState::Waiting(request) = &self.state
            && !self.core.is_forked()
        {
            self.core.control.abandon(request);
        }
    }
}

/// The future of [`Store::close`](crate::Store::close).
#[must_use = "futures do nothing unless polled"]
pub struct Close {
    core: Share<Core>,
    requested: bool,
    slot: Slot,
}

impl Close {
    pub(crate) fn new(core: Share<Core>) -> Self {
        Self { core, requested: false, slot: Slot::default() }
    }
}

impl Future for Close {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { core, requested, slot } = self.get_mut();
        core.check_fork()?;
        if !*requested {
            *requested = true;
            core.request_close();
        }
        core.poll_closed(slot, cx)
    }
}

impl Drop for Close {
    fn drop(&mut self) {
        if self.slot.was_used() && !self.core.is_forked() {
            self.core.leave_closed(&mut self.slot);
        }
    }
}
