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
use crate::options::{Engine, WritePath};

/// Overrides [`Engine::Auto`]: `uring` or `threads`. The builder's explicit choice is stronger.
const OVERRIDE: &str = "RINGCASK_ENGINE";

/// A world, and why it is not io_uring if that was tried first.
pub type OpenedWorld = (Arc<dyn Io>, Option<String>);

/// Opens the world of `choice`.
///
/// # Errors
/// If io_uring is demanded and refused (the message says why), or the environment names an engine that does not exist.
pub fn open_world(choice: Engine, write_path: WritePath) -> io::Result<OpenedWorld> {
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
            format!("{OVERRIDE} is {other:?}, which is none of uring, threads, auto"),
        )),
    }
}

fn open(choice: Engine, uring: impl FnOnce() -> io::Result<UringIo>) -> io::Result<OpenedWorld> {
    match choice {
        Engine::Threads => Ok((Arc::new(ThreadsIo::new()), None)),
        Engine::Uring => Ok((Arc::new(uring()?), None)),
        Engine::Auto => match uring() {
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
        let (world, reason) = open(Engine::Auto, refused).unwrap();
        assert_eq!((world.kind(), reason.as_deref()), (IoKind::Threads, Some("forbidden here")));
        assert_eq!(open(Engine::Uring, refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let (world, reason) = open(Engine::Threads, refused).unwrap();
        assert_eq!((world.kind(), reason), (IoKind::Threads, None));
    }

    #[test]
    fn the_environment_names_engines_and_nothing_else() {
        assert_eq!(choice_named("uring").unwrap(), Engine::Uring);
        assert_eq!(choice_named("threads").unwrap(), Engine::Threads);
        assert_eq!(choice_named("").unwrap(), Engine::Auto);
        assert_eq!(choice_named("Threads").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
