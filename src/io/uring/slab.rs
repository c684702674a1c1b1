//! The operations of one ring, and the memory the kernel may write to or read from.
//!
//! # Invariants
//!
//! - What is in the slab stays at its address (buffers are on the heap, moving their owners does not move them) and is
//!   freed by [`Slab::remove`] alone: after the operation's completion, or when it never went into the ring.
//! - A key names one operation for ever: an index is used again with another generation.

use std::io;
use std::mem;

use io_uring::{opcode, squeue, types};

use super::super::SyncKind;
use super::super::op::Op;
use super::super::os::{MAX_IO_BYTES, MAX_PIECES};

/// One operation with everything the kernel needs until its completion.
pub(super) struct InFlight {
    op: Op,
    /// The pieces of a vectored write. The kernel copies the array when it takes the entry from the submission queue,
    /// or not before the operation runs: so it lives as long.
    pieces: Vec<libc::iovec>,
    /// The bytes asked for: no more may come back.
    asked_len: u32,
}

impl InFlight {
    fn new(op: Op) -> Self {
        let mut in_flight = Self { op, pieces: Vec::new(), asked_len: 0 };
        let mut room = MAX_IO_BYTES;
        match &in_flight.op {
            Op::Read { buf, at, .. } => room -= buf.len().saturating_sub(*at).min(room),
            Op::Write { bufs, .. } => {
                for buf in bufs.iter().take(MAX_PIECES) {
                    let iov_len = buf.len().min(room);
                    room -= iov_len;
                    in_flight.pieces.push(libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len });
                    if room == 0 {
                        break;
                    }
                }
            }
            Op::Sync { .. } => {}
        }
        in_flight.asked_len = u32::try_from(MAX_IO_BYTES - room).unwrap_or(u32::MAX);
        in_flight
    }

    /// The submission; its pointers lead into this operation's own buffers.
    fn entry(&mut self) -> squeue::Entry {
        match &mut self.op {
            Op::Read { file, buf, at, offset, flags, .. } => {
                let buf = buf.get_mut(*at..).unwrap_or_default().as_mut_ptr();
                let read = opcode::Read::new(types::Fd(file.raw_fd()), buf, self.asked_len).offset(*offset);
                read.rw_flags(flags.bits().cast_signed()).build()
            }
            Op::Write { file, offset, .. } => match self.pieces.as_slice() {
                [only] => opcode::Write::new(types::Fd(file.raw_fd()), only.iov_base.cast(), self.asked_len)
                    .offset(*offset)
                    .build(),
                pieces => {
                    let count = u32::try_from(pieces.len()).unwrap_or_default();
                    opcode::Writev::new(types::Fd(file.raw_fd()), pieces.as_ptr(), count).offset(*offset).build()
                }
            },
            Op::Sync { file, kind, .. } => {
                let flags = match kind {
                    SyncKind::Data => types::FsyncFlags::DATASYNC,
                    SyncKind::All => types::FsyncFlags::empty(),
                };
                opcode::Fsync::new(types::Fd(file.raw_fd())).flags(flags).build()
            }
        }
    }

    /// Delivers the kernel's result. Runs foreign code (a waker, a buffer's owner).
    pub(super) fn finish(self, result: i32) {
        let result = match u32::try_from(result) {
            Ok(count) if count <= self.asked_len => Ok(count as usize),
            Ok(count) => Err(io::Error::other(format!("{count} bytes came back of {}", self.asked_len))),
            Err(_) => Err(io::Error::from_raw_os_error(result.wrapping_neg())),
        };
        drop(self.pieces);
        self.op.finish(result);
    }

    /// Delivers an error of ours. Runs foreign code.
    pub(super) fn fail(self, error: io::Error) {
        self.op.finish(Err(error));
    }

    /// Gives up the memory the kernel might still use.
    pub(super) fn leak_buffers(&mut self) {
        self.op.leak_buffers();
        mem::forget(mem::take(&mut self.pieces));
    }
}

/// Names an operation in the slab; goes through the kernel as `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(super) fn to_user_data(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << 32
    }

    pub(super) fn from_user_data(user_data: u64) -> Self {
        let index = u32::try_from(user_data & u64::from(u32::MAX)).unwrap_or_default();
        Self { index, generation: u32::try_from(user_data >> 32).unwrap_or_default() }
    }
}

struct Entry {
    generation: u32,
    in_flight: Option<InFlight>,
}

#[derive(Default)]
pub(super) struct Slab {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Slab {
    /// Takes `op` in, or gives it back if there are four billion others.
    pub(super) fn insert(&mut self, op: Op) -> Result<Key, Op> {
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.in_flight = Some(InFlight::new(op));
            return Ok(Key { index, generation: entry.generation });
        }
        let Ok(index) = u32::try_from(self.entries.len()) else { return Err(op) };
        // Not the last one: the doorbell's key has it.
        if index == u32::MAX {
            return Err(op);
        }
        self.entries.push(Entry { generation: 0, in_flight: Some(InFlight::new(op)) });
        Ok(Key { index, generation: 0 })
    }

    fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)
    }

    /// The submission for the operation `key`.
    pub(super) fn submission(&mut self, key: Key) -> Option<squeue::Entry> {
        let in_flight = self.get_mut(key)?.in_flight.as_mut()?;
        Some(in_flight.entry().user_data(key.to_user_data()))
    }

    /// Takes the operation out. The kernel must be done with it.
    pub(super) fn remove(&mut self, key: Key) -> Option<InFlight> {
        let entry = self.get_mut(key)?;
        let in_flight = entry.in_flight.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(in_flight)
    }

    /// Takes out all that is left, with its memory given up.
    pub(super) fn leak_all(&mut self) -> Vec<InFlight> {
        let mut left: Vec<_> = self.entries.drain(..).filter_map(|entry| entry.in_flight).collect();
        left.iter_mut().for_each(InFlight::leak_buffers);
        self.free.clear();
        left
    }
}
