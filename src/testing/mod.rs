//! Internals for the crate's own tests: the simulated disk, the file format, the I/O layer, and the switch for seeded bugs.
//!
//! Compiled under the private feature `__testing` only. It is not part of the API and may change in any version.

#[cfg(test)]
#[cfg(feature = "__shuttle")]
pub(crate) mod schedules;

/// The stages of the tests and their floors.
#[cfg(test)]
#[cfg(feature = "__shuttle")]
#[path = "../../tests/support/stages.rs"]
pub mod stages;

pub use crate::io::sim;

/// The on-disk format.
pub mod format {
    pub use crate::format::*;
}

/// The I/O layer and its backends.
pub mod io {
    pub use crate::io::*;
}

/// The bugs that a test switches on to check that it fails.
pub mod seeded_bug {
    pub use crate::seeded_bug::*;
}
