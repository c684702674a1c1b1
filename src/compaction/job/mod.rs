//! One compaction job.

pub(super) mod copying;
pub(super) mod helper;
pub(super) mod repointing;
