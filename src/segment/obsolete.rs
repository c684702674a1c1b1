//! Obsolete segments: compaction has replaced them, and their files are unlinked once the last reader is gone.
//!
//! A reader holds a reference to the segment while it reads. A segment that becomes obsolete leaves the segment set, so
//! no new reader finds it. When the last reference is dropped, on any thread, the file is queued here, and the
//! maintenance task unlinks it.
//!
//! # Unlink order
//!
//! The MANIFEST stops listing a file before it is unlinked. A crash between two unlinks therefore leaves files that the
//! next open removes without reading them. Even so, a file with tombstones waits until every obsolete file with an
//! older `first_seq` than its newest tombstone is durably gone. A recovery without a MANIFEST then never finds a put
//! whose tombstone is missing.

use std::sync::{Arc, PoisonError};

use crate::seeded_bug::{self, SeededBug};
use crate::sync::{AtomicWaker, Mutex, MutexGuard};

/// The files to unlink, and the task to wake when one can go.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObsoleteSegments(Arc<ObsoleteQueue>);

#[derive(Debug, Default)]
struct ObsoleteQueue {
    files: Mutex<ObsoleteFiles>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct ObsoleteFiles {
    /// Files that a reader may still use.
    pinned: Vec<Unlinkable>,
    /// Files without readers.
    free: Vec<Unlinkable>,
}

/// The properties of an obsolete segment that determine when its file may be unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unlinkable {
    pub(crate) id: u32,
    pub(crate) first_seq: u64,
    /// Upper bound of the sequence numbers of its tombstones; 0 if it has none.
    pub(super) newest_tombstone: u64,
    pub(crate) file_bytes: u64,
}

impl ObsoleteSegments {
    fn lock(&self) -> MutexGuard<'_, ObsoleteFiles> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the task to wake when a file can be unlinked.
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.0.waker.register(waker);
    }

    /// Adds a segment that readers may still use.
    pub(super) fn pin(&self, segment: Unlinkable) {
        self.lock().pinned.push(segment);
    }

    /// Adds a segment that has no readers, or moves it there from the pinned segments.
    pub(super) fn push(&self, segment: Unlinkable) {
        {
            let mut files = self.lock();
            files.pinned.retain(|pinned| pinned.id != segment.id);
            files.free.push(segment);
        }
        self.0.waker.wake();
    }

    /// Whether a file can be unlinked now.
    pub(crate) fn has_next(&self) -> bool {
        self.next().is_some()
    }

    /// The next file to unlink: the oldest one without readers, except for files whose tombstones hide records of
    /// another obsolete file. The file stays in the queue until [`gone`](Self::gone) is called.
    pub(crate) fn next(&self) -> Option<Unlinkable> {
        let files = self.lock();
        if seeded_bug::is(SeededBug::RetiredInAnyOrder) {
            return files.free.iter().max_by_key(|candidate| (candidate.first_seq, candidate.id)).copied();
        }
        let must_wait_for = |candidate: &Unlinkable, other: &Unlinkable| {
            let may_be_hidden = other.first_seq <= candidate.newest_tombstone;
            other.id != candidate.id && may_be_hidden && !seeded_bug::is(SeededBug::TombstoneUnlinkedFirst)
        };
        files
            .free
            .iter()
            .filter(|candidate| !files.free.iter().chain(&files.pinned).any(|other| must_wait_for(candidate, other)))
            .min_by_key(|candidate| (candidate.first_seq, candidate.id))
            .copied()
    }

    /// Records that the file of segment `id` is durably gone.
    pub(crate) fn gone(&self, id: u32) {
        self.lock().free.retain(|free| free.id != id);
    }

    /// Total bytes of the files that are not gone.
    pub(crate) fn bytes(&self) -> u64 {
        let files = self.lock();
        files.free.iter().chain(&files.pinned).map(|obsolete| obsolete.file_bytes).sum()
    }
}
