//! Histories of the operations on each key, and a check that they are linearizable: some order of the operations
//! respects their times and explains every result.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// The effect or result of one operation. Values are numbers, and each is written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyEvent {
    Put(u64),
    /// Whether the key existed before.
    Delete(bool),
    Get(Option<u64>),
}

/// An event with the times of its call and its return.
#[derive(Clone, Copy, Debug)]
struct TimedEvent {
    called: u64,
    returned: u64,
    event: KeyEvent,
}

/// The operations of all tasks, by key. The explorer runs one task at a time, so one counter orders calls and returns.
#[derive(Debug, Default)]
pub(super) struct KeyHistories {
    clock: AtomicU64,
    keys: Mutex<BTreeMap<String, Vec<TimedEvent>>>,
}

impl KeyHistories {
    /// The time of a call: the next number of the counter.
    pub(super) fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    /// Records an operation on `key` that returns now.
    pub(super) fn record(&self, key: &str, called: u64, event: KeyEvent) {
        let returned = self.now();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.entry(key.into()).or_default().push(TimedEvent { called, returned, event });
    }

    /// Panics unless the operations on every key are linearizable. `before` has the values before the first operation.
    pub(super) fn check(&self, before: &BTreeMap<&str, u64>) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, operations) in &*keys {
            let start = before.get(key.as_str()).copied();
            let is_linearizable = search(operations, 0, start, &mut HashSet::new());
            assert!(
                is_linearizable,
                "the history of {key}, which began with {start:?}, is not linearizable: {operations:#?}"
            );
        }
    }
}

/// Whether the operations that are not in the bit set `done` have a linearization that starts at `value`.
fn search(all: &[TimedEvent], done: u32, value: Option<u64>, dead_ends: &mut HashSet<(u32, Option<u64>)>) -> bool {
    let rest = || all.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0);
    let Some(first_return) = rest().map(|(_, operation)| operation.returned).min() else { return true };
    if dead_ends.contains(&(done, value)) {
        return false;
    }
    for (index, operation) in rest().filter(|(_, operation)| operation.called < first_return) {
        let next = match operation.event {
            KeyEvent::Put(new) => Some(Some(new)),
            KeyEvent::Delete(existed) => (existed == value.is_some()).then_some(None),
            KeyEvent::Get(seen) => (seen == value).then_some(value),
        };
        if next.is_some_and(|next| search(all, done | 1 << index, next, dead_ends)) {
            return true;
        }
    }
    dead_ends.insert((done, value));
    false
}

#[test]
fn histories_without_a_linearization_are_refused() {
    let possible = |operations: &[(u64, u64, KeyEvent)]| {
        let all: Vec<_> =
            operations.iter().map(|&(called, returned, event)| TimedEvent { called, returned, event }).collect();
        search(&all, 0, None, &mut HashSet::new())
    };
    assert!(possible(&[(0, 3, KeyEvent::Put(1)), (1, 2, KeyEvent::Get(None)), (4, 5, KeyEvent::Get(Some(1)))]));
    assert!(!possible(&[(0, 1, KeyEvent::Put(1)), (2, 3, KeyEvent::Get(None))]), "a get misses an acknowledged put");
    assert!(
        !possible(&[(0, 5, KeyEvent::Put(1)), (1, 2, KeyEvent::Get(Some(1))), (3, 4, KeyEvent::Get(None))]),
        "a value disappears again"
    );
    assert!(
        !possible(&[(0, 1, KeyEvent::Put(1)), (2, 3, KeyEvent::Delete(true)), (4, 5, KeyEvent::Get(Some(1)))]),
        "a deleted value returns"
    );
    assert!(
        !possible(&[(0, 1, KeyEvent::Put(1)), (2, 3, KeyEvent::Delete(false))]),
        "a delete misses an acknowledged put"
    );
}
