//! A value that one task hands to one future, on any executor.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// Where the value arrives.
#[derive(Debug)]
pub(crate) struct Promise<T>(Arc<Mutex<State<T>>>);

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Promise<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { value: None, waker: None })))
    }

    /// Hands the value over; the first one stays.
    pub(crate) fn fulfil(&self, value: T) {
        let (waker, unwanted) = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let unwanted = match state.value {
                None => {
                    state.value = Some(value);
                    None
                }
                Some(_) => Some(value),
            };
            (state.waker.take(), unwanted)
        };
        drop(unwanted);
        if let Some(waker) = waker {
            crate::sync::wake::wake_one(waker);
        }
    }

    /// Takes the value if it is there.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = state.value.take() {
            return Poll::Ready(value);
        }
        let is_new = state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker()));
        let replaced = if is_new { state.waker.replace(cx.waker().clone()) } else { None };
        // Outside the lock: dropping a waker may drop a task, and with it the store whose end fulfils the promise.
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}
