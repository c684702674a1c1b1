//! A window that slides over a file and optionally reads ahead.
//!
//! The caller asks for bytes at an offset and gets them in one contiguous piece. Moving forward costs one read per
//! chunk, and chunks between two requests are read and skipped. Moving anywhere else also works, but is slower.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::io::util::{self, to_usize};
use crate::io::{File, OpFuture, ReadDone};

/// Bytes per read. A record up to this length is contiguous in the window.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Bytes per read if the page cache should drop the data afterwards. The page cache drops whole large pages, so shorter
/// or misaligned reads would read some pages twice.
const CHUNK_ONCE_BYTES: usize = 2 << 20;

/// Free bytes before a chunk that is read ahead. The rest of the previous chunk is copied there, so that the new chunk
/// itself need not be copied.
const HEADROOM: usize = 128 << 10;

/// How a window reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadAhead {
    /// One read at a time, on demand.
    None,
    /// Keep this many reads in flight beyond the window, of data that will not be read again.
    Once(usize),
}

pub(crate) struct Window {
    file: Arc<dyn File>,
    /// No byte at or after this offset is read.
    limit: u64,
    read_ahead: ReadAhead,
    bytes: Vec<u8>,
    /// Start of the window in `bytes`.
    begin: usize,
    /// Start of the window in the file.
    start: u64,
    /// Reads beyond the window, in ascending order of offset.
    pending: VecDeque<PendingRead>,
    /// Buffers to reuse for later reads.
    spare: Vec<Vec<u8>>,
    bytes_read: u64,
}

/// A read in flight.
struct PendingRead {
    offset: u64,
    len: usize,
    done: OpFuture<ReadDone>,
}

impl Window {
    pub(crate) fn new(file: Arc<dyn File>, start: u64, limit: u64, read_ahead: ReadAhead) -> Self {
        Self {
            file,
            limit,
            read_ahead,
            bytes: Vec::new(),
            begin: 0,
            start,
            pending: VecDeque::new(),
            spare: Vec::new(),
            bytes_read: 0,
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Total bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Counts bytes that the caller read without the window.
    pub(crate) fn count_read(&mut self, bytes: u64) {
        self.bytes_read += bytes;
    }

    fn end(&self) -> u64 {
        self.start + self.len() as u64
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.begin
    }

    /// The bytes of the window from `offset` on.
    pub(crate) fn from(&self, offset: u64) -> &[u8] {
        let at = offset.checked_sub(self.start).map_or(usize::MAX, to_usize);
        self.bytes.get(self.begin.saturating_add(at)..).unwrap_or_default()
    }

    /// Reads until the window holds `wanted` bytes from `offset` on, or all bytes up to the limit. Returns the number
    /// of bytes available at `offset`.
    pub(crate) async fn fill(&mut self, offset: u64, wanted: usize) -> io::Result<usize> {
        let left = to_usize(self.limit.saturating_sub(offset));
        let wanted = wanted.min(left);
        if offset < self.start || offset > self.end() && !self.is_pending(offset) {
            self.go_to(offset, self.limit);
        }
        while self.end() < offset {
            // The caller has moved past the whole window.
            (self.begin, self.start) = (self.bytes.len(), self.end());
            self.read_chunk().await?;
        }
        if self.from(offset).len() < wanted {
            self.begin += to_usize(offset - self.start);
            self.start = offset;
            while self.len() < wanted {
                self.read_chunk().await?;
            }
        }
        Ok(self.from(offset).len().min(left))
    }

    /// Restarts at `start` with a new `limit`.
    pub(crate) fn go_to(&mut self, start: u64, limit: u64) {
        self.bytes.clear();
        (self.begin, self.start, self.limit) = (0, start, limit);
        // The reads in flight complete by themselves; their results are discarded.
        self.pending.clear();
    }

    /// Whether a read in flight covers `offset`, which lies after the window.
    fn is_pending(&self, offset: u64) -> bool {
        self.pending.back().is_some_and(|last| offset < last.offset + last.len as u64)
    }

    /// Appends the next chunk.
    async fn read_chunk(&mut self) -> io::Result<()> {
        self.start_read_ahead();
        let end = self.end();
        let Some(PendingRead { len, done, .. }) = self.pending.pop_front() else {
            let chunk = util::read_exact(&*self.file, end, self.chunk_len(end)).await?;
            self.append(chunk, 0);
            return Ok(());
        };
        let ReadDone { result, mut buf } = done.await;
        // `read_full_once` repeats short and failed reads, and decides what an error means.
        let filled = result.unwrap_or(0);
        if filled < len {
            buf.resize(HEADROOM + len, 0);
            let (rest, filled) = util::read_full_once(&*self.file, buf, HEADROOM + filled, end + filled as u64).await?;
            if filled < HEADROOM + len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = rest;
        }
        self.append(buf, HEADROOM);
        Ok(())
    }

    /// Appends a chunk that has `headroom` free bytes before it.
    fn append(&mut self, mut chunk: Vec<u8>, headroom: usize) {
        self.bytes_read += (chunk.len() - headroom) as u64;
        let rest = self.bytes.get(self.begin..).unwrap_or_default();
        let unused = match headroom.checked_sub(rest.len()) {
            Some(begin) => {
                chunk[begin..headroom].copy_from_slice(rest);
                self.begin = begin;
                std::mem::replace(&mut self.bytes, chunk)
            }
            // The rest of a long record does not fit into the headroom.
            None => {
                self.bytes.drain(..self.begin);
                self.begin = 0;
                self.bytes.extend_from_slice(&chunk[headroom..]);
                chunk
            }
        };
        if self.read_ahead != ReadAhead::None && self.spare.len() < 4 {
            self.spare.push(unused);
        }
    }

    /// Bytes of the chunk at `offset`. Chunks that are read once end at multiples of the chunk size.
    fn chunk_len(&self, offset: u64) -> usize {
        let len = match self.read_ahead {
            ReadAhead::None => CHUNK_BYTES,
            ReadAhead::Once(_) => CHUNK_ONCE_BYTES - to_usize(offset % CHUNK_ONCE_BYTES as u64),
        };
        to_usize(self.limit.saturating_sub(offset)).min(len)
    }

    /// Starts reads until enough are in flight.
    fn start_read_ahead(&mut self) {
        let ReadAhead::Once(depth) = self.read_ahead else { return };
        while self.pending.len() <= depth {
            let offset = self.pending.back().map_or(self.end(), |last| last.offset + last.len as u64);
            let len = self.chunk_len(offset);
            if len == 0 {
                return;
            }
            let mut buf = self.spare.pop().unwrap_or_default();
            buf.resize(HEADROOM + len, 0);
            let done = self.file.read_once(buf, HEADROOM, offset);
            self.pending.push_back(PendingRead { offset, len, done });
        }
    }
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;
    use crate::io::sim::{OpClass, SimBackend, SimConfig};
    use crate::io::{Io, OpenMode};

    #[test]
    fn every_chunk_is_read_once() {
        const CHUNK: u64 = CHUNK_ONCE_BYTES as u64;
        let world = SimBackend::new(SimConfig::default());
        let dir = world.open_dir("/db".as_ref(), true).unwrap();
        let file = dir.open("file", OpenMode::CreateNew).unwrap();
        let byte_at = |offset: u64| u8::try_from(offset % 251).unwrap();
        let limit = 6 * CHUNK;
        world.run_until(async {
            let bytes: Vec<u8> = (0..limit).map(byte_at).collect();
            util::write_all(&*file, vec![bytes.into()], 0).await.unwrap();
            let reads_before = world.op_count(OpClass::Read);
            let mut window = Window::new(file, 100, limit, ReadAhead::Once(2));
            // Inside a chunk, just past its end, more than a chunk ahead, and backwards.
            for offset in [100, 5000, CHUNK - 10, CHUNK + 300, 3 * CHUNK + 7, 3 * CHUNK + 5, limit - 20] {
                let filled = window.fill(offset, 1000).await.unwrap();
                let expected: Vec<u8> = (offset..limit).map(byte_at).take(1000).collect();
                assert!(filled >= expected.len() && window.from(offset).starts_with(&expected), "at {offset}");
            }
            let chunks = world.op_count(OpClass::Read) - reads_before;
            assert_eq!((chunks, window.bytes_read()), (6, limit - 100), "each chunk is read once");
            window.go_to(1000, 3000);
            assert_eq!(window.fill(1000, 5000).await.unwrap(), 2000);
            assert_eq!(window.bytes_read(), limit - 100 + 2000, "no byte after the limit is read");
        });
    }
}
