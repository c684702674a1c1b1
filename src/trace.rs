//! Events for a subscriber of the crate `tracing`, if the store was built with the feature of that name.
//!
//! Every event is made here, so that no other module knows about the feature. Without it these functions are empty. All events
//! have the target `ringcask`. They name directories, files, segments and errors, never keys or values.
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

/// The closure is never called: only the compiler sees the arguments.
#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($level:ident, $message:literal, $($name:ident = $value:expr),+) => {
        let _ = || {
            $(let _ = &$value;)+
        };
    };
}

fn quietly(emit: impl FnOnce()) {
    // The panic hook has reported the panic.
    let _ = catch_unwind(AssertUnwindSafe(emit));
}

/// The store uses threads instead of io_uring.
pub(crate) fn fell_back(path: &Path, reason: &str) {
    quietly(|| {
        event!(WARN, "io_uring unavailable; falling back to blocking threads", path = path.display(), reason = reason);
    });
}

/// The store takes no more writes.
pub(crate) fn poisoned(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "store poisoned; reopen it to write again", path = path.display(), error = error.chain());
    });
}

/// An open failed because the directory is damaged.
pub(crate) fn refused(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "open refused; the directory is damaged", path = path.display(), error = error.chain());
    });
}

/// What an open found and changed.
pub(crate) fn recovered(path: &Path, report: &RecoveryReport) {
    quietly(|| {
        if report.truncated_bytes > 0 {
            event!(WARN, "torn tail cut off", path = path.display(), bytes = report.truncated_bytes);
        }
        if let Some(name) = &report.cut_copy {
            event!(WARN, "copy of the cut bytes kept", path = path.display(), file = name.escape_debug());
        }
        for name in &report.removed_files {
            event!(WARN, "leftover file removed", path = path.display(), file = name.escape_debug());
        }
        for name in &report.foreign_files {
            event!(WARN, "foreign file in the directory ignored", path = path.display(), file = name.escape_debug());
        }
        for damage in &report.damage {
            let (segment, offset, bytes) = (damage.segment, damage.offset, damage.len);
            let (path, reason) = (path.display(), &damage.reason);
            event!(
                WARN,
                "damaged range skipped",
                path = path,
                segment = segment,
                offset = offset,
                bytes = bytes,
                reason = reason
            );
        }
    });
}

/// A segment was sealed.
pub(crate) fn rotated(path: &Path, id: u32, bytes: u64) {
    quietly(|| {
        event!(DEBUG, "segment sealed", path = path.display(), segment = id, bytes = bytes);
    });
}

/// A compaction job completed.
pub(crate) fn compacted(path: &Path, report: &CompactionReport) {
    quietly(|| {
        let CompactionReport { segments_read, segments_written, bytes_freed, .. } = *report;
        let path = path.display();
        event!(
            DEBUG,
            "compaction completed",
            path = path,
            read = segments_read,
            written = segments_written,
            freed = bytes_freed
        );
    });
}

/// A compaction job failed. Its inputs stay.
pub(crate) fn compaction_failed(path: &Path, error: &Error) {
    quietly(|| {
        event!(WARN, "compaction failed", path = path.display(), error = error.chain());
    });
}
