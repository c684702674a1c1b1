//! Rules that the compiler does not check. They are checked in the files of the repository, without a network.
//!
//! - Dependencies: their sources, their licences, their number, and the reason for each. `deny.toml` has the same rules
//!   for a tool that also checks advisories.
//! - Every `unsafe` block names a test that exercises its argument.
//! - Language: documents, comments and messages avoid the phrases of [`PHRASES`]. Type names are unique in the library.
//! - Every shared function of the tests is used.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a failed check is a failed test"
)]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod rust_source;
}

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::rust_source::{Tree, prose};

const ALLOWED: [&str; 8] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
];

/// Maximum number of crates that a user of the library builds, itself included.
const CRATES_MAX: usize = 25;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether allowed licences alone satisfy the expression.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let all_of = |alternative: &str| alternative.split(" AND ").all(|licence| ALLOWED.contains(&licence.trim()));
    // Without its brackets, `(A OR B) AND C` reads `A OR (B AND C)`. One alternative with only allowed parts is enough.
    expression.split(" OR ").any(all_of)
}

#[test]
fn every_licence_is_allowed() {
    assert!(
        is_allowed("MIT OR Apache-2.0")
            && is_allowed("Unlicense/MIT")
            && is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0")
    );
    assert!(!is_allowed("GPL-3.0") && !is_allowed("MIT AND GPL-3.0"));
    // Only crates of this platform: those of others may not have been fetched.
    let host = cargo(&["-vV"]).lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)).unwrap();
    let metadata = cargo(&["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &host]);
    let licences: Vec<&str> =
        metadata.split("\"license\":").skip(1).map(|rest| rest.split(',').next().unwrap().trim_matches('"')).collect();
    println!("{} crates", licences.len());
    assert!(licences.len() > 20, "{licences:?}");
    for licence in licences {
        assert!(is_allowed(licence), "the licence {licence:?} is not allowed");
    }
}

#[test]
fn every_crate_comes_from_the_registry() {
    let lock = include_str!("../Cargo.lock");
    let sources: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    let packages = lock.lines().filter(|line| *line == "[[package]]").count();
    assert!(packages > 20);
    // ringcask itself has no source.
    assert_eq!(sources.len() + 1, packages);
    for source in sources {
        assert_eq!(source.trim_matches('"'), "registry+https://github.com/rust-lang/crates.io-index");
    }
}

#[test]
fn a_user_builds_few_crates() {
    let tree = cargo(&["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--no-dedupe"]);
    let mut crates: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    crates.sort_unstable();
    crates.dedup();
    println!("{} crates: {crates:?}", crates.len());
    assert!((5..=CRATES_MAX).contains(&crates.len()), "{} crates: {crates:?}", crates.len());
    for banned in ["fxhash", "async-std", "rio"] {
        assert!(!crates.contains(&banned), "{banned} is banned");
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = include_str!("../Cargo.toml");
    let (mut section, mut previous, mut seen) = ("", "", 0);
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && line.contains(" = ") {
            assert!(previous.starts_with('#'), "no comment with a reason above {line}");
            seen += 1;
        }
        previous = line;
    }
    assert!(seen >= 8, "{seen} dependencies");
}

/// All Rust sources below `directory`.
fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push((path.display().to_string(), std::fs::read_to_string(path).unwrap()));
        }
    }
    found
}

/// The names of the tests at the end of a `// SAFETY: ` comment.
fn tests_named(argument: &str) -> Vec<&str> {
    let comment = argument.split("unsafe {").next().unwrap();
    let Some((_, names)) = comment.split_once("Shown by ") else { return Vec::new() };
    names.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_unsafe_block_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (library, tests) = (sources(&root.join("src")), sources(&root.join("tests")));
    let lines = library.iter().chain(&tests).flat_map(|(_, text)| text.lines().map(str::trim));
    let all = lines.collect::<Vec<_>>().join("\n");
    let mut arguments = 0;
    for (path, text) in &library {
        // Unsafe blocks in unit tests need no further test.
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        for argument in code.split("// SAFETY: ").skip(1) {
            let named = tests_named(argument);
            assert!(!named.is_empty(), "{path}: no test is named for: {argument:.200}");
            for name in named {
                assert!(all.contains(&format!("#[test]\nfn {name}()")), "{path}: there is no test {name:?}");
            }
            arguments += 1;
        }
        let blocks = code.lines().filter(|line| line.contains("unsafe {")).count();
        assert_eq!(
            code.matches("// SAFETY: ").count(),
            blocks,
            "{path}: the numbers of unsafe blocks and SAFETY comments differ"
        );
        let others = ["unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"];
        assert!(!others.iter().any(|item| code.contains(item)), "{path}: an unsafe item that this test does not check");
    }
    assert!(arguments >= 9, "{arguments}");
}

/// Unclear phrases and terms that the glossary replaces, each with its replacement.
const PHRASES: &[(&str, &str)] = &[
    // Circumlocutions.
    ("so much", "the amount, or leave it out"),
    ("so many", "the number, or leave it out"),
    ("whoever", "the caller, the reader, the task: name it"),
    ("but for", "except"),
    ("not to be had", "unavailable"),
    ("to be had", "available"),
    ("gone on with", "continued"),
    ("goes on with", "continues"),
    ("go on with", "continue"),
    ("what of", "the part of"),
    ("of its own", "its own, separate, dedicated"),
    ("of their own", "their own, separate"),
    ("for so long as", "while"),
    ("came to be", "how it is now"),
    ("since then", "how it is now; history is for docs/experiments"),
    ("before its time", "early"),
    ("if nothing is said", "by default"),
    ("in earnest", "for real use, or leave it out"),
    ("is of no use", "is useless"),
    ("nobody vouches for", "untrusted"),
    ("in its midst", "in the middle"),
    // Terms that the glossary replaces.
    ("linger", "commit delay"),
    ("lingers", "delays the commit"),
    ("lingering", "commit delay"),
    ("tally", "live-byte counter, or count"),
    ("tallies", "live-byte counters, or counts"),
    ("warmth", "page-cache hit rate"),
    ("catalog", "manifest store"),
    ("mutant", "seeded bug"),
    ("mutants", "seeded bugs"),
    ("built in mistake", "seeded bug"),
    ("known mistake", "seeded bug"),
    ("known mistakes", "seeded bugs"),
    ("striped", "sharded"),
    ("filler", "prewritten space"),
    ("stretch", "read-ahead window"),
    ("ask ahead", "prefetch"),
    ("asks ahead", "prefetches"),
    ("asked ahead", "prefetched"),
    ("ripe", "ready"),
    ("world", "backend"),
    ("worlds", "backends"),
];

/// The documents of the repository.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = ["README.md", "ARCHITECTURE.md", "TESTING.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    let at_root = names.map(|name| root.join(name));
    let mut found = Vec::new();
    let mut todo: Vec<_> = at_root.into_iter().chain([root.join("docs"), root.join("tests/support")]).collect();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "md") && path.exists() {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.push((name, std::fs::read_to_string(path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The words of a text that begins in `line`. Each comes with its line and with whether it follows the previous word
/// without punctuation. Code in backticks and fenced code is left out.
fn words(text: &str, line: usize) -> Vec<(usize, bool, String)> {
    let (mut found, mut is_fenced, mut is_code, mut follows) = (Vec::new(), false, false, false);
    for (number, text) in text.lines().enumerate() {
        let text = text.trim_start().trim_start_matches("//!").trim_start_matches('/').trim_start();
        if text.starts_with("```") {
            is_fenced = !is_fenced;
            follows = false;
        }
        if is_fenced {
            continue;
        }
        let mut word = String::new();
        for c in text.chars().chain([' ']) {
            if !is_code && (c.is_alphanumeric() || c == '_' || c == '\'') {
                word.extend(c.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                found.push((line + number, follows, std::mem::take(&mut word)));
                follows = true;
            }
            is_code ^= c == '`';
            follows &= c.is_whitespace() || "-\"*".contains(c);
        }
        // A code span ends with its paragraph.
        is_code &= !text.is_empty();
    }
    found
}

/// The listed phrases in a text that begins in `line`: the line, the phrase and its replacement.
fn phrases(text: &str, line: usize) -> Vec<(usize, &'static str, &'static str)> {
    let words = words(text, line);
    let mut found = Vec::new();
    for (phrase, better) in PHRASES {
        let wanted: Vec<&str> = phrase.split(' ').collect();
        let is_here = |window: &&[(usize, bool, String)]| {
            let matches = window.iter().zip(&wanted).all(|((_, _, word), wanted)| word == wanted);
            matches && window[1..].iter().all(|(_, follows, _)| *follows)
        };
        found.extend(words.windows(wanted.len()).filter(is_here).map(|window| (window[0].0, *phrase, *better)));
    }
    found.sort_unstable();
    found
}

/// The listed phrases in the comments and strings of a Rust source. Comments on successive lines are one text.
fn phrases_of_source(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let mut texts: Vec<(usize, String)> = Vec::new();
    let mut end = 0;
    for (line, piece) in prose(text) {
        match texts.last_mut().filter(|_| piece.starts_with("//") && line == end + 1) {
            Some((_, joined)) => *joined = format!("{joined}\n{piece}"),
            None => texts.push((line, piece.to_owned())),
        }
        end = line + piece.matches('\n').count();
    }
    texts.iter().flat_map(|(line, text)| phrases(text, *line)).collect()
}

/// All findings, one per line.
fn complaints(files: &[(String, String)], find: fn(&str) -> Vec<(usize, &'static str, &'static str)>) -> Vec<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let of_file = |(path, text): &(String, String)| {
        let (path, found) = (path.trim_start_matches(root), find(text).into_iter());
        found.map(|(line, phrase, better)| format!("{path}:{line}: {phrase:?}: write {better}")).collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

#[track_caller]
fn assert_plain(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} phrases:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn documents_use_plain_words() {
    let documents = documents();
    assert!(documents.len() >= 5, "{} documents", documents.len());
    assert_plain(&complaints(&documents, |text| phrases(text, 1)));
}

#[test]
fn the_library_uses_plain_words() {
    assert_plain(&complaints(&sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")), phrases_of_source));
}

#[test]
fn the_tests_use_plain_words() {
    let mut files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    // This file contains the list.
    files.retain(|(path, _)| !path.ends_with("tests/policy.rs"));
    assert_plain(&complaints(&files, phrases_of_source));
}

#[test]
fn a_bad_phrase_is_found_and_a_good_one_is_not() {
    let found = |text| phrases(text, 1).into_iter().map(|(line, phrase, _)| (line, phrase)).collect::<Vec<_>>();
    assert_eq!(found("It waits for so\nlong as it can."), [(1, "for so long as")]);
    assert_eq!(found("One.\n\nWhoever reads, a Mutant."), [(3, "mutant"), (3, "whoever")]);
    assert_eq!(
        found("All but for one; io_uring is not to be had."),
        [(1, "but for"), (1, "not to be had"), (1, "to be had")]
    );
    // Other words, words of two sentences, and code.
    assert_eq!(found("Not so. Much is done. `catalog` and `so much`, tallying, butforce."), []);
    assert_eq!(found("```text\nmutant\n```\nplain"), []);
    let source = "/// Gone on\n/// with.\nfn catalog() { let s = \"no warmth\"; } // a tally\n";
    let lines: Vec<_> = phrases_of_source(source).into_iter().map(|(line, phrase, _)| (line, phrase)).collect();
    assert_eq!(lines, [(1, "gone on with"), (3, "warmth"), (3, "tally")]);
}

#[test]
fn type_names_are_unique() {
    let twice = names_in_several_files(&Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    assert!(twice.is_empty(), "{} names:\n{}", twice.len(), twice.join("\n"));
}

/// Type names that more than one file declares. A single file may declare a name several times, conditionally.
fn names_in_several_files(tree: &Tree) -> Vec<String> {
    let mut declared: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in &tree.files {
        let mut names = file.types();
        names.sort_unstable();
        names.dedup();
        names.into_iter().for_each(|name| declared.entry(name).or_default().push(&file.path));
    }
    let twice = declared.into_iter().filter(|(_, files)| files.len() > 1);
    twice.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

#[test]
fn a_type_name_that_is_used_twice_is_found() {
    let files = [
        (
            "a.rs",
            "pub(crate) struct State { x: u8 }\nenum Kind<T> { A(T) }\nimpl Iterator for State { type Item = u8; }",
        ),
        (
            "b.rs",
            "trait Kind {}\n// struct State;\n#[cfg(test)]\nmod tests { struct State; }\nimpl A { type Item = u8; }",
        ),
        ("c.rs", "#[cfg(a)]\ntype Lock = A;\n#[cfg(b)]\ntype Lock = B;\nfn f() { struct State; }"),
    ];
    assert_eq!(names_in_several_files(&Tree::of(&files)), ["Kind: a.rs, b.rs"]);
}

/// The compiler cannot check this, because each test uses only a part of the shared modules.
#[test]
fn every_shared_function_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = Tree::read(&root.join("tests/support"));
    let users = ["tests", "src/testing", "fuzz/fuzz_targets"].map(|folder| sources(&root.join(folder)));
    let users: Vec<String> = users.into_iter().flatten().map(|(_, text)| text).collect();
    let mut functions = 0;
    for file in &shared.files {
        for (name, _) in file.functions() {
            let is_call = |text: &String| {
                let uses = text.match_indices(name).filter(|(at, _)| {
                    let (before, behind) = (&text[..*at], &text[at + name.len()..]);
                    let is_part = |c: char| c.is_alphanumeric() || c == '_';
                    !before.ends_with(is_part) && !behind.starts_with(is_part) && !before.ends_with("fn ")
                });
                uses.count() > 0
            };
            // Trait methods are called without their name.
            let is_of_trait = ["fmt", "from_str", "default", "next", "poll", "drop"].contains(&name);
            assert!(is_of_trait || users.iter().any(is_call), "tests/support/{}: {name} is not used", file.path);
            functions += 1;
        }
    }
    assert!(functions > 100, "{functions} functions");
}
