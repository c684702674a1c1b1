//! The state that the steps of one recovery share, and how they report errors.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::live_bytes::LiveByteCounter;
use crate::error::{Error, ErrorKind, Result};
use crate::format::DecodeError;
use crate::io::{Dir, Io};
use crate::options::{Options, Recovery};
use crate::segment::{Loan, MANIFEST_FILE, Reserve, SegmentSet, lacks_space};
use crate::stats::{Damage, RecoveryReport};

/// One recovery in progress.
pub(super) struct Opening<'a> {
    pub(super) options: &'a Options,
    pub(super) io: &'a Arc<dyn Io>,
    pub(super) dir: Arc<dyn Dir>,
    pub(super) segments: Arc<SegmentSet>,
    pub(super) reserve: Arc<Reserve>,
    /// The loan of the reserve, if a step needed it.
    pub(super) loan: Option<Loan>,
    pub(super) report: RecoveryReport,
    pub(super) live_bytes: LiveByteCounter,
    /// False if the MANIFEST was rebuilt: then an unlisted segment may not be a leftover.
    pub(super) may_remove_segments: bool,
}

impl<'a> Opening<'a> {
    pub(super) fn new(options: &'a Options, io: &'a Arc<dyn Io>, dir: Arc<dyn Dir>) -> Self {
        Self {
            options,
            io,
            segments: Arc::new(SegmentSet::new(Arc::clone(&dir), options.path.clone(), options.max_open_files)),
            reserve: Arc::new(Reserve::new(Arc::clone(&dir), options.reserve_bytes)),
            loan: None,
            dir,
            report: RecoveryReport::default(),
            live_bytes: LiveByteCounter::default(),
            may_remove_segments: true,
        }
    }

    /// Draws 128 random bits.
    pub(super) fn seed(&self) -> Result<(u64, u64)> {
        let draw = || self.io.random_u64().map_err(|error| self.io_error("get a random number", error, None));
        Ok((draw()?, draw()?))
    }

    /// Releases the reserve after a step has failed with `error`. Returns whether the step should be repeated with the
    /// released space.
    pub(super) fn borrow(&mut self, error: &io::Error) -> bool {
        if !lacks_space(error) || self.loan.is_some() {
            return false;
        }
        self.loan = self.reserve.release();
        self.loan.is_some()
    }

    // ---- errors --------------------------------------------------------------------------------------------------

    pub(super) fn io_error(&self, operation: &str, source: io::Error, segment: Option<u32>) -> Error {
        let error = Error::io(format!("open: {operation}"), source).with_path(&self.options.path);
        match segment {
            Some(id) => error.at_segment(u64::from(id)),
            None => error,
        }
    }

    /// Handles damage that can have destroyed acknowledged data: an error, or under `Salvage` an entry in the report.
    pub(super) fn damaged(&mut self, segment: u32, offset: u64, len: u64, reason: impl Into<String>) -> Result<()> {
        let damage = Damage { segment: u64::from(segment), offset, len, reason: reason.into() };
        match self.options.recovery {
            Recovery::Salvage => {
                self.report.damage.push(damage);
                Ok(())
            }
            Recovery::Strict => Err(corrupt(&self.options.path, &damage)),
        }
    }

    /// Fails if `error` says that the file `name` has a newer format.
    pub(super) fn refuse_newer(&self, error: DecodeError, name: &str) -> Result<()> {
        if !error.is_unsupported() {
            return Ok(());
        }
        let error = Error::new(ErrorKind::IncompatibleFormat, format!("open: {error}"));
        Err(error.with_path(self.options.path.join(name)))
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.options.path.join(MANIFEST_FILE)
    }
}

fn corrupt(path: &Path, damage: &Damage) -> Error {
    Error::new(ErrorKind::Corrupt, format!("open: {}", damage.reason))
        .with_path(path)
        .at_segment(damage.segment)
        .at_offset(damage.offset)
}
