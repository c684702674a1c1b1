//! The states that a crash may leave, given the calls of a store and their results.
//!
//! A *generation* is one open of the store and the calls after it. It begins with the state that the open found, which
//! no later crash may undo, and continues with writes in the order of their versions. A crash may leave the state after
//! any number of these writes, but must keep all that are known to be durable. A write that was reported as not applied
//! is never part of the state. A write whose future was dropped may or may not be part of it.

use std::fmt;

use ringcask::{Durability, MAX_KEY_LEN};

/// Number of keys of a workload. They are few, so that they are overwritten and deleted.
pub const KEYS: usize = COMMON_KEYS + 1;

/// Number of keys that all workloads use. The last key has the maximum length.
pub const COMMON_KEYS: usize = 5;

/// The id of each key's value, 0 for none.
pub type State = [u32; KEYS];

/// Maximum number of orders of writes to try for one state.
const MAX_TRIES: u32 = 100_000;

/// A key outside the workloads. Writing it shows that the store still accepts writes.
pub const EXTRA_KEY: &str = "z";

/// The id of all empty values.
const EMPTY: u32 = u32::MAX;

/// The id of all values of one byte.
const BYTE: u32 = u32::MAX - 1;

/// Whether several writes share this id, because their values are too short to contain the number.
pub fn is_shared(id: u32) -> bool {
    id >= BYTE
}

/// The name of key `key`. The names have different lengths, and one is a prefix of another.
pub fn key_name(key: usize) -> &'static [u8] {
    const NAMES: [&[u8]; KEYS] = [b"a", b"ab", b"key-of-some-length", b"\0", &[b'k'; 70], &[b'l'; MAX_KEY_LEN]];
    NAMES[key]
}

/// The id of value number `number` of key `key`.
pub fn value_id(key: usize, number: u32) -> u32 {
    (u32::try_from(key).unwrap() + 1) << 24 | number
}

fn scramble(word: u64) -> u64 {
    ringcask::testing::sim::Rng::new(word).next_u64()
}

/// The bytes of value `id`. The id alone determines them, so that a wrong byte anywhere is detected.
pub fn value_bytes(id: u32) -> Vec<u8> {
    let hash = scramble(u64::from(id));
    let len = match hash % 16 {
        0 => 0,
        1..5 => 4 + hash / 16 % 20,
        5 => [1, 1, 511, 512, 513, 4095, 4096, 4097][usize::try_from(hash / 16 % 8).unwrap()],
        6..11 => 30 + hash / 16 % 200,
        11..14 => 400 + hash / 16 % 300,
        14 => 1000 + hash / 16 % 600,
        _ => 2000 + hash / 16 % 2500,
    };
    let len = usize::try_from(len).unwrap();
    if len == 1 {
        return vec![b'1'];
    }
    let mut bytes = id.to_le_bytes().to_vec();
    let mut word = hash;
    while bytes.len() < len {
        word = scramble(word);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The id that a state has for value `id`.
pub fn held_id(id: u32) -> u32 {
    match value_bytes(id).len() {
        0 => EMPTY,
        1 => BYTE,
        _ => id,
    }
}

/// The id of the value of `key` that has exactly these bytes.
pub fn identify(key: usize, bytes: &[u8]) -> Result<u32, String> {
    if bytes.is_empty() {
        return Ok(EMPTY);
    }
    if bytes == b"1" {
        return Ok(BYTE);
    }
    let id = bytes.first_chunk().map(|id| u32::from_le_bytes(*id));
    match id {
        Some(id) if id >> 24 == u32::try_from(key).unwrap() + 1 && value_bytes(id) == bytes => Ok(id),
        _ => Err(format!("key {key} has a value of {} bytes that was never written to it", bytes.len())),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Unresolved when the run ended.
    InFlight,
    Acked,
    Unknown,
    NotApplied,
    /// The future was dropped. The write may or may not have started.
    Dropped,
}

#[derive(Clone, Debug)]
pub struct WriteRec {
    /// The key changes, in order.
    pub effects: Vec<(usize, u32)>,
    /// Known from the acknowledgement. A delete has no version.
    pub version: Option<u64>,
    /// Number of journal steps before the first poll.
    pub started: usize,
    pub fate: Fate,
    pub resolved: usize,
    /// A crash at this step or later must keep the write.
    pub durable: usize,
    /// A kill of the process at this step or later must keep the write.
    pub written: usize,
    pub durability: Durability,
    /// Writes of other callers may have started and ended while this one was in flight.
    pub overlaps: bool,
}

pub const NEVER: usize = usize::MAX;

impl WriteRec {
    pub fn new(effects: Vec<(usize, u32)>, started: usize, durability: Durability) -> Self {
        let effects = effects.into_iter().map(|(key, id)| (key, if id == 0 { 0 } else { held_id(id) })).collect();
        Self {
            effects,
            version: None,
            started,
            fate: Fate::InFlight,
            resolved: NEVER,
            durable: NEVER,
            written: NEVER,
            durability,
            overlaps: false,
        }
    }

    fn is_due(&self, step: usize, crash: Crash) -> bool {
        self.durable <= step || (crash == Crash::Kill && self.written <= step)
    }

    /// Whether the position of the write in the log is unknown.
    fn is_unordered(&self) -> bool {
        self.version.is_none() && (self.fate != Fate::Acked || self.overlaps)
    }

    fn apply(&self, state: &mut State) {
        for (key, id) in &self.effects {
            state[*key] = *id;
        }
    }
}

/// The kind of a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Power,
    Kill,
}

/// One open of the store, and the calls after it.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    pub base: State,
    /// Number of journal steps when the open completed.
    pub opened: usize,
    /// In call order until [`settle`](Self::settle) sorts them.
    pub writes: Vec<WriteRec>,
    /// Values of `durable_version`, each with the step at which it was read.
    pub durable_versions: Vec<(usize, u64)>,
    pub highest_version: u64,
}

impl Generation {
    pub fn new(base: State, opened: usize, highest_version: u64) -> Self {
        Self { base, opened, highest_version, ..Self::default() }
    }

    /// Sorts the writes by version. Writes without a version stay after the write that was made before them.
    pub fn settle(&mut self) {
        let mut last = 0;
        let mut keyed: Vec<(u64, WriteRec)> = Vec::new();
        for mut write in std::mem::take(&mut self.writes) {
            if let Some(version) = write.version {
                last = last.max(version);
                for (step, durable) in &self.durable_versions {
                    if *durable >= version {
                        write.durable = write.durable.min(*step);
                    }
                }
            }
            keyed.push((write.version.unwrap_or(last), write));
        }
        keyed.sort_by_key(|(order, _)| *order);
        self.writes = keyed.into_iter().map(|(_, write)| write).collect();
    }

    /// The highest version that was acknowledged before the crash or belongs to a value in `found`. Later versions must
    /// be higher.
    pub fn spent(&self, step: usize, found: &State) -> u64 {
        let is_known = |write: &&WriteRec| {
            (write.fate == Fate::Acked && write.resolved <= step)
                || (write.started < step
                    && write.effects.iter().any(|(key, id)| *id != 0 && !is_shared(*id) && found[*key] == *id))
        };
        let versions = self.writes.iter().filter(is_known).filter_map(|write| write.version);
        versions.max().unwrap_or(0).max(self.highest_version)
    }

    /// The state after `step` steps if it is certain, that is, if every write had ended and was durable.
    pub fn certain(&self, step: usize) -> Option<State> {
        let mut state = self.base;
        for write in self.writes.iter().filter(|write| write.started < step) {
            match write.fate {
                Fate::Acked if write.is_unordered() => return None,
                Fate::Acked if write.durable <= step && write.resolved <= step => write.apply(&mut state),
                Fate::NotApplied if write.resolved <= step => {}
                _ => return None,
            }
        }
        Some(state)
    }

    /// Checks that a crash after `step` steps may leave `found`, by the rules of this [module](self).
    pub fn check(&self, step: usize, crash: Crash, found: &State) -> Result<(), String> {
        let is_there =
            |write: &&WriteRec| write.started < step && !(write.fate == Fate::NotApplied && write.resolved <= step);
        let writes: Vec<&WriteRec> = self.writes.iter().filter(is_there).collect();
        if self.is_prefix(&writes, step, crash, found) {
            return Ok(());
        }
        // Writes that waited for admission are not in the log in call order. If the position of a write is unknown, it
        // may be anywhere after the writes that had ended when it began.
        let (unordered, ordered): (Vec<_>, Vec<_>) = writes.into_iter().partition(|write| write.is_unordered());
        let mut tries = MAX_TRIES;
        if self.fits_somewhere(ordered.clone(), &unordered, &mut tries, step, crash, found) {
            return Ok(());
        }
        let writes = ordered.iter().chain(&unordered);
        let lines: Vec<_> = writes.map(|write| (Line(write), write.is_due(step, crash))).collect();
        Err(format!("the store holds {}, but it held {} before the writes {lines:?}", Show(found), Show(&self.base)))
    }

    /// Tries every position among `ordered` for each of `unordered`.
    fn fits_somewhere(
        &self,
        ordered: Vec<&WriteRec>,
        unordered: &[&WriteRec],
        tries: &mut u32,
        step: usize,
        crash: Crash,
        found: &State,
    ) -> bool {
        let Some((next, rest)) = unordered.split_first() else {
            *tries = tries.saturating_sub(1);
            return self.is_prefix(&ordered, step, crash, found);
        };
        let first_place = ordered.iter().rposition(|write| write.resolved < next.started).map_or(0, |last| last + 1);
        let is_after = |write: &&WriteRec| next.fate == Fate::Acked && next.resolved < write.started;
        let last_place = ordered.iter().position(is_after).unwrap_or(ordered.len());
        (first_place..=last_place).any(|place| {
            let mut ordered = ordered.clone();
            ordered.insert(place, next);
            *tries > 0 && self.fits_somewhere(ordered, rest, tries, step, crash, found)
        })
    }

    /// Whether `found` is the state after a prefix of `writes` that includes every write that must survive.
    fn is_prefix(&self, writes: &[&WriteRec], step: usize, crash: Crash, found: &State) -> bool {
        let due = writes.iter().rposition(|write| write.is_due(step, crash)).map_or(0, |last| last + 1);
        let is_optional = |index: &usize| writes[*index].fate == Fate::Dropped && !writes[*index].is_due(step, crash);
        let optional: Vec<usize> = (0..writes.len()).filter(is_optional).collect();
        (0_u32..1 << optional.len().min(8)).any(|left_out| {
            let mut state = self.base;
            if due == 0 && state == *found {
                return true;
            }
            writes.iter().enumerate().any(|(index, write)| {
                let place = optional.iter().position(|optional| *optional == index);
                if place.is_none_or(|bit| left_out >> bit & 1 == 0) {
                    write.apply(&mut state);
                }
                index + 1 >= due && state == *found
            })
        })
    }
}

/// A run from an empty disk or from an image, with all its generations.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub generations: Vec<Generation>,
    /// Step ranges in which compaction was running.
    pub jobs: Vec<(usize, usize)>,
    /// Step ranges in which the store was being opened.
    pub recoveries: Vec<(usize, usize)>,
    /// Step ranges in which the store was being closed cleanly.
    pub closes: Vec<(usize, usize)>,
}

impl History {
    /// The generation that a crash after `step` steps belongs to: the last whose open had completed.
    pub fn at(&self, step: usize) -> Option<&Generation> {
        self.generations.iter().rev().find(|generation| generation.opened <= step)
    }

    /// Whether compaction was running at a crash after `step` steps.
    pub fn is_in_job(&self, step: usize) -> bool {
        self.jobs.iter().any(|(first, last)| (*first..=*last).contains(&step))
    }
}

struct Show<'a>(&'a State);

impl fmt::Display for Show<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for id in self.0 {
            match *id {
                0 => write!(f, " -")?,
                EMPTY => write!(f, " empty")?,
                BYTE => write!(f, " byte")?,
                id => write!(f, " {}#{}", (id >> 24) - 1, id & 0xff_ffff)?,
            }
        }
        write!(f, " ]")
    }
}

struct Line<'a>(&'a WriteRec);

impl fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = self.0;
        write!(f, "{:?} at {}..{:?} version {:?}:", write.fate, write.started, write.resolved, write.version)?;
        for (key, id) in &write.effects {
            match *id {
                0 => write!(f, " {key}=-")?,
                EMPTY => write!(f, " {key}=empty")?,
                BYTE => write!(f, " {key}=byte")?,
                id => write!(f, " {key}=#{}", id & 0xff_ffff)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, number: u32, started: usize) -> WriteRec {
        WriteRec::new(vec![(key, value_id(key, number))], started, Durability::Synced)
    }

    /// Two acknowledged writes, the first durable at step 5, and one in flight from step 7 on.
    fn generation() -> Generation {
        let mut generation = Generation::new([0; KEYS], 0, 0);
        let mut first = put(0, 1, 1);
        (first.fate, first.version, first.resolved, first.durable) = (Fate::Acked, Some(1), 5, 5);
        let mut second = put(1, 2, 6);
        (second.fate, second.version, second.resolved) = (Fate::Acked, Some(2), 6);
        generation.writes = vec![first, second, put(0, 3, 7)];
        generation.settle();
        generation
    }

    fn state(first: u32, second: u32) -> State {
        let id = |key, number| if number == 0 { 0 } else { held_id(value_id(key, number)) };
        [id(0, first), id(1, second), 0, 0, 0, 0]
    }

    #[test]
    fn a_state_must_be_a_prefix_with_all_durable_writes() {
        let allowed = |step, found| generation().check(step, Crash::Power, &found).is_ok();
        assert!(allowed(4, state(0, 0)) && allowed(4, state(1, 0)), "writes in flight may be lost");
        assert!(!allowed(5, state(0, 0)), "a durable write is lost");
        assert!(!allowed(1, state(1, 0)), "a write is present before it began");
        assert!(allowed(9, state(1, 0)) && allowed(9, state(1, 2)) && allowed(9, state(3, 2)));
        assert!(!allowed(9, state(3, 0)), "an earlier write of the other key is missing");
        assert!(!allowed(9, state(0, 2)), "a write is missing before one that is present");
    }

    #[test]
    fn a_write_reported_as_not_applied_never_appears() {
        let mut generation = generation();
        (generation.writes[1].fate, generation.writes[1].resolved) = (Fate::NotApplied, 8);
        assert!(generation.check(7, Crash::Power, &state(1, 2)).is_ok(), "before the failure is reported");
        assert!(generation.check(8, Crash::Power, &state(1, 2)).is_err());
        assert!(generation.check(8, Crash::Power, &state(3, 0)).is_ok());
    }

    #[test]
    fn a_batch_is_atomic() {
        let mut generation = Generation::new([0; KEYS], 0, 0);
        generation.writes = vec![WriteRec::new(vec![(0, value_id(0, 1)), (1, value_id(1, 1))], 0, Durability::Synced)];
        assert!(generation.check(3, Crash::Power, &state(1, 1)).is_ok());
        assert!(generation.check(3, Crash::Power, &state(0, 0)).is_ok());
        assert!(generation.check(3, Crash::Power, &state(1, 0)).is_err());
        assert!(generation.check(3, Crash::Power, &state(0, 1)).is_err());
    }

    #[test]
    fn a_kill_loses_less_than_a_power_cut() {
        let mut generation = generation();
        generation.writes[1].written = 6;
        assert!(generation.check(7, Crash::Power, &state(1, 0)).is_ok());
        assert!(generation.check(7, Crash::Kill, &state(1, 0)).is_err());
    }

    #[test]
    fn a_change_of_any_byte_is_detected() {
        for number in 0..200 {
            let id = value_id(2, number);
            let bytes = value_bytes(id);
            assert_eq!(identify(2, &bytes), Ok(held_id(id)));
            // Values too short to contain their number are identified by length alone.
            if is_shared(held_id(id)) {
                continue;
            }
            for at in 0..bytes.len().min(40) {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1;
                assert!(identify(2, &wrong).is_err(), "value {number}, byte {at}");
            }
            assert!(bytes.len() < 2 || identify(1, &bytes).is_err(), "another key's value");
        }
    }
}
