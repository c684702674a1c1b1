//! The hours in which compaction may start by itself.

use std::fmt;
use std::time::{Duration, SystemTime};

const MINUTES_PER_DAY: u32 = 24 * 60;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time of day in UTC, to the minute; see [`Compaction::hours`](crate::Compaction::hours).
///
/// ```
/// use ringcask::{Compaction, TimeOfDay};
///
/// let at_night = Compaction::new().hours(TimeOfDay::utc(1, 30), TimeOfDay::utc(5, 0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    hour: u8,
    minute: u8,
}

impl TimeOfDay {
    /// `hour` is 0 to 23 and `minute` 0 to 59; `utc(24, 0)` is the end of the day. [`Builder::open`](crate::Builder::open)
    /// checks the range.
    #[must_use]
    pub const fn utc(hour: u8, minute: u8) -> Self {
        Self { hour, minute }
    }

    fn minutes(self) -> u32 {
        u32::from(self.hour) * 60 + u32::from(self.minute)
    }

    pub(super) fn is_valid(self) -> bool {
        self.minute < 60 && self.minutes() <= MINUTES_PER_DAY
    }

    fn since_midnight(self) -> Duration {
        Duration::from_secs(u64::from(self.minutes()) * 60)
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

/// A part of every day, in UTC. It spans midnight if `to` is before `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hours {
    pub(crate) from: TimeOfDay,
    pub(crate) to: TimeOfDay,
}

impl Hours {
    /// How long it is until they begin. Zero within them.
    pub(crate) fn until_open(self, now: SystemTime) -> Duration {
        let (from, to) = (self.from.since_midnight(), self.to.since_midnight());
        // Before 1970 there is no time of day.
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = since_epoch.saturating_sub(DAY * u32::try_from(since_epoch.as_secs() / DAY.as_secs()).unwrap_or(0));
        let is_within = if from <= to { from <= time && time < to } else { time >= from || time < to };
        if is_within {
            Duration::ZERO
        } else if time < from {
            from - time
        } else {
            DAY - time + from
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_span_midnight() {
        for (from, to, now, expected) in [
            (2, 5, 1, 1),
            (2, 5, 2, 0),
            (2, 5, 4, 0),
            (2, 5, 5, 21),
            (22, 4, 23, 0),
            (22, 4, 3, 0),
            (22, 4, 4, 18),
            (22, 4, 21, 1),
            (0, 24, 23, 0),
            (24, 5, 4, 0),
            (24, 5, 6, 18),
            (24, 24, 0, 24),
        ] {
            let hour = |hour: u64| Duration::from_secs(hour * 3600);
            let hours = Hours { from: TimeOfDay::utc(from, 0), to: TimeOfDay::utc(to, 0) };
            let day = SystemTime::UNIX_EPOCH + DAY * 20_000;
            assert_eq!(hours.until_open(day + hour(now)), hour(expected), "{now} o'clock, open from {from} to {to}");
        }
    }

    #[test]
    fn a_time_of_day_is_in_its_range() {
        assert!([(0, 0), (23, 59), (24, 0)].iter().all(|&(hour, minute)| TimeOfDay::utc(hour, minute).is_valid()));
        assert!([(24, 1), (25, 0), (3, 60)].iter().all(|&(hour, minute)| !TimeOfDay::utc(hour, minute).is_valid()));
        assert_eq!(TimeOfDay::utc(1, 5).to_string(), "01:05");
    }
}
