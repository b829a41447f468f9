//! What the stream's leader last said: the time, and how much room there is.
//!
//! # Whose time it is
//!
//! Leases and retention are judged by the leader's clock (ST7): a message carries the time of its
//! writing, and the answer to `STREAM.INFO` the time of the answer. Asking for the time at every
//! reading would be one more request for a thing that seldom matters. So between two questions, for
//! at most [`FRESH`], the time is at most what the leader said, plus what has passed here by the
//! monotonic clock since the question was sent. Whatever is still live, or unexpired, at that time is
//! so in truth. Whatever might not be is judged by asking the leader there and then. The
//! application's wall clock is never read.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{StoreError, StoreErrorKind};
use tokio::time::Instant;

use crate::jetstream::{Info, Stream};

/// For how long what was said is gone by.
const FRESH: Duration = Duration::from_secs(10);

/// The same for how much room there is, in a stream that has a limit.
const FRESH_ROOM: Duration = Duration::from_secs(1);

/// A leader that was deposed finds out sooner than this. Who is behind for longer has lost something.
const DEPOSED: Duration = Duration::from_secs(30);

/// The last part of a stream's room is kept for the outcomes of what is under way.
const KEPT_BACK: u64 = 16;

pub(crate) struct Leader {
    last: Mutex<Said>,
    /// Since when who answers is behind.
    behind: Mutex<Option<Instant>>,
    /// The highest sequence that anybody told this handle of.
    highest: AtomicU64,
}

struct Said {
    asked: Instant,
    now: Duration,
    created: String,
    limited: bool,
    nearly_full: bool,
}

impl Said {
    fn new(asked: Instant, info: &Info) -> Self {
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        let scarce = |used: u64, limit: u64| used > limit - limit.div_ceil(KEPT_BACK);
        let limits = [
            (info.bytes, limit(info.config.max_bytes)),
            (info.messages, limit(info.config.max_messages)),
        ];
        Self {
            asked,
            now: info.now,
            created: info.created.clone(),
            limited: limits.iter().any(|(_, limit)| limit.is_some()),
            nearly_full: limits
                .into_iter()
                .any(|(used, limit)| limit.is_some_and(|limit| scarce(used, limit))),
        }
    }
}

impl Leader {
    /// After a first answer to a question that was sent at `asked`.
    pub(crate) fn new(asked: Instant, info: &Info) -> Self {
        Self {
            last: Mutex::new(Said::new(asked, info)),
            behind: Mutex::default(),
            highest: AtomicU64::new(info.last_sequence),
        }
    }

    /// The latest that it can be now by the leader's clock; `None` if it has to be asked.
    pub(crate) fn now_at_most(&self) -> Option<Duration> {
        let last = lock(&self.last);
        let since = last.asked.elapsed();
        (since < FRESH).then(|| last.now.saturating_add(since))
    }

    /// Asks the leader for the time.
    ///
    /// # Errors
    ///
    /// If it does not answer, or if who answered is behind: a leader that was deposed and does not
    /// know it yet.
    pub(crate) async fn now(&self, stream: &Stream) -> Result<Duration, StoreError> {
        let asked = Instant::now();
        let known = self.highest.load(Ordering::Relaxed);
        let info = stream.info().await?;
        let said = Said::new(asked, &info);
        self.check_history(&stream.name, &info, known)?;
        {
            let mut last = lock(&self.last);
            if last.asked < asked {
                *last = said;
            }
        }
        self.heard_of(info.last_sequence);
        Ok(info.now)
    }

    /// A message with this sequence is stored.
    pub(crate) fn heard_of(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::Relaxed);
    }

    /// Whether the stream has a limit and is so near it that there is room only for the outcomes of
    /// what is under way. Asks, at most once a second, if there is a limit.
    pub(crate) async fn is_nearly_full(&self, stream: &Stream) -> Result<bool, StoreError> {
        let stale = {
            let last = lock(&self.last);
            last.limited && last.asked.elapsed() >= FRESH_ROOM
        };
        if stale {
            self.now(stream).await?;
        }
        Ok(lock(&self.last).nearly_full)
    }

    /// Whether who answered knows all that was known to be stored when it was asked.
    fn check_history(&self, stream: &str, info: &Info, known: u64) -> Result<(), StoreError> {
        let anew = lock(&self.last).created != info.created;
        let mut behind = lock(&self.behind);
        if info.last_sequence >= known && !anew {
            *behind = None;
            return Ok(());
        }
        if !anew && behind.get_or_insert_with(Instant::now).elapsed() < DEPOSED {
            return Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("NATS stream `{stream}`: the server that answers is behind"),
            ));
        }
        tracing::error!(
            stream,
            "the stream has lost what it had acknowledged: it was deleted and created anew, or a \
             server without `sync_interval: always` lost its power"
        );
        *behind = None;
        self.highest.store(info.last_sequence, Ordering::Relaxed);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::Config;

    use super::*;

    const SERVER: Duration = Duration::from_secs(1_700_000_000);

    fn info(last_sequence: u64) -> Info {
        Info {
            config: Config { max_bytes: 1600, max_messages: -1, ..Config::default() },
            created: "2026-11-22T05:35:22Z".to_owned(),
            messages: 0,
            bytes: 0,
            last_sequence,
            records: 0,
            now: SERVER,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn st7_what_was_said_is_the_latest_it_can_be_and_goes_by() {
        let leader = Leader::new(Instant::now(), &info(7));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(leader.now_at_most(), Some(SERVER + Duration::from_secs(3)));
        tokio::time::advance(FRESH).await;
        assert_eq!(leader.now_at_most(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn st3_a_deposed_leader_is_not_believed() {
        let leader = Leader::new(Instant::now(), &info(7));
        leader.heard_of(9);
        let known = || leader.highest.load(Ordering::Relaxed);
        let behind = leader.check_history("retrysafe", &info(8), known()).unwrap_err();
        assert_eq!(behind.kind(), StoreErrorKind::Unavailable);
        assert!(leader.check_history("retrysafe", &info(9), known()).is_ok());

        // Not for ever: by then it is no longer a leader, and what is missing is lost.
        assert!(leader.check_history("retrysafe", &info(8), known()).is_err());
        tokio::time::advance(DEPOSED).await;
        assert!(leader.check_history("retrysafe", &info(8), known()).is_ok());
        assert!(leader.check_history("retrysafe", &info(8), known()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_made_anew_begins_anew() {
        let leader = Leader::new(Instant::now(), &info(7));
        let anew = Info { created: "2026-11-22T06:00:00Z".to_owned(), ..info(1) };
        assert!(leader.check_history("retrysafe", &anew, 7).is_ok());
        assert_eq!(leader.highest.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn st8_the_last_sixteenth_is_kept_back() {
        let nearly_full = |bytes| Said::new(Instant::now(), &Info { bytes, ..info(1) }).nearly_full;
        assert!(!nearly_full(1500) && nearly_full(1501));
    }
}
