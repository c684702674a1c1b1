//! The last step of a run: prints the table of all stages and their counts.
//!
//! `./prove` collects the results of the stages in a file and passes its path in `RINGCASK_VERDICT` when all have run.
//! Without that variable there is nothing to print. A stage without a result failed or did not run. This is a program
//! and not a test function, so that its table ends the run.
#![allow(missing_docs, clippy::cast_possible_truncation, reason = "a separate program")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod stages;
}

use std::collections::BTreeMap;
use std::process::ExitCode;

use support::stages::{STAGES, is_ci_scale, number};

/// The sum of the lines of one stage.
#[derive(Default)]
struct Sum {
    explored: u64,
    seconds: f64,
    skipped: Option<String>,
}

fn sums(results: &str) -> BTreeMap<&str, Sum> {
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for line in results.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(explored), Some(seconds), Some(note)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let sum = sums.entry(name).or_default();
        match explored.parse::<u64>() {
            Ok(explored) => sum.explored += explored,
            Err(_) => sum.skipped = Some(note.to_owned()),
        }
        sum.seconds += seconds.parse().unwrap_or(0.0);
    }
    sums
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn main() -> ExitCode {
    let Some(path) = std::env::var_os("RINGCASK_VERDICT") else {
        println!("no table of stages: ./prove runs all tests and prints it");
        return ExitCode::SUCCESS;
    };
    let results = std::fs::read_to_string(&path).unwrap_or_default();
    let sums = sums(&results);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    println!("\n{:<32} {:>14} {:>12} {:>8}  result", "stage", "explored", "floor", "time");
    for stage in STAGES {
        let floor = number(stage.variable).unwrap_or(if is_ci_scale() { stage.ci } else { stage.small });
        let none = Sum::default();
        let sum = sums.get(stage.name).unwrap_or(&none);
        let result = match &sum.skipped {
            Some(why) => {
                skipped += 1;
                format!("SKIPPED: {why}; it would have shown: {}", stage.shows)
            }
            None if floor == 0 => String::from("not at this scale"),
            None if sum.explored >= floor => {
                passed += 1;
                String::from("held")
            }
            None => {
                failed += 1;
                String::from(if sums.contains_key(stage.name) { "BELOW ITS FLOOR" } else { "FAILED, OR NOT RUN" })
            }
        };
        let (explored, seconds) = (grouped(sum.explored), format!("{:.1} s", sum.seconds));
        println!("{:<32} {explored:>14} {:>12} {seconds:>8}  {result}", stage.name, grouped(floor));
    }
    println!("\nstages: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
