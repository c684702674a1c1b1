//! Small stores to damage, with every write of their history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringcask::testing::io::Io;
use ringcask::testing::sim::{Image, Rng, SimBackend, SimConfig};
use ringcask::{Batch, Builder, Compaction, Recovery, Store};

pub type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// One atomic write: keys and their new values. `None` deletes the key.
pub type Write = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The kind of history of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Killed while it was being written: sealed segments with hint files, and one segment without a footer.
    Killed,
    /// Compacted halfway through its history, then closed: tombstones, copies, a value of several sectors.
    Compacted,
    /// Killed after a compaction, with consecutive batches in its last segment.
    Batches,
}

pub const SHAPES: [Shape; 3] = [Shape::Killed, Shape::Compacted, Shape::Batches];

pub struct Fixture {
    pub image: Image,
    /// The same store halfway through its history.
    pub older: Image,
    /// Another store with the same kind of history.
    pub other: Image,
    pub writes: Vec<Write>,
    /// Number of writes that were sealed when the last segment began. All writes if the store was closed.
    pub sealed_writes: usize,
    /// The segment without a footer, if there is one.
    pub active: Option<String>,
}

const KEYS: usize = 14;

pub fn backend(image: Image, seed: u64) -> SimBackend {
    let config = SimConfig { seed, journal: false, nowait_miss_percent: 10, ..SimConfig::default() };
    SimBackend::from_image(image, config)
}

pub fn builder(backend: &SimBackend, recovery: Recovery) -> Builder {
    let io: Arc<dyn Io> = Arc::new(backend.clone());
    let builder = Store::builder("/db").backend(io).segment_bytes(4096).reserve_bytes(4096).recovery(recovery);
    builder.compaction(Compaction::new().automatic(false))
}

/// The state after the first `count` writes.
pub fn fold(writes: &[Write], count: usize) -> Model {
    let mut model = Model::new();
    for (key, value) in writes.iter().take(count).flatten() {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
    model
}

fn random_write(shape: Shape, rng: &mut Rng, number: usize) -> Write {
    let change = |rng: &mut Rng, member: usize| {
        let key = format!("key-{:02}", (rng.below(KEYS) + member * 5) % KEYS).into_bytes();
        let len = if shape == Shape::Compacted && rng.percent(8) { 1500 } else { 20 + rng.below(180) };
        let mut value = format!("{number}.{member}:").into_bytes();
        value.resize_with(len, || u8::try_from(rng.below(256)).unwrap_or(0));
        (key, (!rng.percent(25)).then_some(value))
    };
    let members = match shape {
        Shape::Batches if rng.percent(60) => 2 + rng.below(2),
        _ if rng.percent(15) => 2,
        _ => 1,
    };
    let mut write: Write = Vec::new();
    for member in 0..members {
        let (key, value) = change(rng, member);
        write.retain(|(other, _)| *other != key);
        write.push((key, value));
    }
    write
}

async fn apply(store: &Store, write: &Write) {
    match write.as_slice() {
        [(key, Some(value))] => drop(store.put(key, value).await.unwrap()),
        [(key, None)] => drop(store.delete(key).await.unwrap()),
        members => {
            let mut batch = Batch::new();
            for (key, value) in members {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                };
            }
            store.write(batch).await.unwrap();
        }
    }
}

fn segments(image: &Image) -> Vec<String> {
    image.names().filter(|name| name.ends_with(".seg")).map(String::from).collect()
}

/// Segments without a hint file.
fn without_hint(image: &Image) -> Vec<String> {
    let has_hint = |name: &String| image.bytes(&name.replace(".seg", ".hint")).is_some();
    segments(image).into_iter().filter(|name| !has_hint(name)).collect()
}

/// Waits until maintenance has written every hint file.
async fn settle(backend: &SimBackend) {
    while without_hint(&backend.image()).len() > 1 {
        backend.sleep(Duration::from_millis(1)).await;
    }
}

impl Fixture {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let other = Self::run(shape, seed, seed ^ 0xdead_beef).0;
        let (image, older, writes, sealed_writes) = Self::run(shape, seed, seed);
        let active = (shape != Shape::Compacted).then(|| without_hint(&image).pop()).flatten();
        Self { image, older, other, writes, sealed_writes, active }
    }

    /// Runs a store. Returns its final image, its image at half of its history, its writes, and how many of them were
    /// sealed halfway.
    fn run(shape: Shape, seed: u64, sim_seed: u64) -> (Image, Image, Vec<Write>, usize) {
        let (mut rng, backend) = (Rng::new(seed), backend(Image::new(), sim_seed));
        let mut older = Image::new();
        let (mut writes, mut sealed_writes) = (Vec::new(), 0);
        let store = backend.run_until(async {
            let store = builder(&backend, Recovery::Strict).open().await.unwrap();
            let mut newest = String::new();
            for number in 0..if shape == Shape::Killed { 70 } else { 48 } {
                let write = random_write(shape, &mut rng, number);
                apply(&store, &write).await;
                // A delete of an absent key writes nothing.
                let count = writes.len();
                writes.push(write);
                if number == 24 {
                    settle(&backend).await;
                    if shape != Shape::Killed {
                        store.compact().await.unwrap();
                        settle(&backend).await;
                    }
                    older = backend.image();
                }
                let now = segments(&backend.image()).pop().unwrap_or_default();
                if now != newest {
                    (newest, sealed_writes) = (now, count);
                }
            }
            settle(&backend).await;
            if shape == Shape::Compacted {
                store.close().await.unwrap();
            }
            store
        });
        if shape == Shape::Compacted {
            sealed_writes = writes.len();
        }
        let image = backend.image();
        // The power goes off before the store is dropped, which would close it cleanly.
        backend.shutdown();
        drop(store);
        assert_eq!(backend.panics(), Vec::<String>::new());
        (image, older, writes, sealed_writes)
    }
}
