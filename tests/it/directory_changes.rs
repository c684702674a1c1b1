//! The order in which a store changes its directory: every write, sync and rename from an open to a close.
//!
//! The crash tests find wrong orders. This test pins the order itself, so that a change of it is noticed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ringcask::testing::sim::{Journal, SimBackend, SimConfig};
use ringcask::{Compaction, Store};

/// Shortens the twenty digits of a file name: `7.seg`.
fn short(name: &str) -> &str {
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    let zeroes = name.bytes().take_while(|byte| *byte == b'0').count();
    if digits == 20 { &name[zeroes..] } else { name }
}

/// The steps from `from` on in `journal`, one per line. A write or sync that no other step interrupts is one line.
fn lines(journal: &Journal, from: usize) -> String {
    let (steps, mut text, mut index) = (journal.steps(), String::new(), from);
    while let Some(step) = steps.get(index) {
        let description = journal.describe(index);
        let name = step.name.as_deref().map(short).unwrap_or_default();
        let is_begun = description.ends_with("submitted") || description.contains("submitted, without");
        // In "write 3 of ..", "write 3 to ..", "sync 3 (All) of .." and "sync 3 of ..", the number identifies the
        // operation.
        let operation = |text: &str| text.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let is_ended_next =
            index + 1 < journal.len() && operation(&journal.describe(index + 1)) == operation(&description);
        let what = match (is_begun, is_ended_next) {
            (true, true) => "",
            (true, false) => " begins",
            (false, _) => " ends",
        };
        index += if is_begun && is_ended_next { 2 } else { 1 };
        match description.split([' ', '(']).next().unwrap() {
            "write" => writeln!(text, "write {name} {}..{}{what}", step.offset, step.offset + step.data.len() as u64),
            "sync" => writeln!(text, "sync {name}{what}"),
            "DirCreated" => writeln!(text, "create the directory"),
            "DirSynced" => writeln!(text, "sync the directory"),
            "Created" => writeln!(text, "create {name}"),
            "Renamed" => writeln!(text, "rename to {name}"),
            "Unlinked" => writeln!(text, "unlink {name}"),
            "Truncated" => writeln!(text, "truncate {name}"),
            _ => writeln!(text, "{description}"),
        }
        .unwrap();
    }
    text
}

/// Runs `act`, waits until the store is idle, and appends the resulting changes of the disk to `text`.
fn phase<T>(backend: &SimBackend, name: &str, text: &mut String, act: impl Future<Output = T>) -> T {
    let from = backend.step();
    let done = backend.run_until(act);
    backend.run_to_idle(Duration::from_millis(100));
    writeln!(text, "# {name}\n{}", lines(&backend.journal(), from)).unwrap();
    done
}

/// The commit task and the maintenance task run concurrently. With this seed, a hint file is written in the middle of
/// one MANIFEST write, and nowhere else.
const SEED: u64 = 49;

const EXPECTED: &str = "\
# open an empty directory
create the directory
create LOCK
sync the directory
create MANIFEST.tmp
write MANIFEST.tmp 0..84
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
create RESERVE

# the first put starts a segment
create 1.seg
write 1.seg 0..512
sync 1.seg
sync the directory
create MANIFEST.tmp
write MANIFEST.tmp 0..100
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
write 1.seg 512..1616
write 1.seg 1616..2048
sync 1.seg

# the second only writes and syncs
write 1.seg 1616..1816
sync 1.seg

# the third rotates
truncate 1.seg
write 1.seg 1816..1896
sync 1.seg
create 2.seg
write 2.seg 0..512
sync 2.seg
sync the directory
create MANIFEST.tmp
write MANIFEST.tmp 0..116
create 1.hint.tmp
write 1.hint.tmp 0..190
sync 1.hint.tmp
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
rename to 1.hint
sync the directory
write 2.seg 512..1616
write 2.seg 1616..2048
sync 2.seg

# compact
truncate 2.seg
write 2.seg 1616..1696
sync 2.seg
create MANIFEST.tmp
write MANIFEST.tmp 0..116
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
create 3.seg
write 3.seg 0..512
write 3.seg 512..1560
write 3.seg 1560..1640
sync 3.seg
create 3.hint.tmp
write 3.hint.tmp 0..151
sync 3.hint.tmp
rename to 3.hint
sync the directory
sync the directory
create MANIFEST.tmp
write MANIFEST.tmp 0..100
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
unlink 1.hint
unlink 1.seg
sync the directory
unlink 2.seg
sync the directory

# delete
create 4.seg
write 4.seg 0..512
sync 4.seg
sync the directory
create MANIFEST.tmp
write MANIFEST.tmp 0..116
sync MANIFEST.tmp
rename to MANIFEST
sync the directory
write 4.seg 512..616
write 4.seg 616..1024
sync 4.seg

# close
truncate 4.seg
write 4.seg 616..696
sync 4.seg
create 4.hint.tmp
write 4.hint.tmp 0..151
sync 4.hint.tmp
rename to 4.hint
sync the directory
";

#[test]
fn the_store_changes_its_directory_in_the_expected_order() {
    let (backend, mut text) = (SimBackend::new(SimConfig { seed: SEED, ..SimConfig::default() }), String::new());
    let builder = Store::builder("/sim").backend(Arc::new(backend.clone())).segment_bytes(2048);
    let builder = builder.compaction(Compaction::new().automatic(false));
    let store = phase(&backend, "open an empty directory", &mut text, builder.open()).unwrap();
    phase(&backend, "the first put starts a segment", &mut text, store.put("key", [1; 1000])).unwrap();
    phase(&backend, "the second only writes and syncs", &mut text, store.put("key", [2; 100])).unwrap();
    phase(&backend, "the third rotates", &mut text, store.put("key", [3; 1000])).unwrap();
    phase(&backend, "compact", &mut text, store.compact()).unwrap();
    phase(&backend, "delete", &mut text, store.delete("key")).unwrap();
    phase(&backend, "close", &mut text, store.close()).unwrap();
    drop(store);
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
    assert!(text.trim_end() == EXPECTED.trim_end(), "the order is now:\n{text}");
}
