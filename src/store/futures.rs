//! The named futures of the public face.
//!
//! Each is `Send + Unpin + 'static`, needs no runtime, and may be dropped at any time. What dropping means is the same
//! for all writes: before the first poll nothing happened; once the write is accepted, it runs to its end without the
//! caller; while it still waits to be accepted (for room in the buffer, or behind an earlier write of the same key), it
//! will not happen.
//!
//! One that is forgotten (`mem::forget`) without having been dropped is a handle on the store that never goes: once the store
//! was closed it keeps memory, open files and the thread that reads, but neither the lock nor the store's two tasks.
//!
//! In a forked child they all answer `Forked` at their next poll, those that were under way at the fork too. Neither that
//! poll nor dropping one takes a lock, which a thread of the parent's may have held.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::commit::{Accepted, OfferWait, Prepared, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{OpFuture, Priority, fork, probe};
use crate::keydir::Key;
use crate::maintenance::Request;
use crate::options::{CompactOptions, Durability, Options};
use crate::read::{Lookup, look_up};
use crate::stats::{CompactionReport, Version};
use crate::store::Store;
use crate::store::core::{Core, forked};
use crate::sync::promise::Promise;
use crate::sync::sharded::Share;
use crate::sync::waiters::Slot;

/// Record buffers kept for the next write of this thread, so that a write allocates nothing.
const POOLED_BUFFERS: usize = 16;
const POOLED_BUFFER_BYTES: usize = 128 * 1024;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn pooled_buffer() -> Vec<u8> {
    POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > POOLED_BUFFER_BYTES {
        return;
    }
    // A thread that is ending has no pool any more; then the buffer is freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < POOLED_BUFFERS {
            pool.push(buffer);
        }
    });
}

pub(crate) fn polled_after_completion<T>() -> Poll<Result<T>> {
    Poll::Ready(Err(Error::new(ErrorKind::InvalidInput, "the future was polled after it had completed")))
}

/// A write on its way: offered to the log, then waited for.
pub(crate) struct WriteOp {
    core: Share<Core>,
    durability: Durability,
    /// A delete: without its key there is nothing to write.
    must_exist: bool,
    state: WriteState,
}

enum WriteState {
    Invalid(Error),
    Offered(Prepared, OfferWait),
    Waiting(Ticket),
    /// A delete that found nothing, until that is durable.
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

    /// The sequence number of the write's last record; `None` if there was nothing to delete.
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
                    Ok(()) => self.core.log.accept(op, self.durability, self.must_exist, wait, cx),
                    Err(error) => Poll::Ready(Err(error)),
                };
                let Poll::Ready(accepted) = offered else { return Poll::Pending };
                self.core.log.withdraw(wait);
                give_back(std::mem::take(&mut op.bytes));
                self.state = WriteState::Done;
                match accepted? {
                    Accepted::Done(seq) => Poll::Ready(Ok(Some(seq))),
                    Accepted::Absent => Poll::Ready(Ok(None)),
                    Accepted::AbsentOnce(ticket) => {
                        self.state = WriteState::WaitingAbsent(ticket);
                        Poll::Pending
                    }
                    // Its waker is registered; the group cannot be through already.
                    Accepted::Waiting(ticket) => {
                        self.state = WriteState::Waiting(ticket);
                        Poll::Pending
                    }
                }
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

impl Drop for WriteOp {
    fn drop(&mut self) {
        if let WriteState::Offered(_, wait) = &mut self.state
            && !self.core.is_forked()
        {
            self.core.log.withdraw(wait);
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

opaque_debug!(Open, Get, Put, Delete, Write, Sync, WaitDurable, Compact, Close);

/// The future of [`Store::put`], [`Store::put_bytes`] and [`Store::put_with`].
#[must_use = "futures do nothing unless polled"]
pub struct Put(pub(crate) WriteOp);

impl Future for Put {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map_ok(|seq| Version(seq.unwrap_or(0)))
    }
}

/// The future of [`Store::delete`] and [`Store::delete_with`].
#[must_use = "futures do nothing unless polled"]
pub struct Delete(pub(crate) WriteOp);

impl Future for Delete {
    type Output = Result<bool>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map_ok(|seq| seq.is_some())
    }
}

/// The future of [`Store::write`].
#[must_use = "futures do nothing unless polled"]
pub struct Write(pub(crate) WriteInner);

pub(crate) enum WriteInner {
    Op(WriteOp),
    /// An empty batch: there is nothing to do, but the store must be open.
    Empty(Share<Core>),
}

impl Future for Write {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            WriteInner::Op(op) => op.poll(cx).map_ok(|seq| Version(seq.unwrap_or(0))),
            WriteInner::Empty(core) => Poll::Ready(core.check().map(|()| Version(core.log.durable_seq()))),
        }
    }
}

/// The future of [`Store::get`].
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
                crate::store::check_key(key.as_slice())?;
                match look_up(self.core.sources(), key.as_slice())? {
                    Lookup::Ready(value) => return Poll::Ready(Ok(value)),
                    Lookup::Disk(read) => Box::pin(read.finish(key)),
                }
            }
            GetState::Disk(read) => read,
            GetState::Done => return polled_after_completion(),
        };
        match read.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(Some)),
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
            // Giving up an operation locks its slot.
            std::mem::forget(std::mem::replace(&mut self.state, GetState::Done));
        }
    }
}

/// The future of [`Store::sync`].
#[must_use = "futures do nothing unless polled"]
pub struct Sync {
    core: Share<Core>,
    ticket: Option<Ticket>,
}

impl Sync {
    pub(crate) fn new(core: Share<Core>) -> Self {
        Self { core, ticket: None }
    }
}

impl Future for Sync {
    type Output = Result<Version>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.check_fork()?;
        if self.ticket.is_none() {
            self.core.check()?;
            match self.core.log.request_sync(cx.waker())? {
                Some(ticket) => self.ticket = Some(ticket),
                None => return Poll::Ready(Ok(Version(self.core.log.durable_seq()))),
            }
        }
        let Some(ticket) = &self.ticket else { return Poll::Pending };
        ticket.poll(cx).map_ok(|()| Version(ticket.last_seq))
    }
}

/// The future of [`Store::wait_durable`].
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
        core.log.poll_durable(*seq, slot, cx)
    }
}

impl Drop for WaitDurable {
    fn drop(&mut self) {
        if self.slot.was_used() && !self.core.is_forked() {
            self.core.log.leave_durable(&mut self.slot);
        }
    }
}

/// The future of [`Store::compact`].
#[must_use = "futures do nothing unless polled"]
pub struct Compact {
    core: Share<Core>,
    state: CompactState,
}

enum CompactState {
    Start(CompactOptions),
    Waiting(Arc<Request>),
    Done,
}

impl Compact {
    pub(crate) fn new(core: Share<Core>, options: CompactOptions) -> Self {
        Self { core, state: CompactState::Start(options) }
    }

    fn start(&self, options: &CompactOptions) -> Result<Arc<Request>> {
        self.core.check()?;
        let short = |id: &u64| {
            u32::try_from(*id).map_err(|_| {
                let message = format!("compact: {id} is not the number of a segment");
                Error::new(ErrorKind::InvalidInput, message)
            })
        };
        let segments =
            options.segments.as_ref().map(|segments| segments.iter().map(short).collect::<Result<Vec<u32>>>());
        Ok(self.core.maintenance.request(segments.transpose()?))
    }
}

impl Future for Compact {
    type Output = Result<CompactionReport>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.core.is_forked() {
            self.core.check()?;
        }
        let request = match std::mem::replace(&mut self.state, CompactState::Done) {
            CompactState::Start(options) => self.start(&options)?,
            CompactState::Waiting(request) => request,
            CompactState::Done => return polled_after_completion(),
        };
        match request.answer.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(CompactionReport::from)),
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
            self.core.maintenance.abandon(request);
        }
    }
}

/// The future of [`Store::close`].
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

/// The future of [`Store::open`] and [`Builder::open`](crate::Builder::open).
#[must_use = "futures do nothing unless polled"]
pub struct Open(OpenState);

enum OpenState {
    Start(Box<Options>),
    /// With the fork generation it was begun in.
    Opening(Promise<Result<Store>>, u64),
    Done,
}

impl Open {
    pub(crate) fn new(options: Options) -> Self {
        Self(OpenState::Start(Box::new(options)))
    }
}

impl Future for Open {
    type Output = Result<Store>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (promise, generation) = match std::mem::replace(&mut self.0, OpenState::Done) {
            OpenState::Start(options) => (begin_open(*options)?, fork::fork_generation()),
            OpenState::Opening(promise, generation) => (promise, generation),
            OpenState::Done => return polled_after_completion(),
        };
        if generation != fork::fork_generation() {
            return Poll::Ready(Err(forked()));
        }
        match promise.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                self.0 = OpenState::Opening(promise, generation);
                Poll::Pending
            }
        }
    }
}

/// Starts the opening on a thread of the store's own.
fn begin_open(options: Options) -> Result<Promise<Result<Store>>> {
    options.validate()?;
    let (io, fallback) = match &options.world {
        Some(world) => (Arc::clone(world), None),
        None => probe::open_backend(options.engine, options.write_path)
            .map_err(|error| Error::new(ErrorKind::Unsupported, "open: start the engine").with_source(error))?,
    };
    let promise = Promise::new();
    // If the opening unwinds, the guard's error is what the caller gets; otherwise the promise is fulfilled before.
    let guard = OpenGuard(promise.clone());
    let world = Arc::clone(&io);
    let path = options.path.clone();
    let task = async move {
        let opened = Core::open(options, world, fallback).await;
        guard.0.fulfil(opened.map(Store::new));
    };
    io.spawn("ringcask-open", Priority::Foreground, Box::pin(task))
        .map_err(|error| Error::io("open: start a thread", error).with_path(path))?;
    Ok(promise)
}

struct OpenGuard(Promise<Result<Store>>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.fulfil(Err(Error::new(ErrorKind::Poisoned, "the opening ended before its time")));
    }
}
