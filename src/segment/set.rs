//! The segment set: all segments of a store, and the file descriptors that they may keep open.
//!
//! A reader looks up a segment by id and asks for its file. The set opens the file on demand and, above the budget of
//! open files, closes the least recently used file of a sealed segment. A reader holds its file while it reads, so
//! closing never affects a read. The file of an obsolete segment exists until the last reader drops the segment
//! ([`ObsoleteSegments`]).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::names::segment_file_name;
use super::obsolete::ObsoleteSegments;
use super::state::Segment;
use crate::io::{Dir, File, OpenMode};
use crate::seeded_bug::{self, SeededBug};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::sharded::Sharded;
use crate::sync::{RwLock, RwLockReadGuard};

/// Hashes segment ids. The store assigns them in sequence, so an attacker cannot choose ids that collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Fibonacci hashing spreads consecutive ids over the whole table.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

type SegmentsById = HashMap<u32, Arc<Segment>, BuildHasherDefault<IdHasher>>;

pub(crate) struct SegmentSet {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) path: PathBuf,
    /// Sharded: every copy holds the same list. Each get takes a read lock, and with a single lock all readers would
    /// contend for its cache line. A change, a few per segment, updates one copy after the other.
    segments: Sharded<RwLock<SegmentsById>>,
    pub(crate) obsolete: ObsoleteSegments,
    max_open_files: usize,
    open_files: AtomicUsize,
    /// Advances with every file that is opened, so a reader writes `last_used` at most once per tick.
    tick: AtomicU64,
    /// Bytes of records that have died since [`have_died`](Self::have_died) last returned true.
    died_bytes: AtomicU64,
}

impl SegmentSet {
    pub(crate) fn new(dir: Arc<dyn Dir>, path: PathBuf, max_open_files: usize) -> Self {
        Self {
            dir,
            path,
            segments: Sharded::default(),
            obsolete: ObsoleteSegments::default(),
            max_open_files,
            open_files: AtomicUsize::new(0),
            tick: AtomicU64::new(1),
            died_bytes: AtomicU64::new(0),
        }
    }

    /// This thread's copy of the list.
    fn mine(&self) -> RwLockReadGuard<'_, SegmentsById> {
        self.segments.mine().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes every copy of the list. Until this returns, some threads see the change and others do not.
    fn change(&self, change: impl Fn(&mut SegmentsById)) {
        for copy in self.segments.iter() {
            change(&mut copy.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Segment>> {
        self.mine().get(&id).cloned()
    }

    /// Calls `look` with segment `id` without cloning its reference. `look` must be quick, because it runs under the
    /// lock of the list.
    pub(crate) fn with<R>(&self, id: u32, look: impl FnOnce(&Arc<Segment>) -> R) -> Option<R> {
        self.mine().get(&id).map(look)
    }

    /// Records that a record of `bytes` in segment `id` has died. The segment may already be gone.
    pub(crate) fn record_died(&self, id: u32, bytes: u64) {
        if self.with(id, |segment| segment.remove_live(bytes)).is_some() {
            self.died_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Whether at least `bytes` have died since this last returned true.
    pub(crate) fn have_died(&self, bytes: u64) -> bool {
        let is_reached = self.died_bytes.load(Ordering::Relaxed) >= bytes;
        if is_reached {
            self.died_bytes.store(0, Ordering::Relaxed);
        }
        is_reached
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

    /// Removes `segment` from the set. No key may point at it, and the MANIFEST must no longer list it. The file is
    /// unlinked once the last reader is gone.
    pub(crate) fn remove(&self, segment: Arc<Segment>) {
        match seeded_bug::is(SeededBug::UnlinkedUnderReader) {
            true => self.obsolete.push(segment.unlinkable()),
            false => segment.make_obsolete(&self.obsolete),
        }
        self.change(|segments| drop(segments.remove(&segment.id)));
        // Current readers keep the file open until they are done.
        if segment.file.write().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.open_files.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The file of `segment`, if it is open.
    pub(crate) fn open_file(&self, segment: &Segment) -> Option<Arc<dyn File>> {
        let tick = self.tick.load(Ordering::Relaxed);
        // All readers share this word, so write it only once per tick.
        if segment.last_used.load(Ordering::Relaxed) != tick {
            segment.last_used.store(tick, Ordering::Relaxed);
        }
        segment.open_file()
    }

    /// Opens the file of `segment` again, to read it from start to end. The kernel expects random reads on the shared
    /// descriptor, so this one is separate; the set neither keeps nor counts it. The file exists while `segment` is
    /// held. If it cannot be opened, most likely for want of descriptors, the shared descriptor serves instead.
    pub(crate) fn open_apart(&self, segment: &Segment) -> io::Result<Arc<dyn File>> {
        self.dir.open(&segment_file_name(segment.id), OpenMode::Read).or_else(|_| self.file(segment))
    }

    /// The file of `segment` for reads of single records. Opens it on demand.
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
            if segment.is_obsolete() {
                // Do not keep it: no new reader will ask for it, and `remove` has already run and would not close it.
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

    /// Closes the files of the least recently used sealed segments until the number of open files is within the budget.
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
    use crate::io::sim::{Fault, FaultKind, OpClass, SimBackend, SimConfig};

    #[test]
    fn a_separate_descriptor_is_not_kept_and_falls_back_to_the_shared_one() {
        let world = SimBackend::new(SimConfig::default());
        let dir = world.open_dir("/db".as_ref(), true).unwrap();
        for id in 1..=2 {
            dir.open(&segment_file_name(id), OpenMode::CreateNew).unwrap();
        }
        let set = SegmentSet::new(dir, "/db".into(), 8);
        let [read, unread] = [1, 2].map(|id| Arc::new(Segment::new(id, 0, 1, 0, None)));
        let shared = set.file(&read).unwrap();
        assert!(!Arc::ptr_eq(&set.open_apart(&read).unwrap(), &shared));
        assert_eq!(set.open_files.load(Ordering::Relaxed), 1);
        world.inject(Fault::sticky(OpClass::Open, world.op_count(OpClass::Open), FaultKind::EMFILE));
        assert!(Arc::ptr_eq(&set.open_apart(&read).unwrap(), &shared), "no descriptor is left");
        let refused = set.open_apart(&unread).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
    }

    #[test]
    fn a_reader_of_an_obsolete_segment_uses_no_descriptor_of_the_budget() {
        let dir = SimBackend::new(SimConfig::default()).open_dir("/db".as_ref(), true).unwrap();
        for id in 1..=3 {
            dir.open(&segment_file_name(id), OpenMode::CreateNew).unwrap();
        }
        let set = SegmentSet::new(Arc::clone(&dir), "/db".into(), 2);
        for id in 1..=3 {
            let segment = Arc::new(Segment::new(id, 0, 1, 0, None));
            segment.set_sealed(None);
            set.insert(segment);
        }
        let pinned = set.get(1).unwrap();
        set.remove(Arc::clone(&pinned));
        set.file(&pinned).unwrap();
        drop(pinned);
        for id in [2, 3] {
            set.file(&set.get(id).unwrap()).unwrap();
        }
        assert!(set.all().iter().all(|segment| segment.open_file().is_some()), "both files fit the budget of two");
        assert_eq!(set.open_files.load(Ordering::Relaxed), 2);
    }
}
