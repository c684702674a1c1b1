//! Recovery: opens a directory and builds the keydir from its files.
//!
//! 1. Take the lock, before anything is read.
//! 2. Sync the directory, then read the MANIFEST, the list of live segments (`manifest`). After a failed sync, the
//!    kernel may still show names and bytes that the disk does not have. Recovery makes them durable before it relies
//!    on them.
//! 3. Check the header of every listed segment (`checked`), and refuse unlisted segments that may hold data
//!    (`directory`).
//! 4. Load every sealed segment, from its hint if it matches and from its records otherwise (`load`). This runs in
//!    parallel and in any order, because the newest record of a key is the one with the highest sequence number.
//! 5. Scan the tail, the segment that was active when the store stopped. Cut off its torn end, rewrite the MANIFEST,
//!    and seal the tail (`tail`).
//! 6. Remove leftovers: unlisted segments, temporary files, and hints without a segment (`directory`).
//!
//! | finding | action |
//! |---|---|
//! | the active segment has no footer, and invalid bytes at its end | torn tail: cut off, synced, sealed, and counted in the report |
//! | the same, under `Salvage` | the cut bytes are also copied to a file beside the segment, because they may have been acknowledged |
//! | invalid bytes in a sealed segment that must be scanned | `Corrupt`; under `Salvage` skipped and reported |
//! | invalid bytes in the active segment that a later frame states to be durable | the same |
//! | a segment without a footer that was not active, or that has a hint | the same |
//! | a hint file that is damaged, stale or of another segment | ignored and rewritten |
//! | a listed segment is missing or has no valid header | `Corrupt`; under `Salvage` left out and reported |
//! | segments, but no MANIFEST or a damaged one | `Corrupt`; under `Salvage` rebuilt from the segment headers |
//! | an unlisted segment with an id that the MANIFEST has used up | leftover: removed |
//! | an unlisted segment with a later id | removed if it holds no record, otherwise `Corrupt`: the files are of two ages |
//! | a sequence number that no store can reach, with valid checksums | `Corrupt`, also under `Salvage`: no write could follow it |
//! | a newer format or an unknown feature, in the MANIFEST or a segment | `IncompatibleFormat`; no file is changed |
//! | an I/O error | an error, never the end of the log |
//!
//! Recovery never appends a record to an existing segment. A crash may interrupt every step, and the next open repeats
//! it.
//!
//! On a full disk, the MANIFEST and the footer of the tail use the space that the truncation of the tail frees, or else
//! the space of the reserve. The last step preallocates the reserve again, as far as there is space. A missing reserve
//! never fails an open.
//!
//! The steps share one [`Opening`]. The files of this folder, bottom up: `opening`, `directory`, `checked`,
//! `live_bytes`, `loaded`, `hint_load`, `jobs`, `load`, `tail`, `manifest`.

mod checked;
mod directory;
mod hint_load;
mod jobs;
mod live_bytes;
mod load;
mod loaded;
mod manifest;
mod opening;
mod tail;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format;
use crate::io::fork::process_id;
use crate::io::{Dir, DirLock, Io, OpenMode};
use crate::keydir::Keydir;
use crate::options::Options;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{LOCK_FILE, ManifestStore, Reserve, Segment, SegmentSet};
use crate::stats::RecoveryReport;
use load::LoadSummary;
use opening::Opening;
use tail::ScannedTail;

/// Sequence numbers to skip after an unclean stop, so that no write gets the number of a lost `Buffered` write. The
/// sync interval is at most a minute, and no store loses this many records in a minute.
const SKIPPED_SEQS: u64 = 1 << 32;

/// The largest next sequence number after an open. No store uses up as many, and it is so far below the maximum that no
/// later write gets a number that readers refuse.
const NEXT_SEQ_MAX: u64 = 1 << 62;

const _: () = assert!(NEXT_SEQ_MAX < format::MAX_SEQ / 2 + 2, "at least half of the sequence numbers are left");

/// After a process is killed, the kernel may keep its ring, and with it the lock, for a moment.
const LOCK_ATTEMPTS: usize = 6;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// How much of the lock file is read. A PID and its line feed are shorter.
const MAX_PID_LINE_BYTES: usize = 20;

/// The result of a recovery.
pub(crate) struct Recovered {
    pub(crate) lock: Box<dyn DirLock>,
    pub(crate) segments: Arc<SegmentSet>,
    pub(crate) manifest: ManifestStore,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) keydir: Arc<Keydir>,
    pub(crate) next_seq: u64,
    pub(crate) report: RecoveryReport,
    /// Undamaged sealed segments without a usable hint.
    pub(crate) without_hint: Vec<Arc<Segment>>,
}

/// Opens the directory `options.path`.
pub(crate) async fn open(options: &Options, io: &Arc<dyn Io>) -> Result<Recovered> {
    let started = io.now();
    let path = &options.path;
    let dir = io.open_dir(path, options.create).map_err(|error| {
        let is_missing = error.kind() == std::io::ErrorKind::NotFound && !options.create;
        let what = if is_missing {
            "open: the directory is missing, and create(false) does not allow creating it"
        } else {
            "open"
        };
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
    let holder = match holder_pid(dir).await {
        Some(pid) if pid == process_id() => ", in this process,".to_owned(),
        Some(pid) => format!(", in process {pid},"),
        None => String::new(),
    };
    let message = format!("open: another handle{holder} has the store open");
    Err(Error::new(ErrorKind::Locked, message).with_path(path))
}

/// The PID in the lock file, which another handle has locked. `None` if the file cannot be read or contains something
/// else.
async fn holder_pid(dir: &dyn Dir) -> Option<u32> {
    let file = dir.open(LOCK_FILE, OpenMode::Read).ok()?;
    let done = file.read_at(vec![0; MAX_PID_LINE_BYTES], 0, 0).await;
    parse_pid_line(done.buf.get(..done.result.ok()?)?)
}

/// Parses decimal digits that a line feed ends.
fn parse_pid_line(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.split(|&byte| byte == b'\n').next().filter(|digits| digits.len() < bytes.len())?;
    // `parse` alone would also accept a plus sign.
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

impl Opening<'_> {
    async fn recover(&mut self, lock: Box<dyn DirLock>) -> Result<Recovered> {
        self.dir.sync().map_err(|error| self.io_error("sync the directory", error, None))?;
        let listing = self.list_directory()?;
        self.adopt_reserve(&listing);
        let mut manifest = self.read_manifest(&listing).await?;
        let mut segments = self.check_listed_segments(&manifest, &listing).await?;
        self.refuse_mixed_ages(&listing, &manifest).await?;

        let keydir = Arc::new(Keydir::new(self.seed()?, 64));
        let tail = self.take_tail(&mut segments, &manifest).await?;
        let loaded = self.load_sealed(segments, &manifest.store_id(), &keydir).await?;
        let tail = match tail {
            Some(tail) => Some(self.scan_tail(tail, &keydir).await?),
            None => None,
        };
        let next_seq = self.next_seq(&manifest, &loaded, tail.as_ref())?;

        // The tail is truncated before the MANIFEST is written: on a full disk, that may be the only way to get space.
        if let Some(tail) = &tail {
            self.copy_cut_bytes(tail).await?;
            self.cut_tail(tail).await?;
        }
        manifest.spend_ids_up_to(listing.highest_id_near(manifest.durable_next_segment_id()));
        self.write_manifest(&mut manifest, tail.as_ref(), next_seq).await?;
        let mut without_hint = loaded.without_hint;
        if let Some(tail) = tail.filter(|tail| !tail.is_empty()) {
            without_hint.extend(self.seal_tail(tail).await?);
        }

        self.finish_keydir(&keydir);
        self.remove_leftovers(&listing, &manifest).await;
        self.loan = None;
        self.reserve.settle();
        Ok(Recovered {
            lock,
            segments: Arc::clone(&self.segments),
            manifest,
            reserve: Arc::clone(&self.reserve),
            keydir,
            next_seq,
            report: std::mem::take(&mut self.report),
            without_hint,
        })
    }

    /// The sequence number of the next write.
    fn next_seq(&self, manifest: &ManifestStore, loaded: &LoadSummary, tail: Option<&ScannedTail>) -> Result<u64> {
        let max_seq = loaded.max_seq.max(tail.map_or(0, ScannedTail::max_seq));
        let mut next_seq = manifest.next_seq().max(max_seq + 1);
        // The sequence numbers of lost records are unknown.
        let may_have_lost = tail.is_some() || !self.report.damage.is_empty();
        if may_have_lost && !seeded_bug::is(SeededBug::SequenceReused) {
            next_seq += SKIPPED_SEQS;
        }
        if next_seq > NEXT_SEQ_MAX {
            let error = format!("open: the next sequence number {next_seq} exceeds the maximum {NEXT_SEQ_MAX}");
            return Err(Error::new(ErrorKind::Corrupt, error).with_path(&self.options.path));
        }
        Ok(next_seq)
    }

    /// Completes the keydir after all records were published: drops the tombstones and sets the segments' live bytes.
    fn finish_keydir(&mut self, keydir: &Keydir) {
        let counter = std::mem::take(&mut self.live_bytes);
        if counter.has_tombstones {
            keydir.sweep_all();
        }
        keydir.trim();
        for (id, bytes) in counter.into_live() {
            if let Some(segment) = self.segments.get(id) {
                segment.add_live(bytes);
            }
        }
        self.report.keys = keydir.len();
        debug_assert!(self.live_bytes_match(keydir), "the live-byte counter differs from the keydir");
    }

    /// Whether the segments' live bytes equal the result of a pass over the keydir.
    fn live_bytes_match(&self, keydir: &Keydir) -> bool {
        let mut live: HashMap<u32, u64> = HashMap::new();
        keydir.for_each_location(|key_len, location| {
            *live.entry(location.segment).or_default() += location.record_len(key_len);
        });
        self.segments.all().iter().all(|segment| segment.live_bytes() == live.remove(&segment.id).unwrap_or(0))
            && live.is_empty()
    }
}
