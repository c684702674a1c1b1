//! The child process, which writes until it is stopped.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::thread;

use ringcask::testing::seeded_bug::{SeededBug, activate};
use ringcask::{Batch, Engine, ErrorKind, Outcome, Store};

use super::{KEYS, Op, Script, State, WRITERS, builder, key_of, now};

/// Seeded bugs that a child can be started with, to show that the check detects them.
const SEEDED_BUGS: [SeededBug; 4] =
    [SeededBug::AckBeforeSync, SeededBug::SyncErrorDropped, SeededBug::NoDirectorySync, SeededBug::FooterBeforeData];

/// Whether this process is a child.
pub fn is_child() -> bool {
    std::env::var_os("RINGCASK_CHILD_DIR").is_some()
}

/// Writes a line to the parent with one system call. Ends the process if the parent is gone.
fn send(line: &str) {
    if rustix::io::write(std::io::stdout().as_fd(), line.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

/// The child's main function. It writes until it is stopped or, if `may_fail`, until every call fails.
pub fn child(may_fail: bool) {
    let variable = |name: &str| std::env::var(name).expect("an environment variable that the parent sets");
    let engine: Engine = variable("RINGCASK_CHILD_ENGINE").parse().unwrap();
    let seed: u64 = variable("RINGCASK_CHILD_SEED").parse().unwrap();
    let path = PathBuf::from(variable("RINGCASK_CHILD_DIR"));
    let seeded_bug = std::env::var("RINGCASK_CHILD_SEEDED_BUG").ok();
    activate(seeded_bug.map(|name| *SEEDED_BUGS.iter().find(|seeded_bug| format!("{seeded_bug:?}") == name).unwrap()));
    send("\nstarting\n");
    let store = match pollster::block_on(builder(engine, &path, seed).open()) {
        Ok(store) => store,
        Err(error) if may_fail => {
            send(&format!("unopened {:?} {error}\n", error.kind()));
            return;
        }
        Err(error) => panic!("open: {error:?}"),
    };
    assert!(store.recovery_report().damage.is_empty());
    send("opened\n");
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        thread::spawn(move || {
            let fate = Writer::new(&store, seed, writer).write_until_refused();
            assert!(may_fail, "writer {writer}: {fate}");
            send(&format!("refused {writer} {fate}\n"));
        })
    });
    let ends: Vec<_> = writers.collect::<Vec<_>>().into_iter().map(thread::JoinHandle::join).collect();
    assert!(ends.iter().all(Result::is_ok), "a writer detected an error");
    send("ended\n");
    // Keeps the store open until the process is stopped: a normal exit would close it cleanly.
    loop {
        thread::park();
    }
}

struct Writer<'s> {
    store: &'s Store,
    script: Script,
    writer: usize,
    /// The expected contents of the writer's keys.
    state: State,
}

impl<'s> Writer<'s> {
    fn new(store: &'s Store, seed: u64, writer: usize) -> Self {
        let get =
            |key: String| pollster::block_on(store.get(&key)).map(|value| value.map(|value| (key, value.to_vec())));
        // Reads may fail if the disk is gone. Then the first write fails as well.
        let state = (0..KEYS).filter_map(|key| get(key_of(writer, key)).ok().flatten()).collect();
        Self { store, script: Script::new(seed, writer, |key| store.contains_key(key)), writer, state }
    }

    /// Writes until a write fails. Returns what is known of that write.
    fn write_until_refused(mut self) -> String {
        for index in 0_u64.. {
            let op = self.script.next_op();
            let asked = now();
            match write(self.store, &op) {
                Ok(version) => send(&format!("ack {} {index} {version} {asked} {}\n", self.writer, now())),
                Err(error) => {
                    self.read_after_failure(&op);
                    return format!("{index} {:?} {error}", error.outcome());
                }
            }
            for (key, value) in op.changes {
                match value {
                    Some(value) => self.state.insert(key, value),
                    None => self.state.remove(&key),
                };
            }
        }
        unreachable!("a writer has an infinite script");
    }

    /// Checks the reads after a failed write: they return the right value or an error. The keys of the failed operation
    /// may have the old or the new value.
    fn read_after_failure(&self, failed: &Op) {
        for key in (0..KEYS).map(|key| key_of(self.writer, key)) {
            let Ok(found) = pollster::block_on(self.store.get(&key)) else { continue };
            let issued =
                failed.changes.iter().rev().find(|(changed, _)| *changed == key).map(|(_, value)| value.as_ref());
            let is_right = found.as_deref() == self.state.get(&key).map(|value| &value[..])
                || issued.is_some_and(|value| found.as_deref() == value.map(|value| &value[..]));
            assert!(
                is_right,
                "{key} has a value of {:?} bytes, which is neither the old nor the failed one",
                found.map(|it| it.len())
            );
        }
    }
}

/// Runs one operation. Returns its version, or 0 for a delete.
fn write(store: &Store, op: &Op) -> ringcask::Result<u64> {
    let options = op.level;
    let result = match &op.changes[..] {
        [(key, Some(value))] => {
            pollster::block_on(store.put(key, value).durability(options)).map(|version| version.get())
        }
        [(key, None)] => pollster::block_on(store.delete(key).durability(options)).map(|was_there| {
            assert!(was_there, "{key} was absent, but must exist");
            0
        }),
        changes => {
            let mut batch = Batch::with_capacity(changes.len());
            for (key, value) in changes {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                };
            }
            pollster::block_on(store.write(batch).durability(op.level)).map(|version| version.get())
        }
    };
    if let Err(error) = &result {
        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::NoSpace), "{error:?}");
        assert!(matches!(error.outcome(), Outcome::NotApplied | Outcome::Unknown), "{error:?}");
    }
    result
}
