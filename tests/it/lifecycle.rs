//! Opening, closing, dropping, locking and forking: the guarantees of a handle over its lifetime.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use ringcask::{Batch, Builder, Durability, ErrorKind, Outcome, Store};

use crate::bad_input::open_error;
use crate::helpers::{
    LEVELS, Model, assert_holds, block_on, child_env, close, delete, eventually, expect_success, for_each_backend,
    for_each_engine, get, is_child, open, poll_once, print_report, put, put_at, rerun,
};

#[test]
fn close_is_idempotent_and_later_calls_are_refused() {
    for_each_backend(|env| {
        let store = env.open();
        let clone = store.clone();
        let version = put(&store, "k", "v");
        for _ in 0..3 {
            block_on(store.close()).unwrap();
            block_on(clone.close()).unwrap();
        }
        let mut batch = Batch::new();
        batch.put("a", "1");
        let mut refused = vec![
            block_on(clone.get("k")).map(drop),
            block_on(store.get("absent")).map(drop),
            block_on(store.put("k", "w")).map(drop),
            block_on(store.put_bytes("k", "w".into())).map(drop),
            block_on(store.delete("k")).map(drop),
            block_on(store.write(batch)).map(drop),
            block_on(store.sync()).map(drop),
        ];
        refused.extend(LEVELS.map(|level| block_on(store.put("k", "w").durability(level)).map(drop)));
        for (index, result) in refused.into_iter().enumerate() {
            let error = result.expect_err("the call on a closed store succeeded");
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Outcome::NotApplied), "call {index}");
        }
        // Getters still work and do not panic.
        assert!(store.durable_version() >= version);
        assert_eq!(store.path(), env.path());
        let _ = (store.stats(), store.recovery_report(), store.len(), store.contains_key("k"), store.value_len("k"));
        drop(store);
        let reopened = env.open();
        assert_eq!(get(&reopened, "k").as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn several_tasks_can_close_a_store_at_once() {
    for_each_engine(|env| {
        for round in 0..20_u32 {
            let store = env.open();
            put_at(&store, Durability::Buffered, round.to_le_bytes(), "v");
            let closers: Vec<_> = (0..8).map(|_| store.clone()).collect();
            drop(store);
            thread::scope(|scope| {
                for closer in closers {
                    scope.spawn(move || block_on(closer.close()).unwrap());
                }
            });
            let store = env.open();
            assert_eq!(store.len(), round as usize + 1);
            close(store);
        }
    });
}

#[test]
fn a_close_during_writes_resolves_them_and_keeps_the_acknowledged_ones() {
    for_each_engine(|env| {
        let (mut acknowledged, mut closed) = (0, 0);
        for round in 0..10 {
            let path = env.dir.path().join(format!("round-{round}"));
            let store = open(env.builder_at(&path).segment_bytes(64 << 10));
            let started = Arc::new(AtomicU64::new(0));
            let writers: Vec<_> = (0..6_u32)
                .map(|writer| {
                    let (store, started) = (store.clone(), started.clone());
                    thread::spawn(move || write_until_closed(&store, writer, &started))
                })
                .collect();
            eventually("the writers have started", || started.load(Ordering::Relaxed) > 100 + 30 * round);
            block_on(store.close()).unwrap();
            let outcomes: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
            drop(store);
            let store = open(env.builder_at(&path));
            for (key, applied) in outcomes {
                assert_eq!(get(&store, key.as_bytes()).is_some(), applied, "{key}");
                acknowledged += u64::from(applied);
                closed += u64::from(!applied);
            }
            assert!(get(&store, "0-0").is_some());
            close(store);
        }
        println!("{acknowledged} acknowledged, {closed} refused with Closed");
        assert!(acknowledged > 1000 && closed == 60, "{acknowledged}, {closed}");
    });
}

/// Writes until the store is closed. Returns the keys, each with whether its write was acknowledged; the last one was
/// refused.
fn write_until_closed(store: &Store, writer: u32, started: &AtomicU64) -> Vec<(String, bool)> {
    let mut outcomes = Vec::new();
    for index in 0_usize.. {
        let key = format!("{writer}-{index}");
        started.fetch_add(1, Ordering::Relaxed);
        match block_on(store.put(&key, vec![1; 100]).durability(LEVELS[(writer as usize + index) % 3])) {
            Ok(_) => outcomes.push((key, true)),
            Err(error) => {
                assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Outcome::NotApplied), "{error:?}");
                outcomes.push((key, false));
                break;
            }
        }
    }
    outcomes
}

#[test]
fn dropping_the_last_handle_writes_buffered_data_without_a_runtime() {
    for_each_backend(|env| {
        let hour = Duration::from_secs(60);
        let mut model = Model::new();
        for round in 0..10_u32 {
            let store = open(env.builder().flush_interval(hour).sync_interval(hour));
            assert_holds(&store, &model);
            for index in 0..50_u32 {
                let key = [round.to_le_bytes(), index.to_le_bytes()].concat();
                put_at(&store, Durability::Buffered, &key, "v");
                model.insert(key, b"v".to_vec());
            }
            let clone = store.clone();
            drop(store);
            assert!(clone.len() == model.len(), "number of keys");
            drop(clone);
        }
        let store = env.open();
        assert_holds(&store, &model);
        assert_eq!(
            store.recovery_report().segments_scanned,
            0,
            "the drop did not seal the segment or write its hint file"
        );
    });
}

#[test]
fn a_pending_write_outlives_the_last_handle() {
    for_each_backend(|env| {
        for level in LEVELS {
            let path = env.dir.path().join(level.to_string());
            let store = open(env.builder_at(&path));
            // With a segment to go to, a write is accepted in its first poll.
            put(&store, "segment", "exists");
            let mut write = store.put("k", "v").durability(level);
            let polled = poll_once(&mut write);
            drop(store);
            match polled {
                Poll::Pending => drop(block_on(write).unwrap()),
                Poll::Ready(result) => drop((result.unwrap(), write)),
            }
            let store = open(env.builder_at(&path));
            assert_eq!(get(&store, "k").as_deref(), Some(&b"v"[..]), "{level}");
        }
    });
}

#[test]
fn a_second_open_is_refused_until_the_first_store_is_gone() {
    const NAME: &str = "lifecycle::a_second_open_is_refused_until_the_first_store_is_gone";
    if is_child() {
        let (engine, path) = child_env();
        let error = open_error(Store::builder(path).engine(engine));
        return assert_eq!(error.kind(), ErrorKind::Locked, "{error:?}");
    }
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        let link = env.dir.path().join("link");
        symlink(env.path(), &link).unwrap();
        let detour = env.dir.path().join("store/../store/.");
        for path in [env.path(), link.clone(), detour.clone()] {
            let error = open_error(env.builder_at(&path));
            assert_eq!(error.kind(), ErrorKind::Locked, "{error:?}");
            assert!(error.to_string().contains("store") || error.to_string().contains("link"), "{error}");
        }
        expect_success(rerun(NAME, env));
        put(&store, "k", "still held");
        let clone = store.clone();
        drop(store);
        assert_eq!(open_error(env.builder()).kind(), ErrorKind::Locked, "the clone does not hold the lock");
        drop(clone);
        // The lock is released at once.
        for path in [env.path(), link, detour] {
            let store = open(env.builder_at(path));
            assert_eq!(get(&store, "k").as_deref(), Some(&b"still held"[..]));
            close(store.clone());
            close(open(env.builder()));
            drop(store);
        }
    });
}

/// The message of the error that a second open returns.
fn locked(builder: Builder) -> String {
    let error = open_error(builder);
    assert_eq!(error.kind(), ErrorKind::Locked, "{error:?}");
    error.to_string()
}

#[test]
fn a_locked_error_names_the_process_that_has_the_store_open() {
    const NAME: &str = "lifecycle::a_locked_error_names_the_process_that_has_the_store_open";
    if is_child() {
        let (engine, path) = child_env();
        let message = locked(Store::builder(path).engine(engine));
        let parent = std::os::unix::process::parent_id();
        return assert!(
            message.starts_with(&format!("open: another handle, in process {parent}, has the store open in ")),
            "{message}"
        );
    }
    for_each_engine(|env| {
        let store = env.open();
        let pid = fs::read_to_string(env.path().join("LOCK")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        let message = locked(env.builder());
        assert!(message.starts_with("open: another handle, in this process, has the store open in "), "{message}");
        expect_success(rerun(NAME, env));

        let contents: [&[u8]; 9] = [
            b"",
            b"\n",
            b"12",
            b"+12\n",
            b"12x\n",
            b" 12\n",
            b"99999999999999999999\n",
            b"\xFF\x00\n",
            &[b'7'; 10_000],
        ];
        for content in contents {
            fs::write(env.path().join("LOCK"), content).unwrap();
            let message = locked(env.builder());
            assert!(message.starts_with("open: another handle has the store open in "), "{message}");
        }
        fs::write(env.path().join("LOCK"), "12\n3456789").unwrap();
        assert!(locked(env.builder()).starts_with("open: another handle, in process 12, has the store open in "));
        close(store);
        // The next holder replaces the content.
        close(env.open());
        assert_eq!(fs::read_to_string(env.path().join("LOCK")).unwrap(), pid);
    });
}

#[test]
fn an_unreadable_lock_file_still_locks_the_directory() {
    const NAME: &str = "lifecycle::an_unreadable_lock_file_still_locks_the_directory";
    const NOBODY: u32 = 65_534;
    if is_child() {
        let (engine, path) = child_env();
        // Permissions do not apply to root. The store's threads inherit the user of the thread that starts them.
        if rustix::process::geteuid().is_root() {
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(NOBODY)).unwrap();
        }
        let lock = path.join("LOCK");
        let builder = || Store::builder(&path).engine(engine);
        let store = open(builder());
        assert!(locked(builder()).contains(", in this process, "));
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o200)).unwrap();
        assert_eq!(fs::read(&lock).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        assert!(locked(builder()).starts_with("open: another handle has the store open in "));
        close(store);
        // Write permission is enough to take the lock.
        return close(open(builder()));
    }
    for_each_engine(|env| {
        if rustix::process::geteuid().is_root() {
            chown(env.dir.path(), Some(NOBODY), None).unwrap();
        }
        expect_success(rerun(NAME, env));
    });
}

#[test]
fn a_store_can_be_reopened_right_after_close_and_after_drop() {
    for_each_backend(|env| {
        for round in 0..60_u32 {
            let store = env.open();
            assert_eq!(store.len(), round as usize);
            put_at(&store, LEVELS[round as usize % 3], round.to_le_bytes(), "v");
            if round % 2 == 0 {
                close(store);
            }
        }
        assert_eq!(env.open().len(), 60);
    });
}

#[test]
fn a_failed_open_releases_the_lock() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        close(store);
        let manifest = fs::read(env.path().join("MANIFEST")).unwrap();
        for _ in 0..10 {
            fs::write(env.path().join("MANIFEST"), "damaged").unwrap();
            assert_eq!(open_error(env.builder()).kind(), ErrorKind::Corrupt);
            fs::write(env.path().join("MANIFEST"), &manifest).unwrap();
            assert_eq!(get(&env.open(), "k").as_deref(), Some(&b"v"[..]));
        }
    });
}

#[test]
fn calls_in_a_forked_child_are_refused_and_do_no_harm() {
    const NAME: &str = "lifecycle::calls_in_a_forked_child_are_refused_and_do_no_harm";
    if is_child() {
        return fork_with_an_open_store();
    }
    for_each_engine(|env| {
        expect_success(rerun(NAME, env));
        let store = env.open();
        assert_eq!(store.len(), 3);
    });
}

fn fork_with_an_open_store() {
    let (engine, path) = child_env();
    let store = open(Store::builder(&path).engine(engine));
    put(&store, "before", "v");
    put_at(&store, Durability::Buffered, "buffered", "v");
    let mut submitted = store.put("before", "v").submit().unwrap();
    // The child only polls futures of the handle. It exits without running destructors of the parent's threads.
    let status = crate::helpers::fork::in_child(|| {
        let refused = |poll: Poll<ringcask::Result<()>>| match poll {
            Poll::Ready(Err(error)) => error.kind() == ErrorKind::Forked,
            _ => false,
        };
        let mut checks = vec![
            refused(poll_once(&mut store.get("before")).map_ok(drop)),
            refused(poll_once(&mut store.delete("before")).map_ok(drop)),
            refused(poll_once(&mut store.sync()).map_ok(drop)),
            refused(poll_once(&mut submitted).map_ok(drop)),
            refused(Poll::Ready(store.put("child", "v").submit().map(drop))),
        ];
        for level in LEVELS {
            checks.push(refused(poll_once(&mut store.put("child", "v").durability(level)).map_ok(drop)));
        }
        drop(store.clone());
        i32::from(checks.contains(&false))
    });
    assert_eq!(status, 0, "an operation in the forked child was not refused");
    block_on(submitted).unwrap();
    put(&store, "after", "v");
    assert!(!store.contains_key("child"));
    close(store);
}

struct PanickingWaker(AtomicBool);

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
        panic!("a waker that panics, on purpose");
    }
}

#[test]
fn a_panicking_waker_does_not_harm_the_store() {
    for_each_engine(|env| {
        let store = env.open();
        put(&store, "k", "v");
        for round in 0..20_u32 {
            let panicking = Arc::new(PanickingWaker(AtomicBool::new(false)));
            let waker = Waker::from(panicking.clone());
            let mut cx = Context::from_waker(&waker);
            let mut write = store.put(round.to_le_bytes(), "v");
            let mut neighbour = store.put([round.to_le_bytes(), round.to_le_bytes()].concat(), "v");
            let polled = std::pin::Pin::new(&mut write).poll(&mut cx);
            block_on(&mut neighbour).unwrap();
            if polled.is_pending() {
                eventually("the panicking waker is called", || panicking.0.load(Ordering::Acquire));
                block_on(write).unwrap();
            }
            let mut sync = store.sync();
            if std::pin::Pin::new(&mut sync).poll(&mut cx).is_pending() {
                block_on(sync).unwrap();
            }
            assert!(store.contains_key(round.to_le_bytes()));
            assert!(!store.stats().poisoned);
        }
        close(store);
        assert_eq!(env.open().len(), 41);
    });
}

#[test]
fn all_descriptors_and_threads_are_released() {
    const NAME: &str = "lifecycle::all_descriptors_and_threads_are_released";
    if is_child() {
        return compare_counts_over_fifty_cycles();
    }
    for_each_engine(|env| print_report(&expect_success(rerun(NAME, env))));
}

fn compare_counts_over_fifty_cycles() {
    let (engine, path) = child_env();
    let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let cycle = |round: u32| {
        let store = open(Store::builder(&path).engine(engine).segment_bytes(4 << 10).max_open_files(8));
        for index in 0..20_u32 {
            put_at(&store, LEVELS[index as usize % 3], index.to_le_bytes(), [round as u8; 500]);
        }
        for index in 0..20_u32 {
            assert_eq!(get(&store, index.to_le_bytes()).as_deref(), Some(&[round as u8; 500][..]));
        }
        match round % 3 {
            0 => close(store),
            1 => drop(store),
            _ => drop((block_on(store.close()), open_error(Store::builder("/dev/null").engine(engine)))),
        }
    };
    cycle(0);
    // The threads of a closed store and the kernel's workers of a closed ring end a moment later.
    let calm = |what: &str| {
        let (mut last, mut since) = (count(what), 0);
        eventually("the count is stable", || {
            let now = count(what);
            since = if now == last { since + 1 } else { 0 };
            last = now;
            since > 50
        });
        last
    };
    let (threads, descriptors) = (calm("task"), calm("fd"));
    (1..=50).for_each(cycle);
    eventually("as many threads as before", || count("task") <= threads);
    eventually("as many descriptors as before", || count("fd") <= descriptors);
    println!("50 cycles: {descriptors} descriptors, {threads} threads before and after");
}

#[test]
fn a_store_can_be_dropped_in_a_runtime_worker() {
    for_each_engine(|env| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        for round in 0..10_u32 {
            let builder = env.builder();
            runtime.block_on(async move {
                let store = builder.open().await.unwrap();
                store.put(round.to_le_bytes(), "v").durability(Durability::Buffered).await.unwrap();
                let other = store.clone();
                let task = tokio::spawn(async move {
                    other.put(b"spawned", "v").await.unwrap();
                    drop(other);
                });
                drop(store);
                task.await.unwrap();
            });
        }
        runtime.shutdown_background();
        assert_eq!(env.open().len(), 11);
    });
}

#[test]
fn a_runtime_shutdown_under_load_loses_no_acknowledged_write() {
    for_each_engine(|env| {
        let mut acknowledged_in_all = 0;
        for round in 0..6_u64 {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
            let store = env.open();
            let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
            for task in 0..32_u64 {
                let (store, acknowledged) = (store.clone(), acknowledged.clone());
                runtime.spawn(async move {
                    for index in 0_u64.. {
                        let key = [round.to_le_bytes(), task.to_le_bytes(), index.to_le_bytes()].concat();
                        store.put(&key, &key).durability(LEVELS[(task % 3) as usize]).await.unwrap();
                        acknowledged.lock().unwrap().push(key);
                        tokio::task::yield_now().await;
                    }
                });
            }
            eventually("the tasks have started", || acknowledged.lock().unwrap().len() as u64 > 500 + 100 * round);
            drop(store);
            // Drops every task at its next await, with writes in flight. The last task drops the store.
            drop(runtime);
            let store = env.open();
            let acknowledged = acknowledged.lock().unwrap();
            for key in acknowledged.iter() {
                assert_eq!(get(&store, key).as_ref(), Some(key));
            }
            acknowledged_in_all += acknowledged.len();
            close(store);
        }
        println!("{acknowledged_in_all} writes acknowledged before six shutdowns");
    });
}

#[test]
fn deleted_keys_stay_deleted_through_many_reopens() {
    for_each_backend(|env| {
        for round in 0..12_u32 {
            let store = open(env.builder().segment_bytes(2 << 10));
            for index in 0..20_u32 {
                assert!(!store.contains_key(index.to_le_bytes()), "round {round}");
                put_at(&store, LEVELS[index as usize % 3], index.to_le_bytes(), [1; 100]);
            }
            for index in 0..20_u32 {
                assert!(delete(&store, index.to_le_bytes()));
            }
            close(store);
        }
    });
}
