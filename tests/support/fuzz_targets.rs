//! The fuzz targets for untrusted bytes, shared by the bounded test and the coverage-guided fuzzer.

use std::sync::Arc;

use ringcask::testing::format::{
    BatchFrame, Binding, Footer, HINT_HEADER_LEN, HintReader, Manifest, RecordHeader, SegmentHeader, Watermark,
    find_record, patch_header, read_record, whole_blocks,
};
use ringcask::testing::io::Io;
use ringcask::testing::sim::{Image, SimBackend, SimConfig};
use ringcask::{Builder, Compaction, ErrorKind, Recovery, Store};

/// The segment whose records are decoded; what is made to pass its checksums is bound to it.
pub fn binding() -> Binding {
    Binding::new(0x5a17, 3)
}

/// Where in its segment the first record lies.
pub const OFFSET: u64 = 512;

/// Puts `bytes` before every decoder. The first byte asks for a right checksum of the record's header, so that what
/// lies behind it is met too. Says whether anything was accepted.
pub fn decode(input: &[u8]) -> bool {
    let Some((&wish, bytes)) = input.split_first() else { return false };
    let mut bytes = bytes.to_vec();
    if wish.is_multiple_of(2) && bytes.len() >= 40 {
        let (seq, ordinal) = (u64::from(wish), 0);
        patch_header(&mut bytes[..40], &binding(), OFFSET, seq, ordinal);
    }
    decode_records(&bytes) | decode_hint(&bytes) | decode_files(&bytes)
}

fn decode_records(bytes: &[u8]) -> bool {
    let binding = binding();
    let header = RecordHeader::decode(bytes, &binding, OFFSET);
    if let Ok(header) = &header {
        // What was read is what would be written.
        assert_eq!(header.encode(&binding, OFFSET)[..], bytes[..40], "a header is not what was encoded: {header:?}");
        assert!(header.record_len() % 8 == 0 && header.record_len() > header.payload_len(), "{header:?}");
    }
    let record = read_record(bytes, &binding, OFFSET);
    if let Ok(record) = &record {
        assert!(header.is_ok(), "a record without a header");
        assert!(record.key.len() + record.value.len() <= bytes.len(), "a record longer than its bytes");
    }
    if let Some(found) = find_record(bytes, &binding, OFFSET, OFFSET) {
        assert!(found >= OFFSET && found < OFFSET + bytes.len() as u64, "found at {found} of {}", bytes.len());
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
                assert!(!entry.key.is_empty() && entry.key.len() <= bytes.len(), "a key of {}", entry.key.len());
                whole += 1;
            }
            Err(_) => failed = true,
        }
    }
    assert!(whole <= header.entry_count, "{whole} entries of {}", header.entry_count);
    assert!(failed || whole == header.entry_count, "{whole} entries of {}, and no error", header.entry_count);
    // In parts the same is read as at once.
    let blocks = &bytes[HINT_HEADER_LEN..];
    if let Ok(len) = whole_blocks(blocks) {
        assert!(len <= blocks.len(), "{len} bytes of whole blocks in {}", blocks.len());
        let part = HintReader::of_blocks(&header, HINT_HEADER_LEN as u64, &blocks[..len]);
        let in_parts = part.take_while(Result::is_ok).count() as u64;
        assert!(in_parts >= whole, "{in_parts} entries in parts, {whole} at once");
    }
    true
}

fn decode_files(bytes: &[u8]) -> bool {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        let again = SegmentHeader::decode(&header.encode());
        assert!(again.is_ok_and(|again| again == header), "a segment header is not what was encoded");
        return true;
    }
    Manifest::decode(bytes).is_ok()
}

/// A directory as one input: of each file its name and its bytes.
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

fn builder(world: &SimBackend, recovery: Recovery) -> Builder {
    let io: Arc<dyn Io> = Arc::new(world.clone());
    let builder = Store::builder("/db").backend(io).segment_bytes(4096).reserve_bytes(0).staging_bytes(256 << 10);
    builder.recovery(recovery).compaction(Compaction::new().automatic(false))
}

/// Opens a directory of any contents, strictly and then with salvage, and uses what opens: reads, a put, a compaction,
/// a close and another open. Says whether it was opened.
pub fn open_directory(image: &Image, seed: u64) -> bool {
    open_and_know(image, seed, &|_, _| true)
}

/// The same where it is known which values a key may be found with.
pub fn open_and_know(image: &Image, seed: u64, is_known: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let mut is_open = false;
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        let world = SimBackend::from_image(image.clone(), SimConfig { seed, journal: false, ..SimConfig::default() });
        is_open |= world.run_until(use_directory(&world, recovery, is_known));
        let panics = world.panics();
        world.shutdown();
        assert!(panics.is_empty(), "{panics:?}");
    }
    is_open
}

/// Errors that speak of what was found in the directory, or asked of it.
const HONEST: [ErrorKind; 4] =
    [ErrorKind::Corrupt, ErrorKind::IncompatibleFormat, ErrorKind::Unsupported, ErrorKind::Io];

fn is_honest<T>(what: &str, result: ringcask::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(HONEST.contains(&error.kind()), "{what}: {error:?}");
            None
        }
    }
}

async fn use_directory(world: &SimBackend, recovery: Recovery, is_known: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let Some(store) = is_honest("open", builder(world, recovery).open().await) else { return false };
    look(&store, is_known).await;
    // A key that is not there, and one that may be: whatever was believed, a new write is newer.
    for key in ["another", WRITTEN] {
        if is_honest("put", store.put(key, VALUE).await).is_some() {
            is_honest("compact", store.compact().await);
            let value = is_honest("get", store.get(key).await).flatten();
            assert_eq!(value.as_deref(), Some(VALUE), "what was just put under {key}");
        }
    }
    look(&store, is_known).await;
    is_honest("close", store.close().await);
    drop(store);
    if let Some(store) = is_honest("open again", builder(world, recovery).open().await) {
        look(&store, is_known).await;
        is_honest("close", store.close().await);
    }
    true
}

/// What is put into a directory that opens, under keys one of which it may have.
const VALUE: &[u8] = b"value";
const WRITTEN: &str = "key-07";

async fn look(store: &Store, is_known: &dyn Fn(&[u8], &[u8]) -> bool) {
    for number in 0..14 {
        let key = format!("key-{number:02}");
        if let Some(value) = is_honest("get", store.get(&key).await).flatten() {
            assert!(store.contains_key(&key), "a value of a key that is not there");
            let is_new = key == WRITTEN && value == VALUE;
            assert!(is_new || is_known(key.as_bytes(), &value), "{key} never had this value of {} bytes", value.len());
        }
    }
}
