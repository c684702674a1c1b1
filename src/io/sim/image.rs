//! The contents of a disk that is switched off: the initial state of a simulation, and what a crash leaves.
//!
//! Images and simulations share the contents of files and copy a file only to change it, so thousands of images of one
//! store need little more memory than their differences.

use std::fmt;
use std::sync::Arc;

use super::rng::scramble;

/// One directory entry on the disk.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ImageFile {
    pub(super) dir: Arc<str>,
    pub(super) name: Arc<str>,
    /// `None` if it is not a regular file.
    pub(super) bytes: Option<Arc<Vec<u8>>>,
}

/// The contents of a simulated disk that is switched off. Cheap to clone.
///
/// A directory is identified by its path, and a name is unique within its directory. Methods that take only a name
/// refer to the first directory that contains it, because a store keeps all its files in one directory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Image {
    pub(super) dirs: Arc<Vec<Arc<str>>>,
    /// Sorted by directory and name.
    pub(super) files: Vec<ImageFile>,
}

impl Image {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The directories, in creation order.
    pub fn dirs(&self) -> impl Iterator<Item = &str> {
        self.dirs.iter().map(|dir| &**dir)
    }

    /// The names in all directories, sorted within each directory.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| &*file.name)
    }

    /// The contents of the regular file `name`.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.find(name)?.bytes.as_deref().map(Vec::as_slice)
    }

    /// The sum of the lengths of all files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)).sum()
    }

    /// A hash of the contents. Equal images have equal hashes in every process and version.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = 0;
        for file in &self.files {
            hash = hash_bytes(hash, file.dir.as_bytes());
            hash = hash_bytes(hash, file.name.as_bytes());
            hash = match &file.bytes {
                Some(bytes) => hash_bytes(hash, bytes),
                None => scramble(hash ^ 1),
            };
        }
        hash
    }

    /// Adds a regular file, replacing an entry of the same name. Creates the directory if necessary.
    pub fn insert(&mut self, dir: &str, name: &str, bytes: impl Into<Vec<u8>>) {
        self.place(dir, name, Some(Arc::new(bytes.into())));
    }

    /// Adds an entry that is not a regular file: a directory, a pipe or a link.
    pub fn insert_other(&mut self, dir: &str, name: &str) {
        self.place(dir, name, None);
    }

    /// Removes `name`. Returns false if it does not exist.
    pub fn remove(&mut self, name: &str) -> bool {
        let found = self.files.iter().position(|file| &*file.name == name);
        found.map(|index| self.files.remove(index)).is_some()
    }

    /// Renames `from` within its directory, replacing `to`. Returns false if `from` does not exist.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(index) = self.files.iter().position(|file| &*file.name == from) else { return false };
        let file = self.files.remove(index);
        self.place(&file.dir, to, file.bytes);
        true
    }

    /// Copies `from` to `to` in the same directory, replacing `to`. Returns false if `from` does not exist.
    pub fn duplicate(&mut self, from: &str, to: &str) -> bool {
        let Some(file) = self.find(from).cloned() else { return false };
        self.place(&file.dir, to, file.bytes);
        true
    }

    /// Changes the contents of the regular file `name`. Returns false if it does not exist.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> bool {
        let file = self.files.iter_mut().find(|file| &*file.name == name);
        let Some(bytes) = file.and_then(|file| file.bytes.as_mut()) else { return false };
        edit(Arc::make_mut(bytes));
        true
    }

    /// Flips bit number `bit` of file `name`, counted from the lowest bit of the first byte. Returns false if there is
    /// no such bit.
    pub fn flip_bit(&mut self, name: &str, bit: u64) -> bool {
        let mut flipped = false;
        self.edit(name, |bytes| {
            if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        });
        flipped
    }

    /// Truncates file `name` to `len` bytes, or extends it with zeros. Returns false if it does not exist.
    pub fn truncate(&mut self, name: &str, len: usize) -> bool {
        self.edit(name, |bytes| bytes.resize(len, 0))
    }

    pub(super) fn add_dir(&mut self, dir: &str) -> Arc<str> {
        if let Some(known) = self.dirs.iter().find(|known| &***known == dir) {
            return known.clone();
        }
        let dir: Arc<str> = dir.into();
        Arc::make_mut(&mut self.dirs).push(dir.clone());
        dir
    }

    fn find(&self, name: &str) -> Option<&ImageFile> {
        self.files.iter().find(|file| &*file.name == name)
    }

    fn place(&mut self, dir: &str, name: &str, bytes: Option<Arc<Vec<u8>>>) {
        let dir = self.add_dir(dir);
        match self.files.binary_search_by(|file| (&*file.dir, &*file.name).cmp(&(&*dir, name))) {
            Ok(index) => {
                if let Some(file) = self.files.get_mut(index) {
                    file.bytes = bytes;
                }
            }
            Err(index) => self.files.insert(index, ImageFile { dir, name: name.into(), bytes }),
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.files.iter().map(|file| {
            let len = file.bytes.as_ref().map(|bytes| bytes.len());
            (format!("{}/{}", file.dir, file.name), len)
        });
        f.debug_map().entries(entries).finish()
    }
}

/// Hashes eight bytes at a time, because tests hash millions of images.
fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(0x2545_f491_4f6c_dd1d);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        hash ^= hash >> 29;
    }
    for byte in rest {
        hash = (hash.rotate_left(9) ^ u64::from(*byte)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    }
    scramble(hash)
}
