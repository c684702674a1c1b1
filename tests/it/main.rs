//! The behaviour of a store on real disks, with both engines, through the public API.
//!
//! The binary has one module per concern. `helpers` opens a store on every backend that runs here and reports those
//! that do not. `helpers::gated_io` wraps a real backend so that a test controls when a write or sync reaches it. Power
//! cuts are tested in `tests/crash` on the simulated disk, and kills at random moments in `tests/kill.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test must stop at an unexpected result; its helpers are not a public API"
)]

mod api;
mod bad_input;
mod cache;
mod cancel_points;
mod cancellation;
mod compaction;
mod compat;
mod concurrency;
mod directory_changes;
mod durability;
mod error_messages;
mod full_disk;
mod helpers;
mod leaks;
mod lifecycle;
mod linearizability;
mod panics;
mod preallocation_and_writeback;
mod prewritten_space;
mod recovery;
mod recovery_damage;
mod regressions;
mod reserve;
mod security;
mod small_histories;
mod submit;
mod syscalls;
mod waiting_futures;

#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod stages;
}
