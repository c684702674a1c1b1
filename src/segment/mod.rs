//! Segments: the files of the log. One of them receives appends; the others are sealed and never change.
//!
//! | file | job |
//! |---|---|
//! | `state` | what the store knows in memory about one segment |
//! | `set` | all segments, and their open file descriptors |
//! | `obsolete` | the unlink order of segments that compaction has replaced |
//! | `manifest` | the list of live segments on disk |
//! | `scan`, `window` | reading the records of a segment from the file |
//! | `sequential` | detection of sequential gets |
//! | `hint_file` | writing hint files |
//! | `reserve` | disk space for deletes and compaction on a full disk |
//! | `names` | file names |

pub(crate) mod hint_file;
mod manifest;
mod names;
mod obsolete;
mod reserve;
mod scan;
mod sequential;
mod set;
mod state;
mod window;

pub(crate) use manifest::{ManifestError, ManifestStore, SharedManifest};
pub(crate) use names::{
    FileName, HINT_SUFFIX, LOCK_FILE, MANIFEST_FILE, RESERVE_FILE, cut_file_name, hint_file_name, segment_file_name,
    tmp_name,
};
pub(crate) use reserve::{Loan, Reserve, lacks_space};
pub(crate) use scan::{Extent, Found, Scan, Stop, Stored};
pub(crate) use set::SegmentSet;
pub(crate) use state::{Facts, Segment};
pub(crate) use window::ReadAhead;
