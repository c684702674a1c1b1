//! A disk in a file, whose file system can be cut off from it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::killed_writer::DEADLINE;

/// The file systems that can be shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// Mount options, of which a mount uses one entry. They differ in the order of data and journal, and in the time of
    /// block allocation.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["data=ordered", "data=writeback", "nodelalloc", "data=journal", "data=writeback,commit=1"],
            Self::Xfs => &["defaults", "logbsize=256k", "allocsize=64k"],
        }
    }

    fn make(self, image: &Path) -> Command {
        // XFS needs at least 300 MiB. The image is sparse.
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

/// What happens to the journal at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cut {
    /// It is written out first, so metadata is newer than the data it refers to.
    JournalFlushed = 1,
    /// It is not written out.
    Nothing = 2,
}

/// `_IOR('X', 125, __u32)`: `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`.
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
    /// A fresh mounted file system, or the reason why none is available.
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

    /// Cuts the file system off from its disk: data that is not on the disk by now never gets there.
    #[allow(unsafe_code, reason = "ioctl has no safe wrapper for this request; this is the only call")]
    pub fn cut(&self, cut: Cut) {
        let root = fs::File::open(&self.point).unwrap();
        let how = cut as u32;
        // SAFETY: the request reads the four bytes of `how` at this address, and keeps no pointer.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const how) };
        assert_eq!(result, 0, "shutting down {}: {}", self.point.display(), std::io::Error::last_os_error());
    }

    /// Mounts the file system again, as after a restart of the machine: only the content of the disk is left.
    pub fn restart(&mut self) {
        // The kernel returns the descriptors of a killed ring with a delay. Until then the unmount fails as busy.
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
            // A lazy unmount, which also frees the loop device: a failed test may hold descriptors.
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
