//! The first thing read: which segments there are.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::{Names, Opening};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Manifest, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{OpenMode, util};
use crate::options::Recovery;
use crate::segment::{MANIFEST_FILE, ManifestError, ManifestStore, segment_file_name};

impl Opening<'_> {
    /// The list of segments: read, or begun in an empty directory.
    pub(super) async fn read_catalog(&mut self, names: &Names) -> Result<ManifestStore> {
        if !names.has_manifest {
            if names.segments.is_empty() {
                return self.begin_catalog().await;
            }
            return self.bad_manifest(names, "the MANIFEST is missing").await;
        }
        let read = async {
            let file = self.dir.open(MANIFEST_FILE, OpenMode::Read)?;
            let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            util::read_exact(&*file, 0, len).await
        };
        let bytes = read.await.map_err(|error| Error::io("open", error).with_path(self.manifest_path()))?;
        match Manifest::decode(&bytes) {
            Ok(manifest) if manifest.segments.iter().any(|segment| segment.id > u64::from(u32::MAX)) => {
                self.bad_manifest(names, "the MANIFEST lists a segment beyond the largest id").await
            }
            Ok(manifest) => {
                let next_segment_id = manifest.next_segment_id;
                Ok(ManifestStore::new(Arc::clone(&self.dir), manifest, next_segment_id))
            }
            Err(error) => {
                self.refuse_newer(error, MANIFEST_FILE)?;
                self.bad_manifest(names, &format!("bad MANIFEST: {error}")).await
            }
        }
    }

    /// A new store: its identity, and no segments.
    async fn begin_catalog(&mut self) -> Result<ManifestStore> {
        let ((high, low), _) = (self.seed()?, ());
        let mut store_id = [0; 16];
        store_id[..8].copy_from_slice(&high.to_le_bytes());
        store_id[8..].copy_from_slice(&low.to_le_bytes());
        let (generation, next_segment_id, next_seq) = (0, 1, 1);
        let nothing =
            Manifest { store_id, generation, next_segment_id, next_seq, active_segment: 0, segments: Vec::new() };
        let mut catalog = ManifestStore::new(Arc::clone(&self.dir), nothing, 1);
        catalog.edit(Vec::new(), 0, 1).await.map_err(|error| {
            let (ManifestError::NotChanged(error) | ManifestError::Unknown(error)) = error;
            self.io_error("begin the MANIFEST", error, None)
        })?;
        Ok(catalog)
    }

    /// Without the list nobody can say which segments are missing: an error, or a list made from what is there.
    async fn bad_manifest(&mut self, names: &Names, reason: &str) -> Result<ManifestStore> {
        if self.options.recovery == Recovery::Strict {
            let error = Error::new(ErrorKind::Corrupt, format!("open: {reason}"));
            return Err(error.with_path(self.manifest_path()).at_offset(0));
        }
        self.damaged(0, 0, 0, reason)?;
        let mut headers: Vec<SegmentHeader> = Vec::new();
        for &id in &names.segments {
            headers.extend(self.read_header(id).await?);
        }
        let Some(store_id) = store_of_most(&headers) else {
            return self.begin_catalog().await;
        };
        for stray in headers.extract_if(.., |header| header.store_id != store_id) {
            let id = u32::try_from(stray.segment_id).unwrap_or(u32::MAX);
            self.damaged(id, 0, 0, "the segment is of another store")?;
        }
        let listed = headers.iter().map(|header| ManifestSegment { id: header.segment_id, salt: header.salt });
        let after_listed = headers.iter().map(|header| header.segment_id + 1).max().unwrap_or(1);
        let next_segment_id = after_listed.max(names.highest_id_near(after_listed) + 1);
        let rebuilt = Manifest {
            store_id,
            generation: 0,
            next_segment_id,
            next_seq: headers.iter().map(|header| header.first_seq).max().unwrap_or(1),
            // Which one was appended to, the list alone knew: `recover` looks for one without a footer.
            active_segment: 0,
            segments: listed.collect(),
        };
        Ok(ManifestStore::rebuilt(Arc::clone(&self.dir), rebuilt, next_segment_id))
    }

    /// The header of segment `id`, if it is good and says so itself.
    async fn read_header(&mut self, id: u64) -> Result<Option<SegmentHeader>> {
        let Ok(short_id) = u32::try_from(id) else { return Ok(None) };
        let read = async {
            let file = self.dir.open(&segment_file_name(short_id), OpenMode::Read)?;
            if file.len()? < SEGMENT_HEADER_LEN as u64 {
                return Ok(Vec::new());
            }
            util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await
        };
        let bytes = read.await.map_err(|error| self.io_error("read a segment's header", error, Some(short_id)))?;
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
}

/// The store that most of the segments belong to; of equals, the one whose segment is the last. A stray file of another
/// store, whatever its number, shall not make the others the strays.
fn store_of_most(headers: &[SegmentHeader]) -> Option<[u8; 16]> {
    let mut counts: HashMap<[u8; 16], usize> = HashMap::new();
    for header in headers {
        *counts.entry(header.store_id).or_default() += 1;
    }
    headers.iter().map(|header| header.store_id).max_by_key(|store_id| counts.get(store_id).copied())
}
