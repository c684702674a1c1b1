//! Running the caller's code on the engine's threads: wakers, and destructors of shared values.
//!
//! Both may panic, and may drop anything, including a store. So wakers are called and values dropped outside all locks,
//! and a panic is caught here instead of ending the engine's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use crate::sync::prefetch::prefetch;

/// How many wakers ahead of the current one are prefetched.
const PREFETCHED_WAKERS: usize = 8;

/// Wakes one task.
pub(crate) fn wake_one(waker: Waker) {
    // The panic hook has reported the panic, and the waker had no access to the engine's state.
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

/// Drops a value that may own a caller's memory.
pub(crate) fn give_back(value: impl Sized) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

/// Wakes all of `wakers`, in order.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    wakers.iter().take(PREFETCHED_WAKERS).for_each(prefetch_task);
    let mut wakers = wakers.into_iter();
    // One `catch_unwind` for all of them. A panic costs another one for the wakers after it.
    while wakers.len() > 0 {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            while let Some(waker) = wakers.next() {
                if let Some(ahead) = wakers.as_slice().get(PREFETCHED_WAKERS - 1) {
                    prefetch_task(ahead);
                }
                waker.wake();
            }
        }));
    }
}

/// Prefetches the task that a waker belongs to: in most executors, the waker's data is the task itself. It is in the
/// cache of the CPU that last ran the task.
fn prefetch_task(waker: &Waker) {
    prefetch(waker.data());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    struct OrderWaker {
        number: usize,
        woken: Arc<Mutex<Vec<usize>>>,
    }

    impl Wake for OrderWaker {
        fn wake(self: Arc<Self>) {
            self.woken.lock().unwrap().push(self.number);
            assert!(!PANICKING.contains(&self.number), "a waker's own panic");
        }
    }

    const PANICKING: [usize; 5] = [0, 1, 9, 12, 24];

    #[test]
    fn each_task_is_woken_once_and_in_order_even_if_wakers_panic() {
        let woken = Arc::default();
        let waker = |number| Waker::from(Arc::new(OrderWaker { number, woken: Arc::clone(&woken) }));
        wake_all((0..25).map(waker).collect());
        assert_eq!(*woken.lock().unwrap(), (0..25).collect::<Vec<_>>());
    }
}
