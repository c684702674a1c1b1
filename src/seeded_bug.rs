//! Known mistakes, to be built in one at a time: tests of the tests.
//!
//! Each is a mistake that some store of this kind has made. With the feature `sim` a test can switch one on for the whole
//! process and must then see the crash tests, or the schedules, fail; without it there is nothing to switch and nothing to pay.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SeededBug {
    /// The directory is not synced when a segment is created or the MANIFEST renamed.
    NoDirectorySync = 1,
    /// A torn tail is not cut before the segment is sealed.
    NoTruncateOnOpen,
    /// What is kept of a tail is not made durable, the footer neither.
    TailNotSynced,
    /// A torn tail is sealed with its torn bytes, as if they were records.
    SealAfterTornTail,
    /// The payload's checksum is not verified by a scan.
    PayloadUnverified,
    /// Zeros pass for a record.
    ZerosDecode,
    /// A record may be longer than its file.
    LengthUnchecked,
    /// A scan goes on behind a bad record.
    SkipBadRecord,
    /// Members of a batch count one by one.
    BatchNotAtomic,
    /// Writers are answered before the sync.
    AckBeforeSync,
    /// A sync vouches for a write that was not complete when it was submitted.
    SyncCoversInFlight,
    /// A failed group's error reaches only some of its writers.
    FollowerErrorDropped,
    /// A failed sync counts as one that succeeded, as one does that is tried again until it says so.
    SyncErrorDropped,
    /// A short write counts as a whole one.
    ShortWriteIgnored,
    /// An I/O error in a scan counts as the end of the log.
    ReadErrorIsEnd,
    /// A hint is believed whatever segment it is of.
    HintUnbound,
    /// Sequence numbers of lost writes are given out again.
    SequenceReused,
    /// The footer is written before the data it vouches for is durable.
    FooterBeforeData,
    /// A compaction drops tombstones although segments that it does not read may hold what they hide.
    TombstoneDropped,
    /// A compaction moves a key to its copy without looking whether it still points at the record that was copied.
    RelocateUnconditionally,
    /// A compaction's output is listed, and its inputs unlinked, before the output is durable.
    OutputNotSynced,
    /// A compaction drops what was overwritten by a write that is not durable.
    OverwrittenByTheUndurable,
    /// A compaction's inputs are unlinked before the list without them is durable.
    UnlinkedWhileListed,
    /// A compaction calls its output younger than tombstones that were accepted, but not yet published.
    OutputTooYoung,
    /// Segments without a live byte go unread, whatever their tombstones hide.
    UnreadWithTombstones,
    /// What is copied does not count as alive in the segment it was copied to.
    CopiesNotCounted,
    /// A compaction goes on as if an input had ended where reading it failed, or where it was told to stop.
    InputErrorIsEnd,
    /// The number of a compaction's output is not spent, durably, before its file exists.
    SpentIdNotDurable,
    /// A record counts as dead because its key is being written, although that write may fail.
    BusyKeySkipped,
    /// Of a segment that a compaction does not read whole, a record that is alive is left out.
    LiveRecordLeftOut,
    /// Files of segments that were compacted away go in any order.
    RetiredInAnyOrder,
    /// The sequence numbers of records that a compaction has removed may be given out again.
    SpentNumbersForgotten,
    /// A compaction retires its inputs before it has moved the keys to the copies.
    InputsRetiredBeforeKeysMoved,
    /// A compaction moves keys to a copy in a segment that readers cannot find yet.
    OutputFoundLate,
    /// A look-up that finds its record's segment retired does not look again where the record is now.
    NotLookedAgain,
    /// A look-up does not mind that a batch is being published.
    BatchEpochIgnored,
    /// A retired segment's file may go although it is being read.
    UnlinkedUnderReader,
    /// A retired segment's file goes before those that its tombstones hide records of.
    TombstoneUnlinkedFirst,
    /// Who waits for a group and comes from another task than before does not look again under the lock.
    WakerLost,
    /// The commit task does not look again whether the bell was rung while it turned to it.
    BellNotHeard,
    /// Room that was kept for a writer who went away is offered to nobody.
    RoomNotOffered,
    /// The commit task is not told that a queued write may fit now.
    QueueNotTriedAgain,
    /// A future that is dropped leaves its waker in the list it waited in.
    WaiterKept,
    /// A poll of an operation looks for the result and registers its waker in two steps.
    CompletionOverwritten,
    /// A record's checksum covers key and value alone: its header is believed as it is.
    HeaderUnverified,
    /// A hint is believed if it is of a segment with the same number, of whatever age.
    StaleHint,
    /// A compaction copies the frame of a batch whose members it copies each by itself, or not at all.
    BatchFrameCopied,
    /// A read does not compare the key of the record it finds.
    KeyNotCompared,
    /// A directory is repaired before it is locked.
    LockAfterRecovery,
    /// Filler is written over records that no sync has covered yet.
    FillerOverRecords,
    /// A segment is sealed with filler behind its footer.
    FillerNotCut,
}

#[cfg(feature = "sim")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::SeededBug;

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Switches a mistake on, or all off, for the whole process.
    pub fn activate(seeded_bug: Option<SeededBug>) {
        ACTIVE.store(seeded_bug.map_or(0, |seeded_bug| seeded_bug as u8), Ordering::SeqCst);
    }

    /// Whether `seeded_bug` is switched on.
    pub(crate) fn is(seeded_bug: SeededBug) -> bool {
        ACTIVE.load(Ordering::Relaxed) == seeded_bug as u8
    }
}

#[cfg(not(feature = "sim"))]
mod switch {
    use super::SeededBug;

    /// There are no mistakes in earnest.
    pub(crate) const fn is(_: SeededBug) -> bool {
        false
    }
}

pub(crate) use switch::is;

#[cfg(feature = "sim")]
pub use switch::activate;
