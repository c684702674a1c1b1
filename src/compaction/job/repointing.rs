//! Pointing the keys at their copies, on the maintenance task alone or on two threads.
//!
//! Every move is a compare and swap by itself, so neither their order nor who makes them matters, and making one twice
//! does nothing the second time.

use std::future::poll_fn;
use std::sync::Arc;

use super::helper::spawn_helper;
use crate::compaction::Compactor;
use crate::format::{HintReader, RecordKind};
use crate::keydir::{Location, Move};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::Segment;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Keys that are moved at a time.
const MOVES: usize = 4096;

/// The moves of one job.
pub(in crate::compaction) struct Moves {
    /// The new segments, and the keys that go there.
    pub(in crate::compaction) outputs: Vec<(Arc<Segment>, Vec<u8>)>,
    pub(in crate::compaction) inputs: Vec<Arc<Segment>>,
    /// The segments that keys may leave, ascending.
    pub(in crate::compaction) replaced: Vec<u32>,
}

/// Makes all moves.
pub(in crate::compaction) async fn move_all(compactor: &Arc<Compactor>, moves: Moves) {
    let (moves, next) = (Arc::new(moves), Arc::new(AtomicUsize::new(0)));
    let helper = (compactor.is_unlimited() && moves.outputs.len() > 1).then(|| {
        let (compactor_too, moves, next) = (Arc::clone(compactor), Arc::clone(&moves), Arc::clone(&next));
        let task = async move {
            compactor_too.move_next(&moves, &next);
            true
        };
        spawn_helper(compactor, task, false)
    });
    compactor.move_next(&moves, &next);
    let Some(Some(helper)) = helper else { return };
    if !poll_fn(|cx| helper.poll(cx)).await {
        // It ended somewhere in the middle.
        compactor.move_next(&moves, &AtomicUsize::new(0));
    }
}

impl Compactor {
    /// Makes the moves to the outputs from `next` on that nobody else has taken.
    fn move_next(&self, moves: &Moves, next: &AtomicUsize) {
        while let Some((output, hint)) = moves.outputs.get(next.fetch_add(1, Ordering::Relaxed)) {
            self.relocate(output, hint, &moves.replaced, &moves.inputs);
        }
    }

    pub(in crate::compaction) fn relocate(
        &self,
        output: &Segment,
        hint: &[u8],
        replaced: &[u32],
        inputs: &[Arc<Segment>],
    ) {
        // It was made in memory a moment ago, by the rules it is read by.
        let Ok((_, entries)) = HintReader::new(hint) else { return };
        let mut moves = Vec::with_capacity(MOVES);
        for entry in entries.flatten().filter(|entry| entry.kind == RecordKind::Put) {
            let Some(to) = Location::new(output.id, entry.offset, entry.value_len) else { continue };
            moves.push(Move { key: entry.key, seq: entry.seq, to });
            if moves.len() == MOVES {
                self.make_moves(&moves, output, replaced, inputs);
                moves.clear();
            }
        }
        self.make_moves(&moves, output, replaced, inputs);
    }

    fn make_moves(&self, moves: &[Move<'_>], output: &Segment, replaced: &[u32], inputs: &[Arc<Segment>]) {
        // Where the records were, with their lengths; summed up outside the locks.
        let mut moved = Vec::with_capacity(moves.len());
        self.parts
            .keydir
            .relocate(moves, replaced, |index, old| moved.push((old.segment, old.record_len(moves[index].key.len()))));
        if !seeded_bug::is(SeededBug::CopiesNotCounted) {
            output.add_live(moved.iter().map(|(_, len)| len).sum());
        }
        for input in inputs {
            input.remove_live(moved.iter().filter(|(id, _)| *id == input.id).map(|(_, len)| len).sum());
        }
    }
}
