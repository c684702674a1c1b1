//! The names in the directory: which files belong to the store, and which of them a crash has left over.

use super::opening::Opening;
use crate::error::Result;
use crate::format::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{EntryKind, OpenMode, util};
use crate::segment::{FileName, HINT_SUFFIX, ManifestStore, RESERVE_FILE, segment_file_name};

/// The most ids that a store can use up without listing one of them: each stands for a failed attempt to create a
/// segment.
const UNLISTED_IDS_MAX: u64 = 1 << 20;

/// The names in the directory that belong to the store.
#[derive(Default)]
pub(super) struct DirectoryListing {
    pub(super) segments: Vec<u64>,
    pub(super) hints: Vec<u64>,
    leftovers: Vec<String>,
    pub(super) has_manifest: bool,
    has_reserve: bool,
}

impl DirectoryListing {
    /// The highest segment id that this store may have created while `next` was the next id on its list. Higher ids are
    /// foreign. They must not use up the ids of the store, which end at 2^32.
    pub(super) fn highest_id_near(&self, next: u64) -> u64 {
        self.segments.iter().copied().filter(|&id| !is_far(id, next)).max().unwrap_or(0)
    }
}

/// Whether segment `id` is too high to be created while `next` was the next id on the list.
fn is_far(id: u64, next: u64) -> bool {
    id >= next.saturating_add(UNLISTED_IDS_MAX)
}

impl Opening<'_> {
    /// Lists the directory and sorts the names by their meaning.
    pub(super) fn list_directory(&mut self) -> Result<DirectoryListing> {
        let entries = self.dir.list().map_err(|error| self.io_error("list the directory", error, None))?;
        let mut listing = DirectoryListing::default();
        for entry in entries {
            match (FileName::parse(&entry.name), entry.kind) {
                (FileName::Reserve, EntryKind::Other) => {
                    self.reserve.disown();
                    self.report.foreign_files.push(entry.name);
                }
                (FileName::Foreign, _) | (_, EntryKind::Other) => self.report.foreign_files.push(entry.name),
                (FileName::Lock | FileName::Cut, _) => {}
                (FileName::Manifest, _) => listing.has_manifest = true,
                (FileName::Reserve, _) => listing.has_reserve = true,
                (FileName::Leftover, _) => listing.leftovers.push(entry.name),
                (FileName::Segment(id), _) if id > u64::from(u32::MAX) => self.report.foreign_files.push(entry.name),
                (FileName::Segment(id), _) => listing.segments.push(id),
                (FileName::Hint(id), _) => listing.hints.push(id),
            }
        }
        Ok(listing)
    }

    /// Adopts the reserve of an earlier open, so that later steps can use it.
    pub(super) fn adopt_reserve(&mut self, listing: &DirectoryListing) {
        if listing.has_reserve && !self.reserve.adopt() {
            self.report.foreign_files.push(RESERVE_FILE.to_owned());
        }
    }

    /// Refuses records in a segment whose id the MANIFEST has not reached. The store never leaves such a segment, so
    /// the directory mixes files of two ages, and removing or ignoring the segment would lose data.
    pub(super) async fn refuse_mixed_ages(
        &mut self,
        listing: &DirectoryListing,
        manifest: &ManifestStore,
    ) -> Result<()> {
        for &id in listing.segments.iter().filter(|&&id| id >= manifest.durable_next_segment_id()) {
            let Ok(id) = u32::try_from(id) else { continue };
            let file = self.dir.open(&segment_file_name(id), OpenMode::Read);
            let len = file.and_then(|file| file.len());
            let len = len.map_err(|error| self.io_error("get the length of a segment", error, Some(id)))?;
            if len > SEGMENT_HEADER_LEN as u64 {
                self.damaged(id, 0, len, "the segment is newer than the MANIFEST")?;
            }
        }
        Ok(())
    }

    /// Removes the files that a crash has left. If that fails, the next open tries again.
    pub(super) async fn remove_leftovers(&mut self, listing: &DirectoryListing, manifest: &ManifestStore) {
        let is_listed = |id: u64| manifest.segments().iter().any(|listed| listed.id == id);
        let next = manifest.durable_next_segment_id();
        let mut leftovers = listing.leftovers.clone();
        for &id in listing.segments.iter().filter(|&&id| !is_listed(id)) {
            let Ok(short_id) = u32::try_from(id) else { continue };
            let name = segment_file_name(short_id);
            let is_damage = self.report.damage.iter().any(|damage| damage.segment == id);
            let is_own = async || !is_far(id, next) && self.may_be_own(&name, id, &manifest.store_id()).await;
            if is_damage || !self.may_remove_segments || !is_own().await {
                self.report.foreign_files.push(name);
            } else {
                leftovers.push(name);
            }
        }
        leftovers.extend(listing.hints.iter().filter(|&&id| !is_listed(id)).map(|id| format!("{id:020}{HINT_SUFFIX}")));
        for name in leftovers {
            if self.dir.unlink(&name).is_ok() {
                self.report.removed_files.push(name);
            }
        }
    }

    /// Whether this store may have created the segment file `name`. Not if its header names another store or another
    /// id, or cannot be read. A file without a whole header was cut off during its creation.
    async fn may_be_own(&self, name: &str, id: u64, store_id: &[u8; 16]) -> bool {
        let Ok(file) = self.dir.open(name, OpenMode::Read) else { return false };
        let bytes = match util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await {
            Ok(bytes) => bytes,
            Err(error) => return error.kind() == std::io::ErrorKind::UnexpectedEof,
        };
        match SegmentHeader::decode(&bytes) {
            Ok(header) => header.store_id == *store_id && header.segment_id == id,
            Err(error) => !error.is_unsupported(),
        }
    }
}
