//! Opening: from the options to a handle, on a thread of the store.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::core::{Core, forked};
use super::{Store, polled_after_completion};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Io, Priority, fork, probe};
use crate::options::Options;
use crate::sync::promise::Promise;

/// The future of [`Store::open`](crate::Store::open) and [`Builder::open`](crate::Builder::open).
#[must_use = "futures do nothing unless polled"]
pub struct Open(OpenState);

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}

enum OpenState {
    Start(Box<(Options, Option<Arc<dyn Io>>)>),
    /// With the fork generation that it started in.
    Opening(Promise<Result<Store>>, u64),
    Done,
}

impl Open {
    pub(crate) fn new(options: Options, backend: Option<Arc<dyn Io>>) -> Self {
        Self(OpenState::Start(Box::new((options, backend))))
    }
}

impl Future for Open {
    type Output = Result<Store>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (promise, generation) = match std::mem::replace(&mut self.0, OpenState::Done) {
            OpenState::Start(start) => (start_open(start.0, start.1)?, fork::fork_generation()),
            OpenState::Opening(promise, generation) => (promise, generation),
            OpenState::Done => return polled_after_completion(),
        };
        if generation != fork::fork_generation() {
            return Poll::Ready(Err(forked()));
        }
        match promise.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                self.0 = OpenState::Opening(promise, generation);
                Poll::Pending
            }
        }
    }
}

/// Starts the open on a thread of the store.
fn start_open(options: Options, backend: Option<Arc<dyn Io>>) -> Result<Promise<Result<Store>>> {
    options.validate()?;
    let (io, fallback) = match backend {
        Some(backend) => (backend, None),
        None => probe::open_backend(options.engine, options.write_path)
            .map_err(|error| Error::new(ErrorKind::Unsupported, "open: start the engine").with_source(error))?,
    };
    let promise = Promise::new();
    // If the open panics, the guard's error answers the caller. Otherwise the promise is already fulfilled.
    let guard = OpenGuard(promise.clone());
    let backend = Arc::clone(&io);
    let path = options.path.clone();
    let task = async move {
        let opened = Core::open(options, backend, fallback).await;
        guard.0.fulfil(opened.map(Store::new));
    };
    io.spawn("ringcask-open", Priority::Foreground, Box::pin(task))
        .map_err(|error| Error::io("open: start a thread", error).with_path(path))?;
    Ok(promise)
}

struct OpenGuard(Promise<Result<Store>>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.fulfil(Err(Error::new(ErrorKind::Poisoned, "open: the opening thread ended early")));
    }
}
