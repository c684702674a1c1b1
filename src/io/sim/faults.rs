//! The schedule of injected faults.
//!
//! Operations are counted per class in the order in which they *start*, since the creation of the backend. A run
//! without faults therefore shows how many operations there are, and a loop over these numbers fails each of them in
//! turn.

use std::io;

/// A class of operations that are counted and failed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpClass {
    /// All operations, in one common count.
    Any,
    /// [`File::read_at`](crate::io::File::read_at).
    Read,
    /// [`File::read_nowait`](crate::io::File::read_nowait).
    ReadNowait,
    /// [`File::write_at`](crate::io::File::write_at).
    Write,
    /// [`File::sync`](crate::io::File::sync).
    Sync,
    /// [`File::allocate`](crate::io::File::allocate).
    Allocate,
    /// [`File::truncate`](crate::io::File::truncate).
    Truncate,
    /// [`File::len`](crate::io::File::len).
    Len,
    /// [`Io::open_dir`](crate::io::Io::open_dir).
    OpenDir,
    /// [`Dir::open`](crate::io::Dir::open) of an existing file.
    Open,
    /// [`Dir::open`](crate::io::Dir::open) of a new file.
    Create,
    /// [`Dir::rename`](crate::io::Dir::rename).
    Rename,
    /// [`Dir::unlink`](crate::io::Dir::unlink).
    Unlink,
    /// [`Dir::sync`](crate::io::Dir::sync).
    DirSync,
    /// [`Dir::list`](crate::io::Dir::list).
    List,
    /// [`Dir::lock`](crate::io::Dir::lock).
    Lock,
    /// [`Io::spawn`](crate::io::Io::spawn).
    Spawn,
}

impl OpClass {
    /// The number of classes.
    const COUNT: usize = Self::Spawn as usize + 1;
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An error of the operating system: `libc::EIO`, `ENOSPC`, `EDQUOT`, `EINTR`, `EAGAIN`, and so on.
    ///
    /// A write that fails with `EIO` or `ENOMEM` may have written some prefix; with other errors it had no effect. A
    /// sync that fails with any error has persisted all, none or some of what it covered, as the seed decides. The rest
    /// is lost.
    Errno(i32),
    /// A read or write transfers at most this many bytes. Other operations ignore it.
    Short(usize),
    /// A sync fails with `EIO` after it has persisted everything.
    SyncKept,
    /// A sync fails with `EIO` and persists nothing. No later sync persists the data.
    SyncLost,
    /// A sync fails with `EIO` and persists some sectors. No later sync persists the others.
    SyncPartial,
    /// A sync reports success without any effect.
    SyncLie,
    /// A read returns its bytes with one bit flipped. The disk is intact, so the next read may be correct.
    BitFlip,
    /// A read returns bytes from another place on the disk. The next read may be correct.
    Misdirected,
    /// A read, write or sync takes this many microseconds, and others overtake it.
    Late(u32),
}

impl FaultKind {
    /// `EIO`.
    pub const EIO: Self = Self::Errno(libc::EIO);
    /// `ENOSPC`.
    pub const ENOSPC: Self = Self::Errno(libc::ENOSPC);
    /// `EDQUOT`.
    pub const EDQUOT: Self = Self::Errno(libc::EDQUOT);
    /// `EINTR`.
    pub const EINTR: Self = Self::Errno(libc::EINTR);
    /// `EMFILE`.
    pub const EMFILE: Self = Self::Errno(libc::EMFILE);
    /// `EAGAIN`.
    pub const EAGAIN: Self = Self::Errno(libc::EAGAIN);
    /// `ECANCELED`.
    pub const ECANCELED: Self = Self::Errno(libc::ECANCELED);
    /// `ENOMEM`.
    pub const ENOMEM: Self = Self::Errno(libc::ENOMEM);
    /// `EFBIG`: the file would exceed a size limit of the process or the file system.
    pub const EFBIG: Self = Self::Errno(libc::EFBIG);

    /// Whether this can happen to operations of `class`.
    fn concerns(self, class: OpClass) -> bool {
        match self {
            Self::Errno(_) => true,
            Self::Short(_) => matches!(class, OpClass::Read | OpClass::ReadNowait | OpClass::Write),
            Self::SyncKept | Self::SyncLost | Self::SyncPartial | Self::SyncLie => class == OpClass::Sync,
            Self::BitFlip | Self::Misdirected => matches!(class, OpClass::Read | OpClass::ReadNowait),
            Self::Late(_) => matches!(class, OpClass::Read | OpClass::Write | OpClass::Sync),
        }
    }
}

/// One entry of the fault schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The class of operations that fails.
    pub class: OpClass,
    /// The number of operations of the class that precede the failing one, since the creation of the backend.
    pub nth: u64,
    /// The kind of failure.
    pub kind: FaultKind,
    /// Whether all later operations of the class fail too, until the schedule is cleared.
    pub sticky: bool,
}

impl Fault {
    /// Fails only the operation of `class` that `nth` others precede.
    #[must_use]
    pub const fn once(class: OpClass, nth: u64, kind: FaultKind) -> Self {
        Self { class, nth, kind, sticky: false }
    }

    /// Fails the operation of `class` that `nth` others precede, and all later ones.
    #[must_use]
    pub const fn sticky(class: OpClass, nth: u64, kind: FaultKind) -> Self {
        Self { class, nth, kind, sticky: true }
    }
}

/// The operation counts and the scheduled faults.
#[derive(Debug, Default)]
pub(super) struct FaultSchedule {
    counts: [u64; OpClass::COUNT],
    schedule: Vec<Fault>,
    injected: u64,
}

impl FaultSchedule {
    pub(super) fn add(&mut self, fault: Fault) {
        self.schedule.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.schedule.clear();
    }

    pub(super) fn count(&self, class: OpClass) -> u64 {
        self.counts.get(class as usize).copied().unwrap_or(0)
    }

    /// The number of operations that met a scheduled fault.
    pub(super) fn injected(&self) -> u64 {
        self.injected
    }

    /// Counts an operation of `class` and returns its fault.
    pub(super) fn next(&mut self, class: OpClass) -> Option<FaultKind> {
        let (nth, nth_of_any) = (self.count(class), self.count(OpClass::Any));
        for counted in [class, OpClass::Any] {
            if let Some(count) = self.counts.get_mut(counted as usize) {
                *count += 1;
            }
        }
        let met = self.schedule.iter().find(|fault| {
            let nth = match fault.class {
                OpClass::Any => nth_of_any,
                same if same == class => nth,
                _ => return false,
            };
            (nth == fault.nth || (fault.sticky && nth > fault.nth)) && fault.kind.concerns(class)
        })?;
        self.injected += 1;
        Some(met.kind)
    }

    /// Counts an operation that can fail only with an error, and returns that error.
    pub(super) fn check(&mut self, class: OpClass) -> io::Result<()> {
        match self.next(class) {
            Some(FaultKind::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}
