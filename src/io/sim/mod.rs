//! A simulated world: a disk that forgets what was not synced, a clock, and a scheduler, all decided by one seed.
//!
//! [`SimWorld`] is an [`Io`] like the real ones, for tests of this crate and of code built on it. Nothing in it waits,
//! no thread is started, and two runs with the same seed and the same calls are the same, step by step
//! ([`SimWorld::trace_hash`] tells). It knows nothing of stores: it sees names and bytes.
//!
//! ```
//! # #![allow(clippy::unwrap_used)]
//! use ringcask::testing::io::{Io, OpenMode, SyncKind, util};
//! use ringcask::testing::sim::{Rng, SimConfig, SimWorld};
//!
//! let world = SimWorld::new(SimConfig { seed: 7, ..SimConfig::default() });
//! let dir = world.open_dir("/db".as_ref(), true)?;
//! let file = dir.open("log", OpenMode::CreateNew)?;
//! dir.sync()?;
//! world.run_until(async {
//!     util::write_all(&*file, vec!["kept".into()], 0).await?;
//!     file.sync(SyncKind::Data).await?;
//!     util::write_all(&*file, vec![" perhaps".into()], 4).await
//! })?;
//!
//! // The power goes after the last step: whatever the disk is left with, the synced bytes are in it.
//! let journal = world.journal();
//! for image in journal.crash_images(journal.len(), 100, &mut Rng::new(1)) {
//!     assert_eq!(&image.bytes("log").unwrap()[..4], b"kept");
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What the disk may do
//!
//! - A crash leaves the synced data and any subset of the rest: see [`CrashPoint`] for what is undecided and how many
//!   images are made of it. Holes hold zeros, ones, noise, what a truncation cut off there, or what another file had.
//! - Concurrent operations complete in any order; a sync covers the writes whose completion had been delivered before
//!   it was made, and no others.
//! - Operations fail as scheduled ([`Fault`]) or, at the rates of [`SimConfig`], are short, interrupted or late. A failed sync
//!   loses data for good, yet reads see it until the pages are dropped.
//! - Space is limited by [`SimWorld::set_capacity`].
//!
//! # What it leaves out
//!
//! Hard links and sub-directories as files, permissions, file systems that lose data that was synced (but see
//! [`FaultKind::SyncLie`]), and a crash in the middle of a directory operation: those are atomic.

mod crash;
mod disk;
mod exec;
mod faults;
mod files;
mod image;
mod rng;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Dir, Io, IoKind, OpFuture, Priority, Task};
pub use crash::{CrashPoint, DirOrder, Journal, RANDOM_IMAGES, Walk};
use disk::Event;
use exec::Timer;
pub use faults::{Fault, FaultKind, OpClass};
use files::{SimDir, Sleep, dir_path};
pub use image::Image;
pub use rng::Rng;
use state::{Shared, State, errno};
pub use steps::{Step, StepKind};

/// When simulated time began: 2026-01-01, 00:00 UTC.
const WALL_START: Duration = Duration::from_secs(1_767_225_600);

/// The properties of a simulated world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Decides everything that is open.
    pub seed: u64,
    /// The unit that is persisted or not, independently of others; 512 by default. Not 0.
    pub sector_bytes: usize,
    /// Which sets of directory operations survive a crash.
    pub dir_order: DirOrder,
    /// How many of a hundred `read_nowait` calls find that they would have to wait.
    pub nowait_miss_percent: u8,
    /// How many of a hundred reads and writes do only a part.
    pub short_percent: u8,
    /// How many of a hundred reads and writes are interrupted before they do anything.
    pub interrupt_percent: u8,
    /// How many of a hundred reads, writes and syncs take up to 20 ms; others overtake them.
    pub late_percent: u8,
    /// Whether the file system can claim space in advance.
    pub allocate: bool,
    /// What [`File::writes_in_place`](crate::io::File::writes_in_place) says.
    pub in_place: bool,
    /// How many bytes the disk has; `None` for no limit.
    pub capacity_bytes: Option<u64>,
    /// Whether events are kept for a [`Journal`].
    pub journal: bool,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            sector_bytes: 512,
            dir_order: DirOrder::Posix,
            nowait_miss_percent: 30,
            short_percent: 0,
            interrupt_percent: 0,
            late_percent: 0,
            allocate: true,
            in_place: true,
            capacity_bytes: None,
            journal: true,
        }
    }
}

/// A handle of a simulated world; clones are the same world.
#[derive(Clone)]
pub struct SimWorld {
    shared: Arc<Shared>,
}

impl SimWorld {
    /// A world with an empty disk.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self::from_image(Image::new(), config)
    }

    /// A world whose disk holds `image`, all of it durable. No lock is held in it.
    #[must_use]
    pub fn from_image(image: Image, mut config: SimConfig) -> Self {
        config.sector_bytes = config.sector_bytes.max(1);
        Self { shared: Shared::new(State::new(image, config)) }
    }

    /// How many steps there have been that can matter to a crash: what was acknowledged at step *n* must be found after
    /// every crash at step *n* or later.
    #[must_use]
    pub fn step(&self) -> usize {
        self.shared.lock().step
    }

    /// The steps so far. Empty without [`SimConfig::journal`].
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.shared.lock().journal()
    }

    /// The steps so far, without copying them; none are kept from here on.
    #[must_use]
    pub fn take_journal(&self) -> Journal {
        self.shared.lock().take_journal()
    }

    /// What a power cut right now may leave, at most `budget` images of it. Needs no journal.
    #[must_use]
    pub fn crash_images(&self, budget: usize, rng: &mut Rng) -> Vec<Image> {
        let state = self.shared.lock();
        let point = CrashPoint::new(&state.disk, state.config.sector_bytes, state.config.dir_order);
        let seed = rng.next_u64();
        point.sample(budget, rng).map(|number| point.image(number, seed)).collect()
    }

    /// What a kill of the process right now leaves; see [`Journal::kill_image`].
    #[must_use]
    pub fn kill_image(&self, rng: &mut Rng) -> Image {
        crash::kill_image(&self.shared.lock().disk, rng)
    }

    /// What reads see: what an orderly end of the machine leaves.
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

    /// How many operations of `class` there have been.
    #[must_use]
    pub fn op_count(&self, class: OpClass) -> u64 {
        self.shared.lock().faults.count(class)
    }

    /// How many operations have met a scheduled fault.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.shared.lock().faults.injected()
    }

    /// Gives the disk `bytes` in all, or no limit. It may be less than what is used: then nothing more can be claimed.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.lock().capacity = bytes;
    }

    /// How much of the disk is used, including space that was claimed in advance.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().used()
    }

    /// Sets the wall clock, forwards or backwards; it goes on from there. Monotonic time is not touched.
    pub fn set_wall_clock(&self, time: SystemTime) {
        let mut state = self.shared.lock();
        let since = match time.duration_since(UNIX_EPOCH + WALL_START) {
            Ok(after) => i128::from(nanos(after)),
            Err(before) => -i128::from(nanos(before.duration())),
        };
        state.wall_offset_ns = since - i128::from(state.now_ns);
    }

    /// What tasks of the world died of. A test should end by finding this empty.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        self.shared.lock().panics.clone()
    }

    /// A number that is the same for two runs that made the same choices and left the same disk.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        let state = self.shared.lock();
        rng::scramble(state.trace ^ crash::live_image(&state.disk).hash() ^ state.now_ns)
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld").finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Io for SimWorld {
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
                state.record(Event::DirCreated { path: path.into() });
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
        Box::pin(Sleep { shared: self.shared.clone(), id })
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

    /// Drives the world until `done`, or until nothing more happens in a simulated minute; returns at once inside a
    /// task, or inside [`run_until`](SimWorld::run_until).
    fn block_until(&self, done: &dyn Fn() -> bool) {
        let Some(_driving) = self.shared.drive() else { return };
        let horizon_ns = self.shared.lock().now_ns.saturating_add(60_000_000_000);
        while !done() && self.shared.turn(horizon_ns) {}
    }
}
