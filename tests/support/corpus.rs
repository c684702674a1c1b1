//! Saved fuzz inputs: inputs that failed before, and inputs that reached new code under a coverage-guided fuzzer.

use std::fs;
use std::path::Path;

/// The files of a target's corpus, sorted by name.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(inputs.len() > 10, "{} inputs in the corpus of {target}", inputs.len());
    inputs
}
