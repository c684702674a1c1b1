//! A write that is offered to the log: what it waits for, and the answer.

use crate::commit::group::Ticket;
use crate::sync::waiters::Slot;

/// The answer to an offered write.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Done, with this sequence number.
    Done(u64),
    Waiting(Ticket),
    /// A delete of a key that does not exist.
    Absent,
    /// The same, but the delete that removed the key is not durable yet.
    AbsentOnce(Ticket),
}

/// What an offered write has waited for so far.
#[derive(Debug, Default)]
pub(crate) struct OfferWait {
    /// Its slot among the writers that wait for space, and the attempt to make space that was current when it began
    /// to wait.
    pub(super) admission: Slot,
    pub(super) since_attempt: Option<u64>,
    /// Its slot among the writes that wait for an earlier write of their key.
    pub(super) resolve: Slot,
}

impl OfferWait {
    pub(crate) fn has_waited(&self) -> bool {
        self.admission.was_used() || self.resolve.was_used()
    }
}
