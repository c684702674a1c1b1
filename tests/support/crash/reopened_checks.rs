//! Further checks of a closed or recovered store: with and without hint files, compacted, damaged, without its
//! MANIFEST.

use ringcask::testing::sim::{Image, Rng, SimBackend, SimConfig};
use ringcask::{Batch, ErrorKind, Stats};

use super::explore::{Explorer, Recovered, recover, recover_with};
use super::workload::{Setup, compacts, read_all, read_undamaged};
use crate::support::history_model::{Crash, EXTRA_KEY, Fate, Generation, History, State};
use crate::support::panics::no_panics;

/// Checks that the directory of a closed store contains nothing unexpected.
fn check_names(image: &Image) -> Result<(), String> {
    for name in image.names() {
        let is_ours =
            matches!(name, "LOCK" | "MANIFEST" | "RESERVE") || name.ends_with(".seg") || name.ends_with(".hint");
        if !is_ours {
            return Err(format!("the directory still contains {name}"));
        }
    }
    Ok(())
}

/// Size of a segment without records.
const EMPTY_SEGMENT_BYTES: u64 = 512 + 80;

/// Checks the dead bytes of a completely compacted store. Allowed are the overhead of each segment, and the few dead
/// bytes that do not justify rewriting a segment.
fn check_space(stats: &Stats) -> Result<(), String> {
    let bound = stats.segments.len() as u64 * EMPTY_SEGMENT_BYTES + stats.disk_bytes / 64;
    if stats.dead_bytes > bound {
        return Err(format!("{} bytes are dead after a compaction, expected {bound}: {stats:?}", stats.dead_bytes));
    }
    Ok(())
}

impl Explorer {
    /// Checks a cleanly closed store: no files are left over, and hint files make no difference.
    pub fn check_closed(
        &mut self,
        image: &Image,
        setup: &Setup,
        history: &History,
        rng: &mut Rng,
    ) -> Result<(), String> {
        check_names(image)?;
        let generation = history.generations.last().ok_or("no generation")?;
        let mut end = generation.clone();
        for write in &mut end.writes {
            if write.fate == Fate::Acked {
                write.durable = 0;
            }
        }
        let reopened = recover(image.clone(), setup, rng.next_u64(), false).map_err(|e| format!("closed: {e}"))?;
        let (first, removed) = (reopened.state, reopened.removed());
        drop(reopened);
        if !removed.is_empty() {
            return Err(format!("a closed store left {removed:?} behind"));
        }
        end.check(usize::MAX - 1, Crash::Power, &first).map_err(|error| format!("after a close: {error}"))?;
        let mut without_hints = image.clone();
        let mut damaged_hints = image.clone();
        for name in image.names().filter(|name| name.ends_with(".hint")) {
            without_hints.remove(name);
            let bits = image.bytes(name).map_or(0, |bytes| bytes.len() * 8);
            damaged_hints.flip_bit(name, rng.below(bits) as u64);
        }
        let mut exchanged_hints = image.clone();
        let hints: Vec<&str> = image.names().filter(|name| name.ends_with(".hint")).collect();
        for (name, other) in hints.iter().zip(hints.iter().cycle().skip(1)) {
            let bytes = image.bytes(other).unwrap_or_default();
            exchanged_hints.edit(name, |hint| *hint = bytes.to_vec());
        }
        for (what, image) in [
            ("without hints", without_hints),
            ("with damaged hints", damaged_hints),
            ("with exchanged hints", exchanged_hints),
        ] {
            let state = recover(image, setup, rng.next_u64(), false).map_err(|error| format!("{what}: {error}"))?.state;
            if state != first {
                return Err(format!("{what}, the store holds {state:x?} instead of {first:x?}"));
            }
        }
        if compacts(self.seed) || rng.percent(25) {
            self.check_compacted(image, setup, &first, rng)?;
            self.check_damaged(image, setup, &first, rng)?;
        }
        Ok(())
    }

    /// Checks that a full compaction changes nothing that can be read and leaves almost no dead bytes.
    fn check_compacted(&mut self, image: &Image, setup: &Setup, held: &State, rng: &mut Rng) -> Result<(), String> {
        self.totals.compacted += 1;
        let context = |error: String| format!("compacted after a close: {error}");
        let mut recovered = recover(image.clone(), setup, rng.next_u64(), false).map_err(context)?;
        let store = recovered.store.take().ok_or("no store")?;
        let backend = recovered.backend.clone();
        let compacted = backend.run_until(async {
            // The second compaction removes the tombstones that segments of a later job held back.
            for _ in 0..2 {
                store.compact().await.map_err(|error| format!("{error:?}"))?;
            }
            check_space(&store.stats())?;
            let state = read_all(&store).await?;
            store.close().await.map_err(|error| format!("closing: {error:?}"))?;
            Ok::<_, String>(state)
        });
        no_panics(&backend)?;
        let image = backend.image();
        drop(store);
        drop(recovered);
        let mut without_hints = image.clone();
        for name in image.names().filter(|name| name.ends_with(".hint")) {
            without_hints.remove(name);
        }
        let mut states = vec![compacted.map_err(context)?];
        check_names(&image).map_err(context)?;
        for image in [image, without_hints] {
            let again = recover(image, setup, rng.next_u64(), false).map_err(context)?;
            if !again.removed().is_empty() {
                return Err(context(format!("the compaction left {:?} behind", again.removed())));
            }
            states.push(again.state);
        }
        match states.iter().find(|state| *state != held) {
            Some(state) => Err(context(format!("the store holds {state:x?} instead of {held:x?}"))),
            None => Ok(()),
        }
    }

    /// Checks that a compaction detects a flipped bit in a sealed segment and does not propagate it: every key has its
    /// value or returns an error.
    fn check_damaged(&mut self, image: &Image, setup: &Setup, held: &State, rng: &mut Rng) -> Result<(), String> {
        let segments: Vec<&str> = image.names().filter(|name| name.ends_with(".seg")).collect();
        let Some(name) = segments.get(rng.below(segments.len().max(1))) else { return Ok(()) };
        let mut image = image.clone();
        let bit = rng.below(image.bytes(name).map_or(1, |bytes| bytes.len() * 8)) as u64;
        image.flip_bit(name, bit);
        self.totals.damaged += 1;
        let context = |error: String| format!("with bit {bit} of {name} flipped: {error}");
        for _ in 0..2 {
            let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.sim.clone() };
            let backend = SimBackend::from_image(image, config);
            let checked = backend.run_until(async {
                let store = match setup.builder(&backend).open().await {
                    Ok(store) => store,
                    Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(false),
                    Err(error) => return Err(format!("opening: {error:?}")),
                };
                match store.compact().await {
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(format!("compacting: {error:?}")),
                    _ => {}
                }
                read_undamaged(&store, held).await?;
                store.close().await.map_err(|error| format!("closing: {error:?}"))?;
                Ok(true)
            });
            no_panics(&backend)?;
            image = backend.image();
            backend.shutdown();
            if !checked.map_err(context)? {
                break;
            }
        }
        Ok(())
    }

    /// Checks that the segments alone determine the contents if no operation is running, whatever a compaction left of
    /// them.
    pub fn check_salvaged(
        &mut self,
        image: &Image,
        setup: &Setup,
        generation: &Generation,
        step: usize,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let Some(held) = generation.certain(step).filter(|_| !self.explored.workload.may_fail) else { return Ok(()) };
        let mut image = image.clone();
        image.remove("MANIFEST");
        self.totals.salvaged += 1;
        let config = SimConfig { seed: rng.next_u64(), journal: false, ..setup.sim.clone() };
        let backend = SimBackend::from_image(image, config);
        let builder = setup.salvaging(&backend);
        let state = recover_with(backend, builder).map_err(|error| format!("without a MANIFEST: {error}"))?.state;
        if state != held {
            return Err(format!("without a MANIFEST the store holds {state:x?} instead of {held:x?}"));
        }
        Ok(())
    }

    /// Checks that the recovered state survives a close and another crash, and that the store works as before.
    pub fn use_further(&mut self, mut recovered: Recovered, setup: &Setup, rng: &mut Rng) -> Result<(), String> {
        self.totals.used_further += 1;
        let context = |error: ringcask::Error| format!("continued use: {error:?}");
        let (backend, held) = (recovered.backend.clone(), recovered.state);
        let first = recovered.store.take().ok_or("no store")?;
        let (again, last) = backend.run_until(async {
            first.close().await.map_err(context)?;
            drop(first);
            check_names(&backend.image())?;
            let store = setup.builder(&backend).open().await.map_err(context)?;
            let again = read_all(&store).await?;
            store.put(EXTRA_KEY, "to be deleted").await.map_err(context)?;
            store.delete(EXTRA_KEY).await.map_err(context)?;
            let mut batch = Batch::new();
            batch.put(EXTRA_KEY, "there");
            store.write(batch).await.map_err(context)?;
            store.compact().await.map_err(context)?;
            Ok::<_, String>((again, store))
        })?;
        no_panics(&backend)?;
        let image = backend.crash_images(4, rng).pop().ok_or("no image")?;
        recovered.store = Some(last);
        drop(recovered);
        let later = recover(image, setup, rng.next_u64(), false).map_err(|error| format!("continued use: {error}"))?;
        let extra = later.get_extra()?;
        if again != held || later.state != held || extra.as_deref() != Some(&b"there"[..]) {
            let later = later.state;
            return Err(format!(
                "the store held {held:x?}, after reopening {again:x?}, after a crash {later:x?}, {extra:?}"
            ));
        }
        Ok(())
    }
}
