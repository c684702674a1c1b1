//! Swarm testing: every seed draws its own setup and its own mix of operations.
//!
//! A test that always does a little of everything never does a lot of one thing. Here most seeds leave out most
//! operations and run the others more often. Disk, timing, sizes and faults are drawn as well.

use ringcask::testing::sim::{FaultKind, OpClass, Rng};

use super::workload::{Op, Setup, Workload, compacts, durability, pick, random_batch, random_compact, together};
use crate::support::history_model::{COMMON_KEYS, KEYS};

/// Seeds from here on belong to the swarm. The even ones compact.
pub const SWARM_SEEDS: u64 = 1 << 41;

/// Whether the workload of `seed` belongs to the swarm.
pub fn is_swarm(seed: u64) -> bool {
    seed >= SWARM_SEEDS
}

/// Number of operation kinds that have a weight.
pub const OPS: usize = 14;

/// Which operations a seed runs, how often, and which faults it injects.
#[derive(Clone, Debug)]
pub struct Mix {
    weights: [usize; OPS],
    /// See [`durability`].
    durability: u8,
    keys: usize,
    /// Percentage of runs with an injected fault.
    fault_percent: u8,
}

impl Mix {
    pub fn random(rng: &mut Rng, compacts: bool) -> Self {
        let mut weights = [0; OPS];
        for weight in &mut weights {
            *weight = pick(rng, &[0, 0, 1, 3, 10]);
        }
        // At least some operations must write.
        weights[0] = weights[0].max(2);
        if !compacts {
            weights[OPS - 2..].fill(0);
        }
        Self {
            weights,
            durability: u8::try_from(rng.below(6)).unwrap(),
            // The longest possible key is rare, because it makes every image large.
            keys: if rng.percent(6) { KEYS } else { 1 + rng.below(COMMON_KEYS) },
            fault_percent: pick(rng, &[0, 0, 30, 80]),
        }
    }

    fn key(&self, rng: &mut Rng) -> usize {
        // Keys count from the end, so the longest key is included only if all keys are.
        (if self.keys > COMMON_KEYS { KEYS } else { COMMON_KEYS }) - 1 - rng.below(self.keys)
    }

    pub fn op(&self, rng: &mut Rng) -> Op {
        let mut left = rng.below(self.weights.iter().sum());
        let mut kind = 0;
        while left >= self.weights[kind] {
            left -= self.weights[kind];
            kind += 1;
        }
        self.op_of(kind, rng)
    }

    /// One operation of kind `kind`, which is below [`OPS`].
    pub fn op_of(&self, kind: usize, rng: &mut Rng) -> Op {
        let (key, durability) = (self.key(rng), durability(rng, self.durability));
        match kind {
            0 => Op::Put { key, durability },
            1 => Op::Delete { key, durability },
            2 => random_batch(rng, durability),
            3 => together(rng, self.durability),
            4 => Op::Dropped { key, durability, polls: rng.below(6) },
            5 => self.callers(rng),
            6 => Op::Get { key },
            7 => Op::Sync,
            8 => Op::Sleep { millis: pick(rng, &[1, 6, 60, 1100]) },
            9 => Op::Wait { micros: pick(rng, &[20, 100, 300, 1000, 3000]) },
            10 => Op::Reopen,
            11 => Op::Batch {
                keys: (0..4 + rng.below(6)).map(|_| (self.key(rng), rng.percent(40))).collect(),
                durability,
            },
            12 => random_compact(rng, self.durability),
            _ => Op::Pause(rng.percent(50)),
        }
    }

    /// Concurrent callers. Each waits for its call before it makes the next one.
    fn callers(&self, rng: &mut Rng) -> Op {
        let mut deletes_left = 2;
        let mut call = |rng: &mut Rng| {
            let (key, durability) = (self.key(rng), durability(rng, self.durability));
            match rng.below(10) {
                0..6 => Op::Put { key, durability },
                6 => random_batch(rng, durability),
                // A delete returns no version, so its order among concurrent calls is unknown. With more deletes, every
                // result would be possible.
                7 if deletes_left > 0 => {
                    deletes_left -= 1;
                    Op::Delete { key, durability }
                }
                _ => Op::Get { key },
            }
        };
        Op::Callers {
            lists: (0..2 + rng.below(3)).map(|_| (0..1 + rng.below(4)).map(|_| call(rng)).collect()).collect(),
        }
    }

    /// `count` operations, possibly with faults among them. Also returns whether operations may fail.
    pub fn ops(&self, rng: &mut Rng, count: usize) -> (Vec<Op>, bool) {
        let mut ops: Vec<Op> = (0..count).map(|_| self.op(rng)).collect();
        let may_fail = rng.percent(self.fault_percent);
        for _ in 0..if may_fail { 1 + rng.below(3) } else { 0 } {
            let at = rng.below(ops.len() + 1);
            let until = (at + 1 + rng.below(5)).min(ops.len() + 1);
            let (fault, end) = fault_and_end(rng);
            ops.insert(at, fault);
            ops.insert(until, end);
        }
        (ops, may_fail)
    }

    /// The operations to run on a recovered store.
    pub fn sequel(&self, rng: &mut Rng) -> (Vec<Op>, bool) {
        let count = 2 + rng.below(6);
        self.ops(rng, count)
    }
}

/// A fault, and the operation that ends it.
pub fn fault_and_end(rng: &mut Rng) -> (Op, Op) {
    if rng.percent(25) {
        let space = pick(rng, &[0, 100, 600, 2500, 9000]);
        return (Op::Space(Some(space)), Op::Space(None));
    }
    let classes = [
        OpClass::Any,
        OpClass::Any,
        OpClass::Write,
        OpClass::Write,
        OpClass::Sync,
        OpClass::Read,
        OpClass::DirSync,
        OpClass::Create,
        OpClass::Rename,
        OpClass::Truncate,
        OpClass::Allocate,
        OpClass::Unlink,
    ];
    let errnos = [FaultKind::EIO, FaultKind::ENOSPC, FaultKind::EDQUOT, FaultKind::ENOMEM, FaultKind::EFBIG];
    let (class, mut kind) = (pick(rng, &classes), pick(rng, &errnos));
    if rng.percent(40) {
        kind = match class {
            OpClass::Sync => pick(rng, &[FaultKind::SyncKept, FaultKind::SyncLost, FaultKind::SyncPartial]),
            OpClass::Write => pick(rng, &[FaultKind::Short(0), FaultKind::Short(1), FaultKind::Short(40)]),
            _ => pick(rng, &[FaultKind::EINTR, FaultKind::EAGAIN, FaultKind::ECANCELED, FaultKind::EMFILE]),
        };
    }
    let after = pick(rng, &[0, 0, 1, 3, 10]);
    (Op::FailLater { class, after, kind, sticky: rng.percent(40) }, Op::Heal)
}

/// A setup with more extreme values than that of other workloads.
pub fn setup(rng: &mut Rng) -> Setup {
    let mut setup = Setup::random(rng);
    setup.segment_bytes = pick(rng, &[1024, 1500, 2048, 4096, 16 << 10, 64 << 10]);
    setup.reserve_bytes = pick(rng, &[0, 0, 1024, 8192, 32 << 10]);
    setup.staging_bytes = pick(rng, &[None, None, Some(64 << 10), Some(128 << 10)]);
    setup.sim.nowait_miss_percent = pick(rng, &[0, 10, 50, 100]);
    setup.sim.short_percent = pick(rng, &[0, 0, 0, 20, 60]);
    setup.sim.interrupt_percent = pick(rng, &[0, 0, 0, 10, 30]);
    setup.sim.late_percent = pick(rng, &[0, 0, 10, 50]);
    setup
}

/// The workload of a swarm seed.
pub fn workload(seed: u64) -> Workload {
    let mut rng = Rng::new(seed);
    let setup = setup(&mut rng);
    let mix = Mix::random(&mut rng, compacts(seed));
    let count = 2 + rng.below(30);
    let (ops, may_fail) = mix.ops(&mut rng, count);
    Workload { setup, ops, may_fail, mix: Some(mix) }
}
