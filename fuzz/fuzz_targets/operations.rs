//! Runs operations with faults and crashes; see `tests/support/crash/state_machine.rs`.
#![no_main]

#[path = "../../tests/support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod crash;
    pub mod history_model;
    pub mod panics;
}

use crate::support::crash::state_machine;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(failure) = state_machine::run_input(input) {
        panic!("{failure}");
    }
});
