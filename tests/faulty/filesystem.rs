//! A file system that passes every request through to a directory, except for the faults that a test arms.
//!
//! It syncs nothing, because no power cut follows.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::fault::{Effect, Fault, Kind};

/// Delay of a slow answer.
const SLOW: Duration = Duration::from_millis(30);
/// The kernel caches no names and attributes.
const TTL: Duration = Duration::ZERO;

/// State shared by the file system and the loop that reads the test's commands.
#[derive(Default)]
pub struct Shared {
    pub fault: Option<Fault>,
    pub is_direct: bool,
    pub counts: BTreeMap<Kind, u64>,
    pub fired: u64,
    /// Open files and directories.
    pub open: BTreeMap<u64, Arc<File>>,
    next_handle: u64,
    /// Paths by node. A node without a name has `None`.
    nodes: Vec<Option<PathBuf>>,
    by_path: HashMap<PathBuf, usize>,
}

pub struct Passthrough {
    shared: Arc<Mutex<Shared>>,
}

type Answer<T> = Result<T, Errno>;

fn io_error(error: io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

fn attributes(node: INodeNo, of: &Metadata) -> FileAttr {
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64);
    FileAttr {
        ino: node,
        size: of.len(),
        blocks: of.blocks(),
        atime: time(of.atime()),
        mtime: time(of.mtime()),
        ctime: time(of.ctime()),
        crtime: time(of.ctime()),
        kind: if of.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (of.mode() & 0o7777) as u16,
        nlink: of.nlink() as u32,
        uid: of.uid(),
        gid: of.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Passthrough {
    pub fn new(backing: &Path, shared: &Arc<Mutex<Shared>>) -> Self {
        // Node 1 is the root. Node 0 does not exist.
        shared.lock().unwrap().nodes = vec![None, Some(backing.to_owned())];
        Self { shared: Arc::clone(shared) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Counts a request, and returns how it fails, if it does.
    fn next_effect(&self, kind: Kind) -> Option<Effect> {
        let mut shared = self.shared();
        let count = shared.counts.entry(kind).or_default();
        let number = *count;
        *count += 1;
        let fault = shared.fault.filter(|fault| fault.kind == kind);
        let fault = fault.filter(|fault| number == fault.nth || fault.is_sticky && number > fault.nth)?;
        shared.fired += 1;
        Some(fault.effect)
    }

    /// Executes `request`, unless it must fail.
    fn answer<T>(&self, kind: Kind, request: impl FnOnce(Option<u32>) -> Answer<T>) -> Answer<T> {
        match self.next_effect(kind) {
            None => request(None),
            Some(Effect::Refused(errno)) => Err(Errno::from_i32(errno)),
            Some(Effect::Denied(errno)) => request(None).and(Err(Errno::from_i32(errno))),
            Some(Effect::Short(bytes)) => request(Some(bytes)),
            Some(Effect::Slow) => {
                thread::sleep(SLOW);
                request(None)
            }
        }
    }

    fn path_of(&self, node: INodeNo) -> Answer<PathBuf> {
        self.shared().nodes.get(node.0 as usize).cloned().flatten().ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<PathBuf> {
        Ok(self.path_of(parent)?.join(name))
    }

    /// The node of the file at `path`: the existing one, or a new one.
    fn node(&self, path: &Path) -> INodeNo {
        let mut shared = self.shared();
        let next = shared.nodes.len();
        let node = *shared.by_path.entry(path.to_owned()).or_insert(next);
        if node == next {
            shared.nodes.push(Some(path.to_owned()));
        }
        INodeNo(node as u64)
    }

    /// Removes the name `path` from its node, or gives it to the node of `from`.
    fn rename_node(&self, path: &Path, from: Option<&Path>) {
        let mut shared = self.shared();
        if let Some(node) = shared.by_path.remove(path) {
            shared.nodes[node] = None;
        }
        if let Some(node) = from.and_then(|from| shared.by_path.remove(from)) {
            shared.nodes[node] = Some(path.to_owned());
            shared.by_path.insert(path.to_owned(), node);
        }
    }

    fn entry(&self, path: &Path) -> Answer<FileAttr> {
        let metadata = fs::symlink_metadata(path).map_err(io_error)?;
        Ok(attributes(self.node(path), &metadata))
    }

    fn keep(&self, file: File) -> FileHandle {
        let mut shared = self.shared();
        shared.next_handle += 1;
        let handle = shared.next_handle;
        shared.open.insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        self.shared().open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn flags(&self) -> FopenFlags {
        if self.shared().is_direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
    }
}

/// Sends an answer without content.
fn reply_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.answer(Kind::Lookup, |_| self.entry(&self.child(parent, name)?)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let answer = self.answer(Kind::Getattr, |_| match handle {
            Some(handle) => self.file(handle)?.metadata().map_err(io_error),
            None => fs::symlink_metadata(self.path_of(node)?).map_err(io_error),
        });
        match answer {
            Ok(metadata) => reply.attr(&TTL, &attributes(node, &metadata)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let answer = self.answer(Kind::Truncate, |_| {
            let file = match handle {
                Some(handle) => self.file(handle)?,
                None => Arc::new(OpenOptions::new().write(true).open(self.path_of(node)?).map_err(io_error)?),
            };
            size.map_or(Ok(()), |size| file.set_len(size)).map_err(io_error)?;
            file.metadata().map_err(io_error)
        });
        match answer {
            Ok(metadata) => reply.attr(&TTL, &attributes(node, &metadata)),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let answer = self.answer(Kind::Mkdir, |_| {
            let path = self.child(parent, name)?;
            fs::DirBuilder::new().mode(mode).create(&path).map_err(io_error)?;
            self.entry(&path)
        });
        match answer {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.answer(Kind::Unlink, |_| {
            let path = self.child(parent, name)?;
            fs::remove_file(&path).map_err(io_error)?;
            self.rename_node(&path, None);
            Ok(())
        });
        reply_empty(reply, answer);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.answer(Kind::Rename, |_| {
            let (from, to) = (self.child(parent, name)?, self.child(to_parent, to_name)?);
            fs::rename(&from, &to).map_err(io_error)?;
            self.rename_node(&to, Some(&from));
            Ok(())
        });
        reply_empty(reply, answer);
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let answer = self.answer(Kind::Open, |_| {
            let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
            let file = OpenOptions::new().read(true).write(writes).open(self.path_of(node)?).map_err(io_error)?;
            Ok(self.keep(file))
        });
        match answer {
            Ok(handle) => reply.opened(handle, self.flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.answer(Kind::Create, |_| {
            let path = self.child(parent, name)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).create_new(flags & libc::O_EXCL != 0).mode(mode);
            let file = options.open(&path).map_err(io_error)?;
            Ok((self.entry(&path)?, file))
        });
        match answer {
            Ok((attributes, file)) => reply.created(&TTL, &attributes, Generation(0), self.keep(file), self.flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = self.answer(Kind::Read, |short| {
            let file = self.file(handle)?;
            let mut bytes = vec![0; size.min(short.unwrap_or(u32::MAX)) as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read_at(&mut bytes[filled..], offset + filled as u64).map_err(io_error)? {
                    0 => break,
                    count => filled += count,
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        match answer {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = self.answer(Kind::Write, |short| {
            let data = &data[..data.len().min(short.unwrap_or(u32::MAX) as usize)];
            self.file(handle)?.write_all_at(data, offset).map_err(io_error)?;
            Ok(data.len() as u32)
        });
        match answer {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _node: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared().open.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _node: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.answer(Kind::Sync, |_| self.file(handle).map(drop)));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.path_of(node).and_then(|path| File::open(path).map_err(io_error)) {
            Ok(file) => reply.opened(self.keep(file), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let answer = self.answer(Kind::List, |_| {
            let names: io::Result<Vec<_>> =
                fs::read_dir(self.path_of(node)?).map_err(io_error)?.map(|entry| entry.map(|it| it.path())).collect();
            let mut paths = names.map_err(io_error)?;
            paths.sort();
            Ok(paths)
        });
        let paths = match answer {
            Ok(paths) => paths,
            Err(errno) => return reply.error(errno),
        };
        for (index, path) in paths.iter().enumerate().skip(offset as usize) {
            let kind = if path.is_dir() { FileType::Directory } else { FileType::RegularFile };
            let name = path.file_name().unwrap_or_default();
            if reply.add(self.node(path), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared().open.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _node: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.answer(Kind::SyncDir, |_| self.file(handle).map(drop)));
    }

    fn fallocate(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let answer = self.answer(Kind::Allocate, |_| {
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
            rustix::fs::fallocate(&*self.file(handle)?, flags, offset, length).map_err(|errno| io_error(errno.into()))
        });
        reply_empty(reply, answer);
    }
}
