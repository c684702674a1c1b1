//! Loads the sealed segments into the keydir, several at a time.
//!
//! The order does not matter: the keydir keeps the record with the highest sequence number of each key, and keeps
//! tombstones until every segment is loaded.

use std::io;
use std::sync::Arc;

use super::checked::CheckedSegment;
use super::hint_load::{HintLoad, HintPart, HintParts, HintResult, open_hint};
use super::jobs::{Job, Jobs};
use super::live_bytes::LiveByteCounter;
use super::loaded::LoadedSegment;
use super::opening::Opening;
use crate::error::Result;
use crate::format::{Binding, record_len};
use crate::io::util::to_usize;
use crate::io::{Dir, IoKind, OpenMode, Priority};
use crate::keydir::Keydir;
use crate::options::Recovery;
use crate::segment::{Facts, Scan, Segment, segment_file_name};
use crate::sync::promise::Promise;

/// One more loader is worth its thread for this many bytes of segments.
const BYTES_PER_LOADER: u64 = 16 << 20;

/// The most keys to reserve memory for in advance. Footers and the lengths of sparse files may be wrong, so an open
/// touches at most a few hundred megabytes for them. The keydir of a larger store grows while it loads.
const RESERVED_KEYS_MAX: u64 = 1 << 26;

/// More loaders than this are limited by memory bandwidth.
const MAX_LOADERS: usize = 8;

/// The most parts of hint files that wait. Beyond that, the loader that reads the file loads parts itself.
const PARTS_WAITING_MAX: usize = 4;

/// The result of loading all sealed segments.
#[derive(Default)]
pub(super) struct LoadSummary {
    pub(super) max_seq: u64,
    /// Undamaged segments without a usable hint.
    pub(super) without_hint: Vec<Arc<Segment>>,
}

impl Opening<'_> {
    /// Loads the sealed segments. A segment without a footer is damaged, because none of them was active.
    pub(super) async fn load_sealed(
        &mut self,
        segments: Vec<CheckedSegment>,
        store_id: &[u8; 16],
        keydir: &Arc<Keydir>,
    ) -> Result<LoadSummary> {
        for segment in segments.iter().filter(|segment| segment.footer.is_none()) {
            self.damaged(segment.id, segment.len, 0, "the segment was not active, yet it has no footer")?;
        }
        keydir.reserve(segments.iter().map(max_keys).sum::<u64>().min(RESERVED_KEYS_MAX));
        let (count, bytes) = (segments.len(), segments.iter().map(|segment| segment.len).sum::<u64>());
        let useful = count.saturating_add(to_usize(bytes / BYTES_PER_LOADER));
        let loader = Loader {
            dir: Arc::clone(&self.dir),
            jobs: Arc::new(Jobs::new(segments)),
            store_id: *store_id,
            keydir: Arc::clone(keydir),
            salvage: self.options.recovery == Recovery::Salvage,
        };
        self.run_loaders(&loader, useful).await;
        let loaded = loader.jobs.take_loaded();
        let mut loaded = loaded.map_err(|(id, error)| self.io_error("load a segment", error, Some(id)))?;
        if loaded.len() < count {
            return Err(self.io_error("load a segment", io::Error::other("a loader stopped early"), None));
        }
        loaded.sort_by_key(|loaded| loaded.segment.id);
        let mut summary = LoadSummary::default();
        for loaded in loaded {
            self.admit(loaded, &mut summary)?;
        }
        Ok(summary)
    }

    /// Runs one loader per processor, but no more than are `useful`.
    async fn run_loaders(&self, loader: &Loader, useful: usize) {
        let threads = match self.io.kind() {
            IoKind::Sim => 2,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_LOADERS),
        };
        let mut helpers = Vec::new();
        for _ in 1..threads.min(useful) {
            let done = Promise::new();
            let (loader, finished) = (loader.clone(), FulfilOnDrop(done.clone()));
            let task = Box::pin(async move {
                let _finished = finished;
                loader.run().await;
            });
            // Without this thread the others load everything, only more slowly.
            if self.io.spawn("ringcask-load", Priority::Foreground, task).is_ok() {
                helpers.push(done);
            }
        }
        loader.run().await;
        for helper in helpers {
            std::future::poll_fn(|cx| helper.poll(cx)).await;
        }
    }

    /// Adds a loaded segment to the segment set and to the report.
    fn admit(&mut self, loaded: LoadedSegment, summary: &mut LoadSummary) -> Result<()> {
        let LoadedSegment { segment, facts, hint_bytes, records_scanned, damage, damage_reason, live_bytes } = loaded;
        self.live_bytes.add(&live_bytes);
        let (id, from_hint) = (segment.id, hint_bytes.is_some());
        self.report.segments += 1;
        self.report.hints_loaded += usize::from(from_hint);
        self.report.segments_scanned += usize::from(!from_hint);
        self.report.records_scanned += records_scanned;
        let is_whole = damage.is_empty() && damage_reason.is_none() && segment.footer.is_some();
        for (stop, len) in damage {
            self.damaged(id, stop.offset, len, stop.error.to_string())?;
        }
        if let Some(reason) = damage_reason {
            self.damaged(id, 0, segment.len, reason)?;
        }
        summary.max_seq = summary.max_seq.max(facts.max_seq);
        let segment = Arc::new(Segment::new(id, segment.salt, segment.first_seq, segment.len, None));
        segment.set_sealed(is_whole.then_some(facts));
        segment.set_hint_bytes(hint_bytes.unwrap_or(0));
        self.segments.insert(Arc::clone(&segment));
        if is_whole && !from_hint {
            summary.without_hint.push(segment);
        }
        Ok(())
    }
}

/// The most keys that the segment can have, by the record count of its footer and by its length.
fn max_keys(segment: &CheckedSegment) -> u64 {
    let records = segment.footer.as_ref().map_or(0, |footer| u64::from(footer.record_count));
    records.min(segment.len / record_len(1, 0))
}

/// Fulfils the promise when dropped, so that the open does not wait for a loader that has panicked.
struct FulfilOnDrop(Promise<()>);

impl Drop for FulfilOnDrop {
    fn drop(&mut self) {
        self.0.fulfil(());
    }
}

/// One of the tasks that load segments.
#[derive(Clone)]
struct Loader {
    dir: Arc<dyn Dir>,
    jobs: Arc<Jobs>,
    store_id: [u8; 16],
    keydir: Arc<Keydir>,
    salvage: bool,
}

impl Loader {
    async fn run(&self) {
        while let Some((job, reading)) = self.jobs.next().await {
            match job {
                Job::Part(part) => self.load_part(part).await,
                Job::Segment(segment) => self.load_segment(*segment).await,
            }
            drop(reading);
        }
    }

    /// Loads a segment from its hint if there is one, otherwise by a scan.
    async fn load_segment(&self, segment: CheckedSegment) {
        let hint = match &segment.footer {
            Some(footer) => open_hint(&*self.dir, &self.store_id, &segment, footer).await,
            None => None,
        };
        let Some((file, header)) = hint else {
            return self.scan(segment, LiveByteCounter::default()).await;
        };
        let load = HintLoad::new(segment, header);
        let mut parts = HintParts::new(file, Arc::clone(&load));
        while let Some(part) = parts.next().await {
            if let Some(part) = self.jobs.add_part(part, PARTS_WAITING_MAX) {
                self.load_part(part).await;
            }
        }
        self.finish_one(&load).await;
    }

    async fn load_part(&self, part: HintPart) {
        part.publish(&self.keydir);
        self.finish_one(&part.load).await;
    }

    /// Records that a part of a hint is finished. The loader that finishes last completes the segment.
    async fn finish_one(&self, load: &HintLoad) {
        match load.finish_one() {
            None => {}
            Some(HintResult::Loaded(loaded)) => self.jobs.finish(loaded),
            Some(HintResult::Unusable(segment, live_bytes)) => self.scan(segment, live_bytes).await,
        }
    }

    async fn scan(&self, segment: CheckedSegment, live_bytes: LiveByteCounter) {
        let id = segment.id;
        match scan_segment(&*self.dir, segment, &self.keydir, self.salvage, live_bytes).await {
            Ok(loaded) => self.jobs.finish(loaded),
            Err(error) => self.jobs.fail(id, error),
        }
    }
}

/// Loads the segment from its records. Under `Salvage` the scan skips damaged ranges.
async fn scan_segment(
    dir: &dyn Dir,
    segment: CheckedSegment,
    keydir: &Keydir,
    salvage: bool,
    mut live_bytes: LiveByteCounter,
) -> io::Result<LoadedSegment> {
    let limit = segment.footer.as_ref().map_or(segment.len, |footer| footer.data_len);
    let binding = Binding::new(segment.salt, u64::from(segment.id));
    let file = dir.open(&segment_file_name(segment.id), OpenMode::Read)?;
    let mut scan = Scan::new(file, binding, &segment.header, limit);
    let mut damage = Vec::new();
    let mut records_scanned = 0;
    while let Some(stop) = scan
        .run(damage.is_empty(), |found| {
            records_scanned += 1;
            live_bytes.publish(keydir, segment.id, &found);
        })
        .await?
    {
        let next = scan.find_next(stop.offset + 8).await?;
        damage.push((stop, next.unwrap_or(limit) - stop.offset));
        match next {
            Some(next) if salvage => scan.resume_at(next),
            _ => break,
        }
    }
    let extent = scan.extent();
    let differs = segment.footer.as_ref().is_some_and(|footer| {
        footer.file_crc != extent.file_crc()
            || footer.record_count != extent.records
            || footer.max_seq != extent.max_seq
    });
    let damage_reason = (damage.is_empty() && differs).then_some("the segment does not match its footer");
    let max_seq = segment.footer.as_ref().map_or(extent.max_seq, |footer| footer.max_seq.max(extent.max_seq));
    let facts = Facts { max_seq, tombstone_bytes: extent.tombstone_bytes };
    Ok(LoadedSegment { segment, facts, hint_bytes: None, records_scanned, damage, damage_reason, live_bytes })
}
