//! Hostile input: no decoder panics, loops forever, or allocates more than the input justifies.

use super::*;

/// Passes `bytes` to every decoder and counts those that accept them.
fn read_all(bytes: &[u8]) -> usize {
    let binding = binding();
    let mut accepted = 0;
    for sample in samples() {
        accepted += usize::from((sample.read)(bytes).is_ok());
    }
    accepted += usize::from(BatchFrame::decode_value(bytes).is_ok());
    accepted += usize::from(Watermark::decode_value(bytes).is_ok());
    accepted += usize::from(Footer::decode_value(bytes).is_ok());
    accepted += usize::from(Footer::decode_at_end(bytes, &binding, bytes.len() as u64).is_ok());
    accepted += usize::from(Footer::decode_at_end(bytes, &binding, u64::MAX).is_ok());
    accepted += usize::from(find_record(bytes, &binding, 0, 0).is_some());
    accepted += usize::from(RecordHeader::decode(bytes, &binding, u64::MAX).is_ok());
    accepted
}

#[test]
fn zeros_and_ones_are_refused() {
    for len in 0..700 {
        // Most bytes are a valid watermark value; readers use it only inside a verified record.
        let watermarks = usize::from(len == WATERMARK_LEN - RECORD_HEADER_LEN);
        assert_eq!(read_all(&vec![0; len]), watermarks, "{len} zeros");
        assert_eq!(read_all(&vec![0xff; len]), 0, "{len} times 0xff");
    }
    for sample in samples().iter().filter(|sample| sample.name != "footer") {
        assert_eq!((sample.read)(&[0; 4096]), Err(DecodeError::Zeroes), "{}", sample.name);
    }
}

#[test]
fn random_bytes_are_refused() {
    let (seed, mut numbers) = (41, Numbers::new(41));
    let mut rounds = 0;
    while rounds < 100_000 {
        let len = numbers.below(160);
        let bytes = numbers.bytes(len);
        let accepted = read_all(&bytes);
        let frames = [WATERMARK_LEN, BATCH_FRAME_LEN, FOOTER_LEN].map(|whole| whole - RECORD_HEADER_LEN);
        assert!(accepted == 0 || frames.contains(&len), "{len} random bytes accepted: {bytes:?}");
        rounds += 1;
    }
    println!("{rounds} random inputs, seed {seed}");
    assert!(rounds >= 100_000);
}

/// Decoders accept a header with random fields and a valid checksum only if it follows the rules.
#[test]
fn accepted_random_headers_follow_the_rules() {
    let (seed, mut numbers) = (42, Numbers::new(42));
    let mut accepted = 0;
    for _ in 0..100_000 {
        let mut bytes = numbers.bytes(256);
        bytes[8] = numbers.byte() % 7;
        bytes[9] = u8::from(numbers.byte() < 16);
        if numbers.byte() < 128 {
            bytes[12..16].copy_from_slice(&(numbers.u32() % 300).to_le_bytes());
            bytes[10..12].copy_from_slice(&[numbers.byte() % 64, 0]);
        }
        bytes[23] &= 0x7f;
        if numbers.byte() < 128 {
            bytes[24..36].fill(0);
        }
        rebind(&mut bytes[..RECORD_HEADER_LEN], &binding(), 512);
        let read = read_record(&bytes, &binding(), 512);
        assert!(read.is_err(), "a random payload has an invalid checksum: {read:?}");
        let Ok(header) = RecordHeader::decode(&bytes, &binding(), 512) else { continue };
        accepted += 1;
        assert!(header.value_len <= MAX_VALUE_LEN && header.record_len() <= u64::from(u32::MAX));
        assert_eq!(header.encode(&binding(), 512), bytes[..RECORD_HEADER_LEN], "each header has exactly one encoding");
        if let Err(DecodeError::Incomplete { needed }) = read {
            assert_eq!(needed, header.record_len());
        }
    }
    println!("{accepted} headers accepted, seed {seed}");
    assert!(accepted >= 10_000);
}

#[test]
fn counts_are_checked_before_allocating() {
    let mut bytes = sample_manifest().encode();
    for count in [u64::MAX, u64::MAX / 16, 1 << 60, 3, 1, 0] {
        bytes[64..72].copy_from_slice(&count.to_le_bytes());
        reseal(&mut bytes[..MANIFEST_HEADER_LEN]);
        let read = Manifest::decode(&bytes);
        let expected = match count.checked_mul(16).and_then(|len| len.checked_add(84)) {
            None => DecodeError::Length,
            Some(needed) if needed > bytes.len() as u64 => DecodeError::Incomplete { needed },
            Some(_) => DecodeError::Trailing,
        };
        assert_eq!(read, Err(expected), "a count of {count}");
    }
    let mut bytes = sample_hint();
    for count in [u64::MAX, 1 << 40, 3, 1, 0] {
        bytes[64..72].copy_from_slice(&count.to_le_bytes());
        reseal(&mut bytes[..HINT_HEADER_LEN]);
        assert_eq!(read_hints(&bytes), Err(DecodeError::Count), "a count of {count}");
    }
}

#[test]
fn manifest_with_unordered_ids_is_refused() {
    // The sample's active segment is 7, which the last case does not list.
    let cases: [(u64, u64, u64); 5] = [(3, 3, 8), (7, 3, 8), (3, 8, 8), (3, 9, 8), (3, 6, 8)];
    for (first, second, next) in cases {
        let mut bytes = sample_manifest().encode();
        bytes[80..88].copy_from_slice(&first.to_le_bytes());
        bytes[96..104].copy_from_slice(&second.to_le_bytes());
        bytes[48..56].copy_from_slice(&next.to_le_bytes());
        reseal(&mut bytes[..MANIFEST_HEADER_LEN]);
        assert_eq!(Manifest::decode(&bytes), Err(DecodeError::PayloadChecksum));
        reseal(&mut bytes[MANIFEST_HEADER_LEN - 4..]);
        assert_eq!(Manifest::decode(&bytes), Err(DecodeError::Order), "{first}, {second} below {next}");
    }
}

#[test]
fn inconsistent_frames_are_refused() {
    let frame = BatchFrame { count: 2, bytes: 104, durable_offset: 512 };
    let value = |frame: BatchFrame| frame.encode(&binding(), 512, 1, 0)[RECORD_HEADER_LEN..].to_vec();
    let read = |frame| BatchFrame::decode_value(&value(frame));
    assert_eq!(read(frame), Ok(frame));
    assert_eq!(read(BatchFrame { count: 0, ..frame }), Err(DecodeError::Count));
    assert_eq!(read(BatchFrame { count: u32::MAX, ..frame }), Err(DecodeError::Length));
    assert_eq!(read(BatchFrame { bytes: 103, ..frame }), Err(DecodeError::Length));
    assert_eq!(read(BatchFrame { bytes: 88, ..frame }), Err(DecodeError::Length));

    let footer = Footer { data_len: 1024, min_seq: 2, max_seq: 3, record_count: 5, file_crc: 0 };
    let read = |footer: Footer| {
        let bytes = footer.encode(&binding(), footer.data_len, 4, footer.record_count);
        Footer::decode_value(&bytes[RECORD_HEADER_LEN..])
    };
    assert_eq!(read(footer), Ok(footer));
    assert_eq!(read(Footer { min_seq: 4, ..footer }), Err(DecodeError::Order));
    assert_eq!(read(Footer { data_len: 504, ..footer }), Err(DecodeError::Place));

    // A watermark in the place of a footer, and a footer that states another offset.
    let mut tail = [0; FOOTER_LEN];
    tail[..WATERMARK_LEN].copy_from_slice(&Watermark { durable_offset: 0, durable_seq: 0 }.encode(
        &binding(),
        1024,
        1,
        0,
    ));
    assert_eq!(Footer::decode_at_end(&tail, &binding(), 1104), Err(DecodeError::Kind(4)));
    let mut moved = sample_footer();
    moved[40..48].copy_from_slice(&2048_u64.to_le_bytes());
    let crc = payload_crc(&[], &moved[RECORD_HEADER_LEN..]);
    moved[4..8].copy_from_slice(&crc.to_le_bytes());
    rebind(&mut moved[..RECORD_HEADER_LEN], &binding(), 1024);
    assert_eq!(Footer::decode_at_end(&moved, &binding(), 1104), Err(DecodeError::Place));
    let mut miscounted = sample_footer();
    patch_header(&mut miscounted[..RECORD_HEADER_LEN], &binding(), 1024, 42, 6);
    assert_eq!(Footer::decode_at_end(&miscounted, &binding(), 1104), Err(DecodeError::Count));
}
