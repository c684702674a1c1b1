//! What the store knows in memory about one segment.

use std::sync::{Arc, OnceLock, PoisonError};

use super::obsolete::{ObsoleteSegments, Unlinkable};
use super::sequential::SequentialDetector;
use crate::cache::Slots;
use crate::format::{Binding, FOOTER_LEN};
use crate::io::File;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// After this many compactions have failed to read a segment, compaction leaves it alone.
const FAILED_READS_MAX: u64 = 3;

/// Facts about a sealed, undamaged segment; see [`Segment::facts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Largest sequence number of the puts and tombstones; 0 if there are none.
    pub(crate) max_seq: u64,
    /// Bytes of the tombstones. They are not live, yet compaction cannot always drop them.
    pub(crate) tombstone_bytes: u64,
}

/// One segment: what readers need to know about it, and its live bytes.
///
/// Once a segment is in the segment set, only the commit task changes `written_end` and `sealed`; recovery and
/// compaction insert sealed segments. The live bytes change with every publication and whenever a keydir entry is
/// repointed.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) salt: u64,
    /// No tombstone with a smaller sequence number hides a record of this segment.
    pub(crate) first_seq: u64,
    pub(crate) binding: Binding,
    /// Bytes that can be read from the file. Later bytes are still in the log's staging buffers.
    written_end: AtomicU64,
    /// Bytes of records that the keydir points at. Two threads may overwrite each other's records at the same time, so
    /// the sum can be negative for a moment.
    live_bytes: AtomicI64,
    sealed: AtomicBool,
    facts: OnceLock<Facts>,
    /// Damage was found after the open. Compaction leaves the segment alone.
    damaged: AtomicBool,
    /// Compactions that failed to read the segment.
    failed_reads: AtomicU64,
    hint_bytes: AtomicU64,
    /// Detects sequential gets from this segment.
    pub(crate) sequential: SequentialDetector,
    /// The cache slots of the segment's blocks.
    pub(crate) slots: Slots,
    /// Set when the segment becomes obsolete. The last reader queues the file there for unlinking.
    obsolete_queue: OnceLock<ObsoleteSegments>,
    pub(super) file: RwLock<Option<Arc<dyn File>>>,
    /// The tick of the segment set at which the file was last used.
    pub(super) last_used: AtomicU64,
}

impl Segment {
    pub(crate) fn new(id: u32, salt: u64, first_seq: u64, written_end: u64, file: Option<Arc<dyn File>>) -> Self {
        Self {
            id,
            salt,
            first_seq,
            binding: Binding::new(salt, u64::from(id)),
            written_end: AtomicU64::new(written_end),
            live_bytes: AtomicI64::new(0),
            sealed: AtomicBool::new(false),
            facts: OnceLock::new(),
            damaged: AtomicBool::new(false),
            failed_reads: AtomicU64::new(0),
            hint_bytes: AtomicU64::new(0),
            sequential: SequentialDetector::default(),
            slots: Slots::default(),
            obsolete_queue: OnceLock::new(),
            file: RwLock::new(file),
            last_used: AtomicU64::new(0),
        }
    }

    pub(crate) fn written_end(&self) -> u64 {
        self.written_end.load(Ordering::Acquire)
    }

    /// Offset of a sealed segment's footer, where its records end.
    pub(crate) fn data_end(&self) -> u64 {
        self.written_end().saturating_sub(FOOTER_LEN as u64)
    }

    /// Records that the kernel has accepted all bytes below `end`.
    pub(crate) fn set_written_end(&self, end: u64) {
        self.written_end.store(end, Ordering::Release);
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        u64::try_from(self.live_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn add_live(&self, bytes: u64) {
        self.live_bytes.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
    }

    pub(crate) fn remove_live(&self, bytes: u64) {
        self.live_bytes.fetch_sub(bytes.cast_signed(), Ordering::Relaxed);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Marks the segment as sealed. A segment without facts is damaged, and compaction leaves it alone.
    pub(crate) fn set_sealed(&self, facts: Option<Facts>) {
        if let Some(facts) = facts {
            // A segment is sealed only once: by the commit task, by recovery, or by the compaction that wrote it.
            let _ = self.facts.set(facts);
        }
        self.sealed.store(true, Ordering::Release);
    }

    /// The facts of a sealed, undamaged segment; otherwise `None`.
    pub(crate) fn facts(&self) -> Option<Facts> {
        if self.damaged.load(Ordering::Relaxed) { None } else { self.facts.get().copied() }
    }

    /// Counts a compaction that failed to read the segment. After [`FAILED_READS_MAX`] failures, compaction leaves the
    /// segment alone until the next open, so that it does not block the compaction of other segments.
    pub(crate) fn count_failed_read(&self) {
        if self.failed_reads.fetch_add(1, Ordering::Relaxed) + 1 >= FAILED_READS_MAX {
            self.set_damaged();
        }
    }

    pub(crate) fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    pub(crate) fn hint_bytes(&self) -> u64 {
        self.hint_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_hint_bytes(&self, bytes: u64) {
        self.hint_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The file, if it is open.
    pub(super) fn open_file(&self) -> Option<Arc<dyn File>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ---- obsolete segments ---------------------------------------------------------------------------------------

    /// Marks the segment as no longer part of the store. The drop of the last reference queues its file in `queue`.
    pub(super) fn make_obsolete(&self, queue: &ObsoleteSegments) {
        queue.pin(self.unlinkable());
        // A second call would find the same queue.
        let _ = self.obsolete_queue.set(queue.clone());
    }

    pub(super) fn is_obsolete(&self) -> bool {
        self.obsolete_queue.get().is_some()
    }

    /// What determines the unlink order of the segment's file. Only undamaged segments become obsolete.
    pub(super) fn unlinkable(&self) -> Unlinkable {
        let with_tombstones = self.facts.get().filter(|facts| facts.tombstone_bytes > 0);
        Unlinkable {
            id: self.id,
            first_seq: self.first_seq,
            newest_tombstone: with_tombstones.map_or(0, |facts| facts.max_seq),
            file_bytes: self.written_end() + self.hint_bytes(),
        }
    }
}

impl Drop for Segment {
    /// The last reader is gone, so the file of an obsolete segment may be unlinked.
    fn drop(&mut self) {
        if let Some(queue) = self.obsolete_queue.get() {
            queue.push(self.unlinkable());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_are_unlinked_after_the_records_they_hide() {
        // A delete is accepted while a compaction starts. Its sequence number is the output's `first_seq`, and the
        // compaction copies the put that the tombstone hides to the output.
        for (output_first_seq, expected) in [(19, [3, 2]), (20, [3, 2]), (21, [2, 3])] {
            let obsolete = ObsoleteSegments::default();
            for (id, first_seq, max_seq, tombstone_bytes) in [(2, 10, 20, 48), (3, output_first_seq, 5, 0)] {
                let segment = Segment::new(id, 0, first_seq, 1000, None);
                segment.set_sealed(Some(Facts { max_seq, tombstone_bytes }));
                segment.make_obsolete(&obsolete);
            }
            let order = [(); 2].map(|()| {
                let next = obsolete.next().unwrap().id;
                obsolete.gone(next);
                next
            });
            assert_eq!(order, expected, "an output with first_seq {output_first_seq}");
            assert!(!obsolete.has_next());
        }
    }
}
