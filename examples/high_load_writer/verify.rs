//! The check after the reopening: every byte of every key.

use std::collections::HashSet;
use std::sync::Arc;

use ringcask::Store;
use tokio::task::{JoinSet, yield_now};

use crate::data;
use crate::or_hang;

/// The result of the check.
#[derive(Default)]
pub(crate) struct Verified {
    /// Acknowledged keys with a correct value.
    pub(crate) keys: u64,
    /// Keys with a wrong value, and keys that no task put.
    pub(crate) mismatches: u64,
    /// The first few mismatches, for display.
    pub(crate) samples: Vec<String>,
    present: u64,
}

struct Expected {
    store: Store,
    /// For each key, the last acknowledged generation, or 0.
    acknowledged: Vec<u32>,
    /// Keys that may have one generation more.
    undecided: HashSet<usize>,
    value_bytes: usize,
}

const TASKS: usize = 32;
const SAMPLES: usize = 5;

/// Gets every key, whether it was put or not, and compares the value.
pub(crate) async fn verify(
    store: &Store,
    acknowledged: Vec<u32>,
    undecided: HashSet<usize>,
    value_bytes: usize,
) -> Verified {
    let expected = Arc::new(Expected { store: store.clone(), acknowledged, undecided, value_bytes });
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        tasks.spawn(verify_some(Arc::clone(&expected), task));
    }
    let mut verified = Verified::default();
    for part in or_hang("reading all keys back", tasks.join_all()).await {
        verified.keys += part.keys;
        verified.mismatches += part.mismatches;
        verified.present += part.present;
        verified.samples.extend(part.samples);
    }
    verified.samples.truncate(SAMPLES);
    if store.len() as u64 != verified.present {
        verified.mismatches += 1;
        verified.samples.push(format!("the store has {} keys, but gets found {}", store.len(), verified.present));
    }
    verified
}

async fn verify_some(expected: Arc<Expected>, task: usize) -> Verified {
    let mut verified = Verified::default();
    let keys = expected.acknowledged.len();
    for index in task * keys / TASKS..(task + 1) * keys / TASKS {
        let acknowledged = expected.acknowledged[index];
        let newest = acknowledged + u32::from(expected.undecided.contains(&index));
        let fault = match expected.store.get(data::key(index)).await {
            Ok(value) => {
                verified.present += u64::from(value.is_some());
                data::fault(value.as_deref(), expected.value_bytes, index, &(acknowledged..newest + 1))
            }
            Err(error) => Some(format!("key {index}: {error:#}")),
        };
        match fault {
            None => verified.keys += u64::from(acknowledged > 0),
            Some(fault) => {
                verified.mismatches += 1;
                if verified.samples.len() < SAMPLES {
                    verified.samples.push(fault);
                }
            }
        }
        if index.is_multiple_of(64) {
            yield_now().await;
        }
    }
    verified
}
