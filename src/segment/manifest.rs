//! The manifest store: keeps the MANIFEST, the list of live segments on disk, and hands out segment ids.
//!
//! An edit writes the whole list to `MANIFEST.tmp`, syncs it, renames it to `MANIFEST` and syncs the directory. The
//! directory sync also makes the names of segments durable that were created before the edit. Until it succeeds, the
//! old list is in force, and a segment that is not on it is a leftover.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::names::{MANIFEST_FILE, tmp_name};
use super::reserve::lacks_space;
use crate::format::{Manifest, ManifestSegment};
use crate::io::{Dir, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};

/// Shared by the commit task and the maintenance task, which take turns to edit the list.
pub(crate) type SharedManifest = Arc<futures_util::lock::Mutex<ManifestStore>>;

/// The list as it is on disk. One task at a time edits it.
#[derive(Debug)]
pub(crate) struct ManifestStore {
    dir: Arc<dyn Dir>,
    durable: Manifest,
    /// The next id to hand out. The ids of failed attempts are used up, too.
    next_segment_id: u64,
    /// The list was rebuilt from the segments and is not on disk yet.
    is_rebuilt: bool,
}

/// Why an edit failed.
#[derive(Debug)]
pub(crate) enum ManifestError {
    /// The old list is still in force.
    NotChanged(io::Error),
    /// Either list may be in force after a crash, so the store must stop writing.
    Unknown(io::Error),
}

impl ManifestStore {
    pub(crate) fn new(dir: Arc<dyn Dir>, durable: Manifest, next_segment_id: u64) -> Self {
        Self { dir, durable, next_segment_id, is_rebuilt: false }
    }

    /// A list that replaces a lost MANIFEST.
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

    /// The next segment id according to the list on disk.
    pub(crate) fn durable_next_segment_id(&self) -> u64 {
        self.durable.next_segment_id
    }

    /// A sequence number that no record in a listed sealed segment reaches.
    pub(crate) fn next_seq(&self) -> u64 {
        self.durable.next_seq
    }

    /// Marks all ids up to `id` as used.
    pub(crate) fn spend_ids_up_to(&mut self, id: u64) {
        self.next_segment_id = self.next_segment_id.max(id.saturating_add(1));
    }

    /// The listed segment that receives appends, or did when the store stopped; 0 = none.
    pub(crate) fn active_segment(&self) -> u32 {
        self.durable.active_segment
    }

    /// Hands out an id.
    pub(crate) fn take_segment_id(&mut self) -> u64 {
        let id = self.next_segment_id;
        self.next_segment_id += 1;
        id
    }

    /// Adds and removes segments in one atomic edit. `next_seq` is a sequence number that no record has reached.
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

    /// Replaces the list. `active_segment`, one of `segments` or 0, is the segment that may lack a footer. `next_seq`
    /// is a sequence number that no record has reached.
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
        // If this sync fails, the file is discarded, so no data is lost.
        file.sync(SyncKind::All).await
    };
    prepared.await.map_err(|error| {
        // Best effort: the next edit or the next open removes the file, too.
        let _ = dir.unlink(&tmp);
        ManifestError::NotChanged(error)
    })?;
    dir.rename(&tmp, MANIFEST_FILE).map_err(|error| {
        // A rename that reports an error may still have happened. It did not if the disk was full and the temporary
        // name still existed.
        let did_not_happen = lacks_space(&error) && dir.unlink(&tmp).is_ok();
        if did_not_happen { ManifestError::NotChanged(error) } else { ManifestError::Unknown(error) }
    })?;
    if seeded_bug::is(SeededBug::NoDirectorySync) {
        return Ok(());
    }
    dir.sync().map_err(ManifestError::Unknown)
}
