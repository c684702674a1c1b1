//! The segment that was being written when the store stopped.
//!
//! Its end may be torn: cut off by the crash at any byte, with later sectors on disk and earlier ones not. Nothing from
//! the first invalid byte on was acknowledged as durable, *unless* a later frame says that those bytes were durable
//! when it was written. The first is a torn tail, and is cut; the second is damage.
//!
//! Whatever is kept is made durable before it is believed: the file was synced and its clean pages were dropped before
//! its end was looked at, the cut is synced before the footer is written, and the footer before anything else happens.
//! Under `Salvage` a copy of what is cut is durable before the cut is made.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::hint_load::read_header;
use super::live_bytes::LiveByteCounter;
use super::{Candidate, Opening};
use crate::error::Result;
use crate::format::{Binding, FOOTER_LEN, Footer, HintHeader, PREWRITTEN_BYTE};
use crate::io::{Dir, File, OpenMode, SyncKind, util};
use crate::keydir::Keydir;
use crate::options::Recovery;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{
    Extent, Facts, Found, Scan, Segment, Stop, cut_file_name, lacks_space, segment_file_name, tmp_name,
};

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What the tail was found to hold.
pub(super) struct Scanned {
    candidate: Candidate,
    /// What lies behind it was never anything but filler.
    cut_end: u64,
    file: Arc<dyn File>,
    extent: Extent,
    has_damage: bool,
}

impl Scanned {
    pub(super) fn max_seq(&self) -> u64 {
        self.extent.max_seq
    }

    pub(super) fn id(&self) -> u32 {
        self.candidate.id
    }

    /// Whether it holds no record.
    pub(super) fn is_empty(&self) -> bool {
        self.extent.records == 0 && !self.has_damage
    }
}

impl Opening<'_> {
    /// Reads the tail into the keydir, as far as it counts.
    pub(super) async fn scan_tail(&mut self, tail: Candidate, keydir: &Keydir) -> Result<Scanned> {
        let id = tail.id;
        let file = self.dir.open(&segment_file_name(id), OpenMode::ReadWrite);
        let file = file.map_err(|error| self.io_error("open the active segment", error, Some(id)))?;
        let binding = Binding::new(tail.salt, u64::from(id));
        let mut scan = Scan::new(Arc::clone(&file), binding, &tail.header, tail.len);
        let mut records = 0;
        let (mut has_damage, mut tally) = (false, LiveByteCounter::default());
        // Behind damage the ordinals begin anew.
        let mut resumed = false;
        loop {
            let each = |found: Found<'_>| {
                records += 1;
                tally.publish(keydir, id, &found);
            };
            let stop = scan.run(!resumed, each).await;
            let stop = stop.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
            let Some(stop) = stop else { break };
            if !self.step_over(&mut scan, id, stop, tail.len).await? {
                break;
            }
            has_damage = true;
            resumed = true;
        }
        self.tally.add(&tally);
        let mut extent = scan.extent().clone();
        if seeded_bug::is(SeededBug::SealAfterTornTail) {
            extent.end = tail.len.next_multiple_of(8);
        }
        let cut_end = without_filler(&*file, extent.end..tail.len).await;
        let cut_end = cut_end.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
        self.report.segments += 1;
        self.report.segments_scanned += 1;
        self.report.records_scanned += records;
        self.report.truncated_bytes += cut_end.saturating_sub(extent.end);
        Ok(Scanned { candidate: tail, cut_end, file, extent, has_damage })
    }

    /// Under `Salvage`, copies what [`cut_tail`](Self::cut_tail) is about to cut off to a file beside the segment: it may be
    /// a group that was acknowledged and then damaged, which nobody can tell from one that was torn.
    pub(super) async fn keep_cut(&mut self, tail: &Scanned) -> Result<()> {
        let (end, cut_end) = (tail.extent.end, tail.cut_end);
        if self.options.recovery != Recovery::Salvage || end >= cut_end {
            return Ok(());
        }
        let name = cut_file_name(tail.id());
        match copy_cut(&*self.dir, &*tail.file, end..cut_end, &name).await {
            Ok(()) => self.report.cut_copy = Some(name),
            // The records that are whole shall be had on a full disk, too.
            Err(error) if lacks_space(&error) => {}
            Err(error) => return Err(self.io_error("copy the end of the active segment", error, Some(tail.id()))),
        }
        Ok(())
    }

    /// Cuts the tail off behind its last whole record, durably, and gives back the space that was claimed there.
    pub(super) async fn cut_tail(&self, tail: &Scanned) -> Result<()> {
        let cut = cut(&*tail.file, tail.extent.end).await;
        cut.map_err(|error| self.io_error("cut the active segment", error, Some(tail.id())))
    }

    /// Seals the tail, which has been cut. Returns the segment if it may get a hint: one with damage gets none, so that it is never taken
    /// for a whole one.
    pub(super) async fn seal_tail(&mut self, tail: Scanned) -> Result<Option<Arc<Segment>>> {
        let Scanned { candidate, file, extent, has_damage, .. } = tail;
        let id = candidate.id;
        let mut len = extent.end;
        // With damage it gets no footer: every strict open refuses it.
        if !has_damage {
            let footer = Footer {
                data_len: extent.end,
                min_seq: extent.min_seq,
                max_seq: extent.max_seq,
                record_count: extent.records,
                file_crc: extent.file_crc(),
            };
            let binding = Binding::new(candidate.salt, u64::from(id));
            let encoded = footer.encode(&binding, extent.end, extent.max_seq, extent.records);
            let mut written = write_footer(&*file, extent.end, &encoded).await;
            if let Err(error) = &written
                && self.borrow(error)
            {
                written = write_footer(&*file, extent.end, &encoded).await;
            }
            let closed = match written {
                Ok(()) => make_durable(&*file).await,
                failed => failed,
            };
            closed.map_err(|error| self.io_error("seal the active segment", error, Some(id)))?;
            len = extent.end + FOOTER_LEN as u64;
        }
        let segment = Arc::new(Segment::new(id, candidate.salt, candidate.first_seq, len, Some(file)));
        let facts = Facts { max_seq: extent.max_seq, tombstone_bytes: extent.tombstone_bytes };
        segment.set_sealed((!has_damage).then_some(facts));
        self.registry.insert(Arc::clone(&segment));
        Ok((!has_damage).then_some(segment))
    }

    /// Decides what an invalid byte means. `true`: it was damage, and the scan can go on behind it.
    async fn step_over(&mut self, scan: &mut Scan, id: u32, stop: Stop, len: u64) -> Result<bool> {
        let durable = scan.durable_beyond(stop.offset).await;
        if !durable.map_err(|error| self.io_error("scan the active segment", error, Some(id)))? {
            return Ok(false);
        }
        let next = scan.find_next(stop.offset + 8).await;
        let next = next.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
        let reason = format!("{} in bytes that were durable", stop.error);
        self.damaged(id, stop.offset, next.unwrap_or(len) - stop.offset, reason)?;
        debug_assert_eq!(self.options.recovery, Recovery::Salvage, "a strict open has ended with an error");
        match next {
            Some(next) => {
                scan.resume_at(next);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// Where `range` ends without the filler at its end. Only for bytes behind the last record: one may end with such bytes.
async fn without_filler(file: &dyn File, range: Range<u64>) -> io::Result<u64> {
    let mut end = range.end;
    while end > range.start {
        let start = end.saturating_sub(COPY_BYTES).max(range.start);
        let piece = util::read_exact(file, start, util::to_usize(end - start)).await?;
        if let Some(last) = piece.iter().rposition(|byte| *byte != PREWRITTEN_BYTE) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(end)
}

/// Whether the segment has a hint of its own: then it was sealed, durably, before the hint was written.
pub(super) async fn was_sealed(dir: &dyn Dir, tail: &Candidate, store_id: &[u8; 16]) -> io::Result<bool> {
    let Some((_, header)) = read_header(dir, tail.id).await? else { return Ok(false) };
    let HintHeader { store_id: of_store, segment_id, salt, .. } = header;
    Ok(of_store == *store_id && segment_id == u64::from(tail.id) && salt == tail.salt)
}

/// Makes the file end at `end`, durably. It may do so already for reads alone, after a sync that failed in an earlier life.
async fn cut(file: &dyn File, end: u64) -> io::Result<()> {
    // Even a file that ends at `end` may have space claimed behind it.
    if !seeded_bug::is(SeededBug::NoTruncateOnOpen) {
        file.truncate(end)?;
    }
    if !seeded_bug::is(SeededBug::TailNotSynced) {
        file.sync(SyncKind::All).await?;
    }
    Ok(())
}

/// Writes the bytes at `range` of `file` to the file `name`, durably.
///
/// One that is there was made, whole, by an open that was cut off before it had cut the tail, and stays: the bytes were the
/// same then.
async fn copy_cut(dir: &dyn Dir, file: &dyn File, range: Range<u64>, name: &str) -> io::Result<()> {
    match dir.open(name, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        there => return there.map(drop),
    }
    let tmp = tmp_name(name);
    match dir.unlink(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let copied = async {
        let copy = dir.open(&tmp, OpenMode::CreateNew)?;
        let mut offset = range.start;
        while offset < range.end {
            let piece = util::read_exact(file, offset, util::to_usize((range.end - offset).min(COPY_BYTES))).await?;
            let len = piece.len() as u64;
            util::write_all(&*copy, vec![Bytes::from(piece)], offset - range.start).await?;
            offset += len;
        }
        copy.sync(SyncKind::All).await?;
        dir.rename(&tmp, name)?;
        dir.sync()
    };
    copied.await.inspect_err(|_| {
        // Best effort; the next open removes it too.
        let _ = dir.unlink(&tmp);
    })
}

async fn write_footer(file: &dyn File, end: u64, footer: &[u8]) -> io::Result<()> {
    util::write_all(file, vec![Bytes::copy_from_slice(footer)], end).await
}

async fn make_durable(file: &dyn File) -> io::Result<()> {
    if seeded_bug::is(SeededBug::TailNotSynced) {
        return Ok(());
    }
    file.sync(SyncKind::All).await
}
