//! Rotation: sealing the active segment and starting the next one.
//!
//! # The order that crash safety depends on
//!
//! ```text
//! seal    everything written is synced -> footer -> sync
//! start   header -> sync -> directory sync -> MANIFEST lists the segment (tmp, sync, rename, directory sync) -> first append
//! ```
//!
//! So at most one listed segment lacks a footer at any moment, and it is the last one. A footer is never durable
//! before the data it covers. A record is never acknowledged in a segment whose name could still vanish.
//!
//! # On a full disk
//!
//! Deletes use the space preallocated in the active segment, then the space of the [`Reserve`]; without an active
//! segment they start one on the reserve. The footer may use the reserve too, because sealing a segment frees its
//! preallocated rest. Puts must not take this space: while the reserve is not held whole, nothing is preallocated for
//! puts and no segment is started for them. Each waiting put first tries to fill the reserve again.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;

use super::active::{ActiveSegment, Fatal};
use super::log::{Refused, SpaceWanted};
use super::parts::CommitCounters;
use super::preallocate::{SpaceAnswer, end_of};
use super::stage::AppendPoint;
use super::task::Committer;
use crate::error::{Error, ErrorKind};
use crate::format::{FOOTER_LEN, Footer, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{Dir, File, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Facts, ManifestError, RESERVE_FILE, Reserve, Segment, lacks_space, segment_file_name};

impl Committer {
    /// Makes space for the waiting writes, if possible.
    pub(super) async fn make_space(&mut self, wanted: Option<SpaceWanted>) -> Result<SpaceAnswer, Fatal> {
        let Some(wanted) = wanted else { return Ok(None) };
        if self.has_space(wanted) {
            return Ok(None);
        }
        let Err(error) = self.parts.reserve.hold() else { return self.make_space_for(wanted).await };
        // Nothing is done for puts: the available space belongs to deletes.
        let error = Error::io("preallocate the reserve", error).with_path(self.parts.segments.path.join(RESERVE_FILE));
        let refusal = (Refused::AllButDeletes, error);
        let answer = match wanted.delete_bytes {
            0 => None,
            bytes => self.make_space_for(SpaceWanted { bytes, ..wanted }).await?,
        };
        Ok(answer.or(Some(refusal)))
    }

    async fn make_space_for(&mut self, wanted: SpaceWanted) -> Result<SpaceAnswer, Fatal> {
        // A delete that arrived meanwhile was not tried, so it is not refused.
        let whom = if wanted.delete_bytes > 0 { Refused::Everybody } else { Refused::AllButDeletes };
        let must_seal = self.must_seal() || self.is_full(wanted);
        if must_seal && let Err(error) = self.seal().await? {
            return Ok(Some((whom, error)));
        }
        if self.active.is_none()
            && let Err(error) = self.start_for(wanted).await?
        {
            return Ok(Some((whom, error)));
        }
        Ok(self.preallocate(wanted))
    }

    fn must_seal(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.must_seal)
    }

    /// Whether the active segment has reached its size.
    fn is_full(&self, wanted: SpaceWanted) -> bool {
        self.parts.log.append_range().is_some_and(|(next_offset, _)| {
            next_offset > SEGMENT_HEADER_LEN as u64 && end_of(next_offset, wanted.bytes) > self.options.segment_bytes
        })
    }

    /// Whether the active segment has space for all waiting writes: they wait only for memory.
    fn has_space(&self, wanted: SpaceWanted) -> bool {
        !self.must_seal()
            && !self.is_full(wanted)
            && self.parts.log.append_range().is_some_and(|(next_offset, preallocated_end)| {
                end_of(next_offset, wanted.bytes).saturating_add(self.options.reserve_bytes) <= preallocated_end
            })
    }

    /// Seals the active segment. On the inner error it stays active and is sealed later.
    async fn seal(&mut self) -> Result<Result<(), Error>, Fatal> {
        if let Some(taken) = self.parts.log.take(true) {
            self.commit(taken).await?;
        }
        if let Some(error) = self.parts.log.ended() {
            // Another task ended the store. Staged records keep their position after the last record, so no footer
            // goes there.
            return Err(Fatal(error));
        }
        if !seeded_bug::is(SeededBug::FooterBeforeData) {
            self.sync_now().await?;
        }
        let Some(active) = &mut self.active else { return Ok(Ok(())) };
        active.must_seal = true;
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
        // The space of the footer itself stays preallocated.
        let has_prewritten = active.prewritten_end > end && !seeded_bug::is(SeededBug::FillerNotCut);
        if has_prewritten && let Err(error) = file.truncate(sealed_len) {
            return Ok(Err(self.io_error("seal", error)));
        }
        if let Err(error) = write_footer(&*file, &encoded, end, &self.parts.reserve).await {
            // A later attempt writes the same bytes at the same position, or the next open cuts them off.
            return Ok(Err(self.io_error("seal", error)));
        }
        CommitCounters::add(&self.parts.commit_counters.syncs, 1);
        let kind = if has_prewritten { SyncKind::All } else { SyncKind::Data };
        if let Err(error) = file.sync(kind).await {
            return Err(self.poison("sync the footer", error));
        }
        CommitCounters::add(&self.parts.commit_counters.bytes_written, FOOTER_LEN as u64);
        if !has_prewritten {
            // Frees the preallocated space after the footer. If that fails, the space stays allocated; nothing else
            // depends on it.
            let _ = file.truncate(sealed_len);
        }
        if let Some(active) = self.active.take() {
            active.segment.set_written_end(sealed_len);
            let ActiveSegment { max_seq, tombstone_bytes, .. } = active;
            active.segment.set_sealed(Some(Facts { max_seq, tombstone_bytes }));
            (self.sealed)(active.segment);
        }
        Ok(Ok(()))
    }

    /// Seals the active segment early, if it holds a record.
    pub(super) async fn seal_for_compaction(&mut self) -> Result<Result<(), Error>, Fatal> {
        let has_records =
            self.parts.log.append_range().is_some_and(|(next_offset, _)| next_offset > SEGMENT_HEADER_LEN as u64);
        let must_seal = self.active.as_ref().is_some_and(|active| active.must_seal);
        if has_records || must_seal { self.seal().await } else { Ok(Ok(())) }
    }

    /// Seals the active segment of a store that is being closed.
    pub(super) async fn seal_for_close(&mut self) -> Result<(), Fatal> {
        match self.seal().await? {
            Ok(()) => Ok(()),
            // Everything is durable; the next open seals the segment.
            Err(error) => Err(Fatal(error)),
        }
    }

    /// Starts a segment for the waiting writes. Deletes may use the reserve for it.
    async fn start_for(&mut self, wanted: SpaceWanted) -> Result<Result<(), Error>, Fatal> {
        match self.start_segment().await? {
            Err(error) if wanted.delete_bytes > 0 && error.kind() == ErrorKind::NoSpace => {
                let Some(_loan) = self.borrow(0) else { return Ok(Err(error)) };
                self.start_segment().await
            }
            started => Ok(started),
        }
    }

    /// Creates the next segment and makes it the active one. On the inner error the store has no active segment.
    async fn start_segment(&mut self) -> Result<Result<(), Error>, Fatal> {
        let mut manifest = self.parts.manifest.lock().await;
        let id = manifest.take_segment_id();
        let Ok(short_id) = u32::try_from(id) else {
            let message = format!("no segment number is left: {id} is beyond {}", u32::MAX);
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
        let header = SegmentHeader::new(manifest.store_id(), id, salt, next_seq).encode();
        let file = match create_file(&*self.parts.segments.dir, &name, &header).await {
            Ok(file) => file,
            Err(error) => {
                let error = fail(error);
                // Best effort: the next open removes an unlisted file.
                let _ = self.parts.segments.dir.unlink(&name);
                return Ok(Err(error));
            }
        };
        let mut segments = manifest.segments().to_vec();
        segments.push(ManifestSegment { id, salt });
        segments.sort_by_key(|listed| listed.id);
        let edited = manifest.edit(segments, short_id, next_seq).await;
        drop(manifest);
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
        let prewrites = self.options.prewrite && file.writes_in_place();
        let segment = Arc::new(Segment::new(id, salt, first_seq, end, Some(Arc::clone(&file))));
        let mut crc = Hasher::new();
        crc.update(header);
        CommitCounters::add(&self.parts.commit_counters.bytes_written, end);
        self.parts.segments.insert(Arc::clone(&segment));
        self.active = Some(ActiveSegment {
            segment: Arc::clone(&segment),
            file,
            end,
            durable_end: end,
            prewritten_end: end,
            prewrites,
            writeback_end: end,
            crc,
            records: 0,
            min_seq: 0,
            max_seq: 0,
            tombstone_bytes: 0,
            must_seal: false,
        });
        self.parts.log.set_append_point(AppendPoint {
            segment,
            next_offset: end,
            next_ordinal: 0,
            preallocated_end: end,
        });
    }
}

/// Writes a footer, using the reserve if there is no other space.
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

/// Creates a segment file with its header and makes it durable.
async fn create_file(dir: &dyn Dir, name: &str, header: &[u8]) -> io::Result<Arc<dyn File>> {
    let file = dir.open(name, OpenMode::CreateNew)?;
    util::write_all(&*file, vec![Bytes::copy_from_slice(header)], 0).await?;
    file.sync(SyncKind::All).await?;
    // The name must be durable before the MANIFEST that lists it can be.
    if !seeded_bug::is(SeededBug::NoDirectorySync) {
        dir.sync()?;
    }
    Ok(file)
}
