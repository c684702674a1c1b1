//! A simulated backend: a disk that forgets what was not synced, a clock and a scheduler, all driven by one seed.
//!
//! [`SimBackend`] is an [`Io`] for tests of this crate and of code built on it. It never waits and starts no threads. Two
//! runs with the same seed and the same calls take the same steps, which [`SimBackend::trace_hash`] can confirm. The
//! simulation knows nothing of stores: it sees names and bytes.
//!
//! ```
//! # #![allow(clippy::unwrap_used)]
//! use ringcask::testing::io::{Io, OpenMode, SyncKind, util};
//! use ringcask::testing::sim::{Rng, SimConfig, SimBackend};
//!
//! let world = SimBackend::new(SimConfig { seed: 7, ..SimConfig::default() });
//! let dir = world.open_dir("/db".as_ref(), true)?;
//! let file = dir.open("log", OpenMode::CreateNew)?;
//! dir.sync()?;
//! world.run_until(async {
//!     util::write_all(&*file, vec!["kept".into()], 0).await?;
//!     file.sync(SyncKind::Data).await?;
//!     util::write_all(&*file, vec![" perhaps".into()], 4).await
//! })?;
//!
//! // The power fails after the last step. Every possible disk contains the synced bytes.
//! let journal = world.journal();
//! for image in journal.crash_images(journal.len(), 100, &mut Rng::new(1)) {
//!     assert_eq!(&image.bytes("log").unwrap()[..4], b"kept");
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What the disk may do
//!
//! - A crash leaves the synced data and any subset of the rest. [`CrashPoint`] defines what is undecided and how many
//!   images result. Holes contain zeros, ones, noise, bytes that a truncation cut off there, or another file's bytes.
//! - Concurrent operations complete in any order. A sync covers exactly the writes whose completion was delivered
//!   before it started.
//! - Operations fail as scheduled ([`Fault`]), or are short, interrupted or late at the rates of [`SimConfig`]. A
//!   failed sync loses data for good, although reads see it until the pages are dropped.
//! - [`SimBackend::set_capacity`] limits the space.
//!
//! # What the simulation omits
//!
//! Hard links, subdirectories as entries to open, permissions, and file systems that lose synced data (but see
//! [`FaultKind::SyncLie`]). Directory operations are atomic: there is no crash in the middle of one.

mod config;
mod crash;
mod disk;
mod exec;
mod faults;
mod files;
mod image;
mod rng;
mod state;
mod steps;
mod tasks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Dir, Io, IoKind, OpFuture, Priority, Task};
pub use config::SimConfig;
pub use crash::{CrashPoint, DirOrder, Journal, JournalReplay, RANDOM_IMAGES};
use disk::DiskEvent;
pub use faults::{Fault, FaultKind, OpClass};
use files::{SimDir, SimSleep, dir_path};
pub use image::Image;
pub use rng::Rng;
use state::{SimShared, SimState, errno, nanos};
pub use steps::{Step, StepKind};
use tasks::Timer;

/// The simulated clock starts at 2026-01-01, 00:00 UTC.
const WALL_START: Duration = Duration::from_secs(1_767_225_600);

/// A handle of a simulated backend. Clones refer to the same backend.
#[derive(Clone)]
pub struct SimBackend {
    shared: Arc<SimShared>,
}

impl SimBackend {
    /// Creates a backend with an empty disk.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self::from_image(Image::new(), config)
    }

    /// Creates a backend whose disk contains `image`, all of it durable. No lock is held.
    #[must_use]
    pub fn from_image(image: Image, mut config: SimConfig) -> Self {
        config.sector_bytes = config.sector_bytes.max(1);
        Self { shared: SimShared::new(SimState::new(image, config)) }
    }

    /// The number of steps so far that can matter to a crash. What was acknowledged at step *n* must be found after
    /// every crash at step *n* or later.
    #[must_use]
    pub fn step(&self) -> usize {
        self.shared.lock().step
    }

    /// The steps so far. Empty if [`SimConfig::journal`] is off.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.shared.lock().journal()
    }

    /// Takes the steps so far without copying them. No further steps are recorded.
    #[must_use]
    pub fn take_journal(&self) -> Journal {
        self.shared.lock().take_journal()
    }

    /// Images that a power failure at this moment may leave, at most `budget` of them. Does not need the journal.
    #[must_use]
    pub fn crash_images(&self, budget: usize, rng: &mut Rng) -> Vec<Image> {
        let state = self.shared.lock();
        let point = CrashPoint::new(&state.disk, state.config.sector_bytes, state.config.dir_order);
        let seed = rng.next_u64();
        point.sample(budget, rng).map(|number| point.image(number, seed)).collect()
    }

    /// The image that a kill of the process at this moment leaves; see [`Journal::kill_image`].
    #[must_use]
    pub fn kill_image(&self, rng: &mut Rng) -> Image {
        crash::kill_image(&self.shared.lock().disk, rng)
    }

    /// The live contents: what an orderly shutdown of the machine leaves.
    #[must_use]
    pub fn image(&self) -> Image {
        crash::live_image(&self.shared.lock().disk)
    }

    /// Adds to the fault schedule.
    pub fn inject(&self, fault: Fault) {
        self.shared.lock().faults.add(fault);
    }

    /// Clears the fault schedule.
    pub fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// The number of operations of `class` so far.
    #[must_use]
    pub fn op_count(&self, class: OpClass) -> u64 {
        self.shared.lock().faults.count(class)
    }

    /// The number of operations that met a scheduled fault.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.shared.lock().faults.injected()
    }

    /// Sets the capacity of the disk, or removes the limit. If it is below the used space, no more space can be
    /// reserved.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.lock().capacity_bytes = bytes;
    }

    /// The used bytes of the disk, including preallocated space.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().used_bytes()
    }

    /// Sets the wall clock, forwards or backwards. It continues from there. Monotonic time is unaffected.
    pub fn set_wall_clock(&self, time: SystemTime) {
        let mut state = self.shared.lock();
        let since = match time.duration_since(UNIX_EPOCH + WALL_START) {
            Ok(after) => i128::from(nanos(after)),
            Err(before) => -i128::from(nanos(before.duration())),
        };
        state.wall_offset_ns = since - i128::from(state.now_ns);
    }

    /// The panic messages of tasks. A test should end by checking that there are none.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        self.shared.lock().panics.clone()
    }

    /// A hash that is equal for two runs that made the same decisions and left the same disk.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        let state = self.shared.lock();
        rng::scramble(state.trace ^ crash::live_image(&state.disk).hash() ^ state.now_ns)
    }

    /// Runs all tasks until `future` is ready.
    ///
    /// # Panics
    ///
    /// - "deadlock": `future` cannot become ready, because no task is awake, nothing is in flight and no timer expires
    ///   within a simulated day.
    /// - "spinning": tasks stay busy without ever making `future` ready.
    /// - Another call is already running this backend.
    ///
    /// A panic of `future` propagates. A panic of a task does not; see [`panics`](Self::panics).
    pub fn run_until<F: Future>(&self, future: F) -> F::Output {
        self.shared.run_until(future)
    }

    /// Runs all tasks until none is awake, nothing is in flight and no timer expires within `limit` of simulated time.
    ///
    /// # Panics
    ///
    /// If another call is already running this backend.
    pub fn run_to_idle(&self, limit: Duration) {
        self.shared.run_to_idle(limit);
    }

    /// Switches the power off: drops every task, fails every operation in flight and every later one with `EIO`, and
    /// leaves the disk as it is.
    ///
    /// Tasks and their backend refer to each other. A backend whose tasks have not all ended is never freed without
    /// this call.
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }
}

impl fmt::Debug for SimBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBackend").finish_non_exhaustive()
    }
}

impl Io for SimBackend {
    fn kind(&self) -> IoKind {
        IoKind::Sim
    }

    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        let path = dir_path(path);
        let mut state = self.shared.lock();
        state.powered()?;
        state.faults.check(OpClass::OpenDir)?;
        let dir = match state.disk.find_dir(&path) {
            Some(dir) => dir,
            None if create => {
                state.record(DiskEvent::DirCreated { path: path.into() });
                state.disk.dirs.len() - 1
            }
            None => return Err(errno(libc::ENOENT)),
        };
        Ok(Arc::new(SimDir { shared: self.shared.clone(), dir }))
    }

    fn spawn(&self, name: &'static str, _: Priority, task: Task) -> io::Result<()> {
        {
            let mut state = self.shared.lock();
            state.powered()?;
            state.faults.check(OpClass::Spawn)?;
        }
        self.shared.add_task(name, task);
        Ok(())
    }

    fn sleep(&self, duration: Duration) -> OpFuture<()> {
        let id = {
            let mut state = self.shared.lock();
            let id = state.next_timer;
            state.next_timer += 1;
            if !state.off {
                let deadline_ns = state.now_ns.saturating_add(nanos(duration));
                state.timers.push(Timer { id, deadline_ns, fired: false, waker: None });
            }
            id
        };
        Box::pin(SimSleep { shared: self.shared.clone(), id })
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.shared.lock().now_ns)
    }

    fn wall_clock(&self) -> SystemTime {
        let state = self.shared.lock();
        let since = i128::from(state.now_ns) + state.wall_offset_ns;
        let distance = Duration::from_nanos(u64::try_from(since.unsigned_abs()).unwrap_or(u64::MAX));
        let start = UNIX_EPOCH + WALL_START;
        if since < 0 { start - distance } else { start + distance }
    }

    fn random_u64(&self) -> io::Result<u64> {
        Ok(self.shared.lock().entropy.next_u64())
    }

    /// Runs all tasks until `done` returns true, or until nothing more happens within a simulated minute. Returns at
    /// once inside a task or inside [`run_until`](SimBackend::run_until).
    fn block_until(&self, done: &dyn Fn() -> bool) {
        let Some(_driving) = self.shared.drive() else { return };
        let horizon_ns = self.shared.lock().now_ns.saturating_add(60_000_000_000);
        while !done() && self.shared.turn(horizon_ns) {}
    }
}
