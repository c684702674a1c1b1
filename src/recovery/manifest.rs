//! The first step of a recovery: reads, creates, rebuilds and rewrites the list of live segments.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::directory::DirectoryListing;
use super::opening::Opening;
use super::tail::ScannedTail;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Manifest, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{OpenMode, util};
use crate::options::Recovery;
use crate::segment::{MANIFEST_FILE, ManifestError, ManifestStore, segment_file_name};

impl Opening<'_> {
    /// Reads the MANIFEST, or creates it in an empty directory.
    pub(super) async fn read_manifest(&mut self, listing: &DirectoryListing) -> Result<ManifestStore> {
        if !listing.has_manifest {
            if listing.segments.is_empty() {
                return self.create_manifest().await;
            }
            return self.rebuild_manifest(listing, "the MANIFEST is missing").await;
        }
        let read = async {
            let file = self.dir.open(MANIFEST_FILE, OpenMode::Read)?;
            let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            util::read_exact(&*file, 0, len).await
        };
        let bytes = read.await.map_err(|error| Error::io("open", error).with_path(self.manifest_path()))?;
        match Manifest::decode(&bytes) {
            Ok(manifest) if manifest.segments.iter().any(|segment| segment.id > u64::from(u32::MAX)) => {
                self.rebuild_manifest(listing, "the MANIFEST lists a segment id above the maximum").await
            }
            Ok(manifest) => {
                let next_segment_id = manifest.next_segment_id;
                Ok(ManifestStore::new(Arc::clone(&self.dir), manifest, next_segment_id))
            }
            Err(error) => {
                self.refuse_newer(error, MANIFEST_FILE)?;
                self.rebuild_manifest(listing, &format!("bad MANIFEST: {error}")).await
            }
        }
    }

    /// Creates the MANIFEST of a new store: a random id and no segments.
    async fn create_manifest(&mut self) -> Result<ManifestStore> {
        let (high, low) = self.seed()?;
        let mut store_id = [0; 16];
        store_id[..8].copy_from_slice(&high.to_le_bytes());
        store_id[8..].copy_from_slice(&low.to_le_bytes());
        let (generation, next_segment_id, next_seq) = (0, 1, 1);
        let empty =
            Manifest { store_id, generation, next_segment_id, next_seq, active_segment: 0, segments: Vec::new() };
        let mut manifest = ManifestStore::new(Arc::clone(&self.dir), empty, 1);
        manifest.edit(Vec::new(), 0, 1).await.map_err(|error| {
            let (ManifestError::NotChanged(error) | ManifestError::Unknown(error)) = error;
            self.io_error("create the MANIFEST", error, None)
        })?;
        Ok(manifest)
    }

    /// Handles a missing or damaged MANIFEST. Without it, missing segments go unnoticed, so this is an error. Under
    /// `Salvage` the list is rebuilt from the segment headers.
    async fn rebuild_manifest(&mut self, listing: &DirectoryListing, reason: &str) -> Result<ManifestStore> {
        if self.options.recovery == Recovery::Strict {
            let error = Error::new(ErrorKind::Corrupt, format!("open: {reason}"));
            return Err(error.with_path(self.manifest_path()).at_offset(0));
        }
        self.damaged(0, 0, 0, reason)?;
        let mut headers: Vec<SegmentHeader> = Vec::new();
        for &id in &listing.segments {
            headers.extend(self.read_segment_header(id).await?);
        }
        let Some(store_id) = majority_store(&headers) else {
            return self.create_manifest().await;
        };
        for stray in headers.extract_if(.., |header| header.store_id != store_id) {
            let id = u32::try_from(stray.segment_id).unwrap_or(u32::MAX);
            self.damaged(id, 0, 0, "the segment belongs to another store")?;
        }
        let listed = headers.iter().map(|header| ManifestSegment { id: header.segment_id, salt: header.salt });
        let after_listed = headers.iter().map(|header| header.segment_id + 1).max().unwrap_or(1);
        let next_segment_id = after_listed.max(listing.highest_id_near(after_listed) + 1);
        let rebuilt = Manifest {
            store_id,
            generation: 0,
            next_segment_id,
            next_seq: headers.iter().map(|header| header.first_seq).max().unwrap_or(1),
            // Only the lost MANIFEST named the active segment. `take_tail` looks for one without a footer.
            active_segment: 0,
            segments: listed.collect(),
        };
        Ok(ManifestStore::rebuilt(Arc::clone(&self.dir), rebuilt, next_segment_id))
    }

    /// The header of segment `id`, if it is valid and contains that id.
    async fn read_segment_header(&mut self, id: u64) -> Result<Option<SegmentHeader>> {
        let Ok(short_id) = u32::try_from(id) else { return Ok(None) };
        let read = async {
            let file = self.dir.open(&segment_file_name(short_id), OpenMode::Read)?;
            if file.len()? < SEGMENT_HEADER_LEN as u64 {
                return Ok(Vec::new());
            }
            util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await
        };
        let bytes = read.await.map_err(|error| self.io_error("read a segment header", error, Some(short_id)))?;
        match SegmentHeader::decode(&bytes) {
            Ok(header) if header.segment_id == id => Ok(Some(header)),
            Ok(_) => Ok(None),
            Err(error) => {
                self.refuse_newer(error, &segment_file_name(short_id))?;
                self.damaged(short_id, 0, bytes.len() as u64, format!("bad segment header: {error}"))?;
                Ok(None)
            }
        }
    }

    /// Rewrites the MANIFEST if it has changed: without an empty tail, and with the sequence numbers that are skipped
    /// after an unclean stop. This must precede the sealing of the tail, because a sealed segment no longer shows that
    /// the stop was unclean.
    pub(super) async fn write_manifest(
        &mut self,
        manifest: &mut ManifestStore,
        tail: Option<&ScannedTail>,
        next_seq: u64,
    ) -> Result<()> {
        if tail.is_none() && !manifest.is_rebuilt() {
            return Ok(());
        }
        let dropped = tail.filter(|tail| tail.is_empty()).map(|tail| u64::from(tail.id()));
        let kept: Vec<_> = manifest.segments().iter().filter(|listed| Some(listed.id) != dropped).copied().collect();
        self.may_remove_segments = !manifest.is_rebuilt();
        let active = tail.filter(|tail| !tail.is_empty()).map_or(0, ScannedTail::id);
        let mut edited = manifest.edit(kept.clone(), active, next_seq).await;
        if let Err(ManifestError::NotChanged(error)) = &edited
            && self.borrow(error)
        {
            edited = manifest.edit(kept, active, next_seq).await;
        }
        edited.map_err(|error| {
            let (ManifestError::NotChanged(error) | ManifestError::Unknown(error)) = error;
            self.io_error("write the MANIFEST", error, None)
        })
    }
}

/// The store that most of the segments belong to; in a tie, the store of the last segment. Counting keeps a single stray
/// segment of another store from turning all others into strays.
fn majority_store(headers: &[SegmentHeader]) -> Option<[u8; 16]> {
    let mut counts: HashMap<[u8; 16], usize> = HashMap::new();
    for header in headers {
        *counts.entry(header.store_id).or_default() += 1;
    }
    headers.iter().map(|header| header.store_id).max_by_key(|store_id| counts.get(store_id).copied())
}
