//! Puts, deletes and batches: begun, polled, and noted with their answers.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringcask::testing::io::{Io, OpFuture};
use ringcask::{Batch, Durability, ErrorKind, Outcome, Store};

use super::{Op, Run};
use crate::support::history_model::{Fate, WriteRec, key_name, value_bytes, value_id};

pub type WriteFuture = Pin<Box<dyn Future<Output = Result<Option<u64>, ringcask::Error>>>>;

impl Run<'_> {
    /// Makes the future of a write and the note of it.
    pub fn begin(&mut self, store: &Store, op: &Op) -> (WriteFuture, WriteRec) {
        let started = self.world.step();
        let mut new_value = |key: usize| {
            *self.numbers += 1;
            value_id(key, *self.numbers)
        };
        match op {
            Op::Delete { key, durability } => {
                let delete = store.delete(key_name(*key)).durability(*durability);
                // Told apart from a write by having no version: `Some(0)` is "it existed".
                let future = Box::pin(async move { Ok(delete.await?.then_some(0)) });
                (future, WriteRec::new(vec![(*key, 0)], started, *durability))
            }
            Op::Batch { keys, durability } => {
                let mut batch = Batch::new();
                let mut effects = Vec::new();
                for (key, delete) in keys {
                    let id = if *delete { 0 } else { new_value(*key) };
                    if *delete {
                        batch.delete(key_name(*key));
                    } else {
                        batch.put(key_name(*key), value_bytes(id));
                    }
                    effects.push((*key, id));
                }
                let write = store.write(batch).durability(*durability);
                let future = Box::pin(async move { Ok(Some(write.await?.get())) });
                (future, WriteRec::new(effects, started, *durability))
            }
            Op::Put { key, durability } => {
                let id = new_value(*key);
                let options = *durability;
                let put = || store.put(key_name(*key), value_bytes(id)).durability(options);
                // Some are submitted; where too much waits already, the write is awaited, as the error says.
                let submitted = self.numbers.is_multiple_of(4).then(|| put().submit());
                let future: WriteFuture = match submitted {
                    Some(Ok(submitted)) => Box::pin(async move { Ok(Some(submitted.await?.get())) }),
                    Some(Err(error)) if error.kind() != ErrorKind::Busy => Box::pin(std::future::ready(Err(error))),
                    _ => {
                        let put = put();
                        Box::pin(async move { Ok(Some(put.await?.get())) })
                    }
                };
                (future, WriteRec::new(vec![(*key, id)], started, *durability))
            }
            other => unreachable!("{other:?} is no write"),
        }
    }

    pub(super) async fn write(
        &mut self,
        store: &Store,
        ops: &[Op],
        apart_micros: u64,
        polls: Option<usize>,
    ) -> Result<(), String> {
        let first = self.generation().writes.len();
        let mut futures = Vec::new();
        for op in ops {
            let (mut future, record) = self.begin(store, op);
            self.generation().writes.push(record);
            let index = first + futures.len();
            // A poll in the order of the calls gives them versions in this order, while there is room.
            let early = match polls {
                Some(_) => Poll::Pending,
                None => future.as_mut().poll(&mut Context::from_waker(Waker::noop())),
            };
            match early {
                Poll::Ready(result) => {
                    self.resolve(index, result)?;
                    futures.push(None);
                }
                Poll::Pending => futures.push(Some(future)),
            }
            if apart_micros > 0 {
                let pause = self.world.sleep(Duration::from_micros(apart_micros));
                self.drive(first, &mut futures, usize::MAX, Some(pause)).await?;
            }
        }
        self.drive(first, &mut futures, polls.unwrap_or(usize::MAX), None).await?;
        if polls.is_some() {
            let write = &mut self.generation().writes[first];
            if write.fate == Fate::InFlight {
                write.fate = Fate::Dropped;
            }
        }
        Ok(())
    }

    /// Polls `futures`, the first of which is write `first`, until all are ready, or the pause is over, or they have
    /// been polled often enough.
    pub(super) async fn drive(
        &mut self,
        first: usize,
        futures: &mut [Option<WriteFuture>],
        mut polls_left: usize,
        mut pause: Option<OpFuture<()>>,
    ) -> Result<(), String> {
        poll_fn(|cx| {
            if polls_left == 0 {
                return Poll::Ready(Ok(()));
            }
            polls_left -= 1;
            for (offset, place) in futures.iter_mut().enumerate() {
                let Some(future) = place else { continue };
                if let Poll::Ready(result) = future.as_mut().poll(cx) {
                    *place = None;
                    if let Err(failure) = self.resolve(first + offset, result) {
                        return Poll::Ready(Err(failure));
                    }
                }
            }
            let is_over = match &mut pause {
                Some(pause) => pause.as_mut().poll(cx).is_ready(),
                None => futures.iter().all(Option::is_none) || polls_left == 0,
            };
            if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    pub fn resolve(&mut self, index: usize, result: Result<Option<u64>, ringcask::Error>) -> Result<(), String> {
        let step = self.world.step();
        let may_fail = self.may_fail;
        let generation = self.generation();
        let highest = generation.highest_version;
        let write = &mut generation.writes[index];
        write.resolved = step;
        match result {
            Ok(None) => {
                // There was nothing to delete, and nothing was written.
                write.fate = Fate::NotApplied;
                write.resolved = 0;
                write.effects.clear();
            }
            Ok(Some(version)) => {
                write.fate = Fate::Acked;
                if version > 0 {
                    write.version = Some(version);
                    if version <= highest {
                        return Err(format!("version {version} was given out before, when {highest} was the highest"));
                    }
                }
                if write.durability == Durability::Synced {
                    write.durable = step;
                }
                if write.durability != Durability::Buffered {
                    write.written = step;
                }
            }
            Err(error) if may_fail => {
                write.fate = match error.outcome() {
                    Outcome::NotApplied => Fate::NotApplied,
                    _ => Fate::Unknown,
                };
            }
            Err(error) => return Err(format!("a write failed without a fault: {error:?}")),
        }
        Ok(())
    }
}
