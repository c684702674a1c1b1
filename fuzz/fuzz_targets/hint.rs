//! A hint that lies under right checksums; see `tests/fuzz/forged.rs`.
#![no_main]

#[path = "../../tests/fuzz/forged.rs"]
#[allow(dead_code, reason = "the target of both")]
mod forged;
#[path = "../../tests/corruption/stores.rs"]
#[allow(dead_code, reason = "the target of both")]
mod stores;
#[path = "../../tests/fuzz/targets.rs"]
#[allow(dead_code, reason = "the target of both")]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    forged::hint(input);
});
