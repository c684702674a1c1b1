//! The future of [`Store::multi_get`](crate::Store::multi_get).
//!
//! Every key is looked up first, and what the page cache has is read on the way, if gets look there. Then the reads that have to wait are
//! started together, so that the kernel gets them in one submission, and the disk in whatever order it likes best.

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

/// Look-ups made in one poll. Each may copy a value from the page cache, and other tasks wait meanwhile.
const LOOK_UPS_A_POLL: usize = 128;

/// A read that waits, and the place of its key among all.
type Read = Pin<Box<dyn Future<Output = (usize, Result<Bytes>)> + Send>>;

/// The future of [`Store::multi_get`](crate::Store::multi_get).
#[must_use = "futures do nothing unless polled"]
pub struct MultiGet {
    core: Share<Core>,
    state: State,
}

enum State {
    LookingUp(LookingUp),
    Reading(Reading),
    Done,
}

struct LookingUp {
    keys: Vec<Key>,
    values: Vec<Option<Bytes>>,
    reads: Vec<Read>,
}

struct Reading {
    values: Vec<Option<Bytes>>,
    reads: FuturesUnordered<Read>,
}

impl MultiGet {
    pub(crate) fn new<K: AsRef<[u8]>>(core: Share<Core>, keys: impl IntoIterator<Item = K>) -> Self {
        let keys: Vec<Key> = keys.into_iter().map(|key| Key::new(key.as_ref())).collect();
        let values = Vec::with_capacity(keys.len());
        Self { core, state: State::LookingUp(LookingUp { keys, values, reads: Vec::new() }) }
    }
}

impl LookingUp {
    /// Looks the next keys up; whether those were the last.
    fn go_on(&mut self, core: &Core) -> Result<bool> {
        let done = self.values.len();
        for index in done..self.keys.len().min(done + LOOK_UPS_A_POLL) {
            let key = std::mem::replace(&mut self.keys[index], Key::new(&[]));
            crate::batch::check_key(key.as_slice())?;
            let value = match look_up(core.sources(), key.as_slice())? {
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
    fn start(self, core: &Core, cx: &mut Context<'_>) -> (Reading, Poll<Result<()>>) {
        let mut reading = Reading { values: self.values, reads: self.reads.into_iter().collect() };
        let mut polled = Poll::Pending;
        // The first poll of each starts it.
        core.parts.io.together(&mut || polled = reading.poll(cx));
        (reading, polled)
    }
}

impl Reading {
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
        let (mut reading, polled) = match std::mem::replace(&mut self.state, State::Done) {
            State::LookingUp(mut looking_up) => {
                self.core.check()?;
                if !looking_up.go_on(&self.core)? {
                    self.state = State::LookingUp(looking_up);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                looking_up.start(&self.core, cx)
            }
            State::Reading(mut reading) => {
                let polled = reading.poll(cx);
                (reading, polled)
            }
            State::Done => return polled_after_completion(),
        };
        match polled {
            Poll::Ready(result) => Poll::Ready(result.map(|()| std::mem::take(&mut reading.values))),
            Poll::Pending => {
                self.state = State::Reading(reading);
                Poll::Pending
            }
        }
    }
}

impl Drop for MultiGet {
    fn drop(&mut self) {
        if matches!(self.state, State::Reading(_)) && self.core.is_forked() {
            // Giving up an operation locks its slot.
            std::mem::forget(std::mem::replace(&mut self.state, State::Done));
        }
    }
}
