//! Copying: reads the inputs in large steps, verifies every record that it reads, and writes the records that must be
//! kept to new segments.
//!
//! Of a sparse input ([`sparse`]) the live records are known beforehand, and the others are not verified. An input that
//! is read whole is decided record by record ([`step`](super::step)).
//!
//! Copies keep their sequence numbers, expiry times and payload checksums. The checksums are verified before the copy
//! and never computed again, so a payload that is damaged on the way to the output fails its check in every later read.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::context::JobContext;
use super::step::{CopiedRecord, CopyStep};
use crate::compaction::control::Gate;
use crate::compaction::error::JobError;
use crate::compaction::output::{FinishedOutput, Output, OutputIdentity};
use crate::compaction::sparse::{self, Input};
use crate::format::{FOOTER_LEN, PayloadCrc, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN};
use crate::io::File;
use crate::io::util::{self, to_usize};
use crate::keydir::Live;
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{ReadAhead, Scan, Segment, Stop, segment_file_name};
use crate::stats::CompactionReport;

/// Bytes of records that are read and written between two checks of the gate and the rate. Small under a rate limit, so
/// that the commit task does not wait long for the processor or the disk.
const STEP_BYTES: u64 = 128 << 10;

/// The same without a rate limit. Large, so that more look-ups are done at once.
const STEP_BYTES_UNLIMITED: u64 = 1 << 20;

/// Reads in flight beyond the current step.
const READS_AHEAD: usize = 2;

/// Bytes of a large value that are copied at once.
const PIECE_BYTES: u64 = 1 << 20;

/// What the copying of some inputs has produced, whether or not it reached its end.
pub(super) struct CopyOutcome {
    pub(super) finished: Vec<FinishedOutput>,
    /// Ids of outputs that were begun and not finished.
    pub(super) unfinished: Vec<u32>,
    pub(super) report: CompactionReport,
    pub(super) result: Result<(), JobError>,
}

impl CopyOutcome {
    /// The outcome of an `error` before the first output.
    pub(super) fn failed(error: JobError) -> Self {
        Self { finished: Vec::new(), unfinished: Vec::new(), report: CompactionReport::default(), result: Err(error) }
    }
}

/// Copies what must be kept of `inputs`.
pub(super) async fn copy(context: &JobContext, inputs: impl Iterator<Item = &Input>, gate: &Gate) -> CopyOutcome {
    let mut copier = Copier { context, open: None, finished: Vec::new(), report: CompactionReport::default() };
    let mut result = Ok(());
    for input in inputs {
        result = copier.copy(input, gate).await;
        if result.is_err() && !seeded_bug::is(SeededBug::InputErrorIsEnd) {
            break;
        }
    }
    if result.is_ok() || seeded_bug::is(SeededBug::InputErrorIsEnd) {
        result = copier.finish_output().await;
    }
    let Copier { finished, open, report, .. } = copier;
    CopyOutcome { finished, unfinished: open.iter().map(Output::id).collect(), report, result }
}

/// The copying on one thread. An output is filled from as many inputs as it takes.
struct Copier<'a> {
    context: &'a JobContext,
    open: Option<Output>,
    finished: Vec<FinishedOutput>,
    report: CompactionReport,
}

impl Copier<'_> {
    async fn copy(&mut self, input: &Input, gate: &Gate) -> Result<(), JobError> {
        let segment = &*input.segment;
        let fail = |operation: &str, error| JobError::reading(self.context.path(), operation, error, segment);
        let file = self.context.parts.segments.open_apart(segment).map_err(|error| fail("open a segment", error))?;
        let header = util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await;
        let header = header.map_err(|error| fail("read a segment", error))?;
        let ahead = ReadAhead::Once(READS_AHEAD);
        let scan = Scan::reading_ahead(Arc::clone(&file), segment.binding, &header, segment.data_end(), ahead);
        match &input.live {
            None => self.copy_whole(scan, &*file, segment, gate).await,
            Some(live) => self.copy_live(live, scan, &*file, segment, gate).await,
        }
    }

    /// Reads and verifies all of `segment`.
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
            let (mut step, before) = (CopyStep::default(), scan.bytes_read());
            let removable_below = self.context.tombstones_removable_below;
            let ran = scan.run_raw(self.step_bytes(), |record| step.add_if_kept(&record, removable_below));
            is_over = self.check_read(ran.await, segment)?;
            step.drop_dead(&self.context.parts, segment.id);
            self.end_step(step, scan.bytes_read() - before, file, segment, gate).await?;
        }
        Ok(())
    }

    /// Reads and verifies the `live` records. Short gaps between them are read as well, long ones are skipped.
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
                let (mut step, before) = (CopyStep::default(), scan.bytes_read());
                let step_end = next.location.offset().saturating_add(self.step_bytes());
                while let Some(live) = records.next_if(|live| live.location.offset() < step_end) {
                    self.add_live(live, &mut scan, &mut step, segment).await?;
                }
                self.end_step(step, scan.bytes_read() - before, file, segment, gate).await?;
            }
        }
        Ok(())
    }

    /// Reads one record that a key points at, and adds it to `step`.
    async fn add_live(
        &self,
        live: &Live,
        scan: &mut Scan,
        step: &mut CopyStep,
        segment: &Segment,
    ) -> Result<(), JobError> {
        let record = self.check_read(scan.read_at(live.location.offset()).await, segment)?;
        if !sparse::is_record_of(live, &record.header) {
            return Err(JobError::damaged(segment, record.offset, "not the record that a key points at"));
        }
        if !seeded_bug::is(SeededBug::BusyKeySkipped) || !self.context.parts.log.is_unresolved(record.key) {
            step.add(&record);
        }
        Ok(())
    }

    fn step_bytes(&self) -> u64 {
        if self.context.throttle.is_unlimited() { STEP_BYTES_UNLIMITED } else { STEP_BYTES }
    }

    /// What a scan has read of `segment`. An error of the file and a damaged record are errors of the job.
    fn check_read<T>(&self, read: io::Result<Result<T, Stop>>, segment: &Segment) -> Result<T, JobError> {
        match read {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(stop)) => Err(JobError::damaged(segment, stop.offset, &stop.error.to_string())),
            Err(error) => Err(JobError::reading(self.context.path(), "read a segment", error, segment)),
        }
    }

    /// Writes the records of a step, for which `bytes_read` were read, and keeps to the rate.
    async fn end_step(
        &mut self,
        step: CopyStep,
        bytes_read: u64,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<(), JobError> {
        self.report.bytes_read += bytes_read;
        self.report.tombstones_dropped += step.tombstones_dropped;
        let bytes_written = self.write_step(step, file, segment, gate).await?;
        self.context.throttle.pause_after(bytes_read + bytes_written, gate).await
    }

    /// Assigns offsets to the records of a step and writes them. Returns the bytes written, without those of large
    /// values: [`copy_large`](Self::copy_large) has paused for them.
    async fn write_step(
        &mut self,
        step: CopyStep,
        file: &dyn File,
        segment: &Segment,
        gate: &Gate,
    ) -> Result<u64, JobError> {
        let CopyStep { mut bytes, records, .. } = step;
        let (before, mut paused_for) = (self.report.bytes_written, 0);
        // Bytes of the step that are written are split off `bytes`, so offsets in it count from here.
        let mut split_off = 0;
        for CopiedRecord { header, at, len, large_at } in records {
            let is_full = |open: &Output| !open.has_room(header.record_len(), self.context.segment_bytes);
            if self.open.as_ref().is_none_or(is_full) {
                self.write(bytes.split_to(at - split_off)).await?;
                split_off = at;
                self.finish_output().await?;
                self.start_output().await?;
            }
            let end = at + len;
            let Some(open) = &mut self.open else { continue };
            let key = RECORD_HEADER_LEN..RECORD_HEADER_LEN + usize::from(header.key_len);
            open.place(&header, bytes.get_mut(at - split_off..end - split_off).unwrap_or_default(), key);
            self.report.records_copied += 1;
            if let Some(offset) = large_at {
                self.write(bytes.split_to(end - split_off)).await?;
                split_off = end;
                paused_for += self.copy_large(file, &header, offset, segment, gate).await?;
            }
        }
        self.write(bytes).await?;
        Ok(self.report.bytes_written - before - paused_for)
    }

    /// Writes the next placed bytes to the open output.
    async fn write(&mut self, bytes: BytesMut) -> Result<(), JobError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let (id, len) = (open.id(), bytes.len() as u64);
        let written = open.write(bytes.freeze()).await;
        written.map_err(|error| JobError::writing(self.context.path(), error, id))?;
        self.report.bytes_written += len;
        Ok(())
    }

    /// Copies the value of a record whose header and key are written, piece by piece, and verifies it again on the way.
    /// Returns the bytes of the value, for which it has paused.
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
        let key = key.map_err(|error| JobError::reading(self.context.path(), "read a segment", error, segment))?;
        let mut payload = PayloadCrc::new();
        payload.update(&key);
        let (mut position, end) = (offset + head, offset + header.record_len());
        let value_end = offset + RECORD_HEADER_LEN as u64 + header.payload_len();
        while position < end {
            gate.pass().await?;
            let len = to_usize((end - position).min(PIECE_BYTES));
            let piece = util::read_exact(file, position, len).await;
            let piece =
                piece.map_err(|error| JobError::reading(self.context.path(), "read a segment", error, segment))?;
            let value_len = to_usize(value_end.saturating_sub(position)).min(len);
            payload.update(piece.get(..value_len).unwrap_or_default());
            self.report.bytes_read += len as u64;
            self.write(BytesMut::from(Bytes::from(piece))).await?;
            position += len as u64;
            self.context.throttle.pause_after(2 * len as u64, gate).await?;
        }
        if payload.finish() != header.payload_crc {
            return Err(JobError::damaged(segment, offset, "bad payload checksum"));
        }
        Ok(header.record_len() - head)
    }

    async fn start_output(&mut self) -> Result<(), JobError> {
        let (context, parts) = (self.context, &self.context.parts);
        let salt = parts.io.random_u64().map_err(|error| context.io_error("draw a random number", error))?;
        let id = context.allocate_segment_id().await?;
        let identity = OutputIdentity { store_id: parts.store_id, id, salt, first_seq: context.first_seq };
        match Output::create(&*parts.segments.dir, identity).await {
            Ok(output) => {
                self.open = Some(output);
                self.report.bytes_written += SEGMENT_HEADER_LEN as u64;
                Ok(())
            }
            Err(error) => {
                let _ = parts.segments.dir.unlink(&segment_file_name(id));
                Err(JobError::writing(context.path(), error, id))
            }
        }
    }

    /// Seals the open output, if there is one.
    async fn finish_output(&mut self) -> Result<(), JobError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let id = open.id();
        let (context, parts) = (self.context, &self.context.parts);
        let pauses = (!context.throttle.is_unlimited()).then_some(&*parts.io);
        match open.finish(&*parts.segments.dir, parts.reserve.is_held(), pauses).await {
            Ok(finished) => {
                self.report.segments_written += 1;
                self.report.bytes_written += FOOTER_LEN as u64;
                self.finished.push(finished);
                Ok(())
            }
            Err(error) => {
                let _ = parts.segments.dir.unlink(&segment_file_name(id));
                Err(JobError::writing(context.path(), error, id))
            }
        }
    }
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::sync::Arc;

    use crate::io::sim::{SimBackend, SimConfig};
    use crate::{Compaction, Store};

    /// Large values are read outside the scan's window, and must count for the rate all the same. The first store's
    /// segment is more than half live and read whole; the second's is sparse.
    #[test]
    fn reads_of_large_values_count_as_bytes_read() {
        const VALUE: usize = 3 << 20;
        for dead in [1, 3] {
            let world = SimBackend::new(SimConfig::default());
            let report = world.run_until(async {
                let builder = Store::builder("/db").backend(Arc::new(world.clone()));
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
            assert!(report.bytes_read > 2 * VALUE as u64, "each value is read to verify it and to copy it: {report:?}");
        }
    }
}
