//! From old segments to new ones: reads in large steps, verifies every record that it looks at, and copies what must be
//! kept.
//!
//! Of a sparse input ([`sparse`]) that is known beforehand, and no other record is looked at. Otherwise it is decided for
//! each record by itself, when it is read:
//!
//! - a put, if the keydir points at this very record;
//! - a tombstone, unless no segment outside this job can hold a record that it hides;
//! - nothing else: frames and watermarks say something about their own segment only.
//!
//! A batch was applied whole long before its segment was sealed, so its members are copied each by itself.
//!
//! Records keep their sequence numbers, times of expiry and the checksums of their payloads, which are verified before
//! the copy and never computed anew: bytes that go bad on the way stay bad in the eyes of every reader.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::helper::Terms;
use crate::compaction::Compactor;
use crate::compaction::control::Gate;
use crate::compaction::error::JobError;
use crate::compaction::output::{Finished, Identity, Output};
use crate::compaction::sparse::{self, Input};
use crate::format::{FOOTER_LEN, PayloadCrc, RECORD_HEADER_LEN, RecordHeader, RecordKind, SEGMENT_HEADER_LEN};
use crate::io::File;
use crate::io::util::{self, to_usize};
use crate::keydir::Live;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{ReadAhead, Scan, Segment, Stop, Stored, segment_file_name};
use crate::stats::CompactionReport;

/// Bytes of records read, sorted out and written between two looks at the world. Short where there is a limit, so that
/// the commit task finds neither processor nor disk taken for long; longer where there is none, for more look-ups at once.
const STEP_BYTES: u64 = 128 << 10;
const STEP_BYTES_UNLIMITED: u64 = 1 << 20;

/// Reads in flight beyond the step at hand.
const READS_AHEAD: usize = 2;

/// Bytes of a large value copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Whether the record may have to be kept. Of a put the keydir has the last word; a tombstone with a smaller sequence
/// number than `tombstones_go_below` hides nothing outside the job.
fn may_keep(record: &Stored<'_>, tombstones_go_below: u64) -> bool {
    match record.header.kind {
        RecordKind::Put => true,
        RecordKind::Tombstone => {
            record.header.seq >= tombstones_go_below && !seeded_bug::is(SeededBug::TombstoneDropped)
        }
        RecordKind::Batch => seeded_bug::is(SeededBug::BatchFrameCopied),
        RecordKind::Watermark | RecordKind::Footer => false,
    }
}

/// Records of one step that are to be copied.
#[derive(Default)]
struct Step {
    /// Whole records, or the beginning of a large one, one after the other.
    bytes: BytesMut,
    records: Vec<Copied>,
    tombstones_dropped: u64,
}

struct Copied {
    header: RecordHeader,
    /// Where it begins in the step's bytes.
    at: usize,
    /// How many of these are its.
    len: usize,
    /// Where it begins in its segment, if it is so large that only its header and key are among the bytes.
    large_at: Option<u64>,
}

impl Copied {
    fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.at + RECORD_HEADER_LEN;
        bytes.get(start..start + usize::from(self.header.key_len)).unwrap_or_default()
    }
}

impl Step {
    fn take(&mut self, record: &Stored<'_>) {
        let at = self.bytes.len();
        let large_at = match record.bytes {
            Some(bytes) => {
                self.bytes.extend_from_slice(bytes);
                None
            }
            None => {
                self.bytes.extend_from_slice(&record.header.draft());
                self.bytes.extend_from_slice(record.key);
                Some(record.offset)
            }
        };
        self.records.push(Copied { header: record.header, at, len: self.bytes.len() - at, large_at });
    }

    /// Drops the puts of `segment` that no key points at, and closes the gaps.
    fn drop_dead(&mut self, compactor: &Compactor, segment: u32) {
        let bytes = &self.bytes;
        let puts = self.records.iter().filter(|record| record.header.kind == RecordKind::Put);
        let puts: Vec<(&[u8], u64)> = puts.map(|record| (record.key(bytes), record.header.seq)).collect();
        let mut alive = compactor.parts.keydir.are_newest(&puts, segment);
        if seeded_bug::is(SeededBug::BusyKeySkipped) {
            let is_busy = puts.iter().map(|(key, _)| compactor.parts.log.is_unresolved(key));
            alive.iter_mut().zip(is_busy).for_each(|(alive, is_busy)| *alive &= !is_busy);
        }
        let mut alive = alive.into_iter();
        let (bytes, mut end) = (&mut self.bytes, 0);
        self.records.retain_mut(|record| {
            let stays = record.header.kind != RecordKind::Put || alive.next().unwrap_or(true);
            if stays {
                if record.at > end {
                    bytes.copy_within(record.at..record.at + record.len, end);
                    record.at = end;
                }
                end += record.len;
            }
            stays
        });
        self.bytes.truncate(end);
    }
}

/// One job's copying.
pub(in crate::compaction) struct Rewrite<'a> {
    pub(in crate::compaction) compactor: &'a Compactor,
    terms: Terms,
    pub(in crate::compaction) open: Option<Output>,
    pub(in crate::compaction) finished: Vec<Finished>,
    pub(in crate::compaction) report: CompactionReport,
}

impl<'a> Rewrite<'a> {
    pub(in crate::compaction) fn new(compactor: &'a Compactor, terms: Terms) -> Self {
        Self { compactor, terms, open: None, finished: Vec::new(), report: CompactionReport::default() }
    }

    /// Copies what `input` has to keep.
    pub(in crate::compaction) async fn copy(&mut self, input: &Input, gate: &Gate) -> Result<(), JobError> {
        let segment = &*input.segment;
        let fail = |operation: &str, error| JobError::reading(self.compactor, operation, error, segment);
        let file = self.compactor.parts.segments.open_apart(segment).map_err(|error| fail("open a segment", error))?;
        let header = util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await;
        let header = header.map_err(|error| fail("read a segment", error))?;
        let ahead = ReadAhead::Once(READS_AHEAD);
        let scan = Scan::reading_ahead(Arc::clone(&file), segment.binding, &header, segment.data_end(), ahead);
        match &input.live {
            None => self.copy_whole(scan, &*file, segment, gate).await,
            Some(live) => self.copy_live(live, scan, &*file, segment, gate).await,
        }
    }

    /// All of it is read and verified, whatever it holds.
    async fn copy_whole(
        &mut self,
        mut scan: Scan,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<(), JobError> {
        let mut is_over = false;
        while !is_over {
            gate.pass().await?;
            let (mut step, before) = (Step::default(), scan.bytes_read());
            let tombstones_go_below = self.terms.tombstones_go_below;
            let ran = scan.run_raw(self.step_bytes(), |record| {
                if may_keep(&record, tombstones_go_below) {
                    step.take(&record);
                } else if record.header.kind == RecordKind::Tombstone {
                    step.tombstones_dropped += 1;
                }
            });
            is_over = self.as_read(ran.await, segment)?;
            step.drop_dead(self.compactor, segment.id);
            self.end_step(step, scan.bytes_read() - before, file, segment, gate).await?;
        }
        Ok(())
    }

    /// Of what is `live` every record is read and verified; all else is read over, or left out where that is much.
    async fn copy_live(
        &mut self,
        live: &[Live],
        mut scan: Scan,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<(), JobError> {
        for run in sparse::runs(live) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            scan.go_to(first.location.offset()..last.end().min(segment.data_end()));
            let mut records = run.iter().peekable();
            while let Some(next) = records.peek() {
                gate.pass().await?;
                let (mut step, before) = (Step::default(), scan.bytes_read());
                let step_end = next.location.offset().saturating_add(self.step_bytes());
                while let Some(live) = records.next_if(|live| live.location.offset() < step_end) {
                    self.take_live(live, &mut scan, &mut step, segment).await?;
                }
                self.end_step(step, scan.bytes_read() - before, file, segment, gate).await?;
            }
        }
        Ok(())
    }

    /// Reads one record that a key points at.
    async fn take_live(
        &self,
        live: &Live,
        scan: &mut Scan,
        step: &mut Step,
        segment: &Segment,
    ) -> Result<(), JobError> {
        let record = self.as_read(scan.read_at(live.location.offset()).await, segment)?;
        if !sparse::is_meant(live, &record.header) {
            return Err(JobError::damaged(segment, record.offset, "not the record that a key points at"));
        }
        if !seeded_bug::is(SeededBug::BusyKeySkipped) || !self.compactor.parts.log.is_unresolved(record.key) {
            step.take(&record);
        }
        Ok(())
    }

    fn step_bytes(&self) -> u64 {
        if self.compactor.is_unlimited() { STEP_BYTES_UNLIMITED } else { STEP_BYTES }
    }

    /// What a scan has read of `segment`, or what that means for the job.
    fn as_read<T>(&self, read: io::Result<Result<T, Stop>>, segment: &Segment) -> Result<T, JobError> {
        match read {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(stop)) => Err(JobError::damaged(segment, stop.offset, &stop.error.to_string())),
            Err(error) => Err(JobError::reading(self.compactor, "read a segment", error, segment)),
        }
    }

    /// Writes what a step keeps, of so many bytes that were read for it, and waits as long as it must.
    async fn end_step(
        &mut self,
        step: Step,
        read: u64,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<(), JobError> {
        self.report.bytes_read += read;
        self.report.tombstones_dropped += step.tombstones_dropped;
        let written = self.write_step(step, file, segment, gate).await?;
        self.compactor.pace(read + written, gate).await
    }

    /// Gives the records of a step their places and writes them; returns how many bytes that were, but for those that
    /// were waited for already.
    async fn write_step(
        &mut self,
        step: Step,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<u64, JobError> {
        let Step { mut bytes, records, .. } = step;
        let (before, mut waited_for) = (self.report.bytes_written, 0);
        // What was written of the step's bytes has left them, so places in them count from here.
        let mut gone = 0;
        for Copied { header, at, len, large_at } in records {
            let is_full = |open: &Output| !open.has_room(header.record_len(), self.compactor.settings.segment_bytes);
            if self.open.as_ref().is_none_or(is_full) {
                self.write(bytes.split_to(at - gone)).await?;
                gone = at;
                self.finish_output().await?;
                self.start_output().await?;
            }
            let end = at + len;
            let Some(open) = &mut self.open else { continue };
            let key = RECORD_HEADER_LEN..RECORD_HEADER_LEN + usize::from(header.key_len);
            open.place(&header, bytes.get_mut(at - gone..end - gone).unwrap_or_default(), key);
            self.report.records_copied += 1;
            if let Some(offset) = large_at {
                self.write(bytes.split_to(end - gone)).await?;
                gone = end;
                waited_for += self.copy_large(file, &header, offset, segment, gate).await?;
            }
        }
        self.write(bytes).await?;
        Ok(self.report.bytes_written - before - waited_for)
    }

    /// Writes what was placed in the open output.
    async fn write(&mut self, bytes: BytesMut) -> Result<(), JobError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let (id, len) = (open.id(), bytes.len() as u64);
        let written = open.write(bytes.freeze()).await;
        written.map_err(|error| JobError::writing(self.compactor, error, id))?;
        self.report.bytes_written += len;
        Ok(())
    }

    /// Copies the value of a record whose header and key are written, and verifies it once more on the way; returns its
    /// bytes, for which it has waited.
    async fn copy_large(
        &mut self,
        file: &dyn File,
        header: &RecordHeader,
        offset: u64,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<u64, JobError> {
        let head = RECORD_HEADER_LEN as u64 + u64::from(header.key_len);
        let key = util::read_exact(file, offset + RECORD_HEADER_LEN as u64, usize::from(header.key_len)).await;
        let key = key.map_err(|error| JobError::reading(self.compactor, "read a segment", error, segment))?;
        let mut payload = PayloadCrc::new();
        payload.update(&key);
        let (mut position, end) = (offset + head, offset + header.record_len());
        let value_end = offset + RECORD_HEADER_LEN as u64 + header.payload_len();
        while position < end {
            gate.pass().await?;
            let len = to_usize((end - position).min(PIECE_BYTES));
            let piece = util::read_exact(file, position, len).await;
            let piece = piece.map_err(|error| JobError::reading(self.compactor, "read a segment", error, segment))?;
            let value_len = to_usize(value_end.saturating_sub(position)).min(len);
            payload.update(piece.get(..value_len).unwrap_or_default());
            self.report.bytes_read += len as u64;
            self.write(BytesMut::from(Bytes::from(piece))).await?;
            position += len as u64;
            self.compactor.pace(2 * len as u64, gate).await?;
        }
        if payload.finish() != header.payload_crc {
            return Err(JobError::damaged(segment, offset, "bad payload checksum"));
        }
        Ok(header.record_len() - head)
    }

    async fn start_output(&mut self) -> Result<(), JobError> {
        let compactor = self.compactor;
        let salt = compactor.parts.io.random_u64();
        let salt = salt.map_err(|error| JobError::Failed(compactor.error("draw a random number", error)))?;
        let id = compactor.spend_id().await?;
        let identity = Identity { store_id: compactor.parts.store_id, id, salt, first_seq: self.terms.first_seq };
        match Output::create(&*compactor.parts.segments.dir, identity).await {
            Ok(output) => {
                self.open = Some(output);
                self.report.bytes_written += SEGMENT_HEADER_LEN as u64;
                Ok(())
            }
            Err(error) => {
                let _ = compactor.parts.segments.dir.unlink(&segment_file_name(id));
                Err(JobError::writing(compactor, error, id))
            }
        }
    }

    /// Completes the open output, if there is one.
    pub(in crate::compaction) async fn finish_output(&mut self) -> Result<(), JobError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let id = open.id();
        let (compactor, has_space) = (self.compactor, self.compactor.parts.reserve.is_held());
        let pauses = (!compactor.is_unlimited()).then_some(&*compactor.parts.io);
        match open.finish(&*compactor.parts.segments.dir, has_space, pauses).await {
            Ok(finished) => {
                self.report.segments_written += 1;
                self.report.bytes_written += FOOTER_LEN as u64;
                self.finished.push(finished);
                Ok(())
            }
            Err(error) => {
                let _ = self.compactor.parts.segments.dir.unlink(&segment_file_name(id));
                Err(JobError::writing(self.compactor, error, id))
            }
        }
    }
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::sync::Arc;

    use crate::io::sim::{SimConfig, SimWorld};
    use crate::{Compaction, Store};

    /// Values that do not fit the window are read beside it: a rate that did not know of them would be none. Of the first
    /// segment more than half is alive, of the second less.
    #[test]
    fn what_is_read_of_large_values_counts() {
        const VALUE: usize = 3 << 20;
        for dead in [1, 3] {
            let world = SimWorld::new(SimConfig::default());
            let report = world.run_until(async {
                let builder = Store::builder("/db").world(Arc::new(world.clone()));
                let store = builder.compaction(Compaction::new().automatic(false)).open().await.unwrap();
                for len in [VALUE * dead / 2, VALUE] {
                    store.put("k", vec![7; len]).await.unwrap();
                }
                let report = store.compact().await.unwrap();
                assert_eq!(store.get("k").await.unwrap().as_deref(), Some(&[7; VALUE][..]));
                store.close().await.unwrap();
                report
            });
            assert_eq!((report.segments_read, report.records_copied), (1, 1), "{report:?}");
            assert!(report.bytes_read > 2 * VALUE as u64, "verified, and copied: {report:?}");
        }
    }
}
