//! The scheduler: one thread, one decision at a time.
//!
//! A turn is the poll of a woken task, the completion of an operation, or the expiry of a timer that is due. The seed
//! chooses among all possible turns. Time jumps to the next timer only if no turn is possible, so a simulated second
//! costs no more than the events in it. Every turn also advances time a little, so that timers expire in a simulation
//! that is never idle.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::state::{SimShared, SimState, nanos};
use super::tasks::{TaskSlot, TaskWaker};
use crate::io::Task;

/// The task number of the future that [`SimShared::run_until`] runs.
const MAIN: usize = usize::MAX;
/// Simulated time without a poll of the main future that counts as a deadlock.
const STALL_NS: u64 = 24 * 3_600_000_000_000;
/// Consecutive polls without a completed operation or an expired timer that count as spinning.
const SPINNING_POLLS: u64 = 100_000;
/// Turns of any kind without a poll of the main future that count as spinning.
const SPINNING_TURNS: u64 = 1_000_000;

/// The turn that the seed chose.
enum Turn {
    Poll(usize),
    Wake(Option<Waker>),
    Idle,
}

impl SimShared {
    pub(super) fn add_task(&self, name: &'static str, task: Task) {
        let mut state = self.lock();
        let id = state.tasks.len();
        let waker = Arc::new(TaskWaker { task: id, queued: AtomicBool::new(true), ready: self.ready.clone() });
        state.tasks.push(TaskSlot { name, task: Some(task), waker, ended: false });
        self.ready.push(id);
    }

    /// Chooses one turn. Time jumps at most to `horizon_ns`.
    fn next_turn(&self, horizon_ns: u64) -> Turn {
        let mut state = self.lock();
        let state = &mut *state;
        loop {
            let late_ns = state.release_late();
            let ready = self.ready.with(|ready| ready.len());
            let due = state.timers.iter().filter(|timer| !timer.fired && timer.deadline_ns <= state.now_ns).count();
            let candidates = ready + state.in_flight.len() + due;
            if candidates == 0 {
                let next = state.timers.iter().filter(|timer| !timer.fired).map(|timer| timer.deadline_ns);
                match next.chain(late_ns).min().filter(|deadline| *deadline <= horizon_ns) {
                    Some(deadline) => state.now_ns = deadline,
                    None => return Turn::Idle,
                }
                continue;
            }
            let choice = state.rng.below(candidates);
            state.mix((candidates as u64) << 32 | choice as u64);
            if choice < ready {
                state.now_ns += 1_000;
                return Turn::Poll(self.ready.with(|ready| ready.swap_remove(choice)));
            }
            if choice < ready + state.in_flight.len() {
                let slot = state.in_flight.swap_remove(choice - ready);
                state.now_ns += 5_000 + state.rng.below(100_000) as u64;
                return Turn::Wake(state.complete(slot));
            }
            let nth = choice - ready - state.in_flight.len();
            let now_ns = state.now_ns;
            let mut due = state.timers.iter_mut().filter(|timer| !timer.fired && timer.deadline_ns <= now_ns);
            if let Some(timer) = due.nth(nth) {
                timer.fired = true;
                return Turn::Wake(timer.waker.take());
            }
        }
    }

    fn poll_task(&self, id: usize) {
        let (mut task, waker) = {
            let mut state = self.lock();
            let Some(slot) = state.tasks.get_mut(id) else { return };
            slot.waker.queued.store(false, Ordering::Relaxed);
            let Some(task) = slot.task.take() else { return };
            (task, slot.waker.clone())
        };
        let waker = Waker::from(waker);
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut context)));
        if matches!(polled, Ok(Poll::Pending)) {
            let mut state = self.lock();
            if !state.off {
                if let Some(slot) = state.tasks.get_mut(id) {
                    slot.task = Some(task);
                }
                return;
            }
        }
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(task)));
        let mut state = self.lock();
        let name = state.tasks.get_mut(id).map_or("", |slot| {
            slot.ended = true;
            slot.name
        });
        for panic in [polled.err(), dropped.err()].into_iter().flatten() {
            let text = format!("task {name}: {}", panic_message(&*panic));
            state.panics.push(text);
        }
    }

    /// Takes one turn without a main future. Returns false if nothing can happen before `horizon_ns`.
    pub(super) fn turn(&self, horizon_ns: u64) -> bool {
        match self.next_turn(horizon_ns) {
            Turn::Poll(MAIN) | Turn::Wake(None) => {}
            Turn::Poll(id) => self.poll_task(id),
            Turn::Wake(Some(waker)) => waker.wake(),
            Turn::Idle => return false,
        }
        true
    }

    /// Marks the simulation as running until the guard is dropped. Returns `None` if it is already running.
    pub(super) fn drive(&self) -> Option<Driving<'_>> {
        let mut state = self.lock();
        // Creates the guard only on success: dropping the guard of a refused call would end the other one.
        (!std::mem::replace(&mut state.running, true)).then(|| Driving(self))
    }
}

pub(super) struct Driving<'s>(&'s SimShared);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.lock().running = false;
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}

fn dump(state: &SimState) -> String {
    let tasks: Vec<_> = state.tasks.iter().filter(|task| !task.ended).map(|task| task.name).collect();
    let timers: Vec<_> = state.timers.iter().map(|timer| Duration::from_nanos(timer.deadline_ns)).collect();
    format!(
        "seed {}, step {}, time {:?}, tasks waiting {tasks:?}, operations in flight {}, timers {timers:?}, panics {:?}",
        state.config.seed,
        state.step,
        Duration::from_nanos(state.now_ns),
        state.op_count_in_flight(),
        state.panics,
    )
}

impl SimShared {
    #[expect(clippy::panic, reason = "test tool: a stuck simulation must fail the test")]
    pub(super) fn run_until<F: Future>(&self, future: F) -> F::Output {
        let Some(_driving) = self.drive() else { panic!("run_until inside run_until") };
        let mut future: Pin<&mut F> = pin!(future);
        let handle = Arc::new(TaskWaker { task: MAIN, queued: AtomicBool::new(true), ready: self.ready.clone() });
        let waker = Waker::from(handle.clone());
        self.ready.with(|ready| ready.retain(|task| *task != MAIN));
        self.ready.push(MAIN);
        let (mut polls, mut turns, mut since_ns) = (0_u64, 0_u64, self.lock().now_ns);
        loop {
            match self.next_turn(since_ns.saturating_add(STALL_NS)) {
                Turn::Poll(MAIN) => {
                    handle.queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return output;
                    }
                    (turns, since_ns) = (0, self.lock().now_ns);
                }
                Turn::Poll(id) => self.poll_task(id),
                Turn::Wake(waker) => {
                    polls = 0;
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Turn::Idle => {
                    let stuck = dump(&self.lock());
                    panic!("deadlock: {stuck}");
                }
            }
            polls += 1;
            turns += 1;
            if polls > SPINNING_POLLS || turns > SPINNING_TURNS {
                let spinning = dump(&self.lock());
                panic!("spinning: {spinning}");
            }
        }
    }

    #[expect(clippy::panic, reason = "test tool: misuse must fail the test")]
    pub(super) fn run_to_idle(&self, limit: Duration) {
        let Some(_driving) = self.drive() else { panic!("run_to_idle inside run_until") };
        let horizon_ns = self.lock().now_ns.saturating_add(nanos(limit));
        while self.turn(horizon_ns) {}
    }

    pub(super) fn shutdown(&self) {
        let (tasks, wakers, timers) = {
            let mut state = self.lock();
            state.off = true;
            let wakers = state.finish_all();
            let tasks: Vec<_> = state.tasks.iter_mut().filter_map(|slot| slot.task.take()).collect();
            (tasks, wakers, std::mem::take(&mut state.timers))
        };
        drop(timers);
        for task in tasks {
            // A task may panic while it is dropped. Record that like any other panic.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(task))) {
                let text = format!("dropping a task: {}", panic_message(&*panic));
                self.lock().panics.push(text);
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }
}
