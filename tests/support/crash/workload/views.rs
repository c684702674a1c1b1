//! What readers of a store see.

use ringcask::bytes::Bytes;
use ringcask::{Durability, ErrorKind, Store};

use super::Run;
use crate::support::history_model::{COMMON_KEYS, EXTRA_KEY, Fate, State, identify, is_shared, key_name};

impl Run<'_> {
    pub(super) async fn get(&mut self, store: &Store, key: usize) -> Result<(), String> {
        let result = store.get(key_name(key)).await;
        self.observe(key, result)
    }

    /// Checks that the value a reader got for `key` was written to it. Marks that write as durable if its durability
    /// promises that for values that are read.
    pub fn observe(&mut self, key: usize, result: Result<Option<Bytes>, ringcask::Error>) -> Result<(), String> {
        let found = match result {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(_) if self.may_fail => return Ok(()),
            Err(error) => return Err(format!("a get failed: {error:?}")),
        };
        let step = self.backend.step();
        let generation = self.generation();
        let mut possible = vec![generation.base[key]];
        for write in &generation.writes {
            let Some((_, id)) = write.effects.iter().rev().find(|(changed, _)| *changed == key) else { continue };
            match write.fate {
                Fate::Acked if !write.overlaps => possible = vec![*id],
                Fate::NotApplied => {}
                _ => possible.push(*id),
            }
        }
        // Concurrent writes are ordered by their versions. This check ignores that order.
        let together = generation.writes.iter().filter(|write| write.fate == Fate::Acked);
        let issued = together.flat_map(|write| &write.effects).any(|(changed, id)| *changed == key && *id == found);
        if !possible.contains(&found) && !issued {
            return Err(format!("a get of key {key} returned {found:#x}, expected one of {possible:x?}"));
        }
        for write in &mut generation.writes {
            if write.durability == Durability::Synced
                && found != 0
                && write.effects.iter().any(|(changed, id)| (*changed, *id) == (key, found))
                && !is_shared(found)
            {
                write.durable = write.durable.min(step);
            }
        }
        Ok(())
    }
}

/// Reads every key: each returns the value in `held`, or an error that reports damage.
pub async fn read_undamaged(store: &Store, held: &State) -> Result<(), String> {
    for (key, id) in held.iter().enumerate() {
        let found = match store.get(key_name(key)).await {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(error) if error.kind() == ErrorKind::Corrupt => continue,
            Err(error) => return Err(format!("a get of key {key}: {error:?}")),
        };
        if found != *id {
            return Err(format!("key {key} holds {found:#x} instead of {id:#x}"));
        }
    }
    Ok(())
}

/// Reads the whole store through every read interface.
pub async fn read_all(store: &Store) -> Result<State, String> {
    let mut state = State::default();
    let mut count = usize::from(store.contains_key(EXTRA_KEY));
    for (key, held) in state.iter_mut().enumerate() {
        // Only the longest key is left, and the number of keys shows that it is absent. Looking it up costs as much as
        // all others.
        if key == COMMON_KEYS && store.len() == count {
            break;
        }
        let name = key_name(key);
        let value = store.get(name).await.map_err(|error| format!("a get of key {key}: {error:?}"))?;
        if store.contains_key(name) != value.is_some()
            || store.value_len(name) != value.as_ref().map(|bytes| bytes.len() as u64)
        {
            return Err(format!("the read interfaces disagree on key {key}"));
        }
        *held = value.map_or(Ok(0), |bytes| identify(key, &bytes))?;
        count += usize::from(*held != 0);
    }
    if store.len() != count {
        return Err(format!("len() is {}, but {count} keys have values", store.len()));
    }
    Ok(state)
}
