//! Fixed bugs, each with a description of its symptom.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use ringcask::testing::sim::{Fault, FaultKind, OpClass, Rng, SimBackend, SimConfig};
use ringcask::{Durability, Store};

const SEEDS: u64 = 60;

fn backend(seed: u64) -> SimBackend {
    SimBackend::new(SimConfig { seed, ..SimConfig::default() })
}

async fn open(backend: &SimBackend) -> Store {
    Store::builder("/db").backend(Arc::new(backend.clone())).open().await.unwrap()
}

/// Lets the store's own tasks run for `count` turns.
async fn turns(count: u32) {
    let mut left = count;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A `Synced` delete of an absent key returned at once. The delete that had removed the key was only buffered, so a
/// power cut restored the key.
#[test]
fn a_synced_delete_of_an_absent_key_makes_an_earlier_buffered_delete_durable() {
    let mut images = 0;
    for seed in 0..SEEDS {
        let backend = backend(seed);
        let store = backend.run_until(async {
            let store = open(&backend).await;
            store.put("k", "v").await.unwrap();
            assert!(store.delete("k").durability(Durability::Buffered).await.unwrap());
            assert!(!store.delete("k").await.unwrap());
            store
        });
        for image in backend.crash_images(16, &mut Rng::new(seed)) {
            let after = SimBackend::from_image(image, SimConfig { seed, ..SimConfig::default() });
            let found = after.run_until(async { open(&after).await.get("k").await.unwrap() });
            assert_eq!(found, None, "seed {seed}");
            images += 1;
        }
        drop(store);
    }
    println!("{images} power cuts after a delete that found nothing");
    assert!(images >= SEEDS);
}

/// A write failed while a `Buffered` put was staged behind it. Reading the acknowledged put then returned an error,
/// because the failure had removed the locations of staged records.
#[test]
fn acknowledged_buffered_writes_stay_readable_after_a_failed_write() {
    let mut poisoned = 0;
    for seed in 0..SEEDS {
        let backend = backend(seed);
        backend.run_until(async {
            let store = open(&backend).await;
            store.put("first", "1").await.unwrap();
            let nth = backend.op_count(OpClass::Write);
            backend.inject(Fault { class: OpClass::Write, nth, kind: FaultKind::EIO, sticky: false });
            let mut write = pin!(store.put("second", "2"));
            assert!(poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await.is_pending());
            turns(u32::try_from(seed % 6).unwrap()).await;
            let accepted = store.put("third", "3").durability(Durability::Buffered).await;
            let _ = write.await;
            turns(20).await;
            poisoned += u32::from(store.stats().poisoned);
            assert_eq!(store.get("first").await.unwrap().as_deref(), Some(&b"1"[..]), "seed {seed}");
            if accepted.is_ok() {
                assert_eq!(store.get("third").await.unwrap().as_deref(), Some(&b"3"[..]), "seed {seed}");
            }
        });
    }
    println!("{poisoned} of {SEEDS} stores were poisoned");
    assert!(poisoned > 0);
}

/// A failed write was rolled back and left its version unused. `sync` then returned that version, `durable_version`
/// never reached it, and `wait_durable` never resolved.
#[test]
fn wait_durable_skips_the_version_of_a_failed_write() {
    for seed in 0..SEEDS {
        let backend = backend(seed);
        backend.run_until(async {
            let store = open(&backend).await;
            store.put("first", "1").await.unwrap();
            let nth = backend.op_count(OpClass::Write);
            backend.inject(Fault { class: OpClass::Write, nth, kind: FaultKind::ENOSPC, sticky: false });
            store.put("second", "2").await.unwrap_err();
            let version = store.sync().await.unwrap();
            store.wait_durable(version).await.unwrap();
            assert!(store.durable_version() >= version, "seed {seed}");
            store.put("third", "3").await.unwrap();
            store.close().await.unwrap();
        });
    }
}
