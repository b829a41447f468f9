//! Clocks that a test moves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::Clock;
use tokio::time::Instant;

/// A clock that stands still until it is told to go on. Clones are one clock.
///
/// ```
/// use std::time::Duration;
/// use retrysafe_core::Clock as _;
/// use retrysafe_testkit::ManualClock;
///
/// let clock = ManualClock::new();
/// let before = clock.monotonic();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(clock.monotonic() - before, Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    /// Nanoseconds since 1970.
    wall: Arc<AtomicU64>,
    /// Nanoseconds since the clock was made.
    monotonic: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock whose wall shows some day in 2026.
    pub fn new() -> Self {
        const START: Duration = Duration::from_secs(1_780_000_000);
        Self { wall: Arc::new(AtomicU64::new(nanoseconds(START))), monotonic: Arc::default() }
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.wall.fetch_add(nanoseconds(time), Ordering::SeqCst);
        self.monotonic.fetch_add(nanoseconds(time), Ordering::SeqCst);
    }

    /// Sets the wall's time, back or forth, as an administrator would. Monotonic time goes on.
    pub fn set_wall(&self, since_1970: Duration) {
        self.wall.store(nanoseconds(since_1970), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Duration {
        Duration::from_nanos(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic.load(Ordering::SeqCst))
    }
}

/// Tokio's clock, for tests that pause it: leases, renewals and timers then agree, and
/// `tokio::time::advance` moves them all.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: Instant,
}

impl TokioClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn wall(&self) -> Duration {
        Duration::from_secs(1_780_000_000) + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_can_be_set_and_monotonic_time_goes_on() {
        let clock = ManualClock::new();
        let same = clock.clone();
        same.advance(Duration::from_secs(5));
        same.set_wall(Duration::from_secs(7));
        assert_eq!(clock.wall(), Duration::from_secs(7));
        assert_eq!(clock.monotonic(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn tokios_clock_goes_with_its_timers() {
        let clock = TokioClock::new();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(clock.monotonic(), Duration::from_secs(30));
    }
}
