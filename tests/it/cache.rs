//! The block cache: a store with a cache returns the same results as one without.

use std::fs;

use ringcask::{Compaction, Engine, ErrorKind, Store};

use crate::helpers::{
    Env, Model, Rng, assert_holds, block_on, child_env, close, delete, expect_success, files_with, for_each_backend,
    for_each_engine, get, is_child, open, put, rerun, rerun_traced, skip,
};

/// Gets every key once, in order.
#[track_caller]
fn get_all(store: &Store, model: &Model) {
    for (key, value) in model {
        assert!(get(store, key).as_deref() == Some(&value[..]), "{}", String::from_utf8_lossy(key));
    }
}

/// Gets every key until the cache is filled: one miss in 64 brings in its block, and so do some hits for another block.
#[track_caller]
fn warm_up(store: &Store, model: &Model) {
    (0..20).for_each(|_| get_all(store, model));
}

/// Gets a key until it comes from the cache.
#[track_caller]
fn get_cached(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
    let before = store.stats().gets_from_block_cache;
    let mut values = (0..200).map(|_| get(store, key));
    values.find(|_| store.stats().gets_from_block_cache > before).expect("one miss in 64 brings in its block")
}

fn fill(store: &Store, keys: u32, len: usize) -> Model {
    let mut model = Model::new();
    for number in 0..keys {
        let (key, value) = (format!("key {number:06}").into_bytes(), vec![number as u8; len]);
        put(store, &key, &value);
        model.insert(key, value);
    }
    block_on(store.sync()).unwrap();
    model
}

#[test]
fn frequently_read_values_come_from_the_cache() {
    for_each_engine(|env| {
        let store = open(env.builder().cache_bytes(4 << 20));
        let model = fill(&store, 500, 200);
        assert_eq!(store.stats().cache_held_bytes, 0, "writes fill the cache");
        warm_up(&store, &model);
        let before = store.stats();
        assert!((32 << 10..4 << 20).contains(&before.cache_held_bytes), "{}", before.cache_held_bytes);
        get_all(&store, &model);
        let after = store.stats();
        let hits = after.gets_from_block_cache - before.gets_from_block_cache;
        // 500 records of 250 bytes fill seven whole blocks and part of another.
        assert!((430..500).contains(&hits), "{hits} of 500");
        assert_eq!(after.gets - before.gets, 500);
        let (keys, before) = (model.keys().take(100), after);
        let values = block_on(store.multi_get(keys)).unwrap();
        assert!(values.iter().zip(model.values()).all(|(found, value)| found.as_deref() == Some(&value[..])));
        assert!(
            store.stats().gets_from_block_cache - before.gets_from_block_cache >= 90,
            "multi_get does not use the cache"
        );
        close(store);
    });
}

#[test]
fn values_of_every_length_are_right_across_block_boundaries() {
    for_each_engine(|env| {
        let store = open(env.builder().cache_bytes(64 << 20));
        let mut model = Model::new();
        for (number, len) in
            [0, 1, 100, 5000, 16_000, 16_384, 20_000, 32_000, 33_000, 50_000, 200_000].iter().enumerate()
        {
            for copy in 0..7_u8 {
                let (key, value) = (format!("{number} {copy}").into_bytes(), vec![copy ^ number as u8; *len]);
                put(&store, &key, &value);
                model.insert(key, value);
            }
        }
        warm_up(&store, &model);
        let before = store.stats().gets_from_block_cache;
        get_all(&store, &model);
        let hits = store.stats().gets_from_block_cache - before;
        // The first eight of the eleven lengths fit into three blocks at any offset.
        assert!((50..=63).contains(&hits), "{hits} of 77");
        close(store);
    });
}

/// Overwrites, deletes, rotations, compactions and reopens with a cache of a few blocks.
#[test]
fn a_store_with_a_tiny_cache_matches_the_model() {
    for_each_backend(|env| {
        let mut rng = Rng::seeded("tiny cache");
        let (mut model, mut hits) = (Model::new(), 0);
        for life in 0..4 {
            let compaction = Compaction::new().automatic(life % 2 == 0).bytes_per_second(None);
            let builder = env.builder().segment_bytes(8 << 10).cache_bytes([4 << 10, 16 << 10][life % 2]);
            let store = open(builder.compaction(compaction));
            assert_holds(&store, &model);
            for step in 0..600 {
                let key = format!("key {}", rng.below(60)).into_bytes();
                match rng.below(10) {
                    0..3 => {
                        let value = vec![step as u8; rng.below(400) as usize];
                        put(&store, &key, &value);
                        model.insert(key, value);
                    }
                    3 => assert_eq!(delete(&store, &key), model.remove(&key).is_some()),
                    _ => assert_eq!(get(&store, &key), model.get(&key).cloned(), "step {step}"),
                }
                if step % 200 == 199 {
                    warm_up(&store, &model);
                    block_on(store.compact()).unwrap();
                    assert_holds(&store, &model);
                }
            }
            let stats = store.stats();
            assert!(stats.cache_held_bytes <= 16 << 10, "{stats:?}");
            hits += stats.gets_from_block_cache;
            close(store);
        }
        // Simulated reads are sometimes short or interrupted, and then most misses bring in no block for a while.
        let least = if env.engine_name() == "sim" { 10 } else { 100 };
        assert!(hits > least, "{hits}");
    });
}

/// Cached values are right although the file is damaged. Other values are errors that name the position of the damage.
#[test]
fn a_damaged_file_under_a_cache_never_gives_a_wrong_value() {
    for_each_engine(|env| {
        let store = open(env.builder().segment_bytes(64 << 10).cache_bytes(64 << 10));
        let model = fill(&store, 1000, 100);
        warm_up(&store, &model);
        for path in files_with(&env.path(), "seg") {
            let mut bytes = fs::read(&path).unwrap();
            // Damage every byte of every second 512 bytes behind the header.
            for (offset, byte) in bytes.iter_mut().enumerate().skip(512) {
                *byte ^= u8::from(offset / 512 % 2 == 0);
            }
            use std::os::unix::fs::FileExt;
            fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
        }
        let (mut right, mut refused) = (0, 0);
        for _ in 0..3 {
            for (key, value) in &model {
                match block_on(store.get(key)) {
                    Ok(found) => {
                        assert_eq!(found.as_deref(), Some(&value[..]));
                        right += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                        assert!(error.segment().is_some() && error.offset().is_some(), "{error:?}");
                        refused += 1;
                    }
                }
            }
        }
        println!("{right} right, {refused} refused");
        assert!(right > 300 && refused > 1000);
    });
}

/// After a damaged block was cached, a get reads the record from the file, which has been repaired.
#[test]
fn damage_in_a_cached_block_is_not_an_error_if_the_file_is_intact() {
    for_each_engine(|env| {
        let store = open(env.builder().cache_bytes(1 << 20));
        let model = fill(&store, 200, 200);
        let path = files_with(&env.path(), "seg").remove(0);
        let pristine = fs::read(&path).unwrap();
        let write = |bytes: &[u8]| {
            use std::os::unix::fs::FileExt;
            fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(bytes, 0).unwrap();
        };
        // One record is damaged. Reading its neighbour caches the block that contains both.
        let (damaged, neighbour) = (b"key 000010".as_slice(), b"key 000012".as_slice());
        let mut bytes = pristine.clone();
        let at = bytes.windows(damaged.len()).position(|window| window == damaged).unwrap() + 50;
        bytes[at] ^= 1;
        write(&bytes);
        assert_eq!(get_cached(&store, neighbour).as_ref(), model.get(neighbour));
        assert_eq!(block_on(store.get(damaged)).unwrap_err().kind(), ErrorKind::Corrupt, "the file is damaged as well");
        assert_eq!(get_cached(&store, neighbour).as_ref(), model.get(neighbour), "the damaged block is cached again");
        write(&pristine);
        assert_eq!(get(&store, damaged).as_ref(), model.get(damaged), "the file is repaired");
        assert_eq!(get_cached(&store, damaged).as_ref(), model.get(damaged), "the repaired block is cached");
        close(store);
    });
}

#[test]
fn reads_during_writes_rotation_and_compaction_return_right_values() {
    for_each_engine(|env| {
        let compaction = Compaction::new().bytes_per_second(None).trigger(0.1).threshold(0.05);
        let store = open(env.builder().segment_bytes(32 << 10).cache_bytes(24 << 10).compaction(compaction));
        let value = |key: u32, round: u32| [key.to_le_bytes(), round.to_le_bytes()].concat().repeat(20);
        for key in 0..300_u32 {
            put(&store, key.to_le_bytes(), value(key, 0));
        }
        std::thread::scope(|scope| {
            for reader in 0..3_u32 {
                let store = &store;
                scope.spawn(move || {
                    let mut newest = vec![0; 300];
                    for turn in 0..12_000_u32 {
                        let key = turn.wrapping_mul(7919 + 2 * reader) % 300;
                        let found = get(store, key.to_le_bytes()).unwrap();
                        let round = u32::from_le_bytes(found[4..8].try_into().unwrap());
                        assert_eq!(found, value(key, round));
                        assert!(round >= newest[key as usize], "key {key} went back to {round}");
                        newest[key as usize] = round;
                    }
                });
            }
            for round in 1..6 {
                for key in (0..300_u32).filter(|key| key % 3 != round % 3) {
                    put(&store, key.to_le_bytes(), value(key, round));
                }
            }
        });
        let stats = store.stats();
        assert!(stats.gets_from_block_cache > 1000, "{stats:?}");
        close(store);
    });
}

#[test]
fn a_cache_out_of_range_is_refused_with_its_range() {
    let env = Env::new(Engine::Threads);
    for bytes in [1, 1023, (1 << 40) + 1, u64::MAX] {
        let error = block_on(env.builder().cache_bytes(bytes).open()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let text = error.to_string();
        assert!(text.contains("cache_bytes") && text.contains(&bytes.to_string()), "{text}");
    }
    for bytes in [0, 1024, 1 << 40] {
        close(open(env.builder().cache_bytes(bytes)));
    }
}

#[test]
fn a_cache_without_address_space_is_refused_before_the_directory_changes() {
    const NAME: &str = "cache::a_cache_without_address_space_is_refused_before_the_directory_changes";
    const CACHE_BYTES: u64 = 1 << 38;
    if is_child() {
        let (engine, path) = child_env();
        let maximum = rustix::process::getrlimit(rustix::process::Resource::As).maximum;
        let limit = rustix::process::Rlimit { current: Some(1 << 37), maximum };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
        let path = path.join("store");
        let builder = || Store::builder(&path).engine(engine);
        let error = block_on(builder().cache_bytes(CACHE_BYTES).open()).unwrap_err();
        assert_eq!((error.kind(), error.os_error()), (ErrorKind::Io, Some(libc::ENOMEM)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("cache_bytes") && text.contains(&CACHE_BYTES.to_string()), "{text}");
        assert!(!path.exists(), "the refused open created the directory");
        return close(open(builder().cache_bytes(1 << 20)));
    }
    for_each_engine(|env: &Env| {
        expect_success(rerun(NAME, env));
    });
}

#[test]
fn strace_sees_no_system_call_in_a_get_from_the_cache() {
    const NAME: &str = "cache::strace_sees_no_system_call_in_a_get_from_the_cache";
    if is_child() {
        let (engine, path) = child_env();
        let store = open(Store::builder(&path).engine(engine).cache_bytes(4 << 20));
        let model = fill(&store, 500, 200);
        let keys: Vec<_> = model.keys().take(300).collect();
        let read = || keys.iter().for_each(|key| assert!(get(&store, key).is_some()));
        (0..20).for_each(|_| read());
        let _ = fs::File::open("/ringcask-begin");
        read();
        let _ = fs::File::open("/ringcask-end");
        assert!(store.stats().gets_from_block_cache >= 300);
        return close(store);
    }
    if !std::process::Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        return skip("system calls", "strace is not installed");
    }
    let env = Env::new(Engine::Threads);
    let trace = env.dir.path().join("trace");
    expect_success(rerun_traced(
        NAME,
        &env,
        &["-f", "-y", "-o", trace.to_str().unwrap(), "-e", "trace=openat,preadv2,pread64"],
    ));
    let trace = fs::read_to_string(&trace).unwrap();
    let read = trace.split_once("/ringcask-begin").unwrap().1.split_once("/ringcask-end").unwrap().0;
    let reads = |text: &str| text.lines().filter(|line| line.contains("pread")).count();
    assert!(reads(&trace) >= 300 / 60, "the first reads must fill the cache");
    assert_eq!(reads(read), 0, "{read}");
}
