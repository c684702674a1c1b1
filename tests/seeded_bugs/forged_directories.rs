//! Directories that no crash leaves, for seeded bugs that show nowhere else.

use std::sync::Arc;

use ringcask::testing::format::{HintEntry, HintReader, HintWriter};
use ringcask::testing::sim::{Image, SimBackend, SimConfig};
use ringcask::{Builder, Durability, ErrorKind, Store};

fn said(error: ringcask::Error) -> String {
    error.to_string()
}

fn builder(world: &SimBackend) -> Builder {
    Store::builder("/db").backend(Arc::new(world.clone()))
}

fn hints(image: &Image) -> Vec<String> {
    image.names().filter(|name| name.ends_with(".hint")).map(String::from).collect()
}

/// Opens what `image` holds, puts `values` into it and closes it.
fn grown(image: Image, seed: u64, values: &[(&str, &str)]) -> Result<Image, String> {
    let world = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
    world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        for (key, value) in values {
            store.put(*key, *value).await.map_err(said)?;
        }
        store.close().await.map_err(said)
    })?;
    Ok(world.image())
}

/// Whether each key has its value, or, if `may_be_damage`, is an error.
fn check(image: Image, seed: u64, values: &[(&str, &str)], may_be_damage: bool) -> Result<(), String> {
    let world = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
    world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        for (key, value) in values {
            match store.get(*key).await {
                Ok(Some(found)) if found == value.as_bytes() => {}
                Err(error) if may_be_damage && error.kind() == ErrorKind::Corrupt => {}
                other => return Err(format!("{key} is {other:?}")),
            }
        }
        store.close().await.map_err(said)
    })
}

/// Opens a store of two segments whose hint files are exchanged.
pub fn swap_hints(seed: u64) -> Result<(), String> {
    let image = grown(Image::new(), seed, &[("one", "one")])?;
    let mut image = grown(image, seed, &[("two", "two")])?;
    let hints = hints(&image);
    let [first, second] = hints.as_slice() else { return Err(format!("hints: {hints:?}")) };
    let swapped = image.rename(first, "/db/aside") && image.rename(second, first) && image.rename("/db/aside", second);
    assert!(swapped, "{hints:?} in {:?}", image.names().collect::<Vec<_>>());
    check(image, seed, &[("one", "one"), ("two", "two")], false)
}

/// Two copies of a directory diverge, and a hint file of one is moved to the other: of the same store, for a
/// segment with the same number.
pub fn bring_an_old_hint(seed: u64) -> Result<(), String> {
    let start = grown(Image::new(), seed, &[("one", "one")])?;
    let old = grown(start.clone(), seed + 1, &[("two", "two, but old")])?;
    let mut new = grown(start, seed + 2, &[("three", "three"), ("two", "two")])?;
    let hint = hints(&new).pop().ok_or("no hint")?;
    let bytes = old.bytes(&hint).ok_or("no old hint")?.to_vec();
    new.edit(&hint, |hint| *hint = bytes);
    check(new, seed, &[("one", "one"), ("two", "two"), ("three", "three")], false)
}

/// A hint file exchanges the places of two keys.
pub fn exchange_places_in_a_hint(seed: u64) -> Result<(), String> {
    let values = [("one", "1"), ("two", "2")];
    let mut image = grown(Image::new(), seed, &values)?;
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

/// Opens an open directory again, which must be refused before anything changes.
pub fn open_twice(seed: u64) -> Result<(), String> {
    let world = SimBackend::new(SimConfig { seed, ..SimConfig::default() });
    world.run_until(async {
        let store = builder(&world).open().await.map_err(said)?;
        store.put("one", "one").await.map_err(said)?;
        let options = Durability::Written;
        store.put("two", "two").durability(options).await.map_err(said)?;
        let before = world.step();
        match builder(&world).open().await {
            Err(error) if error.kind() == ErrorKind::Locked => {}
            other => return Err(format!("opened twice: {other:?}")),
        }
        if world.step() != before {
            return Err("a directory that another handle has open was changed".to_owned());
        }
        store.put("three", "three").await.map_err(said)?;
        store.close().await.map_err(said)
    })?;
    check(world.image(), seed, &[("one", "one"), ("two", "two"), ("three", "three")], false)
}
