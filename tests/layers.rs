//! The layers of `ARCHITECTURE.md`, and what it says is absent, looked for in the source.
//!
//! Only code counts: comments, unit tests and the explorer's models may name what they like.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a failed check is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Modules of the crate from the top down; one may name those of its own layer and of the layers below it.
const LAYERS: [(&str, &[&str]); 7] = [
    ("face", &["store", "futures", "multi_get", "options", "batch", "stats", "error"]),
    ("life", &["core"]),
    ("work", &["commit", "recovery", "maintenance", "compaction", "read"]),
    ("state", &["keydir", "segment", "cache"]),
    ("bytes", &["format"]),
    ("world", &["io"]),
    ("small", &["promise", "waiters", "wake", "striped", "sync", "prefetch", "trace", "seeded_bug"]),
];

/// Who may name what lies above. Life and work answer in the words of the face, and events are told in everybody's.
const UPWARD: [(&str, &[&str]); 7] = [
    ("core", &["error", "options", "stats"]),
    ("commit", &["error", "options", "batch"]),
    ("recovery", &["error", "options", "stats"]),
    ("maintenance", &["error"]),
    ("compaction", &["error", "stats"]),
    ("read", &["error"]),
    ("trace", &["error", "stats", "compaction", "segment"]),
];

/// Modules that may name these modules of the crate and no others.
const NARROW: [(&str, &[&str]); 4] = [
    ("format", &[]),
    ("keydir", &["format", "io::pages", "io::util", "seeded_bug", "prefetch", "sync"]),
    ("cache", &["io::pages", "io::util", "prefetch", "striped", "sync"]),
    ("io", &["seeded_bug", "sync"]),
];

/// What may be named under these paths alone.
const CONFINED: [(&str, &[&str]); 11] = [
    ("unsafe ", &["io/uring/", "io/fork.rs", "io/advice.rs", "io/pages.rs", "prefetch.rs"]),
    ("std::fs", &["io/"]),
    ("std::net", &[]),
    ("std::process", &[]),
    ("rustix::", &["io/"]),
    ("libc::", &["io/"]),
    ("Instant::now", &["io/"]),
    ("SystemTime::now", &["io/"]),
    ("thread::spawn", &["io/"]),
    ("thread::Builder", &["io/"]),
    ("tracing::", &["trace.rs"]),
];

/// Who removes files, and which.
const UNLINKING: [(&str, &str); 9] = [
    ("commit/rotate.rs", "a segment that it could not list"),
    ("compaction/mod.rs", "outputs that it could not list"),
    ("compaction/rewrite.rs", "outputs that it could not list"),
    ("maintenance/hint.rs", "a temporary file"),
    ("maintenance/mod.rs", "segments that are listed no more"),
    ("recovery/mod.rs", "leftovers"),
    ("recovery/tail.rs", "a temporary file"),
    ("segment/catalog.rs", "a temporary file"),
    ("segment/reserve.rs", "the reserve"),
];

/// Who writes to files, and what.
const WRITING: [(&str, &str); 7] = [
    ("commit/ahead.rs", "filler to the active segment"),
    ("commit/rotate.rs", "header and footer of the active segment"),
    ("commit/task.rs", "groups to the active segment"),
    ("compaction/output.rs", "segments that nobody sees yet"),
    ("maintenance/hint.rs", "hint files"),
    ("recovery/tail.rs", "the footer of the tail, and a copy of what is cut"),
    ("segment/catalog.rs", "the MANIFEST"),
];

/// The code of one file, without comments and unit tests.
struct Source {
    /// Below `src`.
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let is_test = |line: &str| line == "#[cfg(test)]" || line.starts_with("#[cfg(all(test");
        let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//")).peekable();
        let mut code = String::new();
        while let Some(line) = lines.next() {
            // Unit tests come last in a file; what else is for tests alone is a module or an import of its own.
            if is_test(line) && lines.peek().is_none_or(|next| !next.ends_with(';')) {
                break;
            }
            code.push_str(line.split(" // ").next().unwrap_or_default());
            code.push('\n');
        }
        Self { path: path.to_owned(), code }
    }

    /// The module of the crate that the file is part of.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }

    /// How many modules lie between the file's own and the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.trim_end_matches("/mod.rs").split('/').count();
        if self.path == "lib.rs" { 0 } else { parts }
    }

    /// Modules of the crate that are named, by whichever way, with what is named in them.
    fn named(&self) -> BTreeSet<String> {
        let rest_of = |at: usize| {
            let rest = &self.code[at..];
            rest[..rest.find(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).unwrap_or(rest.len())].to_owned()
        };
        let through_crate = self.code.match_indices("crate::").map(|(at, found)| rest_of(at + found.len()));
        let climb = "super::".repeat(self.depth());
        let through_super = self.code.match_indices(&climb).map(|(at, found)| rest_of(at + found.len()));
        let mut named: BTreeSet<String> = through_crate.collect();
        if self.depth() > 0 {
            named.extend(through_super);
        }
        named
    }

    fn lies_under(&self, paths: &[&str]) -> bool {
        paths.iter().any(|path| self.path.starts_with(path))
    }
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

fn entry<'a>(table: &'a [(&str, &[&'a str])], module: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(name, _)| *name == module).map(|(_, entry)| *entry)
}

/// What `source` names and may not.
fn violations(source: &Source) -> Vec<String> {
    let (module, mut found) = (source.module(), Vec::new());
    let own = layer_of(module);
    if own.is_none() && module != "lib" {
        found.push(format!("{} is on no layer", source.path));
    }
    for path in source.named() {
        let name = path.split("::").next().unwrap_or_default();
        let Some(layer) = layer_of(name).filter(|_| name != module && module != "lib") else { continue };
        let is_below = own.is_some_and(|own| own <= layer);
        if !is_below && !entry(&UPWARD, module).unwrap_or_default().contains(&name) {
            found.push(format!("{} names crate::{path}, which lies above it", source.path));
        }
        let is_narrow =
            |allowed: &[&str]| allowed.iter().any(|part| path == *part || path.starts_with(&format!("{part}::")));
        if entry(&NARROW, module).is_some_and(|allowed| !is_narrow(allowed)) {
            found.push(format!("{} names crate::{path}, which it shall not know", source.path));
        }
    }
    for (word, paths) in CONFINED {
        if source.code.contains(word) && !source.lies_under(paths) {
            found.push(format!("{} has {word:?}, which is for {paths:?}", source.path));
        }
    }
    found
}

/// All files of the library but those that hold tests alone.
fn sources() -> Vec<Source> {
    let (root, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    let mut todo = vec![root.clone()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let is_for_tests = ["tests", "tests.rs", "schedules", "schedules.rs"].iter().any(|end| path.ends_with(end));
            if is_for_tests {
                continue;
            } else if path.is_dir() {
                todo.push(path);
            } else {
                found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 50, "{} files", found.len());
    found
}

#[test]
fn every_module_names_what_its_layer_may() {
    let found: Vec<String> = sources().iter().flat_map(violations).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn exceptions_that_nobody_needs_are_removed() {
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let names = source.named().into_iter().map(|path| path.split("::").next().unwrap_or_default().to_owned());
        needed.entry(source.module().to_owned()).or_default().extend(names);
    }
    for (module, allowed) in UPWARD {
        for name in allowed {
            assert!(needed.get(module).is_some_and(|names| names.contains(*name)), "{module} does not name {name}");
        }
    }
}

#[track_caller]
fn assert_only(call: &[&str], allowed: &[(&str, &str)]) {
    let does = |source: &Source| call.iter().any(|call| source.code.contains(call));
    let found: BTreeSet<String> = sources()
        .iter()
        .filter(|source| source.module() != "io" && does(source))
        .map(|source| source.path.clone())
        .collect();
    let allowed: BTreeSet<String> = allowed.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(found, allowed, "files that call {call:?}");
}

#[test]
fn files_are_removed_and_written_in_few_places() {
    assert_only(&["dir.unlink("], &UNLINKING[..]);
    assert_only(&["write_all(", ".write_at("], &WRITING[..]);
}

/// The table of layers and the document's are the same.
#[test]
fn the_document_has_the_same_layers() {
    let document = include_str!("../ARCHITECTURE.md");
    for (layer, modules) in LAYERS {
        let row = document.lines().find(|line| line.starts_with(&format!("| {layer} |"))).unwrap();
        for module in modules.iter().filter(|module| **module != "seeded_bug") {
            let is_there = row.contains(&format!("`{module}.rs`")) || row.contains(&format!("`{module}/`"));
            assert!(is_there, "{module} is not in {row}");
        }
    }
}

/// The check itself.
#[test]
fn a_rule_that_is_broken_is_found() {
    for (path, text, wrong) in [
        ("format/record.rs", "use crate::io::File;", 1),
        ("format/record.rs", "use super::bytes::put;", 0),
        ("format/record.rs", "use super::super::keydir::Keydir;", 2),
        ("keydir.rs", "use crate::segment::Segment;", 1),
        ("keydir.rs", "use super::segment::Segment;", 1),
        ("keydir.rs", "use crate::io::util::to_usize;", 0),
        ("keydir/arena.rs", "fn f(file: &dyn crate::io::File) {}", 1),
        ("cache.rs", "use crate::format::RecordHeader;", 1),
        ("io/util.rs", "use crate::format::Footer;", 2),
        ("io/uring/ring.rs", "use crate::keydir::Keydir;", 2),
        ("segment/scan.rs", "use crate::commit::Log;", 1),
        ("segment/scan.rs", "use crate::error::Error;", 1),
        ("commit/task.rs", "use crate::error::Error;", 0),
        ("commit/mod.rs", "use crate::store::Store;", 1),
        ("commit/mod.rs", "use crate::recovery::Recovered;", 0),
        ("read.rs", "use crate::store::core::Core;", 1),
        ("read.rs", "// use crate::store::core::Core;", 0),
        ("read.rs", "use crate::sync::Mutex; // crate::store::core::Core", 0),
        ("read.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::core::Core;\n}", 0),
        ("read.rs", "#[cfg(test)]\nmod tests;\nuse crate::store::core::Core;", 1),
        ("read.rs", "fn f() { unsafe { g() } }", 1),
        ("io/fork.rs", "fn f() { unsafe { g() } }", 0),
        ("io/os.rs", "fn f() { unsafe { g() } }", 1),
        ("recovery/load.rs", "fn f() { std::fs::read(\"x\"); std::time::Instant::now(); std::thread::spawn(g); }", 3),
        ("elsewhere.rs", "", 1),
    ] {
        let found = violations(&Source::new(path, text));
        assert_eq!(found.len(), wrong, "{path}: {text}: {found:?}");
    }
}
