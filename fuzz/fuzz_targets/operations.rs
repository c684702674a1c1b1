//! Operations with faults and crashes; see `tests/crash/machine.rs`.
#![no_main]

#[path = "../../tests/crash/callers.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod callers;
#[path = "../../tests/crash/machine.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod machine;
#[path = "../../tests/crash/model.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod model;
#[path = "../../tests/crash/panics.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod panics;
#[path = "../../tests/crash/swarm.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod swarm;
#[path = "../../tests/crash/workload/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the target of both")]
mod workload;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(failure) = machine::run_input(input) {
        panic!("{failure}");
    }
});
