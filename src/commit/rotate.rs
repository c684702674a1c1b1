//! Admission for the log: claiming disk space, sealing a segment, starting the next.
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

use super::active::{Active, Fatal};
use super::log::{Refused, SpaceWanted};
use super::parts::CommitCounters;
use super::preallocate::{Answer, end_of};
use super::stage::Place;
use super::task::Committer;
use crate::error::{Error, ErrorKind};
use crate::format::{FOOTER_LEN, Footer, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{Dir, File, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Facts, ManifestError, Reserve, Segment, lacks_space, segment_file_name};

impl Committer {
    /// Makes room for what waits, if it can.
    pub(super) async fn make_room(&mut self, wanted: Option<SpaceWanted>) -> Result<Answer, Fatal> {
        let Some(wanted) = wanted else { return Ok(None) };
        if self.has_room(wanted) {
            return Ok(None);
        }
        let Err(error) = self.parts.reserve.hold() else { return self.make_room_for(wanted).await };
        // Nothing is done for puts: the space that there is belongs to deletes.
        let refusal = (Refused::AllButDeletes, self.place_error("claim the reserve", error));
        let answer = match wanted.delete_bytes {
            0 => None,
            bytes => self.make_room_for(SpaceWanted { bytes, ..wanted }).await?,
        };
        Ok(answer.or(Some(refusal)))
    }

    async fn make_room_for(&mut self, wanted: SpaceWanted) -> Result<Answer, Fatal> {
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
    fn is_full(&self, wanted: SpaceWanted) -> bool {
        self.parts.log.place().is_some_and(|(next_offset, _)| {
            next_offset > SEGMENT_HEADER_LEN as u64 && end_of(next_offset, wanted.bytes) > self.options.segment_bytes
        })
    }

    /// Whether the active segment has room for all that waits: it only waits for memory.
    fn has_room(&self, wanted: SpaceWanted) -> bool {
        !self.is_retired()
            && !self.is_full(wanted)
            && self.parts.log.place().is_some_and(|(next_offset, claimed_end)| {
                end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes) <= claimed_end
            })
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
    async fn start_for(&mut self, wanted: SpaceWanted) -> Result<Result<(), Error>, Fatal> {
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
        let fills = self.options.fill_ahead && file.writes_in_place();
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
