//! The queue of submitted writes that are not accepted yet; [`submit`](super::submit) says how it is served.

use std::collections::VecDeque;

use super::offer::{Accepted, OfferWait};
use crate::commit::prepared::Prepared;
use crate::error::Result;
use crate::options::Durability;
use crate::sync::promise::Promise;
use crate::sync::wake;

/// What became of a submitted write.
pub(crate) enum Submission {
    /// Accepted at once. The prepared write comes back, so that its buffer can be reused.
    Accepted(Accepted, Prepared),
    /// Queued; the answer arrives later.
    Queued(Promise<Result<Accepted>>),
}

/// The submitted writes that are not accepted yet, oldest first.
#[derive(Default)]
pub(super) struct SubmitQueue {
    list: VecDeque<QueuedWrite>,
    bytes: u64,
}

/// A submitted write that is not accepted yet.
pub(super) struct QueuedWrite {
    /// `None` for a sync of everything queued before it.
    pub(super) op: Option<Prepared>,
    pub(super) durability: Durability,
    pub(super) must_exist: bool,
    pub(super) wait: OfferWait,
    pub(super) promise: Promise<Result<Accepted>>,
}

/// The answer to a queued write, to be delivered outside the lock.
pub(super) struct Answered {
    pub(super) write: QueuedWrite,
    pub(super) result: Result<Accepted>,
}

impl SubmitQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn push(&mut self, write: QueuedWrite) {
        self.bytes += write.log_len();
        self.list.push_back(write);
    }

    pub(super) fn pop(&mut self) -> Option<QueuedWrite> {
        let write = self.list.pop_front()?;
        self.bytes -= write.log_len();
        Some(write)
    }

    /// Puts back the write that [`pop`](Self::pop) returned last.
    pub(super) fn unpop(&mut self, write: QueuedWrite) {
        self.bytes += write.log_len();
        self.list.push_front(write);
    }
}

impl QueuedWrite {
    fn log_len(&self) -> u64 {
        self.op.as_ref().map_or(0, Prepared::log_len)
    }
}

impl Answered {
    pub(super) fn deliver(self) {
        let Self { write: QueuedWrite { op, promise, .. }, result } = self;
        promise.fulfil(result);
        // A large value may be memory of the caller's.
        wake::give_back(op);
    }
}
