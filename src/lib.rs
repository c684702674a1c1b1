//! An embedded, durable key-value store for Linux services that await their storage.

mod error;
#[cfg(feature = "sim")]
pub mod format;
#[cfg(not(feature = "sim"))]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "the whole format, which tests reach under `sim`")]
mod format;
pub mod io;

pub use error::{Error, ErrorKind, Outcome, Result};
