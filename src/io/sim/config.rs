//! The properties of a simulated world.

use super::crash::DirOrder;

/// The properties of a simulated world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Decides everything that is open.
    pub seed: u64,
    /// The unit that is persisted or not, independently of others; 512 by default. Not 0.
    pub sector_bytes: usize,
    /// Which sets of directory operations survive a crash.
    pub dir_order: DirOrder,
    /// How many of a hundred `read_nowait` calls find that they would have to wait.
    pub nowait_miss_percent: u8,
    /// How many of a hundred reads and writes do only a part.
    pub short_percent: u8,
    /// How many of a hundred reads and writes are interrupted before they do anything.
    pub interrupt_percent: u8,
    /// How many of a hundred reads, writes and syncs take up to 20 ms; others overtake them.
    pub late_percent: u8,
    /// Whether the file system can claim space in advance.
    pub allocate: bool,
    /// What [`File::writes_in_place`](crate::io::File::writes_in_place) says.
    pub in_place: bool,
    /// How many bytes the disk has; `None` for no limit.
    pub capacity_bytes: Option<u64>,
    /// Whether events are kept for a [`Journal`].
    pub journal: bool,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            sector_bytes: 512,
            dir_order: DirOrder::Posix,
            nowait_miss_percent: 30,
            short_percent: 0,
            interrupt_percent: 0,
            late_percent: 0,
            allocate: true,
            in_place: true,
            capacity_bytes: None,
            journal: true,
        }
    }
}
