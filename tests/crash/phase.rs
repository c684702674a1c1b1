//! What a store was doing at a step, as its journal tells it.

/// Whose file was being changed, and which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Records are written to a segment, by a group commit or a compaction.
    Append,
    /// A segment is begun.
    Rotate,
    /// A segment gets its end.
    Seal,
    Hint,
    Manifest,
}

pub const PHASES: [Phase; 5] = [Phase::Append, Phase::Rotate, Phase::Seal, Phase::Hint, Phase::Manifest];

/// Follows a journal from its start.
#[derive(Default)]
pub struct Phases {
    /// Of every inode, the name it was created with.
    names: Vec<String>,
    now: Option<Phase>,
}

/// Bytes of a segment's header and of its footer, which are written by themselves.
const HEADER: &str = " of 512 bytes ";
const FOOTER: &str = " of 80 bytes ";

impl Phases {
    /// What goes on after `event`; what says nothing of it (a directory's sync) belongs to what went before.
    pub fn after(&mut self, event: &str) -> Option<Phase> {
        if event.starts_with("Created") {
            let name = event.split('"').nth(1).unwrap_or_default().to_owned();
            self.now = of_file(&name, Some(Phase::Rotate), self.now);
            self.names.push(name);
        } else if event.starts_with("Truncated") {
            self.now = of_file(self.name_in(event, "ino: "), Some(Phase::Seal), self.now);
        } else if event.starts_with("write") || event.starts_with("sync") {
            let of_segment = if event.contains(HEADER) {
                Some(Phase::Rotate)
            } else if event.contains(FOOTER) {
                Some(Phase::Seal)
            } else if event.starts_with("write") {
                Some(Phase::Append)
            } else {
                self.now.filter(|now| !matches!(now, Phase::Hint | Phase::Manifest)).or(Some(Phase::Append))
            };
            self.now = of_file(self.name_in(event, "inode "), of_segment, self.now);
        }
        self.now
    }

    /// The name of the inode whose number follows `mark`.
    fn name_in(&self, event: &str, mark: &str) -> &str {
        let number = event.split(mark).nth(1).unwrap_or_default();
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().ok().and_then(|ino: usize| self.names.get(ino)).map_or("", String::as_str)
    }
}

fn of_file(name: &str, of_segment: Option<Phase>, otherwise: Option<Phase>) -> Option<Phase> {
    if name.contains(".hint") {
        Some(Phase::Hint)
    } else if name.starts_with("MANIFEST") {
        Some(Phase::Manifest)
    } else if name.ends_with(".seg") {
        of_segment
    } else {
        otherwise
    }
}
