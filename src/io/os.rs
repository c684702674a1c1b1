//! Directories, the lock and the blocking half of files, for both real worlds.
//!
//! Knows no threads and no ring: operations that take time go to a [`Dispatch`], which says where they run.
//!
//! # Invariants
//!
//! - A directory is held by its descriptor; every name is one component relative to it, so a renamed or replaced parent
//!   directory never makes two calls talk about different files.
//! - Only regular files are opened, links are never followed: whoever can write to the directory cannot make us write
//!   elsewhere or block in a pipe. A file may have other names (a backup's hard links); that is not looked at.
//! - The lock lies on an open file description and ends with its last descriptor. It is released by closing alone: an
//!   explicit unlock in a forked child would take it from the parent.

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
use super::op::{Op, slot};
use super::util::MAX_INTERRUPTIONS;
use super::{Dir, DirEntry, DirLock, EntryKind, File, OpFuture, OpenMode, ReadDone, SyncKind};

/// `RWF_DONTCACHE`, which rustix does not have: what the read brings into the page cache does not stay there.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Magic numbers of ext4 and XFS. Others, which copy on write, or whose syncs cost nothing, gain nothing.
const WRITE_IN_PLACE: [fs::FsWord; 2] = [0xEF53, 0x5846_5342];

/// Files replaced under our hands while locking, after which something else is wrong.
const MAX_LOCK_TRIES: usize = 100;

/// Calls again what a signal interrupted, but not for ever: a file system that says nothing else would have this thread
/// spin, and everybody who waits for it wait.
fn retry_on_intr<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..MAX_INTERRUPTIONS {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
    call()
}

/// Where operations that take time are carried out.
pub(super) trait Dispatch: Send + Sync + fmt::Debug + 'static {
    /// Starts `op`; it finishes without further help from its caller.
    fn start(&self, op: Op);

    /// As [`start`](Self::start), but never on the calling thread.
    fn start_behind(&self, op: Op);
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Offsets are signed in the kernel, and the last one means "the current position" to a ring.
fn check_offset(offset: u64) -> io::Result<()> {
    match i64::try_from(offset) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(format!("offset {offset} is beyond what a file can have"))),
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(invalid(format!("{name:?} is not the name of a file in a directory")));
    }
    Ok(())
}

/// A file of a real world.
#[derive(Clone, Debug)]
struct OsFile {
    file: Arc<FileDescriptor>,
    dispatch: Arc<dyn Dispatch>,
    /// The directory's.
    dontcache_refused: Arc<AtomicBool>,
}

impl OsFile {
    fn read(&self, buf: Vec<u8>, at: usize, offset: u64, flags: ReadWriteFlags) -> OpFuture<ReadDone> {
        let checked = if at > buf.len() {
            Err(invalid(format!("a read into a buffer of {} bytes from {at} on", buf.len())))
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

/// Whether a read failed for its flags, perhaps: older kernels and other file systems do not know them all.
fn may_be_for_its_flags(done: &ReadDone) -> bool {
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
            if !may_be_for_its_flags(&done) {
                return done;
            }
            // The second read is started by a poll: who does not poll has no use for it. If the first failed for
            // something else, the second will tell, and all that is lost is the hint.
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
        // Of a claim that leaves the file's length alone ext4 does not ask this; of the write that follows it does.
        if getrlimit(Resource::Fsize).current.is_some_and(|limit| offset.saturating_add(len) > limit) {
            return Err(Errno::FBIG.into());
        }
        let claim = || fs::fallocate(&*self.file, fs::FallocateFlags::KEEP_SIZE, offset, len);
        match retry_on_intr(claim) {
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
        // A hint: there is nothing to do about a refusal.
        let _ = fs::fadvise(&*self.file, 0, None, fs::Advice::Random);
    }

    fn start_reading(&self, offset: u64, len: u32) {
        if len > 0 && check_offset(offset).is_ok() {
            self.dispatch.start(Op::Advance { file: Arc::clone(&self.file), offset, len });
        }
    }

    fn evict(&self) {
        // A hint: there is nothing to do about a refusal.
        let _ = fs::fadvise(&*self.file, 0, None, fs::Advice::DontNeed);
    }
}

/// Opens the directory at `path` for a world whose operations `dispatch` carries out.
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
        // It may stem from an attempt that was killed before this sync. Somebody else's parent may be unreadable.
        if let Some(Ok(parent)) = parent_of(path).map(open_directory) {
            fs::fsync(parent)?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct OsDir {
    fd: OwnedFd,
    /// For messages only.
    path: PathBuf,
    dispatch: Arc<dyn Dispatch>,
    /// Whether a read here was refused [`DONTCACHE`]: found out by the first one, once for all files of the directory, as
    /// they lie in one file system.
    dontcache_refused: Arc<AtomicBool>,
}

impl OsDir {
    fn not_regular(&self, name: &str) -> io::Error {
        invalid(format!("{} is not a regular file", self.path.join(name).display()))
    }

    /// Opens the regular file `name`; `O_NONBLOCK` keeps a pipe from blocking us before `fstat` unmasks it.
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
        // Where the file system has no non-blocking reads, a ring would answer EAGAIN for ever to a file so marked.
        let flags = fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK;
        // Nobody asks when a segment was last read, and noting it down is a tenth of a cached read. The kernel lets only
        // a file's owner do without, and says so now: at the opening it might have created the file by then.
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
            let fd = self.open_regular(name, OFlags::RDWR | OFlags::CREATE)?;
            match retry_on_intr(|| fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            // Somebody may have replaced the file between opening and locking: then the lock is on a file that nobody
            // else will ever find, and protects nothing.
            let held = fs::fstat(&fd)?;
            match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(named) if named.st_ino == held.st_ino && named.st_dev == held.st_dev => {
                    return Ok(Some(Box::new(OsLock { _fd: fd })));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other(format!("the lock file {} is replaced again and again", self.path.join(name).display())))
    }
}

/// Dropping it closes the descriptor, which frees the lock.
#[derive(Debug)]
struct OsLock {
    _fd: OwnedFd,
}

impl DirLock for OsLock {}

/// A number nobody can guess.
pub(super) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // Up to 256 bytes come whole, or not at all.
    retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers reads that carry flags with an error, and notes the flags of all.
    #[derive(Debug)]
    struct Refusing(i32, Mutex<Vec<ReadWriteFlags>>);

    impl Dispatch for Refusing {
        fn start(&self, op: Op) {
            let Op::Read { flags, .. } = op else { return op.run() };
            self.1.lock().unwrap().push(flags);
            if flags.is_empty() { op.run() } else { op.finish(Err(io::Error::from_raw_os_error(self.0))) }
        }

        fn start_behind(&self, op: Op) {
            self.start(op);
        }
    }

    /// Reads two files twice each; returns the flags the kernel was asked with, and the last read's error.
    fn ask(errno: i32) -> (Vec<ReadWriteFlags>, Option<i32>) {
        let home = tempfile::tempdir().unwrap();
        let dispatch = Arc::new(Refusing(errno, Mutex::default()));
        let dir = open_dir(home.path(), false, Arc::<Refusing>::clone(&dispatch)).unwrap();
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
        let asked = dispatch.1.lock().unwrap().clone();
        (asked, last)
    }

    #[test]
    fn interruptions_are_survived_but_not_for_ever() {
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
    fn a_refused_flag_is_asked_for_once_and_nobody_hears_of_it() {
        let plain = ReadWriteFlags::empty();
        for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
            assert_eq!(ask(errno), (vec![DONTCACHE, plain, plain, plain, plain], None), "{errno}");
        }
        assert_eq!(ask(libc::EIO), (vec![DONTCACHE; 4], Some(libc::EIO)), "other errors are the caller's");
    }
}
