//! Answers that are shared within this process, for servers that know no keys (C7).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};
use retrysafe_core::{OperationId, client::Unknown};
use tokio::sync::watch;

use crate::{calls::lock, transport::Whole};

/// How many answers are shared, and for how long.
///
/// Calls of one process with one key share one request, and those that come later its answer. It is
/// bounded, and it is gone with the process: **nothing about money should rest on it.** An answer is
/// given to calls of the same method, URL, key and credentials only; a key that comes with another
/// body is refused ([`ErrorKind::KeyReused`](crate::ErrorKind)), unless it is a stream, which can't be
/// compared. Credentials are headers that are marked as sensitive, and those whose name says so:
/// `Authorization`, `Cookie`, `x-api-key` and the like.
/// What a middleware inside adds is not seen: if it asks in the name of several callers, share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareAnswers {
    /// How many answers are kept; the one that was used longest ago makes room. 10,000.
    pub capacity: u64,
    /// How long an answer is kept. 10 min.
    pub ttl: Duration,
}

impl Default for ShareAnswers {
    fn default() -> Self {
        Self { capacity: 10_000, ttl: Duration::from_secs(600) }
    }
}

/// The digest of what was asked under a key; none where that can't be compared, or the key itself
/// is made of it.
pub(crate) type Asked = Option<OperationId>;

/// Whether two requests with one key are known not to be the same.
fn differ(one: Asked, other: Asked) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
}

/// What is known of an operation in this process.
#[derive(Clone)]
enum State {
    /// Somebody is making the call.
    Running,
    /// Nothing was done: the next one makes the call.
    Free,
    Answered(Arc<Whole>),
    /// It was answered with a stream, or with more than is read whole.
    Streamed,
    Unknown(Unknown),
}

pub(crate) struct SharedAnswers {
    /// Calls that are being made. They are never evicted: there are as many as there are callers.
    running: Mutex<HashMap<OperationId, (Asked, watch::Receiver<State>)>>,
    done: Cache<OperationId, (Asked, State)>,
    /// What is unknown may be asked for again: the server knows the key.
    keeps_keys: bool,
}

impl SharedAnswers {
    pub(crate) fn new(settings: ShareAnswers, keeps_keys: bool) -> Self {
        let done = Cache::builder()
            .max_capacity(settings.capacity)
            .time_to_live(settings.ttl)
            // The other policy may refuse what is new.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { running: Mutex::default(), done, keeps_keys }
    }

    /// Waits until it is known what to do for an operation.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: who waits holds nothing.
    pub(crate) async fn enter(&self, operation: OperationId, asked: Asked) -> Place<'_> {
        let mut after_unknown = false;
        loop {
            let mut watched = {
                let mut running = lock(&self.running);
                match running.get(&operation) {
                    Some((first, _)) if differ(*first, asked) => return Place::Reused,
                    Some((_, watched)) => watched.clone(),
                    None => {
                        // Looked up under the lock: who has just ended is in there.
                        match self.done.get(&operation) {
                            Some((first, _)) if differ(first, asked) => return Place::Reused,
                            Some((_, state)) => {
                                if let Some(place) = Place::of(state) {
                                    return place;
                                }
                            }
                            None => {}
                        }
                        let (tell, watched) = watch::channel(State::Running);
                        running.insert(operation, (asked, watched));
                        return Place::First(Running {
                            shared: self,
                            operation,
                            asked,
                            tell,
                            after_unknown,
                            sent: false,
                            ended: false,
                        });
                    }
                }
            };
            let state = match watched.wait_for(|it| !matches!(it, State::Running)).await {
                Ok(state) => state.clone(),
                Err(_) => State::Free,
            };
            if self.keeps_keys && matches!(state, State::Unknown(_)) {
                after_unknown = true;
                continue;
            }
            if let Some(place) = Place::of(state) {
                return place;
            }
        }
    }
}

impl fmt::Debug for SharedAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedAnswers").finish_non_exhaustive()
    }
}

/// What there is to do for an operation.
pub(crate) enum Place<'a> {
    /// Make the call.
    First(Running<'a>),
    Answered(Arc<Whole>),
    NotShared,
    /// The key was used for another request.
    Reused,
    Unknown(Unknown),
}

impl Place<'_> {
    fn of(state: State) -> Option<Self> {
        match state {
            State::Running | State::Free => None,
            State::Answered(answer) => Some(Self::Answered(answer)),
            State::Streamed => Some(Self::NotShared),
            State::Unknown(why) => Some(Self::Unknown(why)),
        }
    }
}

/// Whoever makes the call that the others wait for.
pub(crate) struct Running<'a> {
    shared: &'a SharedAnswers,
    operation: OperationId,
    asked: Asked,
    tell: watch::Sender<State>,
    after_unknown: bool,
    sent: bool,
    ended: bool,
}

impl Running<'_> {
    /// Whether this call waited for another, of which nobody knows what became.
    pub(crate) fn after_unknown(&self) -> bool {
        self.after_unknown
    }

    /// From here on the request may be received.
    pub(crate) fn may_be_sent(&mut self) {
        self.sent = true;
    }

    pub(crate) fn answered(self, answer: Whole) {
        self.end(State::Answered(Arc::new(answer)));
    }

    pub(crate) fn streamed(self) {
        self.end(State::Streamed);
    }

    pub(crate) fn unknown(self, why: Unknown) {
        self.end(State::Unknown(why));
    }

    /// Nothing was done.
    pub(crate) fn free(self) {
        self.end(State::Free);
    }

    fn end(mut self, state: State) {
        self.ended = true;
        self.leave(state);
    }

    fn leave(&self, state: State) {
        let mut running = lock(&self.shared.running);
        let nothing_to_keep = match state {
            State::Free => true,
            State::Unknown(_) => self.shared.keeps_keys,
            _ => false,
        };
        if !nothing_to_keep {
            self.shared.done.insert(self.operation, (self.asked, state.clone()));
        }
        running.remove(&self.operation);
        drop(running);
        self.tell.send_replace(state);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The caller has hung up. What was sent is not taken back, and where the server keeps no
            // keys, sending it again could execute it again.
            self.leave(match self.sent {
                true => State::Unknown(Unknown::Abandoned),
                false => State::Free,
            });
        }
    }
}
