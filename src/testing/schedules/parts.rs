//! Models of the keydir and the segment set alone. Each has few steps, so the explorer tries nearly every order.

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::thread;

use super::backend::{ExplorerBackend, FileImage};
use crate::commit::{Limits, Log, Prepared};
use crate::format::{ALIGN, FOOTER_LEN, RECORD_HEADER_LEN, patch_header, record_len};
use crate::io::util::write_all;
use crate::keydir::{Keydir, Location, Move};
use crate::read::{Lookup, Sources, look_up};
use crate::segment::{Facts, Segment, SegmentSet, segment_file_name};

const INPUT: u32 = 1;
const ACTIVE: u32 = 2;
const OUTPUT: u32 = 3;

fn at(segment: u32, seq: u64) -> Location {
    Location::new(segment, seq * 64, 8).unwrap()
}

fn seq_of(keydir: &Keydir, key: &[u8]) -> u64 {
    keydir.get(key).map_or(0, |entry| entry.seq)
}

/// An overwrite, a delete and its sweep run against a compaction that repoints keys, and against passes over all keys.
pub(super) fn records_against_relocation() {
    let keydir = Arc::new(Keydir::new((1, 2), 2));
    for (key, seq) in [(&b"a"[..], 1), (b"b", 2), (b"c", 3)] {
        keydir.publish(key, seq, at(INPUT, seq));
    }
    let (writer, deleter, compactor) = (Arc::clone(&keydir), Arc::clone(&keydir), Arc::clone(&keydir));
    let tasks = [
        thread::spawn(move || {
            assert!(writer.publish(b"a", 10, at(ACTIVE, 10)).applied);
            assert_eq!(seq_of(&writer, b"a"), 10, "an acknowledged put is the newest");
        }),
        thread::spawn(move || {
            deleter.bury(b"b", 11);
            assert_eq!(deleter.get(b"b"), None, "b was deleted");
            deleter.sweep(b"b", 11);
            let mut keys = 0;
            deleter.for_each_location(|_, location| {
                assert_ne!(location.offset(), at(INPUT, 2).offset(), "a pass finds a deleted record");
                keys += 1;
            });
            assert_eq!(keys, 2, "a and c were never absent");
        }),
        thread::spawn(move || {
            for (key, seq) in [(&b"a"[..], 1), (b"b", 2), (b"c", 3)] {
                if compactor.are_newest(&[(key, seq)], INPUT) == [true] {
                    compactor.repoint(&[Move { key, seq, to: at(OUTPUT, seq) }], &[INPUT], |_, _| {});
                }
            }
        }),
    ];
    let mut last = 0;
    for _ in 0..2 {
        let now = seq_of(&keydir, b"a");
        assert!(now >= last.max(1), "a went from {last} to {now}");
        last = now;
        assert_eq!(seq_of(&keydir, b"c"), 3);
    }
    for task in tasks {
        task.join().unwrap();
    }
    assert_eq!(keydir.get(b"a").map(|entry| entry.location), Some(at(ACTIVE, 10)));
    assert_eq!(keydir.get(b"c").map(|entry| entry.location), Some(at(OUTPUT, 3)));
    assert_eq!((keydir.get(b"b"), keydir.len()), (None, 2));
}

/// Batches that publish two keys run against readers of both keys and a compaction that repoints them.
pub(super) fn batches_against_readers() {
    let keydir = Arc::new(Keydir::new((1, 2), 2));
    keydir.publish(b"a", 1, at(INPUT, 1));
    keydir.publish(b"b", 2, at(INPUT, 2));
    let (writer, compactor) = (Arc::clone(&keydir), Arc::clone(&keydir));
    let mut tasks = vec![
        thread::spawn(move || {
            for first in [10, 20] {
                writer.atomically(|| {
                    writer.publish(b"a", first, at(ACTIVE, first));
                    writer.publish(b"b", first + 1, at(ACTIVE, first + 1));
                });
            }
        }),
        thread::spawn(move || {
            for (key, seq) in [(&b"a"[..], 1), (b"b", 2)] {
                compactor.repoint(&[Move { key, seq, to: at(OUTPUT, seq) }], &[INPUT], |_, _| {});
            }
        }),
    ];
    for _ in 0..2 {
        let reader = Arc::clone(&keydir);
        tasks.push(thread::spawn(move || {
            let (first, second) = (seq_of(&reader, b"a"), seq_of(&reader, b"b"));
            assert!(second > first, "read {first} for a and then {second} for b");
        }));
    }
    for task in tasks {
        task.join().unwrap();
    }
    assert_eq!((seq_of(&keydir, b"a"), seq_of(&keydir, b"b")), (20, 21));
}

fn three_segments(backend: &ExplorerBackend) -> Arc<SegmentSet> {
    let segment_set = Arc::new(SegmentSet::new(backend.dir(), PathBuf::from("/db"), 1));
    // The second segment has tombstones that hide records of the first.
    for (id, first_seq, max_seq, tombstone_bytes) in [(1, 10, 19, 0), (2, 20, 29, record_len(1, 0)), (3, 30, 39, 0)] {
        let file = backend.dir().create(&segment_file_name(id));
        let segment = Segment::new(id, 7, first_seq, 4096, Some(file));
        segment.set_sealed(Some(Facts { max_seq, tombstone_bytes }));
        segment_set.insert(Arc::new(segment));
    }
    segment_set
}

/// How often a record moves during one lookup.
const MOVES: u32 = 3;

/// Segments that each contain a copy of the same record.
fn copies_of_a_record(backend: &ExplorerBackend, key: &[u8]) -> Vec<Arc<Segment>> {
    let mut record = Prepared::put(Vec::new(), key, b"value").bytes;
    let copy = |id| {
        let file = backend.dir().create(&segment_file_name(id));
        let end = ALIGN + record.len() as u64 + FOOTER_LEN as u64;
        let segment = Segment::new(id, 7, 1, end, Some(Arc::clone(&file)));
        patch_header(&mut record[..RECORD_HEADER_LEN], &segment.binding, ALIGN, 1, 0);
        block_on(write_all(&*file, vec![Bytes::copy_from_slice(&record)], ALIGN)).unwrap();
        segment.set_sealed(Some(Facts { max_seq: 1, tombstone_bytes: 0 }));
        Arc::new(segment)
    };
    (1..=MOVES + 1).map(copy).collect()
}

/// A lookup of a record that moves from segment to segment. Each segment becomes obsolete when the record has left it.
/// These are the last steps of several compactions, without the work between them.
pub(super) fn a_lookup_of_a_record_that_moves() {
    let backend = ExplorerBackend::new(&FileImage::new());
    let keydir = Arc::new(Keydir::new((1, 2), 1));
    let segment_set = Arc::new(SegmentSet::new(backend.dir(), PathBuf::from("/db"), 8));
    let limits = Limits { segment_bytes: 1 << 20, staging_bytes: 1 << 20, reserve_bytes: 0 };
    let log = Log::new(Arc::new(backend.clone()), Arc::clone(&keydir), Arc::clone(&segment_set), limits, 2);
    let to = |id| Location::new(id, ALIGN, 5).unwrap();
    let copies = copies_of_a_record(&backend, b"k");
    segment_set.insert(Arc::clone(&copies[0]));
    keydir.publish(b"k", 1, to(1));
    let (moved, segments) = (Arc::clone(&keydir), Arc::clone(&segment_set));
    let mover = thread::spawn(move || {
        for pair in copies.windows(2) {
            segments.insert(Arc::clone(&pair[1]));
            let mut was = None;
            moved.repoint(&[Move { key: b"k", seq: 1, to: to(pair[1].id) }], &[pair[0].id], |_, old| was = Some(old));
            assert!(was.is_some());
            segments.remove(Arc::clone(&pair[0]));
        }
    });
    let counters = Default::default();
    let sources =
        Sources { io: &backend, keydir: &keydir, segments: &segment_set, log: &log, cache: None, counters: &counters };
    match look_up(sources, b"k").expect("the record is never absent") {
        Lookup::Ready(value) => assert_eq!(value.as_deref(), Some(&b"value"[..])),
        // The lookup has found the file and would wait for the read.
        Lookup::Disk(_) => {}
    }
    mover.join().unwrap();
}

/// Unlinks the files of two segments when the segment set allows it, as the maintenance task does.
fn unlink_two(segment_set: &SegmentSet) -> Vec<u32> {
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let next = block_on(poll_fn(|cx| {
            segment_set.obsolete.register(cx.waker());
            segment_set.obsolete.next().map_or(Poll::Pending, Poll::Ready)
        }));
        segment_set.dir.unlink(&segment_file_name(next.id)).unwrap();
        segment_set.obsolete.gone(next.id);
        gone.push(next.id);
    }
    gone
}

/// Two segments become obsolete while readers use them and share one descriptor.
pub(super) fn pins_against_unlinking() {
    let backend = ExplorerBackend::new(&FileImage::new());
    let segment_set = three_segments(&backend);
    let readers: Vec<_> = [[1, 2], [2, 1], [2, 3]]
        .map(|ids| {
            let (segment_set, backend) = (Arc::clone(&segment_set), backend.clone());
            thread::spawn(move || {
                for id in ids {
                    let Some(segment) = segment_set.get(id) else { continue };
                    segment_set.file(&segment).expect("the file of a pinned segment");
                    thread::yield_now();
                    assert!(
                        backend.dir().names().contains(&segment_file_name(id)),
                        "the file of segment {id} was unlinked during a read"
                    );
                }
            })
        })
        .into_iter()
        .collect();
    let remover = Arc::clone(&segment_set);
    let maintenance = thread::spawn(move || {
        for id in [2, 1] {
            let segment = remover.get(id).unwrap();
            remover.remove(segment);
            assert!(remover.get(id).is_none(), "a lookup finds the obsolete segment {id}");
        }
        unlink_two(&remover)
    });
    for reader in readers {
        reader.join().unwrap();
    }
    let gone = maintenance.join().unwrap();
    assert_eq!(segment_set.obsolete.bytes(), 0, "an obsolete segment was not unlinked");
    assert_eq!(gone, [1, 2], "a tombstone was unlinked before the records that it hides");
}
