//! Prewriting: bytes after the end of the log, so that an awaited sync finds blocks that were written before.
//!
//! A sync of bytes beyond the end of a file must also write the file's new length and its new blocks. A sync of bytes
//! that overwrite others need not. For a group of some dozen records that saves nearly half of the time (see
//! docs/performance.md). So about once in [`GROUPS`] groups, a sync that is due anyway also writes [`PREWRITTEN_BYTE`] bytes
//! after the records, for the next groups to overwrite.
//!
//! Only the commit task prewrites: after everything that it has written, while no other write and no sync is in
//! flight, and within the preallocated space. After a crash, prewritten bytes lie behind the last record and end the
//! log, as any bytes do that are no record. Sealing a segment cuts them off first, because recovery looks for the
//! footer at the end of the file.
//!
//! Large groups do not prewrite. They gain little: most of their sync is their own bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::active::ActiveSegment;
use super::parts::CommitCounters;
use super::task::Committer;
use crate::format::PREWRITTEN_BYTE;
use crate::io::util;
use crate::seeded_bug::{self, SeededBug};

/// Number of groups, of the size of the last one, that one step serves.
const GROUPS: u64 = 16;
/// Groups beyond this size do not prewrite.
const GROUP_BYTES_MAX: u64 = 64 << 10;
const STEP_BYTES_MIN: u64 = 64 << 10;
/// A step is at most this fraction of a segment.
const STEPS_PER_SEGMENT: u64 = 4;
/// Steps end at whole sectors, so that no sector is written twice.
const SECTOR_BYTES: u64 = 512;

static PREWRITE_PIECE: [u8; 64 << 10] = [PREWRITTEN_BYTE; 64 << 10];

impl Committer {
    /// Called before a sync: prewrites a step if the prewritten space is too short for another group of this size.
    pub(super) async fn prewrite(&mut self) {
        let Some((_, preallocated_end)) = self.parts.log.append_range() else { return };
        let segment_bytes = self.options.segment_bytes;
        let Some(active) = &mut self.active else { return };
        let Some(until) = active.next_prewrite_end(segment_bytes, preallocated_end) else { return };
        let mut from = active.prewritten_end.max(active.end);
        if seeded_bug::is(SeededBug::FillerOverRecords) {
            from = active.durable_end;
        }
        active.prewritten_end = until;
        let file = Arc::clone(&active.file);
        match util::write_all(&*file, prewrite_pieces(until - from), from).await {
            Ok(()) => CommitCounters::add(&self.parts.commit_counters.bytes_prewritten, until - from),
            // Nothing depends on prewritten bytes. If the disk fails, the sync reports it.
            Err(_) => active.prewrites = false,
        }
    }
}

impl ActiveSegment {
    /// Where the next step should end, if one is due.
    fn next_prewrite_end(&self, segment_bytes: u64, preallocated_end: u64) -> Option<u64> {
        let group_bytes = self.end.saturating_sub(self.durable_end);
        let is_worth_it = self.prewrites && !self.must_seal && group_bytes <= GROUP_BYTES_MAX;
        if !is_worth_it || self.end + group_bytes <= self.prewritten_end {
            return None;
        }
        let step = (group_bytes * GROUPS).max(STEP_BYTES_MIN).min(segment_bytes / STEPS_PER_SEGMENT);
        let until = (self.end + step).min(segment_bytes).min(preallocated_end) / SECTOR_BYTES * SECTOR_BYTES;
        (until > self.end.max(self.prewritten_end)).then_some(until)
    }
}

fn prewrite_pieces(len: u64) -> Vec<Bytes> {
    let piece = Bytes::from_static(&PREWRITE_PIECE);
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
    fn prewritten_pieces_have_the_requested_length() {
        for len in [0, 1, 511, 512, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20] {
            let pieces = prewrite_pieces(len);
            assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), len);
            assert!(pieces.iter().flatten().all(|byte| *byte == PREWRITTEN_BYTE));
        }
    }
}
