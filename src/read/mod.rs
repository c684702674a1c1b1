//! Reading one record: the keydir gives its location, and [`look_up`] tries the places that may hold it, from the
//! nearest to the farthest.
//!
//! 1. A *staging buffer*, if the record is not yet written to its file.
//! 2. The *block cache*, if the store has one.
//! 3. The *page cache*, by an `RWF_NOWAIT` read on the caller's thread ([`bypass`]).
//! 4. The *disk*, by a read through the engine, which the caller awaits ([`DiskRead`]).
//!
//! A record from a file, by any of these ways, is returned only if it passes [`check`]: the header's checksum (which is
//! bound to segment and offset), the key, the sequence number and the payload's checksum must match.
//!
//! # Cost of a block-cache hit
//!
//! The CPU cache misses of the lookup and of the block, and one allocation: the record is verified in place, and only
//! its value is copied. If the check fails there, the get does not report an error. It drops the block and reads the
//! file.
//!
//! # Cost of a page-cache hit
//!
//! The system call, the CPU cache misses of the lookup, and one allocation. The path avoids writes to memory that
//! other readers also write, because each such write takes a cache line from another core. So it takes no reference to
//! the segment, and counters are sharded.

mod bypass;
mod counters;

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::cache::{BlockCache, Framed, Span};
use crate::commit::Log;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Binding, PayloadCrc, RECORD_HEADER_LEN, RecordHeader, RecordKind};
use crate::io::{File, Io, util};
use crate::keydir::{Entry, Key, Keydir, Location};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{Segment, SegmentSet};
use crate::sync::sharded::Sharded;
use bypass::ProbeBypass;
use counters::count;
pub(crate) use counters::{ReadCounters, ReadCounts};

/// A value, or the disk read that it takes to get it.
pub(crate) enum Lookup {
    Ready(Option<Bytes>),
    Disk(DiskRead),
}

/// The parts of a store that reads use.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) io: &'a dyn Io,
    pub(crate) keydir: &'a Keydir,
    pub(crate) segments: &'a SegmentSet,
    pub(crate) log: &'a Log,
    pub(crate) cache: Option<&'a BlockCache>,
    pub(crate) counters: &'a Sharded<ReadCounters>,
}

/// Looks `key` up, and reads its value if that needs no waiting.
pub(crate) fn look_up(sources: Sources<'_>, key: &[u8]) -> Result<Lookup> {
    let mut cache = sources.cache;
    loop {
        let Some((entry, source)) = locate(sources, cache, key)? else { return Ok(Lookup::Ready(None)) };
        let segment = match source {
            RecordSource::Staging(segment) => {
                if let Some(value) = read_staged(sources, key, entry) {
                    return Ok(Lookup::Ready(Some(value)));
                }
                // The record was written to its file since `locate` read the written end.
                segment
            }
            RecordSource::BlockCache(cached) => {
                if let Some(value) = read_cached(sources, key, entry, &cached) {
                    return Ok(Lookup::Ready(Some(value)));
                }
                // Evicted or damaged. The segment may have become obsolete since, so this starts over, without the block
                // cache.
                cache = None;
                continue;
            }
            RecordSource::File(segment) => segment,
        };
        return read_file(sources, key, entry, segment);
    }
}

// ---- the location ---------------------------------------------------------------------------------------------------

/// The place that should have a record.
enum RecordSource<'a> {
    /// The record ends beyond the written end of its segment.
    Staging(SegmentView),
    BlockCache(CachedRecord<'a>),
    File(SegmentView),
}

/// What a reader needs of a segment to read its file.
struct SegmentView {
    binding: Binding,
    written_end: u64,
    file: ViewedFile,
}

enum ViewedFile {
    Open(Arc<dyn File>),
    /// Yet to be opened. The reference keeps the file from being unlinked until then.
    Closed(Arc<Segment>),
}

/// A record that should be in the block cache.
struct CachedRecord<'a> {
    cache: &'a BlockCache,
    framed: Framed,
    binding: Binding,
}

impl<'a> RecordSource<'a> {
    #[inline]
    fn of(
        segments: &SegmentSet,
        cache: Option<&'a BlockCache>,
        segment: &Arc<Segment>,
        entry: Entry,
        key: &[u8],
    ) -> Self {
        let (offset, len) = (entry.location.offset(), record_len(entry, key));
        let (binding, written_end) = (segment.binding, segment.written_end());
        let view = || SegmentView {
            binding,
            written_end,
            file: match segments.open_file(segment) {
                Some(file) => ViewedFile::Open(file),
                None => ViewedFile::Closed(Arc::clone(segment)),
            },
        };
        if offset + len as u64 > written_end {
            return Self::Staging(view());
        }
        if let Some(cache) = cache
            && let Some(span) = cache.span(segment.id, offset, len, written_end)
            && let Some(framed) = cache.find(span, &segment.slots)
        {
            return Self::BlockCache(CachedRecord { cache, framed, binding });
        }
        Self::File(view())
    }
}

/// The keydir entry of `key`, and the place that should have its record. Counts a get that ends here.
fn locate<'a>(
    sources: Sources<'a>,
    cache: Option<&'a BlockCache>,
    key: &[u8],
) -> Result<Option<(Entry, RecordSource<'a>)>> {
    let Sources { keydir, segments, counters, .. } = sources;
    let find = |entry: Entry| {
        segments.with(entry.location.segment, |segment| RecordSource::of(segments, cache, segment, entry, key))
    };
    match follow(|| keydir.get(key), find) {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) => {
            count(&counters.mine().from_nowhere);
            Ok(None)
        }
        Err(lost) => {
            count(&counters.mine().from_nowhere);
            let error = Error::new(ErrorKind::Corrupt, "get: the record's segment is missing");
            Err(at(error, lost).with_key(key).with_path(&segments.path))
        }
    }
}

/// Follows a key's entry to the segment it names. The segment may become obsolete between the two lookups, any number of
/// times. But the keydir is changed before a segment becomes obsolete, so the next lookup gives another place. If it gives
/// the same place again, the segment is lost: the error is that entry.
fn follow<T>(
    lookup: impl Fn() -> Option<Entry>,
    find: impl Fn(Entry) -> Option<T>,
) -> std::result::Result<Option<(Entry, T)>, Entry> {
    let mut missed = None;
    while let Some(entry) = lookup() {
        if let Some(found) = find(entry) {
            return Ok(Some((entry, found)));
        }
        if missed.replace(entry) == Some(entry) || seeded_bug::is(SeededBug::NotLookedAgain) {
            return Err(entry);
        }
    }
    Ok(None)
}

/// Bytes of a record without its padding.
fn record_len(entry: Entry, key: &[u8]) -> usize {
    RECORD_HEADER_LEN + key.len() + entry.location.value_len as usize
}

// ---- 1. the staging buffer ------------------------------------------------------------------------------------------

/// The value, if the record is still in a staging buffer.
fn read_staged(sources: Sources<'_>, key: &[u8], entry: Entry) -> Option<Bytes> {
    let location = entry.location;
    let value_offset = location.offset() + (RECORD_HEADER_LEN + key.len()) as u64;
    let value = sources.log.read_staged(location.segment, value_offset, location.value_len as usize)?;
    count(&sources.counters.mine().from_staging);
    Some(value)
}

// ---- 2. the block cache ---------------------------------------------------------------------------------------------

/// The value, if the block cache still has the record, undamaged.
fn read_cached(
    sources: Sources<'_>,
    key: &[u8],
    entry: Entry,
    CachedRecord { cache, framed, binding }: &CachedRecord<'_>,
) -> Option<Bytes> {
    let place = RecordPlace { entry, binding: *binding };
    let value = if framed.is_in_one_block() {
        let value_of = |record: &[u8]| Bytes::copy_from_slice(&record[RECORD_HEADER_LEN + key.len()..]);
        cache.read(framed, |record| check(record, key, place).map(|()| value_of(record)))?
    } else {
        verify(cache.copy(framed)?, key, place)
    };
    let value = value.inspect_err(|_| cache.forget(framed)).ok()?;
    count(&sources.counters.mine().from_block_cache);
    cache.count_hit();
    Some(value)
}

/// Fills the blocks of `span` that the block cache lacks, as far as the page cache has them.
fn fill_block_cache(cache: &BlockCache, segments: &SegmentSet, file: &dyn File, span: Span) {
    for block in span.blocks() {
        let is_wanted = segments.with(block.segment, |segment| {
            let Segment { slots, .. } = &**segment;
            !cache.holds(block, slots) && cache.make_slots(slots, block.number, segment.written_end())
        });
        if is_wanted != Some(true) {
            continue;
        }
        let read = |bytes: &mut [u8], offset| file.read_nowait(bytes, offset).unwrap_or(0);
        let Some(filled) = cache.fill(block, read) else { continue };
        if let Some(evicted) = filled.evicted {
            segments.with(evicted.segment, |segment| segment.slots.clear(evicted.number, filled.frame));
        }
        segments.with(block.segment, |segment| segment.slots.set(block.number, filled.frame));
    }
}

// ---- 3. the page cache ----------------------------------------------------------------------------------------------

/// Reads a record from its file: from the page cache at once, or as a [`DiskRead`].
fn read_file(sources: Sources<'_>, key: &[u8], entry: Entry, segment: SegmentView) -> Result<Lookup> {
    let Sources { segments, cache, .. } = sources;
    let counters = sources.counters.mine();
    let (location, len) = (entry.location, record_len(entry, key));
    let opened = file_and_buffer(segments, segment.file, len);
    let (file, mut buf) = opened.map_err(|error| {
        count(&counters.from_nowhere);
        at(error, entry)
    })?;
    let place = RecordPlace { entry, binding: segment.binding };
    let mut filled = 0;
    if should_probe(sources, &counters.bypass, location) {
        // An error counts as a miss: the engine's read will meet its cause again, if it lasts.
        filled = file.read_nowait(&mut buf, location.offset()).unwrap_or(0);
        counters.bypass.observe(filled == len);
    }
    if filled < len {
        count(&counters.from_disk);
        read_ahead(segments, &*file, location, len as u64);
        return Ok(Lookup::Disk(DiskRead { place, file, buf, filled }));
    }
    count(&counters.from_page_cache);
    let value = verify(buf, key, place)?;
    if let Some(cache) = cache
        && let Some(span) = cache.span(location.segment, location.offset(), len, segment.written_end)
        && cache.admits()
    {
        fill_block_cache(cache, segments, &*file, span);
    }
    Ok(Lookup::Ready(Some(value)))
}

fn file_and_buffer(segments: &SegmentSet, file: ViewedFile, len: usize) -> Result<(Arc<dyn File>, Vec<u8>)> {
    let file = match file {
        ViewedFile::Open(file) => file,
        ViewedFile::Closed(segment) => {
            segments.file(&segment).map_err(|error| Error::io("get: open the segment", error))?
        }
    };
    let mut buf = Vec::new();
    buf.try_reserve_exact(len).map_err(|_| Error::io("get", io::ErrorKind::OutOfMemory.into()))?;
    buf.resize(len, 0);
    Ok((file, buf))
}

/// Whether a get probes the page cache before it asks the engine. It always does if a block cache learns from the hits,
/// if the engine answers cached reads slowly, and for records that may have been read ahead.
fn should_probe(sources: Sources<'_>, bypass: &ProbeBypass, location: Location) -> bool {
    let Sources { io, segments, cache, .. } = sources;
    bypass.should_probe()
        || cache.is_some()
        || !io.cached_reads_overtake()
        || segments.with(location.segment, |segment| segment.sequential.expects(location.offset())) == Some(true)
}

// ---- 4. the disk ----------------------------------------------------------------------------------------------------

/// A read that has to wait for the engine.
pub(crate) struct DiskRead {
    place: RecordPlace,
    file: Arc<dyn File>,
    buf: Vec<u8>,
    filled: usize,
}

/// Starts read-ahead if this miss continues the previous one, so that sequential gets rarely wait.
fn read_ahead(segments: &SegmentSet, file: &dyn File, location: Location, len: u64) {
    let ahead = segments.with(location.segment, |segment| segment.sequential.missed(location.offset(), len));
    if let Some(Some(ahead)) = ahead {
        file.start_reading(location.offset(), ahead);
    }
}

impl DiskRead {
    /// Reads the rest of the record and verifies it. Retries a failed read once, but never a failed check.
    pub(crate) async fn finish(self, key: Key) -> Result<Bytes> {
        let Self { place, file, buf, filled } = self;
        let (len, offset) = (buf.len(), place.entry.location.offset());
        let mut result = util::read_full(&*file, buf, filled, offset + filled as u64).await;
        if result.is_err() {
            result = util::read_full(&*file, vec![0; len], 0, offset).await;
        }
        let (buf, filled) = result.map_err(|error| at(Error::io("get", error), place.entry))?;
        if filled < len {
            return Err(at(Error::new(ErrorKind::Corrupt, "get: the segment ends within the record"), place.entry)
                .with_key(key.as_slice()));
        }
        verify(buf, key.as_slice(), place)
    }
}

// ---- verification ---------------------------------------------------------------------------------------------------

/// A record, and what its header's checksum is bound to.
#[derive(Clone, Copy)]
struct RecordPlace {
    entry: Entry,
    binding: Binding,
}

/// The value of the record in `buf`, which begins with the record's header and ends with its value.
fn verify(buf: Vec<u8>, key: &[u8], place: RecordPlace) -> Result<Bytes> {
    check(&buf, key, place)?;
    let mut value = Bytes::from(buf);
    value.advance(RECORD_HEADER_LEN + key.len());
    Ok(value)
}

/// Checks that `record`, from its header to the end of its value, is the one that the keydir names for `key`.
fn check(record: &[u8], key: &[u8], place: RecordPlace) -> Result<()> {
    let RecordPlace { entry, binding } = place;
    let corrupt = |what: String| at(Error::new(ErrorKind::Corrupt, format!("get: {what}")), entry).with_key(key);
    let header = RecordHeader::decode(record, &binding, entry.location.offset());
    let header = header.map_err(|error| corrupt(error.to_string()))?;
    if header.kind != RecordKind::Put || header.seq != entry.seq || header.value_len != entry.location.value_len {
        return Err(corrupt("the record at this offset is not the one in the keydir".into()));
    }
    let payload = &record[RECORD_HEADER_LEN..];
    let is_its_key = usize::from(header.key_len) == key.len() && payload.starts_with(key);
    if !is_its_key && !seeded_bug::is(SeededBug::KeyNotCompared) {
        return Err(corrupt("the record at this offset has another key".into()));
    }
    // Key and value in one call: the checksum is much faster over one long slice than over two short ones.
    let mut crc = PayloadCrc::new();
    crc.update(payload);
    if crc.finish() != header.payload_crc {
        return Err(corrupt("bad payload checksum".into()));
    }
    Ok(())
}

fn at(error: Error, entry: Entry) -> Error {
    error.at_segment(u64::from(entry.location.segment)).at_offset(entry.location.offset())
}

#[cfg(test)]
#[cfg(feature = "__testing")]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Store;
    use crate::io::sim::{SimBackend, SimConfig};

    /// Follows a key whose entry names the segments of `script`, one per lookup. The segments in `there` exist.
    fn follow_script(script: &[Option<u32>], there: &[u32]) -> std::result::Result<Option<u32>, u32> {
        let lookups = RefCell::new(script.iter().copied());
        let entry = |segment| Entry { seq: 7, location: Location::new(segment, 4096, 10).unwrap() };
        let lookup = || lookups.borrow_mut().next().expect("one lookup too many").map(entry);
        let followed = follow(lookup, |entry| there.contains(&entry.location.segment).then_some(()));
        assert_eq!(lookups.borrow_mut().next(), None, "every lookup of {script:?} was needed");
        let segment = |entry: Entry| entry.location.segment;
        followed.map(|found| found.map(|(entry, ())| segment(entry))).map_err(segment)
    }

    #[test]
    fn lookups_follow_a_record_through_any_number_of_obsolete_segments() {
        assert_eq!(follow_script(&[None], &[]), Ok(None));
        assert_eq!(follow_script(&[Some(1)], &[1]), Ok(Some(1)));
        assert_eq!(follow_script(&[Some(1), Some(2), Some(3), Some(4), Some(5)], &[5]), Ok(Some(5)));
        assert_eq!(follow_script(&[Some(1), Some(2), None], &[3]), Ok(None), "deleted between lookups");
        assert_eq!(follow_script(&[Some(1), Some(2), Some(2)], &[3]), Err(2), "the same place twice is an error");
    }

    /// Counts the gets that the page cache answered on the caller's thread.
    #[test]
    fn gets_probe_the_page_cache_while_it_has_hits() {
        const GETS: u32 = 4000;
        for (missing, answered) in [(0, 4000..=4000), (60, 1400..=1800), (90, 10..=150), (100, 0..=0)] {
            let world = SimBackend::new(SimConfig { nowait_miss_percent: missing, ..SimConfig::default() });
            let stats = world.run_until(async {
                let store = Store::builder("/db").backend(Arc::new(world.clone())).open().await.unwrap();
                // The first and the last are too far apart for read-ahead of one to cover the other.
                for (key, len) in [(0_u8, 200), (1, 2 << 20), (2, 200)] {
                    store.put([key], vec![key; len]).await.unwrap();
                }
                for get in 0..GETS {
                    let key = if get % 2 == 0 { 0_u8 } else { 2 };
                    assert_eq!(store.get([key]).await.unwrap().unwrap(), [key; 200][..]);
                }
                let stats = store.stats();
                store.close().await.unwrap();
                stats
            });
            let from_cache = stats.gets_from_page_cache;
            println!(
                "{missing} % missing: {from_cache} of {GETS} from the page cache, {} waited",
                stats.gets_from_disk
            );
            assert!(answered.contains(&from_cache), "{missing} % missing: {from_cache} of {GETS}");
            assert_eq!(from_cache + stats.gets_from_disk, u64::from(GETS), "all were read");
        }
    }
}
