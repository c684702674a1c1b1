//! Compactions and the operations beside them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ringcask::futures::Compact;
use ringcask::{ErrorKind, Store};

use super::{Op, Run};

/// A requested compaction.
pub(super) enum Running {
    Over(Result<(), ringcask::Error>),
    On(Pin<Box<dyn Future<Output = Result<(), ringcask::Error>>>>),
}

impl Run<'_> {
    /// Requests a compaction while the write `early` is in flight, then runs `ops`.
    pub(super) async fn compact(
        &mut self,
        store: &Store,
        which: Option<u64>,
        early: Option<&Op>,
        ops: &[Op],
    ) -> Result<Running, String> {
        let first = self.generation().writes.len();
        let mut in_flight = Vec::new();
        if let Some(op) = early {
            let (mut future, record) = self.begin(store, op);
            self.generation().writes.push(record);
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => self.resolve(first, result)?,
                Poll::Pending => in_flight.push(Some(future)),
            }
        }
        let mut future = Box::pin(compact(store, which));
        let early_result = match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result.map(drop)),
            Poll::Pending => None,
        };
        self.drive(first, &mut in_flight, usize::MAX, None).await?;
        for op in ops {
            self.call(store, op).await?;
        }
        Ok(match early_result {
            Some(result) => Running::Over(result),
            None => Running::On(Box::pin(async move { future.await.map(drop) })),
        })
    }

    pub(super) async fn await_compaction(&mut self, store: &Store, running: Running) -> Result<(), String> {
        store.resume_compaction();
        let result = match running {
            Running::Over(result) => result,
            Running::On(future) => future.await,
        };
        match result {
            Ok(()) => self.check_contents(store).await,
            Err(_) if self.may_fail => Ok(()),
            Err(error) if self.is_unwatched && error.kind() == ErrorKind::InvalidInput => Ok(()),
            Err(error) => Err(format!("a compaction failed without an injected fault: {error:?}")),
        }
    }
}

/// Compacts everything, or the sealed segments whose bits are set.
fn compact(store: &Store, which: Option<u64>) -> Compact {
    let Some(bits) = which else { return store.compact() };
    let sealed: Vec<u64> = store.stats().segments.iter().filter(|it| it.sealed).map(|it| it.id).collect();
    let named = sealed.iter().enumerate().filter(|(nth, _)| bits >> (nth % 64) & 1 == 1).map(|(_, id)| *id);
    store.compact().segments(named)
}
