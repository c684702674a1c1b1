//! PRE

use std::io;
use std::sync::Arc;

use super::active::{CommitOptions, MAX_CLAIM_STEP_BYTES};
use super::log::{Refused, SpaceWanted};
use super::task::Committer;
use crate::error::Error;
use crate::format::{FOOTER_LEN, WATERMARK_LEN};
use crate::io::File;
use crate::segment::Loan;

const MIN_CLAIM_STEP_BYTES: u64 = 64 << 10;
/// Space for deletes alone is claimed for this part of the reserve at a time, so that not every delete moves it.
const RESERVE_STEPS: u64 = 16;
/// This part of it deletes leave alone: the next open needs some, for the MANIFEST and the footer of the tail.
const RESERVE_KEPT: u64 = 4;

/// The refusal to answer waiting writers with, if no room could be made.
pub(super) type Answer = Option<(Refused, Error)>;

impl Committer {
    /// Claims disk space for `wanted`.
    pub(super) fn claim(&mut self, wanted: SpaceWanted) -> Answer {
        let (next_offset, claimed_end) = self.parts.log.place()?;
        let file = Arc::clone(&self.active.as_ref()?.file);
        let with_reserve = end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes);
        if with_reserve <= claimed_end {
            return None;
        }
        let mut refusal = None;
        if self.parts.reserve.is_held() {
            match self.claim_for_all(&*file, claimed_end, with_reserve) {
                Ok(()) => return None,
                Err(error) => refusal = Some((Refused::AllButDeletes, error)),
            }
        }
        let for_deletes = end_of(next_offset, wanted.delete_bytes);
        if wanted.delete_bytes > 0
            && for_deletes > claimed_end
            && let Err(error) = self.claim_for_deletes(&*file, claimed_end, for_deletes)
        {
            return Some((Refused::Everybody, error));
        }
        refusal
    }

    /// Claims the segment's next step before anybody waits for it. Not where space was short: there those that wait decide
    /// who gets what.
    pub(super) fn claim_ahead(&mut self) {
        let Some((next_offset, claimed_end)) = self.parts.log.place() else { return };
        let Some(active) = &self.active else { return };
        let CommitOptions { segment_bytes, reserve_bytes, .. } = self.options;
        let step = MAX_CLAIM_STEP_BYTES.min(segment_bytes);
        let target = claimed_end.saturating_add(step).min(segment_bytes.saturating_add(reserve_bytes));
        let is_due = next_offset.saturating_add(reserve_bytes + step / 2) > claimed_end && target > claimed_end;
        let is_easy = self.claim_step == MAX_CLAIM_STEP_BYTES && self.parts.reserve.is_held() && !active.retired;
        let file = Arc::clone(&active.file);
        if is_due && is_easy && self.claim_up_to(&*file, claimed_end, target).is_err() {
            self.claim_step = MAX_CLAIM_STEP_BYTES / 4;
        }
    }

    /// Claims a step, or at least up to `needed`.
    fn claim_for_all(&mut self, file: &dyn File, claimed_end: u64, needed: u64) -> Result<(), Error> {
        let step = self.claim_step.min(self.options.segment_bytes);
        let generous = needed.max(claimed_end.saturating_add(step));
        if self.claim_up_to(file, claimed_end, generous).is_ok() {
            self.claim_step = (self.claim_step * 2).min(MAX_CLAIM_STEP_BYTES);
            return Ok(());
        }
        // On a disk that is nearly full the steps become small, instead of failing large ones every time.
        self.claim_step = (self.claim_step / 4).max(MIN_CLAIM_STEP_BYTES);
        self.claim_up_to(file, claimed_end, needed)
    }

    /// Claims a little more than up to `needed`, though less than would let a put in; at last in what the reserve gives
    /// back.
    fn claim_for_deletes(&self, file: &dyn File, claimed_end: u64, needed: u64) -> Result<(), Error> {
        let more = needed.saturating_add(self.options.reserve_bytes / RESERVE_STEPS);
        let more = more.min(self.options.segment_bytes).max(needed);
        let claim = || {
            let claimed = self.claim_up_to(file, claimed_end, more);
            claimed.or_else(|_| self.claim_up_to(file, claimed_end, needed))
        };
        let Err(error) = claim() else { return Ok(()) };
        let Some(_loan) = self.borrow(needed - claimed_end) else { return Err(error) };
        claim()
    }

    /// The space of the reserve for deletes, `bytes` of which will not come back.
    pub(super) fn borrow(&self, bytes: u64) -> Option<Loan> {
        let kept = self.options.reserve_bytes / RESERVE_KEPT;
        if self.parts.reserve.held_bytes() > kept.saturating_add(bytes) { self.parts.reserve.release() } else { None }
    }

    fn claim_up_to(&self, file: &dyn File, claimed_end: u64, target: u64) -> Result<(), Error> {
        match file.allocate(claimed_end, target - claimed_end) {
            Ok(()) => self.parts.log.set_claimed_end(target),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.parts.log.set_claimed_end(u64::MAX),
            Err(error) => return Err(self.place_error("claim disk space", error)),
        }
        Ok(())
    }
}

/// Where a segment ends whose next group has `bytes` of records and is the last.
pub(super) fn end_of(next_offset: u64, bytes: u64) -> u64 {
    next_offset + WATERMARK_LEN as u64 + bytes + FOOTER_LEN as u64
}
