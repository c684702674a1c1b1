//! Faults, scheduling, time, and the contract of files and directories.

use super::*;

#[test]
fn a_lock_has_one_holder_and_none_after_a_crash() {
    let lab = seeded(18);
    let held = lab.dir.lock("LOCK").unwrap();
    assert!(held.is_some() && lab.dir.lock("LOCK").unwrap().is_none());
    lab.dir.sync().unwrap();
    let image = lab.world.image();
    let next = SimBackend::from_image(image, SimConfig::default());
    assert!(next.open_dir(DB.as_ref(), false).unwrap().lock("LOCK").unwrap().is_some());
    drop(held);
    assert!(lab.dir.lock("LOCK").unwrap().is_some());
}

#[test]
fn faults_hit_the_scheduled_operations() {
    let lab = seeded(19);
    let write = || lab.world.run_until(lab.file.write_at(vec![Bytes::from_static(b"abc")], 0)).map_err(|e| e.kind());
    lab.world.inject(Fault::once(OpClass::Write, 1, FaultKind::ENOSPC));
    lab.world.inject(Fault::once(OpClass::Write, 2, FaultKind::Short(2)));
    lab.world.inject(Fault::once(OpClass::Write, 3, FaultKind::Short(0)));
    let seen = [write(), write(), write(), write(), write()];
    assert_eq!(seen, [Ok(3), Err(io::ErrorKind::StorageFull), Ok(2), Ok(0), Ok(3)]);
    assert_eq!((lab.world.op_count(OpClass::Write), lab.world.fault_count()), (5, 3));
    lab.world.inject(Fault::sticky(OpClass::Any, 0, FaultKind::EIO));
    assert!(lab.file.len().is_err() && lab.dir.list().is_err() && lab.dir.sync().is_err());
    assert!(lab.dir.rename("f", "g").is_err() && lab.dir.unlink("f").is_err() && lab.file.truncate(0).is_err());
    assert!(lab.file.read_nowait(&mut [0; 3], 0).is_err() && lab.dir.open("f", OpenMode::Read).is_err());
    lab.world.heal();
    assert_eq!(lab.file.len().unwrap(), 3);
    lab.world.inject(Fault::sticky(OpClass::Read, 0, FaultKind::BitFlip));
    let flipped = lab.read(3);
    let bits: u32 = flipped.iter().zip(b"abc").map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!(bits, 1, "{flipped:?}");
    lab.world.heal();
    assert_eq!(lab.read(3), b"abc");
    let (steps, reads) = (lab.world.step(), lab.world.op_count(OpClass::Read));
    lab.world.inject(Fault::once(OpClass::Read, reads, FaultKind::EIO));
    lab.file.start_writeback(0, 3);
    assert!(lab.world.run_until(lab.file.read_once(vec![0; 3], 0, 0)).result.is_err());
    assert_eq!(lab.world.run_until(lab.file.read_once(vec![0; 3], 0, 0)).buf, b"abc");
    assert_eq!(lab.world.op_count(OpClass::Read) - reads, 2, "read_once counts as a read");
    assert_eq!(lab.world.step(), steps, "nothing was written");
}

#[test]
fn util_loops_handle_short_and_interrupted_operations() {
    let mut ops = 0;
    for seed in 0..30 {
        let lab = lab(SimConfig { seed, short_percent: 60, interrupt_percent: 20, ..SimConfig::default() });
        let data: Vec<u8> = (0..=255).cycle().take(3_000).collect();
        let bufs = vec![Bytes::copy_from_slice(&data[..1_700]), Bytes::copy_from_slice(&data[1_700..])];
        lab.world.run_until(util::write_all(&*lab.file, bufs, 0)).unwrap();
        assert_eq!(lab.read(4_000), data);
        let (read, filled) = lab.world.run_until(util::read_full_once(&*lab.file, vec![0; 3_500], 500, 0)).unwrap();
        assert_eq!((&read[500..], filled), (&data[..], 3_500));
        ops += lab.world.op_count(OpClass::Any);
    }
    assert!(ops > 30 * 6, "{ops} operations: too few were short or interrupted");
}

#[test]
fn an_operation_completes_without_its_future() {
    let lab = seeded(20);
    drop(lab.file.write_at(vec![Bytes::from_static(b"orphan")], 0));
    let mut polled = lab.file.write_at(vec![Bytes::from_static(b"!")], 6);
    assert!(polled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(polled);
    drop(lab.file.read_at(vec![0; 10], 0, 0));
    lab.world.run_to_idle(Duration::ZERO);
    assert_eq!(lab.read(10), b"orphan!");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let lab = lab(SimConfig { seed, short_percent: 20, ..SimConfig::default() });
        for task in 0..4_u64 {
            let (file, world) = (lab.file.clone(), lab.world.clone());
            let job = async move {
                for round in 0..5_u8 {
                    world.sleep(Duration::from_micros(50 * (task + 1))).await;
                    util::write_all(&*file, vec![vec![round ^ u8::try_from(task).unwrap(); 100].into()], task * 50)
                        .await
                        .unwrap();
                    file.sync(SyncKind::Data).await.unwrap();
                }
            };
            lab.world.spawn("writer", Priority::Foreground, Box::pin(job)).unwrap();
        }
        lab.world.run_to_idle(Duration::from_secs(1));
        assert_eq!(lab.world.panics(), Vec::<String>::new());
        (lab.world.trace_hash(), lab.world.image().hash(), format!("{:?}", lab.world.journal()))
    };
    let traces: BTreeSet<_> = (0..20).map(|seed| (run(seed).0, run(seed) == run(seed))).collect();
    assert!(traces.iter().all(|(_, same)| *same));
    assert_eq!(traces.len(), 20, "each seed gives a different run");
    assert!((0..20).map(|seed| run(seed).1).collect::<BTreeSet<_>>().len() > 1, "seeds leave different disks");
}

#[test]
fn time_jumps_to_the_next_timer_when_nothing_else_is_possible() {
    let world = SimBackend::new(SimConfig::default());
    let before = world.wall_clock();
    world.run_until(async {
        world.sleep(Duration::from_secs(3600)).await;
        let late = world.now();
        assert!(late >= Duration::from_secs(3600) && late < Duration::from_secs(3601), "{late:?}");
        world.sleep(Duration::from_millis(5)).await;
        assert!(world.now() - late >= Duration::from_millis(5));
    });
    assert!(world.wall_clock().duration_since(before).unwrap() >= Duration::from_secs(3600));
    world.set_wall_clock(UNIX_EPOCH);
    assert!(world.wall_clock() < UNIX_EPOCH + Duration::from_secs(1));
}

#[test]
fn run_to_idle_runs_timers_within_the_limit() {
    let world = SimBackend::new(SimConfig::default());
    let (ticks, task_world) = (Arc::new(AtomicUsize::new(0)), world.clone());
    let counter = ticks.clone();
    let clock = async move {
        loop {
            task_world.sleep(Duration::from_secs(1)).await;
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    world.spawn("clock", Priority::Foreground, Box::pin(clock)).unwrap();
    world.run_to_idle(Duration::from_millis(999));
    assert_eq!(ticks.load(Ordering::Relaxed), 0);
    world.run_to_idle(Duration::from_millis(10_500));
    assert_eq!(ticks.load(Ordering::Relaxed), 10);
    world.shutdown();
    assert_eq!(Arc::strong_count(&ticks), 1, "the task was dropped");
}

#[test]
fn a_panic_ends_its_task_and_is_reported() {
    let world = SimBackend::new(SimConfig::default());
    world.spawn("bad", Priority::Foreground, Box::pin(async { panic!("on purpose") })).unwrap();
    world.run_until(world.sleep(Duration::from_secs(1)));
    assert_eq!(world.panics(), ["task bad: on purpose"]);
}

#[test]
#[should_panic(expected = "deadlock: seed 0")]
fn a_deadlock_is_reported() {
    SimBackend::new(SimConfig::default()).run_until(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "spinning: seed 0")]
fn endless_wake_ups_are_reported() {
    let yields = std::future::poll_fn::<(), _>(|cx| {
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    SimBackend::new(SimConfig::default()).run_until(yields);
}

#[test]
#[should_panic(expected = "spinning: seed 0")]
fn endless_retries_are_reported() {
    let lab = seeded(0);
    lab.world.inject(Fault::sticky(OpClass::Sync, 0, FaultKind::EIO));
    let file = lab.file.clone();
    let retries = async move { while file.sync(SyncKind::Data).await.is_err() {} };
    lab.world.spawn("stubborn", Priority::Foreground, Box::pin(retries)).unwrap();
    lab.world.run_until(std::future::pending::<()>());
}

#[test]
fn without_power_everything_fails_and_nothing_changes() {
    let lab = seeded(21);
    let write = lab.file.write_at(vec![Bytes::from_static(b"abc")], 0);
    let steps = lab.world.step();
    lab.world.shutdown();
    assert!(lab.world.run_until(write).is_err());
    assert!(lab.world.run_until(lab.file.sync(SyncKind::All)).is_err());
    assert!(lab.world.run_until(lab.file.read_at(vec![0; 3], 0, 0)).result.is_err());
    assert!(lab.dir.list().is_err() && lab.file.truncate(0).is_err() && lab.world.open_dir(DB.as_ref(), true).is_err());
    assert!(lab.world.spawn("late", Priority::Foreground, Box::pin(async {})).is_err());
    assert_eq!(lab.world.step(), steps);
}

#[test]
fn block_until_runs_tasks_from_outside_and_returns_inside_one() {
    let world = SimBackend::new(SimConfig::default());
    let done = Arc::new(AtomicUsize::new(0));
    let (task_world, task_done) = (world.clone(), done.clone());
    let task = async move {
        task_world.sleep(Duration::from_secs(1)).await;
        task_world.block_until(&|| false);
        task_done.store(1, Ordering::Relaxed);
    };
    world.spawn("task", Priority::Foreground, Box::pin(task)).unwrap();
    world.block_until(&|| done.load(Ordering::Relaxed) == 1);
    assert_eq!(done.load(Ordering::Relaxed), 1);
    let asked = Cell::new(0);
    world.block_until(&|| {
        asked.set(asked.get() + 1);
        false
    });
    assert_eq!(asked.get(), 1, "nothing more happens");
}

#[test]
fn directories_follow_the_contract() {
    let mut image = Image::new();
    image.insert(DB, "b", *b"bytes");
    image.insert_other(DB, "a");
    image.insert("/db/sub", "c", *b"");
    let world = SimBackend::from_image(image, SimConfig::default());
    let dir = world.open_dir("/db/".as_ref(), false).unwrap();
    let list: Vec<_> = dir.list().unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
    let (file, other) = (EntryKind::File, EntryKind::Other);
    assert_eq!(list, [("a".to_owned(), other), ("b".to_owned(), file), ("sub".to_owned(), other)]);
    let kind = |result: io::Result<Arc<dyn File>>| result.unwrap_err().kind();
    assert_eq!(kind(dir.open("a", OpenMode::Read)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(dir.open("x/y", OpenMode::CreateNew)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(dir.open("x", OpenMode::ReadWrite)), io::ErrorKind::NotFound);
    assert_eq!(kind(dir.open("b", OpenMode::CreateNew)), io::ErrorKind::AlreadyExists);
    assert_eq!(world.open_dir("/none".as_ref(), false).unwrap_err().kind(), io::ErrorKind::NotFound);
    let reader = dir.open("b", OpenMode::Read).unwrap();
    assert!(world.run_until(reader.write_at(vec![Bytes::from_static(b"x")], 0)).is_err());
    assert!(reader.truncate(0).is_err());
}

#[test]
fn cached_reads_hit_and_miss() {
    let lab = seeded(22);
    lab.write(0, *b"abc");
    let (mut hits, mut misses, mut buf) = (0, 0, [0; 3]);
    for _ in 0..200 {
        match lab.file.read_nowait(&mut buf, 0) {
            Ok(count) => {
                assert_eq!((count, buf), (3, *b"abc"));
                hits += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                misses += 1;
            }
        }
    }
    assert!(hits > 50 && misses > 20, "{hits} hits, {misses} misses");
}
