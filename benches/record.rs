//! Encoding and decoding of one record in memory.
//!
//! - `record/encode`: a record with a key of 16 bytes and a value of 256 bytes, checksums included.
//! - `record/decode`: the same record, read and checked.
//!
//! A put does this, looks up its key, and stages the record: it takes the lock, copies the bytes and publishes them.
//!
//! `cargo bench --features __testing --bench record`. The functions are private, so this benchmark needs the feature.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringcask::testing::format::{self, Binding, RecordHeader, RecordKind};

const VALUE: [u8; 256] = [0x5A; 256];

fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench-key-------";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Replaces `buffer` with the first record of a segment, a put of `key`.
fn encode(binding: &Binding, key: &[u8], buffer: &mut Vec<u8>) {
    let header = RecordHeader {
        payload_crc: format::payload_crc(key, &VALUE),
        kind: RecordKind::Put,
        compression: format::COMPRESSION_NONE,
        key_len: 16,
        value_len: 256,
        seq: 1,
        expires_at_ms: 0,
        namespace: 0,
        ordinal: 1,
    };
    buffer.clear();
    buffer.extend_from_slice(&header.encode(binding, 512));
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(&VALUE);
}

fn record(criterion: &mut Criterion) {
    let (binding, mut buffer, mut number) = (Binding::new(7, 1), Vec::with_capacity(1024), 0);
    // `decode` needs a record even if `encode` is not run.
    encode(&binding, &key(0), &mut buffer);
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            number += 1;
            encode(&binding, &key(number), &mut buffer);
            black_box(buffer.len())
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| format::read_record(black_box(&buffer), &binding, 512).unwrap().value.len());
    });
    group.finish();
}

criterion_group!(benches, record);
criterion_main!(benches);
