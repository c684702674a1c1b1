//! Simulated files, directories and locks, as the store sees them.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::disk::{DirIndex, DiskEvent, Ino, Node};
use super::faults::{FaultKind, OpClass};
use super::state::{SimOpResult, SimShared, SimState, errno};
use crate::io::{Dir, DirEntry, DirLock, EntryKind, File, OpFuture, OpenMode, ReadDone, SyncKind};

pub(super) struct SimFile {
    shared: Arc<SimShared>,
    ino: Ino,
    writable: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("ino", &self.ino).finish_non_exhaustive()
    }
}

/// The future of the operation in `slot`.
struct SimOpFuture<T> {
    shared: Arc<SimShared>,
    slot: Option<usize>,
    finish: fn(SimOpResult) -> Option<T>,
}

impl<T> Future for SimOpFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(slot) = self.slot else { return Poll::Pending };
        let Poll::Ready(done) = self.shared.lock().poll_op(slot, context.waker()) else { return Poll::Pending };
        self.slot = None;
        (self.finish)(done).map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> Drop for SimOpFuture<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.shared.lock().abandon(slot);
        }
    }
}

impl SimFile {
    fn op<T: 'static>(&self, slot: usize, finish: fn(SimOpResult) -> Option<T>) -> OpFuture<T> {
        Box::pin(SimOpFuture { shared: self.shared.clone(), slot: Some(slot), finish })
    }

    /// Begins a change that takes effect at once: counts it, and fails it without power or on a file opened for
    /// reading.
    fn change(&self, class: OpClass) -> io::Result<std::sync::MutexGuard<'_, SimState>> {
        let mut state = self.shared.lock();
        state.powered()?;
        state.faults.check(class)?;
        if self.writable { Ok(state) } else { Err(errno(libc::EBADF)) }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.shared.lock();
        state.powered()?;
        state.faults.check(OpClass::Len)?;
        Ok(state.disk.inode(self.ino).map_or(0, |inode| inode.live.len() as u64))
    }

    fn read_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.shared.lock();
        state.powered()?;
        let fault = state.faults.next(OpClass::ReadNowait);
        let miss_percent = state.config.nowait_miss_percent;
        if fault.is_none() && state.rng.percent(miss_percent) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = buf.len();
        let short_percent = state.config.short_percent;
        let fault = match fault {
            None if len > 1 && state.rng.percent(short_percent) => Some(FaultKind::Short(1 + state.rng.below(len - 1))),
            scheduled => scheduled,
        };
        state.read(self.ino, buf, offset, fault)
    }

    fn read_at(&self, buf: Vec<u8>, at: usize, offset: u64) -> OpFuture<ReadDone> {
        let slot = self.shared.lock().start_read(self.ino, buf, at, offset);
        self.op(slot, |done| match done {
            SimOpResult::Read(done) => Some(done),
            _ => None,
        })
    }

    fn write_at(&self, bufs: Vec<Bytes>, offset: u64) -> OpFuture<io::Result<usize>> {
        let slot = self.shared.lock().start_write(self.ino, bufs, offset, self.writable);
        self.op(slot, |done| match done {
            SimOpResult::Write(result) => Some(result),
            _ => None,
        })
    }

    fn sync(&self, kind: SyncKind) -> OpFuture<io::Result<()>> {
        let slot = self.shared.lock().start_sync(self.ino, kind);
        self.op(slot, |done| match done {
            SimOpResult::Sync(result) => Some(result),
            _ => None,
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.change(OpClass::Allocate)?;
        if !state.config.allocate {
            return Err(io::ErrorKind::Unsupported.into());
        }
        state.reserve_space(self.ino, offset.saturating_add(len))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.change(OpClass::Truncate)?;
        let now = state.disk.inode(self.ino).map_or(0, |inode| inode.live.len() as u64);
        if len > now {
            state.reserve_space(self.ino, len)?;
        }
        state.set_charge(self.ino, len);
        state.record(DiskEvent::Truncated { ino: self.ino, len });
        Ok(())
    }

    fn writes_in_place(&self) -> bool {
        self.shared.lock().config.in_place
    }

    fn evict(&self) {
        let mut state = self.shared.lock();
        if !state.off && state.disk.has_lost_pages(self.ino) {
            state.record(DiskEvent::Evicted { ino: self.ino });
        }
    }
}

pub(super) struct SimDir {
    pub(super) shared: Arc<SimShared>,
    pub(super) dir: DirIndex,
}

impl fmt::Debug for SimDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDir").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SimDir {
    fn begin(&self, class: OpClass, names: &[&str]) -> io::Result<std::sync::MutexGuard<'_, SimState>> {
        if names.iter().any(|name| name.is_empty() || name.contains(['/', '\0']) || *name == "." || *name == "..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = self.shared.lock();
        state.powered()?;
        state.faults.check(class)?;
        Ok(state)
    }

    fn find(&self, state: &SimState, name: &str) -> Option<Node> {
        state.disk.dirs.get(self.dir)?.live.get(name).copied()
    }

    fn create(&self, state: &mut SimState, name: &str) -> io::Result<Ino> {
        if state.capacity_bytes.is_some_and(|capacity| state.used_bytes() >= capacity) {
            return Err(errno(libc::ENOSPC));
        }
        let ino = state.disk.next_ino();
        state.record(DiskEvent::Created { dir: self.dir, name: name.into() });
        Ok(ino)
    }

    /// Frees the space of a file whose name is gone. The store never keeps an unlinked file open in the simulation.
    fn free(state: &mut SimState, node: Option<Node>) {
        if let Some(Node::File(ino)) = node {
            state.set_charge(ino, 0);
        }
    }
}

impl Dir for SimDir {
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let state = self.begin(OpClass::List, &[])?;
        let Some(dir) = state.disk.dirs.get(self.dir) else { return Ok(Vec::new()) };
        let entry = |(name, node): (&Arc<str>, &Node)| DirEntry {
            name: name.to_string(),
            kind: match node {
                Node::File(_) => EntryKind::File,
                Node::Other => EntryKind::Other,
            },
        };
        let mut entries: Vec<DirEntry> = dir.live.iter().map(entry).collect();
        let below = state.disk.dirs.iter().filter_map(|other| other.path.strip_prefix(&*dir.path)?.strip_prefix('/'));
        let below = below.filter(|name| !name.contains('/'));
        entries.extend(below.map(|name| DirEntry { name: name.to_owned(), kind: EntryKind::Other }));
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let class = if mode == OpenMode::CreateNew { OpClass::Create } else { OpClass::Open };
        let mut state = self.begin(class, &[name])?;
        let ino = match (self.find(&state, name), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(errno(libc::EEXIST)),
            (None, OpenMode::CreateNew) => self.create(&mut state, name)?,
            (Some(Node::File(ino)), _) => ino,
            (Some(Node::Other), _) => return Err(io::ErrorKind::InvalidInput.into()),
            (None, _) => return Err(errno(libc::ENOENT)),
        };
        Ok(Arc::new(SimFile { shared: self.shared.clone(), ino, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin(OpClass::Rename, &[from, to])?;
        let Some(node) = self.find(&state, from) else { return Err(errno(libc::ENOENT)) };
        let replaced = self.find(&state, to).filter(|old| *old != node);
        if from != to {
            Self::free(&mut state, replaced);
            state.record(DiskEvent::Renamed { dir: self.dir, from: from.into(), to: to.into() });
        }
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.begin(OpClass::Unlink, &[name])?;
        let node = match self.find(&state, name) {
            None => return Err(errno(libc::ENOENT)),
            Some(Node::Other) => return Err(errno(libc::EISDIR)),
            file => file,
        };
        Self::free(&mut state, node);
        state.record(DiskEvent::Unlinked { dir: self.dir, name: name.into() });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.begin(OpClass::DirSync, &[])?;
        state.record(DiskEvent::DirSynced { dir: self.dir });
        Ok(())
    }

    fn lock(&self, name: &str) -> io::Result<Option<Box<dyn DirLock>>> {
        let mut state = self.begin(OpClass::Lock, &[name])?;
        match self.find(&state, name) {
            Some(Node::File(_)) => {}
            Some(Node::Other) => return Err(io::ErrorKind::InvalidInput.into()),
            None => {
                self.create(&mut state, name)?;
            }
        }
        if state.locks.iter().any(|(dir, held)| *dir == self.dir && **held == *name) {
            return Ok(None);
        }
        let name: Arc<str> = name.into();
        state.locks.push((self.dir, name.clone()));
        Ok(Some(Box::new(SimLock { shared: self.shared.clone(), dir: self.dir, name })))
    }
}

struct SimLock {
    shared: Arc<SimShared>,
    dir: DirIndex,
    name: Arc<str>,
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLock").field("name", &self.name).finish_non_exhaustive()
    }
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.shared.lock().locks.retain(|(dir, name)| *dir != self.dir || *name != self.name);
    }
}

/// Ready when the timer has fired.
pub(super) struct SimSleep {
    pub(super) shared: Arc<SimShared>,
    pub(super) id: u64,
}

impl Future for SimSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        let Some(timer) = state.timers.iter_mut().find(|timer| timer.id == self.id) else { return Poll::Pending };
        if timer.fired {
            return Poll::Ready(());
        }
        timer.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        let timer = {
            let mut state = self.shared.lock();
            let at = state.timers.iter().position(|timer| timer.id == self.id);
            at.map(|at| state.timers.swap_remove(at))
        };
        drop(timer);
    }
}

/// The normalised path of a directory.
pub(super) fn dir_path(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    let text = text.trim_end_matches('/');
    if text.is_empty() { "/".to_owned() } else { text.to_owned() }
}
