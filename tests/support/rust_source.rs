//! Splits Rust source into its code, without comments, string contents and unit tests, and its prose, the comments and
//! strings.

use std::fs;
use std::path::Path;

/// All files of a source folder, except for those that only contain tests.
pub struct Tree {
    pub files: Vec<Source>,
}

pub struct Source {
    /// Relative to the source folder.
    pub path: String,
    pub code: String,
}

impl Tree {
    pub fn read(root: &Path) -> Self {
        let (mut files, mut todo) = (Vec::new(), vec![root.to_path_buf()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if ["tests", "tests.rs", "schedules", "schedules.rs"].iter().any(|end| path.ends_with(end)) {
                    continue;
                } else if path.is_dir() {
                    todo.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    files.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files }
    }

    /// Files given as pairs of path and text.
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(path, text)| Source::new(path, text)).collect() }
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), code: without_tests(&without_words(text)) }
    }

    /// The path of the file's module; empty for the root.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
    }

    pub fn lines_of_code(&self) -> usize {
        self.code.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// Names of the structs, enums, traits and type aliases that the file declares outside any block.
    pub fn types(&self) -> Vec<&str> {
        let (mut found, mut depth, mut previous) = (Vec::new(), 0, "");
        for word in self.code.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
            let name = word.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_');
            let is_keyword = ["struct", "enum", "trait", "union", "type"].contains(&previous);
            if depth == 0 && is_keyword && name.starts_with(char::is_uppercase) {
                found.push(name);
            }
            depth += word.matches(['{', '(']).count() as i64 - word.matches(['}', ')']).count() as i64;
            if !name.is_empty() || !word.trim().is_empty() {
                previous = name;
            }
        }
        found
    }

    /// Every function with a body: its name, and its number of lines from `fn` to the closing brace.
    pub fn functions(&self) -> Vec<(&str, usize)> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("fn ") {
            let is_word = !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let rest = &self.code[at + 3..];
            let name = &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
            if !is_word || name.is_empty() {
                continue;
            }
            let Some(open) = body_start(rest) else { continue };
            let body = &rest[..open + matching(&rest[open..])];
            found.push((name, body.lines().filter(|line| !line.trim().is_empty()).count()));
        }
        found
    }
}

/// The start of a function's body, if it has one. `text` begins after the `fn`.
fn body_start(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(at),
            ';' | '{' | '}' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The length of the text from an opening brace to the matching closing one.
fn matching(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// The kind of the first token of a text.
enum Piece {
    Code(usize),
    Comment(usize),
    /// A string or character literal with its delimiters.
    Literal(usize),
}

/// The first piece of `text`. `behind_word` is true if an identifier ends right before it.
fn piece(text: &str, behind_word: bool) -> Piece {
    let until = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return Piece::Comment(until("\n", 0) - 1);
    }
    if text.starts_with("/*") {
        return Piece::Comment(until("*/", 2));
    }
    let prefix = text.trim_start_matches(['b', 'r', 'c']);
    let prefix_len = text.len() - prefix.len();
    let hashes = prefix.len() - prefix.trim_start_matches('#').len();
    let is_raw = !behind_word && prefix_len > 0 && text[..prefix_len].contains('r');
    if is_raw && prefix[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Piece::Literal(until(&end, prefix_len + hashes + 1));
    }
    let quote = text.chars().next().filter(|c| *c == '"' || *c == '\'');
    let Some(quote) = quote else { return Piece::Code(text.chars().next().map_or(1, char::len_utf8)) };
    let mut chars = text.char_indices().skip(1);
    if quote == '\'' {
        // A lifetime has no quote after its first character.
        let mut inside = text[1..].chars();
        let first = inside.next();
        if first != Some('\\') && inside.next() != Some('\'') {
            return Piece::Code(1);
        }
    }
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Piece::Literal(at + 1);
        }
    }
    Piece::Literal(text.len())
}

/// Blanks comments and string contents. Line numbers do not change.
fn without_words(text: &str) -> String {
    let (mut code, mut rest, mut behind_word) = (String::new(), text, false);
    while !rest.is_empty() {
        let (len, replacement) = match piece(rest, behind_word) {
            Piece::Code(len) => (len, None),
            Piece::Comment(len) => (len, Some("")),
            Piece::Literal(len) => (len, Some("\"\"")),
        };
        let (taken, behind) = rest.split_at(len.clamp(1, rest.len()));
        match replacement {
            None => code.push_str(taken),
            Some(replacement) => {
                code.push_str(replacement);
                code.extend(taken.chars().filter(|c| *c == '\n'));
            }
        }
        behind_word = taken.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        rest = behind;
    }
    code
}

/// The comments and strings of a source text, each with the line in which it begins.
pub fn prose(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut rest, mut line, mut behind_word) = (Vec::new(), text, 1, false);
    while !rest.is_empty() {
        let (len, is_prose) = match piece(rest, behind_word) {
            Piece::Code(len) => (len, false),
            Piece::Comment(len) | Piece::Literal(len) => (len, true),
        };
        let (taken, behind) = rest.split_at(len.clamp(1, rest.len()));
        if is_prose {
            found.push((line, taken));
        }
        line += taken.matches('\n').count();
        behind_word = taken.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        rest = behind;
    }
    found
}

/// Removes every item that is compiled for unit tests only.
fn without_tests(code: &str) -> String {
    let (mut kept, mut rest) = (String::new(), code);
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|test| rest.find(test)).min() {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        rest = &rest[item_len(rest)..];
    }
    kept + rest
}

/// The length of the first item of `text`, with its attributes.
fn item_len(text: &str) -> usize {
    let mut at = 0;
    while text[at..].trim_start().starts_with('#') {
        let close = text[at..].find("]\n").map_or(text.len(), |close| at + close + 2);
        at = close;
    }
    let item = text[at..].trim_start();
    let is_use = item.starts_with("use ") || item.starts_with("pub") && item[..item.len().min(20)].contains(" use ");
    let end = if is_use { text[at..].find(';') } else { text[at..].find([';', '{']) };
    let Some(end) = end.map(|end| at + end) else { return text.len() };
    if text[end..].starts_with('{') { end + matching(&text[end..]) } else { end + 1 }
}
