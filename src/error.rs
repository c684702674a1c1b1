//! The one error type.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused an operation; [`Error::os_error`] has its code.
    Io,
    /// The disk, the quota or a file-size limit is full. The write was not applied; try again when there is space.
    NoSpace,
    /// Bytes on disk are not what was written. [`Error::segment`] and [`Error::offset`] say where.
    Corrupt,
    /// Another handle, in this process or another, has the directory open.
    Locked,
    /// The store was closed.
    Closed,
    /// An earlier write or sync failed in a way that leaves its outcome unknown. Reads go on, writes do not; reopening
    /// the store decides what was written.
    Poisoned,
    /// A key, value or batch is larger than its limit.
    TooLarge,
    /// An argument is not valid: an empty key, for instance.
    InvalidInput,
    /// An option is outside its range; the message names the option, the value and the range.
    InvalidConfig,
    /// The directory was written by a newer version of the format, or with features that this version does not know.
    /// Nothing was changed.
    IncompatibleFormat,
    /// The host cannot do what the options demand (io_uring forbidden, for instance).
    Unsupported,
    /// Too many bytes of submitted writes wait to be accepted. The write was not applied: await it instead of
    /// submitting it.
    Busy,
    /// The handle came through a `fork` and must not be used in the child.
    Forked,
}

/// What is known of the write that got an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The write is not visible and never will be, not after a restart either.
    NotApplied,
    /// The write may or may not be found after the store is reopened; the reopening decides it once and for ever.
    Unknown,
}

/// An error of this crate: one word wide and cheap to clone, since one failed sync answers many writers.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    message: String,
    path: Option<PathBuf>,
    segment: Option<u64>,
    offset: Option<u64>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// What went wrong.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::{ErrorKind, Store};
    ///
    /// let error = store.put("", "value").await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidInput);
    /// // One handle at a time has the directory.
    /// let error = Store::open(store.path()).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Locked);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is known of the write that got this error. Errors of anything but a write are [`Outcome::NotApplied`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> ringcask::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # pollster::block_on(async {
    /// # let store = ringcask::Store::open(dir.path().join("db")).await?;
    /// use ringcask::Outcome;
    ///
    /// if let Err(error) = store.put("key", vec![0; 100]).await {
    ///     match error.outcome() {
    ///         Outcome::NotApplied => println!("it did not happen: {error}"),
    ///         _ => println!("only a reopening tells: {error}"),
    ///     }
    /// }
    /// store.close().await?;
    /// // Whatever is refused because the store is closed has not happened.
    /// assert_eq!(store.put("key", "value").await.unwrap_err().outcome(), Outcome::NotApplied);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// The file or directory it happened at.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The segment it happened in.
    #[must_use]
    pub fn segment(&self) -> Option<u64> {
        self.0.segment
    }

    /// The offset in bytes, from the start of the file, it happened at.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The operating system's error code, if it said no.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(cause) = source {
            if let Some(code) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Some(code);
            }
            source = cause.source();
        }
        None
    }

    /// An error of `kind` with a message that begins with the operation.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            outcome: Outcome::NotApplied,
            message: message.into(),
            path: None,
            segment: None,
            offset: None,
            source: None,
        }))
    }

    /// An operating-system error met while doing `operation`. Full disks, quotas and size limits become `NoSpace`.
    pub(crate) fn io(operation: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation).with_source(source)
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    pub(crate) fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    pub(crate) fn with_path(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        self.edit(|inner| inner.path = Some(path))
    }

    pub(crate) fn at_segment(self, segment: u64) -> Self {
        self.edit(|inner| inner.segment = Some(segment))
    }

    pub(crate) fn at_offset(self, offset: u64) -> Self {
        self.edit(|inner| inner.offset = Some(offset))
    }

    pub(crate) fn with_outcome(self, outcome: Outcome) -> Self {
        self.edit(|inner| inner.outcome = outcome)
    }
}

impl fmt::Display for Error {
    /// One line that needs no log beside it: `operation or fault, file, segment, offset: cause`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { message, path, segment, offset, source, .. } = &*self.0;
        f.write_str(message)?;
        if let Some(path) = path {
            write!(f, " in {}", path.display())?;
        }
        if let Some(segment) = segment {
            write!(f, " in segment {segment}")?;
        }
        if let Some(offset) = offset {
            write!(f, " at offset {offset}")?;
        }
        if let Some(source) = source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?}: {self})", self.0.kind, self.0.outcome)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_wide_and_shareable() {
        fn assert_shareable<T: Send + Sync + Clone + 'static>() {}
        assert_shareable::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn display_names_operation_place_and_cause() {
        let error = Error::new(ErrorKind::Corrupt, "read: bad payload checksum").at_segment(7).at_offset(4096);
        assert_eq!(error.to_string(), "read: bad payload checksum in segment 7 at offset 4096");
    }

    #[test]
    fn a_full_disk_is_told_from_other_errors() {
        let full = Error::io("append", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!((full.kind(), full.os_error()), (ErrorKind::NoSpace, Some(libc::ENOSPC)));
        let quota = Error::io("append", io::Error::from_raw_os_error(libc::EDQUOT));
        assert_eq!(quota.kind(), ErrorKind::NoSpace);
        let other = Error::io("append", io::Error::from_raw_os_error(libc::EIO));
        assert_eq!((other.kind(), other.outcome()), (ErrorKind::Io, Outcome::NotApplied));
    }
}
