//! One open store: its parts, its two tasks, and how it ends.
//!
//! # Life
//!
//! [`Core::open`] recovers the directory and spawns the commit task and the maintenance task. [`Core::request_close`], called by
//! `close().await` and by the drop of the last handle, stops the intake. The commit task then writes, syncs and seals, the
//! maintenance task finishes its queue, the lock is released, and everyone who waits for the close is woken.
//!
//! The commit task of a poisoned store ends early. The directory stays locked until the handle is closed, and reads continue.

use std::io;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::thread::Thread;

use crate::cache::BlockCache;
use crate::commit::{CommitOptions, Committer, Limits, Log, Parts};
use crate::compaction::control::Control;
use crate::compaction::picker::Policy;
use crate::compaction::{CompactionCounters, Compactor, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{DirLock, Io, Priority, fork};
use crate::maintenance::Maintainer;
use crate::options::Options;
use crate::read::{ReadCounters, Sources};
use crate::recovery::{self, Recovered};
use crate::segment::{Segment, SharedManifest};
use crate::stats::RecoveryReport;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::sharded::Sharded;
use crate::sync::waiters::{Slot, Waiters};
use crate::sync::wake;
use crate::sync::{Mutex, MutexGuard};
use crate::trace;

pub(crate) struct Core {
    pub(crate) parts: Parts,
    pub(crate) options: Options,
    pub(crate) engine_fallback: Option<String>,
    pub(crate) compaction_counters: Arc<CompactionCounters>,
    pub(crate) read_counters: Sharded<ReadCounters>,
    /// `None` if the options turn it off.
    pub(crate) cache: Option<BlockCache>,
    pub(crate) report: RecoveryReport,
    pub(crate) control: Arc<Control>,
    fork_generation: u64,
    close_requested: AtomicBool,
    ending: Mutex<Ending>,
}

/// How far the close has come.
#[derive(Default)]
struct Ending {
    lock: Option<Box<dyn DirLock>>,
    commit_result: Option<Result<()>>,
    maintenance_is_over: bool,
    finished: Option<Result<()>>,
    waiters: Waiters<()>,
    threads: Vec<Thread>,
}

impl Core {
    /// Recovers the directory and starts the store's tasks.
    pub(crate) async fn open(options: Options, io: Arc<dyn Io>, engine_fallback: Option<String>) -> Result<Arc<Self>> {
        if let Some(reason) = &engine_fallback {
            trace::fell_back(&options.path, reason);
        }
        // First, because it can fail and has nothing to undo.
        let cache = BlockCache::new(options.cache_bytes, options.segment_bytes).map_err(|error| {
            let message = format!("open: address space for a cache of {} bytes (cache_bytes)", options.cache_bytes);
            Error::io(message, error).with_path(&options.path)
        })?;
        let recovered = recovery::open(&options, &io).await.inspect_err(|error| {
            if error.kind() == ErrorKind::Corrupt {
                trace::refused(&options.path, error);
            }
        })?;
        trace::recovered(&options.path, &recovered.report);
        let Recovered { lock, segments, manifest, reserve, keydir, next_seq, report, without_hint } = recovered;
        let limits = Limits {
            segment_bytes: options.segment_bytes,
            staging_bytes: options.staging_bytes as u64,
            reserve_bytes: options.reserve_bytes,
        };
        let log = Arc::new(Log::new(Arc::clone(&io), Arc::clone(&keydir), Arc::clone(&segments), limits, next_seq));
        let control = Arc::new(Control::default());
        for segment in without_hint {
            control.push(&segment);
        }
        let store_id = manifest.store_id();
        let manifest: SharedManifest = Arc::new(manifest.into());
        let commit_counters = Arc::default();
        let parts = Parts { io, store_id, log, keydir, segments, manifest, reserve, commit_counters };
        let core = Arc::new(Self {
            parts,
            engine_fallback,
            compaction_counters: Arc::default(),
            read_counters: Sharded::default(),
            cache,
            report,
            control,
            fork_generation: fork::fork_generation(),
            close_requested: AtomicBool::new(false),
            ending: Mutex::new(Ending { lock: Some(lock), ..Ending::default() }),
            options,
        });
        core.start_maintenance()?;
        core.start_commit()?;
        Ok(core)
    }

    fn spawn_error(&self, error: io::Error) -> Error {
        Error::io("open: start a thread", error).with_path(&self.options.path)
    }

    fn start_maintenance(self: &Arc<Self>) -> Result<()> {
        let compaction = &self.options.compaction;
        let settings = Settings {
            policy: Policy::new(compaction, self.options.segment_bytes),
            segment_bytes: self.options.segment_bytes,
            bytes_per_second: compaction.bytes_per_second,
        };
        let compactor = Compactor::new(self.parts.clone(), settings, Arc::clone(&self.compaction_counters));
        let (is_automatic, hours) = (compaction.is_automatic, compaction.hours);
        let maintainer = Maintainer::new(Arc::clone(&self.control), compactor, is_automatic, hours);
        let maintaining = EndGuard { core: Arc::clone(self), task: EngineTask::Maintenance };
        let task = async move {
            // Dropped when the task ends, however it ends.
            let _maintaining = maintaining;
            maintainer.run().await;
        };
        let spawned = self.parts.io.spawn("ringcask-maint", Priority::Background, Box::pin(task));
        spawned.map_err(|error| self.spawn_error(error))
    }

    fn start_commit(self: &Arc<Self>) -> Result<()> {
        let options = CommitOptions {
            segment_bytes: self.options.segment_bytes,
            reserve_bytes: self.options.reserve_bytes,
            flush_interval: self.options.flush_interval,
            sync_interval: self.options.sync_interval,
            prewrite: self.options.prewrite,
        };
        let (control, path) = (Arc::clone(&self.control), self.options.path.clone());
        let sealed = move |segment: Arc<Segment>| {
            trace::rotated(&path, segment.id, segment.written_end());
            control.push(&segment);
        };
        let control = Arc::clone(&self.control);
        let died = move || control.request_check();
        let committer = Committer::new(self.parts.clone(), options, Box::new(sealed), Box::new(died));
        let committing = EndGuard { core: Arc::clone(self), task: EngineTask::Commit };
        let task = async move {
            let result = committer.run().await;
            committing.core.commit_ended(result);
        };
        let spawned = self.parts.io.spawn("ringcask-commit", Priority::Foreground, Box::pin(task));
        spawned.map_err(|error| {
            self.request_close();
            self.spawn_error(error)
        })
    }

    /// Refuses to work in a forked child, and after the close.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_fork()?;
        if self.close_requested.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the store is closed"));
        }
        Ok(())
    }

    /// Refuses to work in a forked child. Called before any lock is taken: a thread of the parent may have held it at the fork,
    /// and no thread of the child will ever release it.
    pub(crate) fn check_fork(&self) -> Result<()> {
        if self.is_forked() { Err(forked()) } else { Ok(()) }
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.fork_generation != fork::fork_generation()
    }

    /// Prefetches the keydir slot of a write that will be published under the log's lock.
    pub(crate) fn prefetch(&self, key: &[u8]) {
        // A forked child must not take a lock.
        if !self.is_forked() {
            self.parts.keydir.prefetch_slot(key);
        }
    }

    /// Adds the store's directory to an error that names a segment only.
    #[cold]
    pub(crate) fn located(&self, error: Error) -> Error {
        error.in_directory(&self.options.path)
    }

    pub(crate) fn sources(&self) -> Sources<'_> {
        Sources {
            io: &*self.parts.io,
            keydir: &self.parts.keydir,
            segments: &self.parts.segments,
            log: &self.parts.log,
            cache: self.cache.as_ref(),
            counters: &self.read_counters,
        }
    }

    // ---- close ---------------------------------------------------------------------------------------------------

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the close. A second call does nothing.
    pub(crate) fn request_close(&self) {
        let (commit_is_over, maintenance_is_over) = {
            let ending = self.ending();
            self.close_requested.store(true, Ordering::Release);
            (ending.commit_result.is_some(), ending.maintenance_is_over)
        };
        // Before the log: a compaction that fails because the log closes must not be started again.
        self.control.close();
        self.parts.log.begin_close();
        if commit_is_over {
            self.control.stop();
            if maintenance_is_over {
                self.finish();
            }
        }
    }

    fn commit_ended(&self, result: Result<()>) {
        if result.is_ok() {
            // Answers everyone who still waits for the log.
            self.parts.log.end(Error::new(ErrorKind::Closed, "the store is closed"));
        }
        let (is_closing, is_last) = {
            let mut ending = self.ending();
            ending.commit_result.get_or_insert(result);
            (self.close_requested.load(Ordering::Acquire), ending.maintenance_is_over)
        };
        if is_last && is_closing {
            self.finish();
        } else if is_closing {
            self.control.stop();
        }
    }

    /// Called when the maintenance task ends. If it ends before the commit task or before the close, it has panicked: writes stop,
    /// and the handle keeps the lock.
    fn maintenance_ended(&self) {
        let early = || Error::new(ErrorKind::Poisoned, "the maintenance task ended early");
        self.control.fail(early());
        let (is_closing, is_last) = {
            let mut ending = self.ending();
            ending.maintenance_is_over = true;
            (self.close_requested.load(Ordering::Acquire), ending.commit_result.is_some())
        };
        if !is_last {
            self.parts.log.end(early());
        } else if is_closing {
            self.finish();
        }
    }

    /// Called when both tasks have ended: releases the lock and wakes everyone who waits.
    fn finish(&self) {
        let (wakers, threads) = {
            let mut ending = self.ending();
            ending.lock = None;
            let early = || Err(Error::new(ErrorKind::Poisoned, "the maintenance task ended early"));
            let result = ending.commit_result.clone().unwrap_or_else(early);
            ending.finished.get_or_insert(result);
            (ending.waiters.take_all(), std::mem::take(&mut ending.threads))
        };
        wake::wake_all(wakers);
        for thread in threads {
            thread.unpark();
        }
    }

    /// Ready when the store is closed, with the error that prevented a clean close, if any.
    pub(crate) fn poll_closed(&self, slot: &mut Slot, cx: &Context<'_>) -> Poll<Result<()>> {
        let mut ending = self.ending();
        if let Some(result) = &ending.finished {
            return Poll::Ready(result.clone());
        }
        let replaced = ending.waiters.wait(slot, (), cx.waker());
        drop(ending);
        drop(replaced);
        Poll::Pending
    }

    /// Removes a future that waited in [`poll_closed`](Self::poll_closed).
    pub(crate) fn leave_closed(&self, slot: &mut Slot) {
        let left = self.ending().waiters.leave(slot);
        drop(left);
    }

    /// Closes the store and blocks until it is closed, except on a thread of the store.
    pub(crate) fn close_blocking(&self) {
        self.request_close();
        self.ending().threads.push(std::thread::current());
        self.parts.io.block_until(&|| self.ending().finished.is_some());
    }
}

/// The result of every future in a forked child.
pub(crate) fn forked() -> Error {
    Error::new(ErrorKind::Forked, "the handle belongs to the process that opened the store")
}

enum EngineTask {
    Commit,
    Maintenance,
}

/// Tells the core when a task ends, however it ends.
struct EndGuard {
    core: Arc<Core>,
    task: EngineTask,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        match self.task {
            EngineTask::Commit => {
                self.core.commit_ended(Err(Error::new(ErrorKind::Poisoned, "the commit task ended early")));
            }
            EngineTask::Maintenance => self.core.maintenance_ended(),
        }
    }
}
