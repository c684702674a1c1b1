//! The check of the listed segments: each must exist and have the header that the MANIFEST promises.

use std::io;
use std::sync::Arc;

use super::directory::DirectoryListing;
use super::opening::Opening;
use crate::error::Result;
use crate::format::{Binding, FOOTER_LEN, Footer, ManifestSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{File, OpenMode, SyncKind, util};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{ManifestStore, segment_file_name};

/// A listed segment with a valid header. Its file is closed, because there may be more segments than descriptors.
pub(super) struct CheckedSegment {
    pub(super) id: u32,
    pub(super) salt: u64,
    pub(super) first_seq: u64,
    pub(super) header: [u8; SEGMENT_HEADER_LEN],
    pub(super) len: u64,
    /// `None` if the file does not end in a valid footer.
    pub(super) footer: Option<Footer>,
}

impl Opening<'_> {
    /// Checks every segment that the MANIFEST lists. Under `Salvage`, segments that fail are left out.
    pub(super) async fn check_listed_segments(
        &mut self,
        manifest: &ManifestStore,
        listing: &DirectoryListing,
    ) -> Result<Vec<CheckedSegment>> {
        let mut checked = Vec::new();
        let active = u64::from(manifest.active_segment());
        for &listed in manifest.segments() {
            // A hint is written after its segment was sealed durably. Without a hint, the active segment may show a
            // footer whose sync failed.
            let may_be_active = listed.id == active || manifest.is_rebuilt();
            let is_doubtful = may_be_active && !listing.hints.contains(&listed.id);
            checked.extend(self.check_listed(listed, &manifest.store_id(), is_doubtful).await?);
        }
        Ok(checked)
    }

    async fn check_listed(
        &mut self,
        listed: ManifestSegment,
        store_id: &[u8; 16],
        is_doubtful: bool,
    ) -> Result<Option<CheckedSegment>> {
        // `read_manifest` refuses larger ids.
        let Ok(id) = u32::try_from(listed.id) else { return Ok(None) };
        let Some(file) = self.open_listed(id)? else { return Ok(None) };
        if is_doubtful && !seeded_bug::is(SeededBug::TailNotSynced) {
            // Make the bytes durable or forget them: after this, no read shows bytes that the disk does not have.
            let synced = file.sync(SyncKind::All).await;
            synced.map_err(|error| self.io_error("sync the active segment", error, Some(id)))?;
            file.evict();
        }
        let len = file.len().map_err(|error| self.io_error("get the length of a segment", error, Some(id)))?;
        if len < SEGMENT_HEADER_LEN as u64 {
            self.damaged(id, 0, len, "the segment is shorter than its header")?;
            return Ok(None);
        }
        let bytes = util::read_exact(&*file, 0, SEGMENT_HEADER_LEN).await;
        let bytes = bytes.map_err(|error| self.io_error("read a segment header", error, Some(id)))?;
        let Some(first_seq) = self.check_header(&bytes, id, listed, store_id, len)? else { return Ok(None) };
        let mut header = [0; SEGMENT_HEADER_LEN];
        header.copy_from_slice(&bytes);
        let mut segment = CheckedSegment { id, salt: listed.salt, first_seq, header, len, footer: None };
        segment.footer = self.read_footer(&segment, &*file).await?;
        Ok(Some(segment))
    }

    fn open_listed(&mut self, id: u32) -> Result<Option<Arc<dyn File>>> {
        match self.dir.open(&segment_file_name(id), OpenMode::ReadWrite) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.damaged(id, 0, 0, "the segment file is missing")?;
                Ok(None)
            }
            Err(error) => Err(self.io_error("open a segment", error, Some(id))),
        }
    }

    /// Checks that the header is that of the listed segment, and returns its `first_seq`.
    fn check_header(
        &mut self,
        bytes: &[u8],
        id: u32,
        listed: ManifestSegment,
        store_id: &[u8; 16],
        len: u64,
    ) -> Result<Option<u64>> {
        let reason = match SegmentHeader::decode(bytes) {
            Ok(header) if header.store_id != *store_id => "the segment belongs to another store".to_owned(),
            Ok(header) if header.segment_id != listed.id || header.salt != listed.salt => {
                "the segment is not the one that the MANIFEST lists".to_owned()
            }
            Ok(header) => return Ok(Some(header.first_seq)),
            Err(error) => {
                self.refuse_newer(error, &segment_file_name(id))?;
                format!("bad segment header: {error}")
            }
        };
        self.damaged(id, 0, len, reason)?;
        Ok(None)
    }

    async fn read_footer(&self, segment: &CheckedSegment, file: &dyn File) -> Result<Option<Footer>> {
        let Some(offset) = segment.len.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
        if offset < SEGMENT_HEADER_LEN as u64 {
            return Ok(None);
        }
        let tail = util::read_exact(file, offset, FOOTER_LEN).await;
        let tail = tail.map_err(|error| self.io_error("read a segment footer", error, Some(segment.id)))?;
        let binding = Binding::new(segment.salt, u64::from(segment.id));
        Ok(Footer::decode_at_end(&tail, &binding, segment.len).ok().map(|(footer, _)| footer))
    }
}
