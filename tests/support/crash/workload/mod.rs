//! Workloads: drawn from a seed, run against a store, and recorded as a history.
//!
//! | job | module |
//! |---|---|
//! | draws operations at random | `ops` |
//! | the simulated backend and the options of the store | `setup` |
//! | runs operations in sequence and records their results | `run` |
//! | runs one or several concurrent writes | `writes` |
//! | runs compactions with other operations beside them | `jobs` |
//! | checks what readers see | `views` |

mod jobs;
mod ops;
mod run;
mod setup;
mod views;
mod writes;

use ringcask::Durability;
use ringcask::testing::sim::{FaultKind, OpClass, Rng};

pub use self::ops::{End, Op, durability, pick, random_batch, random_compact, together};
pub use self::run::Run;
pub use self::setup::Setup;
pub use self::views::{read_all, read_undamaged};
pub use self::writes::WriteFuture;

use self::ops::{compacting_op, concurrent_op, random_op};
use crate::support::crash::swarm::{self, Mix, is_swarm};
use crate::support::history_model::COMMON_KEYS;

/// Workloads with seeds from here on compact and delete more.
pub const COMPACTING_SEEDS: u64 = 1 << 40;

/// Whether the workload of `seed` compacts.
pub fn compacts(seed: u64) -> bool {
    if is_swarm(seed) { seed.is_multiple_of(2) } else { seed >= COMPACTING_SEEDS }
}

#[derive(Clone, Debug)]
pub struct Workload {
    pub setup: Setup,
    pub ops: Vec<Op>,
    /// Operations may fail: the operations include faults or a full disk.
    pub may_fail: bool,
    /// For swarm seeds: the mix of operations, used after a crash as well.
    pub mix: Option<Mix>,
}

impl Workload {
    pub fn from_seed(seed: u64) -> Self {
        if is_swarm(seed) {
            return swarm::workload(seed);
        }
        let mut rng = Rng::new(seed);
        let setup = Setup::random(&mut rng);
        let count = 3 + rng.below(26);
        let fault = rng.below(10);
        let mix = u8::try_from(rng.below(6)).unwrap();
        let random_op = if compacts(seed) { compacting_op } else { random_op };
        let mut ops: Vec<Op> = (0..count).map(|_| random_op(&mut rng, mix)).collect();
        let mut insert = |rng: &mut Rng, op: Op| {
            let at = rng.below(ops.len() + 1);
            ops.insert(at, op);
        };
        match fault {
            0 => {
                for _ in 0..1 + rng.below(3) {
                    let space = rng.below(2500) as u64;
                    insert(&mut rng, Op::Space(Some(space)));
                    insert(&mut rng, Op::Space(None));
                }
            }
            1 => {
                let kinds = [FaultKind::SyncKept, FaultKind::SyncLost, FaultKind::SyncPartial, FaultKind::EIO];
                let kind = pick(&mut rng, &kinds);
                insert(&mut rng, Op::Fail { class: OpClass::Sync, kind });
                ops.push(Op::Reopen);
                ops.extend((0..4).map(|_| random_op(&mut rng, mix)));
            }
            2 => {
                for _ in 0..1 + rng.below(2) {
                    let kind = pick(&mut rng, &[FaultKind::EIO, FaultKind::ENOSPC, FaultKind::Short(0)]);
                    insert(&mut rng, Op::Fail { class: OpClass::Write, kind });
                }
            }
            _ => {}
        }
        Self { setup, ops, may_fail: fault < 3, mix: None }
    }

    /// Synced writes that share commit groups.
    pub fn group(rng: &mut Rng) -> Op {
        together(rng, 0)
    }

    /// A compaction with other operations beside it. It is awaited after them.
    pub fn compaction(rng: &mut Rng) -> Op {
        let ops = (0..2 + rng.below(3)).map(|_| concurrent_op(rng, 3)).collect();
        // Mostly compacts sealed segments only: such a compaction does not wait for the write in flight.
        let which = rng.percent(70).then_some(u64::MAX);
        let early = Op::Put { key: rng.below(COMMON_KEYS), durability: Durability::Synced };
        Op::Compact { which, early: Some(Box::new(early)), ops, end: End::Awaited }
    }

    /// A few operations for a store that was just recovered. None of them may fail.
    pub fn sequel(rng: &mut Rng, compacts: bool) -> Vec<Op> {
        let mix = u8::try_from(rng.below(6)).unwrap();
        let count = 2 + rng.below(5);
        let random_op = if compacts { compacting_op } else { random_op };
        (0..count).map(|_| random_op(rng, mix)).collect()
    }
}
