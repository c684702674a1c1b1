//! The crash exploration: calls drawn from a seed, a crash or a failure during them, and the checks of the remaining
//! state.
//!
//! `tests/crash` runs it against the store, `tests/seeded_bugs` against the store with a seeded bug.

pub mod concurrent_calls;
pub mod explore;
pub mod failed_operations;
pub mod phases;
pub mod reopened_checks;
pub mod state_machine;
pub mod swarm;
pub mod workload;
pub mod wrong_reads;
