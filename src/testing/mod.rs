//! What the crate's own tests use beyond the public API: the simulated disk, the file format, the I/O layer, and the
//! switch for seeded bugs.
//!
//! Compiled only with the private feature `__testing`. Not part of the API: every version may change it.

#[cfg(test)]
#[cfg(feature = "__shuttle")]
pub(crate) mod schedules;

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
