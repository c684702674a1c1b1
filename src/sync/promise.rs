//! A value that one task passes to one future, on any executor.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// Both ends of the transfer: the task calls [`fulfil`](Self::fulfil), the future [`poll`](Self::poll).
#[derive(Debug)]
pub(crate) struct Promise<T>(Arc<Mutex<PromiseState<T>>>);

#[derive(Debug)]
struct PromiseState<T> {
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
        Self(Arc::new(Mutex::new(PromiseState { value: None, waker: None })))
    }

    /// Provides the value and wakes the future. A second value is dropped.
    pub(crate) fn fulfil(&self, value: T) {
        let (waker, surplus) = {
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
        drop(surplus);
        if let Some(waker) = waker {
            crate::sync::wake::wake_one(waker);
        }
    }

    /// Takes the value, or registers the waker if there is none yet.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = state.value.take() {
            return Poll::Ready(value);
        }
        let is_new = state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker()));
        let replaced = if is_new { state.waker.replace(cx.waker().clone()) } else { None };
        // Dropped outside the lock: dropping a waker may drop a task and its store, whose shutdown fulfils this
        // promise.
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}
