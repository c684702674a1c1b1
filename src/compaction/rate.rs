//! How fast a compaction may go: a limit in bytes a second, lowered while the foreground suffers and raised while dead
//! bytes pile up.
//!
//! *The foreground suffers* if a sync of the commit task takes clearly longer than it did before the compaction began.
//! Then the rate falls by steps down to a sixteenth of the limit, and rises again by smaller ones.
//!
//! *Dead bytes pile up* if their part grows from the trigger towards all of it: writers are faster than the compaction.
//! On the first half of that way the rate is raised up to four times the limit; behind it there is none, for a full disk
//! would be the worse neighbour. (Not for a job that somebody asked for: that one keeps to the limit.)

use std::time::Duration;

/// A sync that takes this many times what it took before is one that suffers.
const SUFFERING: f64 = 1.5;

/// Differences below this are noise of a fast disk.
const SUFFERING_MIN: Duration = Duration::from_micros(200);

const SLOWER: f64 = 0.8;
const FASTER: f64 = 1.05;
const SLOWEST: f64 = 1.0 / 16.0;

/// Bytes that may go at once after a pause, as time at the current rate.
const BURST: Duration = Duration::from_millis(50);

/// How often the backlog is looked at within a job.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(200);

/// The rate of one compaction job.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    limit: Option<u64>,
    trigger: f64,
    /// Part of the limit that the foreground leaves.
    share: f64,
    /// How many times the limit the backlog asks for; `None` for no limit at all.
    urgency: Option<f64>,
    /// What a sync took before the job began; zero if there was none.
    calm_sync: Duration,
    /// When the bytes so far are paid for.
    paid_until: Duration,
    /// When the backlog is to be looked at again.
    look_again: Duration,
}

impl Pace {
    /// A job that begins at `now`, with syncs that have taken `calm_sync` lately.
    pub(super) fn new(limit: Option<u64>, dead_part: f64, trigger: f64, calm_sync: Duration, now: Duration) -> Self {
        let (share, urgency, look_again) = (1.0, urgency(dead_part, trigger), now + BACKLOG_INTERVAL);
        Self { limit, trigger, share, urgency, calm_sync, paid_until: now, look_again }
    }

    /// Whether there is no limit at present.
    pub(super) fn is_unlimited(&self) -> bool {
        self.limit.is_none() || self.urgency.is_none()
    }

    /// Whether it is time to look at the backlog again.
    pub(super) fn wants_backlog(&mut self, now: Duration) -> bool {
        let is_time = now >= self.look_again;
        if is_time {
            self.look_again = now + BACKLOG_INTERVAL;
        }
        is_time
    }

    /// Writers go on during the job: so much is dead by now.
    pub(super) fn observe_backlog(&mut self, dead_part: f64) {
        self.urgency = urgency(dead_part, self.trigger);
    }

    /// The job has moved `bytes`, and syncs take `sync` now: how long it has to wait.
    pub(super) fn spend(&mut self, bytes: u64, sync: Duration, now: Duration) -> Duration {
        let (Some(limit), Some(urgency)) = (self.limit, self.urgency) else { return Duration::ZERO };
        self.adapt(sync);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let (bytes, limit) = (bytes as f64, limit as f64);
        let took = Duration::from_secs_f64(bytes / (limit * urgency * self.share).max(1.0));
        self.paid_until = self.paid_until.max(now.saturating_sub(BURST)) + took;
        self.paid_until.saturating_sub(now)
    }

    fn adapt(&mut self, sync: Duration) {
        let is_suffering = !self.calm_sync.is_zero()
            && sync > self.calm_sync.mul_f64(SUFFERING)
            && sync > self.calm_sync + SUFFERING_MIN;
        self.share = (self.share * if is_suffering { SLOWER } else { FASTER }).clamp(SLOWEST, 1.0);
    }
}

fn urgency(dead_part: f64, trigger: f64) -> Option<f64> {
    let way = ((dead_part - trigger) / (1.0 - trigger).max(0.01)).max(0.0);
    (way < 0.5).then_some(1.0 + 6.0 * way)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn calm(limit: Option<u64>) -> Pace {
        Pace::new(limit, 0.5, 0.5, Duration::from_micros(300), Duration::ZERO)
    }

    /// Moves a MiB at a time until `bytes` are moved, waiting as told, with syncs of `sync`; returns how long it took.
    fn move_bytes(pace: &mut Pace, bytes: u64, sync: Duration) -> Duration {
        let mut now = pace.paid_until;
        let began = now;
        for _ in 0..bytes / MIB {
            now += pace.spend(MIB, sync, now);
        }
        now - began
    }

    #[test]
    fn the_limit_is_kept_on_average() {
        let took = move_bytes(&mut calm(Some(10 * MIB)), 100 * MIB, Duration::from_micros(300));
        assert!((9.0..=10.1).contains(&took.as_secs_f64()), "100 MiB at 10 MiB/s took {took:?}");
        assert_eq!(move_bytes(&mut calm(None), 1000 * MIB, Duration::from_secs(1)), Duration::ZERO, "no limit");
    }

    #[test]
    fn a_suffering_foreground_slows_it_down_and_relief_lets_it_go_again() {
        let mut pace = calm(Some(10 * MIB));
        let slow = move_bytes(&mut pace, 100 * MIB, Duration::from_millis(1));
        assert!(
            slow > Duration::from_secs(60),
            "100 MiB took {slow:?} beside syncs that had become three times as long"
        );
        move_bytes(&mut pace, 100 * MIB, Duration::from_micros(300));
        let relieved = move_bytes(&mut pace, 100 * MIB, Duration::from_micros(300));
        assert!(relieved < Duration::from_millis(10_100), "and {relieved:?} when they were as short as before");
        let noise = move_bytes(&mut calm(Some(10 * MIB)), 100 * MIB, Duration::from_micros(480));
        assert!(noise < Duration::from_millis(10_100), "a little longer is noise: {noise:?}");
    }

    #[test]
    fn a_backlog_that_grows_within_a_job_lifts_the_limit() {
        let mut pace = calm(Some(10 * MIB));
        assert!(!pace.wants_backlog(Duration::from_millis(199)) && pace.wants_backlog(Duration::from_millis(200)));
        assert!(!pace.wants_backlog(Duration::from_millis(399)) && pace.wants_backlog(Duration::from_millis(400)));
        pace.observe_backlog(0.9);
        assert_eq!(move_bytes(&mut pace, 100 * MIB, Duration::from_micros(300)), Duration::ZERO);
    }

    #[test]
    fn a_backlog_raises_the_rate() {
        for (dead_part, expected) in [(0.3, Some(1.0)), (0.5, Some(1.0)), (0.625, Some(2.5)), (0.75, None), (1.0, None)]
        {
            assert_eq!(urgency(dead_part, 0.5), expected, "{dead_part} of it is dead");
        }
        let mut pace = calm(Some(10 * MIB));
        pace.observe_backlog(0.625);
        let took = move_bytes(&mut pace, 100 * MIB, Duration::from_micros(300));
        assert!(took < Duration::from_millis(4_100), "what piles up during a job counts: 100 MiB took {took:?}");
        pace.observe_backlog(0.75);
        assert_eq!(move_bytes(&mut pace, 100 * MIB, Duration::from_secs(1)), Duration::ZERO, "no limit any more");
    }
}
