//! Group commit: from a caller's record to stable storage.
//!
//! ```text
//!   callers                        commit task (its own thread, its own ring)
//!   ───────                        ──────────────────────────────────────────
//!   prepare  (checksum, copy)
//!   accept ──lock──> stage  ────>  take ──> write ──> [sync] ──> publish ──> wake
//!            │                       │        one contiguous      keydir     one loop,
//!            └ Buffered: publish     │        write a group                  no locks
//!              at once               └ meanwhile the next group gathers
//! ```
//!
//! - [`prepared`] — a write before it has a place.
//! - [`stage`] — the buffer between callers and the task.
//! - [`log`] — the lock, the numbers, the room: where callers and the task meet.
//! - [`group`] — what the writes of one group share: an outcome.
//! - [`linger`] — whether the next group waits for the writers that the last one has just released.
//! - [`task`] — the only writer of segments: groups, syncs, poison.
//! - [`rotate`] — sealing a segment, starting the next, claiming disk space.
//!
//! A group is whatever came while the last sync was under way (and, where that pays, the writers just released, who are
//! about to come back: [`linger`]). There is one sync at a time, and it vouches only for writes whose completion came before it was submitted.

mod active;
mod append;
mod delay;
mod group;
mod log;
mod parts;
mod preallocate;
mod prepared;
mod prewrite;
mod publish;
mod rotate;
#[cfg(test)]
#[cfg(feature = "shuttle")]
pub(crate) mod schedules;
mod stage;
mod sync;
mod task;

pub(crate) use active::CommitOptions;
pub(crate) use group::Ticket;
pub(crate) use log::{Accepted, Limits, Log, OfferWait};
pub(crate) use parts::Parts;
pub(crate) use prepared::Prepared;
pub(crate) use task::Committer;
