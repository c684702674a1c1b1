//! Bytes before every decoder; see `tests/fuzz/targets.rs`.
#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
#[allow(dead_code, reason = "the target of both")]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    targets::decode(input);
});
