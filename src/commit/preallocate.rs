//! Preallocated disk space: an accepted write must not meet a full disk.
//!
//! Space is preallocated ahead of the log in steps; where it is plentiful, half a step before a writer would have to
//! wait for it. Deletes may use all of it. Puts leave the last [`CommitOptions::reserve_bytes`] of it to deletes.
//!
//! On a full disk deletes use what is preallocated in the active segment, then what the reserve file gives back to
//! the file system.

use std::io;
use std::sync::Arc;

use super::active::{CommitOptions, PREALLOCATE_BYTES_MAX};
use super::log::{Refused, SpaceWanted};
use super::task::Committer;
use crate::error::Error;
use crate::format::{FOOTER_LEN, WATERMARK_LEN};
use crate::io::File;
use crate::segment::Loan;

const PREALLOCATE_BYTES_MIN: u64 = 64 << 10;
/// Space for deletes alone is preallocated in steps of this fraction of the reserve, so that not every delete takes
/// from it.
const RESERVE_STEPS: u64 = 16;
/// Deletes leave this fraction of the reserve: the next open needs space for the MANIFEST and the footer of the tail.
const RESERVE_KEPT: u64 = 4;

/// The refusal for the waiting writers, if no space could be made.
pub(super) type SpaceAnswer = Option<(Refused, Error)>;

impl Committer {
    /// Preallocates disk space for `wanted`.
    pub(super) fn preallocate(&mut self, wanted: SpaceWanted) -> SpaceAnswer {
        let (next_offset, preallocated_end) = self.parts.log.append_range()?;
        let file = Arc::clone(&self.active.as_ref()?.file);
        let with_reserve = end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes);
        if with_reserve <= preallocated_end {
            return None;
        }
        let mut refusal = None;
        if self.parts.reserve.is_held() {
            match self.preallocate_for_all(&*file, preallocated_end, with_reserve) {
                Ok(()) => return None,
                Err(error) => refusal = Some((Refused::AllButDeletes, error)),
            }
        }
        let for_deletes = end_of(next_offset, wanted.delete_bytes);
        if wanted.delete_bytes > 0
            && for_deletes > preallocated_end
            && let Err(error) = self.preallocate_for_deletes(&*file, preallocated_end, for_deletes)
        {
            return Some((Refused::Everybody, error));
        }
        refusal
    }

    /// Preallocates the next step before a writer waits for it. Not where space was short: there the waiting writers
    /// decide who gets it.
    pub(super) fn preallocate_next_step(&mut self) {
        let Some((next_offset, preallocated_end)) = self.parts.log.append_range() else { return };
        let Some(active) = &self.active else { return };
        let CommitOptions { segment_bytes, reserve_bytes, .. } = self.options;
        let step = PREALLOCATE_BYTES_MAX.min(segment_bytes);
        let target = preallocated_end.saturating_add(step).min(segment_bytes.saturating_add(reserve_bytes));
        let is_due =
            next_offset.saturating_add(reserve_bytes + step / 2) > preallocated_end && target > preallocated_end;
        let is_easy =
            self.preallocate_step_bytes == PREALLOCATE_BYTES_MAX && self.parts.reserve.is_held() && !active.must_seal;
        let file = Arc::clone(&active.file);
        if is_due && is_easy && self.preallocate_up_to(&*file, preallocated_end, target).is_err() {
            self.preallocate_step_bytes = PREALLOCATE_BYTES_MAX / 4;
        }
    }

    /// Preallocates a step, or at least up to `needed`.
    fn preallocate_for_all(&mut self, file: &dyn File, preallocated_end: u64, needed: u64) -> Result<(), Error> {
        let step = self.preallocate_step_bytes.min(self.options.segment_bytes);
        let generous = needed.max(preallocated_end.saturating_add(step));
        if self.preallocate_up_to(file, preallocated_end, generous).is_ok() {
            self.preallocate_step_bytes = (self.preallocate_step_bytes * 2).min(PREALLOCATE_BYTES_MAX);
            return Ok(());
        }
        // On a nearly full disk, small steps replace large ones that fail.
        self.preallocate_step_bytes = (self.preallocate_step_bytes / 4).max(PREALLOCATE_BYTES_MIN);
        self.preallocate_up_to(file, preallocated_end, needed)
    }

    /// Preallocates a little beyond `needed`, but less than would admit a put. If the disk is full, uses space from
    /// the reserve.
    fn preallocate_for_deletes(&self, file: &dyn File, preallocated_end: u64, needed: u64) -> Result<(), Error> {
        let more = needed.saturating_add(self.options.reserve_bytes / RESERVE_STEPS);
        let more = more.min(self.options.segment_bytes).max(needed);
        let preallocate = || {
            let allocated = self.preallocate_up_to(file, preallocated_end, more);
            allocated.or_else(|_| self.preallocate_up_to(file, preallocated_end, needed))
        };
        let Err(error) = preallocate() else { return Ok(()) };
        let Some(_loan) = self.borrow(needed - preallocated_end) else { return Err(error) };
        preallocate()
    }

    /// Lends the space of the reserve to deletes. `bytes` of it will not come back.
    pub(super) fn borrow(&self, bytes: u64) -> Option<Loan> {
        let kept = self.options.reserve_bytes / RESERVE_KEPT;
        if self.parts.reserve.held_bytes() > kept.saturating_add(bytes) { self.parts.reserve.release() } else { None }
    }

    fn preallocate_up_to(&self, file: &dyn File, preallocated_end: u64, target: u64) -> Result<(), Error> {
        match file.allocate(preallocated_end, target - preallocated_end) {
            Ok(()) => self.parts.log.set_preallocated_end(target),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.parts.log.set_preallocated_end(u64::MAX),
            Err(error) => return Err(self.io_error("preallocate disk space", error)),
        }
        Ok(())
    }
}

/// Where a segment ends if its next group has `bytes` of records and is the last.
pub(super) fn end_of(next_offset: u64, bytes: u64) -> u64 {
    next_offset + WATERMARK_LEN as u64 + bytes + FOOTER_LEN as u64
}
