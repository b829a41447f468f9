//! Which keys are accepted (K4).

use std::{fmt, sync::Arc, time::Duration};

use uuid::{Uuid, Variant};

use super::{IdempotencyKey, InvalidKey, KeyReason};
use crate::ConfigError;

/// Which keys are accepted (K4).
///
/// Every spelling of one UUID (any case, with or without hyphens, in braces, as a URN) is one key:
/// the lower-case hyphenated one.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum KeyFormat {
    /// Any key.
    #[default]
    Any,
    /// A UUID of any version.
    Uuid,
    /// A random UUID, of version 4.
    UuidV4,
    /// A UUID of version 7, which carries the time at which it was made. A key older than the
    /// records is refused, so that a late retry can't run again.
    ///
    /// `max_age` plus `skew` must not be longer than the retention: see
    /// [`KeyRules::accepted_for`](crate::KeyRules::accepted_for).
    UuidV7 {
        /// An older key is refused as expired.
        max_age: Duration,
        /// How far ahead a client's clock may be.
        skew: Duration,
    },
    /// A prefix and 64 lower-case hex digits: the shape of keys made from content (C2).
    Prefixed {
        /// What comes before the digits, `idem_` for instance.
        prefix: String,
    },
    /// Asks a function. See [`KeyFormat::custom`].
    #[doc(hidden)]
    Custom(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl KeyFormat {
    /// A format of one's own: whether a key is accepted.
    pub fn custom(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(accepts))
    }

    pub(super) fn read(
        &self,
        text: &str,
        now: impl FnOnce() -> Duration,
    ) -> Result<IdempotencyKey, InvalidKey> {
        match self {
            Self::Any => Ok(IdempotencyKey(text.into())),
            Self::Uuid => read_uuid(text, None).map(to_key),
            Self::UuidV4 => read_uuid(text, Some(4)).map(to_key),
            Self::UuidV7 { max_age, skew } => {
                let uuid = read_uuid(text, Some(7))?;
                check_age(&uuid, now(), *max_age, *skew)?;
                Ok(to_key(uuid))
            }
            Self::Prefixed { prefix } => {
                let digits = text.strip_prefix(prefix.as_str()).unwrap_or_default();
                let lower_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                if digits.len() != DIGITS || !digits.bytes().all(lower_hex) {
                    return Err(wrong_format(
                        "The key must be the agreed prefix and 64 hex digits.",
                    ));
                }
                Ok(IdempotencyKey(text.into()))
            }
            Self::Custom(accepts) if accepts(text) => Ok(IdempotencyKey(text.into())),
            Self::Custom(_) => Err(wrong_format("The key is not of the format that is asked for.")),
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let problem = match self {
            Self::UuidV7 { max_age, .. } if max_age.is_zero() => "max_age must not be zero",
            Self::Prefixed { prefix }
                if !prefix.bytes().all(|byte| matches!(byte, 0x20..=0x7E)) =>
            {
                "the prefix must be visible ASCII and spaces"
            }
            _ => return Ok(()),
        };
        Err(ConfigError::new("key_format", problem))
    }

    /// The length of the shortest key of this format, in its shortest spelling.
    pub(super) fn shortest(&self) -> usize {
        match self {
            Self::Any | Self::Custom(_) => 1,
            Self::Uuid | Self::UuidV4 | Self::UuidV7 { .. } => uuid::fmt::Simple::LENGTH,
            Self::Prefixed { prefix } => prefix.len() + DIGITS,
        }
    }
}

impl fmt::Debug for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Uuid => f.write_str("Uuid"),
            Self::UuidV4 => f.write_str("UuidV4"),
            Self::UuidV7 { max_age, skew } => {
                f.debug_struct("UuidV7").field("max_age", max_age).field("skew", skew).finish()
            }
            Self::Prefixed { prefix } => {
                f.debug_struct("Prefixed").field("prefix", prefix).finish()
            }
            Self::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}

/// Hex digits of a SHA-256.
const DIGITS: usize = 64;

fn read_uuid(text: &str, version: Option<usize>) -> Result<Uuid, InvalidKey> {
    let uuid = Uuid::try_parse(text).map_err(|_| wrong_format("The key must be a UUID."))?;
    match version {
        Some(version)
            if uuid.get_version_num() != version || uuid.get_variant() != Variant::RFC4122 =>
        {
            Err(wrong_format(match version {
                4 => "The key must be a UUID of version 4.",
                _ => "The key must be a UUID of version 7.",
            }))
        }
        _ => Ok(uuid),
    }
}

fn to_key(uuid: Uuid) -> IdempotencyKey {
    let mut buffer = Uuid::encode_buffer();
    let text: &str = uuid.hyphenated().encode_lower(&mut buffer);
    IdempotencyKey(text.into())
}

fn check_age(
    uuid: &Uuid,
    now: Duration,
    max_age: Duration,
    skew: Duration,
) -> Result<(), InvalidKey> {
    // RFC 9562: the first 48 bits are milliseconds since 1970.
    let made = Duration::from_millis((uuid.as_u128() >> 80) as u64);
    if made > now.saturating_add(skew) {
        return Err(wrong_format("The key says it was made in the future."));
    }
    if now.saturating_sub(made) > max_age {
        return Err(InvalidKey::new(
            KeyReason::Expired,
            "The key was made too long ago to tell whether it was used.",
        ));
    }
    Ok(())
}

fn wrong_format(detail: &'static str) -> InvalidKey {
    InvalidKey::new(KeyReason::Format, detail)
}
