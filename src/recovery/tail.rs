//! The tail: the segment that was active when the store stopped.
//!
//! The crash may have torn its end at any byte, with later sectors on disk and earlier ones missing. No byte from the
//! first invalid one on was acknowledged as durable, *unless* a later frame states that those bytes were durable when
//! the frame was written. Without such a frame the end is a torn tail and is cut off. With one it is damage.
//!
//! Recovery makes every byte that it keeps durable before it relies on it. `checked` has synced the file and evicted
//! its clean pages before anything reads the end. The truncation is synced before the footer is written, and the footer
//! is synced before the next step. Under `Salvage`, a durable copy of the cut bytes exists before the truncation.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::checked::CheckedSegment;
use super::hint_load::read_header;
use super::live_bytes::LiveByteCounter;
use super::opening::Opening;
use crate::error::{Error, Result};
use crate::format::{Binding, FOOTER_LEN, Footer, HintHeader, PREWRITTEN_BYTE};
use crate::io::{Dir, File, OpenMode, SyncKind, util};
use crate::keydir::Keydir;
use crate::options::Recovery;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{
    Extent, Facts, Found, ManifestStore, Scan, Segment, Stop, cut_file_name, hint_file_name, lacks_space,
    segment_file_name, tmp_name,
};

/// Bytes per read when the end of the file is copied or searched.
const COPY_BYTES: u64 = 1 << 20;

/// The tail after its scan.
pub(super) struct ScannedTail {
    segment: CheckedSegment,
    /// End of the bytes to cut. Only prewritten padding follows.
    cut_end: u64,
    file: Arc<dyn File>,
    extent: Extent,
    has_damage: bool,
}

impl ScannedTail {
    pub(super) fn max_seq(&self) -> u64 {
        self.extent.max_seq
    }

    pub(super) fn id(&self) -> u32 {
        self.segment.id
    }

    /// Whether the tail holds no record and no damage.
    pub(super) fn is_empty(&self) -> bool {
        self.extent.records == 0 && !self.has_damage
    }
}

impl Opening<'_> {
    /// Takes the tail out of `segments`: the active segment, if it has no footer and never had one. A rebuilt list does
    /// not know the active segment; then the tail is the newest such segment.
    pub(super) async fn take_tail(
        &self,
        segments: &mut Vec<CheckedSegment>,
        manifest: &ManifestStore,
    ) -> Result<Option<CheckedSegment>> {
        for index in (0..segments.len()).rev() {
            let Some(segment) = segments.get(index).filter(|segment| segment.footer.is_none()) else {
                continue;
            };
            let may_be_tail = segment.id == manifest.active_segment() || manifest.is_rebuilt();
            if !may_be_tail {
                continue;
            }
            let was_sealed = was_sealed(&*self.dir, segment, &manifest.store_id()).await;
            let was_sealed = was_sealed.map_err(|error| {
                Error::io("open: read a hint", error).with_path(self.options.path.join(hint_file_name(segment.id)))
            })?;
            if !was_sealed {
                return Ok(Some(segments.remove(index)));
            }
        }
        Ok(None)
    }

    /// Scans the tail and publishes its records, up to the first invalid byte that is not damage.
    pub(super) async fn scan_tail(&mut self, tail: CheckedSegment, keydir: &Keydir) -> Result<ScannedTail> {
        let id = tail.id;
        let file = self.dir.open(&segment_file_name(id), OpenMode::ReadWrite);
        let file = file.map_err(|error| self.io_error("open the active segment", error, Some(id)))?;
        let binding = Binding::new(tail.salt, u64::from(id));
        let mut scan = Scan::new(Arc::clone(&file), binding, &tail.header, tail.len);
        let mut records = 0;
        let (mut has_damage, mut live_bytes) = (false, LiveByteCounter::default());
        // Damage interrupts the sequence of ordinals.
        let mut check_ordinals = true;
        loop {
            let each = |found: Found<'_>| {
                records += 1;
                live_bytes.publish(keydir, id, &found);
            };
            let stop = scan.run(check_ordinals, each).await;
            let stop = stop.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
            let Some(stop) = stop else { break };
            if !self.skip_damage(&mut scan, id, stop, tail.len).await? {
                break;
            }
            has_damage = true;
            check_ordinals = false;
        }
        self.live_bytes.add(&live_bytes);
        let mut extent = scan.extent().clone();
        if seeded_bug::is(SeededBug::SealAfterTornTail) {
            extent.end = tail.len.next_multiple_of(8);
        }
        let cut_end = without_padding(&*file, extent.end..tail.len).await;
        let cut_end = cut_end.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
        self.report.segments += 1;
        self.report.segments_scanned += 1;
        self.report.records_scanned += records;
        self.report.truncated_bytes += cut_end.saturating_sub(extent.end);
        Ok(ScannedTail { segment: tail, cut_end, file, extent, has_damage })
    }

    /// Under `Salvage`, copies the bytes that [`cut_tail`](Self::cut_tail) will cut off to a file beside the segment.
    /// They may be a commit group that was acknowledged and then damaged, which looks exactly like a torn group.
    pub(super) async fn copy_cut_bytes(&mut self, tail: &ScannedTail) -> Result<()> {
        let (end, cut_end) = (tail.extent.end, tail.cut_end);
        if self.options.recovery != Recovery::Salvage || end >= cut_end {
            return Ok(());
        }
        let name = cut_file_name(tail.id());
        match copy_cut(&*self.dir, &*tail.file, end..cut_end, &name).await {
            Ok(()) => self.report.cut_copy = Some(name),
            // A full disk must not keep the valid records from being recovered.
            Err(error) if lacks_space(&error) => {}
            Err(error) => return Err(self.io_error("copy the end of the active segment", error, Some(tail.id()))),
        }
        Ok(())
    }

    /// Durably truncates the tail after its last valid record. This also frees the space preallocated there.
    pub(super) async fn cut_tail(&self, tail: &ScannedTail) -> Result<()> {
        let cut = cut(&*tail.file, tail.extent.end).await;
        cut.map_err(|error| self.io_error("truncate the active segment", error, Some(tail.id())))
    }

    /// Seals the tail after its truncation. Returns the segment if it needs a hint. A damaged segment gets none, so
    /// that it never passes for an undamaged one.
    pub(super) async fn seal_tail(&mut self, tail: ScannedTail) -> Result<Option<Arc<Segment>>> {
        let ScannedTail { segment: checked, file, extent, has_damage, .. } = tail;
        let id = checked.id;
        let mut len = extent.end;
        // A damaged tail gets no footer, so every strict open refuses it.
        if !has_damage {
            let footer = Footer {
                data_len: extent.end,
                min_seq: extent.min_seq,
                max_seq: extent.max_seq,
                record_count: extent.records,
                file_crc: extent.file_crc(),
            };
            let binding = Binding::new(checked.salt, u64::from(id));
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
        let segment = Arc::new(Segment::new(id, checked.salt, checked.first_seq, len, Some(file)));
        let facts = Facts { max_seq: extent.max_seq, tombstone_bytes: extent.tombstone_bytes };
        segment.set_sealed((!has_damage).then_some(facts));
        self.segments.insert(Arc::clone(&segment));
        Ok((!has_damage).then_some(segment))
    }

    /// Decides what the invalid byte at `stop` means. Returns `true` if it is damage and the scan can continue after
    /// it.
    async fn skip_damage(&mut self, scan: &mut Scan, id: u32, stop: Stop, len: u64) -> Result<bool> {
        let durable = scan.durable_beyond(stop.offset).await;
        if !durable.map_err(|error| self.io_error("scan the active segment", error, Some(id)))? {
            return Ok(false);
        }
        let next = scan.find_next(stop.offset + 8).await;
        let next = next.map_err(|error| self.io_error("scan the active segment", error, Some(id)))?;
        let reason = format!("{} in bytes that were durable", stop.error);
        self.damaged(id, stop.offset, next.unwrap_or(len) - stop.offset, reason)?;
        debug_assert_eq!(self.options.recovery, Recovery::Salvage, "a strict open has returned an error");
        match next {
            Some(next) => {
                scan.resume_at(next);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// The end of `range` without the prewritten padding at its end. Only for bytes after the last record, because a record
/// may also end with such bytes.
async fn without_padding(file: &dyn File, range: Range<u64>) -> io::Result<u64> {
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

/// Whether the segment has a hint file. Hints are only written after a segment was sealed durably.
async fn was_sealed(dir: &dyn Dir, tail: &CheckedSegment, store_id: &[u8; 16]) -> io::Result<bool> {
    let Some((_, header)) = read_header(dir, tail.id).await? else { return Ok(false) };
    let HintHeader { store_id: of_store, segment_id, salt, .. } = header;
    Ok(of_store == *store_id && segment_id == u64::from(tail.id) && salt == tail.salt)
}

/// Truncates the file at `end`, durably. The file may already seem to end there after a failed sync, so it is synced in
/// any case.
async fn cut(file: &dyn File, end: u64) -> io::Result<()> {
    // Space may be preallocated beyond `end` even if the file ends there.
    if !seeded_bug::is(SeededBug::NoTruncateOnOpen) {
        file.truncate(end)?;
    }
    if !seeded_bug::is(SeededBug::TailNotSynced) {
        file.sync(SyncKind::All).await?;
    }
    Ok(())
}

/// Copies the bytes at `range` of `file` to the file `name`, durably.
///
/// An existing copy stays as it is. An earlier open made it from the same bytes and stopped before it truncated the
/// tail.
async fn copy_cut(dir: &dyn Dir, file: &dyn File, range: Range<u64>, name: &str) -> io::Result<()> {
    match dir.open(name, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        existing => return existing.map(drop),
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
        // Best effort: the next open removes it, too.
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
