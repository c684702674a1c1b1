//! The commit delay: whether the next group waits for the writers that the last sync has released.
//!
//! When a sync ends, its writers are woken, and most of them write again at once. There are two possible orders:
//!
//! - **Overlap**: start the next sync with what is staged, then wake the writers. The disk never idles, but the
//!   writers fall into two halves that take turns, and each sync serves one half.
//! - **Together**: wake the writers, wait briefly for them to write again, then sync once for all of them.
//!
//! Let `S` be the time of a sync, and `T` the time to wake all writers and stage their next writes. A round of all
//! writers takes the longer of `2 S` and `T` with overlap, and `S + T` together. So together wins while `T < S`: for
//! a few dozen writers on a disk with syncs of a fraction of a millisecond. Overlap wins for a thousand. `T` is a
//! constant per writer; `S` is measured.
//!
//! The delay is at most `T`, which is less than `S`, and it ends when all writers are back. After writers did not
//! come back, no delay is tried for a while: writers that wait for other requests between their writes lose almost
//! nothing.

use std::time::Duration;

/// Time to wake a writer and to stage its next write, as measured with a few hundred tasks on two cores.
const TURNAROUND_PER_WRITER: Duration = Duration::from_micros(2);

/// Minimum time to wake a sleeping thread.
const TURNAROUND_MIN: Duration = Duration::from_micros(100);

/// Number of groups without a delay after writers did not come back.
const GROUPS_WITHOUT: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct CommitDelay {
    /// Moving average of the duration of a sync.
    sync_time: Duration,
    skip_groups: u32,
    /// The number of writers expected, and the end of the delay.
    waiting: Option<(u32, Duration)>,
}

impl CommitDelay {
    /// Records the duration of a sync.
    pub(super) fn observe_sync(&mut self, took: Duration) {
        self.sync_time = if self.sync_time.is_zero() { took } else { (self.sync_time * 7 + took) / 8 };
    }

    /// The average duration of a sync; zero before the first.
    pub(super) fn sync_time(&self) -> Duration {
        self.sync_time
    }

    /// Called when a sync has ended. Returns whether its `released` writers should be woken, and waited for, before
    /// the next sync starts.
    pub(super) fn begin(&mut self, released: u32, staged: u32, now: Duration) -> bool {
        self.waiting = None;
        let writers = released + staged;
        let turnaround = TURNAROUND_MIN + TURNAROUND_PER_WRITER * writers;
        // A lone writer forms its own group whenever it comes back.
        if released == 0 || writers < 2 || turnaround >= self.sync_time {
            return false;
        }
        if self.skip_groups > 0 {
            self.skip_groups -= 1;
            return false;
        }
        self.waiting = Some((writers, now + turnaround));
        true
    }

    /// How many waiting writers make a group worth starting; 0 if any does.
    pub(super) fn wanted(&self) -> u32 {
        self.waiting.map_or(0, |(writers, _)| writers)
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.map(|(_, until)| until)
    }

    /// Ends the delay if it is over: `staged` writers have come back by `now`.
    pub(super) fn check(&mut self, staged: u32, now: Duration) {
        let Some((writers, until)) = self.waiting else { return };
        if staged < writers && now < until {
            return;
        }
        if staged < writers / 2 {
            self.skip_groups = GROUPS_WITHOUT;
        }
        self.waiting = None;
    }

    /// A group is started for another reason.
    pub(super) fn cancel(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_syncs_of(micros: u64) -> CommitDelay {
        let mut delay = CommitDelay::default();
        delay.observe_sync(Duration::from_micros(micros));
        delay
    }

    #[test]
    fn few_writers_sync_together_and_many_overlap() {
        let now = Duration::from_secs(1);
        for (released, staged, micros, expected) in
            [(64, 0, 400, true), (32, 32, 400, true), (512, 512, 400, false), (1, 0, 400, false), (2, 0, 20, false)]
        {
            let together = with_syncs_of(micros).begin(released, staged, now);
            assert_eq!(together, expected, "{released} released, {staged} staged, syncs of {micros} µs");
        }
    }

    #[test]
    fn no_delay_for_a_while_after_writers_did_not_come_back() {
        let mut delay = with_syncs_of(1000);
        let now = Duration::from_secs(1);
        assert!(delay.begin(10, 0, now));
        assert_eq!(delay.wanted(), 10);
        delay.check(3, now);
        assert_eq!(delay.wanted(), 10, "the delay is not over");
        let until = delay.deadline().unwrap();
        assert!(until < now + Duration::from_micros(1000), "less than a sync");
        delay.check(3, until);
        assert_eq!(delay.wanted(), 0);
        let tries = (0..=GROUPS_WITHOUT).filter(|_| delay.begin(10, 0, now)).count();
        assert_eq!(tries, 1, "tried again after {GROUPS_WITHOUT} groups");
    }
}
