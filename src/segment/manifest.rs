//! The list of live segments on disk, in the MANIFEST: which files belong to the store, and which numbers are spent.
//!
//! An edit writes the whole list to `MANIFEST.tmp`, syncs it, renames it into place and syncs the directory. That last
//! sync also makes the names of the segments durable that were created before. Until then the old list holds, and what
//! is not on it is a leftover.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{MANIFEST_FILE, lacks_space, tmp_name};
use crate::format::{Manifest, ManifestSegment};
use crate::io::{Dir, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};

/// The commit task and the maintenance task both edit the list, one at a time.
pub(crate) type SharedManifest = Arc<futures_util::lock::Mutex<ManifestStore>>;

/// The list as it is on disk. One task at a time edits it.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    dir: Arc<dyn Dir>,
    durable: Manifest,
    /// The next id to hand out; ids of failed attempts are spent too.
    next_segment_id: u64,
    /// Made from the segments themselves: nothing on disk says the same yet.
    is_rebuilt: bool,
}

/// Why an edit failed.
#[derive(Debug)]
pub(crate) enum ManifestError {
    /// The old list holds.
    NotChanged(io::Error),
    /// Nobody knows which list a crash would leave: the store must not go on.
    Unknown(io::Error),
}

impl ManifestStore {
    pub(crate) fn new(dir: Arc<dyn Dir>, durable: Manifest, next_segment_id: u64) -> Self {
        Self { dir, durable, next_segment_id, is_rebuilt: false }
    }

    /// A list that stands in for one that was lost.
    pub(crate) fn rebuilt(dir: Arc<dyn Dir>, list: Manifest, next_segment_id: u64) -> Self {
        Self { is_rebuilt: true, ..Self::new(dir, list, next_segment_id) }
    }

    pub(crate) fn is_rebuilt(&self) -> bool {
        self.is_rebuilt
    }

    pub(crate) fn store_id(&self) -> [u8; 16] {
        self.durable.store_id
    }

    pub(crate) fn segments(&self) -> &[ManifestSegment] {
        &self.durable.segments
    }

    /// Ids from here on were never spent, as far as the list on disk knows.
    pub(crate) fn durable_next_segment_id(&self) -> u64 {
        self.durable.next_segment_id
    }

    /// A number that no record had reached when the list was written.
    pub(crate) fn next_seq(&self) -> u64 {
        self.durable.next_seq
    }

    /// Spends all ids up to `id`.
    pub(crate) fn spend_ids_up_to(&mut self, id: u64) {
        self.next_segment_id = self.next_segment_id.max(id.saturating_add(1));
    }

    /// The listed segment that is appended to, or was when the store stopped; 0 = none.
    pub(crate) fn active_segment(&self) -> u32 {
        self.durable.active_segment
    }

    /// Spends an id.
    pub(crate) fn take_segment_id(&mut self) -> u64 {
        let id = self.next_segment_id;
        self.next_segment_id += 1;
        id
    }

    /// Adds and removes segments, in one step. `next_seq` is a number no record has reached.
    pub(crate) async fn change(
        &mut self,
        added: &[ManifestSegment],
        removed: &[u32],
        next_seq: u64,
    ) -> Result<(), ManifestError> {
        let active_segment = match self.durable.active_segment {
            active if removed.contains(&active) => 0,
            active => active,
        };
        let is_kept = |listed: &ManifestSegment| removed.iter().all(|&id| u64::from(id) != listed.id);
        let mut segments: Vec<_> = self.durable.segments.iter().copied().filter(is_kept).collect();
        segments.extend_from_slice(added);
        segments.sort_by_key(|listed| listed.id);
        self.edit(segments, active_segment, next_seq).await
    }

    /// Makes `segments` the live ones and `active_segment`, which is one of them or 0, the one that may lack a footer.
    /// `next_seq` is a number no record has reached.
    pub(crate) async fn edit(
        &mut self,
        segments: Vec<ManifestSegment>,
        active_segment: u32,
        next_seq: u64,
    ) -> Result<(), ManifestError> {
        let edited = Manifest {
            store_id: self.durable.store_id,
            generation: self.durable.generation + 1,
            next_segment_id: self.next_segment_id,
            next_seq,
            active_segment,
            segments,
        };
        write_new(&*self.dir, &edited).await?;
        self.durable = edited;
        self.is_rebuilt = false;
        Ok(())
    }
}

async fn write_new(dir: &dyn Dir, manifest: &Manifest) -> Result<(), ManifestError> {
    let tmp = tmp_name(MANIFEST_FILE);
    let prepared = async {
        match dir.unlink(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = dir.open(&tmp, OpenMode::CreateNew)?;
        util::write_all(&*file, vec![Bytes::from(manifest.encode())], 0).await?;
        // A failed sync of a file that is then thrown away loses nothing of anybody's.
        file.sync(SyncKind::All).await
    };
    prepared.await.map_err(|error| {
        // Best effort: the next edit, or the next open, removes it too.
        let _ = dir.unlink(&tmp);
        ManifestError::NotChanged(error)
    })?;
    dir.rename(&tmp, MANIFEST_FILE).map_err(|error| {
        // It may have happened all the same; but not if there was no space for it, and the file still has its first name.
        let is_undone = lacks_space(&error) && dir.unlink(&tmp).is_ok();
        if is_undone { ManifestError::NotChanged(error) } else { ManifestError::Unknown(error) }
    })?;
    if seeded_bug::is(SeededBug::NoDirectorySync) {
        return Ok(());
    }
    dir.sync().map_err(ManifestError::Unknown)
}
