//! Filler ahead of the log, so that a sync that somebody awaits finds blocks that were written before.
//!
//! A sync of bytes behind the end of a file has to bring its new length and its new blocks to the disk, too; a sync of
//! bytes written over others has not. For a group of some dozen records that is nearly half the time (`benches/RESULTS.md`).
//! So about once in [`GROUPS`] groups the sync that is due anyway gets, behind the group's records, [`FILLER`] for the next
//! ones to overwrite.
//!
//! Only the commit task writes it: behind everything that it has written, while no other write and no sync is in flight,
//! and within the space that was claimed. A crash leaves it behind the last record, where it ends the log as any byte does
//! that is no record. Whoever seals the segment cuts it off first, for a footer is looked for at the end of the file.
//!
//! It is not written for large groups. They gain little: what they wait for is their own bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::active::Active;
use super::parts::CommitCounters;
use super::task::Committer;
use crate::format::FILLER;
use crate::io::util;
use crate::seeded_bug::{self, SeededBug};

/// Groups of the size of the last one that shall find filler.
const GROUPS: u64 = 16;
/// Groups beyond this size are written as they come.
const GROUP_BYTES_MAX: u64 = 64 << 10;
const STEP_BYTES_MIN: u64 = 64 << 10;
/// A step is at most this part of a segment.
const STEPS_PER_SEGMENT: u64 = 4;
/// Steps end at whole sectors, so that none is written twice.
const SECTOR_BYTES: u64 = 512;

static FILLER_PIECE: [u8; 64 << 10] = [FILLER; 64 << 10];

impl Committer {
    /// Before a sync: if the records it is for are followed by too little filler for as many more, writes some.
    pub(super) async fn fill_ahead(&mut self) {
        let Some((_, claimed_end)) = self.parts.log.place() else { return };
        let segment_bytes = self.options.segment_bytes;
        let Some(active) = &mut self.active else { return };
        let Some(until) = active.step_of_filler(segment_bytes, claimed_end) else { return };
        let mut from = active.filled_end.max(active.end);
        if seeded_bug::is(SeededBug::FillerOverRecords) {
            from = active.durable_end;
        }
        active.filled_end = until;
        let file = Arc::clone(&active.file);
        match util::write_all(&*file, filler(until - from), from).await {
            Ok(()) => CommitCounters::add(&self.parts.commit_counters.bytes_filled, until - from),
            // Nothing rests on it. If it is the disk that fails, the sync will say so.
            Err(_) => active.fills = false,
        }
    }
}

impl Active {
    /// Where the filler should end, if it is time for more.
    fn step_of_filler(&self, segment_bytes: u64, claimed_end: u64) -> Option<u64> {
        let group_bytes = self.end.saturating_sub(self.durable_end);
        let is_worth_it = self.fills && !self.retired && group_bytes <= GROUP_BYTES_MAX;
        if !is_worth_it || self.end + group_bytes <= self.filled_end {
            return None;
        }
        let step = (group_bytes * GROUPS).max(STEP_BYTES_MIN).min(segment_bytes / STEPS_PER_SEGMENT);
        let until = (self.end + step).min(segment_bytes).min(claimed_end) / SECTOR_BYTES * SECTOR_BYTES;
        (until > self.end.max(self.filled_end)).then_some(until)
    }
}

fn filler(len: u64) -> Vec<Bytes> {
    let piece = Bytes::from_static(&FILLER_PIECE);
    let len = util::to_usize(len);
    let mut pieces = vec![piece.clone(); len / piece.len()];
    pieces.push(piece.slice(..len % piece.len()));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filler_has_the_length_asked_for() {
        for len in [0, 1, 511, 512, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20] {
            let pieces = filler(len);
            assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), len);
            assert!(pieces.iter().flatten().all(|byte| *byte == FILLER));
        }
    }
}
