//! The hours in which compaction may begin by itself.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A part of every day, in UTC: from one time to another, over midnight if the second is the earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hours {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

impl Hours {
    /// How long it is until they begin; zero within them.
    pub(crate) fn until_open(self, now: SystemTime) -> Duration {
        // Before 1970 there is no time of day to speak of.
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = since_epoch.saturating_sub(DAY * u32::try_from(since_epoch.as_secs() / DAY.as_secs()).unwrap_or(0));
        let is_within = if self.from <= self.to {
            self.from <= time && time < self.to
        } else {
            time >= self.from || time < self.to
        };
        if is_within {
            Duration::ZERO
        } else if time < self.from {
            self.from - time
        } else {
            DAY - time + self.from
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_over_midnight() {
        let hour = |hour: u64| Duration::from_secs(hour * 3600);
        for (from, to, now, expected) in [
            (2, 5, 1, 1),
            (2, 5, 2, 0),
            (2, 5, 4, 0),
            (2, 5, 5, 21),
            (22, 4, 23, 0),
            (22, 4, 3, 0),
            (22, 4, 4, 18),
            (22, 4, 21, 1),
        ] {
            let hours = Hours { from: hour(from), to: hour(to) };
            let day = SystemTime::UNIX_EPOCH + DAY * 20_000;
            assert_eq!(hours.until_open(day + hour(now)), hour(expected), "{now} o'clock, open from {from} to {to}");
        }
    }
}
