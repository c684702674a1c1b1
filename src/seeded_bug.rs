//! Seeded bugs: built-in mistakes, switched on one at a time, that the tests must find.
//!
//! Each is a mistake that some store of this kind has made. Tests switch one on for the whole process and must then see the crash
//! tests, or the schedule explorer, fail. In a build without the test hooks there is no switch and no cost.

/// A seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SeededBug {
    /// The directory is not synced when a segment is created or the MANIFEST renamed.
    NoDirectorySync = 1,
    /// A torn tail is not cut before the segment is sealed.
    NoTruncateOnOpen,
    /// The part of a tail that is kept is not made durable, nor is its footer.
    TailNotSynced,
    /// A torn tail is sealed with its torn bytes, as if they were records.
    SealAfterTornTail,
    /// The payload's checksum is not verified by a scan.
    PayloadUnverified,
    /// Zeros count as a record.
    ZerosDecode,
    /// A record may be longer than its file.
    LengthUnchecked,
    /// A scan continues after a bad record.
    SkipBadRecord,
    /// The members of a batch are recovered one by one.
    BatchNotAtomic,
    /// Writers are acknowledged before the sync.
    AckBeforeSync,
    /// A sync counts for a write that was not complete when the sync was submitted.
    SyncCoversInFlight,
    /// A failed group's error reaches only some of its writers.
    FollowerErrorDropped,
    /// A failed sync counts as a success, as it does for a store that retries it until it succeeds.
    SyncErrorDropped,
    /// A short write counts as a whole one.
    ShortWriteIgnored,
    /// An I/O error in a scan counts as the end of the log.
    ReadErrorIsEnd,
    /// A hint file is accepted without checking which segment it belongs to.
    HintUnbound,
    /// Sequence numbers of lost writes are reused.
    SequenceReused,
    /// The footer is written before the data that it covers is durable.
    FooterBeforeData,
    /// A compaction drops tombstones although segments outside the job may hold records that they hide.
    TombstoneDropped,
    /// A compaction repoints a key to its copy without checking that it still points at the copied record.
    RelocateUnconditionally,
    /// A compaction's output is listed, and its inputs unlinked, before the output is durable.
    OutputNotSynced,
    /// A compaction drops a record that was overwritten by a write that is not durable.
    OverwrittenByTheUndurable,
    /// A compaction's inputs are unlinked before the list without them is durable.
    UnlinkedWhileListed,
    /// A compaction marks its output as younger than tombstones that were accepted but not published.
    OutputTooYoung,
    /// Segments without live bytes are removed unread, although their tombstones still hide records.
    UnreadWithTombstones,
    /// Copied records do not count as live in the segment that they were copied to.
    CopiesNotCounted,
    /// A compaction treats a read error, or a request to stop, as the end of an input.
    InputErrorIsEnd,
    /// The id of a compaction's output is not durably spent before its file exists.
    SpentIdNotDurable,
    /// A record counts as dead because its key is being written, although that write may fail.
    BusyKeySkipped,
    /// A compaction that reads only a part of a segment misses a live record.
    LiveRecordLeftOut,
    /// Files of obsolete segments are removed in any order.
    RetiredInAnyOrder,
    /// Sequence numbers of records that a compaction removed may be reused.
    SpentNumbersForgotten,
    /// A compaction makes its inputs obsolete before it has repointed the keys.
    InputsRetiredBeforeKeysMoved,
    /// A compaction repoints keys to a segment that readers cannot find yet.
    OutputFoundLate,
    /// A lookup whose segment is obsolete does not look up the key again.
    NotLookedAgain,
    /// A lookup ignores that a batch is being published.
    BatchEpochIgnored,
    /// The file of an obsolete segment may be removed while a reader uses it.
    UnlinkedUnderReader,
    /// The file of an obsolete segment is removed before the files whose records its tombstones hide.
    TombstoneUnlinkedFirst,
    /// A waiter of a group that is polled by another task does not check again under the lock.
    WakerLost,
    /// The commit task does not check again for a notification after it has registered its waker.
    BellNotHeard,
    /// Room that was kept for a writer that left is offered to no one.
    RoomNotOffered,
    /// A queued submitted write holds no place among the writers that wait for admission.
    SubmittedOvertaken,
    /// A dropped future leaves its waker in the list.
    WaiterKept,
    /// A poll of an operation checks for the result and registers its waker in two steps.
    CompletionOverwritten,
    /// The header of a record is not verified.
    HeaderUnverified,
    /// A hint file is accepted for any segment with the same id, also one of another life.
    StaleHint,
    /// A compaction copies the frame of a batch although it copies the members one by one.
    BatchFrameCopied,
    /// A read does not compare the key of the record it finds.
    KeyNotCompared,
    /// A directory is repaired before it is locked.
    LockAfterRecovery,
    /// Prewriting overwrites records that no sync has covered yet.
    FillerOverRecords,
    /// A segment is sealed with prewritten space behind its footer.
    FillerNotCut,
}

#[cfg(feature = "__testing")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::SeededBug;

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Switches one bug on, or all off, for the whole process.
    pub fn activate(seeded_bug: Option<SeededBug>) {
        ACTIVE.store(seeded_bug.map_or(0, |seeded_bug| seeded_bug as u8), Ordering::SeqCst);
    }

    /// Whether `seeded_bug` is switched on.
    pub(crate) fn is(seeded_bug: SeededBug) -> bool {
        ACTIVE.load(Ordering::Relaxed) == seeded_bug as u8
    }
}

#[cfg(not(feature = "__testing"))]
mod switch {
    use super::SeededBug;

    /// Never on in a build without the test hooks.
    pub(crate) const fn is(_: SeededBug) -> bool {
        false
    }
}

pub(crate) use switch::is;

#[cfg(feature = "__testing")]
pub use switch::activate;
