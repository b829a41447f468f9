//! Time and randomness are inputs: the only places where the process asks for either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What tells the time. Stores of this process (memory, SQLite) judge leases and retention by it
/// (ST7), and `uuid_v7` keys are aged by it (K4).
pub trait Clock: Send + Sync + 'static {
    /// Time since 1970-01-01 UTC. Another process on the same machine reads the same.
    fn wall(&self) -> Duration;

    /// Time since some fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks for the time")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks for the time")]
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// What gives random numbers.
pub trait Entropy: Send + Sync + 'static {
    /// 128 random bits.
    fn next_u128(&self) -> u128;
}

/// The thread's generator of the `rand` crate, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u128(&self) -> u128 {
        rand::random()
    }
}
