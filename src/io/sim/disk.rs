//! The simulated disk: the live contents, the durable contents, and the undecided changes between them.
//!
//! Only [`DiskEvent`]s change the state. The running simulation applies each event as it happens and records it. The
//! crash explorer applies the same events again, one by one, and inspects after each what a power failure may leave.
//! Both therefore see the same disk, and a crash point is a number of events.
//!
//! # What is durable
//!
//! - A write becomes visible to reads when it *completes*. From its submission on, any part of it may be on the disk.
//! - A sync makes durable the writes whose completion was delivered before its submission. All other writes stay
//!   undecided: each of their sectors may be on the disk or not, independently.
//! - A shrinking truncation is a separate undecided change, ordered with the writes. `SyncKind::Data` does not cover
//!   it, because the data can be read back without it.
//! - A failed sync decides everything it covered: each sector is on the disk or lost. Reads still see the lost part
//!   until the pages are dropped, and no later sync persists it.
//! - Creates, renames and unlinks are undecided until the directory is synced. A sync of a file does not cover its
//!   name, and a sync of a directory does not cover its files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::image::{Image, ImageFile};
use super::rng::Rng;
use crate::io::SyncKind;

/// Index of an inode; never reused.
pub(super) type Ino = usize;
/// Number of an asynchronous operation; never reused.
pub(super) type OpId = u64;
/// Index of a directory.
pub(super) type DirIndex = usize;

/// The effect of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncOutcome {
    Durable,
    /// Reported as an error, although everything it covered is durable.
    FailedKept,
    FailedLost,
    /// Reported as an error; the number is the seed that decides each sector.
    FailedPartial(u64),
    /// Reported as a success without any effect.
    Lied,
}

/// One step of the simulation that can matter to a crash.
#[derive(Clone, Debug)]
pub(super) enum DiskEvent {
    DirCreated { path: Arc<str> },
    WriteSubmitted { op: OpId, ino: Ino, offset: u64, data: Bytes },
    WriteCompleted { op: OpId, ino: Ino, applied: usize },
    SyncSubmitted { op: OpId, ino: Ino, kind: SyncKind, undelivered: Vec<OpId> },
    SyncCompleted { op: OpId, ino: Ino, outcome: SyncOutcome },
    Truncated { ino: Ino, len: u64 },
    Evicted { ino: Ino },
    Created { dir: DirIndex, name: Arc<str> },
    Renamed { dir: DirIndex, from: Arc<str>, to: Arc<str> },
    Unlinked { dir: DirIndex, name: Arc<str> },
    DirSynced { dir: DirIndex },
}

/// What a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(Ino),
    Other,
}

/// An applied write or truncation that no sync has covered.
#[derive(Clone, Debug)]
pub(super) struct PendingChange {
    op: OpId,
    stamp: u64,
    pub(super) change: Change,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, data: Bytes },
    Truncate { len: u64 },
}

/// A write that has been submitted and not completed.
#[derive(Clone, Debug)]
pub(super) struct WriteInFlight {
    op: OpId,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

#[derive(Clone, Debug)]
struct PendingSync {
    op: OpId,
    /// Covers the changes with a smaller stamp.
    before: u64,
    kind: SyncKind,
    undelivered: Vec<OpId>,
}

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct SimInode {
    /// The contents that reads see.
    pub(super) live: Arc<Vec<u8>>,
    /// The contents after any crash, before `pending` and `in_flight` are applied.
    pub(super) durable: Arc<Vec<u8>>,
    /// In the order in which they took effect.
    pub(super) pending: Vec<PendingChange>,
    pub(super) in_flight: Vec<WriteInFlight>,
    syncs: Vec<PendingSync>,
    /// Ranges that reads see but a failed sync lost.
    lost: Vec<Range<usize>>,
    /// Bytes that truncations cut off, at their offsets. They may reappear in a hole.
    pub(super) stale: Vec<u8>,
}

/// A directory operation that no directory sync has covered.
#[derive(Clone, Debug)]
pub(super) enum DirOp {
    Create { name: Arc<str>, node: Node },
    Rename { from: Arc<str>, to: Arc<str>, node: Node },
    Unlink { name: Arc<str>, node: Node },
}

pub(super) type Entries = BTreeMap<Arc<str>, Node>;

#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) path: Arc<str>,
    pub(super) live: Entries,
    pub(super) durable: Entries,
    pub(super) pending: Vec<DirOp>,
}

/// The whole disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) inodes: Vec<SimInode>,
    pub(super) dirs: Vec<Directory>,
    /// The contents of the file that was unlinked last. Another file may get its blocks.
    pub(super) freed: Arc<Vec<u8>>,
    next_stamp: u64,
}

/// Converts a length or offset to an index. The simulated disk is in memory, so larger values do not occur.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Overwrites or extends `bytes` with `data` at `offset`. Fills a gap with zeros.
pub(super) fn overlay(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(place) = bytes.get_mut(offset..end) {
        place.copy_from_slice(data);
    }
}

/// Splits a write at sector boundaries. Returns ranges of its data.
pub(super) fn sectors(offset: u64, len: usize, sector_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let first = sector_bytes - index(offset % sector_bytes as u64);
    let mut start = 0;
    std::iter::from_fn(move || {
        (start < len).then(|| {
            let end = if start == 0 { first.min(len) } else { (start + sector_bytes).min(len) };
            let range = start..end;
            start = end;
            range
        })
    })
}

impl PendingSync {
    fn covers(&self, item: &PendingChange, durable_len: usize) -> bool {
        item.stamp < self.before
            && !self.undelivered.contains(&item.op)
            && match item.change {
                Change::Write { .. } => true,
                // The new length is needed to read data back only if the file grew.
                Change::Truncate { len } => self.kind == SyncKind::All || index(len) > durable_len,
            }
    }
}

impl SimInode {
    fn of(bytes: &Arc<Vec<u8>>) -> Self {
        Self { live: bytes.clone(), durable: bytes.clone(), ..Self::default() }
    }

    /// Whether every crash leaves exactly `durable`.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty() && self.live.len() <= self.durable.len()
    }

    fn complete_write(&mut self, op: OpId, applied: usize, stamp: u64) {
        let Some(at) = self.in_flight.iter().position(|write| write.op == op) else { return };
        let mut write = self.in_flight.remove(at);
        write.data.truncate(applied);
        if !write.data.is_empty() {
            overlay(Arc::make_mut(&mut self.live), index(write.offset), &write.data);
            self.pending.push(PendingChange {
                op,
                stamp,
                change: Change::Write { offset: write.offset, data: write.data },
            });
        }
    }

    fn truncate(&mut self, len: u64, stamp: u64) {
        let cut = index(len);
        if let Some(tail) = self.live.get(cut..).filter(|tail| !tail.is_empty()) {
            overlay(&mut self.stale, cut, tail);
        }
        Arc::make_mut(&mut self.live).resize(cut, 0);
        self.pending.push(PendingChange { op: OpId::MAX, stamp, change: Change::Truncate { len } });
    }

    fn complete_sync(&mut self, op: OpId, outcome: SyncOutcome, sector_bytes: usize) {
        let Some(at) = self.syncs.iter().position(|sync| sync.op == op) else { return };
        let sync = self.syncs.remove(at);
        if outcome == SyncOutcome::Lied {
            return;
        }
        let mut fates = match outcome {
            SyncOutcome::FailedPartial(seed) => Some(Rng::new(seed)),
            _ => None,
        };
        let items = std::mem::take(&mut self.pending);
        for item in items {
            if !sync.covers(&item, self.durable.len()) {
                self.pending.push(item);
                continue;
            }
            match item.change {
                Change::Truncate { len } if outcome != SyncOutcome::FailedLost => {
                    Arc::make_mut(&mut self.durable).resize(index(len), 0);
                }
                Change::Truncate { .. } => {}
                Change::Write { offset, data } => {
                    for piece in sectors(offset, data.len(), sector_bytes) {
                        let kept = match (&mut fates, outcome) {
                            (Some(rng), _) => rng.percent(50),
                            (None, SyncOutcome::FailedLost) => false,
                            (None, _) => true,
                        };
                        let place = index(offset) + piece.start;
                        let data = data.get(piece).unwrap_or_default();
                        if kept {
                            self.persist(place, data);
                        } else {
                            self.lost.push(place..place + data.len());
                        }
                    }
                }
            }
        }
    }

    fn persist(&mut self, offset: usize, data: &[u8]) {
        overlay(Arc::make_mut(&mut self.durable), offset, data);
        // An undecided truncation is older than this write, so it must not cut the write off.
        let end = (offset + data.len()) as u64;
        for item in &mut self.pending {
            if let Change::Truncate { len } = &mut item.change {
                *len = end.max(*len);
            }
        }
    }

    /// Replaces pages that a failed sync lost by the contents of the disk. Dirty pages stay.
    fn evict(&mut self) {
        let live = Arc::make_mut(&mut self.live);
        for range in self.lost.drain(..) {
            for at in range {
                if let Some(byte) = live.get_mut(at) {
                    *byte = self.durable.get(at).copied().unwrap_or(0);
                }
            }
        }
        let len = live.len();
        for item in &self.pending {
            if let Change::Write { offset, data } = &item.change {
                overlay(live, index(*offset), data);
            }
        }
        live.truncate(len);
    }
}

impl Disk {
    pub(super) fn from_image(image: &Image) -> Self {
        let mut disk = Self::default();
        for path in image.dirs.iter() {
            disk.apply(&DiskEvent::DirCreated { path: path.clone() }, 0);
        }
        for ImageFile { dir, name, bytes } in &image.files {
            let node = match bytes {
                Some(bytes) => {
                    disk.inodes.push(SimInode::of(bytes));
                    Node::File(disk.inodes.len() - 1)
                }
                None => Node::Other,
            };
            if let Some(dir) = disk.dirs.iter_mut().find(|known| known.path == *dir) {
                dir.durable.insert(name.clone(), node);
                dir.live.insert(name.clone(), node);
            }
        }
        disk
    }

    pub(super) fn find_dir(&self, path: &str) -> Option<DirIndex> {
        self.dirs.iter().position(|dir| &*dir.path == path)
    }

    pub(super) fn inode(&self, ino: Ino) -> Option<&SimInode> {
        self.inodes.get(ino)
    }

    /// The inode that the next [`DiskEvent::Created`] creates.
    pub(super) fn next_ino(&self) -> Ino {
        self.inodes.len()
    }

    /// Whether dropping clean pages would change what reads see.
    pub(super) fn has_lost_pages(&self, ino: Ino) -> bool {
        self.inode(ino).is_some_and(|inode| !inode.lost.is_empty())
    }

    pub(super) fn apply(&mut self, event: &DiskEvent, sector_bytes: usize) {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        match event {
            DiskEvent::WriteSubmitted { op, ino, offset, data } => self.change_inode(*ino, |inode| {
                inode.in_flight.push(WriteInFlight { op: *op, offset: *offset, data: data.clone() });
            }),
            DiskEvent::WriteCompleted { op, ino, applied } => {
                self.change_inode(*ino, |inode| inode.complete_write(*op, *applied, stamp));
            }
            DiskEvent::SyncSubmitted { op, ino, kind, undelivered } => self.change_inode(*ino, |inode| {
                inode.syncs.push(PendingSync { op: *op, before: stamp, kind: *kind, undelivered: undelivered.clone() });
            }),
            DiskEvent::SyncCompleted { op, ino, outcome } => {
                self.change_inode(*ino, |inode| inode.complete_sync(*op, *outcome, sector_bytes));
            }
            DiskEvent::Truncated { ino, len } => self.change_inode(*ino, |inode| inode.truncate(*len, stamp)),
            DiskEvent::Evicted { ino } => self.change_inode(*ino, SimInode::evict),
            DiskEvent::DirCreated { path } => self.dirs.push(Directory {
                path: path.clone(),
                live: Entries::new(),
                durable: Entries::new(),
                pending: Vec::new(),
            }),
            DiskEvent::Created { dir, name } => {
                self.inodes.push(SimInode::default());
                let node = Node::File(self.inodes.len() - 1);
                self.change_dir(*dir, |dir| {
                    dir.live.insert(name.clone(), node);
                    dir.pending.push(DirOp::Create { name: name.clone(), node });
                });
            }
            DiskEvent::Renamed { dir, from, to } => self.change_dir(*dir, |dir| {
                if let Some(node) = dir.live.remove(from) {
                    dir.live.insert(to.clone(), node);
                    dir.pending.push(DirOp::Rename { from: from.clone(), to: to.clone(), node });
                }
            }),
            DiskEvent::Unlinked { dir, name } => self.unlink(*dir, name),
            DiskEvent::DirSynced { dir } => self.change_dir(*dir, |dir| {
                dir.durable.clone_from(&dir.live);
                dir.pending.clear();
            }),
        }
    }

    fn unlink(&mut self, dir: DirIndex, name: &Arc<str>) {
        let node = self.dirs.get_mut(dir).and_then(|dir| {
            let node = dir.live.remove(name)?;
            dir.pending.push(DirOp::Unlink { name: name.clone(), node });
            Some(node)
        });
        if let Some(Node::File(ino)) = node
            && let Some(inode) = self.inodes.get(ino)
        {
            self.freed = inode.live.clone();
        }
    }

    fn change_inode(&mut self, ino: Ino, change: impl FnOnce(&mut SimInode)) {
        if let Some(inode) = self.inodes.get_mut(ino) {
            change(inode);
        }
    }

    fn change_dir(&mut self, dir: DirIndex, change: impl FnOnce(&mut Directory)) {
        if let Some(dir) = self.dirs.get_mut(dir) {
            change(dir);
        }
    }
}
