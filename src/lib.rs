//! An embedded, durable key-value store for Linux services that await their storage.

mod error;
pub mod io;

pub use error::{Error, ErrorKind, Outcome, Result};
