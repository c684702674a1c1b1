//! Tasks, timers and misbehaving wakers.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use ringcask::testing::io::{IoKind, OpFuture, OpenMode, Priority, ReadDone, SyncKind};

use crate::{Owner, PATIENCE, check_block, in_task, on_every_backend, wait};

#[test]
fn sleeps_end_in_order_and_not_early() {
    on_every_backend(|stage| {
        let ended = in_task(&stage, |io, dir| async move {
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            let start = io.now();
            let ended = Arc::new(Mutex::new(Vec::new()));
            drop(io.sleep(Duration::from_millis(1)));
            let never = io.sleep(Duration::MAX);
            let sleeps = [150u64, 50, 100, 50, 0].map(|ms| {
                let (io, ended) = (Arc::clone(&io), Arc::clone(&ended));
                let sleep = io.sleep(Duration::from_millis(ms));
                async move {
                    sleep.await;
                    assert!(io.now() - start >= Duration::from_millis(ms), "a sleep of {ms} ms ended early");
                    ended.lock().unwrap().push(ms);
                }
            });
            // Once with nothing in flight and once with I/O in flight: the engine sleeps in two ways.
            sleeps.into_iter().collect::<FuturesUnordered<_>>().collect::<Vec<()>>().await;
            let deadline = io.now() + Duration::from_millis(30);
            let mut sleep = io.sleep(Duration::from_millis(30));
            let mut syncs = 0;
            while poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx))).await.is_pending() {
                file.write_at(vec![Bytes::from_static(b"x")], 0).await.unwrap();
                file.sync(SyncKind::Data).await.unwrap();
                syncs += 1;
            }
            assert!(io.now() >= deadline && syncs > 0, "{syncs} syncs");
            drop(never);
            ended.lock().unwrap().clone()
        });
        assert_eq!(ended, [0, 50, 50, 100, 150]);
        let io = &stage.io;
        assert!(io.wall_clock() > std::time::UNIX_EPOCH);
        assert_ne!(io.random_u64().unwrap(), io.random_u64().unwrap());
    });
}

/// A counter that two threads increment alternately, with the waker of the thread whose turn it is not.
#[derive(Default)]
struct Ball {
    state: Mutex<(u32, Option<Waker>)>,
}

impl Ball {
    /// Increments the counter if it is this player's turn (`parity`).
    fn play(&self, parity: u32, cx: &mut Context<'_>) -> Poll<u32> {
        let mut state = self.state.lock().unwrap();
        if state.0 % 2 != parity {
            state.1 = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.0 += 1;
        let (count, other) = (state.0, state.1.take());
        drop(state);
        if let Some(other) = other {
            other.wake();
        }
        Poll::Ready(count)
    }
}

/// A lost wake-up makes this test hang. It runs with nothing in flight and with I/O in flight: the engine sleeps in two
/// ways.
#[test]
fn no_wake_up_from_a_foreign_thread_is_lost() {
    const ROUNDS: u32 = 20_000;
    on_every_backend(|stage| {
        for with_io in [false, true] {
            let ball = Arc::new(Ball::default());
            let task_ball = Arc::clone(&ball);
            let foreign = thread::spawn(move || while wait(poll_fn(|cx| ball.play(1, cx))) < ROUNDS {});
            let ops = in_task(&stage, |_, dir| async move {
                let name = if with_io { "busy" } else { "idle" };
                let file = dir.open(name, OpenMode::CreateNew).unwrap();
                let write = || file.write_at(vec![Bytes::from_static(b"x")], 0);
                let (mut ops, mut in_flight) = (0, with_io.then(write));
                poll_fn(|cx| {
                    while let Some(op) = &mut in_flight
                        && let Poll::Ready(result) = Pin::new(op).poll(cx)
                    {
                        result.unwrap();
                        ops += 1;
                        // Pauses every 64 operations, so that the thread sometimes sleeps in the kernel.
                        in_flight = Some(write());
                        if ops % 64 == 0 {
                            cx.waker().wake_by_ref();
                            break;
                        }
                    }
                    match task_ball.play(0, cx) {
                        Poll::Ready(count) if count >= ROUNDS - 1 => Poll::Ready(ops),
                        Poll::Ready(_) => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await
            });
            foreign.join().unwrap();
            println!("{}: {ROUNDS} rounds beside {ops} operations", stage.name);
            assert_eq!(ops > 0, with_io);
        }
    });
}

/// A waker that panics.
struct Bomb(AtomicUsize);

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        resume_unwind(Box::new("an expected panic, without a message"));
    }
}

#[test]
fn a_panicking_waker_affects_no_other_task() {
    on_every_backend(|stage| {
        std::fs::create_dir_all(&stage.path).unwrap();
        let file = stage.cold_file(64);
        let bomb = Arc::new(Bomb(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&bomb));
        let mut kept = Vec::new();
        let mut pending = 0;
        // Repeats until some read is pending after its first poll.
        for _ in 0..100 {
            file.evict();
            let mut reads: Vec<_> = (0..64).map(|block| file.read_at(vec![0; 4096], 0, block * 4096)).collect();
            let mut poll = |read: &mut OpFuture<ReadDone>| read.as_mut().poll(&mut Context::from_waker(&waker));
            let polled: Vec<_> = reads.iter_mut().map(&mut poll).collect();
            pending = polled.iter().filter(|poll| poll.is_pending()).count();
            // Dropped reads would not call their wakers.
            kept.extend(reads);
            if pending > 0 {
                break;
            }
        }
        for block in 0..64u32 {
            check_block(wait(file.read_at(vec![0; 4096], 0, u64::from(block) * 4096)), block);
        }
        // Every pending read must call its waker. The backend must survive the panics.
        let start = Instant::now();
        while bomb.0.load(Ordering::SeqCst) < pending {
            assert!(start.elapsed() < PATIENCE, "{pending} wakers, {} called", bomb.0.load(Ordering::SeqCst));
            thread::yield_now();
        }
        println!("{}: {pending} wakers panicked", stage.name);
        assert!(pending > 0, "no read was pending");
    });
}

#[test]
fn a_panic_ends_only_its_task() {
    on_every_backend(|stage| {
        struct Guard(mpsc::Sender<()>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (sender, ended) = mpsc::channel();
        let (dir, freed) = (stage.dir(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&freed);
        let task = async move {
            let _guard = Guard(sender);
            let file = dir.open("data", OpenMode::CreateNew).unwrap();
            for n in 0..100 {
                let bytes = Bytes::from_owner(Owner(vec![7; 4096], Arc::clone(&counter)));
                drop(file.write_at(vec![bytes], n * 4096));
            }
            resume_unwind(Box::new("an expected panic, without a message"));
        };
        stage.io.spawn("doomed", Priority::Foreground, Box::pin(task)).unwrap();
        ended.recv_timeout(PATIENCE).expect("the task's guards are dropped");
        let len = in_task(&stage, |_, dir| async move {
            let file = dir.open("other", OpenMode::CreateNew).unwrap();
            file.write_at(vec![Bytes::from_static(b"still here")], 0).await.unwrap();
            file.len().unwrap()
        });
        assert_eq!(len, 10);
        let path = stage.path.join("data");
        drop(stage);
        let start = Instant::now();
        while freed.load(Ordering::SeqCst) < 100 {
            assert!(start.elapsed() < PATIENCE, "{} of 100 buffers freed", freed.load(Ordering::SeqCst));
            thread::yield_now();
        }
        assert!(std::fs::read(path).unwrap() == vec![7; 409_600], "the write in flight completed");
    });
}

#[test]
fn block_until_ends_on_request_and_never_blocks_an_engine_thread() {
    on_every_backend(|stage| {
        let is_over = Arc::new(AtomicBool::new(false));
        let (setter, waiting) = (Arc::clone(&is_over), thread::current());
        let helper = thread::spawn(move || {
            setter.store(true, Ordering::SeqCst);
            waiting.unpark();
        });
        stage.io.block_until(&|| is_over.load(Ordering::SeqCst));
        assert!(is_over.load(Ordering::SeqCst));
        helper.join().unwrap();
        in_task(&stage, |io, _| async move { io.block_until(&|| false) });
        assert!(matches!(stage.io.kind(), IoKind::Threads | IoKind::Uring | IoKind::Sim));
    });
}
