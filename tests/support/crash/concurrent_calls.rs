//! Concurrent callers. Each waits for its call to return before it makes the next one.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use ringcask::Store;
use ringcask::bytes::Bytes;

use super::workload::{Op, Run, WriteFuture};
use crate::support::history_model::key_name;

type GetFuture = Pin<Box<dyn Future<Output = Result<Option<Bytes>, ringcask::Error>>>>;

/// The call that a caller waits for.
enum Call {
    /// A write and its index in the history.
    Write(WriteFuture, usize),
    /// A read of the key with this index.
    Get(GetFuture, usize),
}

struct Caller {
    calls: VecDeque<Op>,
    at: Option<Call>,
}

impl Run<'_> {
    /// Runs all lists concurrently, each to its end.
    pub async fn callers(&mut self, store: &Store, lists: &[Vec<Op>]) -> Result<(), String> {
        let queues = lists.iter().map(|list| list.iter().cloned().collect());
        let mut callers: Vec<Caller> = queues.map(|calls| Caller { calls, at: None }).collect();
        poll_fn(|cx| {
            let mut is_over = true;
            for caller in &mut callers {
                loop {
                    let Some(call) = caller.at.as_mut() else {
                        let Some(op) = caller.calls.pop_front() else { break };
                        caller.at = Some(self.make(store, &op));
                        continue;
                    };
                    let result = match call {
                        Call::Write(future, index) => match future.as_mut().poll(cx) {
                            Poll::Ready(result) => self.resolve(*index, result),
                            Poll::Pending => break,
                        },
                        Call::Get(future, key) => match future.as_mut().poll(cx) {
                            Poll::Ready(result) => self.observe(*key, result),
                            Poll::Pending => break,
                        },
                    };
                    if result.is_err() {
                        return Poll::Ready(result);
                    }
                    caller.at = None;
                }
                is_over &= caller.at.is_none();
            }
            if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    fn make(&mut self, store: &Store, op: &Op) -> Call {
        if let Op::Get { key } = op {
            return Call::Get(Box::pin(store.get(key_name(*key))), *key);
        }
        let (future, mut record) = self.begin(store, op);
        record.overlaps = true;
        let writes = &mut self.generation().writes;
        writes.push(record);
        Call::Write(future, writes.len() - 1)
    }
}
