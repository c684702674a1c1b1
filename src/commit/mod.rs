//! Group commit: from a caller's record to stable storage.
//!
//! ```text
//!   callers                        commit task (its own thread, its own ring)
//!   ───────                        ──────────────────────────────────────────
//!   prepare  (checksum, copy)
//!   accept ──lock──> stage  ────>  take ──> write ──> [sync] ──> publish ──> wake
//!            │                       │        one contiguous      keydir     one loop,
//!            └ Buffered: publish     │        write per group                no locks
//!              at once               └ meanwhile the next group gathers
//! ```
//!
//! # The life of one write
//!
//! 1. **Prepare.** The caller's thread copies the record and computes its checksum, outside all locks ([`prepared`]).
//! 2. **Accept.** Polled for the first time, the write takes the log's lock. If there is space, it gets its sequence number
//!    and its position in the log, and is copied into the staging buffer ([`log`], [`stage`]). From here on it runs to
//!    its end without the caller. If there is no space, it waits in order of arrival and is not accepted yet. A submitted
//!    write that finds no space waits in the log's own queue, and the commit task accepts it.
//! 3. **Gather.** Writes staged between two takes of the commit task form a [`group`]. A `Buffered` write is published
//!    on acceptance and is done; its caller waits for nothing.
//! 4. **Write.** The commit task takes the group and writes it with one contiguous write ([`task`], [`append`]). Readers
//!    find its records in memory until the write is complete. `Written` records are published now.
//! 5. **Sync.** If a writer of the group asked for it, the task syncs the segment ([`sync`]). Meanwhile the next group gathers:
//!    that is why many writers share one sync. After a sync the task may wait briefly for the released writers ([`delay`]).
//! 6. **Publish and wake.** The group is resolved: its `Synced` records are published in the keydir ([`publish`]), and its
//!    writers are woken in one loop, outside all locks.
//!
//! When the active segment is full, the task seals it and starts the next one ([`rotate`]). It prepares disk space ahead of
//! the log: [`preallocate`] so that an accepted write does not meet a full disk, [`prewrite`] so that small syncs are short.
//! [`active`] and [`parts`] hold what these files share.
//!
//! # Invariants
//!
//! - The order of the log is the order of acceptance: sequence numbers, ordinals and offsets grow together.
//! - Only the commit task writes to segments, with at most one write and one sync in flight.
//! - A sync covers only writes that completed before it was submitted.
//! - A `Synced` write is published only after its sync, and a write is acknowledged only after it is published.
//! - Groups are resolved in log order, so `resolved_seq` and `durable_seq` are one number each.
//! - Nothing waits, does I/O or runs a caller's code (a waker, a destructor) under the log's lock.
//!
//! # Failure
//!
//! - **No space.** The write is refused before it is accepted: `NoSpace`, not applied. The store keeps working.
//! - **A failed write.** The file is cut back and the cut is synced. The group's writers are told "not applied", and the
//!   segment is sealed. If the group held acknowledged `Buffered` writes, the store is poisoned instead.
//! - **A failed sync, or a failed cut.** The store is poisoned. Writers whose group was handed to the kernel get the
//!   outcome "unknown": reopening decides. Writers that were only staged are told "not applied". Reads continue.
//! - **A panic of the commit task** also poisons the store.

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
#[cfg(feature = "__shuttle")]
pub(crate) mod schedules;
mod stage;
mod sync;
mod task;

pub(crate) use active::CommitOptions;
pub(crate) use group::Ticket;
pub(crate) use log::{Accepted, Limits, Log, OfferWait, Submission};
pub(crate) use parts::Parts;
pub(crate) use prepared::Prepared;
pub(crate) use task::Committer;
