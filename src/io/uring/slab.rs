//! The operations of one ring, and the memory that the kernel may read or write for them.
//!
//! # Invariants
//!
//! - Memory that the kernel uses stays at its address: buffers are on the heap, so moving their owners does not move
//!   them. Only [`Slab::remove`] releases it, after the operation's completion or if the operation never entered the
//!   ring.
//! - A key identifies one operation forever: a reused index has a new generation.

use std::io;
use std::mem;

use io_uring::{opcode, squeue, types};

use super::super::SyncKind;
use super::super::descriptor::{MAX_IO_BYTES, MAX_PIECES};
use super::super::op::Op;

/// One operation, with everything the kernel needs until its completion.
pub(super) struct OpInFlight {
    op: Op,
    /// The buffers of a vectored write. The kernel may copy this array only when the operation runs, so it lives as
    /// long as the operation.
    pieces: Vec<libc::iovec>,
    /// Number of bytes requested. The kernel must not return more.
    asked_len: u32,
}

impl OpInFlight {
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
            Op::ReadAhead { .. } | Op::Sync { .. } => {}
        }
        in_flight.asked_len = u32::try_from(MAX_IO_BYTES - room).unwrap_or(u32::MAX);
        in_flight
    }

    /// Builds the submission. Its pointers point to this operation's own buffers.
    fn entry(&mut self) -> squeue::Entry {
        match &mut self.op {
            Op::Read { file, buf, at, offset, flags, .. } => {
                let buf = buf.get_mut(*at..).unwrap_or_default().as_mut_ptr();
                let read = opcode::Read::new(types::Fd(file.raw_fd()), buf, self.asked_len).offset(*offset);
                read.rw_flags(flags.bits().cast_signed()).build()
            }
            // The kernel runs this in a worker thread, because it may block.
            Op::ReadAhead { file, offset, len } => {
                opcode::Fadvise::new(types::Fd(file.raw_fd()), (*len).into(), libc::POSIX_FADV_WILLNEED)
                    .offset(*offset)
                    .build()
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

    /// Delivers the kernel's result. Runs foreign code: a waker, and the owner of a buffer.
    pub(super) fn finish(self, result: i32) {
        let result = match u32::try_from(result) {
            Ok(count) if count <= self.asked_len => Ok(count as usize),
            Ok(count) => {
                Err(io::Error::other(format!("the kernel returned {count} bytes of {} requested", self.asked_len)))
            }
            Err(_) => Err(io::Error::from_raw_os_error(result.wrapping_neg())),
        };
        drop(self.pieces);
        self.op.finish(result);
    }

    /// Delivers an error of the driver. Runs foreign code.
    pub(super) fn fail(self, error: io::Error) {
        self.op.finish(Err(error));
    }

    /// Leaks the memory that the kernel might still use.
    pub(super) fn leak_buffers(&mut self) {
        self.op.leak_buffers();
        mem::forget(mem::take(&mut self.pieces));
    }
}

/// Identifies an operation in the slab. The kernel carries it as `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpKey {
    index: u32,
    generation: u32,
}

impl OpKey {
    pub(super) fn to_user_data(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << 32
    }

    pub(super) fn from_user_data(user_data: u64) -> Self {
        let index = u32::try_from(user_data & u64::from(u32::MAX)).unwrap_or_default();
        Self { index, generation: u32::try_from(user_data >> 32).unwrap_or_default() }
    }
}

struct SlabEntry {
    generation: u32,
    in_flight: Option<OpInFlight>,
}

#[derive(Default)]
pub(super) struct Slab {
    entries: Vec<SlabEntry>,
    free: Vec<u32>,
}

impl Slab {
    /// Inserts `op`. Returns it if the slab holds 2^32 - 1 operations.
    pub(super) fn insert(&mut self, op: Op) -> Result<OpKey, Op> {
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.in_flight = Some(OpInFlight::new(op));
            return Ok(OpKey { index, generation: entry.generation });
        }
        let Ok(index) = u32::try_from(self.entries.len()) else { return Err(op) };
        // The last index belongs to the doorbell's key.
        if index == u32::MAX {
            return Err(op);
        }
        self.entries.push(SlabEntry { generation: 0, in_flight: Some(OpInFlight::new(op)) });
        Ok(OpKey { index, generation: 0 })
    }

    fn get_mut(&mut self, key: OpKey) -> Option<&mut SlabEntry> {
        self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)
    }

    /// Builds the submission of the operation `key`.
    pub(super) fn submission(&mut self, key: OpKey) -> Option<squeue::Entry> {
        let in_flight = self.get_mut(key)?.in_flight.as_mut()?;
        Some(in_flight.entry().user_data(key.to_user_data()))
    }

    /// Removes the operation. The kernel must have finished with it.
    pub(super) fn remove(&mut self, key: OpKey) -> Option<OpInFlight> {
        let entry = self.get_mut(key)?;
        let in_flight = entry.in_flight.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(in_flight)
    }

    /// Removes all operations, and leaks their memory.
    pub(super) fn leak_all(&mut self) -> Vec<OpInFlight> {
        let mut left: Vec<_> = self.entries.drain(..).filter_map(|entry| entry.in_flight).collect();
        left.iter_mut().for_each(OpInFlight::leak_buffers);
        self.free.clear();
        left
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};
    use std::future::Future;
    use std::os::fd::OwnedFd;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use rustix::io::ReadWriteFlags;

    use super::*;
    use crate::io::ReadDone;
    use crate::io::descriptor::FileDescriptor;
    use crate::io::op::{OpHandle, slot};

    /// Memory that counts how often it is freed.
    struct CountedBuf([u8; 32], Arc<AtomicUsize>);

    impl AsRef<[u8]> for CountedBuf {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for CountedBuf {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn file() -> Arc<FileDescriptor> {
        Arc::new(FileDescriptor::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())))
    }

    fn read(file: &Arc<FileDescriptor>, len: usize) -> (Op, OpHandle<ReadDone>) {
        let (done, handle) = slot();
        let (file, flags) = (Arc::clone(file), ReadWriteFlags::empty());
        (Op::Read { file, buf: vec![7; len], at: 0, offset: 0, flags, done }, handle)
    }

    fn write(file: &Arc<FileDescriptor>, pieces: usize, freed: &Arc<AtomicUsize>) -> (Op, OpHandle<io::Result<usize>>) {
        let (done, handle) = slot();
        let bufs = (0..pieces).map(|_| Bytes::from_owner(CountedBuf([9; 32], Arc::clone(freed)))).collect();
        (Op::Write { file: Arc::clone(file), bufs, offset: 0, done }, handle)
    }

    fn insert(slab: &mut Slab, op: Op) -> OpKey {
        slab.insert(op).ok().expect("there is room")
    }

    /// The addresses passed to the kernel, and the first and last byte at each of them.
    fn memory(slab: &mut Slab, key: OpKey) -> (Vec<usize>, Vec<u8>) {
        let in_flight = slab.get_mut(key).unwrap().in_flight.as_ref().unwrap();
        let pieces: Vec<&[u8]> = match &in_flight.op {
            Op::Read { buf, .. } => vec![&buf[..]],
            Op::Write { bufs, .. } => bufs.iter().map(|buf| &buf[..]).collect(),
            Op::ReadAhead { .. } | Op::Sync { .. } => Vec::new(),
        };
        let told = in_flight.pieces.iter().map(|piece| piece.iov_base as usize);
        let addresses: Vec<usize> = pieces.iter().map(|piece| piece.as_ptr() as usize).collect();
        assert!(told.clone().count() == 0 || told.eq(addresses.iter().copied()), "the iovec array points elsewhere");
        (addresses, pieces.iter().flat_map(|piece| [piece[0], piece[piece.len() - 1]]).collect())
    }

    /// The caller's end of a read or a write.
    enum CallerHandle {
        Reads(OpHandle<ReadDone>),
        Writes(OpHandle<io::Result<usize>>),
    }

    struct StartedOp {
        key: OpKey,
        /// The addresses passed to the kernel, and the bytes there.
        told: (Vec<usize>, Vec<u8>),
        is_write: bool,
        /// `None` if the caller dropped its handle at once.
        caller: Option<CallerHandle>,
    }

    /// A slab under test.
    struct SlabUnderTest {
        slab: Slab,
        file: Arc<FileDescriptor>,
        in_flight: VecDeque<StartedOp>,
        /// Keys of the operations that have finished.
        ended: Vec<OpKey>,
        freed: Arc<AtomicUsize>,
        pieces_ended: usize,
    }

    impl SlabUnderTest {
        fn begin(&mut self, step: usize) {
            let is_write = !step.is_multiple_of(4);
            let (op, caller) = if is_write {
                let (op, handle) = write(&self.file, 1 + step % 3, &self.freed);
                (op, CallerHandle::Writes(handle))
            } else {
                let (op, handle) = read(&self.file, 16 + step % 50);
                (op, CallerHandle::Reads(handle))
            };
            let key = insert(&mut self.slab, op);
            assert_eq!(OpKey::from_user_data(key.to_user_data()), key, "user_data round trip");
            let told = memory(&mut self.slab, key);
            let caller = Some(caller).filter(|_| !step.is_multiple_of(3));
            self.in_flight.push_back(StartedOp { key, told, is_write, caller });
        }

        fn end(&mut self) {
            let Some(StartedOp { key, told, is_write, caller }) = self.in_flight.pop_front() else { return };
            assert_eq!(memory(&mut self.slab, key), told, "memory in use by the kernel moved or changed");
            assert!(self.slab.submission(key).is_some());
            self.slab.remove(key).expect("it was in flight").finish(0);
            self.pieces_ended += if is_write { told.0.len() } else { 0 };
            assert_eq!(
                self.freed.load(Ordering::Relaxed),
                self.pieces_ended,
                "each buffer is freed once, on completion"
            );
            match caller {
                Some(CallerHandle::Reads(handle)) => {
                    let ReadDone { result, buf } = finished(handle);
                    assert_eq!((result.unwrap(), buf.as_ptr() as usize), (0, told.0[0]), "not the buffer of this read");
                }
                Some(CallerHandle::Writes(handle)) => assert_eq!(finished(handle).unwrap(), 0),
                None => {}
            }
            self.ended.push(key);
        }
    }

    /// The result of a finished operation.
    fn finished<T>(mut handle: OpHandle<T>) -> T {
        match Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("not finished"),
        }
    }

    #[test]
    fn buffers_never_move_and_are_freed_once() {
        let mut slab = SlabUnderTest {
            slab: Slab::default(),
            file: file(),
            in_flight: VecDeque::new(),
            ended: Vec::new(),
            freed: Arc::default(),
            pieces_ended: 0,
        };
        // Grows and shrinks repeatedly: the table moves, and indexes are reused.
        for step in 0..5_000 {
            if step % 500 < 300 { slab.begin(step) } else { slab.end() }
        }
        let indexes: HashSet<u32> = slab.ended.iter().map(|key| key.index).collect();
        assert!(
            indexes.len() * 2 < slab.ended.len(),
            "too few indexes were reused: {} of {}",
            indexes.len(),
            slab.ended.len()
        );
        for key in mem::take(&mut slab.ended) {
            assert!(slab.slab.submission(key).is_none() && slab.slab.remove(key).is_none(), "{key:?} was reused");
        }
        while !slab.in_flight.is_empty() {
            slab.end();
        }
        assert!(slab.pieces_ended > 1_000, "{}", slab.pieces_ended);
    }

    /// `tests/sanitize` must report this error, which shows that the sanitizer is active and covers this memory. It
    /// reads freed memory on purpose, so it exists only in that script's build.
    #[cfg(ringcask_canary)]
    #[test]
    #[allow(unsafe_code, reason = "the seeded bug for the sanitizer")]
    fn canary_a_buffer_that_is_freed_in_flight() {
        let (mut slab, (op, handle)) = (Slab::default(), read(&file(), 4096));
        let key = insert(&mut slab, op);
        if let Some(OpInFlight { op: Op::Read { buf, .. }, .. }) = &slab.get_mut(key).unwrap().in_flight {
            // SAFETY: none. The slab still owns the buffer; this simulates a future that frees it when dropped.
            drop(unsafe { std::ptr::read(buf) });
        }
        slab.remove(key).unwrap().finish(4096);
        println!("{}", finished(handle).buf.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        std::process::abort();
    }

    #[test]
    fn leaked_buffers_are_never_freed_and_callers_get_an_error() {
        let (file, freed, mut slab) = (file(), Arc::new(AtomicUsize::new(0)), Slab::default());
        let (op, handle) = write(&file, 2, &freed);
        let key = insert(&mut slab, op);
        drop(slab.leak_all());
        assert_eq!(freed.load(Ordering::Relaxed), 0, "the kernel may still read the buffers");
        assert!(finished(handle).is_err());
        assert!(slab.remove(key).is_none());
    }

    #[test]
    fn a_result_larger_than_the_request_is_an_error() {
        let file = file();
        for (count, is_right) in [(0, true), (16, true), (17, false), (i32::MAX, false), (-libc::EIO, false)] {
            let mut slab = Slab::default();
            let (op, handle) = read(&file, 16);
            let key = insert(&mut slab, op);
            slab.remove(key).unwrap().finish(count);
            assert_eq!(finished(handle).result.is_ok(), is_right, "{count}");
        }
    }
}
