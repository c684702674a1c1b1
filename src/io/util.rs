//! Loops over the operations of the seam: they handle short results, interruptions and the end of a file.
//!
//! Backends return the kernel's results unchanged. This file is the one place that interprets them. A short or
//! interrupted operation continues where it stopped, before anything that depends on it starts. A write of zero bytes
//! is an error, so it cannot loop forever. A read of zero bytes is the end of the file.

use std::io;

use bytes::{Buf, Bytes};

use super::{File, OpFuture, ReadDone};
use crate::seeded_bug::{self, SeededBug};

/// Converts `number` to `usize`. Larger numbers saturate, and then exceed every length.
pub fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Consecutive interruptions after which an operation fails. A kernel that always interrupts will not succeed later.
pub(super) const MAX_INTERRUPTIONS: usize = 64;

fn is_transient(error: &io::Error) -> bool {
    // ECANCELED: before Linux 6.14, io-wq may cancel an operation when a signal arrives. Nothing was done then.
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(libc::ECANCELED)
}

/// Reads `buf[at..]` at `offset` until it is full or the file ends. Returns the buffer and its filled length.
pub async fn read_full(file: &dyn File, buf: Vec<u8>, at: usize, offset: u64) -> io::Result<(Vec<u8>, usize)> {
    fill(buf, at, |buf, filled| file.read_at(buf, filled, offset + (filled - at) as u64)).await
}

/// Like [`read_full`], with [`File::read_once`].
pub async fn read_full_once(file: &dyn File, buf: Vec<u8>, at: usize, offset: u64) -> io::Result<(Vec<u8>, usize)> {
    fill(buf, at, |buf, filled| file.read_once(buf, filled, offset + (filled - at) as u64)).await
}

/// Calls `read` with the buffer and its filled length until the buffer is full or the file ends.
async fn fill(
    mut buf: Vec<u8>,
    at: usize,
    read: impl Fn(Vec<u8>, usize) -> OpFuture<ReadDone>,
) -> io::Result<(Vec<u8>, usize)> {
    let (mut filled, mut interruptions) = (at, 0);
    while filled < buf.len() {
        let done = read(buf, filled).await;
        buf = done.buf;
        match done.result {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                interruptions = 0;
            }
            Err(error) if is_transient(&error) && interruptions < MAX_INTERRUPTIONS => interruptions += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((buf, filled))
}

/// Reads exactly `len` bytes at `offset`. Returns `UnexpectedEof` if the file ends earlier.
pub async fn read_exact(file: &dyn File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = Vec::new();
    buf.try_reserve_exact(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    buf.resize(len, 0);
    let (buf, filled) = read_full(file, buf, 0, offset).await?;
    if filled < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buf)
}

/// Writes all of `bufs` at `offset`. After an error, some prefix may have been written.
pub async fn write_all(file: &dyn File, mut bufs: Vec<Bytes>, mut offset: u64) -> io::Result<()> {
    let mut interruptions = 0;
    bufs.retain(|buf| !buf.is_empty());
    while !bufs.is_empty() {
        match file.write_at(bufs.clone(), offset).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) if seeded_bug::is(SeededBug::ShortWriteIgnored) => return Ok(()),
            Ok(count) => {
                offset += count as u64;
                interruptions = 0;
                skip(&mut bufs, count);
            }
            Err(error) if is_transient(&error) && interruptions < MAX_INTERRUPTIONS => interruptions += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Drops the first `count` bytes of `bufs`.
fn skip(bufs: &mut Vec<Bytes>, mut count: usize) {
    let mut whole = 0;
    for buf in bufs.iter_mut() {
        if count < buf.len() {
            buf.advance(count);
            break;
        }
        count -= buf.len();
        whole += 1;
    }
    bufs.drain(..whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipping_drops_whole_buffers_and_cuts_the_next() {
        let bufs = || vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")];
        for count in 0..=6 {
            let mut left = bufs();
            skip(&mut left, count);
            assert_eq!(left.concat(), b"abcdef"[count..], "after skipping {count}");
        }
    }
}
