//! The fuzz targets for untrusted bytes, shared by the bounded test and the coverage-guided fuzzer.

use std::sync::Arc;

use ringcask::testing::format::{
    BatchFrame, Binding, Footer, HINT_HEADER_LEN, HintReader, Manifest, RecordHeader, SegmentHeader, Watermark,
    find_record, patch_header, read_record, whole_blocks,
};
use ringcask::testing::io::Io;
use ringcask::testing::sim::{Image, SimBackend, SimConfig};
use ringcask::{Builder, Compaction, ErrorKind, Recovery, Store};

/// The segment whose records are decoded. Inputs with valid checksums are bound to it.
pub fn binding() -> Binding {
    Binding::new(0x5a17, 3)
}

/// The offset of the first record in its segment.
pub const OFFSET: u64 = 512;

/// Passes `input` to every decoder. Its first byte may request a valid header checksum, so that the input also reaches
/// the code after that check. Returns whether any decoder accepted the input.
pub fn decode(input: &[u8]) -> bool {
    let Some((&selector, bytes)) = input.split_first() else { return false };
    let mut bytes = bytes.to_vec();
    if selector.is_multiple_of(2) && bytes.len() >= 40 {
        let (seq, ordinal) = (u64::from(selector), 0);
        patch_header(&mut bytes[..40], &binding(), OFFSET, seq, ordinal);
    }
    decode_records(&bytes) | decode_hint(&bytes) | decode_files(&bytes)
}

fn decode_records(bytes: &[u8]) -> bool {
    let binding = binding();
    let header = RecordHeader::decode(bytes, &binding, OFFSET);
    if let Ok(header) = &header {
        // Encoding the decoded header must give the same bytes.
        assert_eq!(
            header.encode(&binding, OFFSET)[..],
            bytes[..40],
            "encoding the decoded header gives other bytes: {header:?}"
        );
        assert!(header.record_len() % 8 == 0 && header.record_len() > header.payload_len(), "{header:?}");
    }
    let record = read_record(bytes, &binding, OFFSET);
    if let Ok(record) = &record {
        assert!(header.is_ok(), "a record was decoded, but its header was not");
        assert!(record.key.len() + record.value.len() <= bytes.len(), "the record is longer than its input");
    }
    if let Some(found) = find_record(bytes, &binding, OFFSET, OFFSET) {
        assert!(
            found >= OFFSET && found < OFFSET + bytes.len() as u64,
            "found a record at {found} in {} bytes",
            bytes.len()
        );
    }
    let values = [
        BatchFrame::decode_value(bytes).is_ok(),
        Watermark::decode_value(bytes).is_ok(),
        Footer::decode_value(bytes).is_ok(),
        Footer::decode_at_end(bytes, &binding, bytes.len() as u64).is_ok(),
    ];
    header.is_ok() || record.is_ok() || values.contains(&true)
}

fn decode_hint(bytes: &[u8]) -> bool {
    let Ok((header, entries)) = HintReader::new(bytes) else { return false };
    let (mut whole, mut failed) = (0_u64, false);
    for entry in entries {
        match entry {
            Ok(entry) => {
                assert!(!entry.key.is_empty() && entry.key.len() <= bytes.len(), "a key of {} bytes", entry.key.len());
                whole += 1;
            }
            Err(_) => failed = true,
        }
    }
    assert!(whole <= header.entry_count, "{whole} entries, the header says {}", header.entry_count);
    assert!(
        failed || whole == header.entry_count,
        "{whole} entries without an error, the header says {}",
        header.entry_count
    );
    // Reading in parts must give the same as reading at once.
    let blocks = &bytes[HINT_HEADER_LEN..];
    if let Ok(len) = whole_blocks(blocks) {
        assert!(len <= blocks.len(), "whole blocks have {len} bytes, the input has {}", blocks.len());
        let part = HintReader::of_blocks(&header, HINT_HEADER_LEN as u64, &blocks[..len]);
        let in_parts = part.take_while(Result::is_ok).count() as u64;
        assert!(in_parts >= whole, "{in_parts} entries in parts, {whole} at once");
    }
    true
}

fn decode_files(bytes: &[u8]) -> bool {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        let again = SegmentHeader::decode(&header.encode());
        assert!(again.is_ok_and(|again| again == header), "encoding and decoding changes the segment header");
        return true;
    }
    Manifest::decode(bytes).is_ok()
}

/// Decodes a directory from an input: the name and the bytes of each file.
pub fn image_of(input: &[u8]) -> Image {
    let mut image = Image::new();
    let mut rest = input;
    while let [name_len, low, high, tail @ ..] = rest {
        let name = &tail[..usize::from(*name_len).min(tail.len())];
        let tail = &tail[name.len()..];
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let name = String::from_utf8_lossy(name).replace(['/', '\0'], "_");
        if !name.is_empty() && name != "." && name != ".." {
            image.insert("/db", &name, &tail[..len]);
        }
        rest = &tail[len..];
    }
    image
}

fn builder(backend: &SimBackend, recovery: Recovery) -> Builder {
    let io: Arc<dyn Io> = Arc::new(backend.clone());
    let builder = Store::builder("/db").backend(io).segment_bytes(4096).reserve_bytes(0).staging_bytes(256 << 10);
    builder.recovery(recovery).compaction(Compaction::new().automatic(false))
}

/// Opens a directory with any contents, first strictly and then with salvage. Uses every store that opens: reads, a
/// put, a compaction, a close and another open. Returns whether a store opened.
pub fn open_directory(image: &Image, seed: u64) -> bool {
    open_with_known_values(image, seed, &|_, _| true)
}

/// The same, for a directory whose keys can only have known values.
pub fn open_with_known_values(image: &Image, seed: u64, is_known: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let mut is_open = false;
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        let backend = SimBackend::from_image(image.clone(), SimConfig { seed, journal: false, ..SimConfig::default() });
        is_open |= backend.run_until(use_directory(&backend, recovery, is_known));
        let panics = backend.panics();
        backend.shutdown();
        assert!(panics.is_empty(), "{panics:?}");
    }
    is_open
}

/// Kinds of errors that damaged contents may cause.
const EXPECTED_ERRORS: [ErrorKind; 4] =
    [ErrorKind::Corrupt, ErrorKind::IncompatibleFormat, ErrorKind::Unsupported, ErrorKind::Io];

fn value_or_expected_error<T>(what: &str, result: ringcask::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(EXPECTED_ERRORS.contains(&error.kind()), "{what}: {error:?}");
            None
        }
    }
}

async fn use_directory(backend: &SimBackend, recovery: Recovery, is_known: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let Some(store) = value_or_expected_error("open", builder(backend, recovery).open().await) else { return false };
    read_all(&store, is_known).await;
    // One key is absent, the other may exist. Whatever the store recovered, a new write is newer.
    for key in ["another", WRITTEN] {
        if value_or_expected_error("put", store.put(key, VALUE).await).is_some() {
            value_or_expected_error("compact", store.compact().await);
            let value = value_or_expected_error("get", store.get(key).await).flatten();
            assert_eq!(value.as_deref(), Some(VALUE), "the value that was just put for {key}");
        }
    }
    read_all(&store, is_known).await;
    value_or_expected_error("close", store.close().await);
    drop(store);
    if let Some(store) = value_or_expected_error("open again", builder(backend, recovery).open().await) {
        read_all(&store, is_known).await;
        value_or_expected_error("close", store.close().await);
    }
    true
}

/// Put into every directory that opens. The keys are an absent one and one that may exist.
const VALUE: &[u8] = b"value";
const WRITTEN: &str = "key-07";

async fn read_all(store: &Store, is_known: &dyn Fn(&[u8], &[u8]) -> bool) {
    for number in 0..14 {
        let key = format!("key-{number:02}");
        if let Some(value) = value_or_expected_error("get", store.get(&key).await).flatten() {
            assert!(store.contains_key(&key), "get returns a value, but contains_key returns false");
            let is_new = key == WRITTEN && value == VALUE;
            assert!(
                is_new || is_known(key.as_bytes(), &value),
                "no record gives {key} this value of {} bytes",
                value.len()
            );
        }
    }
}
