//! What all steps of one job share.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::commit::Parts;
use crate::compaction::error::{JobError, io_error};
use crate::compaction::throttle::Throttle;
use crate::error::{Error, ErrorKind};
use crate::seeded_bug::{self, SeededBug};
use crate::segment::{ManifestError, hint_file_name, segment_file_name};

/// What all steps of one job share, on whichever thread.
pub(in crate::compaction) struct JobContext {
    pub(in crate::compaction) parts: Parts,
    /// The size of a full output.
    pub(in crate::compaction) segment_bytes: u64,
    pub(in crate::compaction) throttle: Arc<Throttle>,
    /// The `first_seq` of the outputs.
    pub(in crate::compaction) first_seq: u64,
    /// Tombstones with smaller sequence numbers hide nothing outside the job.
    pub(in crate::compaction) tombstones_removable_below: u64,
}

impl JobContext {
    pub(super) fn path(&self) -> &Path {
        &self.parts.segments.path
    }

    pub(super) fn io_error(&self, operation: &str, error: io::Error) -> JobError {
        JobError::Failed(io_error(self.path(), operation, error))
    }

    /// Allocates a segment id, durably: after a crash, a file with this id that the MANIFEST does not list is a
    /// leftover.
    pub(super) async fn allocate_segment_id(&self) -> Result<u32, JobError> {
        let mut manifest = self.parts.manifest.lock().await;
        let id = manifest.take_segment_id();
        if !seeded_bug::is(SeededBug::SpentIdNotDurable) {
            let changed = manifest.change(&[], &[], self.parts.log.next_seq()).await;
            changed.map_err(|error| self.manifest_error(error))?;
        }
        u32::try_from(id).map_err(|_| {
            let message = format!("compact: segment ids are exhausted: {id} exceeds {}", u32::MAX);
            JobError::Failed(Error::new(ErrorKind::Unsupported, message))
        })
    }

    pub(super) fn manifest_error(&self, error: ManifestError) -> JobError {
        match error {
            ManifestError::NotChanged(error) => self.io_error("write the MANIFEST", error),
            ManifestError::Unknown(error) => JobError::Fatal(io_error(self.path(), "replace the MANIFEST", error)),
        }
    }

    /// Removes the files of an output that is not used. The next open removes what this cannot.
    pub(super) fn remove_output(&self, id: u32) {
        let dir = &self.parts.segments.dir;
        let _ = dir.unlink(&segment_file_name(id));
        let _ = dir.unlink(&hint_file_name(id));
    }
}
