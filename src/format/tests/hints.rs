//! Hint files with many blocks.

use super::*;

/// The keys and record offsets of a made-up segment of `count` records.
fn many(count: u64) -> (HintHeader, Vec<(Vec<u8>, u64)>) {
    let mut numbers = Numbers::new(51);
    let mut offset = 512;
    let keys = (0..count)
        .map(|_| {
            let longest = if numbers.byte() == 0 { MAX_KEY_LEN } else { 30 };
            let key_len = 1 + numbers.below(longest);
            let (key, start) = (numbers.bytes(key_len), offset);
            offset += record_len(key_len, 5);
            (key, start)
        })
        .collect();
    (HintHeader { data_len: offset, entry_count: count, ..hint_header() }, keys)
}

fn write(header: &HintHeader, keys: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let mut writer = HintWriter::new(header);
    for (seq, (key, offset)) in keys.iter().enumerate() {
        writer.push(hint_entry(key, seq as u64, *offset));
    }
    writer.finish()
}

/// The offset of each block.
fn blocks(bytes: &[u8]) -> Vec<usize> {
    let (mut at, mut starts) = (HINT_HEADER_LEN, Vec::new());
    while at < bytes.len() {
        starts.push(at);
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        at += HINT_BLOCK_HEADER_LEN + len as usize;
    }
    starts
}

#[test]
fn entries_are_read_in_the_order_of_writing() {
    let (header, keys) = many(10_000);
    let bytes = write(&header, &keys);
    let (read_header, entries) = read_hints(&bytes).unwrap();
    assert_eq!(read_header, header);
    assert_eq!(entries.len(), keys.len());
    for (seq, (entry, (key, offset))) in entries.iter().zip(&keys).enumerate() {
        assert!(*entry == hint_entry(key, seq as u64, *offset), "entry {seq}");
    }
    let blocks = blocks(&bytes);
    println!("{} entries in {} blocks, {} bytes", entries.len(), blocks.len(), bytes.len());
    assert!(blocks.len() >= 10);
}

#[test]
fn every_field_of_an_entry_round_trips() {
    let header = hint_header();
    let full = HintEntry { expires_at_ms: u64::MAX, namespace: u32::MAX, ..hint_entry(b"k", MAX_SEQ, 512) };
    let tombstone = HintEntry { kind: RecordKind::Tombstone, value_len: 0, ..hint_entry(b"t", 1, 1024 - 48) };
    let mut writer = HintWriter::new(&header);
    writer.push(full);
    writer.push(tombstone);
    let bytes = writer.finish();
    assert_eq!(read_hints(&bytes), Ok((HintHeader { entry_count: 2, ..header }, vec![full, tombstone])));
}

#[test]
fn hint_file_of_an_empty_segment_has_no_blocks() {
    let bytes = HintWriter::new(&hint_header()).finish();
    assert_eq!(bytes.len(), HINT_HEADER_LEN);
    assert_eq!(read_hints(&bytes), Ok((hint_header(), Vec::new())));
}

#[test]
fn blocks_before_a_damaged_block_are_read() {
    let (header, keys) = many(3_000);
    let bytes = write(&header, &keys);
    let blocks = blocks(&bytes);
    let mut numbers = Numbers::new(52);
    let mut damaged_count = 0;
    for (index, &start) in blocks.iter().enumerate() {
        let end = blocks.get(index + 1).copied().unwrap_or(bytes.len());
        let before: u32 =
            blocks[..index].iter().map(|&at| u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap())).sum();
        for _ in 0..20 {
            let mut damaged = bytes.clone();
            damaged[start + numbers.below(end - start)] ^= 1 << numbers.below(8);
            let (_, mut reader) = HintReader::new(&damaged).unwrap();
            let good = reader.by_ref().take_while(Result::is_ok).count();
            assert_eq!(good as u64, u64::from(before), "no entry of a damaged block is yielded");
            assert!(reader.next().is_none(), "iteration ends after an error");
            damaged_count += 1;
        }
    }
    println!("{damaged_count} damaged blocks");
    assert!(damaged_count >= 100);
}

#[test]
fn misplaced_blocks_are_refused() {
    // All entries have the same size, so blocks have the same size and can be swapped.
    let keys: Vec<_> = (0..4_000_u64).map(|index| (index.to_le_bytes().to_vec(), 512 + index * 56)).collect();
    let header = HintHeader { data_len: 512 + 4_000 * 56, ..hint_header() };
    let bytes = write(&header, &keys);
    let starts = blocks(&bytes);
    let block_len = starts[1] - starts[0];
    assert!(starts.len() >= 3 && starts[2] - starts[1] == block_len);
    let mut swapped = bytes.clone();
    swapped[starts[0]..starts[1]].copy_from_slice(&bytes[starts[1]..starts[2]]);
    swapped[starts[1]..starts[2]].copy_from_slice(&bytes[starts[0]..starts[1]]);
    assert_eq!(read_hints(&swapped), Err(DecodeError::PayloadChecksum));
    for other in [HintHeader { salt: 1, ..header }, HintHeader { segment_id: 1, ..header }] {
        let mut foreign = write(&other, &keys);
        foreign[..HINT_HEADER_LEN].copy_from_slice(&bytes[..HINT_HEADER_LEN]);
        assert_eq!(read_hints(&foreign), Err(DecodeError::PayloadChecksum), "blocks of another segment");
    }
    assert_eq!(read_hints(&bytes[..starts[2]]), Err(DecodeError::Count), "the last blocks are missing");
    let doubled = [&bytes[..], &bytes[starts[1]..starts[2]]].concat();
    assert_eq!(read_hints(&doubled), Err(DecodeError::PayloadChecksum), "a block follows the last one");
}

/// Changes these bytes of an entry, corrects the checksum of its block, and expects an error.
fn check(changes: &[(usize, &[u8])], expected: DecodeError) {
    let mut writer = HintWriter::new(&hint_header());
    writer.push(hint_entry(b"key", 1, 512));
    let mut bytes = writer.finish();
    assert!(read_hints(&bytes).is_ok());
    for (at, change) in changes {
        let at = HINT_HEADER_LEN + HINT_BLOCK_HEADER_LEN + at;
        bytes[at..at + change.len()].copy_from_slice(change);
    }
    rebind(&mut bytes[HINT_HEADER_LEN..], &binding(), HINT_HEADER_LEN as u64);
    assert_eq!(read_hints(&bytes), Err(expected), "{changes:?}");
}

#[test]
fn invalid_entries_are_refused() {
    check(&[(8, &513_u64.to_le_bytes())], DecodeError::Place);
    check(&[(8, &504_u64.to_le_bytes())], DecodeError::Place);
    check(&[(8, &976_u64.to_le_bytes()), (24, &[6])], DecodeError::Place);
    check(&[(8, &(u64::MAX - 7).to_le_bytes())], DecodeError::Place);
    check(&[(24, &[0xff; 4])], DecodeError::Length);
    check(&[(24, &MAX_VALUE_LEN.to_le_bytes())], DecodeError::Place);
    check(&[(34, &[2])], DecodeError::Length);
    check(&[(24, &[0]), (34, &[2]), (16, &[1])], DecodeError::Reserved);
    for tag in [3, 4, 5] {
        check(&[(34, &[tag])], DecodeError::Kind(tag));
    }
    check(&[(34, &[0])], DecodeError::Kind(0));
    check(&[(35, &[1])], DecodeError::Compression(1));
    check(&[(32, &[0])], DecodeError::Length);
    check(&[(32, &[2])], DecodeError::Trailing);
    check(&[(32, &[4])], DecodeError::Incomplete { needed: 40 });
}

#[test]
fn random_blocks_with_valid_checksums_do_not_panic() {
    let (seed, mut numbers) = (53, Numbers::new(53));
    let mut accepted = 0;
    for _ in 0..50_000 {
        let mut bytes = sample_hint();
        let start = HINT_HEADER_LEN + HINT_BLOCK_HEADER_LEN;
        for _ in 0..1 + numbers.below(4) {
            let at = start + numbers.below(bytes.len() - start);
            bytes[at] = numbers.byte();
        }
        if numbers.byte() < 32 {
            bytes[HINT_HEADER_LEN + 4 + numbers.below(8)] = numbers.byte();
        }
        rebind(&mut bytes[HINT_HEADER_LEN..], &binding(), HINT_HEADER_LEN as u64);
        let Ok((header, entries)) = read_hints(&bytes) else { continue };
        accepted += 1;
        for entry in entries {
            assert!(entry.offset % ALIGN == 0 && entry.offset < header.data_len && !entry.key.is_empty());
        }
    }
    println!("{accepted} of 50000 accepted, seed {seed}");
    assert!(accepted >= 1_000);
}
