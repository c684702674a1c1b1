//! Segments: the files of the log, one being appended to, the others sealed for ever.

mod catalog;
mod names;
mod registry;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

pub(crate) use catalog::{Catalog, CatalogError};
pub(crate) use names::{FileName, HINT_SUFFIX, LOCK_FILE, MANIFEST_FILE, hint_file_name, segment_file_name, tmp_name};
pub(crate) use registry::Registry;

use crate::format::Binding;
use crate::io::File;

/// One segment: what a reader needs to know of it, and the bytes in it that are alive.
///
/// Only the commit task changes `written_end` and `sealed`; live bytes change with every publication.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) salt: u64,
    pub(crate) binding: Binding,
    /// Bytes that can be read from the file. What lies beyond is still in the log's staging buffers.
    written_end: AtomicU64,
    /// Bytes of records the keydir points at. Two threads may publish over each other's records, so for a moment the
    /// sum may be below zero.
    live_bytes: AtomicI64,
    sealed: AtomicBool,
    file: RwLock<Option<Arc<dyn File>>>,
    /// The registry's tick when the file was last used.
    last_used: AtomicU64,
}

impl Segment {
    pub(crate) fn new(id: u32, salt: u64, written_end: u64, sealed: bool, file: Option<Arc<dyn File>>) -> Self {
        Self {
            id,
            salt,
            binding: Binding::new(salt, u64::from(id)),
            written_end: AtomicU64::new(written_end),
            live_bytes: AtomicI64::new(0),
            sealed: AtomicBool::new(sealed),
            file: RwLock::new(file),
            last_used: AtomicU64::new(0),
        }
    }

    pub(crate) fn written_end(&self) -> u64 {
        self.written_end.load(Ordering::Acquire)
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

    pub(crate) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    fn open_file(&self) -> Option<Arc<dyn File>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
