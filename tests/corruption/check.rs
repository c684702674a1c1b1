//! Checks what a damaged directory shows: its data, or an error that reports the damage.

use std::collections::BTreeMap;

use ringcask::testing::sim::{Image, SimBackend};
use ringcask::{Error, ErrorKind, Recovery, Store};

use crate::support::small_stores::{Fixture, Model, Write, backend, builder, fold};

/// Counts of how directories opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub checked: u64,
    /// Strict opens that failed.
    pub refused: u64,
    /// Directories that opened, with keys that returned an error.
    pub keys_refused: u64,
    /// Directories that opened without the end of the last segment.
    pub cut: u64,
    /// Directories that opened with all data and no report of damage.
    pub harmless: u64,
    /// Damaged directories that were salvaged.
    pub salvaged: u64,
    /// Stores that were written, compacted, closed and reopened.
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

/// How the damage may affect the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Not at all: the damaged file is derived, or foreign.
    Nothing,
    /// The open may fail, and gets may fail. Every other answer is right.
    Refusal,
    /// In addition, the end of the last segment may be missing, as after a crash.
    End,
}

/// The result of a get of each key.
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

/// Whether all answers that are not errors are those of `model`.
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
    let backend = backend(image.clone(), 1);
    let result = backend.run_until(check_strict(&backend, fixture, allowed, thorough, &mut totals));
    let panics = backend.panics();
    backend.shutdown();
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
    backend: &SimBackend,
    fixture: &Fixture,
    allowed: Allowance,
    thorough: bool,
    totals: &mut Totals,
) -> Result<(), String> {
    let store = match builder(backend, Recovery::Strict).open().await {
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
        return Err(format!("a strict open succeeded in spite of reported damage: {report:?}"));
    }
    if is_refused && allowed == Allowance::Nothing {
        return Err(format!("gets fail although the damage must be harmless: {shown:?}"));
    }
    if explains(&model, &shown) {
        let is_silent = !is_refused && report.truncated_bytes == 0;
        totals.harmless += u64::from(is_silent);
    } else {
        let counts = fixture.sealed_writes..=fixture.writes.len();
        let mut prefixes = counts.map(|count| fold(&fixture.writes, count));
        if allowed != Allowance::End || !prefixes.any(|prefix| explains(&prefix, &shown)) {
            return Err(format!("the answers differ from the writes: {report:?}, {}", differences(&model, &shown)));
        }
        totals.cut += 1;
    }
    totals.keys_refused += u64::from(is_refused);
    let known = shown.values().filter(|answer| **answer != Answer::None).count();
    if store.len() != known {
        return Err(format!("len() is {}, but {known} keys exist", store.len()));
    }
    if thorough {
        totals.exercised += 1;
        exercise(backend, store, &all, &shown).await?;
    }
    Ok(())
}

/// Whether the error reports damage or a header of a later format version.
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
        let found = match answer {
            Answer::Value(value) if model.get(key) != Some(value) => say(value),
            Answer::None if model.contains_key(key) => "nothing".to_owned(),
            _ => return None,
        };
        let due = model.get(key).map_or("nothing".to_owned(), |value| say(value));
        Some(format!("{}: {found} instead of {due}", String::from_utf8_lossy(key)))
    });
    of.collect::<Vec<_>>().join(", ")
}

/// Writes, compacts, closes and reopens the store. All answers must stay the same, errors included: a compaction must
/// not give bad bytes a valid checksum, nor drop the only copy.
async fn exercise(backend: &SimBackend, store: Store, keys: &[Vec<u8>], shown: &Answers) -> Result<(), String> {
    store.put("another", "value").await.map_err(|error| format!("a put: {error:?}"))?;
    // The compaction may fail because of the damage. Then it must report it.
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
    let store = match builder(backend, Recovery::Strict).open().await {
        Ok(store) => store,
        // Without a hint file, the open may find damage that only a get reported before.
        Err(error) if is_refusal(&error) && shown.values().any(|answer| *answer == Answer::Refused) => return Ok(()),
        Err(error) => return Err(format!("reopening: {error:?}")),
    };
    let after = answers(&store, keys.iter()).await?;
    if after != *shown {
        return Err(format!("a reopening changed {shown:?} to {after:?}"));
    }
    if store.get("another").await.map_err(|error| format!("{error:?}"))?.as_deref() != Some(b"value") {
        return Err("the value put into the damaged store is lost".to_owned());
    }
    store.close().await.map_err(|error| format!("a second close: {error:?}"))
}

/// Salvages a directory that a strict open refused: every value must be one that was written, and every loss must be
/// listed.
fn salvage(fixture: &Fixture, image: &Image, totals: &mut Totals) -> Result<(), String> {
    let backend = backend(image.clone(), 2);
    let result = backend.run_until(async {
        let store = match builder(&backend, Recovery::Salvage).open().await {
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
            return Err(format!("an unreported loss: {report:?}, {}", differences(&model, &shown)));
        }
        store.put("another", "value").await.map_err(|error| format!("a put: {error:?}"))?;
        store.close().await.map_err(|error| format!("a close: {error:?}"))
    });
    let panics = backend.panics();
    backend.shutdown();
    if !panics.is_empty() {
        return Err(format!("panics: {panics:?}"));
    }
    result
}
