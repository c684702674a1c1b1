//! Room for the log: claiming disk space, sealing a segment, starting the next.
//!
//! # The order that a crash must not find broken
//!
//! ```text
//! seal    everything written is synced -> footer -> sync
//! start   header -> sync -> directory sync -> MANIFEST lists the segment (tmp, sync, rename, directory sync) -> first append
//! ```
//!
//! So at any moment at most one listed segment lacks a footer, and it is the last one; a footer is never durable before
//! what it vouches for; and a record is never acknowledged in a segment whose name could still vanish.
//!
//! Space is claimed ahead of the log in steps, so that a write that was accepted does not meet a full disk; where there is
//! plenty, half a step before anybody would have to wait for it. What is claimed beyond
//! [`CommitOptions::reserve_bytes`](super::CommitOptions) is for all; the rest is for deletes alone.
//!
//! # On a full disk
//!
//! Deletes get what is claimed in the active segment; then, and where there is no active segment, what the [`Reserve`]
//! gives back to the file system. So does the footer, which makes a segment smaller in the end. Nobody may take that
//! space from them: while the reserve is not held whole, nothing is claimed for puts and no segment is started for
//! them; each that comes has the reserve claimed first, if there is space by then.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;

use super::log::{Refused, RoomWanted};
use super::parts::CommitCounters;
use super::stage::Place;
use super::task::{Active, CommitOptions, Committer, Fatal};
use crate::error::{Error, ErrorKind};
use crate::format::{FOOTER_LEN, Footer, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader, WATERMARK_LEN};
use crate::io::{Dir, File, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Facts, Loan, ManifestError, Reserve, Segment, lacks_space, segment_file_name};

/// Disk space is claimed in steps of up to this size, or the segment's if that is smaller.
pub(super) const MAX_CLAIM_STEP_BYTES: u64 = 16 << 20;
const MIN_CLAIM_STEP_BYTES: u64 = 64 << 10;
/// Space for deletes alone is claimed for this part of the reserve at a time, so that not every delete moves it.
const RESERVE_STEPS: u64 = 16;
/// This part of it deletes leave alone: the next open needs some, for the MANIFEST and the footer of the tail.
const RESERVE_KEPT: u64 = 4;

/// The refusal to answer waiting writers with, if no room could be made.
type Answer = Option<(Refused, Error)>;

impl Committer {
    /// Makes room for what waits, if it can.
    pub(super) async fn make_room(&mut self, wanted: Option<RoomWanted>) -> Result<Answer, Fatal> {
        let Some(wanted) = wanted else { return Ok(None) };
        if self.has_room(wanted) {
            return Ok(None);
        }
        let Err(error) = self.parts.reserve.hold() else { return self.make_room_for(wanted).await };
        // Nothing is done for puts: the space that there is belongs to deletes.
        let refusal = (Refused::AllButDeletes, self.place_error("claim the reserve", error));
        let answer = match wanted.delete_bytes {
            0 => None,
            bytes => self.make_room_for(RoomWanted { bytes, ..wanted }).await?,
        };
        Ok(answer.or(Some(refusal)))
    }

    async fn make_room_for(&mut self, wanted: RoomWanted) -> Result<Answer, Fatal> {
        // A delete that came meanwhile has not been tried.
        let whom = if wanted.delete_bytes > 0 { Refused::Everybody } else { Refused::AllButDeletes };
        let must_seal = self.is_retired() || self.is_full(wanted);
        if must_seal && let Err(error) = self.seal().await? {
            return Ok(Some((whom, error)));
        }
        if self.active.is_none()
            && let Err(error) = self.start_for(wanted).await?
        {
            return Ok(Some((whom, error)));
        }
        Ok(self.claim(wanted))
    }

    fn is_retired(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.retired)
    }

    /// Whether the active segment has reached its size.
    fn is_full(&self, wanted: RoomWanted) -> bool {
        self.parts.log.place().is_some_and(|(next_offset, _)| {
            next_offset > SEGMENT_HEADER_LEN as u64 && end_of(next_offset, wanted.bytes) > self.options.segment_bytes
        })
    }

    /// Whether the active segment has room for all that waits: it only waits for memory.
    fn has_room(&self, wanted: RoomWanted) -> bool {
        !self.is_retired()
            && !self.is_full(wanted)
            && self.parts.log.place().is_some_and(|(next_offset, claimed_end)| {
                end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes) <= claimed_end
            })
    }

    // ---- claiming ------------------------------------------------------------------------------------------------

    /// Claims disk space for `wanted`.
    fn claim(&mut self, wanted: RoomWanted) -> Answer {
        let (next_offset, claimed_end) = self.parts.log.place()?;
        let file = Arc::clone(&self.active.as_ref()?.file);
        let with_reserve = end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes);
        if with_reserve <= claimed_end {
            return None;
        }
        let mut refusal = None;
        if self.parts.reserve.is_held() {
            match self.claim_for_all(&*file, claimed_end, with_reserve) {
                Ok(()) => return None,
                Err(error) => refusal = Some((Refused::AllButDeletes, error)),
            }
        }
        let for_deletes = end_of(next_offset, wanted.delete_bytes);
        if wanted.delete_bytes > 0
            && for_deletes > claimed_end
            && let Err(error) = self.claim_for_deletes(&*file, claimed_end, for_deletes)
        {
            return Some((Refused::Everybody, error));
        }
        refusal
    }

    /// Claims the segment's next step before anybody waits for it. Not where space was short: there those that wait decide
    /// who gets what.
    pub(super) fn claim_ahead(&mut self) {
        let Some((next_offset, claimed_end)) = self.parts.log.place() else { return };
        let Some(active) = &self.active else { return };
        let CommitOptions { segment_bytes, reserve_bytes, .. } = self.options;
        let step = MAX_CLAIM_STEP_BYTES.min(segment_bytes);
        let target = claimed_end.saturating_add(step).min(segment_bytes.saturating_add(reserve_bytes));
        let is_due = next_offset.saturating_add(reserve_bytes + step / 2) > claimed_end && target > claimed_end;
        let is_easy = self.claim_step == MAX_CLAIM_STEP_BYTES && self.parts.reserve.is_held() && !active.retired;
        let file = Arc::clone(&active.file);
        if is_due && is_easy && self.claim_up_to(&*file, claimed_end, target).is_err() {
            self.claim_step = MAX_CLAIM_STEP_BYTES / 4;
        }
    }

    /// Claims a step, or at least up to `needed`.
    fn claim_for_all(&mut self, file: &dyn File, claimed_end: u64, needed: u64) -> Result<(), Error> {
        let step = self.claim_step.min(self.options.segment_bytes);
        let generous = needed.max(claimed_end.saturating_add(step));
        if self.claim_up_to(file, claimed_end, generous).is_ok() {
            self.claim_step = (self.claim_step * 2).min(MAX_CLAIM_STEP_BYTES);
            return Ok(());
        }
        // On a disk that is nearly full the steps become small, instead of failing large ones every time.
        self.claim_step = (self.claim_step / 4).max(MIN_CLAIM_STEP_BYTES);
        self.claim_up_to(file, claimed_end, needed)
    }

    /// Claims a little more than up to `needed`, though less than would let a put in; at last in what the reserve gives
    /// back.
    fn claim_for_deletes(&self, file: &dyn File, claimed_end: u64, needed: u64) -> Result<(), Error> {
        let more = needed.saturating_add(self.options.reserve_bytes / RESERVE_STEPS);
        let more = more.min(self.options.segment_bytes).max(needed);
        let claim = || {
            let claimed = self.claim_up_to(file, claimed_end, more);
            claimed.or_else(|_| self.claim_up_to(file, claimed_end, needed))
        };
        let Err(error) = claim() else { return Ok(()) };
        let Some(_loan) = self.borrow(needed - claimed_end) else { return Err(error) };
        claim()
    }

    /// The space of the reserve for deletes, `bytes` of which will not come back.
    fn borrow(&self, bytes: u64) -> Option<Loan> {
        let kept = self.options.reserve_bytes / RESERVE_KEPT;
        if self.parts.reserve.held_bytes() > kept.saturating_add(bytes) { self.parts.reserve.release() } else { None }
    }

    fn claim_up_to(&self, file: &dyn File, claimed_end: u64, target: u64) -> Result<(), Error> {
        match file.allocate(claimed_end, target - claimed_end) {
            Ok(()) => self.parts.log.set_claimed_end(target),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.parts.log.set_claimed_end(u64::MAX),
            Err(error) => return Err(self.place_error("claim disk space", error)),
        }
        Ok(())
    }

    // ---- sealing -------------------------------------------------------------------------------------------------

    /// Closes the active segment for ever. The inner error leaves it to be sealed later.
    async fn seal(&mut self) -> Result<Result<(), Error>, Fatal> {
        if let Some(taken) = self.parts.log.take(true) {
            self.commit(taken).await?;
        }
        if let Some(error) = self.parts.log.ended() {
            // By another task. What is staged still has its place behind the last record: no footer goes there.
            return Err(Fatal(error));
        }
        if !seeded_bug::is(SeededBug::FooterBeforeData) {
            self.sync_now().await?;
        }
        let Some(active) = &mut self.active else { return Ok(Ok(())) };
        active.retired = true;
        let footer = Footer {
            data_len: active.end,
            min_seq: active.min_seq,
            max_seq: active.max_seq,
            record_count: active.records,
            file_crc: active.crc.clone().finalize(),
        };
        let encoded = footer.encode(&active.segment.binding, active.end, active.max_seq, active.records);
        let (file, end) = (Arc::clone(&active.file), active.end);
        let sealed_len = end + FOOTER_LEN as u64;
        // The footer's own place stays claimed.
        let has_filler = active.filled_end > end && !seeded_bug::is(SeededBug::FillerNotCut);
        if has_filler && let Err(error) = file.truncate(sealed_len) {
            return Ok(Err(self.place_error("seal", error)));
        }
        if let Err(error) = write_footer(&*file, &encoded, end, &self.parts.reserve).await {
            // The same bytes will be written at the same place, or the next open cuts them off.
            return Ok(Err(self.place_error("seal", error)));
        }
        CommitCounters::add(&self.parts.commit_counters.syncs, 1);
        let kind = if has_filler { SyncKind::All } else { SyncKind::Data };
        if let Err(error) = file.sync(kind).await {
            return Err(self.poison("sync the footer", error));
        }
        CommitCounters::add(&self.parts.commit_counters.bytes_written, FOOTER_LEN as u64);
        if !has_filler {
            // Gives back the claimed space behind the footer; if it fails, the space stays claimed, nothing else.
            let _ = file.truncate(sealed_len);
        }
        if let Some(active) = self.active.take() {
            active.segment.set_written_end(sealed_len);
            let Active { max_seq, tombstone_bytes, .. } = active;
            active.segment.set_sealed(Some(Facts { max_seq, tombstone_bytes }));
            (self.sealed)(active.segment);
        }
        Ok(Ok(()))
    }

    /// Seals the active segment before its time, if it holds a record.
    pub(super) async fn seal_for_compaction(&mut self) -> Result<Result<(), Error>, Fatal> {
        let has_records =
            self.parts.log.place().is_some_and(|(next_offset, _)| next_offset > SEGMENT_HEADER_LEN as u64);
        let is_retired = self.active.as_ref().is_some_and(|active| active.retired);
        if has_records || is_retired { self.seal().await } else { Ok(Ok(())) }
    }

    /// The last act of a store that is being closed.
    pub(super) async fn seal_for_close(&mut self) -> Result<(), Fatal> {
        match self.seal().await? {
            Ok(()) => Ok(()),
            // Everything is durable; the next open seals it.
            Err(error) => Err(Fatal(error)),
        }
    }

    // ---- starting ------------------------------------------------------------------------------------------------

    /// Starts a segment for what waits: deletes may have it on the reserve.
    async fn start_for(&mut self, wanted: RoomWanted) -> Result<Result<(), Error>, Fatal> {
        match self.start_segment().await? {
            Err(error) if wanted.delete_bytes > 0 && error.kind() == ErrorKind::NoSpace => {
                let Some(_loan) = self.borrow(0) else { return Ok(Err(error)) };
                self.start_segment().await
            }
            started => Ok(started),
        }
    }

    /// Creates the next segment and makes it the active one. The inner error leaves the store without one.
    async fn start_segment(&mut self) -> Result<Result<(), Error>, Fatal> {
        let mut catalog = self.parts.manifest.lock().await;
        let id = catalog.take_segment_id();
        let Ok(short_id) = u32::try_from(id) else {
            let message = format!("segment ids are spent: {id} is beyond {}", u32::MAX);
            return Ok(Err(Error::new(ErrorKind::Unsupported, message)));
        };
        let name = segment_file_name(short_id);
        let fail =
            |error: io::Error| Error::io("create a segment", error).with_path(self.parts.segments.path.join(&name));
        let salt = match self.parts.io.random_u64() {
            Ok(salt) => salt,
            Err(error) => return Ok(Err(fail(error))),
        };
        let next_seq = self.parts.log.next_seq();
        let header = SegmentHeader::new(catalog.store_id(), id, salt, next_seq).encode();
        let file = match create_file(&*self.parts.segments.dir, &name, &header).await {
            Ok(file) => file,
            Err(error) => {
                let error = fail(error);
                // Best effort; an unlisted file is removed by the next open.
                let _ = self.parts.segments.dir.unlink(&name);
                return Ok(Err(error));
            }
        };
        let mut segments = catalog.segments().to_vec();
        segments.push(ManifestSegment { id, salt });
        segments.sort_by_key(|listed| listed.id);
        let edited = catalog.edit(segments, short_id, next_seq).await;
        drop(catalog);
        match edited {
            Ok(()) => {}
            Err(ManifestError::NotChanged(error)) => {
                let error = Error::io("list a new segment", error).with_path(&self.parts.segments.path);
                let _ = self.parts.segments.dir.unlink(&name);
                return Ok(Err(error));
            }
            Err(ManifestError::Unknown(error)) => return Err(self.poison("sync the directory", error)),
        }
        self.activate(short_id, salt, next_seq, file, &header);
        Ok(Ok(()))
    }

    fn activate(&mut self, id: u32, salt: u64, first_seq: u64, file: Arc<dyn File>, header: &[u8]) {
        let end = SEGMENT_HEADER_LEN as u64;
        let fills = self.options.prewrite && file.writes_in_place();
        let segment = Arc::new(Segment::new(id, salt, first_seq, end, Some(Arc::clone(&file))));
        let mut crc = Hasher::new();
        crc.update(header);
        CommitCounters::add(&self.parts.commit_counters.bytes_written, end);
        self.parts.segments.insert(Arc::clone(&segment));
        self.active = Some(Active {
            segment: Arc::clone(&segment),
            file,
            end,
            durable_end: end,
            filled_end: end,
            fills,
            writeback_end: end,
            crc,
            records: 0,
            min_seq: 0,
            max_seq: 0,
            tombstone_bytes: 0,
            retired: false,
        });
        self.parts.log.set_place(Place { segment, next_offset: end, next_ordinal: 0, claimed_end: end });
    }
}

/// Where a segment ends whose next group has `bytes` of records and is the last.
fn end_of(next_offset: u64, bytes: u64) -> u64 {
    next_offset + WATERMARK_LEN as u64 + bytes + FOOTER_LEN as u64
}

/// Writes a footer, on the reserve if there is no other space.
async fn write_footer(file: &dyn File, footer: &[u8], end: u64, reserve: &Arc<Reserve>) -> io::Result<()> {
    let write = || util::write_all(file, vec![Bytes::copy_from_slice(footer)], end);
    match write().await {
        Err(error) if lacks_space(&error) => {
            let Some(_loan) = reserve.release() else { return Err(error) };
            write().await
        }
        written => written,
    }
}

/// A new segment file with its header, durable.
async fn create_file(dir: &dyn Dir, name: &str, header: &[u8]) -> io::Result<Arc<dyn File>> {
    let file = dir.open(name, OpenMode::CreateNew)?;
    util::write_all(&*file, vec![Bytes::copy_from_slice(header)], 0).await?;
    file.sync(SyncKind::All).await?;
    // The name must be there before the MANIFEST that lists it can be.
    if !seeded_bug::is(SeededBug::NoDirectorySync) {
        dir.sync()?;
    }
    Ok(file)
}
