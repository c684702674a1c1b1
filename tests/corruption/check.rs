//! What a damaged directory may show: its data, or the damage.

use std::collections::BTreeMap;

use ringcask::testing::sim::{Image, SimBackend};
use ringcask::{Error, ErrorKind, Recovery, Store};

use crate::support::small_stores::{Fixture, Model, Write, builder, fold, world};

/// How directories were opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub checked: u64,
    /// Strict opens that were refused.
    pub refused: u64,
    /// Directories that were opened, some of whose keys were refused.
    pub keys_refused: u64,
    /// Those whose end was cut.
    pub cut: u64,
    /// Those that reported nothing, and were right.
    pub harmless: u64,
    /// Damaged directories that were opened, with the losses listed.
    pub salvaged: u64,
    /// Opened stores that were written, compacted, closed and opened again.
    pub exercised: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.checked += other.checked;
        self.refused += other.refused;
        self.keys_refused += other.keys_refused;
        self.cut += other.cut;
        self.harmless += other.harmless;
        self.salvaged += other.salvaged;
        self.exercised += other.exercised;
    }
}

/// What may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Nothing: the damaged file is derived, or foreign.
    Nothing,
    /// The open may be refused, and keys may; every other answer is right.
    Refusal,
    /// Beside that, the end of the last segment may be gone: a crash could have taken it.
    End,
}

/// What a store said of each key.
type Answers = BTreeMap<Vec<u8>, Answer>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Value(Vec<u8>),
    None,
    Refused,
}

async fn answers(store: &Store, keys: impl Iterator<Item = &Vec<u8>>) -> Result<Answers, String> {
    let mut answers = Answers::new();
    for key in keys {
        let answer = match store.get(key).await {
            Ok(Some(value)) => Answer::Value(value.to_vec()),
            Ok(None) => Answer::None,
            Err(error) if error.kind() == ErrorKind::Corrupt && error.segment().is_some() => Answer::Refused,
            Err(error) => return Err(format!("a get: {error:?}")),
        };
        answers.insert(key.clone(), answer);
    }
    Ok(answers)
}

/// Whether the answers are those of `model`, where they are not refused.
fn explains(model: &Model, answers: &Answers) -> bool {
    answers.iter().all(|(key, answer)| match answer {
        Answer::Value(value) => model.get(key) == Some(value),
        Answer::None => !model.contains_key(key),
        Answer::Refused => model.contains_key(key),
    })
}

fn was_issued(writes: &[Write], key: &[u8], value: &[u8]) -> bool {
    writes.iter().flatten().any(|(other, issued)| other == key && issued.as_deref() == Some(value))
}

/// Opens a damaged directory and compares every answer with the writes.
pub fn check(fixture: &Fixture, image: &Image, allowed: Allowance, thorough: bool) -> Result<Totals, String> {
    let mut totals = Totals { checked: 1, ..Totals::default() };
    let world = world(image.clone(), 1);
    let result = world.run_until(check_strict(&world, fixture, allowed, thorough, &mut totals));
    let panics = world.panics();
    world.shutdown();
    result?;
    if !panics.is_empty() {
        return Err(format!("panics: {panics:?}"));
    }
    if totals.refused > 0 && thorough {
        salvage(fixture, image, &mut totals).map_err(|error| format!("salvage: {error}"))?;
    }
    Ok(totals)
}

async fn check_strict(
    world: &SimBackend,
    fixture: &Fixture,
    allowed: Allowance,
    thorough: bool,
    totals: &mut Totals,
) -> Result<(), String> {
    let store = match builder(world, Recovery::Strict).open().await {
        Ok(store) => store,
        Err(error) if allowed != Allowance::Nothing && is_refusal(&error) => {
            totals.refused += 1;
            return Ok(());
        }
        Err(error) => return Err(format!("opening: {error:?}")),
    };
    let all = keys(&fixture.writes);
    let shown = answers(&store, all.iter()).await?;
    let model = fold(&fixture.writes, usize::MAX);
    let report = store.recovery_report().clone();
    let is_refused = shown.values().any(|answer| *answer == Answer::Refused);
    if !report.damage.is_empty() {
        return Err(format!("a strict open went past damage: {report:?}"));
    }
    if is_refused && allowed == Allowance::Nothing {
        return Err(format!("keys are refused: {shown:?}"));
    }
    if explains(&model, &shown) {
        let is_silent = !is_refused && report.truncated_bytes == 0;
        totals.harmless += u64::from(is_silent);
    } else {
        let counts = fixture.sealed_writes..=fixture.writes.len();
        let mut prefixes = counts.map(|count| fold(&fixture.writes, count));
        if allowed != Allowance::End || !prefixes.any(|prefix| explains(&prefix, &shown)) {
            return Err(format!("not what was written: {report:?}, {}", differences(&model, &shown)));
        }
        totals.cut += 1;
    }
    totals.keys_refused += u64::from(is_refused);
    let known = shown.values().filter(|answer| **answer != Answer::None).count();
    if store.len() != known {
        return Err(format!("{} keys are counted, {known} are there", store.len()));
    }
    if thorough {
        totals.exercised += 1;
        exercise(world, store, &all, &shown).await?;
    }
    Ok(())
}

/// Damage, or a header of a later format version.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::IncompatibleFormat)
}

fn keys(writes: &[Write]) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = writes.iter().flatten().map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn differences(model: &Model, shown: &Answers) -> String {
    let say = |value: &[u8]| String::from_utf8_lossy(&value[..value.len().min(6)]).into_owned();
    let of = shown.iter().filter_map(|(key, answer)| {
        let said = match answer {
            Answer::Value(value) if model.get(key) != Some(value) => say(value),
            Answer::None if model.contains_key(key) => "nothing".to_owned(),
            _ => return None,
        };
        let due = model.get(key).map_or("nothing".to_owned(), |value| say(value));
        Some(format!("{}: {said} for {due}", String::from_utf8_lossy(key)))
    });
    of.collect::<Vec<_>>().join(", ")
}

/// Writes, compacts, closes and opens again: answers stay what they were, refused ones included, for a compaction must
/// not give bad bytes a good checksum, nor drop the only copy.
async fn exercise(world: &SimBackend, store: Store, keys: &[Vec<u8>], shown: &Answers) -> Result<(), String> {
    store.put("another", "value").await.map_err(|error| format!("a put: {error:?}"))?;
    // It may fail because of the damage, and must report it.
    if let Err(error) = store.compact().await
        && error.kind() != ErrorKind::Corrupt
    {
        return Err(format!("a compaction: {error:?}"));
    }
    let after = answers(&store, keys.iter()).await?;
    if after != *shown {
        return Err(format!("a compaction changed {shown:?} to {after:?}"));
    }
    store.close().await.map_err(|error| format!("a close: {error:?}"))?;
    drop(store);
    let store = match builder(world, Recovery::Strict).open().await {
        Ok(store) => store,
        // Damage that gets found before may now be found by the open, if a hint file is gone.
        Err(error) if is_refusal(&error) && shown.values().any(|answer| *answer == Answer::Refused) => return Ok(()),
        Err(error) => return Err(format!("opening again: {error:?}")),
    };
    let after = answers(&store, keys.iter()).await?;
    if after != *shown {
        return Err(format!("a reopening changed {shown:?} to {after:?}"));
    }
    if store.get("another").await.map_err(|error| format!("{error:?}"))?.as_deref() != Some(b"value") {
        return Err("what was put after all is gone".to_owned());
    }
    store.close().await.map_err(|error| format!("a second close: {error:?}"))
}

/// Opens what a strict open has refused: nothing that was never written, and what is gone is listed.
fn salvage(fixture: &Fixture, image: &Image, totals: &mut Totals) -> Result<(), String> {
    let world = world(image.clone(), 2);
    let result = world.run_until(async {
        let store = match builder(&world, Recovery::Salvage).open().await {
            Ok(store) => store,
            Err(error) if error.kind() == ErrorKind::IncompatibleFormat => return Ok(()),
            Err(error) => return Err(format!("opening: {error:?}")),
        };
        totals.salvaged += 1;
        let all = keys(&fixture.writes);
        let shown = answers(&store, all.iter()).await?;
        for (key, answer) in &shown {
            if let Answer::Value(value) = answer
                && !was_issued(&fixture.writes, key, value)
            {
                return Err(format!("a value that was never written: {value:?}"));
            }
        }
        let report = store.recovery_report().clone();
        let model = fold(&fixture.writes, usize::MAX);
        if !explains(&model, &shown) && report.damage.is_empty() && report.truncated_bytes == 0 {
            return Err(format!("a loss that nobody was told of: {report:?}, {}", differences(&model, &shown)));
        }
        store.put("another", "value").await.map_err(|error| format!("a put: {error:?}"))?;
        store.close().await.map_err(|error| format!("a close: {error:?}"))
    });
    let panics = world.panics();
    world.shutdown();
    if !panics.is_empty() {
        return Err(format!("panics: {panics:?}"));
    }
    result
}
