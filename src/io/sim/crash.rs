//! Crashes of a simulated run: its journal, its crash points, and the images that each of them may leave.
//!
//! A [`JournalReplay`] replays a journal event by event. Between any two events lies a crash point, at which some
//! things are undecided: each sector of each unsynced write, each unsynced truncation, whether a growing file got its
//! new length, and each unsynced directory operation. Up to ten undecided things are combined exhaustively. With more,
//! the images are: all lost, all kept, each lost alone, each kept alone, and [`RANDOM_IMAGES`] random ones.
//!
//! The crash point, the image number and a seed determine an image, so an image that breaks a store can be reproduced
//! without the others.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::disk::{
    Change, DirIndex, DirOp, Directory, Disk, DiskEvent, Entries, Ino, Node, SimInode, index, overlay, sectors,
};
use super::image::{Image, ImageFile};
use super::rng::{Rng, scramble};

/// Which subsets of unsynced directory operations may survive a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirOrder {
    /// Any subset: POSIX guarantees no order between them.
    #[default]
    Posix,
    /// Any prefix of each directory's operations, as with the journal of ext4 or XFS.
    Ext4Ordered,
}

/// Up to this many undecided things are combined exhaustively.
const EXHAUSTIVE_CHOICES: usize = 10;
/// Number of random images of a crash point with more undecided things.
pub const RANDOM_IMAGES: u64 = 64;

/// All events of a simulated disk since its creation.
#[derive(Clone)]
pub struct Journal {
    pub(super) initial: Image,
    pub(super) events: Arc<Vec<DiskEvent>>,
    pub(super) sector_bytes: usize,
    pub(super) dir_order: DirOrder,
}

impl Journal {
    /// The number of steps. A crash may come after 0, 1, … `len()` of them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// A description of the step with index `step`, for people.
    #[must_use]
    pub fn describe(&self, step: usize) -> String {
        self.events.get(step).map_or_else(|| "the end".to_owned(), describe)
    }

    /// Starts a replay before the first step.
    #[must_use]
    pub fn replay(&self) -> JournalReplay {
        JournalReplay { journal: self.clone(), disk: Disk::from_image(&self.initial), step: 0 }
    }

    /// Images that a power failure after `step` steps may leave, at most `budget` of them.
    ///
    /// Replays the journal from its start. To visit many crash points, use [`replay`](Self::replay).
    pub fn crash_images(&self, step: usize, budget: usize, rng: &mut Rng) -> impl Iterator<Item = Image> + use<> {
        let mut replay = self.replay();
        replay.advance_to(step);
        let seed = rng.next_u64();
        let picks: Vec<u64> = replay.crash_point().sample(budget, rng).collect();
        picks.into_iter().map(move |number| replay.crash_point().image(number, seed))
    }

    /// The image in the kernel's page cache when the process is killed after `step` steps. Writes in flight may have
    /// been applied in part.
    #[must_use]
    pub fn kill_image(&self, step: usize, rng: &mut Rng) -> Image {
        let mut replay = self.replay();
        replay.advance_to(step);
        replay.kill_image(rng)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.events.iter().map(describe)).finish()
    }
}

fn describe(event: &DiskEvent) -> String {
    match event {
        DiskEvent::WriteSubmitted { op, ino, offset, data } => {
            format!("write {op} of {} bytes to inode {ino} at {offset} submitted", data.len())
        }
        DiskEvent::WriteCompleted { op, ino, applied } => {
            format!("write {op} to inode {ino} completed: {applied} bytes")
        }
        DiskEvent::SyncSubmitted { op, ino, kind, undelivered } => {
            format!("sync {op} ({kind:?}) of inode {ino} submitted, without writes {undelivered:?}")
        }
        DiskEvent::SyncCompleted { op, ino, outcome } => format!("sync {op} of inode {ino} completed: {outcome:?}"),
        other => format!("{other:?}"),
    }
}

/// A replay of a [`Journal`], positioned between two steps.
#[derive(Clone, Debug)]
pub struct JournalReplay {
    journal: Journal,
    disk: Disk,
    step: usize,
}

impl JournalReplay {
    /// The number of steps replayed so far.
    #[must_use]
    pub fn step(&self) -> usize {
        self.step
    }

    /// Replays one step. Returns false at the end of the journal.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.journal.events.get(self.step) else { return false };
        self.disk.apply(event, self.journal.sector_bytes);
        self.step += 1;
        true
    }

    /// Replays up to `step` steps in total, or to the end of the journal.
    pub fn advance_to(&mut self, step: usize) {
        while self.step < step && self.advance() {}
    }

    /// The crash point at this position.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint<'_> {
        CrashPoint::new(&self.disk, self.journal.sector_bytes, self.journal.dir_order)
    }

    /// The image that a kill of the process at this position leaves; see [`Journal::kill_image`].
    #[must_use]
    pub fn kill_image(&self, rng: &mut Rng) -> Image {
        kill_image(&self.disk, rng)
    }
}

/// An undecided thing that a power failure decides.
#[derive(Clone, Debug)]
enum Choice {
    /// Whether a sector of a completed write is on the disk.
    Sector { item: usize, range: Range<usize> },
    /// Whether a sector of a write in flight, or a part of it, is on the disk.
    TornSector { write: usize, range: Range<usize> },
    /// Whether a truncation is on the disk.
    Truncation { item: usize },
    /// Whether the file has its new length, with unknown contents.
    Length { longest: usize },
    /// Whether a directory operation is on the disk.
    Entry,
}

/// The choices that an image keeps.
#[derive(Clone, Copy, Debug)]
enum KeptChoices {
    Bits(u64),
    All,
    Nothing,
    AllBut(usize),
    Only(usize),
    Random(u64),
}

impl KeptChoices {
    fn keeps(self, choice: usize) -> bool {
        match self {
            Self::Bits(bits) => bits >> choice & 1 == 1,
            Self::All => true,
            Self::Nothing => false,
            Self::AllBut(lost) => choice != lost,
            Self::Only(kept) => choice == kept,
            Self::Random(seed) => scramble(seed ^ choice as u64) & 1 == 1,
        }
    }
}

/// The contents of a hole: a range inside the file to which nothing was persisted.
#[derive(Clone, Copy, Debug)]
enum HoleFill {
    Zeros,
    Ones,
    Random(u64),
    /// Bytes that an earlier truncation cut off there.
    Stale,
    /// Bytes of another, unlinked file at the same offset.
    Freed,
}

/// A power failure at one position in a run, with all images that it may leave.
#[derive(Debug)]
pub struct CrashPoint<'d> {
    disk: &'d Disk,
    choices: Vec<Choice>,
    /// The inodes with choices, and the range of their choices.
    files: Vec<(Ino, Range<usize>)>,
    /// The directories with choices, and the range of their choices.
    dirs: Vec<(DirIndex, Range<usize>)>,
    dir_paths: Arc<Vec<Arc<str>>>,
    dir_order: DirOrder,
}

impl<'d> CrashPoint<'d> {
    pub(super) fn new(disk: &'d Disk, sector_bytes: usize, dir_order: DirOrder) -> Self {
        let dir_paths = Arc::new(disk.dirs.iter().map(|dir| dir.path.clone()).collect());
        let mut point = Self { disk, choices: Vec::new(), files: Vec::new(), dirs: Vec::new(), dir_paths, dir_order };
        for (index, dir) in disk.dirs.iter().enumerate() {
            for node in dir.durable.values() {
                point.add_file(*node, sector_bytes);
            }
            let start = point.choices.len();
            point.choices.extend(dir.pending.iter().map(|_| Choice::Entry));
            if !dir.pending.is_empty() {
                point.dirs.push((index, start..point.choices.len()));
            }
            for op in &dir.pending {
                let (DirOp::Create { node, .. } | DirOp::Rename { node, .. } | DirOp::Unlink { node, .. }) = op;
                point.add_file(*node, sector_bytes);
            }
        }
        point
    }

    /// The number of undecided things.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.choices.len()
    }

    /// The number of images; see the [module](crate::io::sim).
    #[must_use]
    pub fn image_count(&self) -> u64 {
        let choices = self.choices.len();
        if choices <= EXHAUSTIVE_CHOICES { 1 << choices } else { 2 + 2 * choices as u64 + RANDOM_IMAGES }
    }

    /// The numbers of at most `budget` images: all, or the two extremes and a random spread over the others.
    pub fn sample(&self, budget: usize, rng: &mut Rng) -> impl Iterator<Item = u64> + use<> {
        let count = self.image_count();
        let picks = count.min(budget as u64);
        // The number of the image that keeps everything. Image 0 keeps nothing. The others lie between the two or
        // behind them.
        let all = if self.choices.len() <= EXHAUSTIVE_CHOICES { count - 1 } else { 1 };
        let others_start = if all == 1 { 2 } else { 1 };
        let mut rng = rng.fork();
        (0..picks).map(move |pick| match pick {
            _ if count == picks => pick,
            0 => 0,
            1 => all,
            _ => {
                let start = |nth: u64| others_start + nth * (count - 2) / (picks - 2);
                let (start, end) = (start(pick - 2), start(pick - 1));
                start + rng.below(index(end - start)) as u64
            }
        })
    }

    /// Image `number` of [`image_count`](Self::image_count). `seed` determines what the number leaves open: torn
    /// sectors and the contents of holes.
    #[must_use]
    pub fn image(&self, number: u64, seed: u64) -> Image {
        let mut rng = Rng::new(scramble(seed ^ number.wrapping_mul(0x9e37_79b9)));
        let pick = self.pick(number, &mut rng);
        let fill = match rng.below(5) {
            0 => HoleFill::Zeros,
            1 => HoleFill::Ones,
            2 => HoleFill::Stale,
            3 => HoleFill::Freed,
            _ => HoleFill::Random(rng.next_u64()),
        };
        let mut image = Image { dirs: self.dir_paths.clone(), files: Vec::with_capacity(8) };
        for (at, dir) in self.disk.dirs.iter().enumerate() {
            let choices = self.dirs.iter().find(|(index, _)| *index == at).map(|(_, choices)| choices);
            let Some(choices) = choices else {
                self.add_entries(&mut image, &dir.path, &dir.durable, pick, fill, &mut rng);
                continue;
            };
            let entries = self.entries(dir, choices.start, pick);
            self.add_entries(&mut image, &dir.path, &entries, pick, fill, &mut rng);
        }
        if self.disk.dirs.len() > 1 {
            image.files.sort_by(|a, b| (&a.dir, &a.name).cmp(&(&b.dir, &b.name)));
        }
        image
    }

    fn pick(&self, number: u64, rng: &mut Rng) -> KeptChoices {
        let choices = self.choices.len();
        let number = index(number);
        if choices <= EXHAUSTIVE_CHOICES {
            return KeptChoices::Bits(number as u64);
        }
        match number {
            0 => KeptChoices::Nothing,
            1 => KeptChoices::All,
            _ if number < 2 + choices => KeptChoices::AllBut(number - 2),
            _ if number < 2 + 2 * choices => KeptChoices::Only(number - 2 - choices),
            _ => KeptChoices::Random(rng.next_u64()),
        }
    }

    fn add_file(&mut self, node: Node, sector_bytes: usize) {
        let Node::File(ino) = node else { return };
        let Some(inode) = self.disk.inode(ino) else { return };
        if inode.is_settled() || self.files.iter().any(|(known, _)| *known == ino) {
            return;
        }
        let start = self.choices.len();
        let mut longest = inode.live.len();
        for (item, pending) in inode.pending.iter().enumerate() {
            match &pending.change {
                Change::Write { offset, data } => self
                    .choices
                    .extend(sectors(*offset, data.len(), sector_bytes).map(|range| Choice::Sector { item, range })),
                Change::Truncate { .. } => self.choices.push(Choice::Truncation { item }),
            }
        }
        for (write, in_flight) in inode.in_flight.iter().enumerate() {
            longest = longest.max(index(in_flight.offset) + in_flight.data.len());
            let pieces = sectors(in_flight.offset, in_flight.data.len(), sector_bytes);
            self.choices.extend(pieces.map(|range| Choice::TornSector { write, range }));
        }
        if longest > inode.durable.len() {
            self.choices.push(Choice::Length { longest });
        }
        self.files.push((ino, start..self.choices.len()));
    }

    /// The entries of a directory after some of its pending operations survived.
    fn entries(&self, dir: &Directory, first_choice: usize, pick: KeptChoices) -> Entries {
        let mut entries = dir.durable.clone();
        let kept = |op: usize| pick.keeps(first_choice + op);
        // In order: keep as many operations as were chosen, but always the first ones.
        let in_order = (0..dir.pending.len()).filter(|op| kept(*op)).count();
        for (at, op) in dir.pending.iter().enumerate() {
            let survives = match self.dir_order {
                DirOrder::Posix => kept(at),
                DirOrder::Ext4Ordered => at < in_order,
            };
            if !survives {
                continue;
            }
            match op {
                DirOp::Create { name, node } => {
                    entries.insert(name.clone(), *node);
                }
                DirOp::Rename { from, to, node } => {
                    if entries.get(from) == Some(node) {
                        entries.remove(from);
                    }
                    entries.insert(to.clone(), *node);
                }
                DirOp::Unlink { name, node } => {
                    if entries.get(name) == Some(node) {
                        entries.remove(name);
                    }
                }
            }
        }
        entries
    }

    fn add_entries(
        &self,
        image: &mut Image,
        dir: &Arc<str>,
        entries: &Entries,
        pick: KeptChoices,
        fill: HoleFill,
        rng: &mut Rng,
    ) {
        for (name, node) in entries {
            let bytes = match node {
                Node::Other => None,
                Node::File(ino) => self.disk.inode(*ino).map(|inode| {
                    let choices = self.files.iter().find(|(known, _)| known == ino).map(|(_, choices)| choices);
                    match choices {
                        Some(choices) => self.contents(inode, choices, pick, fill, rng),
                        None => inode.durable.clone(),
                    }
                }),
            };
            image.files.push(ImageFile { dir: dir.clone(), name: name.clone(), bytes });
        }
    }

    /// The contents of a file after some of its pending changes survived.
    fn contents(
        &self,
        inode: &SimInode,
        choices: &Range<usize>,
        pick: KeptChoices,
        fill: HoleFill,
        rng: &mut Rng,
    ) -> Arc<Vec<u8>> {
        let mut bytes = Vec::clone(&inode.durable);
        let all = self.choices.get(choices.clone()).unwrap_or_default();
        for (choice, number) in all.iter().zip(choices.clone()) {
            let kept = pick.keeps(number);
            match choice {
                Choice::Sector { item, range } if kept => {
                    if let Some(Change::Write { offset, data }) = inode.pending.get(*item).map(|item| &item.change) {
                        self.place(inode, &mut bytes, index(*offset), data, range.clone(), fill);
                    }
                }
                Choice::TornSector { write, range } if kept => {
                    if let Some(write) = inode.in_flight.get(*write) {
                        let range = tear(range.clone(), rng);
                        self.place(inode, &mut bytes, index(write.offset), &write.data, range, fill);
                    }
                }
                Choice::Truncation { item } if kept => {
                    if let Some(Change::Truncate { len }) = inode.pending.get(*item).map(|item| &item.change) {
                        bytes.resize(index(*len), 0);
                    }
                }
                Choice::Length { longest } if kept => self.fill(inode, &mut bytes, *longest, fill),
                // The data may be on the disk without the length that makes it visible.
                Choice::Length { .. } if bytes.len() > inode.durable.len() && rng.percent(12) => {
                    let shortest = inode.durable.len();
                    bytes.truncate(shortest + rng.below(bytes.len() - shortest));
                }
                _ => {}
            }
        }
        Arc::new(bytes)
    }

    fn place(
        &self,
        inode: &SimInode,
        bytes: &mut Vec<u8>,
        offset: usize,
        data: &[u8],
        range: Range<usize>,
        fill: HoleFill,
    ) {
        let start = offset + range.start;
        self.fill(inode, bytes, start, fill);
        overlay(bytes, start, data.get(range).unwrap_or_default());
    }

    /// Extends `bytes` to `len` with what an unwritten block may contain.
    fn fill(&self, inode: &SimInode, bytes: &mut Vec<u8>, len: usize, fill: HoleFill) {
        if bytes.len() >= len {
            return;
        }
        let start = bytes.len();
        let old = match fill {
            HoleFill::Zeros => return bytes.resize(len, 0),
            HoleFill::Ones => return bytes.resize(len, 0xff),
            HoleFill::Random(seed) => {
                let mut rng = Rng::new(seed ^ start as u64);
                while bytes.len() < len {
                    bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
                }
                return bytes.truncate(len);
            }
            HoleFill::Stale => &inode.stale,
            HoleFill::Freed => &*self.disk.freed,
        };
        bytes.extend_from_slice(old.get(start..len.min(old.len())).unwrap_or_default());
        bytes.resize(len, 0);
    }
}

/// The whole range, its beginning, its end, or a part in the middle.
fn tear(range: Range<usize>, rng: &mut Rng) -> Range<usize> {
    let cut = |rng: &mut Rng| range.start + rng.below(range.len() + 1);
    match rng.below(8) {
        0..4 => range,
        4..6 => range.start..cut(rng),
        6 => cut(rng)..range.end,
        _ => {
            let (a, b) = (cut(rng), cut(rng));
            a.min(b)..a.max(b)
        }
    }
}

pub(super) fn kill_image(disk: &Disk, rng: &mut Rng) -> Image {
    let mut image = live_image(disk);
    for dir in &disk.dirs {
        for (name, node) in &dir.live {
            let Node::File(ino) = node else { continue };
            for write in disk.inode(*ino).map(|inode| inode.in_flight.as_slice()).unwrap_or_default() {
                let done = match rng.below(3) {
                    0 => continue,
                    1 => write.data.len(),
                    _ => rng.below(write.data.len() + 1),
                };
                let file = image.files.iter_mut().find(|file| file.dir == dir.path && file.name == *name);
                if let Some(bytes) = file.and_then(|file| file.bytes.as_mut()).filter(|_| done > 0) {
                    overlay(Arc::make_mut(bytes), index(write.offset), write.data.get(..done).unwrap_or_default());
                }
            }
        }
    }
    image
}

/// The live contents.
pub(super) fn live_image(disk: &Disk) -> Image {
    let mut image = Image { dirs: Arc::new(disk.dirs.iter().map(|dir| dir.path.clone()).collect()), files: Vec::new() };
    for dir in &disk.dirs {
        for (name, node) in &dir.live {
            let bytes = match node {
                Node::Other => None,
                Node::File(ino) => disk.inode(*ino).map(|inode| inode.live.clone()),
            };
            image.files.push(ImageFile { dir: dir.path.clone(), name: name.clone(), bytes });
        }
    }
    image.files.sort_by(|a, b| (&a.dir, &a.name).cmp(&(&b.dir, &b.name)));
    image
}
