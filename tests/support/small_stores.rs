//! Small stores to damage, and every write of their history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringcask::testing::io::Io;
use ringcask::testing::sim::{Image, Rng, SimBackend, SimConfig};
use ringcask::{Batch, Builder, Compaction, Recovery, Store};

pub type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// One write: keys and their new values; `None` deletes. Happens as a whole.
pub type Write = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The history of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Killed while it was being written: sealed segments with hints, and one that has no footer.
    Killed,
    /// Compacted in the middle of its life, and closed: tombstones, copies, a value of several sectors.
    Compacted,
    /// Killed after it was compacted, with one batch after the other in its last segment.
    Batches,
}

pub const SHAPES: [Shape; 3] = [Shape::Killed, Shape::Compacted, Shape::Batches];

pub struct Fixture {
    pub image: Image,
    /// The same store in the middle of its history.
    pub older: Image,
    /// Another store with the same history.
    pub other: Image,
    pub writes: Vec<Write>,
    /// Writes that were sealed when the last segment was begun; all of them in a store that was closed.
    pub sealed_writes: usize,
    /// The segment without a footer, if there is one.
    pub active: Option<String>,
}

const KEYS: usize = 14;

pub fn world(image: Image, seed: u64) -> SimBackend {
    let config = SimConfig { seed, journal: false, nowait_miss_percent: 10, ..SimConfig::default() };
    SimBackend::from_image(image, config)
}

pub fn builder(world: &SimBackend, recovery: Recovery) -> Builder {
    let io: Arc<dyn Io> = Arc::new(world.clone());
    let builder = Store::builder("/db").backend(io).segment_bytes(4096).reserve_bytes(4096).recovery(recovery);
    builder.compaction(Compaction::new().automatic(false))
}

/// What the first `count` writes leave.
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

/// Segments that have no hint beside them.
fn without_hint(image: &Image) -> Vec<String> {
    let has_hint = |name: &String| image.bytes(&name.replace(".seg", ".hint")).is_some();
    segments(image).into_iter().filter(|name| !has_hint(name)).collect()
}

/// Runs until maintenance has written every hint.
async fn settle(world: &SimBackend) {
    while without_hint(&world.image()).len() > 1 {
        world.sleep(Duration::from_millis(1)).await;
    }
}

impl Fixture {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let other = Self::run(shape, seed, seed ^ 0xdead_beef).0;
        let (image, older, writes, sealed_writes) = Self::run(shape, seed, seed);
        let active = (shape != Shape::Compacted).then(|| without_hint(&image).pop()).flatten();
        Self { image, older, other, writes, sealed_writes, active }
    }

    /// The store when it stopped, at half its age, its writes, and how many of them were sealed by then.
    fn run(shape: Shape, seed: u64, world_seed: u64) -> (Image, Image, Vec<Write>, usize) {
        let (mut rng, world) = (Rng::new(seed), world(Image::new(), world_seed));
        let mut older = Image::new();
        let (mut writes, mut sealed_writes) = (Vec::new(), 0);
        let store = world.run_until(async {
            let store = builder(&world, Recovery::Strict).open().await.unwrap();
            let mut newest = String::new();
            for number in 0..if shape == Shape::Killed { 70 } else { 48 } {
                let write = random_write(shape, &mut rng, number);
                apply(&store, &write).await;
                // A delete that finds nothing leaves nothing.
                let count = writes.len();
                writes.push(write);
                if number == 24 {
                    settle(&world).await;
                    if shape != Shape::Killed {
                        store.compact().await.unwrap();
                        settle(&world).await;
                    }
                    older = world.image();
                }
                let now = segments(&world.image()).pop().unwrap_or_default();
                if now != newest {
                    (newest, sealed_writes) = (now, count);
                }
            }
            settle(&world).await;
            if shape == Shape::Compacted {
                store.close().await.unwrap();
            }
            store
        });
        if shape == Shape::Compacted {
            sealed_writes = writes.len();
        }
        let image = world.image();
        // Before the store: it would close in good order.
        world.shutdown();
        drop(store);
        assert_eq!(world.panics(), Vec::<String>::new());
        (image, older, writes, sealed_writes)
    }
}
