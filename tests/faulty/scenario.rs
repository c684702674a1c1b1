//! The calls made on the faulty file system, and the conditions that their results must meet.
//!
//! One thread makes one call after the other, sometimes a group of concurrent puts, so the result of each read is known
//! exactly. The final contents are checked against the model of the crash tests: an acknowledged write is present, one
//! reported as not applied is absent, one with an unknown outcome may be either, and nothing is lost before something
//! that survives. Here the kernel outlives the store, so `Written` counts as `Synced`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use ringcask::{Batch, Builder, Compaction, Durability, Engine, ErrorKind, Outcome, Store, WritePath};

use crate::support::history_model::{
    Crash, EXTRA_KEY, Fate, Generation, KEYS, State, WriteRec, held_id, identify, key_name, value_bytes, value_id,
};

/// Later than every step of a run.
const END: usize = usize::MAX - 1;

/// The configuration of a store.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub engine: Engine,
    pub write_path: WritePath,
    pub seed: u64,
}

impl Setup {
    pub fn builder(&self, path: &Path) -> Builder {
        let compaction = Compaction::new().trigger(0.2).threshold(0.05).bytes_per_second(None);
        let builder = Store::builder(path).engine(self.engine).write_path(self.write_path).compaction(compaction);
        let builder =
            builder.segment_bytes(8 << 10).reserve_bytes(if self.seed.is_multiple_of(2) { 16 << 10 } else { 0 });
        builder.flush_interval(Duration::from_millis(1)).sync_interval(Duration::from_millis(5))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, Durability),
    Delete(usize, Durability),
    Batch(Vec<(usize, bool)>, Durability),
    Group(Vec<usize>),
    ReadAll,
    Sync,
    Compact,
    Reopen,
}

/// The steps of `seed`, always the same: a few of each kind, a rotation or two, a compaction, a reopen.
fn steps(seed: u64) -> Vec<Step> {
    let mut rng = ringcask::testing::sim::Rng::new(seed);
    let mut steps = Vec::new();
    for part in 0..4 {
        for _ in 0..6 {
            let level = [Durability::Synced, Durability::Written, Durability::Buffered][rng.below(3)];
            let key = rng.below(KEYS);
            steps.push(match rng.below(10) {
                0..5 => Step::Put(key, level),
                5..7 => Step::Delete(key, level),
                7 => Step::Group((0..KEYS).filter(|key| rng.percent(60) || *key == 0).collect()),
                _ => Step::Batch((0..2 + rng.below(3)).map(|_| (rng.below(KEYS), rng.percent(30))).collect(), level),
            });
        }
        let last = [Step::Sync, Step::Compact, Step::Reopen, Step::Compact];
        steps.extend([Step::ReadAll, last[part].clone(), Step::ReadAll]);
    }
    steps
}

/// One run: its calls and their results.
pub struct Run {
    setup: Setup,
    pub generation: Generation,
    step: usize,
    numbers: u32,
    /// The values that reads must return.
    visible: State,
    /// Values whose write has an unknown outcome. Reads may return them.
    unknown: Vec<(usize, u32)>,
    /// Calls that failed.
    pub errors: u64,
    pub is_opened: bool,
    pub is_poisoned: bool,
}

type Checked<T> = Result<T, String>;

fn context(what: &str) -> impl Fn(ringcask::Error) -> String {
    move |error| format!("{what}: {error:?}")
}

impl Run {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            generation: Generation::default(),
            step: 1,
            numbers: 0,
            visible: State::default(),
            unknown: Vec::new(),
            errors: 0,
            is_opened: false,
            is_poisoned: false,
        }
    }

    /// Opens a store at `path` and runs the steps until one of them leaves no usable store. `backing` is the same
    /// directory without faults.
    pub fn go(&mut self, path: &Path, backing: &Path) -> Checked<()> {
        let Some(mut store) = self.open(path)? else { return Ok(()) };
        self.is_opened = true;
        for step in steps(self.setup.seed) {
            self.step += 2;
            match &step {
                Step::Put(key, level) => self.put(&store, *key, *level)?,
                Step::Delete(key, level) => self.delete(&store, *key, *level)?,
                Step::Batch(changes, level) => self.batch(&store, changes, *level)?,
                Step::Group(keys) => self.group(&store, keys)?,
                Step::ReadAll => self.read_all(&store)?,
                Step::Sync => {
                    let synced = pollster::block_on(store.sync());
                    self.note(synced.as_ref().err());
                    if synced.is_ok() {
                        self.all_is_durable();
                    }
                }
                Step::Compact => {
                    let compacted = pollster::block_on(store.compact());
                    self.note(compacted.as_ref().err());
                }
                Step::Reopen => {
                    self.close(&store);
                    drop(store);
                    if self.setup.seed % 2 == 1 {
                        remove_hints(backing);
                    }
                    let Some(again) = self.open(path)? else { return Ok(()) };
                    store = again;
                    // The next generation begins with the state that the store now shows. If it cannot be read, nothing
                    // more is written, and the check at the end of the run decides.
                    let Ok(base) = read_state(&store)? else { return Ok(()) };
                    self.check_found(&base, "after reopening")?;
                    let spent = self.generation.spent(END, &base);
                    self.generation = Generation::new(base, self.step, spent);
                    (self.visible, self.unknown) = (base, Vec::new());
                }
            }
        }
        self.close(&store);
        Ok(())
    }

    fn open(&mut self, path: &Path) -> Checked<Option<Store>> {
        match pollster::block_on(self.setup.builder(path).open()) {
            Ok(store) => {
                let report = store.recovery_report();
                if report.damage.is_empty() { Ok(Some(store)) } else { Err(format!("open: {:?}", report.damage)) }
            }
            Err(error) => {
                self.note(Some(&error));
                match error.kind() {
                    ErrorKind::Io | ErrorKind::NoSpace => Ok(None),
                    _ => Err(format!("open: {error:?}")),
                }
            }
        }
    }

    fn close(&mut self, store: &Store) {
        self.step += 2;
        self.is_poisoned |= store.stats().poisoned;
        let closed = pollster::block_on(store.close());
        self.note(closed.as_ref().err());
        if closed.is_ok() {
            self.all_is_durable();
        }
    }

    fn note(&mut self, error: Option<&ringcask::Error>) {
        self.errors += u64::from(error.is_some());
    }

    fn all_is_durable(&mut self) {
        for write in self.generation.writes.iter_mut().filter(|write| write.fate == Fate::Acked) {
            (write.durable, write.written) = (write.durable.min(self.step), write.written.min(self.step));
        }
    }

    fn value_for(&mut self, key: usize) -> u32 {
        self.numbers += 1;
        value_id(key, self.numbers)
    }

    fn put(&mut self, store: &Store, key: usize, level: Durability) -> Checked<()> {
        let id = self.value_for(key);
        let options = level;
        let result = pollster::block_on(store.put(key_name(key), value_bytes(id)).durability(options));
        self.resolve(store, vec![(key, id)], level, result.map(|version| Some(version.get())))
    }

    fn delete(&mut self, store: &Store, key: usize, level: Durability) -> Checked<()> {
        let result = pollster::block_on(store.delete(key_name(key)).durability(level));
        if let Ok(was_there) = &result
            && *was_there != (self.visible[key] != 0)
            && !self.unknown.iter().any(|(unknown, _)| *unknown == key)
        {
            return Err(format!("a delete of key {key} returned {was_there}"));
        }
        match result {
            Ok(false) => Ok(()),
            result => self.resolve(store, vec![(key, 0)], level, result.map(|_| None)),
        }
    }

    fn batch(&mut self, store: &Store, changes: &[(usize, bool)], level: Durability) -> Checked<()> {
        let (mut batch, mut effects) = (Batch::new(), Vec::new());
        for &(key, deletes) in changes {
            let id = if deletes { 0 } else { self.value_for(key) };
            match deletes {
                true => batch.delete(key_name(key)),
                false => batch.put(key_name(key), value_bytes(id)),
            };
            effects.push((key, id));
        }
        let result = pollster::block_on(store.write(batch).durability(level));
        self.resolve(store, effects, level, result.map(|version| Some(version.get())))
    }

    /// Concurrent synced puts of different keys. They share commit groups and succeed or fail together.
    fn group(&mut self, store: &Store, keys: &[usize]) -> Checked<()> {
        let ids: Vec<(usize, u32)> = keys.iter().map(|key| (*key, self.value_for(*key))).collect();
        let puts = ids.iter().map(|(key, id)| store.put(key_name(*key), value_bytes(*id)));
        let results = pollster::block_on(join_all(puts));
        for (effect, result) in ids.into_iter().zip(results) {
            self.resolve(store, vec![effect], Durability::Synced, result.map(|version| Some(version.get())))?;
        }
        Ok(())
    }

    /// Records the result of a write, and checks that a store is poisoned after an unknown outcome.
    fn resolve(
        &mut self,
        store: &Store,
        effects: Vec<(usize, u32)>,
        level: Durability,
        result: ringcask::Result<Option<u64>>,
    ) -> Checked<()> {
        self.note(result.as_ref().err());
        let mut record = WriteRec::new(effects, self.step, level);
        record.resolved = self.step + 1;
        match result {
            Ok(version) => {
                (record.fate, record.version) = (Fate::Acked, version);
                if level != Durability::Buffered {
                    record.written = record.resolved;
                }
                if level == Durability::Synced {
                    record.durable = record.resolved;
                }
                record.effects.iter().for_each(|(key, id)| self.visible[*key] = *id);
            }
            Err(error) => {
                if !matches!(
                    error.kind(),
                    ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Poisoned | ErrorKind::Corrupt
                ) {
                    return Err(format!("a write: {error:?}"));
                }
                match error.outcome() {
                    Outcome::NotApplied => record.fate = Fate::NotApplied,
                    _ if !store.stats().poisoned => {
                        return Err(format!("the outcome is unknown, but the store is not poisoned: {error:?}"));
                    }
                    _ => {
                        record.fate = Fate::Unknown;
                        self.unknown.extend(&record.effects);
                    }
                }
            }
        }
        self.generation.writes.push(record);
        Ok(())
    }

    /// Reads all keys. A read may fail, but must not return a wrong value.
    fn read_all(&mut self, store: &Store) -> Checked<()> {
        for key in 0..KEYS {
            match pollster::block_on(store.get(key_name(key))) {
                Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NoSpace) => {
                    self.errors += 1;
                }
                Err(error) => return Err(format!("a read: {error:?}")),
                Ok(found) => {
                    let id = found.map_or(Ok(0), |bytes| identify(key, &bytes))?;
                    if id != self.visible[key] && !self.unknown.contains(&(key, id)) {
                        return Err(format!("key {key} returns {id:x} instead of {:x}", self.visible[key]));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_found(&mut self, found: &State, when: &str) -> Checked<()> {
        self.generation.settle();
        self.generation.check(END, Crash::Kill, found).map_err(|error| format!("{when}: {error}"))
    }

    /// Checks the directory after the faults, directly and not through the faulty file system. The contents must agree
    /// with all results and stay the same, and the store must work.
    pub fn check_aftermath(&mut self, backing: &Path) -> Checked<()> {
        let open = || pollster::block_on(self.setup.builder(backing).open()).map_err(context("an open without faults"));
        let store = open()?;
        if !store.recovery_report().damage.is_empty() {
            return Err(format!("{:?}", store.recovery_report()));
        }
        let state = read_state(&store)?.map_err(context("a read without faults"))?;
        let found = self.check_found(&state, "without faults");
        found?;
        let version = pollster::block_on(store.put(EXTRA_KEY, "there")).map_err(context("a put without faults"))?;
        let spent = self.generation.spent(END, &state);
        if version.get() <= spent {
            return Err(format!("version {version} was assigned, but {spent} was already used"));
        }
        pollster::block_on(store.compact()).map_err(context("a compaction without faults"))?;
        pollster::block_on(store.close()).map_err(context("a close without faults"))?;
        drop(store);
        let store =
            pollster::block_on(self.setup.builder(backing).open()).map_err(context("a second open without faults"))?;
        let later = read_state(&store)?.map_err(context("a read after the second open"))?;
        let kept = pollster::block_on(store.get(EXTRA_KEY)).map_err(context("a read after the second open"))?;
        if later != state || kept.as_deref() != Some(&b"there"[..]) {
            return Err(format!("the store held {state:x?}, after another open {later:x?}, {kept:?}"));
        }
        pollster::block_on(store.close()).map_err(context("a second close without faults"))
    }
}

/// Removes the hint files, so that an open reads every record. They may vanish meanwhile, because the store that wrote
/// them is still closing.
fn remove_hints(backing: &Path) {
    let paths = fs::read_dir(backing).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in paths.filter(|path| path.extension().is_some_and(|end| end == "hint")) {
        let _ = fs::remove_file(path);
    }
}

/// The values of all keys, or the first error of a get. Fails if a value has wrong bytes.
fn read_state(store: &Store) -> Checked<ringcask::Result<State>> {
    let mut state = State::default();
    for (key, held) in state.iter_mut().enumerate() {
        match pollster::block_on(store.get(key_name(key))) {
            Ok(found) => *held = found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(error) => return Ok(Err(error)),
        }
    }
    debug_assert!(state.iter().all(|id| *id == 0 || *id == held_id(*id) || *id == u32::MAX));
    Ok(Ok(state))
}
