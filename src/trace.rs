//! What the store tells a subscriber of the crate `tracing`, if it was built with the feature of that name.
//!
//! Every event is made here, so that nothing else need know of the feature; without it these functions are empty. All have
//! the target `ringcask`. Keys and values never appear: an event names directories, files, segments and errors.
//!
//! A subscriber is foreign code, like a waker: it is called outside all locks, and its panic ends with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::Error;
use crate::stats::{CompactionReport, RecoveryReport};

#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $message:literal, $($name:ident = $value:expr),+) => {
        tracing::event!(target: "ringcask", tracing::Level::$level, $($name = %$value,)+ $message)
    };
}

/// Never called, so its arguments are looked at by nobody but the compiler.
#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($level:ident, $message:literal, $($name:ident = $value:expr),+) => {
        let _ = || {
            $(let _ = &$value;)+
        };
    };
}

fn quietly(tell: impl FnOnce()) {
    // The panic has been reported by its hook.
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

/// io_uring was not to be had.
pub(crate) fn fell_back(path: &Path, reason: &str) {
    quietly(|| {
        event!(WARN, "io_uring is not to be had, threads do its work", path = path.display(), reason = reason);
    });
}

/// No more writes, for this reason.
pub(crate) fn poisoned(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "the store is poisoned", path = path.display(), error = error);
    });
}

/// A directory was refused as damaged.
pub(crate) fn refused(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "the directory is damaged", path = path.display(), error = error);
    });
}

/// What an opening found and did beyond reading.
pub(crate) fn recovered(path: &Path, report: &RecoveryReport) {
    quietly(|| {
        if report.truncated_bytes > 0 {
            event!(WARN, "a torn tail was cut", path = path.display(), bytes = report.truncated_bytes);
        }
        if let Some(name) = &report.cut_copy {
            event!(WARN, "what was cut is kept in a file", path = path.display(), file = name.escape_debug());
        }
        for name in &report.removed_files {
            event!(WARN, "a leftover was removed", path = path.display(), file = name.escape_debug());
        }
        for name in &report.foreign_files {
            event!(WARN, "a foreign file lies in the directory", path = path.display(), file = name.escape_debug());
        }
        for damage in &report.damage {
            let (segment, offset, bytes) = (damage.segment, damage.offset, damage.len);
            let (path, reason) = (path.display(), &damage.reason);
            event!(
                WARN,
                "damage was stepped over",
                path = path,
                segment = segment,
                offset = offset,
                bytes = bytes,
                reason = reason
            );
        }
    });
}

/// A segment was closed for ever; the next write starts another.
pub(crate) fn rotated(path: &Path, id: u32, bytes: u64) {
    quietly(|| {
        event!(DEBUG, "a segment was sealed", path = path.display(), segment = id, bytes = bytes);
    });
}

/// A compaction job has come to its end.
pub(crate) fn compacted(path: &Path, report: &CompactionReport) {
    quietly(|| {
        let CompactionReport { segments_read, segments_written, bytes_freed, .. } = *report;
        let path = path.display();
        event!(DEBUG, "compacted", path = path, read = segments_read, written = segments_written, freed = bytes_freed);
    });
}

/// A compaction job has failed. Its inputs stand.
pub(crate) fn compaction_failed(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "a compaction failed", path = path.display(), error = error);
    });
}
