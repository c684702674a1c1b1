//! What may be depended on, checked without a network: sources, licences, how much, and why. And that every `unsafe` names
//! the test that leans on its argument.
//!
//! The same rules are in `deny.toml`, for a tool that also asks for advisories.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a failed check is a failed test"
)]

use std::path::Path;
use std::process::Command;

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

/// Crates that a user of the library builds, itself included.
const CRATES_MAX: usize = 25;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether one can take it under allowed licences alone.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let all_of = |alternative: &str| alternative.split(" AND ").all(|licence| ALLOWED.contains(&licence.trim()));
    // Of `(A OR B) AND C`, without its brackets, an alternative is allowed if all of its parts are.
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
    // Only of this platform: the crates of others may never have been fetched.
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
    // The crate itself has no source.
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
fn every_dependency_has_its_reason_beside_it() {
    let manifest = include_str!("../Cargo.toml");
    let (mut section, mut previous, mut seen) = ("", "", 0);
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && line.contains(" = ") {
            assert!(previous.starts_with('#'), "no reason beside {line}");
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

/// The names of the tests that an argument behind `// SAFETY: ` ends with.
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
        // A test leans on itself.
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        for argument in code.split("// SAFETY: ").skip(1) {
            let named = tests_named(argument);
            assert!(!named.is_empty(), "{path}: no test is named that leans on: {argument:.200}");
            for name in named {
                assert!(all.contains(&format!("#[test]\nfn {name}()")), "{path}: there is no test {name:?}");
            }
            arguments += 1;
        }
        let blocks = code.lines().filter(|line| line.contains("unsafe {")).count();
        assert_eq!(code.matches("// SAFETY: ").count(), blocks, "{path}: blocks without an argument");
        let others = ["unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"];
        assert!(!others.iter().any(|item| code.contains(item)), "{path}: promises of which this test knows nothing");
    }
    assert!(arguments >= 9, "{arguments}");
}
