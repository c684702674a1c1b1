//! Opens a store with a forged segment whose checksums are valid; see `tests/support/forged_files.rs`.
#![no_main]

#[path = "../../tests/support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod forged_files;
    pub mod fuzz_targets;
    pub mod small_stores;
}

use crate::support::forged_files;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    forged_files::segment(input);
});
