//! What the benches of the disk have in common.

use std::path::Path;

use tempfile::TempDir;

/// A key of 16 bytes.
pub(crate) fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench-key-------";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Numbers that jump about.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A fresh directory under `target`, so on the disk that one builds on.
pub(crate) fn place(bench: &str) -> TempDir {
    let parent = Path::new("target");
    let parent = if parent.is_dir() { parent.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix(&format!("{bench}-")).tempdir_in(parent).unwrap()
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
