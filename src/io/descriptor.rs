//! An open regular file: the blocking system calls that read, write and sync it.

use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use bytes::Bytes;
use rustix::fs;
use rustix::io::ReadWriteFlags;

use super::SyncKind;

/// Maximum number of buffers in one vectored write: the kernel's limit.
pub(super) const MAX_PIECES: usize = 1024;
/// Maximum bytes in one read or write. The kernel's own limit is one page less than 2 GiB.
pub(super) const MAX_IO_BYTES: usize = 1 << 30;
/// An open regular file. Its methods block.
#[derive(Debug)]
pub(super) struct FileDescriptor {
    fd: OwnedFd,
}

impl From<OwnedFd> for FileDescriptor {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for FileDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl FileDescriptor {
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64, flags: ReadWriteFlags) -> io::Result<usize> {
        let len = buf.len().min(MAX_IO_BYTES);
        let buf = buf.get_mut(..len).unwrap_or_default();
        if flags.is_empty() {
            return Ok(rustix::io::pread(&self.fd, buf, offset)?);
        }
        Ok(rustix::io::preadv2(&self.fd, &mut [IoSliceMut::new(buf)], offset, flags)?)
    }

    pub(super) fn write(&self, bufs: &[Bytes], offset: u64) -> io::Result<usize> {
        let mut room = MAX_IO_BYTES;
        let mut pieces = Vec::with_capacity(bufs.len().min(MAX_PIECES));
        for buf in bufs.iter().take(MAX_PIECES) {
            let piece = buf.get(..room).unwrap_or(buf);
            room -= piece.len();
            pieces.push(IoSlice::new(piece));
            if room == 0 {
                break;
            }
        }
        Ok(rustix::io::pwritev(&self.fd, &pieces, offset)?)
    }

    /// Starts reading into the page cache. First waits for memory and for room in the disk's queue, which may take as
    /// long as a read.
    pub(super) fn start_reading(&self, offset: u64, len: u32) {
        // A hint: a refusal is ignored.
        let _ = fs::fadvise(&self.fd, offset, NonZeroU64::new(len.into()), fs::Advice::WillNeed);
    }

    pub(super) fn sync(&self, kind: SyncKind) -> io::Result<()> {
        match kind {
            SyncKind::Data => fs::fdatasync(&self.fd)?,
            SyncKind::All => fs::fsync(&self.fd)?,
        }
        Ok(())
    }
}
