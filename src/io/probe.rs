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
use crate::options::{Engine, WritePath};

/// Overrides [`Engine::Auto`] with `uring` or `threads`. An explicit choice by the builder takes precedence.
const OVERRIDE: &str = "RINGCASK_ENGINE";

/// An opened backend and, if [`Engine::Auto`] fell back to threads, the reason.
pub type OpenedBackend = (Arc<dyn Io>, Option<String>);

/// Opens the backend that `choice` selects.
///
/// # Errors
///
/// If io_uring is required but refused (the message gives the reason), or the environment variable names an unknown
/// engine.
pub fn open_backend(choice: Engine, write_path: WritePath) -> io::Result<OpenedBackend> {
    let named = if choice == Engine::Auto { env::var_os(OVERRIDE) } else { None };
    let choice = match &named {
        None => choice,
        Some(name) => choice_named(&name.to_string_lossy())?,
    };
    open(choice, || UringIo::with_write_path(DEFAULT_ENTRIES, write_path))
}

fn choice_named(name: &str) -> io::Result<Engine> {
    match name {
        "" | "auto" => Ok(Engine::Auto),
        "uring" => Ok(Engine::Uring),
        "threads" => Ok(Engine::Threads),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{OVERRIDE} is {other:?}, expected uring, threads or auto"),
        )),
    }
}

fn open(choice: Engine, uring: impl FnOnce() -> io::Result<UringIo>) -> io::Result<OpenedBackend> {
    match choice {
        Engine::Threads => Ok((Arc::new(ThreadsIo::new()), None)),
        Engine::Uring => Ok((Arc::new(uring()?), None)),
        Engine::Auto => match uring() {
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
        let (backend, reason) = open(Engine::Auto, refused).unwrap();
        assert_eq!((backend.kind(), reason.as_deref()), (IoKind::Threads, Some("forbidden")));
        assert_eq!(open(Engine::Uring, refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let (backend, reason) = open(Engine::Threads, refused).unwrap();
        assert_eq!((backend.kind(), reason), (IoKind::Threads, None));
    }

    #[test]
    fn the_environment_variable_accepts_engine_names_only() {
        assert_eq!(choice_named("uring").unwrap(), Engine::Uring);
        assert_eq!(choice_named("threads").unwrap(), Engine::Threads);
        assert_eq!(choice_named("").unwrap(), Engine::Auto);
        assert_eq!(choice_named("Threads").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
