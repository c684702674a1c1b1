//! The cost of one operation on one thread, without waiting for a disk.
//!
//! - `put_buffered`: a `Buffered` put of a value of 256 bytes under one of 100,000 keys of 16 bytes. The log is written to
//!   the temporary directory in the background, so backpressure is included.
//! - `get_cached`: a get of the same keys from the page cache.
//! - `batch_build`: 100 puts encoded into a `Batch` that is not written.
//! - `keydir/hit`, `keydir/miss`: `contains_key`, which is a look-up and nothing else.
//!
//! `cargo bench --bench micro`. For many tasks and a real disk, see the example `high_load_writer`.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollster::block_on;
use ringcask::{Batch, Durability, Store};
use tempfile::TempDir;

const KEYS: u64 = 100_000;
const VALUE: [u8; 256] = [0x5A; 256];

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench-key-------";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The next pseudo-random number below [`KEYS`], from a linear congruential generator with a full period.
fn next(number: &mut u64) -> u64 {
    *number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*number >> 33) % KEYS
}

fn open(dir: &TempDir) -> Store {
    block_on(Store::builder(dir.path().join("store")).durability(Durability::Buffered).open()).unwrap()
}

fn put_buffered(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut number = 1;
    let mut group = criterion.benchmark_group("put_buffered");
    group.throughput(Throughput::Elements(1));
    group.bench_function("256", |bencher| {
        bencher.iter(|| block_on(store.put(key(next(&mut number)), VALUE)).unwrap());
    });
    group.finish();
    block_on(store.close()).unwrap();
}

fn get_cached(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for number in 0..KEYS {
        block_on(store.put(key(number), VALUE)).unwrap();
    }
    block_on(store.sync()).unwrap();
    let mut number = 1;
    let mut group = criterion.benchmark_group("get_cached");
    group.throughput(Throughput::Elements(1));
    group.bench_function("256", |bencher| {
        bencher.iter(|| block_on(store.get(key(next(&mut number)))).unwrap().unwrap());
    });
    group.finish();
    block_on(store.close()).unwrap();
}

fn batch_build(criterion: &mut Criterion) {
    let mut number = 1;
    let mut group = criterion.benchmark_group("batch_build");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100x256", |bencher| {
        bencher.iter(|| {
            let mut batch = Batch::with_capacity(100);
            for _ in 0..100 {
                batch.put(key(next(&mut number)), VALUE);
            }
            black_box(batch.byte_len())
        });
    });
    group.finish();
}

fn keydir(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for number in 0..KEYS {
        block_on(store.put(key(number), VALUE)).unwrap();
    }
    let mut number = 1;
    let mut group = criterion.benchmark_group("keydir");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hit", |bencher| bencher.iter(|| assert!(store.contains_key(key(next(&mut number))))));
    group
        .bench_function("miss", |bencher| bencher.iter(|| assert!(!store.contains_key(key(KEYS + next(&mut number))))));
    group.finish();
    block_on(store.close()).unwrap();
}

criterion_group!(benches, put_buffered, get_cached, batch_build, keydir);
criterion_main!(benches);
