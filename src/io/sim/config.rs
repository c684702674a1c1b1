//! The configuration of a simulated backend.

use super::crash::DirOrder;

/// The properties of a simulated backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Seed of every random decision.
    pub seed: u64,
    /// Bytes that are persisted or lost as a unit; 512 by default. Must not be 0.
    pub sector_bytes: usize,
    /// Which sets of directory operations survive a crash.
    pub dir_order: DirOrder,
    /// Percentage of `read_nowait` calls that return `WouldBlock`.
    pub nowait_miss_percent: u8,
    /// Percentage of reads and writes that are short.
    pub short_percent: u8,
    /// Percentage of reads and writes that are interrupted before they have any effect.
    pub interrupt_percent: u8,
    /// Percentage of reads, writes and syncs that take up to 20 ms, so that others overtake them.
    pub late_percent: u8,
    /// Whether the file system supports preallocation.
    pub allocate: bool,
    /// The result of [`File::writes_in_place`](crate::io::File::writes_in_place).
    pub in_place: bool,
    /// Capacity of the disk in bytes; `None` for no limit.
    pub capacity_bytes: Option<u64>,
    /// Whether to record events for a [`Journal`](crate::io::sim::Journal).
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
