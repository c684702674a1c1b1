//! The operations, and how they are drawn.

use ringcask::Durability;
use ringcask::testing::sim::{FaultKind, OpClass, Rng};

use crate::support::history_model::COMMON_KEYS;

/// One call, or several concurrent ones.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: usize,
        durability: Durability,
    },
    Delete {
        key: usize,
        durability: Durability,
    },
    Batch {
        keys: Vec<(usize, bool)>,
        durability: Durability,
    },
    /// Several puts and batches. Each is polled once, in this order, with this pause of simulated time between them;
    /// then all are awaited together.
    Together {
        ops: Vec<Op>,
        apart_micros: u64,
    },
    /// Several callers that make puts, deletes, batches and gets. Each waits for its call before it makes the next one.
    Callers {
        lists: Vec<Vec<Op>>,
    },
    /// A put whose future is polled `polls` times and dropped.
    Dropped {
        key: usize,
        durability: Durability,
        polls: usize,
    },
    Get {
        key: usize,
    },
    Sync,
    Sleep {
        millis: u64,
    },
    /// Time in which a compaction advances by a few steps.
    Wait {
        micros: u64,
    },
    /// A compaction of all segments, or of the sealed ones whose bit is set, with other operations beside it.
    Compact {
        which: Option<u64>,
        /// A write that is in flight when the compaction is requested.
        early: Option<Box<Op>>,
        ops: Vec<Op>,
        end: End,
    },
    /// Pauses or resumes compaction.
    Pause(bool),
    /// Closes and reopens the store, without a crash.
    Reopen,
    /// Limits the disk to the current use plus this number of bytes, or removes the limit.
    Space(Option<u64>),
    /// Makes the next operation of this class fail.
    Fail {
        class: OpClass,
        kind: FaultKind,
    },
    /// Lets this number of operations of the class pass, then makes one fail, or all that follow.
    FailLater {
        class: OpClass,
        after: u64,
        kind: FaultKind,
        sticky: bool,
    },
    /// Ends all faults.
    Heal,
}

/// What happens to the compaction after the operations beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Awaited,
    Dropped,
    /// The store is closed and reopened while the compaction runs.
    Closed,
}

pub fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())].clone()
}

pub fn durability(rng: &mut Rng, mix: u8) -> Durability {
    match mix {
        0 => Durability::Synced,
        1 => Durability::Written,
        2 => Durability::Buffered,
        _ => pick(rng, &[Durability::Synced, Durability::Written, Durability::Buffered]),
    }
}

pub(super) fn random_op(rng: &mut Rng, mix: u8) -> Op {
    let key = rng.below(COMMON_KEYS);
    let durability = durability(rng, mix);
    match rng.below(100) {
        0..45 => Op::Put { key, durability },
        45..55 => Op::Delete { key, durability },
        55..65 => random_batch(rng, durability),
        65..75 => together(rng, mix),
        75..80 => Op::Dropped { key, durability, polls: rng.below(4) },
        80..87 => Op::Get { key },
        87..92 => Op::Sync,
        92..96 => Op::Sleep { millis: pick(rng, &[1, 6, 1100]) },
        _ => Op::Reopen,
    }
}

/// One operation of a compacting workload.
pub(super) fn compacting_op(rng: &mut Rng, mix: u8) -> Op {
    match rng.below(100) {
        0..20 => random_compact(rng, mix),
        20..24 => Op::Reopen,
        24..26 => Op::Pause(rng.percent(50)),
        26..29 => together(rng, mix),
        _ => concurrent_op(rng, mix),
    }
}

/// One operation that may run beside a compaction.
pub(super) fn concurrent_op(rng: &mut Rng, mix: u8) -> Op {
    let key = rng.below(COMMON_KEYS);
    let durability = durability(rng, mix);
    match rng.below(100) {
        0..38 => Op::Put { key, durability },
        38..64 => Op::Delete { key, durability },
        64..72 => random_batch(rng, durability),
        72..74 => Op::Dropped { key, durability, polls: rng.below(4) },
        74..82 => Op::Get { key },
        82..86 => Op::Sync,
        86..97 => Op::Wait { micros: pick(rng, &[20, 100, 300, 1000, 3000]) },
        _ => Op::Sleep { millis: pick(rng, &[6, 60, 1100]) },
    }
}

pub fn random_compact(rng: &mut Rng, mix: u8) -> Op {
    let which = rng.percent(60).then(|| rng.next_u64());
    let key = rng.below(COMMON_KEYS);
    // Most writes that are in flight when a job starts wait for the disk: they have their versions, and nothing more.
    let durability = if rng.percent(60) { Durability::Synced } else { durability(rng, mix) };
    let early = rng
        .percent(45)
        .then(|| Box::new(if rng.percent(80) { Op::Delete { key, durability } } else { Op::Put { key, durability } }));
    let count = if rng.percent(50) { 0 } else { 1 + rng.below(5) };
    let mut ops: Vec<Op> = (0..count).map(|_| concurrent_op(rng, mix)).collect();
    if rng.percent(10) {
        ops.insert(0, Op::Pause(true));
        ops.push(Op::Pause(false));
    }
    let end = pick(rng, &[End::Awaited, End::Awaited, End::Awaited, End::Awaited, End::Dropped, End::Closed]);
    Op::Compact { which, early, ops, end }
}

pub fn together(rng: &mut Rng, mix: u8) -> Op {
    let ops = (0..2 + rng.below(6)).map(|_| {
        let durability = durability(rng, mix);
        match rng.below(4) {
            0 => random_batch(rng, durability),
            _ => Op::Put { key: rng.below(COMMON_KEYS), durability },
        }
    });
    Op::Together { ops: ops.collect(), apart_micros: pick(rng, &[0, 0, 30, 100, 300]) }
}

pub fn random_batch(rng: &mut Rng, durability: Durability) -> Op {
    let keys = (0..1 + rng.below(4)).map(|_| (rng.below(COMMON_KEYS), rng.percent(25))).collect();
    Op::Batch { keys, durability }
}
