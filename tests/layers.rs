//! The layers of the library, read from its source: who may name whom, what only some files may do, and how long
//! functions and files may be.
//!
//! A *room* is a top-level module: a folder of `src`, or a file beside `lib.rs`. An *arrow* leads from a room to
//! another one that its code names. Only code counts: comments, strings, unit tests and the models of the schedule
//! explorer may name anything.
//!
//! `cargo test --test layers -- --nocapture graph` prints the graph of `src`; with `RINGCASK_LAYERS_SRC=DIR` that of the
//! source folder `DIR`, of another commit for example.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub, reason = "a failed check is a failed test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod import_graph;
    pub mod rust_source;
}

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use support::import_graph::{Graph, crosses_rooms, path_text};
use support::rust_source::Tree;

/// Rooms from the bottom up. A room may name rooms of the same layer and of the layers below, as long as no circle
/// results.
const LAYERS: [(&str, &[&str]); 7] = [
    ("values", &["error", "options", "stats", "batch"]),
    ("tools", &["sync", "seeded_bug", "trace"]),
    ("bytes", &["format", "io"]),
    ("state", &["keydir", "segment", "cache"]),
    ("work", &["commit", "recovery", "compaction", "read", "maintenance"]),
    ("store", &["store"]),
    ("tests", &["testing"]),
];

/// Arrows that lead upwards all the same. The limits of keys and values are constants of the format.
const UPWARD: [(&str, &str); 2] = [("options", "format"), ("batch", "format")];

/// Rooms that may name these modules of the crate and no others.
const NARROW: [(&str, &[&str]); 10] = [
    ("error", &[]),
    ("options", &["error", "format"]),
    ("stats", &["error", "options"]),
    ("batch", &["error", "format", "options"]),
    ("trace", &["error", "stats"]),
    ("sync", &["seeded_bug"]),
    ("format", &[]),
    ("io", &["options", "seeded_bug", "sync"]),
    ("keydir", &["format", "io::pages", "io::util", "seeded_bug", "sync"]),
    ("cache", &["io::pages", "io::util", "sync"]),
];

/// What only files under these paths may contain.
const CONFINED: [(&str, &[&str]); 12] = [
    ("unsafe ", &["io/uring/", "io/fork.rs", "io/advice.rs", "io/pages.rs", "sync/prefetch.rs"]),
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
    ("println!", &[]),
];

/// The files that remove files, and which.
const UNLINKING: [(&str, &str); 10] = [
    ("commit/rotate.rs", "a segment that could not be listed"),
    ("compaction/job/context.rs", "outputs that could not be listed"),
    ("compaction/job/copying.rs", "outputs that could not be listed"),
    ("compaction/job/mod.rs", "outputs that could not be listed"),
    ("maintenance/mod.rs", "segments that are no longer listed"),
    ("recovery/directory.rs", "leftovers"),
    ("recovery/tail.rs", "a temporary file"),
    ("segment/hint_file.rs", "a temporary file"),
    ("segment/manifest.rs", "a temporary file"),
    ("segment/reserve.rs", "the reserve"),
];

/// The files that write to files, and what.
const WRITING: [(&str, &str); 7] = [
    ("commit/append.rs", "groups to the active segment"),
    ("commit/prewrite.rs", "prewritten space to the active segment"),
    ("commit/rotate.rs", "header and footer of the active segment"),
    ("compaction/output.rs", "segments that are not yet listed"),
    ("recovery/tail.rs", "the footer of the tail, and a copy of what is cut"),
    ("segment/hint_file.rs", "hint files"),
    ("segment/manifest.rs", "the MANIFEST"),
];

/// Lines of code, without comments and blank lines.
const MAX_FUNCTION_LINES: usize = 60;
const MAX_FILE_LINES: usize = 600;

fn own_source() -> Tree {
    let tree = Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(tree.files.len() > 50, "{} files", tree.files.len());
    tree
}

fn layer_of(room: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, rooms)| rooms.contains(&room))
}

/// Arrows that lead to a higher layer, exceptions among them.
fn upward_arrows(graph: &Graph) -> Vec<(String, String)> {
    let is_upward = |(from, to): &&(String, String)| layer_of(from) < layer_of(to) && layer_of(from).is_some();
    graph.arrows().iter().filter(is_upward).cloned().collect()
}

/// Names in the code of each file that its room may not use.
fn violations(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for room in graph.rooms().iter().filter(|room| layer_of(room).is_none()) {
        found.push(format!("{room} is in no layer"));
    }
    let upward = upward_arrows(graph);
    for import in graph.imports.iter().filter(|import| import.importer_room() != import.imported_room()) {
        let (from, to) = (import.importer_room(), import.imported_room());
        let named = path_text(&import.path);
        if upward.iter().any(|(a, b)| a == from && b == to) && !UPWARD.contains(&(from, to)) {
            found.push(format!("{} names {named}, which is in a higher layer", import.file));
        }
        let is_allowed = |part: &&str| named == **part || named.starts_with(&format!("{part}::"));
        if let Some((_, allowed)) = NARROW.iter().find(|(room, _)| *room == from)
            && !allowed.iter().any(is_allowed)
        {
            found.push(format!("{} names {named}, but {from} may name {allowed:?} only", import.file));
        }
    }
    found
}

/// Confined words that stand in files where they may not.
fn misplaced(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in &tree.files {
        for (word, paths) in CONFINED {
            if file.code.contains(word) && !paths.iter().any(|path| file.path.starts_with(path)) {
                found.push(format!("{} has {word:?}, which only {paths:?} may have", file.path));
            }
        }
    }
    found
}

/// Functions and files that are too long.
fn too_long(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in &tree.files {
        for (name, lines) in file.functions() {
            if lines > MAX_FUNCTION_LINES {
                found.push(format!("{}::{name} has {lines} lines of code, more than {MAX_FUNCTION_LINES}", file.path));
            }
        }
        let lines = file.lines_of_code();
        if lines > MAX_FILE_LINES {
            found.push(format!("{} has {lines} lines of code, more than {MAX_FILE_LINES}", file.path));
        }
    }
    found
}

/// Files outside `io` that make one of these calls are those of the table, each entry of which is needed.
fn misplaced_calls(tree: &Tree, calls: &[&str], allowed: &[(&str, &str)]) -> Vec<String> {
    let calling = tree.files.iter().filter(|file| calls.iter().any(|call| file.code.contains(call)));
    let calling: BTreeSet<&str> =
        calling.map(|file| file.path.as_str()).filter(|path| !path.starts_with("io/")).collect();
    let mut found = Vec::new();
    for path in &calling {
        if !allowed.iter().any(|(place, _)| path == place) {
            found.push(format!("{path} calls one of {calls:?}"));
        }
    }
    for (place, what) in allowed {
        if !calling.contains(place) {
            found.push(format!("{place} ({what}) calls none of {calls:?}"));
        }
    }
    found
}

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

/// Prints the import graph.
#[test]
fn graph() {
    let root = std::env::var_os("RINGCASK_LAYERS_SRC").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let tree = Tree::read(&root);
    let graph = Graph::new(&tree);
    let (upward, between_rooms, between_files) = (upward_arrows(&graph), graph.room_circles(), graph.file_circles());
    let crossing = between_files.iter().filter(|circle| crosses_rooms(circle)).count();
    println!("files {}, rooms {}, arrows {}", tree.files.len(), graph.rooms().len(), graph.arrows().len());
    println!(
        "upward arrows {}, circles of rooms {}, circles of files {}, of which {crossing} cross rooms",
        upward.len(),
        between_rooms.len(),
        between_files.len()
    );
    for room in graph.rooms() {
        let arrows = graph.arrows();
        let named: Vec<&str> = arrows.iter().filter(|(a, _)| *a == room).map(|(_, b)| b.as_str()).collect();
        let layer = layer_of(&room).map_or("no layer", |layer| LAYERS[layer].0);
        println!("  {room} ({layer}) -> {}", named.join(" "));
    }
    for (from, to) in upward {
        let because =
            graph.imports.iter().filter(|import| import.importer_room() == from && import.imported_room() == to);
        let because: Vec<String> = because.map(|it| format!("{}: {}", it.file, path_text(&it.path))).collect();
        println!("upward arrow: {from} -> {to} ({})", because.join(", "));
    }
    for circle in between_rooms {
        println!("circle of rooms: {}", circle.join(" "));
    }
    for circle in between_files {
        println!("circle of files: {}", circle.join(" "));
    }
    assert!(!graph.arrows().is_empty(), "no arrows in {}", root.display());
}

#[test]
fn every_room_names_only_what_its_layer_may() {
    assert_none(&violations(&Graph::new(&own_source())));
}

#[test]
fn no_rooms_import_each_other_in_a_circle() {
    let circles = Graph::new(&own_source()).room_circles();
    assert_none(&circles.iter().map(|circle| circle.join(" ")).collect::<Vec<_>>());
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = Graph::new(&own_source()).file_circles();
    assert_none(&circles.iter().map(|circle| circle.join(" ")).collect::<Vec<_>>());
}

#[test]
fn every_exception_is_needed() {
    let upward = upward_arrows(&Graph::new(&own_source()));
    for (from, to) in UPWARD {
        assert!(upward.iter().any(|(a, b)| a == from && b == to), "{from} does not name {to}");
    }
}

#[test]
fn confined_words_stand_only_where_they_may() {
    assert_none(&misplaced(&own_source()));
}

#[test]
fn files_are_removed_and_written_in_few_places() {
    let tree = own_source();
    let mut found = misplaced_calls(&tree, &["dir.unlink("], &UNLINKING);
    found.extend(misplaced_calls(&tree, &["write_all(", ".write_at("], &WRITING));
    assert_none(&found);
}

#[test]
fn no_function_and_no_file_is_too_long() {
    assert_none(&too_long(&own_source()));
}

/// The tests of these checks.
mod checks {
    use super::{Graph, Tree, misplaced, misplaced_calls, too_long, upward_arrows, violations};

    fn found_in(files: &[(&str, &str)]) -> Vec<String> {
        let tree = Tree::of(files);
        let mut found = violations(&Graph::new(&tree));
        found.extend(misplaced(&tree));
        found
    }

    #[test]
    fn a_broken_rule_is_found() {
        for (path, text, wrong) in [
            ("format/record.rs", "use crate::io::File;", 1),
            ("format/record.rs", "use super::bytes::put;", 0),
            ("format/record.rs", "use super::super::keydir::Keydir;", 2),
            ("format/record.rs", "use super::super::{keydir::Keydir, io::{File, Io as Backend}};", 4),
            ("keydir/mod.rs", "use crate::segment::Segment;", 1),
            ("keydir/mod.rs", "use super::segment::Segment;", 1),
            ("keydir/mod.rs", "use crate::io::util::to_usize;", 0),
            ("keydir/arena.rs", "fn f(file: &dyn crate::io::File) {}", 1),
            ("cache/mod.rs", "use crate::format::RecordHeader;", 1),
            ("io/util.rs", "use crate::format::Footer;", 1),
            ("io/uring/ring.rs", "use crate::keydir::Keydir;", 2),
            ("segment/scan.rs", "use crate::commit::Log;", 1),
            ("segment/scan.rs", "use crate::error::Error;", 0),
            ("options/mod.rs", "use crate::format::MAX_KEY_LEN;", 0),
            ("options/mod.rs", "use crate::store::Store;", 2),
            ("options/mod.rs", "use crate::Store;", 2),
            ("error.rs", "use crate::options::Options;", 1),
            ("trace.rs", "use crate::{error::Error, segment::Segment};", 2),
            ("commit/mod.rs", "use crate::store::Store;", 1),
            ("commit/mod.rs", "use crate::recovery::Recovered;", 0),
            ("read/mod.rs", "use crate::store::engine::Engine;", 1),
            ("read/mod.rs", "// use crate::store::engine::Engine;", 0),
            ("read/mod.rs", "/* use crate::store::engine::Engine; */", 0),
            ("read/mod.rs", "use crate::sync::Mutex; // crate::store::engine::Engine", 0),
            ("read/mod.rs", "const TEXT: &str = \"crate::store::Store\";", 0),
            ("read/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::engine::Engine;\n}", 0),
            ("read/mod.rs", "#[cfg(test)]\nuse crate::store::{Store, engine};\n", 0),
            ("read/mod.rs", "#[cfg(test)]\nmod tests;\nuse crate::store::engine::Engine;", 1),
            ("read/mod.rs", "fn f() { unsafe { g() } }", 1),
            ("io/fork.rs", "fn f() { unsafe { g() } }", 0),
            ("io/os.rs", "fn f() { unsafe { g() } }", 1),
            (
                "recovery/load.rs",
                "fn f() { std::fs::read(\"x\"); std::time::Instant::now(); std::thread::spawn(g); }",
                3,
            ),
            ("elsewhere.rs", "", 1),
        ] {
            let all = ["io", "format", "keydir", "segment", "commit", "store", "recovery", "options", "error", "sync"];
            let mut files: Vec<(String, &str)> = all.iter().map(|room| (format!("{room}/mod.rs"), "")).collect();
            files.extend(["format/bytes.rs", "io/util.rs", "store/engine.rs"].map(|path| (path.to_owned(), "")));
            files.push(("lib.rs".to_owned(), "pub use store::Store;"));
            let path = if path == "error.rs" { "error/mod.rs" } else { path };
            files.retain(|(other, _)| other != path);
            files.push((path.to_owned(), text));
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            let found = found_in(&files);
            assert_eq!(found.len(), wrong, "{path}: {text}: {found:?}");
        }
    }

    fn circles_of(files: &[(&str, &str)]) -> (usize, usize) {
        let graph = Graph::new(&Tree::of(files));
        (graph.room_circles().len(), graph.file_circles().len())
    }

    #[test]
    fn a_circle_is_found() {
        let chain = [("a.rs", "use crate::b::B;"), ("b.rs", "use crate::c::C;"), ("c.rs", "")];
        assert_eq!(circles_of(&chain), (0, 0));
        let circle = [("a.rs", "use crate::b::B;"), ("b.rs", "use crate::c::C;"), ("c.rs", "fn f() { crate::a::g() }")];
        assert_eq!(circles_of(&circle), (1, 1));
        // Rooms in a circle whose files are in none.
        let rooms = [
            ("a/mod.rs", "mod x; mod y;"),
            ("a/x.rs", "use crate::b::B;"),
            ("a/y.rs", ""),
            ("b/mod.rs", "use crate::a::y::Y;"),
        ];
        assert_eq!(circles_of(&rooms), (1, 0));
        let inside = [("a/mod.rs", "mod x; mod y;"), ("a/x.rs", "use super::y::Y;"), ("a/y.rs", "use super::x::X;")];
        assert_eq!(circles_of(&inside), (0, 1));
        // A module and the files that it declares are one thing.
        let parent = [("a/mod.rs", "mod x; use x::X; struct A;"), ("a/x.rs", "use super::A;")];
        assert_eq!(circles_of(&parent), (0, 0));
        // A name that the module passes on is where it is defined.
        let passed_on = [
            ("a/mod.rs", "mod x; mod y; pub use x::X; pub use y::{Y as Other, z};"),
            ("a/x.rs", "use super::Other;"),
            ("a/y.rs", "use super::X;"),
        ];
        assert_eq!(circles_of(&passed_on), (0, 1));
    }

    #[test]
    fn an_upward_arrow_is_found() {
        let files =
            [("segment/mod.rs", "use crate::commit::Log;"), ("commit/mod.rs", "use crate::io::Io;"), ("io/mod.rs", "")];
        let upward = upward_arrows(&Graph::new(&Tree::of(&files)));
        assert_eq!(upward, [("segment".to_owned(), "commit".to_owned())]);
    }

    #[test]
    fn a_long_function_and_a_long_file_are_found() {
        let body = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n\n    // why\n".repeat(lines - 2));
        assert_eq!(too_long(&Tree::of(&[("a.rs", &body(60))])), Vec::<String>::new());
        assert_eq!(too_long(&Tree::of(&[("a.rs", &body(61))])).len(), 1);
        let array = body(61).replace("fn f()", "fn f(a: [u8; 2]) -> [u8; 4]");
        assert_eq!(too_long(&Tree::of(&[("a.rs", &array)])).len(), 1);
        let short = "fn f() {}\n".repeat(600);
        assert_eq!(too_long(&Tree::of(&[("a.rs", &short)])), Vec::<String>::new());
        assert_eq!(too_long(&Tree::of(&[("a.rs", &format!("{short}fn g() {{}}\n"))])).len(), 1);
        let with_tests = format!("{short}#[cfg(test)]\nmod tests {{\n{}}}\n", body(100));
        assert_eq!(too_long(&Tree::of(&[("a.rs", &with_tests)])), Vec::<String>::new());
    }

    #[test]
    fn a_call_in_another_place_is_found() {
        let tree = Tree::of(&[("a.rs", "fn f() { dir.unlink(name) }"), ("io/os.rs", "fn f() { dir.unlink(name) }")]);
        let calls = ["dir.unlink("];
        assert_eq!(misplaced_calls(&tree, &calls, &[("a.rs", "temporary files")]), Vec::<String>::new());
        assert_eq!(misplaced_calls(&tree, &calls, &[]).len(), 1);
        assert_eq!(misplaced_calls(&tree, &calls, &[("a.rs", "x"), ("b.rs", "y")]).len(), 1);
    }
}

/// The document's table of layers has each room in the row of its layer.
#[test]
fn the_document_has_the_same_layers() {
    let document = include_str!("../ARCHITECTURE.md");
    for (layer, rooms) in LAYERS {
        let Some(row) = document.lines().find(|line| line.starts_with(&format!("| {layer} |"))) else {
            panic!("ARCHITECTURE.md has no row for the layer {layer}");
        };
        for room in rooms {
            let is_there = row.contains(&format!("`{room}.rs`")) || row.contains(&format!("`{room}/`"));
            assert!(is_there, "{room} is not in {row}");
        }
    }
}
