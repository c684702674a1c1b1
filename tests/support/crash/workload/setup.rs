//! The simulated backend of a run, and the options of its store.

use std::sync::Arc;

use ringcask::testing::io::Io;
use ringcask::testing::sim::{DirOrder, Rng, SimBackend, SimConfig};
use ringcask::{Builder, Compaction, Recovery, Store};

use super::pick;

/// The configuration of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub sim: SimConfig,
    pub segment_bytes: u64,
    pub cache_bytes: u64,
    pub reserve_bytes: u64,
    pub compaction: Compaction,
    pub is_automatic: bool,
    pub staging_bytes: Option<usize>,
}

impl Setup {
    pub fn random(rng: &mut Rng) -> Self {
        let rough = rng.percent(25);
        let seed = rng.next_u64();
        let (compaction, is_automatic) = random_compaction(&mut Rng::new(seed ^ 0xc0));
        Self {
            compaction,
            is_automatic,
            staging_bytes: None,
            sim: SimConfig {
                seed,
                sector_bytes: pick(rng, &[512, 512, 4096]),
                dir_order: pick(rng, &[DirOrder::Posix, DirOrder::Posix, DirOrder::Ext4Ordered]),
                nowait_miss_percent: pick(rng, &[0, 30, 100]),
                short_percent: if rough { 20 } else { 0 },
                interrupt_percent: if rough { 10 } else { 0 },
                late_percent: 0,
                allocate: !rng.percent(10),
                in_place: !rng.percent(20),
                capacity_bytes: None,
                journal: true,
            },
            segment_bytes: pick(rng, &[1024, 1500, 2048, 4096]),
            // Derived from the seed without a draw: an additional draw would change all others of the seed.
            cache_bytes: [0, 1024, 8192][(seed % 3) as usize],
            reserve_bytes: pick(rng, &[0, 0, 1024, 8192]),
        }
    }

    pub fn builder(&self, backend: &SimBackend) -> Builder {
        let io: Arc<dyn Io> = Arc::new(backend.clone());
        let builder = match self.staging_bytes {
            Some(bytes) => Store::builder("/db").staging_bytes(bytes),
            None => Store::builder("/db"),
        };
        builder
            .backend(io)
            .segment_bytes(self.segment_bytes)
            .cache_bytes(self.cache_bytes)
            .reserve_bytes(self.reserve_bytes)
            .compaction(self.compaction.clone())
    }

    /// Builder for a directory that lost its MANIFEST.
    pub fn salvaging(&self, backend: &SimBackend) -> Builder {
        self.builder(backend).recovery(Recovery::Salvage)
    }
}

/// Draws compaction options, and whether compaction runs automatically.
fn random_compaction(rng: &mut Rng) -> (Compaction, bool) {
    let is_automatic = rng.percent(50);
    let compaction = Compaction::new()
        .automatic(is_automatic)
        .trigger(pick(rng, &[0.05, 0.2, 0.5, 0.8]))
        .threshold(pick(rng, &[0.01, 0.05, 0.25]))
        .budget_bytes(pick(rng, &[1024, 4096, 1 << 20]))
        .bytes_per_second(pick(rng, &[None, None, None, Some(64 << 10)]));
    (compaction, is_automatic)
}
