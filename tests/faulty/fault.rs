//! Faults of requests to the file system, and when each occurs.

use std::fmt;
use std::str::FromStr;

/// The requests that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Lookup,
    Getattr,
    Truncate,
    Mkdir,
    Unlink,
    Rename,
    Open,
    Create,
    Read,
    Write,
    Sync,
    SyncDir,
    List,
    Allocate,
}

pub const KINDS: [Kind; 14] = [
    Kind::Lookup,
    Kind::Getattr,
    Kind::Truncate,
    Kind::Mkdir,
    Kind::Unlink,
    Kind::Rename,
    Kind::Open,
    Kind::Create,
    Kind::Read,
    Kind::Write,
    Kind::Sync,
    Kind::SyncDir,
    Kind::List,
    Kind::Allocate,
];

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request is not executed.
    Refused(i32),
    /// The request is executed, but reported as failed.
    Denied(i32),
    /// A read or write of at most this many bytes.
    Short(u32),
    /// The answer is delayed.
    Slow,
}

impl Kind {
    /// The effects to test for this kind of request.
    pub fn effects(self) -> Vec<Effect> {
        use Effect::{Denied, Refused, Short, Slow};
        let mut effects = vec![Refused(libc::EIO), Slow];
        match self {
            Self::Read => effects.extend([Refused(libc::EINTR), Refused(libc::EAGAIN), Short(0), Short(1), Short(100)]),
            Self::Write => {
                effects.extend([Refused(libc::ENOSPC), Refused(libc::EDQUOT), Refused(libc::EINTR)]);
                effects.extend([Refused(libc::EAGAIN), Denied(libc::EIO), Short(0), Short(1), Short(100)]);
            }
            Self::Sync | Self::SyncDir => effects.extend([Refused(libc::ENOSPC), Refused(libc::EINTR)]),
            Self::Create | Self::Open => effects.extend([Refused(libc::EMFILE), Refused(libc::EACCES)]),
            Self::Allocate => effects.extend([Refused(libc::ENOSPC), Refused(libc::EOPNOTSUPP), Refused(libc::EINTR)]),
            Self::Lookup | Self::Getattr | Self::List => effects.push(Refused(libc::ENOMEM)),
            Self::Truncate | Self::Mkdir | Self::Unlink | Self::Rename => effects.push(Refused(libc::EROFS)),
        }
        if matches!(self, Self::Create | Self::Rename | Self::Mkdir | Self::Unlink | Self::Truncate | Self::Allocate) {
            effects.extend([Refused(libc::ENOSPC), Denied(libc::EIO)]);
        }
        effects
    }
}

/// A fault of the request of this kind with this number, or of all from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    pub nth: u64,
    pub effect: Effect,
    pub is_sticky: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, nth, effect, is_sticky } = self;
        let (name, number) = match effect {
            Effect::Refused(errno) => ("refused", *errno),
            Effect::Denied(errno) => ("denied", *errno),
            Effect::Short(bytes) => ("short", *bytes as i32),
            Effect::Slow => ("slow", 0),
        };
        write!(f, "{kind:?} {nth} {name} {number} {}", if *is_sticky { "sticky" } else { "once" })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a fault: kind nth effect number once|sticky");
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, nth, effect, number, how] = words[..] else { return Err(wrong()) };
        let number: i32 = number.parse().map_err(|_| wrong())?;
        let effect = match effect {
            "refused" => Effect::Refused(number),
            "denied" => Effect::Denied(number),
            "short" => Effect::Short(number as u32),
            "slow" => Effect::Slow,
            _ => return Err(wrong()),
        };
        let kind = *KINDS.iter().find(|known| format!("{known:?}") == kind).ok_or_else(wrong)?;
        Ok(Self { kind, nth: nth.parse().map_err(|_| wrong())?, effect, is_sticky: how == "sticky" })
    }
}
