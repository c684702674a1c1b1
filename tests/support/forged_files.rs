//! Segments and hint files whose contents the input determines, with valid checksums.
//!
//! Random bytes never pass a checksum. So the input is not the file but a description of its contents: records, frames
//! and headers of the active segment, or false entries of a hint file. For any input, nothing may panic or loop, and no
//! key may have a value that none of its records has.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use ringcask::testing::format::{
    ALIGN, BatchFrame, Binding, HintEntry, HintHeader, HintReader, HintWriter, MAX_KEY_LEN, MAX_SEQ, RECORD_HEADER_LEN,
    RecordHeader, RecordKind, SEGMENT_HEADER_LEN, SegmentHeader, Watermark, patch_header, payload_crc, read_record,
    record_len,
};
use ringcask::testing::sim::Image;

use super::fuzz_targets::open_with_known_values;
use super::small_stores::{Fixture, SHAPES};

/// The values that each key may have.
type Known = HashMap<Vec<u8>, HashSet<Vec<u8>>>;

/// A store that was killed, with sealed segments, their hint files, and an active segment.
struct Base {
    image: Image,
    active: String,
    header: SegmentHeader,
    hint: String,
    known: Known,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let fixture = Fixture::new(SHAPES[0], 5);
        let (image, active) = (fixture.image, fixture.active.unwrap());
        let header = SegmentHeader::decode(image.bytes(&active).unwrap()).unwrap();
        let hint = image.names().find(|name| name.ends_with(".hint")).unwrap().to_owned();
        let mut known = Known::new();
        for (key, value) in fixture.writes.into_iter().flatten() {
            known.entry(key).or_default().extend(value);
        }
        Base { image, active, header, hint, known }
    })
}

/// The unread part of an input. Bytes beyond its end read as zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut taken = [0; LEN];
        let len = LEN.min(self.0.len());
        taken[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        taken
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }
}

fn key(number: u8) -> Vec<u8> {
    format!("key-{:02}", number % 14).into_bytes()
}

/// A segment that is being forged.
struct Forge {
    binding: Binding,
    bytes: Vec<u8>,
    seq: u64,
    ordinal: u32,
}

impl Forge {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(usize::try_from(ALIGN).unwrap()), 0);
        self.ordinal = self.ordinal.wrapping_add(1);
    }

    fn record(&mut self, kind: RecordKind, key: &[u8], value: &[u8]) {
        let header = RecordHeader {
            payload_crc: payload_crc(key, value),
            kind,
            compression: 0,
            key_len: u16::try_from(key.len()).unwrap(),
            value_len: u32::try_from(value.len()).unwrap(),
            seq: 0,
            expires_at_ms: 0,
            namespace: 0,
            ordinal: 0,
        };
        let mut header = header.draft();
        // Accepts numbers that no encoder would write.
        patch_header(&mut header, &self.binding, self.offset(), self.seq, self.ordinal);
        self.push(&[&header[..], key, value].concat());
        self.seq = self.seq.wrapping_add(1);
    }

    fn frame<const LEN: usize>(&mut self, mut frame: [u8; LEN]) {
        patch_header(&mut frame[..RECORD_HEADER_LEN], &self.binding, self.offset(), self.seq, self.ordinal);
        self.push(&frame);
    }

    /// Adds the piece that the next bytes of `input` describe. The first byte is the kind of piece, and whether its
    /// sequence number and ordinal are replaced.
    fn piece(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        if kind & 0x40 != 0 {
            self.ordinal = u32::from(input.byte());
        }
        if kind & 0x80 != 0 {
            self.seq = u64::from_le_bytes(input.array());
        }
        match kind % 8 {
            0..3 => {
                let [number, len, fill] = input.array();
                self.record(RecordKind::Put, &key(number), &vec![fill; usize::from(len)]);
            }
            3 => {
                let number = input.byte();
                self.record(RecordKind::Tombstone, &key(number), b"");
            }
            4 => {
                let [count, low, high, durable] = input.array();
                let bytes = u64::from(u16::from_le_bytes([low, high])) * ALIGN;
                let durable_offset = SEGMENT_HEADER_LEN as u64 + u64::from(durable) * ALIGN;
                let frame = BatchFrame { count: u32::from(count % 5), bytes, durable_offset };
                self.frame(frame.encode(&self.binding, self.offset(), 0, 0));
            }
            5 => {
                let durable_offset = SEGMENT_HEADER_LEN as u64 + u64::from(u16::from_le_bytes(input.array())) * ALIGN;
                let mark = Watermark { durable_offset, durable_seq: u64::from(input.byte()) };
                self.frame(mark.encode(&self.binding, self.offset(), 0, 0));
            }
            6 => {
                let mut header = input.array::<RECORD_HEADER_LEN>();
                patch_header(&mut header, &self.binding, self.offset(), self.seq, self.ordinal);
                self.push(&header);
            }
            _ => {
                let len = usize::from(input.byte()).min(input.0.len());
                let (bytes, rest) = input.0.split_at(len);
                input.0 = rest;
                self.push(bytes);
            }
        }
    }
}

/// Maximum length of a forged segment.
const MAX_SEGMENT_BYTES: usize = 32 << 10;

/// Opens a store whose active segment has the contents that `input` describes. Returns whether it opened.
pub fn segment(input: &[u8]) -> bool {
    let base = base();
    let header = &base.image.bytes(&base.active).unwrap()[..SEGMENT_HEADER_LEN];
    let mut forge = Forge {
        binding: Binding::new(base.header.salt, base.header.segment_id),
        bytes: header.to_vec(),
        seq: base.header.first_seq,
        ordinal: 0,
    };
    let mut input = Input(input);
    while !input.0.is_empty() && forge.bytes.len() < MAX_SEGMENT_BYTES {
        forge.piece(&mut input);
    }
    let mut known = base.known.clone();
    for at in (SEGMENT_HEADER_LEN..forge.bytes.len()).step_by(usize::try_from(ALIGN).unwrap()) {
        if let Ok(record) = read_record(&forge.bytes[at..], &forge.binding, at as u64) {
            known.entry(record.key.to_vec()).or_default().insert(record.value.to_vec());
        }
    }
    let mut image = base.image.clone();
    image.insert("/db", &base.active, forge.bytes);
    open_with_known_values(&image, 1, &|key, value| known.get(key).is_some_and(|values| values.contains(value)))
}

/// An entry of a hint file, which can be changed.
#[derive(Clone)]
struct Entry {
    key: Vec<u8>,
    kind: RecordKind,
    seq: u64,
    offset: u64,
    value_len: u32,
    expires_at_ms: u64,
    namespace: u32,
}

impl Entry {
    fn of(entry: &HintEntry<'_>) -> Self {
        let HintEntry { key, kind, seq, offset, value_len, expires_at_ms, namespace, .. } = *entry;
        Self { key: key.to_vec(), kind, seq, offset, value_len, expires_at_ms, namespace }
    }

    fn change(&mut self, what: u8, number: u64) {
        match what % 6 {
            0 => self.seq = number,
            1 => self.offset = number / ALIGN * ALIGN,
            2 => self.value_len = u32::try_from(number % (1 << 32)).unwrap(),
            3 => {
                self.kind = if number.is_multiple_of(2) { RecordKind::Put } else { RecordKind::Tombstone };
            }
            4 => self.key = key(number.to_le_bytes()[0]),
            _ => self.expires_at_ms = number,
        }
    }

    /// Whether a hint file for `data_len` bytes may contain this entry. Other entries make the store reject the whole
    /// block, which the target `decoders` covers.
    fn is_allowed(&self, data_len: u64) -> bool {
        let is_bare = self.value_len == 0 && self.expires_at_ms == 0;
        let end = self.offset.checked_add(record_len(self.key.len(), self.value_len as usize));
        (1..=MAX_KEY_LEN).contains(&self.key.len())
            && (self.kind == RecordKind::Put || is_bare)
            && self.seq <= MAX_SEQ
            && self.offset >= SEGMENT_HEADER_LEN as u64
            && end.is_some_and(|end| end <= data_len)
    }
}

/// The hint file with its entries changed as `input` says. Each change has eight bytes: the entry, the kind of change,
/// and a number.
fn changed_hint(header: &HintHeader, mut entries: Vec<Entry>, input: &[u8]) -> Vec<u8> {
    let mut input = Input(input);
    while !input.0.is_empty() && !entries.is_empty() && entries.len() < 200 {
        let [which, what] = input.array();
        let [a, b, c, d, e, f] = input.array();
        // The number is also used in reverse byte order, so that large values are as likely as small ones.
        let number = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let number = if what & 0x80 == 0 { number } else { number.swap_bytes() };
        let at = usize::from(which) % entries.len();
        match what % 8 {
            6 => drop(entries.remove(at)),
            7 => entries.push(entries[at].clone()),
            _ => entries[at].change(what % 8, number),
        }
    }
    let mut hint = HintWriter::new(header);
    for entry in entries.iter().filter(|entry| entry.is_allowed(header.data_len)) {
        let Entry { key, kind, seq, offset, value_len, expires_at_ms, namespace } = entry;
        let (kind, seq, offset, value_len) = (*kind, *seq, *offset, *value_len);
        let (expires_at_ms, namespace) = (*expires_at_ms, *namespace);
        hint.push(HintEntry { key, kind, seq, offset, value_len, expires_at_ms, namespace, compression: 0 });
    }
    hint.finish()
}

/// Opens a store with a false hint file, changed as `input` says. Returns whether it opened.
pub fn hint(input: &[u8]) -> bool {
    let base = base();
    let (header, entries) = HintReader::new(base.image.bytes(&base.hint).unwrap()).unwrap();
    let entries = entries.map(|entry| Entry::of(&entry.unwrap())).collect();
    let mut image = base.image.clone();
    image.insert("/db", &base.hint, changed_hint(&header, entries, input));
    open_with_known_values(&image, 1, &|key, value| base.known.get(key).is_some_and(|values| values.contains(value)))
}
