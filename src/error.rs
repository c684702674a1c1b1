//! The error type of the crate: one word wide, cheap to clone, with the place and the remedy in its message.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused an operation. [`Error::os_error`] has its code.
    Io,
    /// The disk, the quota or a file-size limit is full. The write was not applied. Retry it when there is space.
    NoSpace,
    /// Bytes on disk are not what was written. [`Error::path`], [`Error::segment`] and [`Error::offset`] say where, and
    /// [`Error::key`] says which key, where that is known. [`Recovery::Salvage`](crate::Recovery::Salvage) opens the store
    /// without the damaged records.
    Corrupt,
    /// Another handle, in this process or another, has the directory open. The message names the process where it is known.
    Locked,
    /// The store was closed.
    Closed,
    /// An earlier write or sync failed, and its outcome is unknown. Reads continue, writes do not. Close the store and open
    /// it again: recovery decides what was written.
    Poisoned,
    /// A key, value or batch is larger than its limit.
    TooLarge,
    /// An argument is not valid, for example an empty key.
    InvalidInput,
    /// An option is outside its range. The message names the option, the value and the range.
    InvalidConfig,
    /// A newer version of the format wrote the directory, or it uses features that this version does not know. Nothing was
    /// changed. Open it with a newer version of this crate.
    IncompatibleFormat,
    /// The host does not support what the options require, for example io_uring.
    Unsupported,
    /// Too many bytes of submitted writes wait to be accepted. The write was not applied: await it instead of
    /// submitting it.
    Busy,
    /// The handle came through a `fork` and must not be used in the child.
    Forked,
}

impl ErrorKind {
    /// What the caller can do about it, where the message alone does not say so.
    fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Corrupt => Some("Recovery::Salvage opens the store without the damaged records"),
            Self::Locked => Some("close the other handle first"),
            Self::Poisoned => Some("close the store and open it again: recovery decides what was written"),
            Self::IncompatibleFormat => Some("open it with a newer version of ringcask"),
            Self::Forked => Some("open the store in the process that uses it"),
            _ => None,
        }
    }
}

/// What is known about a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The write is not visible and never will be, not even after a restart.
    NotApplied,
    /// The write may or may not be there after the store is reopened. The first reopening decides it for good.
    Unknown,
}

/// An error of this crate.
///
/// It is one word wide and cheap to clone, because one failed sync answers many writers. Its message is one line that names
/// the operation, the value and the limit, or the file and the offset, and what to do next. The cause, such as an error of the
/// operating system, is the [`source`](std::error::Error::source) and not part of the message; `{:#}` prints both in one line.
/// Messages contain no keys and no values.
#[derive(Clone)]
pub struct Error(Arc<ErrorDetail>);

#[derive(Clone)]
struct ErrorDetail {
    kind: ErrorKind,
    outcome: Outcome,
    message: String,
    path: Option<PathBuf>,
    segment: Option<u64>,
    offset: Option<u64>,
    key: Option<Bytes>,
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
    /// // Only one handle can have a directory open.
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

    /// What is known about the write that failed. For any other operation it is [`Outcome::NotApplied`].
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
    ///         Outcome::NotApplied => println!("not applied: {error}"),
    ///         _ => println!("unknown until the store is reopened: {error}"),
    ///     }
    /// }
    /// store.close().await?;
    /// // A write that a closed store refuses is not applied.
    /// assert_eq!(store.put("key", "value").await.unwrap_err().outcome(), Outcome::NotApplied);
    /// # store.close().await
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// The file or directory that the operation was on.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The number of the segment that the operation was on.
    #[must_use]
    pub fn segment(&self) -> Option<u64> {
        self.0.segment
    }

    /// The offset of the failure in its file, in bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The key whose record is damaged, where it is known. It is not part of the message, which may go to a log.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    /// The operating system's error code, if an operation of its failed.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        self.find_io_error(io::Error::raw_os_error)
    }

    fn io_kind(&self) -> Option<io::ErrorKind> {
        self.find_io_error(|error| Some(error.kind()))
    }

    /// What `find` finds in the first source that is an [`io::Error`] and has it.
    fn find_io_error<T>(&self, find: impl Fn(&io::Error) -> Option<T>) -> Option<T> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(cause) = source {
            if let Some(found) = cause.downcast_ref::<io::Error>().and_then(&find) {
                return Some(found);
            }
            source = cause.source();
        }
        None
    }

    /// An error of `kind` with a message that begins with the operation.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(ErrorDetail {
            kind,
            outcome: Outcome::NotApplied,
            message: message.into(),
            path: None,
            segment: None,
            offset: None,
            key: None,
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

    fn edit(mut self, change: impl FnOnce(&mut ErrorDetail)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// The same with `what` in front of its message.
    pub(crate) fn prefixed(self, what: &str) -> Self {
        self.edit(|detail| detail.message = format!("{what}: {}", detail.message))
    }

    pub(crate) fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit(|detail| detail.source = Some(Arc::new(source)))
    }

    pub(crate) fn with_path(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        self.edit(|detail| detail.path = Some(path))
    }

    /// Adds the store's directory to an error that names a segment and no path.
    pub(crate) fn in_directory(self, path: &Path) -> Self {
        if self.0.segment.is_some() && self.0.path.is_none() { self.with_path(path) } else { self }
    }

    pub(crate) fn at_segment(self, segment: u64) -> Self {
        self.edit(|detail| detail.segment = Some(segment))
    }

    pub(crate) fn at_offset(self, offset: u64) -> Self {
        self.edit(|detail| detail.offset = Some(offset))
    }

    pub(crate) fn with_key(self, key: &[u8]) -> Self {
        self.edit(|detail| detail.key = Some(Bytes::copy_from_slice(key)))
    }

    /// The message and those of all sources, for a log line.
    pub(crate) fn chain(&self) -> ErrorChain<'_> {
        ErrorChain(self)
    }

    pub(crate) fn with_outcome(self, outcome: Outcome) -> Self {
        self.edit(|detail| detail.outcome = outcome)
    }
}

impl Error {
    /// Operation or fault, file and offset.
    fn fmt_message(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorDetail { message, path, segment, offset, .. } = &*self.0;
        f.write_str(message)?;
        match (path, segment) {
            (Some(path), Some(id)) => write!(f, " in {}", path.join(segment_file_name(*id)).display())?,
            (Some(path), None) => write!(f, " in {}", path.display())?,
            (None, Some(id)) => write!(f, " in {}", segment_file_name(*id))?,
            (None, None) => {}
        }
        match offset {
            Some(offset) => write!(f, " at offset {offset}"),
            None => Ok(()),
        }
    }

    fn fmt_remedy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    /// One line: operation or fault, file, offset, and what to do next. With `{:#}`, the causes too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return self.chain().fmt(f);
        }
        self.fmt_message(f)?;
        self.fmt_remedy(f)
    }
}

/// An error with its causes, in one line.
pub(crate) struct ErrorChain<'a>(&'a Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_message(f)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        self.0.fmt_remedy(f)
    }
}

/// The name of a segment's file, which `segment::names` makes and parses. This layer cannot import it.
fn segment_file_name(id: u64) -> String {
    format!("{id:020}.seg")
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?}: {})", self.0.kind, self.0.outcome, self.chain())
    }
}

/// For code that returns [`io::Error`]: the kind is the nearest one, and the error of this crate is inside.
///
/// ```
/// async fn load(store: &ringcask::Store) -> std::io::Result<Option<ringcask::bytes::Bytes>> {
///     Ok(store.get("config").await?)
/// }
/// ```
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Io => error.io_kind().unwrap_or(io::ErrorKind::Other),
            ErrorKind::NoSpace => error.io_kind().unwrap_or(io::ErrorKind::StorageFull),
            ErrorKind::Corrupt => io::ErrorKind::InvalidData,
            ErrorKind::Locked => io::ErrorKind::ResourceBusy,
            ErrorKind::Busy => io::ErrorKind::WouldBlock,
            ErrorKind::Closed => io::ErrorKind::NotConnected,
            ErrorKind::TooLarge | ErrorKind::InvalidInput | ErrorKind::InvalidConfig => io::ErrorKind::InvalidInput,
            ErrorKind::IncompatibleFormat | ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Poisoned | ErrorKind::Forked => io::ErrorKind::Other,
        };
        Self::new(kind, error)
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
    fn display_names_the_operation_the_place_and_the_remedy_and_leaves_the_cause_to_source() {
        let error = Error::new(ErrorKind::Corrupt, "get: bad payload checksum").at_segment(7).at_offset(4096);
        let remedy = "Recovery::Salvage opens the store without the damaged records";
        let place = "00000000000000000007.seg at offset 4096";
        assert_eq!(error.to_string(), format!("get: bad payload checksum in {place}; {remedy}"));
        let error = error.with_path("/db").with_source(io::Error::other("the cause")).with_key(b"secret");
        assert_eq!(error.to_string(), format!("get: bad payload checksum in /db/{place}; {remedy}"));
        assert_eq!(format!("{error:#}"), error.chain().to_string());
        assert_eq!(error.chain().to_string(), format!("get: bad payload checksum in /db/{place}: the cause; {remedy}"));
        assert!(!format!("{error} {error:?}").contains("secret"), "keys do not go to logs");
        assert_eq!(error.key(), Some(&b"secret"[..]));
        assert_eq!(segment_file_name(7), crate::segment::segment_file_name(7));
    }

    #[test]
    fn an_io_error_keeps_the_kind_and_the_error_inside() {
        let refused = Error::io("open", io::Error::from_raw_os_error(libc::EACCES));
        let converted = io::Error::from(refused);
        assert_eq!(converted.kind(), io::ErrorKind::PermissionDenied);
        let inner = converted.get_ref().and_then(|detail| detail.downcast_ref::<Error>());
        assert_eq!(inner.map(Error::os_error), Some(Some(libc::EACCES)));
        for (source, kind) in [
            (io::Error::from_raw_os_error(libc::ENOSPC), io::ErrorKind::StorageFull),
            (io::Error::from_raw_os_error(libc::EDQUOT), io::ErrorKind::QuotaExceeded),
            (io::ErrorKind::UnexpectedEof.into(), io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(io::Error::from(Error::io("append", source)).kind(), kind);
        }
        let locked = io::Error::from(Error::new(ErrorKind::Locked, "open: another handle has it"));
        assert_eq!(locked.kind(), io::ErrorKind::ResourceBusy);
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
