//! Structures round-trip, and headers that break the rules are refused even with a valid checksum.

use super::*;

#[test]
fn records_round_trip() {
    let (seed, mut numbers) = (21, Numbers::new(21));
    let (mut rounds, mut padded) = (0, 0);
    while rounds < 20_000 {
        let binding = Binding::new(numbers.next(), numbers.next());
        let offset = numbers.next() & !7;
        let key_len = 1 + numbers.below(40);
        let key = numbers.bytes(key_len);
        let value_len = numbers.below(300);
        let value = numbers.bytes(value_len);
        let mut header = put_header(&key, &value, numbers.seq(), numbers.u32());
        header.namespace = numbers.u32();
        header.expires_at_ms = numbers.next();
        let bytes = record(&header, &binding, offset, &key, &value);
        assert_eq!(bytes.len() as u64, record_len(key.len(), value.len()));
        let read = read_record(&bytes, &binding, offset).unwrap();
        assert_eq!((read.header, read.key, read.value), (header, &key[..], &value[..]));
        assert_eq!((read.len, read.len % ALIGN), (bytes.len() as u64, 0));
        padded += usize::from(read.len > RECORD_HEADER_LEN as u64 + header.payload_len());

        let tombstone = RecordHeader { namespace: numbers.u32(), ..tombstone_header(&key, numbers.seq(), 1) };
        let bytes = record(&tombstone, &binding, offset, &key, &[]);
        let read = read_record(&bytes, &binding, offset).unwrap();
        assert_eq!((read.header, read.key, read.value), (tombstone, &key[..], &[][..]));
        rounds += 1;
    }
    println!("{rounds} puts and tombstones, {padded} with padding, seed {seed}");
    assert!(padded >= 10_000);
}

#[test]
fn longest_key_and_empty_value_round_trip() {
    let key = Numbers::new(5).bytes(MAX_KEY_LEN);
    let bytes = record(&put_header(&key, &[], 1, 0), &binding(), 512, &key, &[]);
    let read = read_record(&bytes, &binding(), 512).unwrap();
    assert!(read.key == key && read.value.is_empty());
}

#[test]
fn frames_and_headers_round_trip() {
    let (seed, mut numbers) = (22, Numbers::new(22));
    for _ in 0..20_000 {
        let binding = Binding::new(numbers.next(), numbers.next());
        let (offset, seq, ordinal) = ((numbers.next() >> 8 & !7) + 512, numbers.seq(), numbers.u32());
        let count = 1 + numbers.u32() % 1_000_000;
        let bytes = u64::from(count) * 48 + (numbers.next() >> 8 & !7);
        let batch = BatchFrame { count, bytes, durable_offset: numbers.next() };
        let encoded = batch.encode(&binding, offset, seq, ordinal);
        let read = read_record(&encoded, &binding, offset).unwrap();
        assert_eq!(BatchFrame::decode_value(read.value), Ok(batch));
        assert_eq!((read.header.kind, read.header.seq, read.header.ordinal), (RecordKind::Batch, seq, ordinal));

        let watermark = Watermark { durable_offset: numbers.next(), durable_seq: numbers.seq() };
        let encoded = watermark.encode(&binding, offset, seq, ordinal);
        let read = read_record(&encoded, &binding, offset).unwrap();
        assert_eq!((Watermark::decode_value(read.value), read.header.kind), (Ok(watermark), RecordKind::Watermark));

        let (low, high) = (numbers.seq(), numbers.seq());
        let (min_seq, max_seq) = (low.min(high), low.max(high));
        let file_crc = numbers.u32();
        let footer = Footer { data_len: offset, min_seq, max_seq, record_count: ordinal, file_crc };
        let encoded = footer.encode(&binding, offset, seq, ordinal);
        let (read, header) = Footer::decode_at_end(&encoded, &binding, offset + FOOTER_LEN as u64).unwrap();
        assert_eq!((read, header.seq, header.kind), (footer, seq, RecordKind::Footer));

        let store_id = std::array::from_fn(|_| numbers.byte());
        let header = SegmentHeader::new(store_id, numbers.next(), numbers.next(), numbers.seq());
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
    println!("20000 of each, seed {seed}");
}

#[test]
fn manifests_round_trip() {
    let (seed, mut numbers) = (23, Numbers::new(23));
    let mut segments_seen = 0;
    for round in 0..500 {
        let mut id = 0;
        let segments: Vec<_> = (0..round % 100)
            .map(|_| {
                id += 1 + numbers.next() % 1_000;
                ManifestSegment { id, salt: numbers.next() }
            })
            .collect();
        segments_seen += segments.len();
        let (generation, next_segment_id, next_seq) = (numbers.next(), id + 1, numbers.seq());
        let active_segment = match segments.len() {
            0 => 0,
            len => u32::try_from(segments[usize::try_from(numbers.next() % len as u64).unwrap()].id).unwrap_or(0),
        };
        let manifest = Manifest { store_id: STORE, generation, next_segment_id, next_seq, active_segment, segments };
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
    println!("500 manifests, {segments_seen} segments, seed {seed}");
    assert!(segments_seen >= 20_000);
}

#[test]
fn patched_draft_equals_encoded_header() {
    let mut numbers = Numbers::new(24);
    for _ in 0..1_000 {
        let header = put_header(&numbers.bytes(16), &numbers.bytes(100), numbers.seq(), numbers.u32());
        let offset = numbers.next() & !7;
        let mut draft = header.draft();
        assert_eq!(RecordHeader::decode(&draft, &binding(), offset), Err(DecodeError::HeaderChecksum));
        // A record may be patched again for a new place. Only the last place counts.
        patch_header(&mut draft, &binding(), offset ^ 8, 1, 2);
        patch_header(&mut draft, &binding(), offset, header.seq, header.ordinal);
        assert_eq!(draft, header.encode(&binding(), offset));
    }
}

/// Changes these bytes of a header, corrects the checksum, and expects an error.
fn check(header: &RecordHeader, changes: &[(usize, &[u8])], expected: DecodeError) {
    let mut bytes = header.encode(&binding(), 512);
    for (at, change) in changes {
        bytes[*at..at + change.len()].copy_from_slice(change);
    }
    rebind(&mut bytes, &binding(), 512);
    assert_eq!(RecordHeader::decode(&bytes, &binding(), 512), Err(expected), "{header:?} with {changes:?}");
}

#[test]
fn invalid_headers_are_refused() {
    let put = put_header(b"key", b"value", 1, 0);
    let tombstone = tombstone_header(b"key", 1, 0);
    let watermark = Watermark { durable_offset: 512, durable_seq: 0 }.encode(&binding(), 512, 1, 0);
    let watermark = RecordHeader::decode(&watermark, &binding(), 512).unwrap();
    for tag in (0..=u8::MAX).filter(|tag| !(1..=5).contains(tag)) {
        check(&put, &[(8, &[tag])], DecodeError::Kind(tag));
    }
    for compression in 1..=u8::MAX {
        check(&put, &[(9, &[compression])], DecodeError::Compression(compression));
    }
    check(&put, &[(10, &[0, 0])], DecodeError::Length);
    check(&put, &[(12, &(MAX_VALUE_LEN + 1).to_le_bytes())], DecodeError::Length);
    check(&put, &[(12, &[0xff; 4])], DecodeError::Length);
    check(&tombstone, &[(10, &[0, 0])], DecodeError::Length);
    check(&tombstone, &[(12, &[1])], DecodeError::Length);
    check(&tombstone, &[(24, &[1])], DecodeError::Reserved);
    check(&watermark, &[(10, &[1])], DecodeError::Length);
    check(&watermark, &[(12, &[17])], DecodeError::Length);
    check(&watermark, &[(8, &[3])], DecodeError::Length);
    check(&watermark, &[(24, &[1])], DecodeError::Reserved);
    check(&watermark, &[(32, &[1])], DecodeError::Reserved);
}

/// A header accepts the longest value, and the length of its record fits in 32 bits.
#[test]
fn longest_key_and_value_fit_in_a_record() {
    let header = RecordHeader { value_len: MAX_VALUE_LEN, key_len: u16::MAX, ..put_header(b"k", b"", 1, 0) };
    assert_eq!(RecordHeader::decode(&header.encode(&binding(), 512), &binding(), 512), Ok(header));
    assert_eq!(header.record_len(), u64::from(u32::MAX - 7));
    assert_eq!(record_len(MAX_KEY_LEN, MAX_VALUE_LEN as usize), header.record_len());
    assert_eq!(record_len(usize::MAX, usize::MAX), u64::MAX);
    let needed = header.record_len();
    let bytes = header.encode(&binding(), 512);
    let read = read_record(&bytes, &binding(), 512);
    assert_eq!(read, Err(DecodeError::Incomplete { needed }), "the error states the length, and nothing is allocated");
}
