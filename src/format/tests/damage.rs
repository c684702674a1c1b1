//! Decoders refuse damaged structures: flipped bits, missing bytes, overwritten runs, correct bytes in the wrong place.

use super::*;

#[test]
fn every_flipped_bit_is_refused() {
    let mut flips = 0;
    for sample in samples() {
        let mut bytes = sample.bytes.clone();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = (sample.read)(&bytes);
            assert!(read.is_err(), "{}: bit {bit} flipped, yet decoded as {read:?}", sample.name);
            bytes[bit / 8] ^= 1 << (bit % 8);
            flips += 1;
        }
        assert_eq!(bytes, sample.bytes);
    }
    println!("{flips} flips");
    assert!(flips >= 8_900);
}

#[test]
fn every_truncation_is_refused_as_incomplete() {
    let mut cuts = 0;
    for sample in samples() {
        for len in 0..sample.bytes.len() {
            let read = (sample.read)(&sample.bytes[..len]);
            // A hint file that ends between two blocks lacks entries. One that ends inside a block lacks bytes.
            let expected = match read {
                Err(DecodeError::Incomplete { needed }) => sample.name == "hint file" || needed > len as u64,
                Err(DecodeError::Count) => sample.name == "hint file",
                _ => false,
            };
            assert!(expected, "{} cut to {len} bytes: {read:?}", sample.name);
            cuts += 1;
        }
    }
    println!("{cuts} truncations");
    assert!(cuts >= 1_000);
}

#[test]
fn appended_bytes_are_refused_or_ignored() {
    for sample in samples() {
        for tail in [&[0][..], &[0xff], &[0; 600], &[0xff; 600]] {
            let mut bytes = sample.bytes.clone();
            bytes.extend_from_slice(tail);
            let read = (sample.read)(&bytes);
            // Records follow a segment header.
            assert_eq!(read.is_ok(), sample.name == "segment header", "{}: {read:?}", sample.name);
        }
    }
}

#[test]
fn overwritten_runs_are_refused() {
    let (seed, mut numbers) = (11, Numbers::new(11));
    let (mut overwritten, mut same) = (0, 0);
    for sample in samples() {
        for _ in 0..10_000 {
            let mut bytes = sample.bytes.clone();
            let start = numbers.below(bytes.len());
            let len = (1 + numbers.below(64)).min(bytes.len() - start);
            let fill = match numbers.below(3) {
                0 => vec![0; len],
                1 => vec![0xff; len],
                _ => numbers.bytes(len),
            };
            bytes[start..start + len].copy_from_slice(&fill);
            if bytes == sample.bytes {
                same += 1;
                continue;
            }
            assert!((sample.read)(&bytes).is_err(), "{}: {len} bytes at {start} overwritten", sample.name);
            overwritten += 1;
        }
    }
    println!("{overwritten} runs overwritten, {same} unchanged, seed {seed}");
    assert!(overwritten >= 50_000);
}

#[test]
fn record_at_another_offset_is_refused() {
    let header = put_header(b"key", b"value", 1, 0);
    let bytes = record(&header, &binding(), 4096, b"key", b"value");
    assert!(read_record(&bytes, &binding(), 4096).is_ok());
    for offset in (0..65_536).step_by(8).filter(|&offset| offset != 4096) {
        assert_eq!(read_record(&bytes, &binding(), offset), Err(DecodeError::HeaderChecksum), "moved to {offset}");
    }
    for bit in 0..64 {
        let other_salt = Binding::new(SALT ^ (1 << bit), SEGMENT);
        let other_segment = Binding::new(SALT, SEGMENT ^ (1 << bit));
        for binding in [other_salt, other_segment] {
            assert_eq!(read_record(&bytes, &binding, 4096), Err(DecodeError::HeaderChecksum));
        }
    }
}

#[test]
fn payload_of_another_record_is_refused() {
    // The payload's sector was not written, so the payload of an older record is still there.
    let old = record(&put_header(b"key", b"older", 1, 0), &binding(), 512, b"key", b"older");
    let mut new = record(&put_header(b"key", b"newer", 2, 1), &binding(), 512, b"key", b"newer");
    new[RECORD_HEADER_LEN..].copy_from_slice(&old[RECORD_HEADER_LEN..]);
    assert_eq!(read_record(&new, &binding(), 512), Err(DecodeError::PayloadChecksum));
}

#[test]
fn relocated_record_keeps_its_payload_checksum() {
    let header = put_header(b"key", b"value", 77, 3);
    let target = Binding::new(!SALT, 99);
    let mut copy = record(&header, &binding(), 4096, b"key", b"value");
    patch_header(&mut copy[..RECORD_HEADER_LEN], &target, 512, 77, 0);
    let read = read_record(&copy, &target, 512).unwrap();
    assert_eq!(read.header, RecordHeader { ordinal: 0, ..header });
    // A byte that was damaged before the copy is still detected after it, although the header checksum is new.
    copy[RECORD_HEADER_LEN + 4] ^= 1;
    assert_eq!(read_record(&copy, &target, 512), Err(DecodeError::PayloadChecksum));
}

#[test]
fn other_versions_are_not_damage() {
    let headers =
        [("segment header", SEGMENT_HEADER_LEN), ("manifest", MANIFEST_HEADER_LEN), ("hint file", HINT_HEADER_LEN)];
    for (name, len) in headers {
        let sample = samples().into_iter().find(|sample| sample.name == name).unwrap();
        let read_with = |at: usize, byte: u8| {
            let mut bytes = sample.bytes.clone();
            bytes[at] = byte;
            let damaged = (sample.read)(&bytes);
            assert_eq!(damaged, Err(DecodeError::HeaderChecksum), "{name}: wrong header checksum");
            reseal(&mut bytes[..len]);
            (sample.read)(&bytes)
        };
        let unsupported = |found_major, incompat, compat| {
            Err(DecodeError::Unsupported { found_major, found_minor: 0, incompat, compat })
        };
        assert_eq!(read_with(8, 2), unsupported(2, 0, 0), "{name}: newer major version");
        assert_eq!(read_with(8, 0), unsupported(0, 0, 0), "{name}: major version 0");
        assert_eq!(read_with(19, 0x80), unsupported(1, 0x8000_0000, 0), "{name}: unknown incompat feature");
        assert_eq!(read_with(23, 0x80), unsupported(1, 0, 0x8000_0000), "{name}: unknown compat feature");
        assert_eq!(read_with(12, 2), Err(DecodeError::ChecksumTag(2)), "{name}: unknown checksum");
        assert_eq!(read_with(13, 1), Err(DecodeError::Reserved), "{name}: reserved byte");
        if name != "manifest" {
            assert_eq!(read_with(len - 5, 1), Err(DecodeError::Reserved), "{name}: reserved byte at the end");
        }
        let newer_minor = read_with(10, 1);
        if name == "manifest" {
            // The list checksum covers the header checksum, so a valid header of another manifest is refused.
            assert_eq!(newer_minor, Err(DecodeError::PayloadChecksum));
        } else {
            assert!(newer_minor.is_ok(), "{name}: readable");
        }
    }
    assert!(DecodeError::ChecksumTag(2).is_unsupported() && !DecodeError::Magic.is_unsupported());
}

#[test]
fn newer_minor_version_may_use_reserved_bytes() {
    let mut bytes = SegmentHeader::new(STORE, SEGMENT, SALT, 1).encode();
    bytes[200] = 9;
    reseal(&mut bytes);
    assert_eq!(SegmentHeader::decode(&bytes), Err(DecodeError::Reserved));
    bytes[10] = 1;
    reseal(&mut bytes);
    let header = SegmentHeader::decode(&bytes).unwrap();
    assert_eq!((header.format_minor, header.compat), (1, 0));
}

#[test]
fn sequence_numbers_above_the_maximum_are_refused() {
    let set = |bytes: &mut [u8], at: usize, number: u64| bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    let binding = binding();
    for (seq, expected) in
        [(MAX_SEQ, Ok(())), (MAX_SEQ + 1, Err(DecodeError::Sequence)), (u64::MAX, Err(DecodeError::Sequence))]
    {
        let mut header = put_header(b"key", b"value", 0, 0).draft();
        patch_header(&mut header, &binding, 512, seq, 0);
        assert_eq!(RecordHeader::decode(&header, &binding, 512).map(drop), expected, "record, {seq}");
        let mark = Watermark { durable_offset: 512, durable_seq: seq }.encode(&binding, 512, 1, 0);
        assert_eq!(Watermark::decode_value(&mark[40..]).map(drop), expected, "watermark, {seq}");
        let footer = Footer { data_len: 512, min_seq: 1, max_seq: seq, record_count: 0, file_crc: 0 };
        let footer = footer.encode(&binding, 512, 1, 0);
        assert_eq!(Footer::decode_value(&footer[40..]).map(drop), expected, "footer, {seq}");
        let segment = SegmentHeader::new(STORE, SEGMENT, SALT, seq).encode();
        assert_eq!(SegmentHeader::decode(&segment).map(drop), expected, "segment header, {seq}");
        let mut hint = HintWriter::new(&hint_header());
        hint.push(hint_entry(b"key", 1, 568));
        let mut hint = hint.finish();
        let block = &mut hint[HINT_HEADER_LEN..];
        set(block, HINT_BLOCK_HEADER_LEN, seq);
        let crc = binding.header_crc(HINT_HEADER_LEN as u64, &block[4..]);
        block[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read_hints(&hint).map(drop), expected, "hint, {seq}");
        let mut manifest = samples().into_iter().find(|sample| sample.name == "manifest").unwrap().bytes;
        set(&mut manifest, 56, seq);
        reseal(&mut manifest[..MANIFEST_HEADER_LEN]);
        let end = manifest.len() - 4;
        let crc = crc32fast::hash(&manifest[MANIFEST_HEADER_LEN - 4..end]);
        manifest[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&manifest).map(drop), expected, "manifest, {seq}");
    }
}
