//! Whether the next group waits for the writers that the last sync has just released.
//!
//! When a sync ends, `released` writers are woken, and most of them write again at once. Two orders are possible:
//!
//! - **Overlap**: start the next sync with what is staged, then wake. The disk never idles, but the writers fall into two
//!   halves that take turns, and each sync serves one half.
//! - **Together**: wake first, give them a moment to come back, then sync once for all of them.
//!
//! With `S` for a sync and `T` for the time in which all writers are woken and write again, overlap does a round of all
//! writers in the longer of `2 S` and `T`, together in `S + T`. So together wins while `T < S`: a few dozen writers on a
//! disk that takes a fraction of a millisecond; overlap wins for a thousand. `T` is taken as a constant per writer, `S`
//! is measured.
//!
//! The moment given is `T`, which is less than `S`; it ends when all are back, and is not given for a while after the
//! writers did not come back: those that write once per request of somebody else's lose next to nothing.

use std::time::Duration;

/// Time to wake a writer and to stage its next write, as measured with a few hundred tasks on two cores.
const TURNAROUND_PER_WRITER: Duration = Duration::from_micros(2);

/// What a wake-up from sleep takes at the least.
const TURNAROUND_MIN: Duration = Duration::from_micros(100);

/// Groups for which nothing is tried after the writers did not come back.
const GROUPS_WITHOUT: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct CommitDelay {
    /// Moving average of the duration of a sync.
    sync_time: Duration,
    skip_groups: u32,
    /// The writers waited for, and until when.
    waiting: Option<(u32, Duration)>,
}

impl CommitDelay {
    /// A sync took so long.
    pub(super) fn observe_sync(&mut self, took: Duration) {
        self.sync_time = if self.sync_time.is_zero() { took } else { (self.sync_time * 7 + took) / 8 };
    }

    /// What a sync takes; zero before the first.
    pub(super) fn sync_time(&self) -> Duration {
        self.sync_time
    }

    /// A sync has ended: whether its `released` writers should be woken, and waited for, before the next one starts.
    pub(super) fn begin(&mut self, released: u32, staged: u32, now: Duration) -> bool {
        self.waiting = None;
        let writers = released + staged;
        let turnaround = TURNAROUND_MIN + TURNAROUND_PER_WRITER * writers;
        // One writer alone is its own group whenever it comes.
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

    /// Ends the wait if it is over: `staged` writers have come back by `now`.
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

    /// A group is being started for another reason.
    pub(super) fn cancel(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_syncs_of(micros: u64) -> CommitDelay {
        let mut linger = CommitDelay::default();
        linger.observe_sync(Duration::from_micros(micros));
        linger
    }

    #[test]
    fn few_writers_go_together_and_many_overlap() {
        let now = Duration::from_secs(1);
        for (released, staged, micros, expected) in
            [(64, 0, 400, true), (32, 32, 400, true), (512, 512, 400, false), (1, 0, 400, false), (2, 0, 20, false)]
        {
            let together = with_syncs_of(micros).begin(released, staged, now);
            assert_eq!(together, expected, "{released} released, {staged} staged, syncs of {micros} µs");
        }
    }

    #[test]
    fn writers_that_do_not_come_back_are_not_waited_for_again() {
        let mut linger = with_syncs_of(1000);
        let now = Duration::from_secs(1);
        assert!(linger.begin(10, 0, now));
        assert_eq!(linger.wanted(), 10);
        linger.check(3, now);
        assert_eq!(linger.wanted(), 10, "the moment is not over");
        let until = linger.deadline().unwrap();
        assert!(until < now + Duration::from_micros(1000), "less than a sync");
        linger.check(3, until);
        assert_eq!(linger.wanted(), 0);
        let tries = (0..=GROUPS_WITHOUT).filter(|_| linger.begin(10, 0, now)).count();
        assert_eq!(tries, 1, "tried again after {GROUPS_WITHOUT} groups");
    }
}
