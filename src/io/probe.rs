//! Choosing the world a store lives in.
//!
//! io_uring where it is allowed, and never silence where it is not: container runtimes' default profiles forbid it, so the
//! reason for a fallback is handed back as text, to be shown to whoever asks.

use std::env;
use std::io;
use std::sync::Arc;

use super::Io;
use super::threads::ThreadsIo;
use super::uring::{DEFAULT_ENTRIES, UringIo};

/// Overrides [`EngineChoice::Auto`]: `uring` or `threads`. The builder's explicit choice is stronger.
const OVERRIDE: &str = "RINGCASK_ENGINE";

/// Who carries out the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineChoice {
    /// io_uring where this machine lets us use it, blocking calls on threads otherwise. The environment variable
    /// `RINGCASK_ENGINE` (`uring` or `threads`) overrides it.
    #[default]
    Auto,
    /// io_uring (Linux 6.1 or later), or an error if it is not to be had.
    Uring,
    /// Blocking calls on the store's own threads.
    Threads,
}

/// How the engine [`Uring`](EngineChoice::Uring) makes appends and syncs. Reads go to a ring either way.
///
/// A buffered write and a sync never complete within `io_uring_enter` on ext4: the kernel hands each to a worker thread.
/// On the machine of `benches/RESULTS.md` these wake-ups cost more than what overlapping gains, at every number of writers.
/// Where wake-ups are cheap and the disk is fast the other path may win: measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WritePath {
    /// The commit thread makes the calls itself.
    #[default]
    Thread,
    /// The commit thread's ring: a group is told of its sync while the next one's is under way.
    Ring,
}

/// A world, and why it is not io_uring if that was tried first.
pub type OpenedBackend = (Arc<dyn Io>, Option<String>);

/// Opens the world of `choice`.
///
/// # Errors
/// If io_uring is demanded and refused (the message says why), or the environment names an engine that does not exist.
pub fn open_backend(choice: EngineChoice, write_path: WritePath) -> io::Result<OpenedBackend> {
    let named = if choice == EngineChoice::Auto { env::var_os(OVERRIDE) } else { None };
    let choice = match &named {
        None => choice,
        Some(name) => choice_named(&name.to_string_lossy())?,
    };
    open(choice, || UringIo::with_write_path(DEFAULT_ENTRIES, write_path))
}

fn choice_named(name: &str) -> io::Result<EngineChoice> {
    match name {
        "" | "auto" => Ok(EngineChoice::Auto),
        "uring" => Ok(EngineChoice::Uring),
        "threads" => Ok(EngineChoice::Threads),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{OVERRIDE} is {other:?}, which is none of uring, threads, auto"),
        )),
    }
}

fn open(choice: EngineChoice, uring: impl FnOnce() -> io::Result<UringIo>) -> io::Result<OpenedBackend> {
    match choice {
        EngineChoice::Threads => Ok((Arc::new(ThreadsIo::new()), None)),
        EngineChoice::Uring => Ok((Arc::new(uring()?), None)),
        EngineChoice::Auto => match uring() {
            Ok(world) => Ok((Arc::new(world), None)),
            Err(reason) => Ok((Arc::new(ThreadsIo::new()), Some(reason.to_string()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoKind;

    fn refused() -> io::Result<UringIo> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "forbidden here"))
    }

    #[test]
    fn a_refusal_falls_back_with_its_reason_unless_rings_are_demanded() {
        let (world, reason) = open(EngineChoice::Auto, refused).unwrap();
        assert_eq!((world.kind(), reason.as_deref()), (IoKind::Threads, Some("forbidden here")));
        assert_eq!(open(EngineChoice::Uring, refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let (world, reason) = open(EngineChoice::Threads, refused).unwrap();
        assert_eq!((world.kind(), reason), (IoKind::Threads, None));
    }

    #[test]
    fn the_environment_names_engines_and_nothing_else() {
        assert_eq!(choice_named("uring").unwrap(), EngineChoice::Uring);
        assert_eq!(choice_named("threads").unwrap(), EngineChoice::Threads);
        assert_eq!(choice_named("").unwrap(), EngineChoice::Auto);
        assert_eq!(choice_named("Threads").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
