//! The future of [`Store::multi_get`](crate::Store::multi_get).
//!
//! It first looks up every key and reads what is in memory. It then starts the reads that must wait together, so that the kernel
//! gets them in one submission.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, Stream};

use super::core::Core;
use super::polled_after_completion;
use crate::error::Result;
use crate::keydir::Key;
use crate::read::{Lookup, look_up};
use crate::sync::sharded::Share;

/// Lookups in one poll. Each may copy a value from the page cache, and other tasks of the thread wait meanwhile.
const LOOKUPS_PER_POLL: usize = 128;

/// A read that waits for the engine, with the index of its key.
type WaitingRead = Pin<Box<dyn Future<Output = (usize, Result<Bytes>)> + Send>>;

/// The future of [`Store::multi_get`](crate::Store::multi_get).
#[must_use = "futures do nothing unless polled"]
pub struct MultiGet {
    core: Share<Core>,
    state: MultiGetState,
}

enum MultiGetState {
    LookingUp(KeyLookups),
    Reading(PendingReads),
    Done,
}

struct KeyLookups {
    keys: Vec<Key>,
    values: Vec<Option<Bytes>>,
    reads: Vec<WaitingRead>,
}

struct PendingReads {
    values: Vec<Option<Bytes>>,
    reads: FuturesUnordered<WaitingRead>,
}

impl MultiGet {
    pub(crate) fn new<K: AsRef<[u8]>>(core: Share<Core>, keys: impl IntoIterator<Item = K>) -> Self {
        let keys: Vec<Key> = keys.into_iter().map(|key| Key::new(key.as_ref())).collect();
        let values = Vec::with_capacity(keys.len());
        Self { core, state: MultiGetState::LookingUp(KeyLookups { keys, values, reads: Vec::new() }) }
    }
}

impl KeyLookups {
    /// Looks up the next keys. Returns whether they were the last.
    fn advance(&mut self, core: &Core) -> Result<bool> {
        let done = self.values.len();
        for index in done..self.keys.len().min(done + LOOKUPS_PER_POLL) {
            let key = std::mem::replace(&mut self.keys[index], Key::new(&[]));
            crate::batch::check_key(key.as_slice())?;
            let value = match look_up(core.sources(), key.as_slice()).map_err(|error| core.located(error))? {
                Lookup::Ready(value) => value,
                Lookup::Disk(read) => {
                    self.reads.push(Box::pin(async move { (index, read.finish(key).await) }));
                    None
                }
            };
            self.values.push(value);
        }
        Ok(self.values.len() == self.keys.len())
    }

    /// Starts all reads.
    fn start(self, core: &Core, cx: &mut Context<'_>) -> (PendingReads, Poll<Result<()>>) {
        let mut reading = PendingReads { values: self.values, reads: self.reads.into_iter().collect() };
        let mut polled = Poll::Pending;
        // The first poll of each starts it.
        core.parts.io.together(&mut || polled = reading.poll(cx));
        (reading, polled)
    }
}

impl PendingReads {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while let Poll::Ready(next) = Pin::new(&mut self.reads).poll_next(cx) {
            match next {
                Some((index, value)) => self.values[index] = Some(value?),
                None => return Poll::Ready(Ok(())),
            }
        }
        Poll::Pending
    }
}

impl Future for MultiGet {
    type Output = Result<Vec<Option<Bytes>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.check_fork()?;
        let (mut reading, polled) = match std::mem::replace(&mut self.state, MultiGetState::Done) {
            MultiGetState::LookingUp(mut looking_up) => {
                self.core.check()?;
                if !looking_up.advance(&self.core)? {
                    self.state = MultiGetState::LookingUp(looking_up);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                looking_up.start(&self.core, cx)
            }
            MultiGetState::Reading(mut reading) => {
                let polled = reading.poll(cx);
                (reading, polled)
            }
            MultiGetState::Done => return polled_after_completion(),
        };
        match polled {
            Poll::Ready(result) => Poll::Ready(
                result.map(|()| std::mem::take(&mut reading.values)).map_err(|error| self.core.located(error)),
            ),
            Poll::Pending => {
                self.state = MultiGetState::Reading(reading);
                Poll::Pending
            }
        }
    }
}

impl Drop for MultiGet {
    fn drop(&mut self) {
        if matches!(self.state, MultiGetState::Reading(_)) && self.core.is_forked() {
            // Dropping an operation locks its slot.
            std::mem::forget(std::mem::replace(&mut self.state, MultiGetState::Done));
        }
    }
}
