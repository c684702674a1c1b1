//! The results of every public call, on every backend.

use std::time::Duration;

use ringcask::bytes::Bytes;
use ringcask::{Batch, Durability, Engine, Error, ErrorKind, Recovery, Store, Version};

use crate::helpers::{
    LEVELS, Model, Rng, assert_holds, block_on, close, delete, for_each_backend, for_each_engine, get, open, put,
    put_at,
};

#[test]
fn a_value_is_readable_until_it_is_overwritten_or_deleted() {
    for_each_backend(|env| {
        let store = env.open();
        assert!(store.is_empty());
        assert_eq!(get(&store, "k"), None);
        put(&store, "k", "one");
        assert_eq!(get(&store, "k").as_deref(), Some(&b"one"[..]));
        put(&store, "k", "two, longer");
        assert_eq!(get(&store, "k").as_deref(), Some(&b"two, longer"[..]));
        assert_eq!((store.len(), store.is_empty(), store.contains_key("k")), (1, false, true));
        assert!(delete(&store, "k"));
        assert_eq!((get(&store, "k"), store.len(), store.contains_key("k")), (None, 0, false));
        assert_eq!(store.value_len("k"), None);
        put(&store, "k", "three");
        close(store);
        assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"three"[..]));
    });
}

#[test]
fn puts_deletes_and_batches_work_at_every_level() {
    for_each_backend(|env| {
        let store = env.open();
        let mut model = Model::new();
        for level in LEVELS {
            let key = |name: &str| format!("{level}-{name}").into_bytes();
            put_at(&store, level, key("put"), "p");
            put_at(&store, level, key("gone"), "g");
            assert!(block_on(store.delete(key("gone")).durability(level)).unwrap());
            let mut batch = Batch::new();
            batch.put(key("b1"), "1").put(key("b2"), "2");
            block_on(store.write(batch).durability(level)).unwrap();
            model.extend([(key("put"), b"p".to_vec()), (key("b1"), b"1".to_vec()), (key("b2"), b"2".to_vec())]);
            assert_holds(&store, &model);
        }
        close(store);
        assert_holds(&env.open(), &model);
    });
}

#[test]
fn a_delete_of_an_absent_key_writes_nothing() {
    for_each_backend(|env| {
        let store = env.open();
        assert!(!delete(&store, "never"));
        assert_eq!(store.stats().bytes_written, 0, "a delete of an absent key created a segment");
        put(&store, "k", "v");
        assert!(delete(&store, "k"));
        block_on(store.sync()).unwrap();
        let before = store.stats();
        for level in LEVELS {
            assert!(!block_on(store.delete("k").durability(level)).unwrap());
            assert!(!block_on(store.delete("never").durability(level)).unwrap());
        }
        block_on(store.sync()).unwrap();
        let after = store.stats();
        assert_eq!((after.bytes_written, after.deletes), (before.bytes_written, before.deletes));
    });
}

#[test]
fn the_shortest_and_longest_keys_are_distinct() {
    for_each_backend(|env| {
        let store = env.open();
        let mut model = Model::new();
        for byte in 0..=255 {
            model.insert(vec![byte], vec![byte; 3]);
        }
        let longest = vec![b'x'; ringcask::MAX_KEY_LEN];
        let mut other = longest.clone();
        *other.last_mut().unwrap() = b'y';
        model.insert(longest.clone(), b"x".to_vec());
        model.insert(other, b"y".to_vec());
        model.insert(longest[1..].to_vec(), b"shorter".to_vec());
        let mut batch = Batch::with_capacity(model.len());
        for (key, value) in &model {
            batch.put(key, value);
        }
        block_on(store.write(batch)).unwrap();
        assert_holds(&store, &model);
        close(store);
        assert_holds(&env.open(), &model);
    });
}

#[test]
fn an_empty_value_is_a_value() {
    for_each_backend(|env| {
        let store = env.open();
        let mut model = Model::new();
        for level in LEVELS {
            put_at(&store, level, level.to_string(), b"");
            model.insert(level.to_string().into_bytes(), Vec::new());
        }
        block_on(store.put_bytes("bytes", Bytes::new())).unwrap();
        model.insert(b"bytes".to_vec(), Vec::new());
        assert_holds(&store, &model);
        close(store);
        assert_holds(&env.open(), &model);
    });
}

#[test]
fn large_values_are_readable_at_every_level() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(4 << 20));
        let mut rng = Rng::new(7);
        // Sizes around the limits at which the code path changes: a page, shared instead of copied, a full buffer, a
        // full segment.
        let sizes = [4095, 4096, 65_535, 65_536, 65_537, 1 << 20, (4 << 20) - 1, 4 << 20, (8 << 20) + 1, 64 << 20];
        let mut model = Model::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let value = Bytes::from(rng.bytes(size));
            let key = format!("{size}");
            match LEVELS[index % 3] {
                Durability::Synced => block_on(store.put_bytes(&key, value.clone())).unwrap(),
                level => put_at(&store, level, &key, &value),
            };
            assert_eq!(get(&store, &key).as_deref(), Some(&value[..]), "{size} bytes, just written");
            model.insert(key.into_bytes(), value.to_vec());
        }
        assert_holds(&store, &model);
        close(store);
        assert_holds(&env.open(), &model);
    });
}

#[test]
fn put_bytes_and_put_store_the_same_value_at_every_level() {
    for_each_backend(|env| {
        for level in LEVELS {
            let path = env.path().with_file_name(format!("put-bytes-{level}"));
            let store = open(env.builder_at(&path).durability(level));
            for len in [0, 1, 1000, 65_536, 200_000] {
                let value = Bytes::from(Rng::new(len as u64).bytes(len));
                block_on(store.put_bytes("shared", value.clone())).unwrap();
                put(&store, "copied", &value);
                assert_eq!(get(&store, "shared").as_deref(), Some(&value[..]));
                assert_eq!(get(&store, "copied"), get(&store, "shared"));
            }
            close(store);
            let store = open(env.builder_at(&path));
            assert_eq!(get(&store, "shared").map(|value| value.len()), Some(200_000));
            assert_eq!(get(&store, "copied"), get(&store, "shared"));
        }
    });
}

#[test]
fn within_a_batch_the_later_operation_on_a_key_wins() {
    for_each_backend(|env| {
        let store = env.open();
        put(&store, "old", "value");
        let mut batch = Batch::new();
        batch.put("twice", "first").put("twice", "second");
        batch.put("gone", "x").delete("gone");
        batch.delete("back").put("back", "again");
        batch.delete("old").delete("never");
        assert_eq!((batch.len(), batch.is_empty()), (8, false));
        block_on(store.write(batch)).unwrap();
        let model = Model::from([(b"twice".to_vec(), b"second".to_vec()), (b"back".to_vec(), b"again".to_vec())]);
        assert_holds(&store, &model);
        assert_eq!(get(&store, "gone"), None);
        assert_eq!(get(&store, "old"), None);
        close(store);
        let store = env.open();
        assert_holds(&store, &model);
        assert_eq!((get(&store, "gone"), get(&store, "old")), (None, None));
    });
}

#[test]
fn an_empty_batch_is_accepted_and_writes_nothing() {
    for_each_backend(|env| {
        let store = env.open();
        let first = put(&store, "k", "v");
        let before = store.stats().bytes_written;
        let mut batch = Batch::new();
        batch.put("x", "y").clear();
        assert_eq!((batch.is_empty(), batch.byte_len()), (true, 0));
        block_on(store.write(batch)).unwrap();
        block_on(store.sync()).unwrap();
        assert_eq!(store.stats().bytes_written, before);
        assert!(put(&store, "k", "w") > first);
        assert_eq!(get(&store, "x"), None);
    });
}

#[test]
fn a_batch_can_be_larger_than_the_staging_buffer_and_the_segment() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(64 << 10).staging_bytes(64 << 10));
        let mut model = Model::new();
        let mut rng = Rng::new(3);
        for level in LEVELS {
            let mut batch = Batch::new();
            for index in 0..200 {
                let (key, value) = (format!("{level}-{index}").into_bytes(), rng.bytes(2000));
                batch.put(&key, &value);
                model.insert(key, value);
            }
            assert!(batch.byte_len() > 400_000);
            block_on(store.write(batch).durability(level)).unwrap();
            assert_holds(&store, &model);
        }
        close(store);
        assert_holds(&env.open(), &model);
    });
}

#[test]
fn versions_increase_with_every_write_and_across_reopens() {
    for_each_backend(|env| {
        let mut last = Version::from(0);
        let mut writes = 0;
        for _ in 0..5 {
            let store = env.open();
            assert!(store.durable_version() >= last, "a version from before the reopen is not durable");
            for level in LEVELS {
                for index in 0..10_u32 {
                    let version = put_at(&store, level, index.to_le_bytes(), "v");
                    assert!(version > last, "{version} after {last}");
                    let mut batch = Batch::new();
                    batch.put("a", "1").put("b", "2");
                    last = block_on(store.write(batch).durability(level)).unwrap();
                    assert!(last > version, "{last} after {version}");
                    writes += 2;
                }
            }
            close(store);
        }
        println!("{writes} versions, the last {last}");
    });
}

#[test]
fn the_store_matches_a_model_through_random_operations_and_reopens() {
    let mut rng = Rng::seeded("model");
    let seed = rng.next();
    for_each_backend(|env| {
        let (mut rng, mut model, mut operations) = (Rng::new(seed), Model::new(), 0);
        for _ in 0..6 {
            let store = open(env.builder().segment_bytes(16 << 10).sync_interval(Duration::from_millis(5)));
            assert_holds(&store, &model);
            for _ in 0..500 {
                step(&store, &mut model, &mut rng);
                assert_eq!(store.len(), model.len());
                operations += 1;
            }
            assert_holds(&store, &model);
            close(store);
        }
        assert_eq!(operations, 3000);
    });
}

fn step(store: &Store, model: &mut Model, rng: &mut Rng) {
    let key = |rng: &mut Rng| format!("key-{}", rng.below(40)).into_bytes();
    match rng.below(10) {
        0..5 => {
            let len = rng.below(300) as usize;
            let (key, value) = (key(rng), rng.bytes(len));
            put_at(store, rng.level(), &key, &value);
            model.insert(key, value);
        }
        5..8 => {
            let key = key(rng);
            let existed = block_on(store.delete(&key).durability(rng.level())).unwrap();
            assert_eq!(existed, model.remove(&key).is_some());
        }
        8 => {
            let mut batch = Batch::new();
            for _ in 0..rng.below(6) {
                let (key, value) = (key(rng), rng.bytes(20));
                if rng.below(3) == 0 {
                    batch.delete(&key);
                    model.remove(&key);
                } else {
                    batch.put(&key, &value);
                    model.insert(key, value);
                }
            }
            block_on(store.write(batch).durability(rng.level())).unwrap();
        }
        _ => {
            let key = key(rng);
            assert_eq!(get(store, &key).as_ref(), model.get(&key));
        }
    }
}

#[test]
fn stats_count_the_operations() {
    for_each_backend(|env| {
        let store = env.open();
        for index in 0..10_u32 {
            put(&store, index.to_le_bytes(), "value");
        }
        put(&store, 0_u32.to_le_bytes(), "overwritten");
        assert!(delete(&store, 1_u32.to_le_bytes()));
        let mut batch = Batch::new();
        batch.put("a", "1").put("b", "2");
        block_on(store.write(batch)).unwrap();
        for _ in 0..7 {
            get(&store, "a");
        }
        let stats = store.stats();
        assert_eq!(stats.engine.to_string(), env.engine_name());
        assert_eq!((stats.keys, stats.deletes, stats.batches, stats.gets), (11, 1, 1, 7));
        assert!(stats.puts >= 11, "{} puts", stats.puts);
        assert_eq!(stats.disk_bytes, stats.live_bytes + stats.dead_bytes);
        let segments: u64 = stats.segments.iter().map(|segment| segment.total_bytes).sum();
        assert_eq!(segments, stats.disk_bytes);
        let live: u64 = stats.segments.iter().map(|segment| segment.live_bytes).sum();
        assert_eq!(live, stats.live_bytes);
        assert!(stats.live_bytes > 0 && stats.dead_bytes > 0, "{stats:?}");
        assert!(stats.groups >= 13 && stats.syncs >= 13, "thirteen synced writes, one after the other: {stats:?}");
        assert!(stats.group_records >= 13 && !stats.poisoned, "{stats:?}");
        assert_eq!(stats.staged_bytes, 0);
        let path = env.path();
        assert_eq!(store.path(), path);
    });
}

#[test]
fn live_bytes_are_the_same_after_a_reopen() {
    for_each_backend(|env| {
        let mut rng = Rng::new(11);
        let mut model = Model::new();
        let store = open(env.builder().segment_bytes(16 << 10));
        for _ in 0..400 {
            step(&store, &mut model, &mut rng);
        }
        block_on(store.sync()).unwrap();
        let before = store.stats();
        close(store);
        let after = env.open().stats();
        assert_eq!((after.keys, after.live_bytes), (before.keys, before.live_bytes));
    });
}

#[test]
fn handles_and_futures_can_be_shared_and_sent() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<F: Future + Send + Unpin + 'static>(future: F) -> F {
        future
    }
    shared::<Store>();
    shared::<Error>();
    for_each_engine(|env| {
        let store = block_on(sent(Store::builder(env.path()).engine(env.engine).open())).unwrap();
        // No future borrows its arguments: these keys and values are dropped before the futures are awaited.
        let futures = {
            let (key, value) = (String::from("key"), vec![1, 2, 3]);
            let mut batch = Batch::new();
            batch.put(&key, &value);
            let put = sent(store.put(&key, &value));
            (put, sent(store.put(&key, &value).durability(Durability::Written)), sent(store.write(batch)))
        };
        let version = block_on(futures.0).unwrap();
        assert!(block_on(futures.1).unwrap() > version);
        assert!(block_on(futures.2).unwrap() > version);
        assert_eq!(block_on(sent(store.get("key"))).unwrap().as_deref(), Some(&[1, 2, 3][..]));
        block_on(sent(store.wait_durable(version))).unwrap();
        assert!(block_on(sent(store.sync())).unwrap() >= version);
        assert!(block_on(sent(store.put_bytes("b", Bytes::from_static(b"x")))).unwrap() > version);
        assert!(block_on(sent(store.delete("key"))).unwrap());
        assert!(block_on(sent(store.delete("b").durability(Durability::Written))).unwrap());
        let clone = store.clone();
        std::thread::spawn(move || put(&clone, "from a thread", "1")).join().unwrap();
        assert!(store.contains_key("from a thread"));
        block_on(sent(store.close())).unwrap();
        drop(block_on(sent(Store::open(env.path()))).unwrap());
    });
}

#[test]
fn returned_values_stay_valid_after_overwrite_and_close() {
    for_each_engine(|env| {
        let store = env.open();
        let mut kept = Vec::new();
        for index in 0..100_u8 {
            put_at(&store, LEVELS[usize::from(index) % 3], "k", [index; 5000]);
            kept.push((index, block_on(store.get("k")).unwrap().unwrap()));
        }
        close(store);
        for (index, value) in kept {
            assert_eq!(value, vec![index; 5000]);
        }
    });
}

#[test]
fn display_names_of_options_can_be_parsed() {
    for level in LEVELS {
        assert_eq!(level.to_string().parse::<Durability>().unwrap(), level);
    }
    for engine in [Engine::Auto, Engine::Uring, Engine::Threads] {
        assert_eq!(engine.to_string().parse::<Engine>().unwrap(), engine);
    }
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        assert_eq!(recovery.to_string().parse::<Recovery>().unwrap(), recovery);
    }
    let error = "always".parse::<Durability>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("always"), "{error}");
    assert_eq!(Durability::default(), Durability::Synced);
}

#[test]
fn multi_get_returns_values_in_the_order_of_the_keys() {
    for_each_backend(|env| {
        let store = open(env.builder().segment_bytes(64 << 10));
        let key = |number: usize| format!("key-{number}");
        let value = |number: usize| vec![number as u8; number * 13 % 3_000];
        for number in 0..400 {
            put_at(&store, LEVELS[number % 3], key(number), value(number));
        }
        assert!(delete(&store, key(7)));
        // More keys than one poll looks up, some of them twice, some absent.
        let mut rng = Rng::new(3);
        let numbers: Vec<usize> = (0..1_000).map(|_| rng.below(420) as usize).collect();
        let values = block_on(store.multi_get(numbers.iter().map(|&number| key(number)))).unwrap();
        let expected = |number: usize| (number < 400 && number != 7).then(|| Bytes::from(value(number)));
        assert_eq!(values.len(), numbers.len());
        for (&number, value) in numbers.iter().zip(values) {
            assert_eq!(value, expected(number), "key {number}");
        }
        assert_eq!(block_on(store.multi_get::<&str>([])).unwrap(), []);
        let error = block_on(store.multi_get(["key-1", "", "key-2"])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let stats = store.stats();
        println!("{} gets, {} of them waited for the disk", stats.gets, stats.gets_from_disk);
        close(store.clone());
        assert_eq!(block_on(store.multi_get(["key-1"])).unwrap_err().kind(), ErrorKind::Closed);
    });
}
