//! The order in which a store changes its directory: every write, sync and rename from an open to a close.
//!
//! The crash tests find a wrong order. This test shows the order itself, so that a change of it is noticed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ringcask::testing::sim::{Journal, SimBackend, SimConfig};
use ringcask::{Compaction, Store};

/// What the names of files become: `7.seg` for twenty digits.
fn short(name: &str) -> &str {
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    let zeroes = name.bytes().take_while(|byte| *byte == b'0').count();
    if digits == 20 { &name[zeroes..] } else { name }
}

/// The steps `from..` of `journal`, one to a line; a write or sync that nothing came between is one of them.
fn lines(journal: &Journal, from: usize) -> String {
    let (steps, mut text, mut index) = (journal.steps(), String::new(), from);
    while let Some(step) = steps.get(index) {
        let said = journal.describe(index);
        let name = step.name.as_deref().map(short).unwrap_or_default();
        let is_begun = said.ends_with("submitted") || said.contains("submitted, without");
        // "write 3 of ..", "write 3 to ..", "sync 3 (All) of ..", "sync 3 of ..": the number is the operation's.
        let operation = |said: &str| said.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let is_ended_next = index + 1 < journal.len() && operation(&journal.describe(index + 1)) == operation(&said);
        let what = match (is_begun, is_ended_next) {
            (true, true) => "",
            (true, false) => " begins",
            (false, _) => " ends",
        };
        index += if is_begun && is_ended_next { 2 } else { 1 };
        match said.split([' ', '(']).next().unwrap() {
            "write" => writeln!(text, "write {name} {}..{}{what}", step.offset, step.offset + step.data.len() as u64),
            "sync" => writeln!(text, "sync {name}{what}"),
            "DirCreated" => writeln!(text, "create the directory"),
            "DirSynced" => writeln!(text, "sync the directory"),
            "Created" => writeln!(text, "create {name}"),
            "Renamed" => writeln!(text, "rename to {name}"),
            "Unlinked" => writeln!(text, "unlink {name}"),
            "Truncated" => writeln!(text, "truncate {name}"),
            _ => writeln!(text, "{said}"),
        }
        .unwrap();
    }
    text
}

/// Does `act`, lets everything that it set off come to rest, and says what happened to the disk.
fn phase<T>(world: &SimBackend, name: &str, text: &mut String, act: impl Future<Output = T>) -> T {
    let from = world.step();
    let done = world.run_until(act);
    world.run_to_idle(Duration::from_millis(100));
    writeln!(text, "# {name}\n{}", lines(&world.journal(), from)).unwrap();
    done
}

/// The commit task and the maintenance task go on side by side; the seed is one with which a hint comes in the middle
/// of a MANIFEST once, and nowhere else.
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
fn writes_syncs_and_renames_come_in_this_order() {
    let (world, mut text) = (SimBackend::new(SimConfig { seed: SEED, ..SimConfig::default() }), String::new());
    let builder = Store::builder("/sim").backend(Arc::new(world.clone())).segment_bytes(2048);
    let builder = builder.compaction(Compaction::new().automatic(false));
    let store = phase(&world, "open an empty directory", &mut text, builder.open()).unwrap();
    phase(&world, "the first put starts a segment", &mut text, store.put("key", [1; 1000])).unwrap();
    phase(&world, "the second only writes and syncs", &mut text, store.put("key", [2; 100])).unwrap();
    phase(&world, "the third rotates", &mut text, store.put("key", [3; 1000])).unwrap();
    phase(&world, "compact", &mut text, store.compact()).unwrap();
    phase(&world, "delete", &mut text, store.delete("key")).unwrap();
    phase(&world, "close", &mut text, store.close()).unwrap();
    drop(store);
    world.shutdown();
    assert_eq!(world.panics(), Vec::<String>::new());
    assert!(text.trim_end() == EXPECTED.trim_end(), "the order is now:\n{text}");
}
