//! The reserve: disk space that deletes and compaction use when the disk is full.
//!
//! The reserve is a file of length 0, [`RESERVE_FILE`], with space preallocated beyond its end. To use the space, the
//! store returns all of it to the file system, repeats the operation that met a full disk, and preallocates again what
//! is left. [`Reserve::release`] starts such a loan, and dropping the [`Loan`] ends it.
//!
//! # Invariants
//!
//! - Puts never use the reserve: no put gets new space unless the whole reserve is held (`commit::rotate`).
//! - Nobody preallocates during a loan. Otherwise the borrower would find the disk as full as before.
//! - The file contains no bytes, so a crash at any step costs at most disk space, which the next open preallocates
//!   again.
//! - A full disk makes the reserve smaller for a while. Any other failure (a file system without `fallocate`, a foreign
//!   file of the same name, an I/O error) disables the reserve until the next open, and then no put is refused for it.
//!
//! Other processes may take the space between a release and the next preallocation. The store cannot prevent that.
//!
//! The store's own tasks call these methods, which block for a few system calls under a mutex. Callers' threads only
//! read [`held_bytes`](Reserve::held_bytes).

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use super::names::RESERVE_FILE;
use crate::io::{Dir, File, OpenMode};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The smallest preallocation: one block of most file systems.
const MIN_STEP_BYTES: u64 = 4 << 10;

/// The reserve of one open store.
pub(crate) struct Reserve {
    dir: Arc<dyn Dir>,
    /// Bytes to hold; 0 if there is no reserve, or it is disabled.
    wanted_bytes: AtomicU64,
    held_bytes: AtomicU64,
    state: Mutex<ReserveState>,
}

#[derive(Default)]
struct ReserveState {
    file: Option<Arc<dyn File>>,
    is_lent: bool,
}

/// Space returned to the file system for one operation. Dropping the loan preallocates again what is left.
#[must_use = "dropping the loan takes the space back"]
#[derive(Debug)]
pub(crate) struct Loan(Arc<Reserve>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.lock().is_lent = false;
        self.0.refill();
    }
}

impl Reserve {
    /// A reserve of `bytes` in `dir` that holds nothing yet. 0 means no reserve.
    pub(crate) fn new(dir: Arc<dyn Dir>, bytes: u64) -> Self {
        let (wanted_bytes, held_bytes) = (AtomicU64::new(bytes), AtomicU64::new(0));
        Self { dir, wanted_bytes, held_bytes, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, ReserveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted_bytes(&self) -> u64 {
        self.wanted_bytes.load(Ordering::Acquire)
    }

    /// Bytes held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Acquire)
    }

    /// Whether the whole reserve is held. True if there is no reserve.
    pub(crate) fn is_held(&self) -> bool {
        self.held_bytes() >= self.wanted_bytes()
    }

    // ---- opening -------------------------------------------------------------------------------------------------

    /// Adopts the file of an earlier open without changing it. Returns `false` if the file is foreign.
    pub(crate) fn adopt(&self) -> bool {
        let opened = self.dir.open(RESERVE_FILE, OpenMode::ReadWrite);
        let opened = opened.and_then(|file| file.len().map(|len| (file, len)));
        let mut state = self.lock();
        match opened {
            Ok((file, 0)) => {
                state.file = Some(file);
                // The preallocated length is unknown. Assume all of it, so that this open can use it.
                self.held_bytes.store(self.wanted_bytes(), Ordering::Release);
                true
            }
            // The store never writes to the reserve, so a file with contents is foreign.
            Ok(_) => {
                self.give_up(&mut state);
                false
            }
            Err(error) => {
                self.give_up(&mut state);
                error.kind() != io::ErrorKind::InvalidInput
            }
        }
    }

    /// Disables the reserve, because its name belongs to something else.
    pub(crate) fn disown(&self) {
        self.give_up(&mut self.lock());
    }

    /// The last step of an open: preallocates the reserve as far as there is space, or removes the file if no reserve
    /// is wanted.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        self.held_bytes.store(0, Ordering::Release);
        if self.wanted_bytes() > 0 {
            // The next put tries to preallocate what is missing now.
            let _ = self.preallocate(&mut state);
        } else if state.file.take().is_some() {
            // If this fails, the next open adopts the file and removes it.
            let _ = self.dir.unlink(RESERVE_FILE);
        }
    }

    // ---- release and preallocation -------------------------------------------------------------------------------

    /// Returns the space to the file system until the loan is dropped. `None` if no space is held.
    pub(crate) fn release(self: &Arc<Self>) -> Option<Loan> {
        let mut state = self.lock();
        if self.held_bytes() == 0 {
            return None;
        }
        state.file.as_ref()?.truncate(0).ok()?;
        self.held_bytes.store(0, Ordering::Release);
        state.is_lent = true;
        Some(Loan(Arc::clone(self)))
    }

    /// Preallocates what is missing, as far as there is space. Returns whether the whole reserve is held.
    pub(crate) fn refill(&self) -> bool {
        self.hold().is_ok()
    }

    /// Like [`refill`](Self::refill), but returns the error. Costs nothing while the whole reserve is held.
    pub(crate) fn hold(&self) -> io::Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let mut state = self.lock();
        if state.is_lent {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.preallocate(&mut state)
    }

    fn preallocate(&self, state: &mut ReserveState) -> io::Result<()> {
        match self.try_preallocate(state) {
            Err(error) if !lacks_space(&error) => {
                self.give_up(state);
                Ok(())
            }
            result => result,
        }
    }

    /// Preallocates in ever smaller steps, so that a nearly full disk holds a part of the reserve.
    fn try_preallocate(&self, state: &mut ReserveState) -> io::Result<()> {
        let file = match &state.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(state.file.insert(self.dir.open(RESERVE_FILE, OpenMode::CreateNew)?)),
        };
        let (wanted, mut held) = (self.wanted_bytes(), self.held_bytes());
        let mut step = wanted.saturating_sub(held);
        while held < wanted {
            let len = step.min(wanted - held);
            match file.allocate(held, len) {
                Ok(()) => {
                    held += len;
                    self.held_bytes.store(held, Ordering::Release);
                }
                Err(error) if lacks_space(&error) && len > MIN_STEP_BYTES => step = (len / 2).max(MIN_STEP_BYTES),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give_up(&self, state: &mut ReserveState) {
        if let Some(file) = state.file.take() {
            // Best effort: the next open adopts what stays allocated.
            let _ = file.truncate(0);
        }
        self.wanted_bytes.store(0, Ordering::Release);
        self.held_bytes.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve").field("held_bytes", &self.held_bytes()).finish_non_exhaustive()
    }
}

/// Whether the disk or a disk quota is full. A limit on file sizes does not count, because free space does not help.
pub(crate) fn lacks_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::Io;
    use crate::io::sim::{Fault, FaultKind, OpClass, SimBackend, SimConfig};

    const BYTES: u64 = 64 << 10;

    fn reserve_in(world: &SimBackend) -> Arc<Reserve> {
        let reserve = Arc::new(Reserve::new(world.open_dir(Path::new("/db"), true).unwrap(), BYTES));
        reserve.settle();
        reserve
    }

    #[test]
    fn a_loan_frees_the_space_until_it_is_dropped() {
        let world = SimBackend::new(SimConfig { capacity_bytes: Some(BYTES), ..SimConfig::default() });
        let reserve = reserve_in(&world);
        assert_eq!((reserve.held_bytes(), world.used_bytes()), (BYTES, BYTES));
        let loan = reserve.release().unwrap();
        assert_eq!((reserve.held_bytes(), world.used_bytes()), (0, 0));
        assert!(!reserve.refill() && !reserve.is_held(), "the space belongs to the borrower");
        assert!(reserve.release().is_none(), "only one loan at a time");
        drop(loan);
        assert_eq!((reserve.is_held(), world.used_bytes()), (true, BYTES));
    }

    #[test]
    fn a_nearly_full_disk_holds_a_part_and_later_the_rest() {
        let world = SimBackend::new(SimConfig { capacity_bytes: Some(BYTES - 1), ..SimConfig::default() });
        let reserve = reserve_in(&world);
        assert!(!reserve.is_held());
        assert_eq!(reserve.held_bytes(), BYTES - MIN_STEP_BYTES);
        assert!(!reserve.refill());
        world.set_capacity(Some(BYTES));
        assert!(reserve.refill() && reserve.is_held());
        let allocations = world.op_count(OpClass::Allocate);
        assert!(reserve.refill());
        assert_eq!(world.op_count(OpClass::Allocate), allocations, "a full reserve needs no system call");
    }

    #[test]
    fn other_errors_than_a_full_disk_disable_the_reserve() {
        let unsupported = SimBackend::new(SimConfig { allocate: false, ..SimConfig::default() });
        let broken = SimBackend::new(SimConfig::default());
        broken.inject(Fault::once(OpClass::Allocate, 0, FaultKind::EIO));
        for world in [unsupported, broken] {
            let reserve = reserve_in(&world);
            assert_eq!((reserve.is_held(), reserve.refill(), reserve.held_bytes()), (true, true, 0));
            assert!(reserve.release().is_none());
        }
        let full = SimBackend::new(SimConfig { capacity_bytes: Some(0), ..SimConfig::default() });
        let reserve = reserve_in(&full);
        assert_eq!((reserve.is_held(), reserve.refill()), (false, false), "the file could not be created");
        full.set_capacity(None);
        assert!(reserve.refill());
    }
}
