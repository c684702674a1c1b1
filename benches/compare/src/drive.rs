//! Closed loops: each client has one operation in flight, and starts the next one when it completes.
//!
//! There are three ways to call a store. Clients call a blocking store from their own threads, or the way an async
//! service must: from tasks that hand each call to tokio's blocking pool. Async stores are awaited by tasks. The last
//! two ways use tokio with two workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::peers::{Awaited, Blocking, Failure};
use crate::work::{Choice, KEY_LEN, Numbers, Op, Script, Work, Zipf, fill, is_value_of, key};

/// What to run, with how many clients, for how long.
pub struct Plan<'a> {
    pub work: &'a Work,
    pub clients: usize,
    pub keys: u64,
    pub value_len: usize,
    pub time: Duration,
    pub seed: u64,
}

/// Results of a run.
pub struct Done {
    pub operations: u64,
    pub seconds: f64,
    /// Latency of each operation in nanoseconds.
    pub latency: Histogram<u64>,
}

/// A client's script, its value buffer and its latencies.
struct Client {
    script: Script,
    value: Vec<u8>,
    durable: bool,
    is_counted: bool,
    latency: Histogram<u64>,
}

impl Client {
    fn record(&mut self, start: Instant) {
        if !self.is_counted {
            return;
        }
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Never fails: the histogram resizes itself.
        let _ = self.latency.record(nanos);
    }
}

fn clients(plan: &Plan<'_>) -> Vec<Client> {
    let zipf = (plan.work.choice != Choice::Uniform).then(|| Zipf::new(plan.keys));
    let count = plan.clients as u64;
    let client = |index| Client {
        script: Script::new(plan.work, zipf.as_ref(), plan.keys, index, count, plan.seed),
        value: vec![0; plan.value_len],
        durable: plan.work.durable,
        is_counted: !plan.work.is_background_writer(index),
        // Fails only for a number of digits outside 0 to 5.
        latency: Histogram::new(3).expect("three digits"),
    };
    (0..count).map(client).collect()
}

fn sum(finished: impl Iterator<Item = Result<Client, Failure>>, start: Instant) -> Result<Done, Failure> {
    let mut latency = Histogram::new(3)?;
    for client in finished {
        latency.add(client?.latency)?;
    }
    Ok(Done { operations: latency.len(), seconds: start.elapsed().as_secs_f64(), latency })
}

fn expect_value(found: bool, number: u64) -> Result<(), Failure> {
    if found { Ok(()) } else { Err(format!("the value of key {number} is not the value that was put").into()) }
}

/// A key that was never put.
fn missing_key(number: u64) -> [u8; 16] {
    let mut key = key(number);
    key[15] ^= 0x80;
    key[8] ^= 0x80;
    key
}

fn call(store: &dyn Blocking, op: Op, value: &[u8], durable: bool) -> Result<(), Failure> {
    let get = |number: u64| {
        let mut is_right = false;
        let is_there = store.get(&key(number), &mut |found| is_right = is_value_of(found, number, value.len()))?;
        expect_value(is_there && is_right, number)
    };
    match op {
        Op::Get(number) => get(number),
        Op::GetMissing(number) => {
            let is_there = store.get(&missing_key(number), &mut |_| {})?;
            expect_value(!is_there, number)
        }
        Op::Put(number) => store.put(&key(number), value, durable),
        Op::ReadThenWrite(number) => {
            get(number)?;
            store.put(&key(number), value, durable)
        }
    }
}

/// Fills the client's buffer with a fresh value for the key that `op` writes.
fn prepare(op: Op, client: &mut Client) {
    if let Op::Put(number) | Op::ReadThenWrite(number) = op {
        fill(&mut client.value, number, &mut client.script.numbers);
    }
}

/// Runs each client in a thread.
pub fn threads(store: &Arc<dyn Blocking>, plan: &Plan<'_>) -> Result<Done, Failure> {
    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    thread::scope(|scope| {
        let turn = |mut client: Client| {
            while !is_over.load(Ordering::Relaxed) {
                let op = client.script.next();
                prepare(op, &mut client);
                let began = Instant::now();
                call(&**store, op, &client.value, client.durable)?;
                client.record(began);
            }
            Ok(client)
        };
        let running: Vec<_> = clients(plan).into_iter().map(|client| scope.spawn(move || turn(client))).collect();
        thread::sleep(plan.time);
        is_over.store(true, Ordering::Relaxed);
        let finished =
            running.into_iter().map(|thread| thread.join().map_err(|_| Failure::from("a client panicked"))?);
        sum(finished, start)
    })
}

/// Lets the tasks run for the duration of the plan, and adds up their results.
fn gather(
    running: Vec<JoinHandle<Result<Client, Failure>>>,
    plan: &Plan<'_>,
    is_over: &AtomicBool,
    start: Instant,
    runtime: &Runtime,
) -> Result<Done, Failure> {
    thread::sleep(plan.time);
    is_over.store(true, Ordering::Relaxed);
    sum(running.into_iter().map(|task| runtime.block_on(task)?), start)
}

/// Runs each client in a task that makes its calls in the blocking pool.
pub fn service(store: &Arc<dyn Blocking>, plan: &Plan<'_>, runtime: &Runtime) -> Result<Done, Failure> {
    let is_over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let spawn = |mut client: Client| {
        let (store, is_over) = (Arc::clone(store), Arc::clone(&is_over));
        runtime.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let op = client.script.next();
                prepare(op, &mut client);
                let began = Instant::now();
                let store = Arc::clone(&store);
                let work = move || call(&*store, op, &client.value, client.durable).map(|()| client);
                client = tokio::task::spawn_blocking(work).await??;
                client.record(began);
            }
            Ok::<_, Failure>(client)
        })
    };
    gather(clients(plan).into_iter().map(spawn).collect(), plan, &is_over, start, runtime)
}

/// Runs each client in a task that awaits the store.
pub fn tasks<S: Awaited>(store: &Arc<S>, plan: &Plan<'_>, runtime: &Runtime) -> Result<Done, Failure> {
    let is_over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let spawn = |mut client: Client| {
        let (store, is_over) = (Arc::clone(store), Arc::clone(&is_over));
        runtime.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let op = client.script.next();
                prepare(op, &mut client);
                let began = Instant::now();
                run(&*store, op, &client.value, client.durable).await?;
                client.record(began);
            }
            Ok::<_, Failure>(client)
        })
    };
    gather(clients(plan).into_iter().map(spawn).collect(), plan, &is_over, start, runtime)
}

async fn run<S: Awaited>(store: &S, op: Op, value: &[u8], durable: bool) -> Result<(), Failure> {
    match op {
        Op::Get(number) => {
            let found = store.get(&key(number)).await?;
            expect_value(found.is_some_and(|found| is_value_of(found.as_ref(), number, value.len())), number)
        }
        Op::GetMissing(number) => expect_value(store.get(&missing_key(number)).await?.is_none(), number),
        Op::Put(number) => store.put(&key(number), value, durable).await,
        Op::ReadThenWrite(number) => {
            let found = store.get(&key(number)).await?;
            let is_right = found.is_some_and(|found| is_value_of(found.as_ref(), number, value.len()));
            expect_value(is_right, number)?;
            store.put(&key(number), value, durable).await
        }
    }
}

/// Puts every key once, in the order that `key` gives, each put after the previous one returned. Returns puts per
/// second.
pub fn load(
    store: &Arc<dyn Blocking>,
    keys: u64,
    value_len: usize,
    key: fn(u64) -> [u8; KEY_LEN],
) -> Result<f64, Failure> {
    let (mut numbers, mut value) = (Numbers::new(7), vec![0; value_len]);
    let start = Instant::now();
    for number in 0..keys {
        fill(&mut value, number, &mut numbers);
        store.put(&key(number), &value, false)?;
    }
    Ok(keys as f64 / start.elapsed().as_secs_f64())
}

/// The same for an async store.
pub fn load_awaited<S: Awaited>(
    store: &Arc<S>,
    keys: u64,
    value_len: usize,
    key: fn(u64) -> [u8; KEY_LEN],
    runtime: &Runtime,
) -> Result<f64, Failure> {
    let store = Arc::clone(store);
    let loading = runtime.spawn(async move {
        let (mut numbers, mut value) = (Numbers::new(7), vec![0; value_len]);
        let start = Instant::now();
        for number in 0..keys {
            fill(&mut value, number, &mut numbers);
            store.put(&key(number), &value, false).await?;
        }
        Ok::<_, Failure>(keys as f64 / start.elapsed().as_secs_f64())
    });
    runtime.block_on(loading)?
}
