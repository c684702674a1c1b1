//! Opening a directory: from files to a keydir.
//!
//! 1. Take the lock, before anything is read.
//! 2. Sync the directory, then read the MANIFEST: which segments there are. (After a failed sync in an earlier life the
//!    kernel may show names and bytes that the disk does not have. What is relied on is made durable first.)
//! 3. Remove leftovers: files of ours that the MANIFEST does not list, temporary files, hints without a segment.
//! 4. Seal the active segment if it has no footer: it was being written when the store stopped (`tail`).
//! 5. Load every other segment, from its hint if that fits, from its records otherwise, in parallel and in any order:
//!    the newest record of a key is the one with the highest sequence number (`load`).
//!
//! | what is found | what is done |
//! |---|---|
//! | active segment without footer, invalid bytes at its end | a torn tail: cut, synced, sealed; counted in the report |
//! | the same, under `Salvage` | also copied to a file beside the segment, as it may have been acknowledged |
//! | invalid bytes in a sealed segment that has to be scanned | `Corrupt`; under `Salvage` stepped over and listed |
//! | invalid bytes in the active segment, where a later frame says that they were durable | the same |
//! | a segment without footer that was not being written: another one, or one with a hint of its own | the same |
//! | a hint file that is damaged, stale or of another segment | ignored, written anew |
//! | a listed segment that is missing or has no valid header | `Corrupt`; under `Salvage` left out and listed |
//! | no MANIFEST, or a damaged one, beside segments | `Corrupt`; under `Salvage` made anew from the segments' headers |
//! | an unlisted segment with a number the MANIFEST has spent | a leftover, removed |
//! | an unlisted segment with a later number | removed if it holds no record, otherwise `Corrupt` (files of two ages) |
//! | a sequence number that no store reaches, under right checksums | `Corrupt`, also under `Salvage`: no write could follow it |
//! | a newer format or an unknown feature, in the MANIFEST or a segment | `IncompatibleFormat`; nothing is changed |
//! | any I/O error | an error, never an end of log |
//!
//! Nothing here appends a record to a segment found on disk. Every step can be cut off by a crash and is done again.
//!
//! On a full disk the MANIFEST and the footer of the tail are written into space that the tail gives back when it is
//! cut, or else into that of the reserve. The reserve itself is claimed last, as far as there is space; no open fails
//! for it.

mod hint_load;
mod jobs;
mod live_bytes;
mod load;
mod manifest;
mod tail;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, DecodeError, FOOTER_LEN, Footer, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{Dir, DirLock, EntryKind, File, Io, OpenMode, SyncKind, util};
use crate::keydir::Keydir;
use crate::options::{Options, Recovery};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{
    FileName, HINT_SUFFIX, LOCK_FILE, Loan, MANIFEST_FILE, ManifestError, ManifestStore, RESERVE_FILE, Reserve,
    Segment, SegmentSet, lacks_space, segment_file_name,
};
use crate::stats::{Damage, RecoveryReport};
use live_bytes::LiveByteCounter;

/// Sequence numbers skipped after an unclean stop, so that the number of a lost `Buffered` write is never given to
/// another. The sync interval is at most a minute; no store loses this many records in one.
const LOST_NUMBERS: u64 = 1 << 32;

/// The largest sequence number that an open begins with: far beyond what any store has spent, and far below the largest
/// there may be, so that no write after it gets one that is refused when it is read.
const NEXT_SEQ_MAX: u64 = 1 << 62;

const _: () = assert!(NEXT_SEQ_MAX < format::MAX_SEQ / 2 + 2, "as many are left as were spent");

/// Numbers that a store can spend without listing one: each is an attempt to begin a segment that failed.
const UNLISTED_IDS_MAX: u64 = 1 << 20;

/// A killed process's ring may hold its files, and with them the lock, for a moment after it is gone.
const LOCK_ATTEMPTS: usize = 6;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What opening leaves.
pub(crate) struct Recovered {
    pub(crate) lock: Box<dyn DirLock>,
    pub(crate) registry: Arc<SegmentSet>,
    pub(crate) catalog: ManifestStore,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) keydir: Arc<Keydir>,
    pub(crate) next_seq: u64,
    pub(crate) report: RecoveryReport,
    /// Sealed segments that have no usable hint.
    pub(crate) without_hint: Vec<Arc<Segment>>,
}

/// Opens the directory `options.path`.
pub(crate) async fn open(options: &Options, io: &Arc<dyn Io>) -> Result<Recovered> {
    let started = io.now();
    let path = &options.path;
    let dir = io.open_dir(path, options.create).map_err(|error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound && !options.create;
        let what = if is_missing { "open: there is no store, and create(false) forbids to make one" } else { "open" };
        Error::io(what, error).with_path(path)
    })?;
    if seeded_bug::is(SeededBug::LockAfterRecovery)
        && let Ok(Some(stand_in)) = dir.lock("LOCK.seeded_bug")
    {
        drop(Opening::new(options, io, Arc::clone(&dir)).recover(stand_in).await);
    }
    let lock = take_lock(&**io, &*dir, path).await?;
    let mut recovered = Opening::new(options, io, dir).recover(lock).await?;
    recovered.report.duration = io.now().saturating_sub(started);
    Ok(recovered)
}

async fn take_lock(io: &dyn Io, dir: &dyn Dir, path: &Path) -> Result<Box<dyn DirLock>> {
    for attempt in 0..LOCK_ATTEMPTS {
        if attempt > 0 {
            io.sleep(LOCK_PAUSE).await;
        }
        match dir.lock(LOCK_FILE) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => {}
            Err(error) => return Err(Error::io("take the lock", error).with_path(path.join(LOCK_FILE))),
        }
    }
    Err(Error::new(ErrorKind::Locked, "open: another handle has the store open").with_path(path))
}

/// The state of one opening.
struct Opening<'a> {
    options: &'a Options,
    io: &'a Arc<dyn Io>,
    dir: Arc<dyn Dir>,
    registry: Arc<SegmentSet>,
    reserve: Arc<Reserve>,
    /// Of the reserve, if this opening had to live on it.
    loan: Option<Loan>,
    report: RecoveryReport,
    tally: LiveByteCounter,
    /// Not where the list had to be made anew: then nobody knows what is left over.
    may_remove_segments: bool,
}

/// A listed segment whose header was found good. Its file is not kept open: there may be more segments than descriptors.
struct Candidate {
    id: u32,
    salt: u64,
    first_seq: u64,
    header: [u8; SEGMENT_HEADER_LEN],
    len: u64,
    footer: Option<Footer>,
}

/// The names in the directory that are the store's.
#[derive(Default)]
struct Names {
    segments: Vec<u64>,
    hints: Vec<u64>,
    leftovers: Vec<String>,
    has_manifest: bool,
    has_reserve: bool,
}

impl Names {
    /// The highest number of a file that this store may have made after `next` was the next one. What lies further off is
    /// somebody else's: it shall not use up the numbers, which end at 2^32.
    fn highest_id_near(&self, next: u64) -> u64 {
        self.segments.iter().copied().filter(|&id| !is_far(id, next)).max().unwrap_or(0)
    }
}

/// Whether no store has made segment `id` while the next number on its list was `next`.
fn is_far(id: u64, next: u64) -> bool {
    id >= next.saturating_add(UNLISTED_IDS_MAX)
}

impl<'a> Opening<'a> {
    fn new(options: &'a Options, io: &'a Arc<dyn Io>, dir: Arc<dyn Dir>) -> Self {
        Self {
            options,
            io,
            registry: Arc::new(SegmentSet::new(Arc::clone(&dir), options.path.clone(), options.max_open_files)),
            reserve: Arc::new(Reserve::new(Arc::clone(&dir), options.reserve_bytes)),
            loan: None,
            dir,
            report: RecoveryReport::default(),
            tally: LiveByteCounter::default(),
            may_remove_segments: true,
        }
    }

    async fn recover(&mut self, lock: Box<dyn DirLock>) -> Result<Recovered> {
        self.dir.sync().map_err(|error| self.io_error("sync the directory", error, None))?;
        let names = self.list()?;
        self.find_reserve(&names);
        let mut catalog = self.read_catalog(&names).await?;
        let mut candidates = Vec::new();
        let listed = catalog.segments().to_vec();
        let active = u64::from(catalog.active_segment());
        for listed in listed {
            // A hint is written after its segment was sealed durably. The active segment without one may show a footer
            // whose sync failed.
            let may_be_active = listed.id == active || catalog.is_rebuilt();
            let is_doubtful = may_be_active && !names.hints.contains(&listed.id);
            if let Some(candidate) = self.examine(listed, &catalog.store_id(), is_doubtful).await? {
                candidates.push(candidate);
            }
        }
        self.refuse_mixed_ages(&names, &catalog).await?;

        let keydir = Arc::new(Keydir::new(self.seed()?, 64));
        let mut next_seq = catalog.next_seq().max(1);
        let mut without_hint = Vec::new();
        let tail = self.take_tail(&mut candidates, &catalog).await?;
        let loaded = self.load_sealed(candidates, &catalog.store_id(), &keydir).await?;
        next_seq = next_seq.max(loaded.max_seq + 1);
        without_hint.extend(loaded.without_hint);
        let tail = match tail {
            Some(tail) => Some(self.scan_tail(tail, &keydir).await?),
            None => None,
        };
        next_seq = next_seq.max(tail.as_ref().map_or(0, tail::Scanned::max_seq) + 1);
        // Records that cannot be read have numbers that nobody knows.
        let may_have_lost = tail.is_some() || !self.report.damage.is_empty();
        if may_have_lost && !seeded_bug::is(SeededBug::SequenceReused) {
            next_seq += LOST_NUMBERS;
        }
        if next_seq > NEXT_SEQ_MAX {
            let error = format!("open: the next sequence number would be {next_seq}, which no store reaches");
            return Err(Error::new(ErrorKind::Corrupt, error).with_path(&self.options.path));
        }
        if let Some(tail) = &tail {
            // Before the list is written: a full disk may have no space but what the tail gives back.
            self.keep_cut(tail).await?;
            self.cut_tail(tail).await?;
        }
        catalog.spend_ids_up_to(names.highest_id_near(catalog.durable_next_segment_id()));
        self.settle_catalog(&mut catalog, tail.as_ref(), next_seq).await?;
        if let Some(tail) = tail.filter(|tail| !tail.is_empty()) {
            without_hint.extend(self.seal_tail(tail).await?);
        }
        self.settle_keydir(&keydir);
        self.remove_leftovers(&names, &catalog).await;
        self.report.keys = keydir.len();
        self.loan = None;
        self.reserve.settle();
        Ok(Recovered {
            lock,
            registry: Arc::clone(&self.registry),
            catalog,
            reserve: Arc::clone(&self.reserve),
            keydir,
            next_seq,
            report: std::mem::take(&mut self.report),
            without_hint,
        })
    }

    /// All records have been published: tombstones go, and segments learn what of them is alive.
    fn settle_keydir(&mut self, keydir: &Keydir) {
        let tally = std::mem::take(&mut self.tally);
        if tally.has_tombstones {
            keydir.sweep_all();
        }
        keydir.trim();
        for (id, bytes) in tally.into_live() {
            if let Some(segment) = self.registry.get(id) {
                segment.add_live(bytes);
            }
        }
        debug_assert!(self.is_counted_right(keydir), "what the keydir points at is not what was counted");
    }

    /// Whether the segments' live bytes are those of a pass over the keydir.
    fn is_counted_right(&self, keydir: &Keydir) -> bool {
        let mut live: HashMap<u32, u64> = HashMap::new();
        keydir.for_each_location(|key_len, location| {
            *live.entry(location.segment).or_default() += location.record_len(key_len);
        });
        self.registry.all().iter().all(|segment| segment.live_bytes() == live.remove(&segment.id).unwrap_or(0))
            && live.is_empty()
    }

    /// Takes out the segment that was being written when the store stopped: the active one, if it has no footer and never
    /// had one. A list that was made anew does not know which that was; it is the newest of these.
    async fn take_tail(&self, candidates: &mut Vec<Candidate>, catalog: &ManifestStore) -> Result<Option<Candidate>> {
        for index in (0..candidates.len()).rev() {
            let Some(candidate) = candidates.get(index).filter(|candidate| candidate.footer.is_none()) else {
                continue;
            };
            let may_be_tail = candidate.id == catalog.active_segment() || catalog.is_rebuilt();
            if !may_be_tail {
                continue;
            }
            let was_sealed = tail::was_sealed(&*self.dir, candidate, &catalog.store_id()).await;
            if !was_sealed.map_err(|error| self.io_error("read a hint", error, Some(candidate.id)))? {
                return Ok(Some(candidates.remove(index)));
            }
        }
        Ok(None)
    }

    fn seed(&self) -> Result<(u64, u64)> {
        let draw = || self.io.random_u64().map_err(|error| self.io_error("draw a random number", error, None));
        Ok((draw()?, draw()?))
    }

    /// Sorts the names in the directory.
    fn list(&mut self) -> Result<Names> {
        let entries = self.dir.list().map_err(|error| self.io_error("list the directory", error, None))?;
        let mut names = Names::default();
        for entry in entries {
            match (FileName::parse(&entry.name), entry.kind) {
                (FileName::Reserve, EntryKind::Other) => {
                    self.reserve.disown();
                    self.report.foreign_files.push(entry.name);
                }
                (FileName::Foreign, _) | (_, EntryKind::Other) => self.report.foreign_files.push(entry.name),
                (FileName::Lock | FileName::Cut, _) => {}
                (FileName::Manifest, _) => names.has_manifest = true,
                (FileName::Reserve, _) => names.has_reserve = true,
                (FileName::Leftover, _) => names.leftovers.push(entry.name),
                (FileName::Segment(id), _) if id > u64::from(u32::MAX) => self.report.foreign_files.push(entry.name),
                (FileName::Segment(id), _) => names.segments.push(id),
                (FileName::Hint(id), _) => names.hints.push(id),
            }
        }
        Ok(names)
    }

    /// Takes over the reserve that an earlier open left, for the steps that may need it.
    fn find_reserve(&mut self, names: &Names) {
        if names.has_reserve && !self.reserve.adopt() {
            self.report.foreign_files.push(RESERVE_FILE.to_owned());
        }
    }

    /// Whether a step that failed with `error` is to be tried once more, on the space of the reserve.
    fn borrow(&mut self, error: &io::Error) -> bool {
        if !lacks_space(error) || self.loan.is_some() {
            return false;
        }
        self.loan = self.reserve.release();
        self.loan.is_some()
    }

    /// Opens a listed segment and checks that it is the one that was listed.
    async fn examine(
        &mut self,
        listed: ManifestSegment,
        store_id: &[u8; 16],
        is_doubtful: bool,
    ) -> Result<Option<Candidate>> {
        // Listed ids came through `read_catalog`, which refuses larger ones.
        let Ok(id) = u32::try_from(listed.id) else { return Ok(None) };
        let file = match self.dir.open(&segment_file_name(id), OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.damaged(id, 0, 0, "the segment's file is missing")?;
                return Ok(None);
            }
            Err(error) => return Err(self.io_error("open a segment", error, Some(id))),
        };
        if is_doubtful {
            // What the disk does not have shall not be seen: it is written, or forgotten.
            if !seeded_bug::is(SeededBug::TailNotSynced) {
                let synced = file.sync(SyncKind::All).await;
                synced.map_err(|error| self.io_error("sync the active segment", error, Some(id)))?;
                file.evict();
            }
        }
        let len = file.len().map_err(|error| self.io_error("measure a segment", error, Some(id)))?;
        if len < SEGMENT_HEADER_LEN as u64 {
            self.damaged(id, 0, len, "the segment is shorter than its header")?;
            return Ok(None);
        }
        let bytes = util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await;
        let bytes = bytes.map_err(|error| self.io_error("read a segment's header", error, Some(id)))?;
        let first_seq = match SegmentHeader::decode(&bytes) {
            Ok(header) if header.store_id != *store_id => {
                self.damaged(id, 0, len, "the segment is of another store")?;
                return Ok(None);
            }
            Ok(header) if header.segment_id != listed.id || header.salt != listed.salt => {
                self.damaged(id, 0, len, "the segment is not the one that the MANIFEST lists")?;
                return Ok(None);
            }
            Ok(header) => header.first_seq,
            Err(error) => {
                let reason = format!("bad segment header: {error}");
                self.refuse_newer(error, &segment_file_name(id))?;
                self.damaged(id, 0, len, reason)?;
                return Ok(None);
            }
        };
        let mut header = [0; SEGMENT_HEADER_LEN];
        header.copy_from_slice(&bytes);
        let mut candidate = Candidate { id, salt: listed.salt, first_seq, header, len, footer: None };
        candidate.footer = self.read_footer(&candidate, &*file).await?;
        Ok(Some(candidate))
    }

    async fn read_footer(&self, candidate: &Candidate, file: &dyn File) -> Result<Option<Footer>> {
        let Some(offset) = candidate.len.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
        if offset < SEGMENT_HEADER_LEN as u64 {
            return Ok(None);
        }
        let tail = util::read_exact(file, offset, FOOTER_LEN).await;
        let tail = tail.map_err(|error| self.io_error("read a segment's footer", error, Some(candidate.id)))?;
        let binding = format::Binding::new(candidate.salt, u64::from(candidate.id));
        Ok(Footer::decode_at_end(&tail, &binding, candidate.len).ok().map(|(footer, _)| footer))
    }

    /// An unlisted segment with a number that was never spent holds no record, unless the directory was put together
    /// from files of two ages: then removing it would lose data, and leaving it out would too.
    async fn refuse_mixed_ages(&mut self, names: &Names, catalog: &ManifestStore) -> Result<()> {
        for &id in names.segments.iter().filter(|&&id| id >= catalog.durable_next_segment_id()) {
            let Ok(id) = u32::try_from(id) else { continue };
            let file = self.dir.open(&segment_file_name(id), OpenMode::Read);
            let len = file.and_then(|file| file.len());
            let len = len.map_err(|error| self.io_error("measure a segment", error, Some(id)))?;
            if len > SEGMENT_HEADER_LEN as u64 {
                self.damaged(id, 0, len, "the segment is newer than the MANIFEST")?;
            }
        }
        Ok(())
    }

    /// Writes the list anew if it changed: without an empty tail, and with the sequence numbers that an unclean stop
    /// spends. That comes before the tail is sealed, for a sealed segment no longer shows that the stop was unclean.
    async fn settle_catalog(
        &mut self,
        catalog: &mut ManifestStore,
        tail: Option<&tail::Scanned>,
        next_seq: u64,
    ) -> Result<()> {
        if tail.is_none() && !catalog.is_rebuilt() {
            return Ok(());
        }
        let dropped = tail.filter(|tail| tail.is_empty()).map(|tail| u64::from(tail.id()));
        let kept: Vec<_> = catalog.segments().iter().filter(|listed| Some(listed.id) != dropped).copied().collect();
        self.may_remove_segments = !catalog.is_rebuilt();
        let active = tail.filter(|tail| !tail.is_empty()).map_or(0, tail::Scanned::id);
        let mut edited = catalog.edit(kept.clone(), active, next_seq).await;
        if let Err(ManifestError::NotChanged(error)) = &edited
            && self.borrow(error)
        {
            edited = catalog.edit(kept, active, next_seq).await;
        }
        edited.map_err(|error| {
            let (ManifestError::NotChanged(error) | ManifestError::Unknown(error)) = error;
            self.io_error("write the MANIFEST", error, None)
        })
    }

    /// Removes what a crash left. An error leaves it for the next time.
    async fn remove_leftovers(&mut self, names: &Names, catalog: &ManifestStore) {
        let is_listed = |id: u64| catalog.segments().iter().any(|listed| listed.id == id);
        let next = catalog.durable_next_segment_id();
        let mut leftovers = names.leftovers.clone();
        for &id in names.segments.iter().filter(|&&id| !is_listed(id)) {
            let Ok(short_id) = u32::try_from(id) else { continue };
            let name = segment_file_name(short_id);
            let is_damage = self.report.damage.iter().any(|damage| damage.segment == id);
            let is_ours = async || !is_far(id, next) && self.may_be_ours(&name, id, &catalog.store_id()).await;
            if is_damage || !self.may_remove_segments || !is_ours().await {
                self.report.foreign_files.push(name);
            } else {
                leftovers.push(name);
            }
        }
        leftovers.extend(names.hints.iter().filter(|&&id| !is_listed(id)).map(|id| format!("{id:020}{HINT_SUFFIX}")));
        for name in leftovers {
            if self.dir.unlink(&name).is_ok() {
                self.report.removed_files.push(name);
            }
        }
    }

    /// Whether the store may have made the file, under this name: not if it says that it belongs elsewhere or has another
    /// number, or cannot be asked. One that is too short to say anything was cut off while being made.
    async fn may_be_ours(&self, name: &str, id: u64, store_id: &[u8; 16]) -> bool {
        let Ok(file) = self.dir.open(name, OpenMode::Read) else { return false };
        let bytes = match util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await {
            Ok(bytes) => bytes,
            Err(error) => return error.kind() == io::ErrorKind::UnexpectedEof,
        };
        match SegmentHeader::decode(&bytes) {
            Ok(header) => header.store_id == *store_id && header.segment_id == id,
            Err(error) => !error.is_unsupported(),
        }
    }

    // ---- errors --------------------------------------------------------------------------------------------------

    fn io_error(&self, operation: &str, source: io::Error, segment: Option<u32>) -> Error {
        let error = Error::io(format!("open: {operation}"), source).with_path(&self.options.path);
        match segment {
            Some(id) => error.at_segment(u64::from(id)),
            None => error,
        }
    }

    /// Damage that can hold acknowledged data: an error, or an entry in the report.
    fn damaged(&mut self, segment: u32, offset: u64, len: u64, reason: impl Into<String>) -> Result<()> {
        let damage = Damage { segment: u64::from(segment), offset, len, reason: reason.into() };
        match self.options.recovery {
            Recovery::Salvage => {
                self.report.damage.push(damage);
                Ok(())
            }
            Recovery::Strict => Err(corrupt(&self.options.path, &damage)),
        }
    }

    fn refuse_newer(&self, error: DecodeError, name: &str) -> Result<()> {
        if !error.is_unsupported() {
            return Ok(());
        }
        let error = Error::new(ErrorKind::IncompatibleFormat, format!("open: {error}"));
        Err(error.with_path(self.options.path.join(name)))
    }

    fn manifest_path(&self) -> std::path::PathBuf {
        self.options.path.join(MANIFEST_FILE)
    }
}

fn corrupt(path: &Path, damage: &Damage) -> Error {
    Error::new(ErrorKind::Corrupt, format!("open: {}", damage.reason))
        .with_path(path)
        .at_segment(damage.segment)
        .at_offset(damage.offset)
}
