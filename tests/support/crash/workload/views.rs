//! What readers see of a store.

use ringcask::bytes::Bytes;
use ringcask::{Durability, ErrorKind, Store};

use super::Run;
use crate::support::history_model::{COMMON_KEYS, EXTRA_KEY, Fate, State, identify, is_shared, key_name};

impl Run<'_> {
    pub(super) async fn get(&mut self, store: &Store, key: usize) -> Result<(), String> {
        let result = store.get(key_name(key)).await;
        self.saw(key, result)
    }

    /// What a reader was told of `key` was written to it, and is durable if its writer asks for that.
    pub fn saw(&mut self, key: usize, result: Result<Option<Bytes>, ringcask::Error>) -> Result<(), String> {
        let found = match result {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(_) if self.may_fail => return Ok(()),
            Err(error) => return Err(format!("a get failed: {error:?}")),
        };
        let step = self.world.step();
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
        // Writes made together are ordered by their versions, which this does not look at.
        let together = generation.writes.iter().filter(|write| write.fate == Fate::Acked);
        let issued = together.flat_map(|write| &write.effects).any(|(changed, id)| *changed == key && *id == found);
        if !possible.contains(&found) && !issued {
            return Err(format!("a get of key {key} showed {found:#x}, not one of {possible:x?}"));
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

/// Reads every key: each has what is `held` of it, or is reported as damaged.
pub async fn read_undamaged(store: &Store, held: &State) -> Result<(), String> {
    for (key, id) in held.iter().enumerate() {
        let found = match store.get(key_name(key)).await {
            Ok(found) => found.map_or(Ok(0), |bytes| identify(key, &bytes))?,
            Err(error) if error.kind() == ErrorKind::Corrupt => continue,
            Err(error) => return Err(format!("get of key {key}: {error:?}")),
        };
        if found != *id {
            return Err(format!("key {key} holds {found:#x} instead of {id:#x}"));
        }
    }
    Ok(())
}

/// Everything in the store, by all the ways there are to look at it.
pub async fn read_all(store: &Store) -> Result<State, String> {
    let mut state = State::default();
    let mut count = usize::from(store.contains_key(EXTRA_KEY));
    for (key, held) in state.iter_mut().enumerate() {
        // Only the longest key is left. It takes as long to look up as all else takes together, and is not there.
        if key == COMMON_KEYS && store.len() == count {
            break;
        }
        let name = key_name(key);
        let value = store.get(name).await.map_err(|error| format!("get of key {key}: {error:?}"))?;
        if store.contains_key(name) != value.is_some()
            || store.value_len(name) != value.as_ref().map(|bytes| bytes.len() as u64)
        {
            return Err(format!("the views of key {key} differ"));
        }
        *held = value.map_or(Ok(0), |bytes| identify(key, &bytes))?;
        count += usize::from(*held != 0);
    }
    if store.len() != count {
        return Err(format!("len() is {}, but {count} keys have values", store.len()));
    }
    Ok(state)
}
