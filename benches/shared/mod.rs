//! Helpers shared by the benchmarks that use a disk.

use std::path::Path;

use tempfile::TempDir;

/// Creates a fresh directory under `target`, on the disk that holds the build.
pub(crate) fn place(bench: &str) -> TempDir {
    let parent = Path::new("target");
    let parent = if parent.is_dir() { parent.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix(&format!("{bench}-")).tempdir_in(parent).unwrap()
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
