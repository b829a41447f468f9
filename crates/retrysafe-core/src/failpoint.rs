//! Named points at which a process can be made to die, for the ledger torture. Without the feature
//! `failpoints` nobody dies at one.

/// The variable that names the point.
#[cfg(feature = "failpoints")]
pub const POINT: &str = "RETRYSAFE_FAILPOINT";

/// The variable that says how often the point is passed before.
#[cfg(feature = "failpoints")]
pub const SPARES: &str = "RETRYSAFE_FAILPOINT_SPARES";

/// Dies here, if [`POINT`] names this point and it was passed as often as [`SPARES`] says. Nothing is
/// cleaned up: it is as a `kill -9`.
#[cfg(feature = "failpoints")]
pub fn reached(point: &str) {
    use std::{
        env,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    static ARMED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let spares = env::var(SPARES).ok();
        let spares = spares.and_then(|spares| spares.parse().ok()).unwrap_or(0);
        Some((env::var(POINT).ok()?, AtomicU32::new(spares)))
    });
    if let Some((armed, spares)) = armed
        && armed == point
        && spares
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_err()
    {
        std::process::abort();
    }
}

/// Without the feature `failpoints` this does nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn reached(_: &str) {}
