//! The process that serves the file system, and its handle in the test.
//!
//! When a separate process ends for any reason, the kernel answers every pending request. So a test that fails or hangs
//! leaves no process waiting.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use fuser::{Config, MountOption};
use tempfile::TempDir;

use crate::fault::{Fault, KINDS, Kind};
use crate::filesystem::{Passthrough, Shared};

const HOME: &str = "RINGCASK_FAULTY_HOME";
/// Prefix of each answer, which separates it from the output of the test harness.
const ANSWER: &str = "answer: ";

/// If this process is the server, serves until its parent is gone, and returns true.
pub fn serve() -> bool {
    let Some(home) = std::env::var_os(HOME) else { return false };
    let home = PathBuf::from(home);
    let shared = Arc::new(Mutex::new(Shared::default()));
    let filesystem = Passthrough::new(&home.join("backing"), &shared);
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("ringcask-faulty".to_owned())];
    config.n_threads = Some(3);
    let session = match fuser::spawn_mount(filesystem, home.join("mount"), &config) {
        Ok(session) => session,
        Err(error) => {
            println!("\n{ANSWER}refused: {error}");
            return true;
        }
    };
    println!("\n{ANSWER}mounted");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut shared = shared.lock().unwrap();
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("begin", mode) => {
                (shared.fault, shared.fired, shared.is_direct) = (None, 0, mode == "direct");
                shared.counts.clear();
                String::new()
            }
            ("arm", fault) => {
                shared.fault = Some(fault.parse().unwrap());
                String::new()
            }
            ("heal", _) => {
                shared.fault = None;
                String::new()
            }
            ("report", _) => {
                let mut text = format!("{} {}", shared.fired, shared.open.len());
                for kind in KINDS {
                    let _ = write!(text, " {}", shared.counts.get(&kind).copied().unwrap_or(0));
                }
                text
            }
            other => panic!("{other:?}"),
        };
        println!("{ANSWER}{answer}");
    }
    drop(session);
    std::process::exit(0);
}

/// What the file system has seen since the last `begin`.
#[derive(Clone, Debug)]
pub struct Report {
    pub fired: u64,
    /// Number of open files and directories.
    pub open: u64,
    pub counts: Vec<(Kind, u64)>,
}

/// A mounted file system that injects faults.
pub struct Faulty {
    home: TempDir,
    server: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Faulty {
    /// Mounts the file system, with the test `test` of this binary as its server, or returns the reason why none is
    /// available.
    pub fn mount(test: &str) -> Result<Self, String> {
        let home = TempDir::with_prefix("ringcask-faulty-").unwrap();
        fs::create_dir(home.path().join("backing")).unwrap();
        fs::create_dir(home.path().join("mount")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(HOME, home.path());
        let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = server.stdin.take().unwrap();
        let answers = BufReader::new(server.stdout.take().unwrap()).lines();
        let mut faulty = Self { home, server, commands, answers };
        match faulty.read_answer().as_str() {
            "mounted" => Ok(faulty),
            refused => Err(format!("FUSE is unavailable: {refused}")),
        }
    }

    /// The directory of the run with this name, on the faulty file system.
    pub fn mounted(&self, name: &str) -> PathBuf {
        self.home.path().join("mount").join(name)
    }

    /// The same directory, without faults.
    pub fn backing(&self, name: &str) -> PathBuf {
        self.home.path().join("backing").join(name)
    }

    pub fn server_id(&self) -> u32 {
        self.server.id()
    }

    /// Resets faults and counts. With `is_direct`, reads and writes bypass the page cache.
    pub fn begin(&mut self, is_direct: bool) {
        self.ask(if is_direct { "begin direct" } else { "begin cached" });
    }

    pub fn arm(&mut self, fault: Fault) {
        self.ask(&format!("arm {fault}"));
    }

    pub fn heal(&mut self) {
        self.ask("heal");
    }

    pub fn report(&mut self) -> Report {
        let text = self.ask("report");
        let mut numbers = text.split(' ').map(|word| word.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        Report { fired: next(), open: next(), counts: KINDS.map(|kind| (kind, next())).to_vec() }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.read_answer()
    }

    fn read_answer(&mut self) -> String {
        loop {
            let line = self.answers.next().expect("the server has ended").unwrap();
            if let Some(answer) = line.strip_prefix(ANSWER) {
                return answer.to_owned();
            }
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Ends the server first, which answers all requests. The unused mount can then be removed.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(self.home.path().join("mount")).stderr(Stdio::null()).status();
    }
}
