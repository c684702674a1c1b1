//! The steps of a journal, to tell what a store was doing when it crashed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::crash::Journal;
use super::disk::{DiskEvent, OpId};

/// The kind of operation that a [`Step`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Submission or completion of a write.
    Write,
    /// Submission or completion of a sync of a file.
    Sync,
    /// Change of a file's length.
    Truncate,
    /// Eviction of clean pages.
    Evict,
    /// Creation of a file.
    Create,
    /// Rename of a file.
    Rename,
    /// Removal of a name.
    Unlink,
    /// Creation or sync of a directory.
    Directory,
}

/// One step of a [`Journal`].
#[derive(Clone, Debug)]
pub struct Step {
    /// The kind of operation.
    pub kind: StepKind,
    /// A number that identifies the file under all its names. `None` if only a name changed.
    pub inode: Option<usize>,
    /// The file's name after the step. `None` for a directory.
    pub name: Option<Arc<str>>,
    /// The start offset of a write; 0 for other kinds.
    pub offset: u64,
    /// The bytes of a write; empty for other kinds.
    pub data: Bytes,
}

impl Journal {
    /// What every step did, and to which file.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let files = self.initial.files.iter().filter(|file| file.bytes.is_some());
        let mut names: Vec<Arc<str>> = files.map(|file| file.name.clone()).collect();
        let mut writes: HashMap<OpId, (u64, Bytes)> = HashMap::new();
        let mut steps = Vec::with_capacity(self.events.len());
        for event in self.events.iter() {
            let (kind, name, ino) = match event {
                DiskEvent::DirCreated { .. } | DiskEvent::DirSynced { .. } => (StepKind::Directory, None, None),
                DiskEvent::WriteSubmitted { op, ino, offset, data } => {
                    writes.insert(*op, (*offset, data.clone()));
                    (StepKind::Write, None, Some(*ino))
                }
                DiskEvent::WriteCompleted { ino, .. } => (StepKind::Write, None, Some(*ino)),
                DiskEvent::SyncSubmitted { ino, .. } | DiskEvent::SyncCompleted { ino, .. } => {
                    (StepKind::Sync, None, Some(*ino))
                }
                DiskEvent::Truncated { ino, .. } => (StepKind::Truncate, None, Some(*ino)),
                DiskEvent::Evicted { ino } => (StepKind::Evict, None, Some(*ino)),
                DiskEvent::Created { name, .. } => {
                    names.push(name.clone());
                    (StepKind::Create, None, Some(names.len() - 1))
                }
                DiskEvent::Renamed { from, to, .. } => {
                    // The latest file with this name: an older file has lost the name.
                    if let Some(name) = names.iter_mut().rev().find(|name| *name == from) {
                        name.clone_from(to);
                    }
                    (StepKind::Rename, Some(to.clone()), None)
                }
                DiskEvent::Unlinked { name, .. } => (StepKind::Unlink, Some(name.clone()), None),
            };
            let (offset, data) = match event {
                DiskEvent::WriteSubmitted { op, .. } | DiskEvent::WriteCompleted { op, .. } => writes.get(op).cloned(),
                _ => None,
            }
            .unwrap_or_default();
            let name = name.or_else(|| names.get(ino?).cloned());
            steps.push(Step { kind, inode: ino, name, offset, data });
        }
        steps
    }
}
