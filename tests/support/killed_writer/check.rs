//! Checks a reopened store against the acknowledgments.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use ringcask::{Durability, Store};

use super::{Acks, KEYS, Script, State, WRITERS, key_of};

/// What survives the stop, and with it the acknowledged writes that must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// The process was killed: the data in the kernel survives.
    Kernel,
    /// The power was cut: the data on stable storage survives.
    Disk,
}

impl Survivors {
    fn includes(self, level: Durability) -> bool {
        match self {
            Self::Kernel => level != Durability::Buffered,
            Self::Disk => level == Durability::Synced,
        }
    }
}

fn fingerprint(key: &str, value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// A writer's keys before a generation, and its acknowledged operations in that generation.
struct Replay {
    /// Fingerprints of the state after each number of operations. The last one includes the operation that may have
    /// been in flight.
    prefixes: Vec<u64>,
    levels: Vec<Durability>,
}

impl Replay {
    fn new(seed: u64, writer: usize, before: &State, acked: usize, not_applied: bool) -> Self {
        let mut script = Script::new(seed, writer, |key| before.contains_key(key));
        let mut state = before.clone();
        let mut sum = state.iter().fold(0, |sum, (key, value)| sum ^ fingerprint(key, value));
        let (mut prefixes, mut levels) = (vec![sum], Vec::new());
        for _ in 0..acked + usize::from(!not_applied) {
            let op = script.next_op();
            for (key, value) in op.changes {
                let old = match value {
                    Some(value) => {
                        sum ^= fingerprint(&key, &value);
                        state.insert(key.clone(), value)
                    }
                    None => state.remove(&key),
                };
                sum ^= old.map_or(0, |old| fingerprint(&key, &old));
            }
            prefixes.push(sum);
            levels.push(op.level);
        }
        Self { prefixes, levels }
    }
}

/// Counts over all checks.
#[derive(Default)]
pub struct Totals {
    pub cycles: u64,
    pub during_open: u64,
    pub acks: u64,
    pub lost: u64,
    /// Lost operations of surviving levels that were in flight during the power cut.
    pub doubtful: u64,
    pub in_flight_kept: u64,
    pub truncated: u64,
}

/// Reads a writer's keys.
fn state_of(store: &Store, writer: usize) -> State {
    let keys = (0..KEYS).map(|key| key_of(writer, key));
    let read = |key: String| pollster::block_on(store.get(&key)).unwrap().map(|value| (key, value.to_vec()));
    keys.filter_map(read).collect()
}

/// Checks a reopened store against the acknowledgments. Returns the writers' states for the next generation.
pub fn check(
    store: &Store,
    seed: u64,
    before: &[State],
    acks: &Acks,
    survivors: Survivors,
    totals: &mut Totals,
) -> Vec<State> {
    let report = store.recovery_report();
    assert!(report.damage.is_empty() && report.foreign_files.is_empty(), "{report:?}");
    totals.truncated += u64::from(report.truncated_bytes > 0);
    let after: Vec<State> = (0..WRITERS).map(|writer| state_of(store, writer)).collect();
    assert_eq!(store.len(), after.iter().map(BTreeMap::len).sum::<usize>(), "the store has keys that no writer wrote");

    let versions = &acks.versions;
    let replay =
        |writer: usize| Replay::new(seed, writer, &before[writer], versions[writer].len(), acks.not_applied[writer]);
    let replays: Vec<Replay> = (0..WRITERS).map(replay).collect();
    // The acknowledged operation with the highest version that must survive. The whole log before it must survive, too.
    let is_doubtful = |writer: usize, index: usize| {
        let (asked, answered) = acks.times[writer][index];
        acks.cut.is_some_and(|(begin, end)| answered > begin && asked < end)
    };
    let survives =
        |writer: usize, index: usize| survivors.includes(replays[writer].levels[index]) && !is_doubtful(writer, index);
    let acked = || (0..WRITERS).flat_map(|writer| (0..versions[writer].len()).map(move |index| (writer, index)));
    let floor =
        acked().filter(|&(writer, index)| survives(writer, index)).map(|(w, i)| versions[w][i]).max().unwrap_or(0);
    let mut newest_kept = 0;
    let mut kept_at_most = Vec::new();
    for writer in 0..WRITERS {
        let sum = after[writer].iter().fold(0, |sum, (key, value)| sum ^ fingerprint(key, value));
        let matching: Vec<usize> =
            (0..replays[writer].prefixes.len()).filter(|&count| replays[writer].prefixes[count] == sum).collect();
        let count = versions[writer].len();
        let (Some(&least), Some(&most)) = (matching.first(), matching.last()) else {
            panic!(
                "writer {writer}: no prefix of its {count} acknowledged operations leads to {:?}",
                lens(&after[writer])
            );
        };
        let is_due = |&index: &usize| {
            survives(writer, index) || versions[writer][index] != 0 && versions[writer][index] <= floor
        };
        let due = (0..count).filter(is_due).map(|index| index + 1).max().unwrap_or(0);
        assert!(most >= due, "writer {writer}: {most} of {count} operations survived, {due} had to");
        newest_kept = newest_kept.max(versions[writer][..least.min(count)].iter().copied().max().unwrap_or(0));
        totals.acks += count as u64;
        totals.lost += count.saturating_sub(most) as u64;
        let is_doubtful_loss =
            |&index: &usize| survivors.includes(replays[writer].levels[index]) && is_doubtful(writer, index);
        totals.doubtful += (most.min(count)..count).filter(is_doubtful_loss).count() as u64;
        totals.in_flight_kept += u64::from(least > count);
        kept_at_most.push(most);
    }
    for (writer, &most) in kept_at_most.iter().enumerate() {
        let lost = versions[writer].iter().skip(most).find(|&&version| version != 0 && version < newest_kept);
        assert_eq!(lost, None, "writer {writer}: lost, while version {newest_kept} survived: a hole in the log");
    }
    after
}

fn lens(state: &State) -> Vec<(&String, usize)> {
    state.iter().map(|(key, value)| (key, value.len())).collect()
}
