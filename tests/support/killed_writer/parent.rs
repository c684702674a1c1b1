//! A running child, as seen by its parent.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use ringcask::Engine;
use ringcask::testing::seeded_bug::SeededBug;

use super::{DEADLINE, WRITERS};

/// The acknowledgments of one generation.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    /// The versions of each writer's operations, in order; 0 for deletes.
    pub versions: Vec<Vec<u64>>,
    /// The times of each request and its acknowledgment, on the clock of [`now`](super::now).
    pub times: Vec<Vec<(u64, u64)>>,
    /// Start and end of the power cut, on the same clock.
    pub cut: Option<(u64, u64)>,
    /// Writers whose next operation was reported as not applied.
    pub not_applied: Vec<bool>,
    /// Writers whose next operation returned an error.
    pub refused: Vec<bool>,
    /// The child's message if it could not open the store.
    pub unopened: Option<String>,
}

impl Acks {
    pub fn new() -> Self {
        let none = vec![false; WRITERS];
        let (versions, times) = (vec![Vec::new(); WRITERS], vec![Vec::new(); WRITERS]);
        Self { versions, times, not_applied: none.clone(), refused: none, ..Self::default() }
    }
}

pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    acks: Acks,
}

impl Running {
    /// Starts this binary again with the single test `test`.
    pub fn start(test: &str, engine: Engine, path: &Path, seed: u64) -> Self {
        Self::start_with(test, engine, path, seed, None)
    }

    /// The same, with a seeded bug.
    pub fn start_with(test: &str, engine: Engine, path: &Path, seed: u64, seeded_bug: Option<SeededBug>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
        command.env("RINGCASK_CHILD_ENGINE", engine.to_string()).env("RINGCASK_CHILD_DIR", path);
        if let Some(seeded_bug) = seeded_bug {
            command.env("RINGCASK_CHILD_SEEDED_BUG", format!("{seeded_bug:?}")).stderr(Stdio::null());
        }
        let mut child = command.env("RINGCASK_CHILD_SEED", seed.to_string()).spawn().unwrap();
        let pipe = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // A kill may cut the last line short. Such a line has no newline, and its number may lack digits.
            let whole = |line: &Vec<u8>| line.ends_with(b"\n");
            let mut pipe = pipe;
            loop {
                let mut line = Vec::new();
                let read = pipe.read_until(b'\n', &mut line);
                if !read.is_ok_and(|count| count > 0) || !whole(&line) {
                    break;
                }
                let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Self { child, lines, acks: Acks::new() }
    }

    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap_or_else(|_| panic!("the child wrote {line:?}"));
        match words[0] {
            "ack" => {
                let acks = &mut self.acks.versions[number(1) as usize];
                assert_eq!(acks.len() as u64, number(2), "the acknowledgments of a writer are out of order");
                acks.push(number(3));
                self.acks.times[number(1) as usize].push((number(4), number(5)));
            }
            "refused" => {
                let writer = number(1) as usize;
                assert_eq!(self.acks.versions[writer].len() as u64, number(2), "{line}");
                self.acks.refused[writer] = true;
                self.acks.not_applied[writer] = words[3] == "NotApplied";
            }
            "unopened" => self.acks.unopened = Some(line.to_owned()),
            _ => {}
        }
    }

    /// Waits for a line that begins with one of `prefixes`.
    pub fn wait_for(&mut self, prefixes: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no line with {prefixes:?}: {error}"));
            self.note(&line);
            if prefixes.iter().any(|prefix| line.starts_with(prefix)) {
                return;
            }
        }
    }

    /// Kills the child and returns its acknowledgments.
    ///
    /// A child that could not open its store may have exited already. A child that detected an error has exited as
    /// well, and fails the test.
    pub fn kill(mut self) -> Acks {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.note(&line);
        }
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL);
        assert!(killed || status.success() && self.acks.unopened.is_some(), "the child exited with {status}");
        self.acks
    }
}
