//! Creates rings, and probes whether the system permits them.
//!
//! One thread creates, uses and drops a ring (`SINGLE_ISSUER`), and runs its completions on request (`DEFER_TASKRUN`).
//! Kernels before 6.1 lack such rings; there the thread backend is used instead of a second code path.

use std::error::Error;
use std::fmt;
use std::io;
use std::thread;

use io_uring::{IoUring, Probe, opcode, squeue};

/// Completion queue entries per submission entry.
const CQ_FACTOR: u32 = 4;
/// Kernel worker threads per ring for blocking operations. The kernel serialises writes to one file anyway.
const MAX_WORKERS: u32 = 2;

const OPCODES: [(u8, &str); 4] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
];

/// Creates a ring with `entries` submission entries for the calling thread.
pub(super) fn build(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::<squeue::Entry>::builder();
    builder
        .dontfork()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(CQ_FACTOR))
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let mut with_no_sqarray = builder.clone();
    with_no_sqarray.setup_no_sqarray();
    let is_unknown_flag = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let ring = match with_no_sqarray.build(entries) {
        // Before Linux 6.6.
        Err(error) if is_unknown_flag(&error) => builder.build(entries),
        other => other,
    };
    let ring = ring.map_err(explain)?;
    if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
        return Err(unsupported("the kernel's io_uring lacks NODROP or EXT_ARG".into()));
    }
    // Since Linux 5.15. Older kernels only have more idle worker threads.
    let _ = ring.submitter().register_iowq_max_workers(&mut [MAX_WORKERS, 0]);
    Ok(ring)
}

fn unsupported(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// A readable reason for a refusal, with the system's error as its source.
#[derive(Debug)]
struct Refusal(&'static str, io::Error);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0, self.1)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.1)
    }
}

fn explain(error: io::Error) -> io::Error {
    let reason = match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring",
        Some(libc::EPERM | libc::EACCES) => "io_uring is forbidden (by seccomp or kernel.io_uring_disabled)",
        Some(libc::EINVAL) => "the kernel is older than Linux 6.1",
        Some(libc::ENOMEM) => "not enough memory for a ring (check RLIMIT_MEMLOCK)",
        _ => "cannot set up a ring",
    };
    io::Error::new(error.kind(), Refusal(reason, error))
}

/// Checks that rings work: creates one, asks for the operations it supports, and sends a NOP through it. The error
/// gives the reason.
pub(in crate::io) fn probe() -> io::Result<()> {
    // On a separate thread, so that the caller's thread is not bound to a ring.
    let prober = thread::Builder::new().name("ringcask-probe".into()).spawn(|| {
        let mut ring = build(2)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(explain)?;
        if let Some((_, name)) = OPCODES.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(unsupported(format!("the kernel's io_uring lacks {name}")));
        }
        super::driver::send_nop(&mut ring).map_err(explain)
    })?;
    prober.join().unwrap_or_else(|_| Err(io::Error::other("the io_uring probe panicked")))
}
