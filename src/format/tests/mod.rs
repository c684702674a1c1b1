//! Tests of the format: documented examples, round trips, damage, hostile input.

mod damage;
mod document;
mod hints;
mod hostile;
mod resync;
mod roundtrip;

use super::*;

pub(super) const STORE: [u8; 16] = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
pub(super) const SEGMENT: u64 = 7;
pub(super) const SALT: u64 = 0x0123_4567_89ab_cdef;

/// A pseudo-random number generator with a fixed seed (splitmix64).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any valid sequence number.
    pub(super) fn seq(&mut self) -> u64 {
        self.next() & MAX_SEQ
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

pub(super) fn binding() -> Binding {
    Binding::new(SALT, SEGMENT)
}

pub(super) fn put_header(key: &[u8], value: &[u8], seq: u64, ordinal: u32) -> RecordHeader {
    RecordHeader {
        payload_crc: payload_crc(key, value),
        kind: RecordKind::Put,
        compression: COMPRESSION_NONE,
        key_len: u16::try_from(key.len()).unwrap(),
        value_len: u32::try_from(value.len()).unwrap(),
        seq,
        expires_at_ms: 0,
        namespace: 0,
        ordinal,
    }
}

pub(super) fn tombstone_header(key: &[u8], seq: u64, ordinal: u32) -> RecordHeader {
    RecordHeader { kind: RecordKind::Tombstone, ..put_header(key, &[], seq, ordinal) }
}

/// A whole record as stored on disk.
pub(super) fn record(header: &RecordHeader, binding: &Binding, offset: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = header.encode(binding, offset).to_vec();
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    out.resize(usize::try_from(header.record_len()).unwrap(), 0);
    out
}

/// One encoded structure and its strictest decoder, which returns the decoded structure as text.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) read: fn(&[u8]) -> Result<String, DecodeError>,
}

const RECORD_OFFSET: u64 = 512;
const FOOTER_OFFSET: u64 = 1024;

fn read_one(bytes: &[u8], offset: u64) -> Result<Record<'_>, DecodeError> {
    let record = read_record(bytes, &binding(), offset)?;
    if record.len == bytes.len() as u64 { Ok(record) } else { Err(DecodeError::Trailing) }
}

fn read_record_text(bytes: &[u8]) -> Result<String, DecodeError> {
    let record = read_one(bytes, RECORD_OFFSET)?;
    Ok(format!("{:?} {:?} {:?}", record.header, record.key, record.value))
}

/// Decodes every entry of a hint file.
pub(super) fn read_hints(bytes: &[u8]) -> Result<(HintHeader, Vec<HintEntry<'_>>), DecodeError> {
    let (header, reader) = HintReader::new(bytes)?;
    Ok((header, reader.collect::<Result<_, _>>()?))
}

pub(super) fn hint_header() -> HintHeader {
    let (store_id, segment_id, salt) = (STORE, SEGMENT, SALT);
    HintHeader { store_id, segment_id, salt, data_len: FOOTER_OFFSET, file_crc: 0xfeed_beef, entry_count: 0 }
}

pub(super) fn hint_entry(key: &[u8], seq: u64, offset: u64) -> HintEntry<'_> {
    let kind = RecordKind::Put;
    HintEntry { key, kind, seq, offset, value_len: 5, expires_at_ms: 0, namespace: 0, compression: COMPRESSION_NONE }
}

fn sample_manifest() -> Manifest {
    let segments = vec![ManifestSegment { id: 3, salt: 0x33 }, ManifestSegment { id: SEGMENT, salt: SALT }];
    Manifest { store_id: STORE, generation: 9, next_segment_id: 8, next_seq: 42, active_segment: 7, segments }
}

fn sample_footer() -> [u8; FOOTER_LEN] {
    let footer = Footer { data_len: FOOTER_OFFSET, min_seq: 40, max_seq: 41, record_count: 5, file_crc: 0xfeed_beef };
    footer.encode(&binding(), FOOTER_OFFSET, 42, 5)
}

fn sample_hint() -> Vec<u8> {
    let mut writer = HintWriter::new(&hint_header());
    writer.push(hint_entry(b"apple", 40, 568));
    let (kind, value_len) = (RecordKind::Tombstone, 0);
    writer.push(HintEntry { kind, value_len, ..hint_entry(b"fig", 41, 624) });
    writer.finish()
}

/// One of each structure: the documented examples.
pub(super) fn samples() -> Vec<Sample> {
    let binding = binding();
    let batch = BatchFrame { count: 2, bytes: 104, durable_offset: 512 };
    let watermark = Watermark { durable_offset: 512, durable_seq: 39 };
    let put = RecordHeader { expires_at_ms: 1_700_000_000_000, namespace: 2, ..put_header(b"apple", b"green", 40, 0) };
    vec![
        Sample {
            name: "segment header",
            bytes: SegmentHeader::new(STORE, SEGMENT, SALT, 40).encode().to_vec(),
            read: |bytes| SegmentHeader::decode(bytes).map(|header| format!("{header:?}")),
        },
        Sample {
            name: "put",
            bytes: record(&put, &binding, RECORD_OFFSET, b"apple", b"green"),
            read: read_record_text,
        },
        Sample {
            name: "tombstone",
            bytes: record(&tombstone_header(b"fig", 41, 1), &binding, RECORD_OFFSET, b"fig", &[]),
            read: read_record_text,
        },
        Sample {
            name: "batch frame",
            bytes: batch.encode(&binding, RECORD_OFFSET, 40, 0).to_vec(),
            read: |bytes| BatchFrame::decode_value(read_one(bytes, RECORD_OFFSET)?.value).map(|it| format!("{it:?}")),
        },
        Sample {
            name: "watermark",
            bytes: watermark.encode(&binding, RECORD_OFFSET, 40, 0).to_vec(),
            read: |bytes| Watermark::decode_value(read_one(bytes, RECORD_OFFSET)?.value).map(|it| format!("{it:?}")),
        },
        Sample {
            name: "footer",
            bytes: sample_footer().to_vec(),
            read: |bytes| {
                Footer::decode_at_end(bytes, &self::binding(), FOOTER_OFFSET + FOOTER_LEN as u64)
                    .map(|it| format!("{it:?}"))
            },
        },
        Sample {
            name: "manifest",
            bytes: sample_manifest().encode(),
            read: |bytes| Manifest::decode(bytes).map(|it| format!("{it:?}")),
        },
        Sample { name: "hint file", bytes: sample_hint(), read: |bytes| read_hints(bytes).map(|it| format!("{it:?}")) },
    ]
}

/// Corrects the checksum of a segment header, manifest header or hint header.
pub(super) fn reseal(header: &mut [u8]) {
    let at = header.len() - 4;
    let crc = crc32fast::hash(&header[..at]);
    header[at..].copy_from_slice(&crc.to_le_bytes());
}

/// Corrects the checksum of a record header or a whole hint block.
pub(super) fn rebind(header: &mut [u8], binding: &Binding, offset: u64) {
    let crc = binding.header_crc(offset, &header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
}
