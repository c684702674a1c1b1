//! Directories that no crash leaves, for seeded bugs that no other check finds.

use std::sync::Arc;

use ringcask::testing::format::{HintEntry, HintReader, HintWriter};
use ringcask::testing::sim::{Image, SimBackend, SimConfig};
use ringcask::{Builder, Durability, ErrorKind, Store};

fn error_text(error: ringcask::Error) -> String {
    error.to_string()
}

fn builder(backend: &SimBackend) -> Builder {
    Store::builder("/db").backend(Arc::new(backend.clone()))
}

fn hints(image: &Image) -> Vec<String> {
    image.names().filter(|name| name.ends_with(".hint")).map(String::from).collect()
}

/// Opens `image`, puts `values` and closes the store. Returns the new image.
fn with_values(image: Image, seed: u64, values: &[(&str, &str)]) -> Result<Image, String> {
    let backend = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
    backend.run_until(async {
        let store = builder(&backend).open().await.map_err(error_text)?;
        for (key, value) in values {
            store.put(*key, *value).await.map_err(error_text)?;
        }
        store.close().await.map_err(error_text)
    })?;
    Ok(backend.image())
}

/// Checks that each key has its value. If `may_be_damage`, a get may also return an error.
fn check(image: Image, seed: u64, values: &[(&str, &str)], may_be_damage: bool) -> Result<(), String> {
    let backend = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
    backend.run_until(async {
        let store = builder(&backend).open().await.map_err(error_text)?;
        for (key, value) in values {
            match store.get(*key).await {
                Ok(Some(found)) if found == value.as_bytes() => {}
                Err(error) if may_be_damage && error.kind() == ErrorKind::Corrupt => {}
                other => return Err(format!("{key} returns {other:?}")),
            }
        }
        store.close().await.map_err(error_text)
    })
}

/// Opens a store of two segments with exchanged hint files.
pub fn swap_hints(seed: u64) -> Result<(), String> {
    let image = with_values(Image::new(), seed, &[("one", "one")])?;
    let mut image = with_values(image, seed, &[("two", "two")])?;
    let hints = hints(&image);
    let [first, second] = hints.as_slice() else { return Err(format!("hints: {hints:?}")) };
    let swapped = image.rename(first, "/db/aside") && image.rename(second, first) && image.rename("/db/aside", second);
    assert!(swapped, "{hints:?} in {:?}", image.names().collect::<Vec<_>>());
    check(image, seed, &[("one", "one"), ("two", "two")], false)
}

/// Lets two copies of a directory diverge, and moves a hint file from one to the other. It belongs to the same store
/// and to a segment with the same number.
pub fn move_an_old_hint(seed: u64) -> Result<(), String> {
    let start = with_values(Image::new(), seed, &[("one", "one")])?;
    let old = with_values(start.clone(), seed + 1, &[("two", "two, but old")])?;
    let mut new = with_values(start, seed + 2, &[("three", "three"), ("two", "two")])?;
    let hint = hints(&new).pop().ok_or("no hint")?;
    let bytes = old.bytes(&hint).ok_or("no old hint")?.to_vec();
    new.edit(&hint, |hint| *hint = bytes);
    check(new, seed, &[("one", "one"), ("two", "two"), ("three", "three")], false)
}

/// Exchanges the locations of two keys in a hint file.
pub fn exchange_locations_in_a_hint(seed: u64) -> Result<(), String> {
    let values = [("one", "1"), ("two", "2")];
    let mut image = with_values(Image::new(), seed, &values)?;
    let hint = hints(&image).pop().ok_or("no hint")?;
    let bytes = image.bytes(&hint).ok_or("no hint")?.to_vec();
    let (header, entries) = HintReader::new(&bytes).map_err(|error| error.to_string())?;
    let entries: Vec<HintEntry<'_>> = entries.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut writer = HintWriter::new(&header);
    for (entry, other) in entries.iter().zip(entries.iter().rev()) {
        writer.push(HintEntry { key: other.key, ..*entry });
    }
    let lies = writer.finish_with(header.data_len, header.file_crc);
    assert_ne!(lies, bytes);
    image.edit(&hint, |hint| *hint = lies);
    check(image, seed, &values, true)
}

/// Opens an open directory again. The open must fail before it changes anything.
pub fn open_twice(seed: u64) -> Result<(), String> {
    let backend = SimBackend::new(SimConfig { seed, ..SimConfig::default() });
    backend.run_until(async {
        let store = builder(&backend).open().await.map_err(error_text)?;
        store.put("one", "one").await.map_err(error_text)?;
        let options = Durability::Written;
        store.put("two", "two").durability(options).await.map_err(error_text)?;
        let before = backend.step();
        match builder(&backend).open().await {
            Err(error) if error.kind() == ErrorKind::Locked => {}
            other => return Err(format!("the second open returned: {other:?}")),
        }
        if backend.step() != before {
            return Err("the second open changed the directory".to_owned());
        }
        store.put("three", "three").await.map_err(error_text)?;
        store.close().await.map_err(error_text)
    })?;
    check(backend.image(), seed, &[("one", "one"), ("two", "two"), ("three", "three")], false)
}
