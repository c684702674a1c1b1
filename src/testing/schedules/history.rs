//! What tasks did to each key and saw of it, and whether that could have happened one after the other.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// One operation's effect or result. Values are numbers, each written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Put(u64),
    /// Whether the key existed.
    Delete(bool),
    Get(Option<u64>),
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    began: u64,
    ended: u64,
    event: Event,
}

/// The operations of all tasks. The explorer runs one task at a time, so one counter orders beginnings and ends.
#[derive(Debug, Default)]
pub(super) struct History {
    clock: AtomicU64,
    keys: Mutex<BTreeMap<String, Vec<Operation>>>,
}

impl History {
    /// The moment an operation begins.
    pub(super) fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    pub(super) fn record(&self, key: &str, began: u64, event: Event) {
        let ended = self.now();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.entry(key.into()).or_default().push(Operation { began, ended, event });
    }

    /// Panics unless every key's operations can be put in an order that obeys time and makes sense.
    pub(super) fn check(&self, before: &BTreeMap<&str, u64>) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, operations) in &*keys {
            let start = before.get(key.as_str()).copied();
            let is_possible = search(operations, 0, start, &mut HashSet::new());
            assert!(is_possible, "no order explains what happened to {key}, which was {start:?}: {operations:#?}");
        }
    }
}

/// Whether the operations that are not among `done` can follow on each other when the key's value is `value`.
fn search(all: &[Operation], done: u32, value: Option<u64>, dead_ends: &mut HashSet<(u32, Option<u64>)>) -> bool {
    let rest = || all.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0);
    let Some(first_end) = rest().map(|(_, operation)| operation.ended).min() else { return true };
    if dead_ends.contains(&(done, value)) {
        return false;
    }
    for (index, operation) in rest().filter(|(_, operation)| operation.began < first_end) {
        let next = match operation.event {
            Event::Put(new) => Some(Some(new)),
            Event::Delete(existed) => (existed == value.is_some()).then_some(None),
            Event::Get(seen) => (seen == value).then_some(value),
        };
        if next.is_some_and(|next| search(all, done | 1 << index, next, dead_ends)) {
            return true;
        }
    }
    dead_ends.insert((done, value));
    false
}

#[test]
fn histories_that_cannot_be_are_refused() {
    let possible = |operations: &[(u64, u64, Event)]| {
        let all: Vec<_> = operations.iter().map(|&(began, ended, event)| Operation { began, ended, event }).collect();
        search(&all, 0, None, &mut HashSet::new())
    };
    assert!(possible(&[(0, 3, Event::Put(1)), (1, 2, Event::Get(None)), (4, 5, Event::Get(Some(1)))]));
    assert!(!possible(&[(0, 1, Event::Put(1)), (2, 3, Event::Get(None))]), "an acknowledged put is not seen");
    assert!(
        !possible(&[(0, 5, Event::Put(1)), (1, 2, Event::Get(Some(1))), (3, 4, Event::Get(None))]),
        "seen, then not"
    );
    assert!(
        !possible(&[(0, 1, Event::Put(1)), (2, 3, Event::Delete(true)), (4, 5, Event::Get(Some(1)))]),
        "it is back"
    );
    assert!(!possible(&[(0, 1, Event::Put(1)), (2, 3, Event::Delete(false))]), "a delete did not find it");
}
