//! Segments that compaction has replaced: their files go when their last reader is gone.
//!
//! A reader holds the [`Segment`] for as long as it reads. Retiring takes the segment out of the registry, so that nobody
//! finds it any more; dropping its last handle, on whatever thread, queues its name here; the maintenance task unlinks.
//!
//! # The order of unlinking
//!
//! The MANIFEST has stopped listing these files before any of them goes, so a crash between two unlinks leaves files that
//! the next open removes unread. All the same a file with tombstones waits until every retired file that was begun
//! before its newest tombstone is gone, durably: whoever has to do without a MANIFEST finds no put whose tombstone is
//! missing.

use std::sync::{Arc, PoisonError};

use super::Segment;
use crate::seeded_bug::{self, SeededBug};
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// Names to be unlinked, and who does it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    /// Retired, and still held by a reader.
    pinned: Vec<Unlinkable>,
    /// Nobody reads them any more.
    free: Vec<Unlinkable>,
}

/// What of a retired segment decides when its file may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unlinkable {
    pub(crate) id: u32,
    pub(crate) first_seq: u64,
    /// The newest tombstone in it may be as new as this; 0 if it has none.
    newest_tombstone: u64,
    pub(crate) file_bytes: u64,
}

impl Unlinkable {
    pub(super) fn of(segment: &Segment) -> Self {
        // Only whole segments are retired.
        let newest_tombstone = segment.facts.get().filter(|facts| facts.tombstone_bytes > 0);
        Self {
            id: segment.id,
            first_seq: segment.first_seq,
            newest_tombstone: newest_tombstone.map_or(0, |facts| facts.max_seq),
            file_bytes: segment.written_end() + segment.hint_bytes(),
        }
    }
}

impl Retired {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to wake when a file can go.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.0.waker.register(waker);
    }

    /// `segment` is no longer part of the store; what is dropped last queues it.
    pub(super) fn pin(&self, segment: &Segment) {
        self.lock().pinned.push(Unlinkable::of(segment));
        // Retired once: a second time finds the same queue.
        let _ = segment.retired_to.set(self.clone());
    }

    pub(super) fn push(&self, segment: Unlinkable) {
        {
            let mut state = self.lock();
            state.pinned.retain(|pinned| pinned.id != segment.id);
            state.free.push(segment);
        }
        self.0.waker.wake();
    }

    /// Whether something waits to be unlinked that could be.
    pub(crate) fn has_next(&self) -> bool {
        self.next().is_some()
    }

    /// The next file to go: the oldest one that nobody reads, unless it has tombstones that an older one still needs.
    /// It stays on the list until [`gone`](Self::gone).
    pub(crate) fn next(&self) -> Option<Unlinkable> {
        let state = self.lock();
        if seeded_bug::is(SeededBug::RetiredInAnyOrder) {
            return state.free.iter().max_by_key(|candidate| (candidate.first_seq, candidate.id)).copied();
        }
        let needs = |candidate: &Unlinkable, other: &Unlinkable| {
            let is_hidden = other.first_seq <= candidate.newest_tombstone;
            other.id != candidate.id && is_hidden && !seeded_bug::is(SeededBug::TombstoneUnlinkedFirst)
        };
        state
            .free
            .iter()
            .filter(|candidate| !state.free.iter().chain(&state.pinned).any(|other| needs(candidate, other)))
            .min_by_key(|candidate| (candidate.first_seq, candidate.id))
            .copied()
    }

    /// The file of segment `id` is gone, durably.
    pub(crate) fn gone(&self, id: u32) {
        self.lock().free.retain(|free| free.id != id);
    }

    /// Bytes in files that are not gone.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.lock();
        state.free.iter().chain(&state.pinned).map(|retired| retired.file_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Facts;
    use super::*;

    #[test]
    fn a_tombstone_outlives_what_it_hides() {
        // A delete is accepted while a compaction begins: its number is the one that the output's `first_seq` names, and
        // the put it hides is copied to that output.
        for (output_first_seq, expected) in [(19, [3, 2]), (20, [3, 2]), (21, [2, 3])] {
            let retired = Retired::default();
            for (id, first_seq, max_seq, tombstone_bytes) in [(2, 10, 20, 48), (3, output_first_seq, 5, 0)] {
                let segment = Segment::new(id, 0, first_seq, 1000, None);
                segment.set_sealed(Some(Facts { max_seq, tombstone_bytes }));
                retired.pin(&segment);
            }
            let order = [(); 2].map(|()| {
                let next = retired.next().unwrap().id;
                retired.gone(next);
                next
            });
            assert_eq!(order, expected, "an output that begins at {output_first_seq}");
            assert!(!retired.has_next());
        }
    }
}
