//! An embedded, durable key-value store for Linux services that await their storage.

pub use bytes;

mod batch;
mod commit;
mod core;
mod error;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod format;
#[cfg(not(feature = "sim"))]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "the whole format, which tests reach under `sim`")]
mod format;
mod futures;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod io;
#[cfg(not(feature = "sim"))]
#[allow(dead_code, unreachable_pub, reason = "the whole seam, which tests reach under `sim`")]
mod io;
mod keydir;
mod maintenance;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(feature = "sim"))]
#[allow(dead_code, unreachable_pub, reason = "the mistakes are switched on under `sim` only")]
mod mutant;
mod options;
mod promise;
mod read;
mod recovery;
mod segment;
mod stats;
mod store;
mod wake;

pub use batch::Batch;
pub use error::{Error, ErrorKind, Outcome, Result};
pub use futures::{Close, Delete, Get, Open, Put, Sync, WaitDurable, Write};
pub use options::{Builder, Durability, Engine, MAX_KEY_LEN, MAX_VALUE_LEN, PutOptions, Recovery};
pub use stats::{Damage, RecoveryReport, SegmentStats, Stats, Version};
pub use store::Store;

#[cfg(feature = "sim")]
pub use io::sim;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
