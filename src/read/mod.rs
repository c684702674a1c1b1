//! Reading one record: from the staging buffer, from the block cache or the page cache on the caller's thread, or through the
//! engine.
//!
//! Whatever came from a file, by whichever way, is believed only when the header's checksum (bound to segment and offset), the key, the
//! sequence number and the payload's checksum are right.
//!
//! # What a read of the block cache costs
//!
//! The cache misses of the look-up and of the block, and one allocation: the record is verified where it lies, and its
//! value alone is copied. What it finds wrong there it does not report: it forgets the block and reads the file.
//!
//! # What a read of the page cache costs
//!
//! The system call, the cache misses of the look-up, one allocation, and as few writes to memory that other readers
//! write too as can be, for each of them takes a cache line from another core. So no handle on the segment is taken, and
//! counters come in stripes. While it finds next to nothing, most gets leave it out ([`warmth`]).

mod bypass;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Counted by readers, where a get counts once, and how warm they have found the page cache.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    from_staging: AtomicU64,
    from_block_cache: AtomicU64,
    from_cache: AtomicU64,
    from_disk: AtomicU64,
    /// Those that found nothing, or failed before it was clear where to read.
    from_nowhere: AtomicU64,
    warmth: ProbeBypass,
}

/// The counters of all threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadCounts {
    pub(crate) gets: u64,
    pub(crate) from_staging: u64,
    pub(crate) from_block_cache: u64,
    pub(crate) from_cache: u64,
    pub(crate) from_disk: u64,
}

impl ReadCounts {
    pub(crate) fn of(counters: &Sharded<ReadCounters>) -> Self {
        let mut counts = Self::default();
        for stripe in counters.iter() {
            let from_staging = stripe.from_staging.load(Ordering::Relaxed);
            let from_block_cache = stripe.from_block_cache.load(Ordering::Relaxed);
            let from_cache = stripe.from_cache.load(Ordering::Relaxed);
            let from_disk = stripe.from_disk.load(Ordering::Relaxed);
            let from_nowhere = stripe.from_nowhere.load(Ordering::Relaxed);
            counts.gets += from_staging + from_block_cache + from_cache + from_disk + from_nowhere;
            counts.from_staging += from_staging;
            counts.from_block_cache += from_block_cache;
            counts.from_cache += from_cache;
            counts.from_disk += from_disk;
        }
        counts
    }
}

/// A value, or what it takes to get it.
pub(crate) enum Lookup {
    Ready(Option<Bytes>),
    Disk(DiskRead),
}

/// A read that has to wait.
pub(crate) struct DiskRead {
    place: Place,
    file: Arc<dyn File>,
    buf: Vec<u8>,
    filled: usize,
}

/// Where reads look.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) io: &'a dyn Io,
    pub(crate) keydir: &'a Keydir,
    pub(crate) registry: &'a SegmentSet,
    pub(crate) log: &'a Log,
    pub(crate) cache: Option<&'a BlockCache>,
    pub(crate) counters: &'a Sharded<ReadCounters>,
}

/// A record, and what its header's checksum is bound to.
#[derive(Clone, Copy)]
struct Place {
    entry: Entry,
    binding: Binding,
}

/// What a reader needs of a segment to read its file.
struct Seen {
    binding: Binding,
    written_end: u64,
    file: FileSeen,
}

enum FileSeen {
    Open(Arc<dyn File>),
    /// To be opened. The handle keeps its name from being removed until then.
    Closed(Arc<Segment>),
}

impl Seen {
    fn of(registry: &SegmentSet, segment: &Arc<Segment>) -> Self {
        Self {
            binding: segment.binding,
            written_end: segment.written_end(),
            file: match registry.open_file(segment) {
                Some(file) => FileSeen::Open(file),
                None => FileSeen::Closed(Arc::clone(segment)),
            },
        }
    }
}

/// A record that should be in the cache.
struct Cached<'a> {
    cache: &'a BlockCache,
    framed: Framed,
    binding: Binding,
}

impl<'a> Cached<'a> {
    fn of(cache: Option<&'a BlockCache>, segment: &Segment, entry: Entry, key: &[u8]) -> Option<Self> {
        let (cache, offset, len) = (cache?, entry.location.offset(), record_len(entry, key));
        let span = cache.span(segment.id, offset, len, segment.written_end())?;
        let framed = cache.find(span, &segment.slots)?;
        Some(Self { cache, framed, binding: segment.binding })
    }

    /// The value. `None` if the record is not there any more, or not as it should be: its file will tell.
    fn value(&self, key: &[u8], entry: Entry) -> Option<Bytes> {
        let Self { cache, framed, binding } = self;
        let place = Place { entry, binding: *binding };
        let value = if framed.is_in_one_block() {
            let value_of = |record: &[u8]| Bytes::copy_from_slice(&record[RECORD_HEADER_LEN + key.len()..]);
            cache.read(framed, |record| check(record, key, place).map(|()| value_of(record)))?
        } else {
            verify(cache.copy(framed)?, key, place)
        };
        value.inspect_err(|_| cache.forget(framed)).ok()
    }
}

/// Bytes of a record without its padding.
fn record_len(entry: Entry, key: &[u8]) -> usize {
    RECORD_HEADER_LEN + key.len() + entry.location.value_len as usize
}

/// Looks `key` up and reads what can be read without waiting.
pub(crate) fn look_up(sources: Sources<'_>, key: &[u8]) -> Result<Lookup> {
    let Sources { keydir, registry, cache, counters, .. } = sources;
    let hash = keydir.hash(key);
    if let Some(cache) = cache {
        cache.ask_for_hint(hash);
    }
    let see = |segment: &Arc<Segment>| Seen::of(registry, segment);
    let look = |entry, segment: &Arc<Segment>| Cached::of(cache, segment, entry, key).ok_or_else(|| see(segment));
    let found = find(sources, hash, key, look);
    let (entry, seen) = match found? {
        None => return Ok(Lookup::Ready(None)),
        Some((entry, Err(seen))) => (entry, seen),
        Some((entry, Ok(cached))) => {
            if let Some(value) = cached.value(key, entry) {
                count(&counters.mine().from_block_cache);
                cached.cache.count_hit();
                cached.cache.note(hash, &cached.framed);
                return Ok(Lookup::Ready(Some(value)));
            }
            // By now its segment may have been retired.
            match find(sources, hash, key, |_, segment| see(segment))? {
                Some(found) => found,
                None => return Ok(Lookup::Ready(None)),
            }
        }
    };
    read_log(sources, key, entry, seen)
}

/// The entry of `key`, and what `look` makes of it and its segment. Counts a get that ends here.
fn find<T>(
    sources: Sources<'_>,
    hash: u64,
    key: &[u8],
    look: impl Fn(Entry, &Arc<Segment>) -> T,
) -> Result<Option<(Entry, T)>> {
    let Sources { keydir, registry, cache, counters, .. } = sources;
    let ask_for_record = || {
        if let Some(cache) = cache {
            cache.ask_for_record(hash);
        }
    };
    let find = |entry: Entry| registry.with(entry.location.segment, |segment| look(entry, segment));
    match follow(|| keydir.get_meanwhile(hash, key, ask_for_record), find) {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) => {
            count(&counters.mine().from_nowhere);
            Ok(None)
        }
        Err(lost) => {
            count(&counters.mine().from_nowhere);
            let error = Error::new(ErrorKind::Corrupt, "get: the record's segment is gone");
            Err(at(error, lost).with_path(&registry.path))
        }
    }
}

/// Reads a record from the staging buffers or from its file, as far as that needs no waiting.
fn read_log(sources: Sources<'_>, key: &[u8], entry: Entry, seen: Seen) -> Result<Lookup> {
    let Sources { registry, log, cache, .. } = sources;
    let counters = sources.counters.mine();
    let (location, len) = (entry.location, record_len(entry, key));
    if location.offset() + len as u64 > seen.written_end {
        let value_offset = location.offset() + (RECORD_HEADER_LEN + key.len()) as u64;
        if let Some(value) = log.read_staged(location.segment, value_offset, location.value_len as usize) {
            count(&counters.from_staging);
            return Ok(Lookup::Ready(Some(value)));
        }
        // It has just been written: the file has it.
    }
    let opened = file_and_buffer(registry, seen.file, len);
    let (file, mut buf) = opened.map_err(|error| {
        count(&counters.from_nowhere);
        at(error, entry)
    })?;
    let place = Place { entry, binding: seen.binding };
    let filled = if looks(sources, &counters.warmth, location) {
        // Whatever the reason of an error was, the engine's read will meet it again, or not.
        let filled = file.read_nowait(&mut buf, location.offset()).unwrap_or(0);
        counters.warmth.observe(filled == len);
        filled
    } else {
        0
    };
    if filled < len {
        count(&counters.from_disk);
        read_ahead(registry, &*file, location, len as u64);
        return Ok(Lookup::Disk(DiskRead { place, file, buf, filled }));
    }
    count(&counters.from_cache);
    let value = verify(buf, key, place)?;
    if let Some(cache) = cache
        && let Some(span) = cache.span(location.segment, location.offset(), len, seen.written_end)
        && cache.admits()
    {
        fill(cache, registry, &*file, span);
    }
    Ok(Lookup::Ready(Some(value)))
}

/// Whether a get looks into the page cache before it asks the engine. Always where the block cache learns from what is found,
/// where the engine is slow to say what the page cache has, and for what may have been read ahead.
fn looks(sources: Sources<'_>, warmth: &ProbeBypass, location: Location) -> bool {
    let Sources { io, registry, cache, .. } = sources;
    warmth.looks()
        || cache.is_some()
        || !io.cached_reads_overtake()
        || registry.with(location.segment, |segment| segment.sequential.expects(location.offset())) == Some(true)
}

/// Who gets what lies in order is spared most waits.
fn read_ahead(registry: &SegmentSet, file: &dyn File, location: Location, len: u64) {
    let ahead = registry.with(location.segment, |segment| segment.sequential.missed(location.offset(), len));
    if let Some(Some(ahead)) = ahead {
        file.start_reading(location.offset(), ahead);
    }
}

/// Brings what the cache lacks of `span`, as far as the page cache has it.
fn fill(cache: &BlockCache, registry: &SegmentSet, file: &dyn File, span: Span) {
    for block in span.blocks() {
        let is_wanted = registry.with(block.segment, |segment| {
            let Segment { slots, .. } = &**segment;
            !cache.holds(block, slots) && cache.make_slots(slots, block.number, segment.written_end())
        });
        if is_wanted != Some(true) {
            continue;
        }
        let read = |bytes: &mut [u8], offset| file.read_nowait(bytes, offset).unwrap_or(0);
        let Some(filled) = cache.fill(block, read) else { continue };
        if let Some(evicted) = filled.evicted {
            registry.with(evicted.segment, |segment| segment.slots.clear(evicted.number, filled.frame));
        }
        registry.with(block.segment, |segment| segment.slots.set(block.number, filled.frame));
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Follows a key's entry to the segment it names. That may be retired between the two looks, any number of times; but
/// the keydir is changed before, so it then leads elsewhere. Where it leads to the same place again, that place is lost:
/// the error.
fn follow<T>(
    look: impl Fn() -> Option<Entry>,
    find: impl Fn(Entry) -> Option<T>,
) -> std::result::Result<Option<(Entry, T)>, Entry> {
    let mut missed = None;
    while let Some(entry) = look() {
        if let Some(found) = find(entry) {
            return Ok(Some((entry, found)));
        }
        if missed.replace(entry) == Some(entry) || seeded_bug::is(SeededBug::NotLookedAgain) {
            return Err(entry);
        }
    }
    Ok(None)
}

fn file_and_buffer(registry: &SegmentSet, file: FileSeen, len: usize) -> Result<(Arc<dyn File>, Vec<u8>)> {
    let file = match file {
        FileSeen::Open(file) => file,
        FileSeen::Closed(segment) => {
            registry.file(&segment).map_err(|error| Error::io("get: open the segment", error))?
        }
    };
    let mut buf = Vec::new();
    buf.try_reserve_exact(len).map_err(|_| Error::io("get", io::ErrorKind::OutOfMemory.into()))?;
    buf.resize(len, 0);
    Ok((file, buf))
}

impl DiskRead {
    /// Reads the rest and checks it. One failed read is tried once more; damage is not.
    pub(crate) async fn finish(self, key: Key) -> Result<Bytes> {
        let Self { place, file, buf, filled } = self;
        let (len, offset) = (buf.len(), place.entry.location.offset());
        let mut result = util::read_full(&*file, buf, filled, offset + filled as u64).await;
        if result.is_err() {
            result = util::read_full(&*file, vec![0; len], 0, offset).await;
        }
        let (buf, filled) = result.map_err(|error| at(Error::io("get", error), place.entry))?;
        if filled < len {
            return Err(at(Error::new(ErrorKind::Corrupt, "get: the segment ends within the record"), place.entry));
        }
        verify(buf, key.as_slice(), place)
    }
}

/// The value in `buf`, which begins at the record's header and ends with its value.
fn verify(buf: Vec<u8>, key: &[u8], place: Place) -> Result<Bytes> {
    check(&buf, key, place)?;
    let mut value = Bytes::from(buf);
    value.advance(RECORD_HEADER_LEN + key.len());
    Ok(value)
}

/// Whether `record` is, from its header to the end of its value, the one that the keydir has under `key`.
fn check(record: &[u8], key: &[u8], place: Place) -> Result<()> {
    let Place { entry, binding } = place;
    let corrupt = |what: String| at(Error::new(ErrorKind::Corrupt, format!("get: {what}")), entry);
    let header = RecordHeader::decode(record, &binding, entry.location.offset());
    let header = header.map_err(|error| corrupt(error.to_string()))?;
    if header.kind != RecordKind::Put || header.seq != entry.seq || header.value_len != entry.location.value_len {
        return Err(corrupt("another record lies there".into()));
    }
    let payload = &record[RECORD_HEADER_LEN..];
    let is_its_key = usize::from(header.key_len) == key.len() && payload.starts_with(key);
    if !is_its_key && !seeded_bug::is(SeededBug::KeyNotCompared) {
        return Err(corrupt("a record of another key lies there".into()));
    }
    // Key and value in one piece: long stretches are much quicker than short ones.
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
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Store;
    use crate::io::sim::{SimConfig, SimWorld};

    /// Follows a key whose entry, look after look, is in the segments of `script`; those in `there` exist.
    fn follow_script(script: &[Option<u32>], there: &[u32]) -> std::result::Result<Option<u32>, u32> {
        let looks = RefCell::new(script.iter().copied());
        let entry = |segment| Entry { seq: 7, location: Location::new(segment, 4096, 10).unwrap() };
        let look = || looks.borrow_mut().next().expect("no look too many").map(entry);
        let followed = follow(look, |entry| there.contains(&entry.location.segment).then_some(()));
        assert_eq!(looks.borrow_mut().next(), None, "every look of {script:?} was needed");
        let segment = |entry: Entry| entry.location.segment;
        followed.map(|found| found.map(|(entry, ())| segment(entry))).map_err(segment)
    }

    #[test]
    fn a_record_is_followed_through_any_number_of_retired_segments() {
        assert_eq!(follow_script(&[None], &[]), Ok(None));
        assert_eq!(follow_script(&[Some(1)], &[1]), Ok(Some(1)));
        assert_eq!(follow_script(&[Some(1), Some(2), Some(3), Some(4), Some(5)], &[5]), Ok(Some(5)));
        assert_eq!(follow_script(&[Some(1), Some(2), None], &[3]), Ok(None), "deleted meanwhile");
        assert_eq!(follow_script(&[Some(1), Some(2), Some(2)], &[3]), Err(2), "the same place twice is no retirement");
    }

    /// A guess that is never made, or wrong, changes no result, only the time.
    #[test]
    fn a_get_from_the_cache_leaves_a_hint_of_where_it_found_its_record() {
        let world = SimWorld::new(SimConfig::default());
        world.run_until(async {
            let store = Store::builder("/db").world(Arc::new(world.clone())).cache_bytes(4 << 20).open().await.unwrap();
            let keys: Vec<[u8; 4]> = (0..500_u32).map(u32::to_le_bytes).collect();
            for key in &keys {
                store.put(key, [7; 200]).await.unwrap();
            }
            store.sync().await.unwrap();
            let core = store.core();
            let cache = core.cache.as_ref().unwrap();
            let hint = |key: &[u8]| cache.hint(core.keydir.hash(key));
            assert!(keys.iter().all(|key| hint(key).is_none()), "nothing was read from the cache");
            let mut hits: Vec<&[u8; 4]> = Vec::new();
            for _ in 0..200 {
                hits.clear();
                for key in &keys {
                    let before = store.stats().gets_from_block_cache;
                    assert_eq!(store.get(key).await.unwrap().unwrap(), [7; 200][..]);
                    hits.extend((store.stats().gets_from_block_cache > before).then_some(key));
                }
            }
            assert!(hits.len() > 400, "{} of 500 from the cache", hits.len());
            // Keys of one word share a hint, which is then that of the one that was read last.
            let line = |place: u64| place % (16 << 10) / 64;
            let is_right = |key: &[u8]| {
                let offset = core.keydir.get(key).unwrap().location.offset();
                hint(key).is_some_and(|place| line(place as u64) == line(offset))
            };
            let right = hits.iter().filter(|key| is_right(&key[..])).count();
            println!("{right} hints of {} are right", hits.len());
            assert!(right * 10 > hits.len() * 9, "{right} of {}", hits.len());
            store.close().await.unwrap();
        });
    }
    /// By the gets that the page cache has answered on the caller's thread, of those that looked or of all.
    #[test]
    fn gets_look_into_the_page_cache_while_it_has_something() {
        const GETS: u32 = 4000;
        for (missing, answered) in [(0, 4000..=4000), (60, 1400..=1800), (90, 10..=150), (100, 0..=0)] {
            let world = SimWorld::new(SimConfig { nowait_miss_percent: missing, ..SimConfig::default() });
            let stats = world.run_until(async {
                let store = Store::builder("/db").world(Arc::new(world.clone())).open().await.unwrap();
                // The first and the last are too far apart for one to be what may have been read ahead for the other.
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
            let from_cache = stats.gets_from_cache;
            println!(
                "{missing} % missing: {from_cache} of {GETS} from the page cache, {} waited",
                stats.gets_from_disk
            );
            assert!(answered.contains(&from_cache), "{missing} % missing: {from_cache} of {GETS}");
            assert_eq!(from_cache + stats.gets_from_disk, u64::from(GETS), "all were read");
        }
    }
}
