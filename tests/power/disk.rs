//! A file-backed disk whose file system can be cut off from it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::killed_writer::DEADLINE;

/// The file systems that know how to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// What it is mounted with, one of these at a time: how data and journal are ordered, and when blocks are chosen.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["data=ordered", "data=writeback", "nodelalloc", "data=journal", "data=writeback,commit=1"],
            Self::Xfs => &["defaults", "logbsize=256k", "allocsize=64k"],
        }
    }

    fn make(self, image: &Path) -> Command {
        // An XFS is at least 300 MiB; the image is sparse.
        let (program, mib) = match self {
            Self::Ext4 => ("mkfs.ext4", 128),
            Self::Xfs => ("mkfs.xfs", 300),
        };
        fs::File::create(image).unwrap().set_len(mib << 20).unwrap();
        let mut command = Command::new(program);
        command.args(if self == Self::Ext4 { ["-q", "-F"] } else { ["-q", "-f"] }).arg(image);
        command
    }
}

/// What a cut leaves of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cut {
    /// It is written out first: metadata is newer than the data it speaks of.
    JournalFlushed = 1,
    /// Nothing is written out.
    Nothing = 2,
}

/// `_IOR('X', 125, __u32)`: `EXT4_IOC_SHUTDOWN`, and `XFS_IOC_GOINGDOWN` too.
const SHUTDOWN: libc::Ioctl = 0x8004_587d;

pub struct Disk {
    _home: TempDir,
    kind: Kind,
    image: PathBuf,
    pub point: PathBuf,
    options: &'static str,
    is_mounted: bool,
}

impl Disk {
    /// A fresh file system, mounted; or the reason why none is available here.
    pub fn new(kind: Kind, options: &'static str) -> Result<Self, String> {
        let home = TempDir::with_prefix("ringcask-power-").unwrap();
        let (image, point) = (home.path().join("image"), home.path().join("mount"));
        fs::create_dir(&point).unwrap();
        run(&mut kind.make(&image))?;
        let mut disk = Self { _home: home, kind, image, point, options, is_mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Result<(), String> {
        let filesystem = if self.kind == Kind::Ext4 { "ext4" } else { "xfs" };
        let options = format!("loop,{}", self.options);
        run(Command::new("mount").args(["-t", filesystem, "-o", &options]).arg(&self.image).arg(&self.point))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Cuts the file system off from its disk: what is not there by now never comes there.
    #[allow(unsafe_code, reason = "ioctl has no safe wrapper for this request; it is called here alone")]
    pub fn cut(&self, cut: Cut) {
        let root = fs::File::open(&self.point).unwrap();
        let how = cut as u32;
        // SAFETY: the request reads four bytes at the address, which are those of `how`, and keeps no pointer.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const how) };
        assert_eq!(result, 0, "shutting down {}: {}", self.point.display(), std::io::Error::last_os_error());
    }

    /// Mounts it again, as after a start of the machine: nothing but the disk's content is left.
    pub fn restart(&mut self) {
        // A ring gives the descriptors of a killed process back a moment after its end, and until then this is busy.
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = run(Command::new("umount").arg(&self.point)) {
            assert!(Instant::now() < deadline, "{error}");
            thread::sleep(Duration::from_millis(2));
        }
        self.is_mounted = false;
        self.mount().unwrap_or_else(|error| panic!("mounting after a power cut: {error}"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily, and the loop device with it: a failed test may hold descriptors.
            let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
