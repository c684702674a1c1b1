//! Counts the heap allocations of the calling thread for each operation: operations documented as free of allocations
//! must stay so. Allocations of the store's threads are shared by a whole commit group and not counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unsafe_code,
    reason = "a failed check is a failed test; the allocator is counted"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use ringcask::{Durability, Engine, Store};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    // A constant without a destructor: it exists before the thread's first allocation and after its last.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call goes unchanged to the system allocator, which upholds the contract. Counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the same contract for this layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller passes a block that the system allocator returned for this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the same contract for this layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the same contract for this block, layout and size.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// An executor that does not allocate after its creation.
struct Executor(Waker);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

impl Executor {
    fn new() -> Self {
        Self(Waker::from(Arc::new(Unpark(std::thread::current()))))
    }

    fn finish<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&self.0)) {
                Poll::Ready(value) => return value,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

const OPERATIONS: u32 = 10_000;
const SYNCED: u32 = 100;
const VALUE: [u8; 256] = [0x5A; 256];

fn key(number: u32) -> [u8; 16] {
    let mut key = *b"test-key--------";
    key[12..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Number of allocations per operation.
#[derive(Debug)]
struct Allocations {
    least: u64,
    most: u64,
    mean: f64,
}

impl Allocations {
    fn of(what: &str, operations: u32, mut operation: impl FnMut(u32)) -> Self {
        let (mut least, mut most, mut total) = (u64::MAX, 0, 0_u32);
        for number in 0..operations {
            let before = ALLOCATIONS.get();
            operation(number);
            let count = ALLOCATIONS.get() - before;
            (least, most, total) = (least.min(count), most.max(count), total + u32::try_from(count).unwrap());
        }
        let mean = f64::from(total) / f64::from(operations);
        println!("{what:28} {mean:8.4} allocations, {least} to {most}");
        Self { least, most, mean }
    }

    #[track_caller]
    fn assert_each(&self, count: u64) {
        assert_eq!((self.least, self.most), (count, count), "expected {count} allocations per operation: {self:?}");
    }

    #[track_caller]
    fn assert_mean_at_most(&self, bound: f64) {
        assert!(self.mean <= bound, "more than {bound} allocations per operation: {self:?}");
    }
}

fn writes(store: &Store, executor: &Executor) {
    let put = |number, durability| {
        let options = durability;
        assert!(executor.finish(store.put(key(number), VALUE).durability(options)).is_ok());
    };
    let buffered = |number| put(number, Durability::Buffered);
    // The shards of the keydir double independently. The mean is only small once they have some thousand keys.
    Allocations::of("Buffered put, first keys", OPERATIONS, buffered).assert_mean_at_most(0.2);
    (OPERATIONS..20 * OPERATIONS).for_each(buffered);
    let new_key = |number| buffered(20 * OPERATIONS + number);
    Allocations::of("Buffered put, new key", OPERATIONS, new_key).assert_mean_at_most(0.01);
    // The put itself allocates nothing. The log's buffer grows in a few steps when the disk falls further behind than
    // before.
    Allocations::of("Buffered put, known key", OPERATIONS, buffered).assert_mean_at_most(0.005);
    // The caller allocates to wait for the sync. A list may have to grow once.
    Allocations::of("Synced put", SYNCED, |number| put(number, Durability::Synced)).assert_mean_at_most(2.1);
}

fn reads(store: &Store, executor: &Executor, is_cached: bool) {
    let get = |number| executor.finish(store.get(key(number))).unwrap();
    if is_cached {
        // Blocks enter the cache one by one as they are read, once they are complete.
        executor.finish(store.put("behind them", [0; 32 << 10])).unwrap();
        (0..10 * OPERATIONS).for_each(|number| drop(get(number % OPERATIONS)));
    }
    drop(get(0));
    let before = store.stats();
    Allocations::of("cached get", OPERATIONS, |number| assert!(get(number).is_some())).assert_each(1);
    let after = store.stats();
    let served = match is_cached {
        true => after.gets_from_block_cache - before.gets_from_block_cache,
        false => after.gets_from_page_cache - before.gets_from_page_cache,
    };
    assert_eq!(served, u64::from(OPERATIONS), "every get must come from the cache");
    Allocations::of("absent get", OPERATIONS, |number| assert!(get(u32::MAX - number).is_none())).assert_each(0);
    Allocations::of("contains_key", OPERATIONS, |number| assert!(store.contains_key(key(number)))).assert_each(0);
    let value_len = |number| assert_eq!(store.value_len(key(number)), Some(VALUE.len() as u64));
    Allocations::of("value_len", OPERATIONS, value_len).assert_each(0);
}

fn on(engine: Engine, cache_bytes: u64) {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let executor = Executor::new();
    let open = Store::builder(dir.path().join("store")).engine(engine).cache_bytes(cache_bytes).open();
    let store = match executor.finish(open) {
        Err(error) if engine == Engine::Uring && error.kind() == ringcask::ErrorKind::Unsupported => {
            assert!(std::env::var_os("RINGCASK_REQUIRE_ALL").is_none(), "io_uring must be available here: {error}");
            return println!("SKIPPED: allocations on the ring: {error}");
        }
        opened => opened.unwrap(),
    };
    println!("{engine:?}");
    writes(&store, &executor);
    executor.finish(store.sync()).unwrap();
    reads(&store, &executor, cache_bytes > 0);
    executor.finish(store.close()).unwrap();
}

#[test]
fn operations_stay_within_their_allocation_limits_on_threads() {
    on(Engine::Threads, 0);
}

#[test]
fn a_get_from_the_block_cache_allocates_only_its_value() {
    on(Engine::Threads, 256 << 20);
}

#[test]
fn operations_stay_within_their_allocation_limits_on_uring() {
    on(Engine::Uring, 0);
}
