//! The behaviour of a store on real disks, on both engines, through the public API.
//!
//! One binary, a module per concern. [`support`] opens stores on every world that runs here and says loudly which does
//! not; [`gate`] wraps a real world so that a test decides when a write or sync reaches it. What a power cut leaves is
//! not this suite's concern (the simulated disk's is), nor is a kill at random moments (`tests/kill.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test that meets something unforeseen should stop there; its helpers are nobody's API"
)]

mod api;
mod bad_input;
mod cache;
mod cancel;
mod cancel_points;
mod compaction;
mod compat;
mod concurrency;
mod counting;
mod durability;
mod filler;
mod fork;
mod full_disk;
mod gate;
mod leaks;
mod lifecycle;
mod linearizability;
mod order;
mod panics;
mod prewrite;
#[path = "../proof/mod.rs"]
mod proof;
mod recovery;
mod recovery_damage;
mod regressions;
mod reserve;
mod security;
mod small_histories;
mod submit;
mod support;
mod syscalls;
mod waiting;
