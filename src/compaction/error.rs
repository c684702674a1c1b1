//! How a compaction job fails.

use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};
use crate::segment::Segment;

/// Why a job failed. Its inputs stay in the store; after [`Fatal`](Self::Fatal) the store is poisoned as well.
#[derive(Debug)]
pub(crate) enum JobError {
    /// The job was told to stop.
    Stopped,
    /// An input is damaged. The picker does not pick that segment again.
    Damaged(Error),
    /// Any other failure, including a full disk. A later attempt may succeed.
    Failed(Error),
    /// It is unknown which list of segments a crash would leave in the MANIFEST, so the store must stop writing.
    Fatal(Error),
}

impl JobError {
    /// Marks `segment` as damaged.
    pub(super) fn damaged(segment: &Segment, offset: u64, what: &str) -> Self {
        segment.set_damaged();
        let error = Error::new(ErrorKind::Corrupt, format!("compact: {what}"));
        Self::Damaged(error.at_segment(u64::from(segment.id)).at_offset(offset))
    }

    /// A read of `segment` failed. A file that is too short is damage; other read errors count against the segment.
    pub(super) fn reading(store_path: &Path, operation: &str, error: io::Error, segment: &Segment) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::damaged(segment, segment.data_end(), "the segment's file is shorter than it was");
        }
        segment.count_failed_read();
        Self::Failed(io_error(store_path, operation, error).at_segment(u64::from(segment.id)))
    }

    /// A write to output `id` failed.
    pub(super) fn writing(store_path: &Path, error: io::Error, id: u32) -> Self {
        Self::Failed(io_error(store_path, "write a segment", error).at_segment(u64::from(id)))
    }
}

/// An I/O error of a job in the store at `store_path`.
pub(super) fn io_error(store_path: &Path, operation: &str, error: io::Error) -> Error {
    Error::io(format!("compact: {operation}"), error).with_path(store_path)
}
