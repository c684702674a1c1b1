//! The state of a simulated backend behind one lock, and the effect of each operation on it.
//!
//! The lock is never held while a waker is called or a task is dropped, because both may call back into this module.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::config::SimConfig;
use super::crash::Journal;
use super::disk::{DirIndex, Disk, DiskEvent, Ino, OpId, SyncOutcome, index};
use super::faults::{FaultKind, FaultSchedule, OpClass};
use super::image::Image;
use super::rng::{Rng, scramble};
use super::tasks::{ReadyQueue, TaskSlot, Timer};
use crate::io::{ReadDone, SyncKind};

pub(super) struct SimShared {
    state: Mutex<SimState>,
    pub(super) ready: Arc<ReadyQueue>,
}

impl SimShared {
    pub(super) fn new(state: SimState) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), ready: Arc::default() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SimState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct SimState {
    pub(super) config: SimConfig,
    pub(super) disk: Disk,
    initial: Image,
    events: Option<Vec<DiskEvent>>,
    pub(super) step: usize,
    /// Source of all scheduling decisions.
    pub(super) rng: Rng,
    /// Source of the store's random numbers. Separate, so that drawing them does not change the schedule.
    pub(super) entropy: Rng,
    pub(super) faults: FaultSchedule,
    pub(super) capacity_bytes: Option<u64>,
    /// Bytes used by each inode, including space preallocated beyond its end.
    charges: Vec<u64>,
    used_bytes: u64,
    ops: Vec<Option<SimOp>>,
    free_ops: Vec<usize>,
    /// Slots of the operations that the scheduler may complete.
    pub(super) in_flight: Vec<usize>,
    /// Slots of the operations that may not complete before the given time.
    late: Vec<(u64, usize)>,
    /// Writes whose completion has not been delivered.
    undelivered: Vec<OpId>,
    next_op: OpId,
    pub(super) timers: Vec<Timer>,
    pub(super) next_timer: u64,
    pub(super) now_ns: u64,
    pub(super) wall_offset_ns: i128,
    pub(super) tasks: Vec<TaskSlot>,
    pub(super) locks: Vec<(DirIndex, Arc<str>)>,
    pub(super) panics: Vec<String>,
    pub(super) trace: u64,
    pub(super) off: bool,
    pub(super) running: bool,
}

/// An operation from the call that started it to the poll that takes its result.
struct SimOp {
    id: OpId,
    ino: Ino,
    kind: SimOpKind,
    fault: Option<FaultKind>,
    waker: Option<Waker>,
    done: Option<SimOpResult>,
    abandoned: bool,
}

enum SimOpKind {
    Read { buf: Vec<u8>, at: usize, offset: u64 },
    Write { len: usize, offset: u64 },
    Sync,
    Finished,
}

/// The result of an operation of any kind.
pub(super) enum SimOpResult {
    Read(ReadDone),
    Write(io::Result<usize>),
    Sync(io::Result<()>),
}

pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl SimState {
    pub(super) fn new(image: Image, config: SimConfig) -> Self {
        let disk = Disk::from_image(&image);
        let charges: Vec<u64> = disk.inodes.iter().map(|inode| inode.live.len() as u64).collect();
        let mut rng = Rng::new(config.seed);
        let entropy = rng.fork();
        Self {
            disk,
            initial: image,
            events: config.journal.then(Vec::new),
            step: 0,
            rng,
            entropy,
            faults: FaultSchedule::default(),
            capacity_bytes: config.capacity_bytes,
            used_bytes: charges.iter().sum(),
            charges,
            ops: Vec::new(),
            free_ops: Vec::new(),
            in_flight: Vec::new(),
            late: Vec::new(),
            undelivered: Vec::new(),
            next_op: 0,
            timers: Vec::new(),
            next_timer: 0,
            now_ns: 0,
            wall_offset_ns: 0,
            tasks: Vec::new(),
            locks: Vec::new(),
            panics: Vec::new(),
            trace: config.seed,
            off: false,
            running: false,
            config,
        }
    }

    /// Applies `event` to the disk and records it.
    pub(super) fn record(&mut self, event: DiskEvent) {
        self.disk.apply(&event, self.config.sector_bytes);
        self.step += 1;
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    pub(super) fn journal(&self) -> Journal {
        Journal {
            initial: self.initial.clone(),
            events: Arc::new(self.events.clone().unwrap_or_default()),
            sector_bytes: self.config.sector_bytes,
            dir_order: self.config.dir_order,
        }
    }

    pub(super) fn take_journal(&mut self) -> Journal {
        Journal {
            initial: self.initial.clone(),
            events: Arc::new(self.events.take().unwrap_or_default()),
            sector_bytes: self.config.sector_bytes,
            dir_order: self.config.dir_order,
        }
    }

    pub(super) fn mix(&mut self, word: u64) {
        self.trace = scramble(self.trace ^ word);
    }

    pub(super) fn powered(&self) -> io::Result<()> {
        if self.off { Err(errno(libc::EIO)) } else { Ok(()) }
    }

    // Space.

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    fn charge_of(&self, ino: Ino) -> u64 {
        self.charges.get(ino).copied().unwrap_or(0)
    }

    pub(super) fn set_charge(&mut self, ino: Ino, bytes: u64) {
        if self.charges.len() <= ino {
            self.charges.resize(ino + 1, 0);
        }
        if let Some(charge) = self.charges.get_mut(ino) {
            self.used_bytes = self.used_bytes - *charge + bytes;
            *charge = bytes;
        }
    }

    /// How far a file can extend towards `end` with the free space.
    fn reachable(&self, ino: Ino, end: u64) -> u64 {
        let free = self.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used_bytes));
        end.min(self.charge_of(ino).saturating_add(free))
    }

    /// Reserves space up to `end`, all or nothing.
    pub(super) fn reserve_space(&mut self, ino: Ino, end: u64) -> io::Result<()> {
        if self.reachable(ino, end) < end {
            return Err(errno(libc::ENOSPC));
        }
        self.set_charge(ino, end.max(self.charge_of(ino)));
        Ok(())
    }

    // Operations.

    fn start(&mut self, ino: Ino, kind: SimOpKind, fault: Option<FaultKind>) -> usize {
        let op = SimOp { id: self.next_op, ino, kind, fault, waker: None, done: None, abandoned: false };
        self.next_op += 1;
        let slot = self.free_ops.pop().unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        if let Some(place) = self.ops.get_mut(slot) {
            *place = Some(op);
        }
        let late_us = match fault {
            Some(FaultKind::Late(micros)) => u64::from(micros),
            _ if self.rng.percent(self.config.late_percent) => 100 + self.rng.below(20_000) as u64,
            _ => 0,
        };
        if self.off {
            self.finish(slot);
        } else if late_us > 0 {
            self.late.push((self.now_ns.saturating_add(late_us * 1_000), slot));
        } else {
            self.in_flight.push(slot);
        }
        slot
    }

    /// Makes late operations that are due available to the scheduler. Returns the due time of the next one.
    pub(super) fn release_late(&mut self) -> Option<u64> {
        let now_ns = self.now_ns;
        let due = self.late.extract_if(.., |(due_ns, _)| *due_ns <= now_ns).map(|(_, slot)| slot);
        self.in_flight.extend(due);
        self.late.iter().map(|(due_ns, _)| *due_ns).min()
    }

    /// The scheduled fault of an operation of `class`, or a random one at the configured rates.
    fn fault_for(&mut self, class: OpClass, len: usize) -> Option<FaultKind> {
        self.faults.next(class).or_else(|| {
            if self.rng.percent(self.config.interrupt_percent) {
                let kinds = [FaultKind::EINTR, FaultKind::EAGAIN, FaultKind::Errno(libc::ECANCELED)];
                kinds.get(self.rng.below(kinds.len())).copied()
            } else if len > 1 && self.rng.percent(self.config.short_percent) {
                Some(FaultKind::Short(1 + self.rng.below(len - 1)))
            } else {
                None
            }
        })
    }

    pub(super) fn start_read(&mut self, ino: Ino, buf: Vec<u8>, at: usize, offset: u64) -> usize {
        let fault = self.fault_for(OpClass::Read, buf.len().saturating_sub(at));
        self.start(ino, SimOpKind::Read { buf, at, offset }, fault)
    }

    pub(super) fn start_write(&mut self, ino: Ino, mut bufs: Vec<Bytes>, offset: u64, writable: bool) -> usize {
        let data = match bufs.len() {
            1 => bufs.pop().unwrap_or_default(),
            _ => bufs
                .iter()
                .fold(BytesMut::new(), |mut all, buf| {
                    all.extend_from_slice(buf);
                    all
                })
                .freeze(),
        };
        let fault = self.fault_for(OpClass::Write, data.len());
        let fault = if writable { fault } else { Some(FaultKind::Errno(libc::EBADF)) };
        let slot = self.start(ino, SimOpKind::Write { len: data.len(), offset }, fault);
        if !self.off {
            let op = self.next_op - 1;
            self.undelivered.push(op);
            self.mix(offset ^ (data.len() as u64) << 40);
            self.record(DiskEvent::WriteSubmitted { op, ino, offset, data });
        }
        slot
    }

    pub(super) fn start_sync(&mut self, ino: Ino, kind: SyncKind) -> usize {
        let fault = self.faults.next(OpClass::Sync);
        let slot = self.start(ino, SimOpKind::Sync, fault);
        if !self.off {
            let (op, undelivered) = (self.next_op - 1, self.undelivered.clone());
            self.record(DiskEvent::SyncSubmitted { op, ino, kind, undelivered });
        }
        slot
    }

    /// Carries out the operation in `slot`. Returns the waker of its future.
    pub(super) fn complete(&mut self, slot: usize) -> Option<Waker> {
        let op = self.ops.get_mut(slot)?.as_mut()?;
        let kind = std::mem::replace(&mut op.kind, SimOpKind::Finished);
        let (id, ino, fault, abandoned) = (op.id, op.ino, op.fault, op.abandoned);
        let done = match kind {
            SimOpKind::Read { mut buf, at, offset } => {
                let result = self.read(ino, buf.get_mut(at..).unwrap_or_default(), offset, fault);
                SimOpResult::Read(ReadDone { result, buf })
            }
            SimOpKind::Write { len, offset } => {
                let (applied, result) = self.write(ino, len, offset, fault);
                self.record(DiskEvent::WriteCompleted { op: id, ino, applied });
                SimOpResult::Write(result)
            }
            SimOpKind::Sync => {
                let (outcome, result) = self.sync(fault);
                self.record(DiskEvent::SyncCompleted { op: id, ino, outcome });
                SimOpResult::Sync(result)
            }
            SimOpKind::Finished => return None,
        };
        if abandoned {
            self.delivered(id);
            self.release(slot);
            return None;
        }
        let op = self.ops.get_mut(slot)?.as_mut()?;
        op.done = Some(done);
        op.waker.take()
    }

    /// Reads the live contents, subject to the fault.
    pub(super) fn read(
        &mut self,
        ino: Ino,
        buf: &mut [u8],
        offset: u64,
        fault: Option<FaultKind>,
    ) -> io::Result<usize> {
        let limit = match fault {
            Some(FaultKind::Errno(code)) => return Err(errno(code)),
            Some(FaultKind::Short(limit)) => limit.min(buf.len()),
            _ => buf.len(),
        };
        let (ino, offset) = match fault {
            Some(FaultKind::Misdirected) => self.elsewhere(ino, offset),
            _ => (ino, offset),
        };
        let live = self.disk.inode(ino).map(|inode| inode.live.as_slice()).unwrap_or_default();
        let there = live.get(index(offset)..).unwrap_or_default();
        let count = limit.min(there.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        if fault == Some(FaultKind::BitFlip)
            && let Some(byte) = buf.get_mut(self.rng.below(count))
        {
            *byte ^= 1 << self.rng.below(8);
        }
        Ok(count)
    }

    /// Another place to read from: in another file, or some sectors away in the same file.
    fn elsewhere(&mut self, ino: Ino, offset: u64) -> (Ino, u64) {
        let other = self.rng.below(self.disk.next_ino());
        if other != ino {
            return (other, offset);
        }
        let away = (1 + self.rng.below(4)) as u64 * self.config.sector_bytes as u64;
        (ino, offset.checked_sub(away).unwrap_or(offset + away))
    }

    /// Returns how many bytes a write applies, and the result for its caller.
    fn write(&mut self, ino: Ino, len: usize, offset: u64, fault: Option<FaultKind>) -> (usize, io::Result<usize>) {
        let (wanted, error) = match fault {
            Some(FaultKind::Errno(code @ (libc::EIO | libc::ENOMEM))) => (self.rng.below(len + 1), Some(code)),
            Some(FaultKind::Errno(code)) => (0, Some(code)),
            Some(FaultKind::Short(limit)) => (limit.min(len), None),
            _ => (len, None),
        };
        let applied = index(self.reachable(ino, offset + wanted as u64).saturating_sub(offset)).min(wanted);
        if applied > 0 {
            self.set_charge(ino, self.charge_of(ino).max(offset + applied as u64));
        }
        let result = match error {
            Some(code) => Err(errno(code)),
            None if applied == 0 && wanted > 0 => Err(errno(libc::ENOSPC)),
            None => Ok(applied),
        };
        (applied, result)
    }

    fn sync(&mut self, fault: Option<FaultKind>) -> (SyncOutcome, io::Result<()>) {
        let eio = || Err(errno(libc::EIO));
        match fault {
            Some(FaultKind::Errno(code)) => {
                let outcome = match self.rng.below(3) {
                    0 => SyncOutcome::FailedKept,
                    1 => SyncOutcome::FailedLost,
                    _ => SyncOutcome::FailedPartial(self.rng.next_u64()),
                };
                (outcome, Err(errno(code)))
            }
            Some(FaultKind::SyncKept) => (SyncOutcome::FailedKept, eio()),
            Some(FaultKind::SyncLost) => (SyncOutcome::FailedLost, eio()),
            Some(FaultKind::SyncPartial) => (SyncOutcome::FailedPartial(self.rng.next_u64()), eio()),
            Some(FaultKind::SyncLie) => (SyncOutcome::Lied, Ok(())),
            _ => (SyncOutcome::Durable, Ok(())),
        }
    }

    pub(super) fn poll_op(&mut self, slot: usize, waker: &Waker) -> Poll<SimOpResult> {
        let Some(Some(op)) = self.ops.get_mut(slot) else { return Poll::Pending };
        let Some(done) = op.done.take() else {
            if op.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
                op.waker = Some(waker.clone());
            }
            return Poll::Pending;
        };
        let id = op.id;
        self.delivered(id);
        self.release(slot);
        Poll::Ready(done)
    }

    /// The future was dropped: the operation completes without it.
    pub(super) fn abandon(&mut self, slot: usize) {
        let Some(Some(op)) = self.ops.get_mut(slot) else { return };
        if op.done.is_some() {
            let id = op.id;
            self.delivered(id);
            self.release(slot);
        } else {
            op.abandoned = true;
            op.waker = None;
        }
    }

    /// Fails all operations in flight because the power is off. Returns the wakers of their futures.
    pub(super) fn finish_all(&mut self) -> Vec<Waker> {
        let slots = std::mem::take(&mut self.in_flight);
        let late = std::mem::take(&mut self.late).into_iter().map(|(_, slot)| slot);
        slots.into_iter().chain(late).filter_map(|slot| self.finish(slot)).collect()
    }

    fn finish(&mut self, slot: usize) -> Option<Waker> {
        let op = self.ops.get_mut(slot)?.as_mut()?;
        let failed = || errno(libc::EIO);
        op.done = Some(match std::mem::replace(&mut op.kind, SimOpKind::Finished) {
            SimOpKind::Read { buf, .. } => SimOpResult::Read(ReadDone { result: Err(failed()), buf }),
            SimOpKind::Write { .. } => SimOpResult::Write(Err(failed())),
            SimOpKind::Sync | SimOpKind::Finished => SimOpResult::Sync(Err(failed())),
        });
        let waker = op.waker.take();
        if op.abandoned {
            self.release(slot);
        }
        waker
    }

    fn delivered(&mut self, id: OpId) {
        self.undelivered.retain(|undelivered| *undelivered != id);
    }

    fn release(&mut self, slot: usize) {
        if let Some(place) = self.ops.get_mut(slot) {
            *place = None;
            self.free_ops.push(slot);
        }
    }

    /// For the state dump of a stuck simulation.
    pub(super) fn op_count_in_flight(&self) -> usize {
        self.in_flight.len() + self.late.len()
    }
}
