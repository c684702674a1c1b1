//! Damaged directories: every bit flipped, every length tried, sectors and files exchanged.
//!
//! The test damages small stores (`support/small_stores.rs`) in every way that `mutation` lists, and opens them.
//! `check` requires an error that names the damage, or correct answers. A get may fail and name the segment, but it
//! never returns wrong bytes, and never `None` for a key that has a value. If the damage is in the active segment, its
//! end may be lost, as after a crash, but nothing before a record that survives. The content of a hint file makes no
//! difference.
//!
//! A sample of the stores that open is written to, compacted, closed and reopened: the answers stay the same. A sample
//! of the refused ones is salvaged: no value appears that was never written, and every loss is listed.
//!
//! Not covered: no later record confirms the last group before a stop, so damage in it looks like a torn tail.
//! `Allowance::End` accepts it.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a failed check is a failed test"
)]

mod check;
mod mutation;
#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod small_stores;
    pub mod stages;
}

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use check::{Allowance, Totals, check};
use mutation::{Mutation, Sector, all, files};
use ringcask::testing::seeded_bug::{SeededBug, activate};

use crate::support::small_stores::{Fixture, SHAPES, Shape};
use crate::support::stages;

/// One store in this number also gets the slower checks.
const THOROUGH: usize = 24;

/// Held by each test: a seeded bug is active in the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The permitted effect of this mutation, by the files that it touches.
fn allowance(mutation: &Mutation, fixture: &Fixture, names: &[String]) -> Allowance {
    let of_file = |file: usize| {
        let name = &names[file];
        if name.ends_with(".hint") || name == "LOCK" || name == "RESERVE" {
            Allowance::Nothing
        } else if fixture.active.as_ref() == Some(name) {
            Allowance::End
        } else {
            Allowance::Refusal
        }
    };
    match mutation {
        Mutation::Flip { file, .. }
        | Mutation::Cut { file, .. }
        | Mutation::Word { file, .. }
        | Mutation::Append { file, .. }
        | Mutation::Older { file }
        | Mutation::Other { file }
        | Mutation::Remove { file } => of_file(*file),
        Mutation::Sector { file, by: Sector::Bytes(_) | Sector::Of { .. } | Sector::Older | Sector::Other, .. } => {
            of_file(*file)
        }
        // A copy may replace the file that has this number.
        Mutation::Renumbered { .. } | Mutation::Foreign { .. } => Allowance::End,
        Mutation::Several(several) => {
            let each = several.iter().map(|it| allowance(it, fixture, names));
            each.max_by_key(|allowed| *allowed as u8).unwrap_or(Allowance::Nothing)
        }
    }
}

/// Damages the store of `seed` with every `stride`th mutation. Returns the counts, or the first failure.
fn damage(shape: Shape, seed: u64, stride: usize) -> Result<Totals, String> {
    let fixture = Fixture::new(shape, seed);
    let (names, mutations) = (files(&fixture.image), all(&fixture));
    let first = usize::try_from(seed % stride as u64).unwrap();
    let indices: Vec<usize> = (0..mutations.len()).skip(first).step_by(stride).collect();
    let (next, total, failure) = (AtomicUsize::new(0), Mutex::new(Totals::default()), Mutex::new(None));
    let work = || {
        let mut totals = Totals::default();
        while let Some(&index) = indices.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mutation = &mutations[index];
            let Some(image) = mutation.apply(&fixture, &names) else { continue };
            let thorough = (index / stride).is_multiple_of(THOROUGH);
            match check(&fixture, &image, allowance(mutation, &fixture, &names), thorough) {
                Ok(seen) => totals.add(&seen),
                Err(error) => {
                    next.store(indices.len(), Ordering::Relaxed);
                    let text = format!("{:?} of seed {seed}, {mutation:?} in {names:?}: {error}", shape);
                    failure.lock().unwrap().get_or_insert(text);
                }
            }
        }
        total.lock().unwrap().add(&totals);
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    failure.into_inner().unwrap().map_or(Ok(total.into_inner().unwrap()), Err)
}

#[test]
fn damage_is_detected_or_harmless() {
    let _alone = ALONE.lock().unwrap();
    let stage = stages::begin("corruptions");
    let (floor, mut total, mut seed) = (stage.floor(), Totals::default(), stages::first_seed());
    // A small run takes a sample of all mutations. A larger one applies all of them, and continues with other stores.
    let stride = if stages::is_ci_scale() { 1 } else { 11 };
    while total.checked < floor {
        for shape in SHAPES {
            let seen = damage(shape, seed, stride).unwrap_or_else(|error| panic!("{error}"));
            println!("{shape:?} of seed {seed}: {seen:?}");
            total.add(&seen);
        }
        seed += 1;
    }
    let Totals { refused, keys_refused, cut, harmless, salvaged, exercised, .. } = total;
    let note = format!(
        "{refused} opens refused, {keys_refused} with keys refused, {cut} with their end gone, {harmless} harmless; \
         {salvaged} salvaged, {exercised} used further"
    );
    stage.end(total.checked, &note);
    assert!(refused > 0 && keys_refused > 0 && cut > 0 && harmless > 0 && salvaged > 0 && exercised > 0, "{note}");
}

/// Checks that seeded bugs are found: skipped verification, and a file accepted in place of another.
#[test]
fn seeded_bugs_are_found() {
    let _alone = ALONE.lock().unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let seeded_bugs =
        [SeededBug::PayloadUnverified, SeededBug::HintUnbound, SeededBug::LengthUnchecked, SeededBug::SkipBadRecord];
    let found = seeded_bugs.map(|seeded_bug| {
        activate(Some(seeded_bug));
        let found = SHAPES.into_iter().find_map(|shape| {
            let damaged = std::panic::catch_unwind(|| damage(shape, 1, 7));
            damaged.map_or_else(|_| Some("a panic".to_owned()), Result::err)
        });
        activate(None);
        (seeded_bug, found)
    });
    std::panic::set_hook(hook);
    for (seeded_bug, found) in found {
        let found = found.unwrap_or_else(|| panic!("{seeded_bug:?} was not found"));
        println!("{seeded_bug:?}: {found:.160}");
    }
}
