//! The steps of a journal, for telling what a store was at when it crashed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::crash::Journal;
use super::disk::{DiskEvent, OpId};

/// What kind of operation a [`Step`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// A write was made, or was completed.
    Write,
    /// So was a sync of a file.
    Sync,
    /// A file got another length.
    Truncate,
    /// Clean pages were dropped.
    Evict,
    /// A file was created.
    Create,
    /// A file was renamed.
    Rename,
    /// A name was removed.
    Unlink,
    /// A directory was created or synced.
    Directory,
}

/// One step of a [`Journal`].
#[derive(Clone, Debug)]
pub struct Step {
    /// What was done.
    pub kind: StepKind,
    /// A number for the file, the same through all its names; none where only its name was touched.
    pub inode: Option<usize>,
    /// The file's name, after the step; none for a directory's.
    pub name: Option<Arc<str>>,
    /// Where a write begins; 0 for all else.
    pub offset: u64,
    /// What it writes; nothing for all else.
    pub data: Bytes,
}

impl Journal {
    /// What every step did, and to which file: for telling what a store was at when it crashed.
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
                    // The newest of this name: an older one has none any more.
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
