//! A child process that writes, a parent that stops it, and the check of the reopened store.
//!
//! The child is the test binary, restarted with a single test. It opens the store, and four writers with different
//! durability levels write an acknowledgment to a pipe after each resolved future. The parent stops the child by a kill
//! or by cutting the power of its disk. Then it drains the pipe, reopens the store and checks it. The seed determines
//! what a writer does, so the parent knows every value that was ever written.
//!
//! [`check`] compares each reopened store with the acknowledgments that reached the pipe (`acked`):
//! - The keys of each writer have the state after some prefix of its operations: no unknown value, no partial batch, no
//!   resurrected delete, and nothing of another writer.
//! - That prefix includes every acknowledged operation of the levels that survive the stop, and everything with a lower
//!   version. It ends at most one operation after the last acknowledged one.
//! - The lost acknowledged operations of other levels are a suffix of the log, over all writers.
//! - An operation that was reported as not applied is absent.
//!
//! Operations in flight during a power cut are in doubt, whatever their result: a sync that coincides with the shutdown
//! of an ext4 may return success for data that is lost (plain `pwrite` and `fdatasync` show this in one of forty cuts).
//! No real machine survives to see such a result. An operation requested after the cut must not be acknowledged and
//! lost.

mod check;
mod child;
mod parent;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ringcask::{Builder, Compaction, Durability, Engine, Store, WritePath};

pub use check::{Survivors, Totals, check};
pub use child::{child, is_child};
pub use parent::{Acks, Running};

pub const WRITERS: usize = 4;
pub const KEYS: u64 = 12;
/// Time after which an operation counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// SplitMix64: small, and the same on every platform.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A writer's keys and their values.
pub type State = BTreeMap<String, Vec<u8>>;

pub fn key_of(writer: usize, key: u64) -> String {
    format!("writer-{writer}-key-{key}")
}

/// One operation: keys and their new values. `None` deletes a key, several keys are a batch.
pub struct Op {
    pub level: Durability,
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

/// The operations of a writer in one generation, the same in the child and in the parent.
pub struct Script {
    rng: Rng,
    writer: usize,
    present: Vec<bool>,
}

impl Script {
    pub fn new(seed: u64, writer: usize, contains: impl Fn(&str) -> bool) -> Self {
        let present = (0..KEYS).map(|key| contains(&key_of(writer, key))).collect();
        Self { rng: Rng(seed ^ (writer as u64 + 1) << 56), writer, present }
    }

    pub fn next_op(&mut self) -> Op {
        let level = match self.writer {
            0 => Durability::Synced,
            1 => Durability::Written,
            2 => Durability::Buffered,
            _ => [Durability::Buffered, Durability::Written, Durability::Synced][self.rng.below(3) as usize],
        };
        let first = self.rng.below(KEYS);
        let count = if self.rng.below(5) == 0 { 2 + self.rng.below(3) } else { 1 };
        let changes = (0..count).map(|index| self.change((first + index) % KEYS)).collect();
        Op { level, changes }
    }

    /// Deletes only keys that exist: deleting an absent key writes nothing, so the check would find no trace of it.
    fn change(&mut self, key: u64) -> (String, Option<Vec<u8>>) {
        let was_present = std::mem::replace(&mut self.present[key as usize], true);
        if was_present && self.rng.below(4) == 0 {
            self.present[key as usize] = false;
            return (key_of(self.writer, key), None);
        }
        let len = if self.rng.below(40) == 0 { 4000 + self.rng.below(16_000) } else { 16 + self.rng.below(400) };
        let mut value = Vec::with_capacity(len as usize + 8);
        while value.len() < len as usize {
            value.extend_from_slice(&self.rng.next().to_le_bytes());
        }
        (key_of(self.writer, key), Some(value))
    }
}

/// The store of one generation. The seed determines its segment size, intervals, compaction and write path.
pub fn builder(engine: Engine, path: &Path, seed: u64) -> Builder {
    let interval = |ms| Duration::from_millis(ms);
    let builder =
        Store::builder(path).engine(engine).segment_bytes(16 << 10 << (2 * (seed % 4))).reserve_bytes(64 << 10);
    // Stops should often hit a compaction, so every second store is compacted all the time.
    let compaction = if seed.is_multiple_of(2) {
        Compaction::new().trigger(0.1).threshold(0.05).bytes_per_second(None)
    } else {
        Compaction::new()
    };
    let write_path = if seed.is_multiple_of(3) { WritePath::Ring } else { WritePath::Thread };
    let builder = builder.compaction(compaction).write_path(write_path);
    builder.flush_interval(interval(1 + seed % 4)).sync_interval(interval(1 + seed % 20)).staging_bytes(64 << 10)
}

/// Nanoseconds on a clock that all processes share.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The reason why the kernel refuses a ring, determined independently of the store.
pub fn uring_refused() -> Option<String> {
    let ring: std::io::Result<io_uring::IoUring> =
        io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(4);
    ring.err().map(|error| format!("io_uring is unavailable: {error}"))
}
