//! Reading one record: from the staging buffer, from the page cache on the caller's thread, or through the engine.
//!
//! Whatever came from a file is believed only when the header's checksum (bound to segment and offset), the key, the
//! sequence number and the payload's checksum are right.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};

use crate::commit::Log;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{RECORD_HEADER_LEN, RecordHeader, RecordKind, payload_crc};
use crate::io::{File, util};
use crate::keydir::{Entry, Keydir};
use crate::segment::{Registry, Segment};

/// Counted by readers.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    pub(crate) gets: AtomicU64,
    pub(crate) from_staging: AtomicU64,
    pub(crate) from_cache: AtomicU64,
    pub(crate) from_disk: AtomicU64,
}

/// A value, or what it takes to get it.
pub(crate) enum Lookup {
    Ready(Option<Bytes>),
    Disk(DiskRead),
}

/// A read that has to wait.
pub(crate) struct DiskRead {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    entry: Entry,
    buf: Vec<u8>,
    filled: usize,
    key_len: usize,
}

/// Where reads look.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) keydir: &'a Keydir,
    pub(crate) registry: &'a Registry,
    pub(crate) log: &'a Log,
    pub(crate) counters: &'a ReadCounters,
}

/// Looks `key` up and reads what can be read without waiting.
pub(crate) fn look_up(sources: Sources<'_>, key: &[u8]) -> Result<Lookup> {
    sources.counters.gets.fetch_add(1, Ordering::Relaxed);
    let mut found = None;
    // A segment may be retired between the two look-ups; the second one then leads to where the record went.
    for _ in 0..2 {
        let Some(entry) = sources.keydir.get(key) else { return Ok(Lookup::Ready(None)) };
        found = sources.registry.get(entry.location.segment).map(|segment| (entry, segment));
        if found.is_some() {
            break;
        }
    }
    let Some((entry, segment)) = found else {
        return Err(
            Error::new(ErrorKind::Corrupt, "get: the record's segment is gone").with_path(&sources.registry.path)
        );
    };
    let location = entry.location;
    let value_len = location.value_len as usize;
    let len = RECORD_HEADER_LEN + key.len() + value_len;
    if location.offset() + len as u64 > segment.written_end() {
        let value_offset = location.offset() + (RECORD_HEADER_LEN + key.len()) as u64;
        if let Some(value) = sources.log.read_staged(segment.id, value_offset, value_len) {
            sources.counters.from_staging.fetch_add(1, Ordering::Relaxed);
            return Ok(Lookup::Ready(Some(value)));
        }
        // It has just been written: the file has it.
    }
    let file = sources
        .registry
        .file(&segment)
        .map_err(|error| at(Error::io("get: open the segment", error), &segment, entry))?;
    let mut buf = Vec::new();
    if buf.try_reserve_exact(len).is_err() {
        let error = io::Error::from(io::ErrorKind::OutOfMemory);
        return Err(at(Error::io("get", error), &segment, entry));
    }
    buf.resize(len, 0);
    let filled = match file.read_nowait(&mut buf, location.offset()) {
        Ok(count) if count == len => {
            sources.counters.from_cache.fetch_add(1, Ordering::Relaxed);
            return verify(buf, key, &segment, entry).map(|value| Lookup::Ready(Some(value)));
        }
        Ok(count) => count,
        // Whatever the reason was, the engine's read will meet it again, or not.
        Err(_) => 0,
    };
    sources.counters.from_disk.fetch_add(1, Ordering::Relaxed);
    Ok(Lookup::Disk(DiskRead { segment, file, entry, buf, filled, key_len: key.len() }))
}

impl DiskRead {
    /// Reads the rest and checks it. One failed read is tried once more; damage is not.
    pub(crate) async fn finish(self, key: crate::keydir::Key) -> Result<Bytes> {
        let Self { segment, file, entry, buf, filled, key_len } = self;
        debug_assert_eq!(key_len, key.as_slice().len(), "the key the read was begun for");
        let len = buf.len();
        let from = entry.location.offset() + filled as u64;
        let mut result = util::read_full(&*file, buf, filled, from).await;
        if result.is_err() {
            result = util::read_full(&*file, vec![0; len], 0, entry.location.offset()).await;
        }
        let (buf, filled) = result.map_err(|error| at(Error::io("get", error), &segment, entry))?;
        if filled < len {
            return Err(at(Error::new(ErrorKind::Corrupt, "get: the segment ends within the record"), &segment, entry));
        }
        verify(buf, key.as_slice(), &segment, entry)
    }
}

/// The value in `buf`, which begins at the record's header and ends with its value.
fn verify(buf: Vec<u8>, key: &[u8], segment: &Segment, entry: Entry) -> Result<Bytes> {
    let corrupt = |what: String| at(Error::new(ErrorKind::Corrupt, format!("get: {what}")), segment, entry);
    let header = RecordHeader::decode(&buf, &segment.binding, entry.location.offset());
    let header = header.map_err(|error| corrupt(error.to_string()))?;
    if header.kind != RecordKind::Put || header.seq != entry.seq || header.value_len != entry.location.value_len {
        return Err(corrupt("another record lies there".into()));
    }
    let (stored_key, value) = buf[RECORD_HEADER_LEN..].split_at(key.len());
    if usize::from(header.key_len) != key.len() || stored_key != key {
        return Err(corrupt("a record of another key lies there".into()));
    }
    if payload_crc(key, value) != header.payload_crc {
        return Err(corrupt("bad payload checksum".into()));
    }
    let mut value = Bytes::from(buf);
    value.advance(RECORD_HEADER_LEN + key.len());
    Ok(value)
}

fn at(error: Error, segment: &Segment, entry: Entry) -> Error {
    error.at_segment(u64::from(segment.id)).at_offset(entry.location.offset())
}
