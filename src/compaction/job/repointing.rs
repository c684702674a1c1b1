//! Repointing: the keydir entries of the inputs' records are changed to the records' copies.
//!
//! Each entry changes by a compare and swap, so the order does not matter, nor which thread does it, and repeating it
//! has no effect.

use std::sync::Arc;

use crate::format::{HintReader, RecordKind};
use crate::keydir::{Keydir, Location, Move};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;

/// Keys that are repointed at once.
const KEYS_PER_STEP: usize = 4096;

/// The repointing of one job.
pub(super) struct Repointing {
    /// The new segments, each with its hints: the keys and where their copies are.
    pub(super) outputs: Vec<(Arc<Segment>, Vec<u8>)>,
    /// The segments whose live-byte counters fall.
    pub(super) inputs: Vec<Arc<Segment>>,
    /// Ids of the segments that keys may leave, ascending.
    pub(super) replaced: Vec<u32>,
}

impl Repointing {
    /// Repoints the keys in `hint` to `output`, unless they have been written since.
    pub(super) fn repoint_to(&self, output: &Segment, hint: &[u8], keydir: &Keydir) {
        // The hints were encoded in memory by this job, so they decode.
        let Ok((_, entries)) = HintReader::new(hint) else { return };
        let mut moves = Vec::with_capacity(KEYS_PER_STEP);
        for entry in entries.flatten().filter(|entry| entry.kind == RecordKind::Put) {
            let Some(to) = Location::new(output.id, entry.offset, entry.value_len) else { continue };
            moves.push(Move { key: entry.key, seq: entry.seq, to });
            if moves.len() == KEYS_PER_STEP {
                self.repoint(&moves, output, keydir);
                moves.clear();
            }
        }
        self.repoint(&moves, output, keydir);
    }

    fn repoint(&self, moves: &[Move<'_>], output: &Segment, keydir: &Keydir) {
        // The segment that each key has left, and the length of its record. Summed up outside the shard locks.
        let mut moved = Vec::with_capacity(moves.len());
        keydir.repoint(moves, &self.replaced, |index, old| {
            moved.push((old.segment, old.record_len(moves[index].key.len())));
        });
        if !seeded_bug::is(SeededBug::CopiesNotCounted) {
            output.add_live(moved.iter().map(|(_, len)| len).sum());
        }
        for input in &self.inputs {
            input.remove_live(moved.iter().filter(|(id, _)| *id == input.id).map(|(_, len)| len).sum());
        }
    }
}
