//! Prewritten space behind the log: when it is written, and that recovery does not mistake it for records or damage.

use std::sync::Arc;

use ringcask::testing::sim::{Image, Rng as Draws, SimBackend, SimConfig};
use ringcask::{Builder, Durability, Recovery, Stats, Store};

const FILLER: u8 = 0xA5;

fn builder(backend: &SimBackend) -> Builder {
    Store::builder("/db").backend(Arc::new(backend.clone())).segment_bytes(1 << 20)
}

fn config() -> SimConfig {
    SimConfig { seed: 11, ..SimConfig::default() }
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

/// Puts `values` and cuts the power. Returns the crash image and the store's stats.
fn cut_off(
    backend: SimBackend,
    options: impl Fn(Builder) -> Builder,
    level: Durability,
    values: &[Vec<u8>],
) -> (Image, Stats) {
    let left = backend.run_until(async {
        let store = options(builder(&backend)).open().await.unwrap();
        for (number, value) in values.iter().enumerate() {
            store.put(key(number), value).durability(level).await.unwrap();
        }
        store.sync().await.unwrap();
        let image = backend.crash_images(1, &mut Draws::new(5)).swap_remove(0);
        (image, store.stats())
    });
    backend.shutdown();
    left
}

fn segment_of(image: &Image) -> (String, Vec<u8>) {
    let name = image.names().find(|name| name.ends_with(".seg")).unwrap().to_owned();
    let bytes = image.bytes(&name).unwrap().to_vec();
    (name, bytes)
}

/// Opens and closes `image`. Returns the number of intact keys, the number of bytes cut, whether the cut bytes were
/// copied, and the image after the close.
fn reopen(image: Image, values: &[Vec<u8>], recovery: Recovery) -> (usize, u64, bool, Image) {
    let backend = SimBackend::from_image(image, config());
    let found = backend.run_until(async {
        let store = builder(&backend).recovery(recovery).open().await.unwrap();
        let mut whole = 0;
        for (number, value) in values.iter().enumerate() {
            let found = store.get(key(number)).await.unwrap();
            assert!(found.is_none() || found.as_deref() == Some(&value[..]), "key {number}");
            whole += usize::from(found.is_some());
        }
        let report = store.recovery_report().clone();
        assert!(report.damage.is_empty(), "{report:?}");
        store.close().await.unwrap();
        (whole, report.truncated_bytes, report.cut_copy.is_some())
    });
    backend.shutdown();
    assert_eq!(backend.panics(), Vec::<String>::new());
    (found.0, found.1, found.2, backend.image())
}

/// Some values end with the byte of prewritten space; one consists of it.
fn values() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = (0..20).map(|number| vec![number; 100]).collect();
    values.push(vec![FILLER; 1000]);
    values.push([vec![1; 93], vec![FILLER; 700]].concat());
    values
}

#[test]
fn prewritten_space_after_a_power_cut_is_not_reported_as_loss() {
    for last in 20..=22 {
        let values = &values()[..last];
        let (image, stats) = cut_off(SimBackend::new(config()), |builder| builder, Durability::Synced, values);
        let (_, bytes) = segment_of(&image);
        assert!(stats.bytes_prewritten > 0 && bytes.len() % 512 == 0, "{stats:?}");
        let prewritten = bytes.iter().rev().take_while(|byte| **byte == FILLER).count();
        assert!(prewritten > 50_000, "{prewritten} of {}", bytes.len());
        for recovery in [Recovery::Strict, Recovery::Salvage] {
            let (whole, cut, has_copy, closed) = reopen(image.clone(), values, recovery);
            assert_eq!((whole, cut, has_copy), (last, 0, false));
            let (_, closed) = segment_of(&closed);
            assert!(
                closed.len() < bytes.len() - 50_000 && !closed.ends_with(&[FILLER]),
                "the prewritten space was not cut off"
            );
        }
    }
}

#[test]
fn loss_before_prewritten_space_is_reported() {
    let values = &values()[..20];
    let (image, _) = cut_off(SimBackend::new(config()), |builder| builder, Durability::Synced, values);
    let (name, bytes) = segment_of(&image);
    let end = bytes.iter().rposition(|byte| *byte != FILLER).unwrap() + 1;
    for (what, lost) in [("zeros", 0), ("ones", 0xFF)] {
        let mut image = image.clone();
        assert!(image.edit(&name, |bytes| bytes[end - 120..end].fill(lost)));
        let (whole, cut, has_copy, _) = reopen(image.clone(), values, Recovery::Salvage);
        assert_eq!(whole, 19, "{what}");
        assert!((120..300).contains(&cut) && has_copy, "{what}: {cut} bytes");
    }
}

#[test]
fn space_is_prewritten_only_for_small_synced_groups_and_only_where_it_helps() {
    let filled = |config: SimConfig, fills: bool, level, values: &[Vec<u8>]| {
        let (image, stats) = cut_off(SimBackend::new(config), |builder| builder.prewrite(fills), level, values);
        let (whole, cut, ..) = reopen(image, values, Recovery::Strict);
        assert_eq!((whole, cut), (values.len(), 0));
        stats.bytes_prewritten
    };
    let small = values();
    assert!(filled(config(), true, Durability::Synced, &small) > 0);
    assert_eq!(filled(config(), false, Durability::Synced, &small), 0, "switched off");
    assert_eq!(filled(SimConfig { in_place: false, ..config() }, true, Durability::Synced, &small), 0, "not in place");
    let large = vec![vec![7; 100_000]; 3];
    assert_eq!(filled(config(), true, Durability::Synced, &large), 0, "large groups");
    let once = filled(config(), true, Durability::Written, &small);
    assert!(once < 128 << 10, "{once} bytes prewritten after one awaited sync");
}

#[test]
fn a_segment_full_of_prewritten_space_is_sealed_at_its_last_record() {
    let backend = SimBackend::new(config());
    backend.run_until(async {
        let store = builder(&backend).segment_bytes(8 << 10).open().await.unwrap();
        for number in 0..200 {
            store.put(key(number), [3; 200]).await.unwrap();
        }
        let stats = store.stats();
        assert!(stats.segments.len() > 5 && stats.bytes_prewritten > 5000, "{stats:?}");
        assert!(stats.write_amplification() > 1.1, "prewritten space does not count: {stats:?}");
        store.close().await.unwrap();
    });
    let image = backend.image();
    for name in image.names().filter(|name| name.ends_with(".seg")) {
        assert!(!image.bytes(name).unwrap().ends_with(&[FILLER]), "{name}");
    }
    backend.shutdown();
}
