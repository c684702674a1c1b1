//! Millions of untrusted inputs: no panic, no endless loop, no allocation sized by a false length.
//!
//! A bounded run of the targets that `fuzz/` has for a coverage-guided fuzzer. Inputs are derived from valid ones and
//! from `corpus/`, which holds inputs that failed before and inputs that reached new code. All of them are replayed
//! first. Half of the headers get valid checksums, because random bytes never pass one.
//!
//! The target for operations with faults and crashes is in `support/crash/state_machine.rs`, and its stage in
//! `tests/crash`.
#![allow(
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a failed check is a failed test; the allocator is counted"
)]

#[path = "../support"]
#[allow(dead_code, unreachable_pub, reason = "each test uses a part of the shared modules")]
mod support {
    pub mod byte_mutator;
    pub mod corpus;
    pub mod forged_files;
    pub mod fuzz_targets;
    pub mod small_stores;
    pub mod stages;
}

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use ringcask::testing::format::{
    BatchFrame, HintEntry, HintHeader, HintWriter, RecordHeader, RecordKind, SegmentHeader, Watermark, payload_crc,
};
use ringcask::testing::sim::Rng;

use crate::support::byte_mutator::mutate;
use crate::support::corpus::corpus;
use crate::support::fuzz_targets::{OFFSET, binding, decode, image_of, open_directory};
use crate::support::small_stores::{Fixture, SHAPES};
use crate::support::{forged_files, stages};

/// Records the size of the largest allocation.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Inputs have some kilobytes. A read window or a part of a file has little more than a megabyte.
const LARGEST_ALLOWED: usize = 4 << 20;

// SAFETY: every call goes to the system allocator with the same arguments. The counter owns no memory.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Runs `one` with `count` numbers from `first` on, on all processors. Returns how often it returned true.
fn over_numbers(first: u64, count: u64, one: impl Fn(u64) -> bool + Sync) -> u64 {
    const TOGETHER: u64 = 256;
    let (next, yes, failure) = (AtomicU64::new(first), AtomicU64::new(0), Mutex::new(None::<String>));
    let work = || {
        loop {
            let begin = next.fetch_add(TOGETHER, Ordering::Relaxed);
            if begin >= first + count || failure.lock().unwrap().is_some() {
                return;
            }
            for number in begin..(begin + TOGETHER).min(first + count) {
                match catch_unwind(AssertUnwindSafe(|| one(number))) {
                    Ok(is_accepted) => drop(yes.fetch_add(u64::from(is_accepted), Ordering::Relaxed)),
                    Err(_) => drop(failure.lock().unwrap().get_or_insert(format!("RINGCASK_REPLAY={number}"))),
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some(failure) = failure.into_inner().unwrap() {
        panic!("{failure}: see the panic above");
    }
    yes.into_inner()
}

/// Valid inputs of the decoders, after a first byte that leaves them unchanged.
fn valid_inputs() -> Vec<Vec<u8>> {
    let binding = binding();
    let header = RecordHeader {
        payload_crc: payload_crc(b"key", b"value"),
        kind: RecordKind::Put,
        compression: 0,
        key_len: 3,
        value_len: 5,
        seq: 9,
        expires_at_ms: 0,
        namespace: 0,
        ordinal: 0,
    };
    let mut record = header.encode(&binding, OFFSET).to_vec();
    record.extend_from_slice(b"keyvalue");
    let frame = BatchFrame { count: 2, bytes: 96, durable_offset: 512 }.encode(&binding, OFFSET, 4, 1);
    let watermark = Watermark { durable_offset: 512, durable_seq: 3 }.encode(&binding, OFFSET, 0, 0);
    let segment = SegmentHeader::new([7; 16], 3, 0x5a17, 1).encode();
    let head =
        HintHeader { store_id: [7; 16], segment_id: 3, salt: 0x5a17, data_len: 9000, file_crc: 1, entry_count: 0 };
    let mut hint = HintWriter::new(&head);
    for number in 0..20_u64 {
        let (kind, value_len) = if number % 3 == 0 { (RecordKind::Tombstone, 0) } else { (RecordKind::Put, 30) };
        let (seq, offset, key) = (number + 1, OFFSET + number * 80, format!("key-{number}"));
        let key = key.as_bytes();
        hint.push(HintEntry { key, kind, seq, offset, value_len, expires_at_ms: 0, namespace: 0, compression: 0 });
    }
    let manifest = Fixture::new(SHAPES[0], 1).image.bytes("MANIFEST").unwrap().to_vec();
    let all = [record, frame.to_vec(), watermark.to_vec(), segment.to_vec(), hint.finish(), manifest];
    all.into_iter().map(|bytes| [vec![1], bytes].concat()).collect()
}

#[test]
fn no_input_makes_a_decoder_panic_loop_or_trust_a_length() {
    let stage = stages::begin("fuzz, decoders");
    let inputs = [valid_inputs(), corpus("decoders")].concat();
    let accepted = inputs.iter().filter(|input| decode(input)).count();
    assert!(accepted >= 6, "{accepted} of the valid inputs were accepted");
    let one = |number: u64| {
        let mut rng = Rng::new(number);
        let mut input = inputs[rng.below(inputs.len())].clone();
        mutate(&mut input, &inputs[rng.below(inputs.len())], &mut rng);
        decode(&input)
    };
    if let Some(number) = stages::number("RINGCASK_REPLAY") {
        println!("{}", one(number));
        return;
    }
    let count = stage.floor();
    let accepted = over_numbers(stages::first_seed() << 24, count, one);
    assert!(accepted * 1000 >= count, "{accepted} of {count} inputs passed a checksum");
    stage.end(count, &format!("{accepted} accepted by a decoder, {} saved and valid inputs", inputs.len()));
    check_allocations();
}

#[test]
fn no_directory_makes_an_open_panic_loop_or_lie() {
    let stage = stages::begin("fuzz, directories");
    for input in corpus("directory") {
        open_directory(&image_of(&input), 1);
    }
    let fixtures: Vec<Fixture> = SHAPES.iter().map(|shape| Fixture::new(*shape, 5)).collect();
    let one = |number: u64| {
        let mut rng = Rng::new(number);
        let fixture = &fixtures[rng.below(fixtures.len())];
        let mut image = if rng.percent(80) { fixture.image.clone() } else { fixture.older.clone() };
        let names: Vec<String> = image.names().map(String::from).collect();
        for _ in 0..1 + rng.below(3) {
            let name = &names[rng.below(names.len())];
            let other = image.bytes(&names[rng.below(names.len())]).unwrap_or_default().to_vec();
            match rng.below(10) {
                0 => drop(image.remove(name)),
                1 => drop(image.duplicate(name, &format!("{:020}.seg", rng.below(12)))),
                _ => drop(image.edit(name, |bytes| mutate(bytes, &other, &mut rng))),
            }
        }
        open_directory(&image, number)
    };
    if let Some(number) = stages::number("RINGCASK_REPLAY") {
        println!("{}", one(number));
        return;
    }
    let count = stage.floor();
    let opened = over_numbers(stages::first_seed() << 24, count, one);
    stage.end(count, &format!("{opened} opened, strictly or with salvage"));
    check_allocations();
}

/// Number of pieces in a random input for a forged file.
const PIECES: usize = 30;

/// Lets `target` forge files from the corpus and from random bytes until the floor of the stage is reached. At least
/// this percentage must open, strictly or with salvage.
fn forge(stage: &str, kept: &[Vec<u8>], target: fn(&[u8]) -> bool, percent: u64) {
    let stage = stages::begin(stage);
    for input in kept {
        target(input);
    }
    let one = |number: u64| {
        let mut rng = Rng::new(number);
        let mut input = kept[rng.below(kept.len())].clone();
        if rng.percent(50) {
            input.clear();
            input.resize_with(8 * (1 + rng.below(PIECES)), || rng.next_u64().to_le_bytes()[0]);
        }
        mutate(&mut input, &kept[rng.below(kept.len())], &mut rng);
        target(&input)
    };
    if let Some(number) = stages::number("RINGCASK_REPLAY") {
        println!("{}", one(number));
        return;
    }
    let count = stage.floor();
    let opened = over_numbers(stages::first_seed() << 24, count, one);
    assert!(opened * 100 >= count * percent, "only {opened} of {count} opened");
    stage.end(count, &format!("{opened} opened, {} saved inputs", kept.len()));
    check_allocations();
}

#[test]
fn no_forged_segment_makes_an_open_panic_loop_or_lie() {
    forge("fuzz, segments", &corpus("segment"), forged_files::segment, 50);
}

#[test]
fn no_false_hint_file_makes_an_open_panic_loop_or_lie() {
    forge("fuzz, hints", &corpus("hint"), forged_files::hint, 50);
}

fn check_allocations() {
    let largest = LARGEST.load(Ordering::Relaxed);
    println!("largest allocation: {largest} bytes");
    assert!(largest <= LARGEST_ALLOWED, "an allocation of {largest} bytes, for inputs of some kilobytes");
}
