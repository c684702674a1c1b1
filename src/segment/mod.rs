//! Segments: the files of the log, one being appended to, the others sealed for ever.

pub(crate) mod hint_file;
mod manifest;
mod names;
mod obsolete;
mod reserve;
mod scan;
mod sequential;
mod set;
mod window;

use std::sync::{Arc, OnceLock, PoisonError};

pub(crate) use manifest::{ManifestError, ManifestStore, SharedManifest};
pub(crate) use names::{
    FileName, HINT_SUFFIX, LOCK_FILE, MANIFEST_FILE, RESERVE_FILE, cut_file_name, hint_file_name, segment_file_name,
    tmp_name,
};
pub(crate) use obsolete::{Retired, Unlinkable};
pub(crate) use reserve::{Loan, Reserve, lacks_space};
pub(crate) use scan::{Extent, Found, Scan, Stop, Stored};
pub(crate) use set::SegmentSet;
pub(crate) use window::ReadAhead;

use self::sequential::InOrder;
use crate::cache::Slots;
use crate::format::{Binding, FOOTER_LEN};
use crate::io::File;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Compactions that may fail to read a segment before it is left alone.
const FAILED_READS_MAX: u64 = 3;

/// What is known of a sealed segment that is whole; see [`Segment::facts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Largest sequence number of its puts and tombstones, 0 without any.
    pub(crate) max_seq: u64,
    /// Bytes of its tombstones. They are not alive, and yet cannot always be dropped.
    pub(crate) tombstone_bytes: u64,
}

/// One segment: what a reader needs to know of it, and the bytes in it that are alive.
///
/// Of a segment in the registry only the commit task changes `written_end` and `sealed`: recovery and compaction put theirs
/// there sealed. Live bytes change with every publication and every move of a key.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) salt: u64,
    /// No tombstone with a smaller sequence number hides a record of this segment.
    pub(crate) first_seq: u64,
    pub(crate) binding: Binding,
    /// Bytes that can be read from the file. What lies beyond is still in the log's staging buffers.
    written_end: AtomicU64,
    /// Bytes of records the keydir points at. Two threads may publish over each other's records, so for a moment the
    /// sum may be below zero.
    live_bytes: AtomicI64,
    sealed: AtomicBool,
    facts: OnceLock<Facts>,
    /// Found damaged since the open: compaction leaves it alone.
    damaged: AtomicBool,
    /// Compactions that could not read it.
    failed_reads: AtomicU64,
    hint_bytes: AtomicU64,
    /// Whether its records are being got in order.
    pub(crate) in_order: InOrder,
    /// Where the cache has its blocks.
    pub(crate) slots: Slots,
    /// Set when it is retired: who is told when the last reader is gone.
    retired_to: OnceLock<Retired>,
    file: RwLock<Option<Arc<dyn File>>>,
    /// The registry's tick when the file was last used.
    last_used: AtomicU64,
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
            in_order: InOrder::default(),
            slots: Slots::default(),
            retired_to: OnceLock::new(),
            file: RwLock::new(file),
            last_used: AtomicU64::new(0),
        }
    }

    pub(crate) fn written_end(&self) -> u64 {
        self.written_end.load(Ordering::Acquire)
    }

    /// Where the records of a sealed segment end and its footer begins.
    pub(crate) fn data_end(&self) -> u64 {
        self.written_end().saturating_sub(FOOTER_LEN as u64)
    }

    /// Called after the kernel has taken the bytes below `end`.
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

    /// Closes it for ever. Without facts it is damaged, and no compaction will touch it.
    pub(crate) fn set_sealed(&self, facts: Option<Facts>) {
        if let Some(facts) = facts {
            // Sealed once: by the commit task, by recovery or by the compaction that wrote it.
            let _ = self.facts.set(facts);
        }
        self.sealed.store(true, Ordering::Release);
    }

    /// What is known of it, if it is sealed and whole.
    pub(crate) fn facts(&self) -> Option<Facts> {
        if self.damaged.load(Ordering::Relaxed) { None } else { self.facts.get().copied() }
    }

    /// Reading it has failed once more in a compaction: after some times it is left alone until the next open, so that it
    /// does not keep the others from being compacted.
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

    fn is_retired(&self) -> bool {
        self.retired_to.get().is_some()
    }

    fn open_file(&self) -> Option<Arc<dyn File>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Segment {
    /// The last reader is gone: a retired segment's file can go too.
    fn drop(&mut self) {
        if let Some(retired) = self.retired_to.get() {
            retired.push(Unlinkable::of(self));
        }
    }
}
