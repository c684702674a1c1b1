//! Which modules import which: the imports of a source tree, its rooms, arrows and circles.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::rust_source::{Source, Tree};

/// The path of a module or of a name in it, from the crate root.
type Path = Vec<String>;

/// A name of another module that a file uses.
pub struct Import {
    pub file: String,
    /// The path of the definition, resolved through re-exports.
    pub path: Path,
    from: Path,
    /// The module of the file that contains the definition.
    to: Path,
}

impl Import {
    pub fn importer_room(&self) -> &str {
        self.from.first().map_or("lib", String::as_str)
    }

    pub fn imported_room(&self) -> &str {
        self.to.first().map_or("lib", String::as_str)
    }
}

pub fn path_text(path: &[String]) -> String {
    path.join("::")
}

pub struct Graph {
    pub imports: Vec<Import>,
    modules: BTreeMap<Path, String>,
}

impl Graph {
    pub fn new(tree: &Tree) -> Self {
        let modules: BTreeMap<Path, String> =
            tree.files.iter().map(|file| (file.module(), file.path.clone())).collect();
        let paths: Vec<(Path, Vec<(Path, String)>)> =
            tree.files.iter().map(|file| (file.module(), paths_in(file, &modules))).collect();
        let mut passed_on: BTreeMap<Path, BTreeMap<String, Path>> = BTreeMap::new();
        for (module, named) in &paths {
            let names = passed_on.entry(module.clone()).or_default();
            names.extend(
                named.iter().filter(|(_, name)| !name.is_empty()).map(|(path, name)| (name.clone(), path.clone())),
            );
        }
        let mut imports = Vec::new();
        for (from, named) in paths.iter().filter(|(from, _)| !from.is_empty()) {
            for (path, _) in named {
                let (to, path) = resolve(path, &modules, &passed_on);
                if to != *from && !to.is_empty() {
                    imports.push(Import { file: modules[from].clone(), path, from: from.clone(), to });
                }
            }
        }
        imports.sort_by(|a, b| (&a.file, &a.path).cmp(&(&b.file, &b.path)));
        imports.dedup_by(|a, b| (&a.file, &a.path) == (&b.file, &b.path));
        Self { imports, modules }
    }

    pub fn rooms(&self) -> Vec<String> {
        let rooms: BTreeSet<String> = self.modules.keys().filter_map(|module| module.first().cloned()).collect();
        rooms.into_iter().collect()
    }

    pub fn arrows(&self) -> Vec<(String, String)> {
        let between = self.imports.iter().filter(|import| import.importer_room() != import.imported_room());
        let arrows: BTreeSet<(String, String)> =
            between.map(|import| (import.importer_room().to_owned(), import.imported_room().to_owned())).collect();
        arrows.into_iter().collect()
    }

    pub fn room_circles(&self) -> Vec<Vec<String>> {
        circles(&self.arrows())
    }

    /// Circles of files. A module and the modules below it count as one node: imports among them are ignored.
    pub fn file_circles(&self) -> Vec<Vec<String>> {
        let is_family = |import: &Import| import.from.starts_with(&import.to) || import.to.starts_with(&import.from);
        let arrows: BTreeSet<(String, String)> = self
            .imports
            .iter()
            .filter(|import| !is_family(import))
            .map(|import| (import.file.clone(), self.modules[&import.to].clone()))
            .collect();
        circles(&arrows.into_iter().collect::<Vec<_>>())
    }
}

/// Whether the files of a circle belong to several rooms.
pub fn crosses_rooms(circle: &[String]) -> bool {
    let room = |path: &String| path.split(['/', '.']).next().unwrap_or_default().to_owned();
    circle.iter().map(room).collect::<BTreeSet<_>>().len() > 1
}

/// Strongly connected components: groups of nodes that all reach each other.
fn circles(arrows: &[(String, String)]) -> Vec<Vec<String>> {
    let nodes: BTreeSet<&String> = arrows.iter().flat_map(|(from, to)| [from, to]).collect();
    let reached = |start: &String| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![start]);
        while let Some(node) = todo.pop() {
            for (_, to) in arrows.iter().filter(|(from, _)| from == node) {
                if seen.insert(to) {
                    todo.push(to);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<&String>> = nodes.iter().map(|node| (*node, reached(node))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for node in nodes {
        let mutual = reach[node].iter().filter(|other| reach[**other].contains(node));
        let group: Vec<String> = mutual.map(|other| (*other).clone()).collect();
        if group.len() > 1 {
            found.insert(group);
        }
    }
    found.into_iter().collect()
}

/// The module that `path` leads to and the remaining path, resolved through re-exports.
fn resolve(
    path: &[String],
    modules: &BTreeMap<Path, String>,
    passed_on: &BTreeMap<Path, BTreeMap<String, Path>>,
) -> (Path, Path) {
    let mut path = path.to_vec();
    for _ in 0..8 {
        let len = (0..=path.len()).rev().find(|len| modules.contains_key(&path[..*len])).unwrap_or(0);
        let module = path[..len].to_vec();
        let further =
            path.get(len).and_then(|name| passed_on.get(&module)?.get(name)).filter(|to| !to.starts_with(&path));
        let Some(further) = further else { return (module, path) };
        path = further.iter().chain(&path[len + 1..]).cloned().collect();
    }
    (Path::new(), path)
}

/// All paths in a file that lead into the crate, from its root. Each path of a `use` comes with the name that it
/// introduces.
fn paths_in(file: &Source, modules: &BTreeMap<Path, String>) -> Vec<(Path, String)> {
    let (own, code) = (file.module(), file.code.as_str());
    let mut found = Vec::new();
    let (mut at, mut previous) = (0, ' ');
    while let Some(c) = code[at..].chars().next() {
        if !(c.is_alphabetic() || c == '_') || previous.is_alphanumeric() || previous == '_' {
            previous = c;
            at += c.len_utf8();
            continue;
        }
        let word = word_at(code, at);
        let is_start = !code[..at].trim_end().ends_with("::") && !code[..at].ends_with(['$', '.', '\'']);
        let base = if is_start { base_of(word, &own, modules) } else { None };
        let is_use = code[..at].trim_end().ends_with("use");
        match base {
            Some(base) if code[at + word.len()..].starts_with("::") => {
                let mut parsed = Vec::new();
                let start = if word == "crate" { Path::new() } else { base };
                let end = tree(code, at + word.len() + 2, &start, &mut parsed);
                let all = parsed.into_iter().filter_map(climb);
                found.extend(all.map(|(path, name)| (path, if is_use { name } else { String::new() })));
                at = end.max(at + word.len());
            }
            _ => at += word.len(),
        }
        previous = ':';
    }
    found
}

fn word_at(code: &str, at: usize) -> &str {
    let rest = &code[at..];
    &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
}

/// The module in which a path with this first word begins, if it belongs to the crate.
fn base_of(word: &str, own: &[String], modules: &BTreeMap<Path, String>) -> Option<Path> {
    let with = |name: &str| own.iter().cloned().chain([name.to_owned()]).collect::<Path>();
    match word {
        "crate" => Some(Path::new()),
        "self" => Some(own.to_vec()),
        "super" => Some(with("super")),
        child => Some(with(child)).filter(|path| modules.contains_key(path)),
    }
}

/// Resolves the `super` parts of a path.
fn climb((path, name): (Path, String)) -> Option<(Path, String)> {
    let mut climbed = Path::new();
    for part in path {
        match part.as_str() {
            "super" => drop(climbed.pop()?),
            "self" => {}
            _ => climbed.push(part),
        }
    }
    Some((climbed, name))
}

/// Reads the rest of a path or `use` tree, starting at `at`. Returns its end.
fn tree(code: &str, at: usize, base: &Path, found: &mut Vec<(Path, String)>) -> usize {
    let start = at + (code[at..].len() - code[at..].trim_start().len());
    if code[start..].starts_with('{') {
        let mut at = start + 1;
        loop {
            at += code[at..].len() - code[at..].trim_start_matches([' ', '\n', ',']).len();
            if code[at..].starts_with('}') || code[at..].is_empty() {
                return (at + 1).min(code.len());
            }
            let end = tree(code, at, base, found);
            if end == at {
                return at;
            }
            at = end;
        }
    }
    if code[start..].starts_with('*') {
        let mut path = base.clone();
        path.push("*".to_owned());
        found.push((path, String::new()));
        return start + 1;
    }
    let word = word_at(code, start);
    if word.is_empty() {
        return at;
    }
    let (mut path, end) = (base.clone(), start + word.len());
    path.push(word.to_owned());
    if code[end..].starts_with("::") && !code[end..].starts_with("::<") {
        return tree(code, end + 2, &path, found);
    }
    let behind = code[end..].trim_start();
    let (name, end) = match behind.strip_prefix("as ") {
        Some(alias) => (word_at(alias, 0), code.len() - alias.len() + word_at(alias, 0).len()),
        None => (word, end),
    };
    found.push((path, name.to_owned()));
    end
}
