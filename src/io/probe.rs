//! Chooses the backend of a store.
//!
//! Uses io_uring where the system allows it. The default profiles of container runtimes forbid it, so a fallback
//! returns its reason as text for the store to report.

use std::env;
use std::io;
use std::sync::Arc;

use super::Io;
use super::threads::ThreadsIo;
use super::uring::{DEFAULT_ENTRIES, UringIo};

/// Overrides [`EngineChoice::Auto`] with `uring` or `threads`. An explicit choice by the builder takes precedence.
const OVERRIDE: &str = "RINGCASK_ENGINE";

/// The engine that carries out the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineChoice {
    /// io_uring if the system supports and permits it, otherwise blocking calls on threads (default). The environment
    /// variable `RINGCASK_ENGINE` (`uring` or `threads`) overrides this value.
    #[default]
    Auto,
    /// io_uring (Linux 6.1 or later). Opening the store fails if io_uring is unavailable.
    Uring,
    /// Blocking calls on the store's own threads.
    Threads,
}

/// How the engine [`Uring`](EngineChoice::Uring) carries out appends and syncs. Reads use a ring in both cases.
///
/// On ext4, buffered writes and syncs never complete within `io_uring_enter`: the kernel hands each to a worker thread.
/// These wake-ups usually cost more than the overlap gains. Where wake-ups are cheap and the disk is fast,
/// [`Ring`](Self::Ring) may be faster; measure it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WritePath {
    /// The commit thread makes the system calls itself (default).
    #[default]
    Thread,
    /// The commit thread submits to its ring. The next group's sync can run while this group's writers are notified.
    Ring,
}

/// An opened backend and, if [`EngineChoice::Auto`] fell back to threads, the reason.
pub type OpenedBackend = (Arc<dyn Io>, Option<String>);

/// Opens the backend that `choice` selects.
///
/// # Errors
///
/// If io_uring is required but refused (the message gives the reason), or the environment variable names an unknown
/// engine.
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
            format!("{OVERRIDE} is {other:?}, expected uring, threads or auto"),
        )),
    }
}

fn open(choice: EngineChoice, uring: impl FnOnce() -> io::Result<UringIo>) -> io::Result<OpenedBackend> {
    match choice {
        EngineChoice::Threads => Ok((Arc::new(ThreadsIo::new()), None)),
        EngineChoice::Uring => Ok((Arc::new(uring()?), None)),
        EngineChoice::Auto => match uring() {
            Ok(backend) => Ok((Arc::new(backend), None)),
            Err(reason) => Ok((Arc::new(ThreadsIo::new()), Some(reason.to_string()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoKind;

    fn refused() -> io::Result<UringIo> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "forbidden"))
    }

    #[test]
    fn a_refused_ring_falls_back_with_its_reason_unless_required() {
        let (backend, reason) = open(EngineChoice::Auto, refused).unwrap();
        assert_eq!((backend.kind(), reason.as_deref()), (IoKind::Threads, Some("forbidden")));
        assert_eq!(open(EngineChoice::Uring, refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let (backend, reason) = open(EngineChoice::Threads, refused).unwrap();
        assert_eq!((backend.kind(), reason), (IoKind::Threads, None));
    }

    #[test]
    fn the_environment_variable_accepts_engine_names_only() {
        assert_eq!(choice_named("uring").unwrap(), EngineChoice::Uring);
        assert_eq!(choice_named("threads").unwrap(), EngineChoice::Threads);
        assert_eq!(choice_named("").unwrap(), EngineChoice::Auto);
        assert_eq!(choice_named("Threads").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
