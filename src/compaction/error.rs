//! How a compaction job ends, if not well.

use std::io;

use super::Compactor;
use crate::error::{Error, ErrorKind};
use crate::segment::Segment;

/// Why a job did not come to its end. The inputs stand, unless the store is poisoned.
#[derive(Debug)]
pub(crate) enum JobError {
    /// It was told to stop.
    Stopped,
    /// A segment is not as it was written. It is not picked again.
    Damaged(Error),
    /// Anything else, a full disk among it: to be tried again later.
    Failed(Error),
    /// Nobody knows which list of segments a crash would find: the store must not go on.
    Fatal(Error),
}

impl JobError {
    pub(super) fn damaged(segment: &Segment, offset: u64, what: &str) -> Self {
        segment.set_damaged();
        let error = Error::new(ErrorKind::Corrupt, format!("compact: {what}"));
        Self::Damaged(error.at_segment(u64::from(segment.id)).at_offset(offset))
    }

    pub(super) fn reading(compactor: &Compactor, operation: &str, error: io::Error, segment: &Segment) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::damaged(segment, segment.data_end(), "the segment's file is shorter than it was");
        }
        segment.count_failed_read();
        Self::Failed(compactor.error(operation, error).at_segment(u64::from(segment.id)))
    }

    pub(super) fn writing(compactor: &Compactor, error: io::Error, id: u32) -> Self {
        Self::Failed(compactor.error("write a segment", error).at_segment(u64::from(id)))
    }
}
