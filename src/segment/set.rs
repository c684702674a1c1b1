//! All segments of a store, and the descriptors they may keep open.
//!
//! Readers look a segment up by id and ask for its file; the registry opens it if need be and closes the least recently
//! used sealed one when there are more than the budget. A reader keeps the file it was given for as long as it reads,
//! so closing a segment never takes a file away from under a read, and a retired segment's file is there until the last
//! reader has dropped the segment ([`Retired`]).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::{Retired, Segment, Unlinkable, segment_file_name};
use crate::io::{Dir, File, OpenMode};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::sharded::Sharded;
use crate::sync::{RwLock, RwLockReadGuard};

/// Ids are the store's own, given out one after the other: nobody can choose them so that they collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Fibonacci hashing: neighbours spread over the whole table.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

type Segments = HashMap<u32, Arc<Segment>, BuildHasherDefault<IdHasher>>;

pub(crate) struct SegmentSet {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) path: PathBuf,
    /// The same list in every copy: each get takes a lock of it, and readers that took the same one would take its cache
    /// line from each other. Changed a few times for each segment's life, one copy after the other.
    segments: Sharded<RwLock<Segments>>,
    pub(crate) retired: Retired,
    max_open_files: usize,
    open_files: AtomicUsize,
    /// Advances with every open, so that "used since then" costs a reader one store.
    tick: AtomicU64,
    /// Bytes of records in other segments than the one being written that have died since somebody asked.
    died_bytes: AtomicU64,
}

impl SegmentSet {
    pub(crate) fn new(dir: Arc<dyn Dir>, path: PathBuf, max_open_files: usize) -> Self {
        Self {
            dir,
            path,
            segments: Sharded::default(),
            retired: Retired::default(),
            max_open_files,
            open_files: AtomicUsize::new(0),
            tick: AtomicU64::new(1),
            died_bytes: AtomicU64::new(0),
        }
    }

    /// The list as this thread sees it.
    fn mine(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.mine().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the list for every thread. Some see it changed before others do, until this returns.
    fn change(&self, change: impl Fn(&mut Segments)) {
        for copy in self.segments.iter() {
            change(&mut copy.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Segment>> {
        self.mine().get(&id).cloned()
    }

    /// What `look` makes of segment `id`. Spares a reader a handle of its own; holds the list's lock, so `look` is quick.
    pub(crate) fn with<R>(&self, id: u32, look: impl FnOnce(&Arc<Segment>) -> R) -> Option<R> {
        self.mine().get(&id).map(look)
    }

    /// A record of `bytes` in segment `id` has died. The segment may be gone by now.
    pub(crate) fn record_died(&self, id: u32, bytes: u64) {
        if self.with(id, |segment| segment.remove_live(bytes)).is_some() {
            self.died_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Whether `bytes` or more have died since the last time this was so.
    pub(crate) fn have_died(&self, bytes: u64) -> bool {
        let is_so = self.died_bytes.load(Ordering::Relaxed) >= bytes;
        if is_so {
            self.died_bytes.store(0, Ordering::Relaxed);
        }
        is_so
    }

    /// All segments, ascending by id.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        let mut all: Vec<_> = self.mine().values().cloned().collect();
        all.sort_by_key(|segment| segment.id);
        all
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        if let Some(file) = segment.open_file() {
            file.expect_random_reads();
            self.open_files.fetch_add(1, Ordering::Relaxed);
        }
        self.change(|segments| drop(segments.insert(segment.id, Arc::clone(&segment))));
        self.close_surplus();
    }

    /// Takes `segment`, which no key points at and the MANIFEST does not list, out of the store. Its file goes when its
    /// last reader is gone.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        match seeded_bug::is(SeededBug::UnlinkedUnderReader) {
            true => self.retired.push(Unlinkable::of(&segment)),
            false => self.retired.pin(&segment),
        }
        self.change(|segments| drop(segments.remove(&segment.id)));
        // Readers that have it keep its file open for as long as they need it.
        if segment.file.write().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.open_files.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The file of `segment` if it is open.
    pub(crate) fn open_file(&self, segment: &Segment) -> Option<Arc<dyn File>> {
        let tick = self.tick.load(Ordering::Relaxed);
        // Readers share this word: they write it once per tick.
        if segment.last_used.load(Ordering::Relaxed) != tick {
            segment.last_used.store(tick, Ordering::Relaxed);
        }
        segment.open_file()
    }

    /// The file of `segment` for one who reads it from end to end: a handle of its own, which is not kept and does not
    /// count, for readers have told the kernel that theirs reads at random. The name is there as long as `segment` is held.
    /// Where none is to be had, whatever the reason (most likely descriptors), the readers' has the same bytes.
    pub(crate) fn open_apart(&self, segment: &Segment) -> io::Result<Arc<dyn File>> {
        self.dir.open(&segment_file_name(segment.id), OpenMode::Read).or_else(|_| self.file(segment))
    }

    /// The file of `segment` for reads of single records, opened if need be.
    pub(crate) fn file(&self, segment: &Segment) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.open_file(segment) {
            return Ok(file);
        }
        let file = {
            let mut slot = segment.file.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(file) = &*slot {
                return Ok(Arc::clone(file));
            }
            let file = self.dir.open(&segment_file_name(segment.id), OpenMode::Read)?;
            file.expect_random_reads();
            if segment.is_retired() {
                // Not kept: no later reader will ask for it, and nobody would count it out again.
                return Ok(file);
            }
            *slot = Some(Arc::clone(&file));
            self.open_files.fetch_add(1, Ordering::Relaxed);
            file
        };
        segment.last_used.store(self.tick.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.close_surplus();
        Ok(file)
    }

    /// Closes the least recently used sealed segments until the budget holds again.
    fn close_surplus(&self) {
        while self.open_files.load(Ordering::Relaxed) > self.max_open_files {
            let oldest = self
                .mine()
                .values()
                .filter(|segment| segment.is_sealed() && segment.open_file().is_some())
                .min_by_key(|segment| segment.last_used.load(Ordering::Relaxed))
                .cloned();
            let Some(oldest) = oldest else { return };
            if oldest.file.write().unwrap_or_else(PoisonError::into_inner).take().is_some() {
                self.open_files.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, feature = "__testing"))]
mod tests {
    use super::*;
    use crate::io::Io;
    use crate::io::sim::{Fault, FaultKind, OpClass, SimConfig, SimWorld};

    #[test]
    fn a_handle_apart_is_not_kept_and_may_be_the_readers() {
        let world = SimWorld::new(SimConfig::default());
        let dir = world.open_dir("/db".as_ref(), true).unwrap();
        for id in 1..=2 {
            dir.open(&segment_file_name(id), OpenMode::CreateNew).unwrap();
        }
        let registry = SegmentSet::new(dir, "/db".into(), 8);
        let [read, unread] = [1, 2].map(|id| Arc::new(Segment::new(id, 0, 1, 0, None)));
        let readers = registry.file(&read).unwrap();
        assert!(!Arc::ptr_eq(&registry.open_apart(&read).unwrap(), &readers));
        assert_eq!(registry.open_files.load(Ordering::Relaxed), 1);
        world.inject(Fault::sticky(OpClass::Open, world.op_count(OpClass::Open), FaultKind::EMFILE));
        assert!(Arc::ptr_eq(&registry.open_apart(&read).unwrap(), &readers), "no descriptor is left");
        let refused = registry.open_apart(&unread).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
    }

    #[test]
    fn a_reader_of_a_retired_segment_takes_no_descriptor_from_the_others() {
        let dir = SimWorld::new(SimConfig::default()).open_dir("/db".as_ref(), true).unwrap();
        for id in 1..=3 {
            dir.open(&segment_file_name(id), OpenMode::CreateNew).unwrap();
        }
        let registry = SegmentSet::new(Arc::clone(&dir), "/db".into(), 2);
        for id in 1..=3 {
            let segment = Arc::new(Segment::new(id, 0, 1, 0, None));
            segment.set_sealed(None);
            registry.insert(segment);
        }
        let pinned = registry.get(1).unwrap();
        registry.retire(Arc::clone(&pinned));
        registry.file(&pinned).unwrap();
        drop(pinned);
        for id in [2, 3] {
            registry.file(&registry.get(id).unwrap()).unwrap();
        }
        assert!(registry.all().iter().all(|segment| segment.open_file().is_some()), "two fit the budget of two");
        assert_eq!(registry.open_files.load(Ordering::Relaxed), 2);
    }
}
