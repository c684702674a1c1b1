//! The reserve: disk space that deletes and compaction live on when there is no other.
//!
//! It is a file of the store's own, [`RESERVE_FILE`], of length 0, with space claimed behind its end. There is one way
//! to use that space: give all of it back to the file system, do what had met a full disk once more, and claim again
//! what is left. [`Reserve::release`] begins that, dropping the [`Loan`] ends it.
//!
//! # Invariants
//!
//! - Puts get nothing of it: no put is given new space while less than the whole reserve is held (`commit::rotate`).
//! - While a loan is out nobody claims, or the borrower would find the disk as full as it was.
//! - The file holds no bytes, so a crash at any step costs at most space, which the next open claims again.
//! - Want of space leaves the reserve smaller for a while. Whatever else keeps it from being held (a file system
//!   without `fallocate`, somebody else's file under its name, an I/O error) ends it until the next open, and then
//!   nobody is refused anything for its sake.
//!
//! Between a release and the next claim other processes may take the space. Nothing can be done about that.
//!
//! The store's own tasks call these methods, which block for a system call or some, under a mutex. Callers' threads
//! only read [`held_bytes`](Reserve::held_bytes).

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use super::RESERVE_FILE;
use crate::io::{Dir, File, OpenMode};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Less than this is not worth claiming: a block of most file systems.
const MIN_CLAIM_BYTES: u64 = 4 << 10;

/// The reserve of one open store.
pub(crate) struct Reserve {
    dir: Arc<dyn Dir>,
    /// How much is to be held; 0 once there is none to hold.
    wanted_bytes: AtomicU64,
    held_bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<Arc<dyn File>>,
    is_lent: bool,
}

/// Space given back to the file system for one purpose. Dropping it claims again what is left.
#[must_use = "dropping it takes the space away again"]
#[derive(Debug)]
pub(crate) struct Loan(Arc<Reserve>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.lock().is_lent = false;
        self.0.refill();
    }
}

impl Reserve {
    /// A reserve of `bytes` in `dir`, of which nothing is held; 0 for none.
    pub(crate) fn new(dir: Arc<dyn Dir>, bytes: u64) -> Self {
        let (wanted_bytes, held_bytes) = (AtomicU64::new(bytes), AtomicU64::new(0));
        Self { dir, wanted_bytes, held_bytes, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted_bytes(&self) -> u64 {
        self.wanted_bytes.load(Ordering::Acquire)
    }

    /// How much is held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Acquire)
    }

    /// Whether all of it is held, or there is none to hold.
    pub(crate) fn is_held(&self) -> bool {
        self.held_bytes() >= self.wanted_bytes()
    }

    // ---- opening -------------------------------------------------------------------------------------------------

    /// Takes over the file that an earlier open left, changing nothing. `false`: it is not the store's.
    pub(crate) fn adopt(&self) -> bool {
        let opened = self.dir.open(RESERVE_FILE, OpenMode::ReadWrite);
        let opened = opened.and_then(|file| file.len().map(|len| (file, len)));
        let mut state = self.lock();
        match opened {
            Ok((file, 0)) => {
                state.file = Some(file);
                // Nobody knows how much it holds: for the open, which may need it, all there can be.
                self.held_bytes.store(self.wanted_bytes(), Ordering::Release);
                true
            }
            // The store never writes there: these bytes are somebody else's.
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

    /// There is something else under its name: no reserve.
    pub(crate) fn disown(&self) {
        self.give_up(&mut self.lock());
    }

    /// The last step of an open: claims the reserve as far as there is space, or removes it where none is wanted.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        self.held_bytes.store(0, Ordering::Release);
        if self.wanted_bytes() > 0 {
            // What could not be claimed is tried again before the next put.
            let _ = self.claim(&mut state);
        } else if state.file.take().is_some() {
            // A file that stays for now is taken over, and removed, by the next open.
            let _ = self.dir.unlink(RESERVE_FILE);
        }
    }

    // ---- giving back and claiming again --------------------------------------------------------------------------

    /// Gives the space back to the file system until the loan is dropped; `None` if none is held.
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

    /// Claims what is missing, as far as there is space. Whether all of it is held now.
    pub(crate) fn refill(&self) -> bool {
        self.hold().is_ok()
    }

    /// The same, with the reason why there is no space. Costs nothing while all is held.
    pub(crate) fn hold(&self) -> io::Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let mut state = self.lock();
        if state.is_lent {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.claim(&mut state)
    }

    fn claim(&self, state: &mut State) -> io::Result<()> {
        match self.try_claim(state) {
            Err(error) if !lacks_space(&error) => {
                self.give_up(state);
                Ok(())
            }
            claimed => claimed,
        }
    }

    /// Claims in ever smaller steps, so that on a disk that is nearly full a part of it is held.
    fn try_claim(&self, state: &mut State) -> io::Result<()> {
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
                Err(error) if lacks_space(&error) && len > MIN_CLAIM_BYTES => step = (len / 2).max(MIN_CLAIM_BYTES),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give_up(&self, state: &mut State) {
        if let Some(file) = state.file.take() {
            // Best effort: what stays claimed is claimed for the next open.
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

/// Whether the disk, or somebody's quota of it, is full. A limit on the length of files is not: no space helps there.
pub(crate) fn lacks_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(all(test, feature = "__testing"))]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::Io;
    use crate::io::sim::{Fault, FaultKind, OpClass, SimConfig, SimWorld};

    const BYTES: u64 = 64 << 10;

    fn reserve_in(world: &SimWorld) -> Arc<Reserve> {
        let reserve = Arc::new(Reserve::new(world.open_dir(Path::new("/db"), true).unwrap(), BYTES));
        reserve.settle();
        reserve
    }

    #[test]
    fn a_loan_frees_the_space_and_nobody_claims_it_meanwhile() {
        let world = SimWorld::new(SimConfig { capacity_bytes: Some(BYTES), ..SimConfig::default() });
        let reserve = reserve_in(&world);
        assert_eq!((reserve.held_bytes(), world.used_bytes()), (BYTES, BYTES));
        let loan = reserve.release().unwrap();
        assert_eq!((reserve.held_bytes(), world.used_bytes()), (0, 0));
        assert!(!reserve.refill() && !reserve.is_held(), "the borrower's space");
        assert!(reserve.release().is_none(), "lent once");
        drop(loan);
        assert_eq!((reserve.is_held(), world.used_bytes()), (true, BYTES));
    }

    #[test]
    fn what_is_left_of_a_disk_is_held_and_completed_later() {
        let world = SimWorld::new(SimConfig { capacity_bytes: Some(BYTES - 1), ..SimConfig::default() });
        let reserve = reserve_in(&world);
        assert!(!reserve.is_held());
        assert_eq!(reserve.held_bytes(), BYTES - MIN_CLAIM_BYTES);
        assert!(!reserve.refill());
        world.set_capacity(Some(BYTES));
        assert!(reserve.refill() && reserve.is_held());
        let claims = world.op_count(OpClass::Allocate);
        assert!(reserve.refill());
        assert_eq!(world.op_count(OpClass::Allocate), claims, "what is held costs nothing");
    }

    #[test]
    fn what_is_not_want_of_space_ends_it_and_refuses_nobody() {
        let unsupported = SimWorld::new(SimConfig { allocate: false, ..SimConfig::default() });
        let broken = SimWorld::new(SimConfig::default());
        broken.inject(Fault::once(OpClass::Allocate, 0, FaultKind::EIO));
        for world in [unsupported, broken] {
            let reserve = reserve_in(&world);
            assert_eq!((reserve.is_held(), reserve.refill(), reserve.held_bytes()), (true, true, 0));
            assert!(reserve.release().is_none());
        }
        let full = SimWorld::new(SimConfig { capacity_bytes: Some(0), ..SimConfig::default() });
        let reserve = reserve_in(&full);
        assert_eq!((reserve.is_held(), reserve.refill()), (false, false), "not even the file");
        full.set_capacity(None);
        assert!(reserve.refill());
    }
}
