//! Semantics of the simulated disk. Each test shows both that permitted outcomes happen and that forbidden ones do not.

mod durability;
mod runs;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::*;
use crate::io::{EntryKind, File, OpenMode, Priority, SyncKind, util};

const DB: &str = "/db";

struct Lab {
    world: SimBackend,
    dir: Arc<dyn Dir>,
    file: Arc<dyn File>,
}

/// Creates a backend with the empty, durable file `f` in a durable directory.
fn lab(config: SimConfig) -> Lab {
    let world = SimBackend::new(config);
    let dir = world.open_dir(DB.as_ref(), true).unwrap();
    let file = dir.open("f", OpenMode::CreateNew).unwrap();
    dir.sync().unwrap();
    Lab { world, dir, file }
}

fn seeded(seed: u64) -> Lab {
    lab(SimConfig { seed, ..SimConfig::default() })
}

impl Lab {
    fn write(&self, offset: u64, data: impl Into<Vec<u8>>) {
        self.world.run_until(util::write_all(&*self.file, vec![Bytes::from(data.into())], offset)).unwrap();
    }

    fn sync(&self) {
        self.world.run_until(self.file.sync(SyncKind::Data)).unwrap();
    }

    fn read(&self, len: usize) -> Vec<u8> {
        let read = util::read_full(&*self.file, vec![0; len], 0, 0);
        let (mut buf, filled) = self.world.run_until(read).unwrap();
        buf.truncate(filled);
        buf
    }

    /// Every image of a crash at this point, from the live disk and from the journal, which must agree. Uses several
    /// seeds, because holes and torn sectors depend on the seed.
    fn crash(&self) -> Vec<Image> {
        let journal = self.world.journal();
        let mut images = Vec::new();
        for seed in 0..40 {
            let live = self.world.crash_images(usize::MAX, &mut Rng::new(seed));
            let replayed: Vec<_> = journal.crash_images(journal.len(), usize::MAX, &mut Rng::new(seed)).collect();
            assert_eq!(live, replayed, "journal and disk disagree");
            images.extend(live);
        }
        images
    }

    /// The distinct contents that file `f` may have after a crash at this point.
    fn contents(&self) -> BTreeSet<Vec<u8>> {
        self.crash().iter().map(|image| image.bytes("f").expect("the name is durable").to_vec()).collect()
    }

    fn name_sets(&self) -> BTreeSet<Vec<String>> {
        self.crash().iter().map(|image| image.names().map(str::to_owned).collect()).collect()
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
