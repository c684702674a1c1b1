//! What the benches of the disk have in common.

use std::path::Path;

use tempfile::TempDir;

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
