//! Models of the commit queue for the schedule explorer; see [`crate::testing::schedules`].

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::thread;

use super::group::{Group, Phase, WaitFor};
use super::log::{Accepted, Limits, Log, OfferWait, Submission};
use super::prepared::Prepared;
use super::publish::publish;
use super::stage::{AppendPoint, PublishWhen, Taken};
use crate::error::{Error, ErrorKind, Result};
use crate::keydir::Keydir;
use crate::options::Durability;
use crate::segment::{Segment, SegmentSet};
use crate::sync::waiters::Slot;
use crate::testing::schedules::backend::{ExplorerBackend, FileImage};

fn failure() -> Error {
    Error::new(ErrorKind::Poisoned, "the sync failed")
}

/// Waiters that are polled by another task than the one that registered them, and one that is never polled again,
/// while their group advances or fails.
pub(crate) fn one_outcome_for_all() {
    let group = Arc::new(Group::default());
    let waiters = [WaitFor::Written, WaitFor::Resolved, WaitFor::Resolved].map(|wait| {
        let group = Arc::clone(&group);
        let index = group.register(wait, Waker::noop());
        thread::spawn(move || block_on(poll_fn(|cx| group.poll(wait, index, cx))).is_ok())
    });
    group.register(WaitFor::Resolved, Waker::noop());
    let fails = shuttle::rand::thread_rng().gen_bool(0.5);
    group.advance(Phase::Written);
    if fails {
        group.fail(failure());
    } else {
        group.advance(Phase::Resolved);
        group.fail(failure());
    }
    let [written, first, second] = waiters.map(|waiter| waiter.join().unwrap());
    assert_eq!((first, second), (!fails, !fails), "two waiters of one group that fails: {fails}");
    assert!(written || fails, "a resolved group failed for a waiter of an earlier phase");
}

/// The log, its callers, and a commit task that writes and syncs one group at a time.
struct Queue {
    log: Log,
    keydir: Arc<Keydir>,
    segments: Arc<SegmentSet>,
    /// The newest sequence number that was written when the last successful sync began.
    synced: AtomicU64,
}

impl Queue {
    fn new() -> Self {
        Self::with_staging_bytes(1 << 20)
    }

    /// A queue with a staging buffer of `staging_bytes`.
    fn with_staging_bytes(staging_bytes: u64) -> Self {
        let backend = ExplorerBackend::new(&FileImage::new());
        let keydir = Arc::new(Keydir::new((1, 2), 2));
        let segments = Arc::new(SegmentSet::new(backend.dir(), PathBuf::from("/db"), 8));
        let segment = Arc::new(Segment::new(1, 7, 1, 4096, None));
        segments.insert(Arc::clone(&segment));
        let limits = Limits { segment_bytes: 1 << 20, staging_bytes, reserve_bytes: 0 };
        let log = Log::new(Arc::new(backend), Arc::clone(&keydir), Arc::clone(&segments), limits, 1);
        log.set_append_point(AppendPoint { segment, next_offset: 4096, next_ordinal: 0, preallocated_end: u64::MAX });
        Self { log, keydir, segments, synced: AtomicU64::new(0) }
    }

    /// Puts `key`; returns its sequence number once it is acknowledged.
    fn put(&self, key: &[u8], durability: Durability) -> Result<u64> {
        let op = Prepared::put(Vec::new(), key, b"value");
        let mut wait = OfferWait::default();
        match block_on(poll_fn(|cx| self.log.accept(&op, durability, false, &mut wait, cx)))? {
            Accepted::Waiting(ticket) => block_on(poll_fn(|cx| ticket.poll(cx))).map(|()| ticket.last_seq),
            Accepted::Done(seq) => Ok(seq),
            other => panic!("a put is {other:?}"),
        }
    }

    /// A put whose caller leaves at once.
    fn put_and_leave(&self, key: &[u8]) {
        let op = Prepared::put(Vec::new(), key, b"value");
        let cx = &Context::from_waker(Waker::noop());
        let accepted = self.log.accept(&op, Durability::Synced, false, &mut OfferWait::default(), cx);
        assert!(matches!(accepted, Poll::Ready(Ok(Accepted::Waiting(_)) | Err(_))), "a put is {accepted:?}");
    }

    /// Submits a put of `key`.
    fn submit(&self, key: &[u8], durability: Durability) -> Result<Submission> {
        self.log.submit(Prepared::put(Vec::new(), key, b"value"), durability, false)
    }

    /// Waits for a submitted put; returns its sequence number once it is acknowledged.
    fn finish(submission: Submission) -> Result<u64> {
        let accepted = match submission {
            Submission::Accepted(accepted, _) => accepted,
            Submission::Queued(promise) => block_on(poll_fn(|cx| promise.poll(cx)))?,
        };
        match accepted {
            Accepted::Waiting(ticket) => block_on(poll_fn(|cx| ticket.poll(cx))).map(|()| ticket.last_seq),
            Accepted::Done(seq) => Ok(seq),
            other => panic!("a put is {other:?}"),
        }
    }

    /// Offers a put of `key`. If it was not accepted, another thread withdraws the offer.
    fn offer_and_give_up(self: &Arc<Self>, key: &'static [u8]) -> Option<thread::JoinHandle<()>> {
        let op = Prepared::put(Vec::new(), key, b"value");
        let mut wait = OfferWait::default();
        let cx = &Context::from_waker(Waker::noop());
        let offered = self.log.accept(&op, Durability::Synced, false, &mut wait, cx);
        let queue = Arc::clone(self);
        offered.is_pending().then(|| thread::spawn(move || queue.log.withdraw(&mut wait)))
    }

    /// The commit task, until the close. One sync in eight fails.
    fn serve(&self) {
        loop {
            let demand = self.log.demand(false, 0);
            let Some(taken) = self.log.take(false) else {
                if demand.closing && !demand.has_queued {
                    return;
                }
                block_on(poll_fn(|cx| self.log.poll_notified(cx)));
                continue;
            };
            taken.segment.set_written_end(taken.end);
            self.publish(&taken, PublishWhen::Written);
            self.log.release_run(&taken);
            taken.group.advance(Phase::Written);
            if taken.wants_sync {
                if shuttle::rand::thread_rng().gen_ratio(1, 8) {
                    return self.log.end(failure());
                }
                thread::yield_now();
                self.synced.store(taken.last_seq, Ordering::SeqCst);
                self.log.set_durable(taken.last_seq, taken.end);
            }
            self.publish(&taken, PublishWhen::Resolved);
            self.log.set_resolved(taken.last_seq);
            taken.group.advance(Phase::Resolved);
        }
    }

    fn publish(&self, taken: &Taken, when: PublishWhen) {
        for publication in taken.publications.iter().filter(|publication| publication.when == when) {
            publish(&self.keydir, &self.segments, &taken.segment, taken.key(publication), publication);
        }
    }

    fn is_seen(&self, key: &[u8]) -> bool {
        self.keydir.get(key).is_some()
    }
}

/// Writers of three durabilities, a sync, a caller that leaves, and an observer of the log's sequence numbers.
pub(crate) fn callers_against_the_task() {
    let queue = Arc::new(Queue::new());
    let task = Arc::clone(&queue);
    let task = thread::spawn(move || task.serve());
    let (first, second, third, watching) =
        (Arc::clone(&queue), Arc::clone(&queue), Arc::clone(&queue), Arc::clone(&queue));
    let callers = [
        thread::spawn(move || {
            first.put_and_leave(b"gone");
            if let Ok(seq) = first.put(b"synced", Durability::Synced) {
                assert!(first.synced.load(Ordering::SeqCst) >= seq, "acknowledged before its sync");
                assert!(first.log.durable_seq() >= seq && first.is_seen(b"synced"));
            }
        }),
        thread::spawn(move || {
            if second.put(b"written", Durability::Written).is_ok() {
                assert!(second.is_seen(b"written"), "acknowledged, but not visible");
            }
            let _ = second.put(b"synced too", Durability::Synced);
        }),
        thread::spawn(move || {
            let Ok(seq) = third.put(b"buffered", Durability::Buffered) else { return };
            assert!(third.is_seen(b"buffered"), "acknowledged, but not visible");
            let ticket = third.log.request_sync(Waker::noop());
            let synced =
                ticket.and_then(|ticket| ticket.map_or(Ok(()), |ticket| block_on(poll_fn(|cx| ticket.poll(cx)))));
            if synced.is_ok() {
                assert!(third.synced.load(Ordering::SeqCst) >= seq, "the sync does not cover an accepted write");
                let mut slot = Slot::default();
                assert!(block_on(poll_fn(|cx| third.log.poll_durable(seq, &mut slot, cx))).is_ok());
            }
        }),
        thread::spawn(move || {
            let mut last = (0, 0);
            for _ in 0..3 {
                let now = (watching.log.durable_seq(), watching.log.resolved_seq());
                assert!(now.0 >= last.0 && now.1 >= last.1, "durable and resolved went back from {last:?} to {now:?}");
                last = now;
            }
        }),
    ];
    for caller in callers {
        caller.join().unwrap();
    }
    queue.log.begin_close();
    task.join().unwrap();
    if queue.log.ended().is_none() {
        assert_eq!(queue.log.resolved_seq(), queue.log.next_seq() - 1, "the close left something unresolved");
    }
}

/// Only one writer at a time finds space, and two of the writers leave while they wait for it. The others are all
/// accepted.
pub(crate) fn space_for_writers_that_stay() {
    let len = Prepared::put(Vec::new(), b"stays 1", b"value").log_len();
    let queue = Arc::new(Queue::with_staging_bytes(len + len / 2));
    let task = Arc::clone(&queue);
    let task = thread::spawn(move || task.serve());
    let (first, second, third) = (Arc::clone(&queue), Arc::clone(&queue), Arc::clone(&queue));
    let callers = [
        thread::spawn(move || first.put(b"stays 1", Durability::Synced).is_ok()),
        thread::spawn(move || {
            let leaves = second.offer_and_give_up(b"goes 1");
            let stays = second.put(b"stays 2", Durability::Buffered).is_ok();
            leaves.into_iter().for_each(|leaves| leaves.join().unwrap());
            stays
        }),
        thread::spawn(move || {
            let leaves = third.offer_and_give_up(b"goes 2");
            let stays = third.put(b"stays 3", Durability::Written).is_ok();
            leaves.into_iter().for_each(|leaves| leaves.join().unwrap());
            stays
        }),
    ];
    let stayed = callers.map(|caller| caller.join().unwrap());
    let has_failed = queue.log.ended().is_some();
    assert!(has_failed || stayed == [true; 3], "{stayed:?} were accepted by an open log");
    if !has_failed {
        assert!(queue.put(b"stays 4", Durability::Written).is_ok() || queue.log.ended().is_some());
    }
    queue.log.begin_close();
    task.join().unwrap();
}

/// Submitted writes that do not fit, behind a writer that leaves and before one that is polled, and a close that finds
/// some of them queued.
pub(crate) fn submitted_writes_in_order() {
    let len = Prepared::put(Vec::new(), b"first 1", b"value").log_len();
    let queue = Arc::new(Queue::with_staging_bytes(len + len / 2));
    let task = Arc::clone(&queue);
    let task = thread::spawn(move || task.serve());
    let (first, second) = (Arc::clone(&queue), Arc::clone(&queue));
    let callers = [
        thread::spawn(move || {
            let _ = first.submit(b"first 0", Durability::Written);
            let leaves = first.offer_and_give_up(b"goes 1");
            let one = first.submit(b"first 1", Durability::Synced);
            let two = first.submit(b"first 2", Durability::Buffered);
            let three = first.put(b"first 3", Durability::Written);
            // Awaits them in the other order.
            let (two, one) = (two.and_then(Queue::finish), one.and_then(Queue::finish));
            if let (Ok(one), Ok(two)) = (&one, &two) {
                assert!(one < two, "two submitted writes changed places");
            }
            if let (Ok(two), Ok(three)) = (&two, &three) {
                assert!(two < three, "a polled write overtook a submitted one");
            }
            leaves.into_iter().for_each(|leaves| leaves.join().unwrap());
        }),
        thread::spawn(move || {
            let delete = second.log.submit(Prepared::tombstone(Vec::new(), b"first 1"), Durability::Written, true);
            if let Ok(Submission::Queued(promise)) = delete {
                let _ = block_on(poll_fn(|cx| promise.poll(cx)));
            }
        }),
    ];
    for caller in callers {
        caller.join().unwrap();
    }
    let last = queue.submit(b"last", Durability::Synced);
    queue.log.begin_close();
    let last = last.and_then(Queue::finish);
    task.join().unwrap();
    assert!(last.is_ok() || queue.log.ended().is_some(), "a close refused a submitted write");
}
