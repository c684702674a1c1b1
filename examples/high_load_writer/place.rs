//! The directory of the store and the type of its file system.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Failure;

/// The directory of the store.
pub(crate) struct Place {
    path: PathBuf,
    temporary: Option<TempDir>,
    file_system: FileSystem,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    Named(&'static str),
    Memory(&'static str),
    Other(u64),
}

impl Place {
    /// Prepares `dir`, which must be new or empty, or a temporary directory that is removed at the end.
    pub(crate) fn prepare(dir: Option<&Path>) -> Result<Self, Failure> {
        let (path, temporary) = match dir {
            Some(dir) => (given(dir)?, None),
            None => {
                let target = Path::new("target");
                let parent = if target.is_dir() { target.to_path_buf() } else { std::env::temp_dir() };
                let fresh = tempfile::Builder::new().prefix("high-load-writer-").tempdir_in(&parent);
                let fresh = fresh.map_err(|error| format!("cannot create a directory in {parent:?}: {error}"))?;
                (fresh.path().to_path_buf(), Some(fresh))
            }
        };
        let file_system = FileSystem::of(&path)?;
        Ok(Self { path, temporary, file_system })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a temporary directory, or keeps it for inspection after a fault.
    pub(crate) fn clean_up(self, good: bool) {
        match self.temporary {
            Some(temporary) if good => {
                if let Err(error) = temporary.close() {
                    eprintln!("note: cannot remove {:?}: {error}", self.path);
                }
            }
            Some(temporary) => eprintln!("the store was kept for inspection in {:?}", temporary.keep()),
            None => {}
        }
    }
}

fn given(dir: &Path) -> Result<PathBuf, Failure> {
    if dir.exists() && !dir.is_dir() {
        return Err(format!("--dir {dir:?} is not a directory").into());
    }
    fs::create_dir_all(dir).map_err(|error| format!("cannot create --dir {dir:?}: {error}"))?;
    let mut entries = fs::read_dir(dir).map_err(|error| format!("cannot list --dir {dir:?}: {error}"))?;
    if entries.next().is_some() {
        return Err(format!(
            "--dir {dir:?} is not empty; choose a new directory, because every key of the store is checked"
        )
        .into());
    }
    Ok(dir.to_path_buf())
}

impl FileSystem {
    fn of(path: &Path) -> Result<Self, Failure> {
        let status = rustix::fs::statfs(path)
            .map_err(|error| format!("cannot find out the file system of {path:?}: {error}"))?;
        Ok(match status.f_type as u64 {
            0xEF53 => Self::Named("ext4"),
            0x5846_5342 => Self::Named("xfs"),
            0x9123_683E => Self::Named("btrfs"),
            0xF2F5_2010 => Self::Named("f2fs"),
            0x2FC1_2FC1 => Self::Named("zfs"),
            0x794C_7630 => Self::Named("overlayfs"),
            0x6969 => Self::Named("nfs"),
            0x0102_1994 => Self::Memory("tmpfs"),
            0x8584_58F6 => Self::Memory("ramfs"),
            other => Self::Other(other),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = if self.temporary.is_some() { "removed at the end" } else { "kept" };
        write!(f, "store in {} (", self.path.display())?;
        match self.file_system {
            FileSystem::Named(name) | FileSystem::Memory(name) => write!(f, "{name}, {fate})")?,
            FileSystem::Other(magic) => write!(f, "file system {magic:#x}, {fate})")?,
        }
        match self.file_system {
            FileSystem::Memory(name) => {
                write!(f, "\nnote: {name} is in memory: the figures do not apply to a disk, and nothing is durable")
            }
            _ => Ok(()),
        }
    }
}
