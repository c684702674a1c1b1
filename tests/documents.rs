//! Checks that the files, functions and rooms that the documents name exist.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a failed check is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn architecture() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap()
}

/// All text in single backticks, without code blocks.
fn code_spans(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// A function that a route names: `commit/task.rs::commit`, with or without `src/`, or `commit/task.rs::Task::commit`.
struct Place {
    file: PathBuf,
    owner: Option<String>,
    function: String,
}

fn place(span: &str) -> Option<Place> {
    let (file, names) = span.split_once(".rs::")?;
    let file = Path::new(file.strip_prefix("src/").unwrap_or(file)).with_extension("rs");
    let names = names.trim_end_matches("()");
    let (owner, function) = match names.rsplit_once("::") {
        Some((owner, function)) => (Some(owner.to_owned()), function),
        None => (None, names),
    };
    Some(Place { file, owner, function: function.to_owned() })
}

fn is_word_of(code: &str, before: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(&format!("{before}{name}")).any(|(at, found)| !code[at + found.len()..].starts_with(is_part))
}

/// The reason why the function is not in the code of its file, or `None` if it is.
fn missing(place: &Place, code: &str) -> Option<String> {
    if !is_word_of(code, "fn ", &place.function) {
        return Some(format!("there is no function {}", place.function));
    }
    let is_type = |owner: &String| {
        let declares = ["struct ", "enum ", "trait ", "impl ", "for "].iter().any(|word| is_word_of(code, word, owner));
        // `impl<T> Owner<T>`
        declares || code.lines().any(|line| line.starts_with("impl<") && is_word_of(line, "> ", owner))
    };
    let owner = place.owner.as_ref().filter(|owner| !is_type(owner));
    owner.map(|owner| format!("there is no type {owner} with functions"))
}

#[test]
fn every_function_named_in_a_route_exists() {
    let document = architecture();
    let (mut wrong, mut named) = (Vec::new(), 0);
    for span in code_spans(&document) {
        let Some(place) = place(span) else { continue };
        named += 1;
        let path = root().join("src").join(&place.file);
        let why = match fs::read_to_string(&path) {
            Ok(code) => missing(&place, &code),
            Err(_) => Some("there is no such file".to_owned()),
        };
        wrong.extend(why.map(|why| format!("{span}: {why}")));
    }
    println!("{named} functions");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_four_routes_name_their_functions() {
    let document = architecture();
    let named = code_spans(&document).iter().filter(|span| place(span).is_some()).count();
    assert!(named >= 20, "{named} functions on the routes of a put, a get, an open and a compaction");
}

#[test]
fn a_missing_function_is_found() {
    let code =
        "pub(crate) struct Task<F> {}\nimpl<F: Io> Task<F> {\n    async fn commit(&self) {}\n}\nfn helper() {}\n";
    let problem = |span| missing(&place(span).unwrap(), code);
    for right in ["commit/task.rs::commit", "src/commit/task.rs::Task::commit", "commit/task.rs::helper()"] {
        assert_eq!(problem(right), None, "{right}");
    }
    assert!(problem("commit/task.rs::commi").is_some_and(|why| why.contains("no function")));
    assert!(problem("commit/task.rs::Tas::commit").is_some_and(|why| why.contains("no type")));
    assert!(place("commit/task.rs").is_none() && place("Task::commit").is_none());
    let place = place("src/commit/task.rs::Task::commit").unwrap();
    assert_eq!((place.file, place.owner), (PathBuf::from("commit/task.rs"), Some("Task".to_owned())));
    assert_eq!(code_spans("`a` and\n```\n`b`\n```\n`c`"), ["a", "c"]);
}

/// Files that a document names in backticks, by their path from the root of the repository.
fn paths_named(text: &str) -> Vec<&str> {
    let is_path = |span: &&str| {
        let folders = ["src/", "tests/", "benches/", "examples/", "docs/", "fuzz/", ".ci/", "crates/"];
        folders.iter().any(|folder| span.starts_with(folder)) && !span.contains(['<', '*', ' ', '{', '…'])
    };
    let paths = code_spans(text).into_iter().filter(is_path);
    paths.map(|span| span.split("::").next().unwrap()).collect()
}

#[test]
fn every_path_named_in_a_document_exists() {
    let (mut named, mut wrong) = (0, Vec::new());
    for document in ["README.md", "ARCHITECTURE.md", "TESTING.md", "CONTRIBUTING.md", "SECURITY.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap_or_default();
        for path in paths_named(&text) {
            named += 1;
            if !root().join(path).exists() {
                wrong.push(format!("{document}: {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(named > 20, "{named} paths");
}

#[test]
fn a_missing_path_is_found() {
    let text = "See `tests/kill.rs`, `src/none.rs::f`, `tests/<name>/main.rs`, `Store::get` and `docs/`.";
    assert_eq!(paths_named(text), ["tests/kill.rs", "src/none.rs", "docs/"]);
    assert!(root().join("tests/documents.rs").exists() && !root().join("src/none.rs").exists());
}

/// ARCHITECTURE.md describes every room of the library.
#[test]
fn the_architecture_names_every_room() {
    let document = architecture();
    let mut rooms = 0;
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let form = if path.is_dir() { format!("`{name}/`") } else { format!("`{name}`") };
        let with_folder = form.replacen('`', "`src/", 1);
        assert!(document.contains(&form) || document.contains(&with_folder), "ARCHITECTURE.md does not name {form}");
        rooms += 1;
    }
    assert!(rooms > 15, "{rooms} rooms");
}
