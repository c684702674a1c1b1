//! Opens a directory of arbitrary files; see `tests/support/fuzz_targets.rs`.
#![no_main]

#[path = "../../tests/support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod fuzz_targets;
}

use crate::support::fuzz_targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_targets::open_directory(&fuzz_targets::image_of(input), 1);
});
