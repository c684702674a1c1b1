//! How fast a compaction may read and write: a limit in bytes a second that adapts to the foreground and to the
//! backlog.
//!
//! *The foreground suffers* when a sync of the commit task takes clearly longer than before the compaction began. The
//! rate then falls in steps, down to a sixteenth of the limit, and rises again in smaller steps.
//!
//! *The backlog grows* when the dead fraction rises above the trigger: writers are faster than the compaction. Over the
//! first half of the way from the trigger to 100 % the rate rises, up to four times the limit. In the second half there
//! is no limit, because a full disk would hurt the foreground more. (A job that a caller asked for keeps to the limit.)
//!
//! The types here compute; they read no clock and do not sleep. [`throttle`](super::throttle) does both.

use std::time::Duration;

/// The foreground suffers when a sync takes this many times as long as its baseline.
const SUFFERING: f64 = 1.5;

/// Smaller differences are noise of a fast disk.
const SUFFERING_MIN: Duration = Duration::from_micros(200);

const SLOWER: f64 = 0.8;
const FASTER: f64 = 1.05;
const SLOWEST: f64 = 1.0 / 16.0;

/// How much a job may move at once after a pause, as time at the current rate.
const BURST: Duration = Duration::from_millis(50);

/// How often a job checks the backlog.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(200);

/// How long a job affects the sync time after it has copied its records.
const DISTURBANCE: Duration = Duration::from_secs(2);

/// How long a sync takes while no compaction disturbs it.
#[derive(Clone, Copy, Default)]
pub(super) struct SyncBaseline {
    sync: Duration,
    /// When the last job had copied its records.
    disturbed_until: Option<Duration>,
}

impl SyncBaseline {
    /// The baseline for a job that begins at `now`, when a sync takes `sync`. A job that follows another one closely
    /// takes over the other's baseline.
    pub(super) fn at_job_start(&mut self, now: Duration, sync: Duration) -> Duration {
        let is_undisturbed = self.disturbed_until.is_none_or(|until| now > until + DISTURBANCE);
        self.sync = if is_undisturbed || self.sync.is_zero() { sync } else { self.sync.min(sync) };
        self.sync
    }

    /// A job has disturbed the syncs until `now`.
    pub(super) fn disturbed_until(&mut self, now: Duration) {
        self.disturbed_until = Some(now);
    }
}

/// The rate limit of one job.
#[derive(Clone, Debug)]
pub(super) struct RateLimit {
    bytes_per_second: Option<u64>,
    trigger: f64,
    /// The fraction of the limit that the foreground leaves to the job.
    share: f64,
    /// By how much the backlog multiplies the limit; `None` for no limit.
    urgency: Option<f64>,
    /// How long a sync took before the job; zero if there was none.
    undisturbed_sync: Duration,
    /// When the bytes moved so far are paid for.
    paid_until: Duration,
    next_backlog_check: Duration,
}

impl RateLimit {
    /// The limit of a job that begins at `now`.
    pub(super) fn new(
        bytes_per_second: Option<u64>,
        dead_fraction: f64,
        trigger: f64,
        undisturbed_sync: Duration,
        now: Duration,
    ) -> Self {
        Self {
            bytes_per_second,
            trigger,
            share: 1.0,
            urgency: urgency(dead_fraction, trigger),
            undisturbed_sync,
            paid_until: now,
            next_backlog_check: now + BACKLOG_INTERVAL,
        }
    }

    /// Whether there is no limit at present.
    pub(super) fn is_unlimited(&self) -> bool {
        self.bytes_per_second.is_none() || self.urgency.is_none()
    }

    /// Whether the caller should call [`observe_backlog`](Self::observe_backlog) now; `true` once per interval.
    pub(super) fn is_backlog_check_due(&mut self, now: Duration) -> bool {
        let is_due = now >= self.next_backlog_check;
        if is_due {
            self.next_backlog_check = now + BACKLOG_INTERVAL;
        }
        is_due
    }

    /// Writers continue during the job; this is the dead fraction now.
    pub(super) fn observe_backlog(&mut self, dead_fraction: f64) {
        self.urgency = urgency(dead_fraction, self.trigger);
    }

    /// The job has moved `bytes`, and a sync takes `sync` now. Returns how long the job must sleep.
    pub(super) fn spend(&mut self, bytes: u64, sync: Duration, now: Duration) -> Duration {
        let (Some(limit), Some(urgency)) = (self.bytes_per_second, self.urgency) else { return Duration::ZERO };
        self.adapt(sync);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let (bytes, limit) = (bytes as f64, limit as f64);
        let cost = Duration::from_secs_f64(bytes / (limit * urgency * self.share).max(1.0));
        self.paid_until = self.paid_until.max(now.saturating_sub(BURST)) + cost;
        self.paid_until.saturating_sub(now)
    }

    fn adapt(&mut self, sync: Duration) {
        let is_suffering = !self.undisturbed_sync.is_zero()
            && sync > self.undisturbed_sync.mul_f64(SUFFERING)
            && sync > self.undisturbed_sync + SUFFERING_MIN;
        self.share = (self.share * if is_suffering { SLOWER } else { FASTER }).clamp(SLOWEST, 1.0);
    }
}

/// By how much the backlog multiplies the limit; `None` for no limit.
fn urgency(dead_fraction: f64, trigger: f64) -> Option<f64> {
    let way = ((dead_fraction - trigger) / (1.0 - trigger).max(0.01)).max(0.0);
    (way < 0.5).then_some(1.0 + 6.0 * way)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limit(bytes_per_second: Option<u64>) -> RateLimit {
        RateLimit::new(bytes_per_second, 0.5, 0.5, Duration::from_micros(300), Duration::ZERO)
    }

    /// Moves `bytes`, one MiB at a time, and sleeps as told, while a sync takes `sync`. Returns how long it took.
    fn move_bytes(limit: &mut RateLimit, bytes: u64, sync: Duration) -> Duration {
        let mut now = limit.paid_until;
        let began = now;
        for _ in 0..bytes / MIB {
            now += limit.spend(MIB, sync, now);
        }
        now - began
    }

    #[test]
    fn the_average_rate_keeps_to_the_limit() {
        let took = move_bytes(&mut limit(Some(10 * MIB)), 100 * MIB, Duration::from_micros(300));
        assert!((9.0..=10.1).contains(&took.as_secs_f64()), "100 MiB at 10 MiB/s took {took:?}");
        assert_eq!(move_bytes(&mut limit(None), 1000 * MIB, Duration::from_secs(1)), Duration::ZERO, "no limit");
    }

    #[test]
    fn slow_syncs_lower_the_rate_until_they_recover() {
        let mut limited = limit(Some(10 * MIB));
        let slow = move_bytes(&mut limited, 100 * MIB, Duration::from_millis(1));
        assert!(slow > Duration::from_secs(60), "100 MiB took {slow:?} while syncs took three times as long");
        move_bytes(&mut limited, 100 * MIB, Duration::from_micros(300));
        let recovered = move_bytes(&mut limited, 100 * MIB, Duration::from_micros(300));
        assert!(recovered < Duration::from_millis(10_100), "100 MiB took {recovered:?} after the syncs had recovered");
        let noise = move_bytes(&mut limit(Some(10 * MIB)), 100 * MIB, Duration::from_micros(480));
        assert!(noise < Duration::from_millis(10_100), "a small difference is noise, but 100 MiB took {noise:?}");
    }

    #[test]
    fn a_backlog_that_grows_during_a_job_lifts_the_limit() {
        let mut limited = limit(Some(10 * MIB));
        for due in [200, 400].map(Duration::from_millis) {
            assert!(!limited.is_backlog_check_due(due - Duration::from_millis(1)));
            assert!(limited.is_backlog_check_due(due));
        }
        limited.observe_backlog(0.9);
        assert_eq!(move_bytes(&mut limited, 100 * MIB, Duration::from_micros(300)), Duration::ZERO);
    }

    #[test]
    fn a_backlog_raises_the_rate() {
        for (dead, expected) in [(0.3, Some(1.0)), (0.5, Some(1.0)), (0.625, Some(2.5)), (0.75, None), (1.0, None)] {
            assert_eq!(urgency(dead, 0.5), expected, "dead fraction {dead}");
        }
        let mut limited = limit(Some(10 * MIB));
        limited.observe_backlog(0.625);
        let took = move_bytes(&mut limited, 100 * MIB, Duration::from_micros(300));
        assert!(took < Duration::from_millis(4_100), "100 MiB took {took:?} with a backlog");
        limited.observe_backlog(0.75);
        assert_eq!(move_bytes(&mut limited, 100 * MIB, Duration::from_secs(1)), Duration::ZERO, "the limit is lifted");
    }

    #[test]
    fn jobs_in_quick_succession_share_a_baseline() {
        let [fast, slow] = [1, 5].map(Duration::from_millis);
        let mut baseline = SyncBaseline::default();
        assert_eq!(baseline.at_job_start(Duration::ZERO, fast), fast);
        baseline.disturbed_until(Duration::from_secs(1));
        assert_eq!(baseline.at_job_start(Duration::from_secs(3), slow), fast, "still disturbed by the first job");
        assert_eq!(baseline.at_job_start(Duration::from_millis(3001), slow), slow);
    }
}
