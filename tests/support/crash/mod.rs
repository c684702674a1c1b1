//! The crash exploration: calls drawn from a seed, a crash or a failure in their midst, and the checks of what is left.
//!
//! `tests/crash` runs it against the store, and `tests/seeded_bugs` against the store with a known bug in it.

pub mod concurrent_calls;
pub mod explore;
pub mod failed_operations;
pub mod phases;
pub mod reopened_checks;
pub mod state_machine;
pub mod swarm;
pub mod workload;
pub mod wrong_reads;
