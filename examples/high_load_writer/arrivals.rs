//! The times at which a task makes its requests: as soon as the previous one completes, or at random arrivals.
//!
//! With `--rate`, requests arrive in a Poisson process that does not depend on the store. A request waits if its task
//! is still busy, and its latency counts from its arrival. A stall therefore shows in every request that it delays, not
//! only in the one in progress.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::data::Rng;

/// Arrivals are sent up to this much early, so that a sleep that lasts too long does not count as latency of the store.
const SPIN: Duration = Duration::from_micros(100);

/// The arrivals of one task's requests.
pub(crate) enum Arrivals {
    /// Each request when the previous one completes, until the deadline.
    AtOnce(Instant),
    /// At these times.
    At(UnboundedReceiver<Instant>),
}

impl Arrivals {
    /// The time from which the latency of the next request counts, or `None` after the last request.
    pub(crate) async fn next(&mut self) -> Option<Instant> {
        match self {
            Self::AtOnce(deadline) => Some(Instant::now()).filter(|now| now < deadline),
            Self::At(arrivals) => arrivals.recv().await,
        }
    }
}

/// Random times of arrival since the start, `rate` per second on average.
struct Schedule {
    rng: Rng,
    rate: f64,
    seconds: f64,
}

impl Schedule {
    fn new(rate: u64) -> Self {
        Self { rng: Rng::new(usize::MAX / 3), rate: rate as f64, seconds: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // In (0, 1], so the logarithm is finite.
        let uniform = (self.rng.below(1 << 30) + 1) as f64 / (1_u64 << 30) as f64;
        self.seconds -= uniform.ln() / self.rate;
        Some(Duration::from_secs_f64(self.seconds))
    }
}

/// The arrivals of `tasks` tasks between `begun` and `deadline`. With a rate, the tasks take turns and share `rate`
/// arrivals per second. Without one, each task makes its requests without a pause.
pub(crate) fn for_tasks(tasks: usize, rate: Option<u64>, begun: Instant, deadline: Instant) -> Vec<Arrivals> {
    let Some(rate) = rate else { return (0..tasks).map(|_| Arrivals::AtOnce(deadline)).collect() };
    let (senders, arrivals): (Vec<_>, Vec<_>) = (0..tasks).map(|_| unbounded_channel()).unzip();
    thread::spawn(move || send(&senders, rate, begun, deadline));
    arrivals.into_iter().map(Arrivals::At).collect()
}

/// Sends each arrival to its task when it is due.
fn send(tasks: &[UnboundedSender<Instant>], rate: u64, begun: Instant, deadline: Instant) {
    let times = Schedule::new(rate).map(|time| begun + time).take_while(|time| *time < deadline);
    for (time, task) in times.zip(tasks.iter().cycle()) {
        if let Some(early) = time.checked_duration_since(Instant::now()).filter(|early| *early > SPIN) {
            thread::sleep(early - SPIN / 2);
        }
        // A task that an error has ended receives nothing.
        let _ = task.send(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process_of_the_given_rate() {
        let times: Vec<Duration> = Schedule::new(1000).take(100_000).collect();
        assert!(times.is_sorted());
        let seconds = times.last().unwrap().as_secs_f64();
        assert!((98.0..102.0).contains(&seconds), "{seconds} s for 100,000 arrivals at 1,000 per second");
        // In a Poisson process, one gap in e is longer than the mean.
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(1)).count();
        assert!((36_000..37_600).contains(&long), "{long}");
    }

    #[test]
    fn every_request_has_its_time_of_arrival() {
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(50);
        let mut tasks = for_tasks(2, Some(10_000), begun, deadline);
        let mut count = 0;
        for task in &mut tasks {
            while let Some(arrival) = futures_executor::block_on(task.next()) {
                assert!(arrival >= begun && arrival < deadline);
                count += 1;
            }
        }
        assert!((300..700).contains(&count), "{count} of about 500");
    }

    #[test]
    fn without_a_rate_requests_follow_each_other_until_the_deadline() {
        let now = Instant::now();
        let mut tasks = for_tasks(1, None, now, now + Duration::from_secs(3600));
        assert!(futures_executor::block_on(tasks[0].next()).is_some_and(|at| at >= now));
        let mut over = for_tasks(1, None, now, now);
        assert_eq!(futures_executor::block_on(over[0].next()), None);
    }
}
