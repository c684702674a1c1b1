//! Directories, files and the lock of the real backends.
//!
//! Knows no threads and no rings: operations that take time go to a [`Dispatch`], which decides where they run.
//!
//! # Invariants
//!
//! - A directory is held by its descriptor, and every name is a single component relative to it. If a parent directory
//!   is renamed or replaced, all calls still refer to the same files.
//! - Only regular files are opened, and links are never followed. A user with write access to the directory cannot make
//!   the store write elsewhere or block on a pipe. Other names of a file (a backup's hard links) are allowed.
//! - The lock belongs to an open file description and ends with its last descriptor. It is released only by closing the
//!   descriptor: an explicit unlock in a forked child would release the parent's lock.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::process::{Resource, getrlimit};

use super::advice;
use super::descriptor::FileDescriptor;
use super::fork::process_id;
use super::op::{Op, slot};
use super::util::MAX_INTERRUPTIONS;
use super::{Dir, DirEntry, DirLock, EntryKind, File, OpFuture, OpenMode, ReadDone, SyncKind};

/// `RWF_DONTCACHE`, which rustix lacks: the read leaves no new pages in the page cache.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Magic numbers of ext4 and XFS. Other file systems copy on write, or have syncs that cost nothing.
const WRITE_IN_PLACE: [fs::FsWord; 2] = [0xEF53, 0x5846_5342];

/// How often the lock file may be replaced during one attempt to lock it.
const MAX_LOCK_TRIES: usize = 100;

/// Retries a call that a signal interrupted, but not forever: a file system that always returns EINTR would make this
/// thread spin and block everything that waits for it.
fn retry_on_intr<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..MAX_INTERRUPTIONS {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
    call()
}

/// Decides where operations that take time run.
pub(super) trait Dispatch: Send + Sync + fmt::Debug + 'static {
    /// Starts `op`, which then finishes without further help from the caller.
    fn start(&self, op: Op);

    /// Like [`start`](Self::start), but never runs `op` on the calling thread.
    fn start_behind(&self, op: Op);
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Offsets are signed in the kernel, and a ring takes -1 to mean the current position.
fn check_offset(offset: u64) -> io::Result<()> {
    match i64::try_from(offset) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(format!("offset {offset} exceeds the maximum file offset"))),
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(invalid(format!("{name:?} is not a valid file name")));
    }
    Ok(())
}

/// A file of a real backend.
#[derive(Clone, Debug)]
struct OsFile {
    file: Arc<FileDescriptor>,
    dispatch: Arc<dyn Dispatch>,
    /// Shared by all files of the directory; see [`OsDir`].
    dontcache_refused: Arc<AtomicBool>,
}

impl OsFile {
    fn read(&self, buf: Vec<u8>, at: usize, offset: u64, flags: ReadWriteFlags) -> OpFuture<ReadDone> {
        let checked = if at > buf.len() {
            Err(invalid(format!("read at position {at} of a buffer of {} bytes", buf.len())))
        } else {
            check_offset(offset)
        };
        match checked {
            Err(error) => Box::pin(std::future::ready(ReadDone { result: Err(error), buf })),
            Ok(()) if at == buf.len() => Box::pin(std::future::ready(ReadDone { result: Ok(0), buf })),
            Ok(()) => {
                let (done, handle) = slot();
                self.dispatch.start(Op::Read { file: Arc::clone(&self.file), buf, at, offset, flags, done });
                Box::pin(handle)
            }
        }
    }
}

/// Whether a read may have failed because of its flags. Older kernels and some file systems do not know all flags.
fn may_be_due_to_flags(done: &ReadDone) -> bool {
    let errno = done.result.as_ref().err().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        u64::try_from(fs::fstat(&*self.file)?.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        check_offset(offset)?;
        match rustix::io::preadv2(&*self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(count),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_at(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        self.read(buf, at, offset, ReadWriteFlags::empty())
    }

    fn read_once(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        if self.dontcache_refused.load(Ordering::Relaxed) {
            return self.read_at(buf, at, offset);
        }
        let first = self.read(buf, at, offset, DONTCACHE);
        let file = self.clone();
        Box::pin(async move {
            let done = first.await;
            if !may_be_due_to_flags(&done) {
                return done;
            }
            // A poll starts the second read, because without a poll the result is not needed. If the first read failed
            // for another reason, the second one reports it, and only the hint is lost.
            file.dontcache_refused.store(true, Ordering::Relaxed);
            file.read_at(done.buf, at, offset).await
        })
    }

    fn write_at(&self, mut bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>> {
        bufs.retain(|buf| !buf.is_empty());
        match check_offset(offset) {
            Err(error) => Box::pin(std::future::ready(Err(error))),
            Ok(()) if bufs.is_empty() => Box::pin(std::future::ready(Ok(0))),
            Ok(()) => {
                let (done, handle) = slot();
                self.dispatch.start(Op::Write { file: Arc::clone(&self.file), bufs, offset, done });
                Box::pin(handle)
            }
        }
    }

    fn sync(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        let (done, handle) = slot();
        self.dispatch.start(Op::Sync { file: Arc::clone(&self.file), kind, done });
        Box::pin(handle)
    }

    fn sync_behind(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        let (done, handle) = slot();
        self.dispatch.start_behind(Op::Sync { file: Arc::clone(&self.file), kind, done });
        Box::pin(handle)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        advice::start_writeback(self.file.as_fd(), offset, len);
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        // ext4 does not check this limit when it preallocates without changing the length, but does in the later write.
        if getrlimit(Resource::Fsize).current.is_some_and(|limit| offset.saturating_add(len) > limit) {
            return Err(Errno::FBIG.into());
        }
        let preallocate = || fs::fallocate(&*self.file, fs::FallocateFlags::KEEP_SIZE, offset, len);
        match retry_on_intr(preallocate) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::ftruncate(&*self.file, len))?)
    }

    fn writes_in_place(&self) -> bool {
        fs::fstatfs(&*self.file).is_ok_and(|stat| WRITE_IN_PLACE.contains(&stat.f_type))
    }

    fn expect_random_reads(&self) {
        // A hint: a refusal is ignored.
        let _ = fs::fadvise(&*self.file, 0, None, fs::Advice::Random);
    }

    fn start_reading(&self, offset: u64, len: u32) {
        if len > 0 && check_offset(offset).is_ok() {
            self.dispatch.start(Op::ReadAhead { file: Arc::clone(&self.file), offset, len });
        }
    }

    fn evict(&self) {
        // A hint: a refusal is ignored.
        let _ = fs::fadvise(&*self.file, 0, None, fs::Advice::DontNeed);
    }
}

/// Opens the directory at `path` for a backend that carries out operations with `dispatch`.
pub(super) fn open_dir(path: &Path, create: bool, dispatch: Arc<dyn Dispatch>) -> io::Result<Arc<dyn Dir>> {
    if create {
        create_with_parents(path)?;
    }
    let dontcache_refused = Arc::default();
    Ok(Arc::new(OsDir { fd: open_directory(path)?, path: path.to_owned(), dispatch, dontcache_refused }))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(retry_on_intr(|| fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))?)
}

fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn create_with_parents(path: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    let mut next = Some(path);
    while let Some(candidate) = next {
        match fs::stat(candidate) {
            Ok(_) => break,
            Err(Errno::NOENT) => missing.push(candidate),
            Err(errno) => return Err(errno.into()),
        }
        next = parent_of(candidate).filter(|parent| *parent != candidate);
    }
    for &directory in missing.iter().rev() {
        match fs::mkdir(directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some(parent) = parent_of(directory) {
            fs::fsync(open_directory(parent)?)?;
        }
    }
    if missing.is_empty() {
        // An earlier attempt may have been killed before this sync. The parent may be unreadable if another user owns
        // it.
        if let Some(Ok(parent)) = parent_of(path).map(open_directory) {
            fs::fsync(parent)?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct OsDir {
    fd: OwnedFd,
    /// Only for error messages.
    path: PathBuf,
    dispatch: Arc<dyn Dispatch>,
    /// Whether a read was refused for [`DONTCACHE`]. The first read finds out for all files of the directory, because
    /// they lie in one file system.
    dontcache_refused: Arc<AtomicBool>,
}

impl OsDir {
    fn not_regular(&self, name: &str) -> io::Error {
        invalid(format!("{} is not a regular file", self.path.join(name).display()))
    }

    /// Opens the regular file `name`. `O_NONBLOCK` prevents blocking on a pipe before `fstat` detects it.
    fn open_regular(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        check_name(name)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match retry_on_intr(|| fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(self.not_regular(name)),
            Err(errno) => return Err(errno.into()),
        };
        if FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(self.not_regular(name));
        }
        // On a file system without non-blocking reads, a ring would return EAGAIN forever for a descriptor with this
        // flag.
        let flags = fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK;
        // The store does not use access times, and updating one costs a tenth of a cached read. Only a file's owner may
        // set `O_NOATIME`. It is set here and not by `openat`, which might have created the file before it refuses the
        // flag.
        fs::fcntl_setfl(&fd, flags | OFlags::NOATIME).or_else(|_| fs::fcntl_setfl(&fd, flags))?;
        Ok(fd)
    }

    fn kind_of(&self, name: &OsStr, file_type: FileType) -> io::Result<Option<EntryKind>> {
        let file_type = if file_type == FileType::Unknown {
            match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        } else {
            file_type
        };
        Ok(Some(if file_type == FileType::RegularFile { EntryKind::File } else { EntryKind::Other }))
    }
}

impl Dir for OsDir {
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if let Some(kind) = self.kind_of(name, entry.file_type())? {
                entries.push(DirEntry { name: name.to_string_lossy().into_owned(), kind });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let file = Arc::new(FileDescriptor::from(self.open_regular(name, flags)?));
        let (dispatch, dontcache_refused) = (Arc::clone(&self.dispatch), Arc::clone(&self.dontcache_refused));
        Ok(Arc::new(OsFile { file, dispatch, dontcache_refused }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        Ok(fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn DirLock>>> {
        for _ in 0..MAX_LOCK_TRIES {
            // Write-only: a holder that may not read the file can still lock it and name itself.
            let fd = self.open_regular(name, OFlags::WRONLY | OFlags::CREATE)?;
            match retry_on_intr(|| fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            // Another process may have replaced the file between the open and the lock. The lock would then be on a
            // file that no other process can find, and would protect nothing.
            let held = fs::fstat(&fd)?;
            match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(named) if named.st_ino == held.st_ino && named.st_dev == held.st_dev => {
                    // A hard link may be another user's file, which the store must not overwrite.
                    if held.st_nlink == 1 {
                        write_pid(&fd);
                    }
                    return Ok(Some(Box::new(OsLock { _fd: fd })));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other(format!("the lock file {} keeps being replaced", self.path.join(name).display())))
    }
}

/// Writes this process's PID into its lock file, for error messages. Best effort: nothing relies on the contents.
///
/// Overwrites first and truncates afterwards, because on a full disk an overwrite needs no new space. A concurrent
/// reader takes the digits before the first line feed, so it never mixes the new PID with the rest of a longer old one.
fn write_pid(lock_file: &OwnedFd) {
    let line = format!("{}\n", process_id());
    let is_written = rustix::io::pwrite(lock_file, line.as_bytes(), 0) == Ok(line.len());
    // Without a PID the file must not name an earlier holder.
    let _ = fs::ftruncate(lock_file, if is_written { line.len() as u64 } else { 0 });
}

/// Closes the descriptor on drop, which releases the lock.
#[derive(Debug)]
struct OsLock {
    _fd: OwnedFd,
}

impl DirLock for OsLock {}

/// An unpredictable random number.
pub(super) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // The kernel returns up to 256 bytes completely or not at all.
    retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Fails reads that carry flags, and records the flags of all reads.
    #[derive(Debug)]
    struct RefusingDispatch(i32, Mutex<Vec<ReadWriteFlags>>);

    impl Dispatch for RefusingDispatch {
        fn start(&self, op: Op) {
            let Op::Read { flags, .. } = op else { return op.run() };
            self.1.lock().unwrap().push(flags);
            if flags.is_empty() { op.run() } else { op.finish(Err(io::Error::from_raw_os_error(self.0))) }
        }

        fn start_behind(&self, op: Op) {
            self.start(op);
        }
    }

    /// Reads two files twice each. Returns the flags of every read, and the error of the last one.
    fn read_twice_each(errno: i32) -> (Vec<ReadWriteFlags>, Option<i32>) {
        let home = tempfile::tempdir().unwrap();
        let dispatch = Arc::new(RefusingDispatch(errno, Mutex::default()));
        let dir = open_dir(home.path(), false, Arc::<RefusingDispatch>::clone(&dispatch)).unwrap();
        let mut last = None;
        for name in ["a", "b"] {
            std::fs::write(home.path().join(name), "content").unwrap();
            let file = dir.open(name, OpenMode::Read).unwrap();
            for _ in 0..2 {
                let done = pollster::block_on(file.read_once(vec![0; 8], 1, 2));
                last = done.result.as_ref().err().and_then(io::Error::raw_os_error);
                assert!(last.is_some() || (done.result.unwrap(), &*done.buf) == (5, b"\0ntent\0\0"), "{errno}");
            }
        }
        let flags = dispatch.1.lock().unwrap().clone();
        (flags, last)
    }

    #[test]
    fn interruptions_are_retried_but_not_forever() {
        let mut calls = 0;
        let mut interrupted = |times: usize| {
            calls = 0;
            retry_on_intr(|| {
                calls += 1;
                if calls > times { Ok(calls) } else { Err(Errno::INTR) }
            })
        };
        assert_eq!(interrupted(0), Ok(1));
        assert_eq!(interrupted(MAX_INTERRUPTIONS), Ok(MAX_INTERRUPTIONS + 1));
        assert_eq!(interrupted(usize::MAX), Err(Errno::INTR));
    }

    #[test]
    fn a_refused_read_flag_is_tried_once_and_hidden_from_callers() {
        let plain = ReadWriteFlags::empty();
        for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
            assert_eq!(read_twice_each(errno), (vec![DONTCACHE, plain, plain, plain, plain], None), "{errno}");
        }
        assert_eq!(read_twice_each(libc::EIO), (vec![DONTCACHE; 4], Some(libc::EIO)), "other errors reach the caller");
    }
}
