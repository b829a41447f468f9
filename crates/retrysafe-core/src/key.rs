//! The key: the client's name for one logical operation, and the rules by which a request's key is
//! read (K1 to K4).

mod format;
mod item;
mod text;

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::format::KeyFormat;
use self::text::Text;
use crate::ConfigError;

/// The client's name for one logical operation. Cloning it is cheap.
///
/// A key is 1 to 255 bytes of visible ASCII and spaces (a layer can allow longer ones), so that
/// every key can be sent as a header. `Debug` does not show it (S3).
///
/// ```
/// use retrysafe_core::IdempotencyKey;
///
/// let key = IdempotencyKey::new("order 4711")?;
/// assert_eq!(key.as_str(), "order 4711");
/// assert_eq!(format!("{key:?}"), "IdempotencyKey(..)");
/// # Ok::<(), retrysafe_core::InvalidKey>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Text);

impl IdempotencyKey {
    /// The longest key in bytes, unless a layer's rules say otherwise (K3).
    pub const MAX_LENGTH: usize = 255;

    /// A key that is made in code.
    ///
    /// # Errors
    ///
    /// If the text is empty, longer than [`MAX_LENGTH`](Self::MAX_LENGTH), or holds anything but
    /// the bytes `0x20-0x7E`.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        check_text(text, Self::MAX_LENGTH)?;
        Ok(Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as bytes: all of them in `0x20-0x7E`.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The header value that a client sends (C1). It is marked as sensitive, so that `Debug` hides
    /// it and HTTP/2 does not put it into its table.
    ///
    /// ```
    /// use retrysafe_core::{IdempotencyKey, Quoting};
    ///
    /// let key = IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324")?;
    /// assert_eq!(key.to_header_value(Quoting::WhenNeeded), key.as_str());
    /// let key = IdempotencyKey::new("order 4711")?;
    /// assert_eq!(key.to_header_value(Quoting::WhenNeeded), "\"order 4711\"");
    /// # Ok::<(), retrysafe_core::InvalidKey>(())
    /// ```
    pub fn to_header_value(&self, quoting: Quoting) -> HeaderValue {
        let bare = quoting == Quoting::WhenNeeded && all(self.0.as_bytes(), is_bare);
        // Clones of such a value share its one allocation: a client clones its headers.
        let bytes = match bare {
            true => Bytes::from_owner(Spelled(self.clone())),
            false => Bytes::from(item::quote(&self.0)),
        };
        let value = HeaderValue::from_maybe_shared(bytes);
        let mut value = value.expect("a key is visible ASCII and spaces");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(..)")
    }
}

/// The bytes of a key, for a header's value.
struct Spelled(IdempotencyKey);

impl AsRef<[u8]> for Spelled {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// How a client spells a key in its header (C1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quoting {
    /// Bare, unless the key holds bytes that only a quoted string can.
    #[default]
    WhenNeeded,
    /// As an RFC 9651 String, which the draft asks for.
    Always,
}

/// How a request's key is read, and which keys are accepted (K1 to K4).
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use retrysafe_core::{Clock as _, KeyFormat, KeyReason, KeyRules, SystemClock};
///
/// let now = || SystemClock::new().wall();
/// let rules = KeyRules::default().format(KeyFormat::Uuid);
/// let mut headers = HeaderMap::new();
/// assert_eq!(rules.read(&headers, now)?, None);
///
/// let spelling = HeaderValue::from_static("\"8E03978E40D543E8BC936894A57F9324\"");
/// headers.insert("idempotency-key", spelling);
/// let key = rules.read(&headers, now)?.expect("there is one");
/// assert_eq!(key.as_str(), "8e03978e-40d5-43e8-bc93-6894a57f9324");
///
/// headers.insert("idempotency-key", HeaderValue::from_static("4711"));
/// let refused = rules.read(&headers, now).unwrap_err();
/// assert_eq!(refused.reason(), KeyReason::Format);
/// # Ok::<(), retrysafe_core::InvalidKey>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyRules {
    header: HeaderName,
    parsing: KeyParsing,
    max_length: usize,
    format: KeyFormat,
}

/// Which spellings of a key are accepted in the header (K2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyParsing {
    /// An RFC 9651 String item, or a bare key of visible ASCII without `"`, `,`, `;` and `\`. The
    /// same key in either spelling is the same key.
    #[default]
    Lenient,
    /// An RFC 9651 String item only.
    Strict,
}

impl Default for KeyRules {
    fn default() -> Self {
        Self {
            header: HeaderName::from_static("idempotency-key"),
            parsing: KeyParsing::default(),
            max_length: IdempotencyKey::MAX_LENGTH,
            format: KeyFormat::default(),
        }
    }
}

impl KeyRules {
    /// The header that carries the key: `Idempotency-Key` by default (K1).
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Which spellings are accepted: lenient by default (K2).
    pub fn parsing(mut self, parsing: KeyParsing) -> Self {
        self.parsing = parsing;
        self
    }

    /// The longest key in bytes, counted after unquoting: 255 by default (K3).
    pub fn max_length(mut self, bytes: usize) -> Self {
        self.max_length = bytes;
        self
    }

    /// Which keys are accepted: any by default (K4).
    pub fn format(mut self, format: KeyFormat) -> Self {
        self.format = format;
        self
    }

    /// The header that carries the key.
    pub fn header_name(&self) -> &HeaderName {
        &self.header
    }

    /// How long after it was made a key may still be accepted, if its format tells its age. A
    /// record MUST be kept for at least that long, else a late retry runs again (K4).
    pub fn accepted_for(&self) -> Option<Duration> {
        match self.format {
            // A client whose clock is ahead by `skew` makes keys that look that much younger.
            KeyFormat::UuidV7 { max_age, skew } => Some(max_age.saturating_add(skew)),
            _ => None,
        }
    }

    /// Whether any key can keep these rules. Whoever builds something from them asks this first.
    ///
    /// # Errors
    ///
    /// If no key ever could: the longest length is below what the format needs, or the format's
    /// prefix can't be part of a key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.format.validate()?;
        if self.max_length < self.format.shortest() {
            return Err(ConfigError::new(
                "max_key_length",
                format!("no key of this format fits in {} bytes", self.max_length),
            ));
        }
        Ok(())
    }

    /// The key of a request; `None` if it has no header for one. `now` tells the wall clock's time,
    /// by which keys that carry one are aged; it is not asked for the others.
    ///
    /// # Errors
    ///
    /// If there is a header and it is not exactly one good key. A bad key is never ignored (K3).
    pub fn read(
        &self,
        headers: &HeaderMap,
        now: impl FnOnce() -> Duration,
    ) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let mut lines = headers.get_all(&self.header).iter();
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        // K3: counted before any joining.
        if lines.next().is_some() {
            return Err(InvalidKey::new(
                KeyReason::Duplicate,
                "The request has more than one line for the key.",
            ));
        }
        let text = self.unquote(trim(line.as_bytes()))?;
        self.check(&text, now).map(Some)
    }

    /// A key that comes from elsewhere than the header, by the same rules (K8).
    ///
    /// # Errors
    ///
    /// If the text is empty or too long, can't be sent as a header, or is not of the format.
    pub fn check(
        &self,
        text: &str,
        now: impl FnOnce() -> Duration,
    ) -> Result<IdempotencyKey, InvalidKey> {
        check_text(text, self.max_length)?;
        self.format.read(text, now)
    }

    /// K2: what starts with `"` is a String item and nothing else; any other value is bare. Not by
    /// the sf-token grammar, which most UUIDs fail.
    fn unquote<'a>(&self, value: &'a [u8]) -> Result<Cow<'a, str>, InvalidKey> {
        let text = match value.first() {
            None => return Err(InvalidKey::empty()),
            Some(b'"') => item::parse_string(value),
            Some(_) if self.parsing == KeyParsing::Strict => None,
            Some(_) if all(value, is_bare) => std::str::from_utf8(value).ok().map(Cow::Borrowed),
            Some(_) => None,
        };
        text.ok_or_else(|| {
            InvalidKey::new(
                KeyReason::Syntax,
                match self.parsing {
                    KeyParsing::Strict => "The key must be a quoted string.",
                    KeyParsing::Lenient => {
                        "The key must be a quoted string, or visible ASCII without quotes, \
                         commas, semicolons and backslashes."
                    }
                },
            )
        })
    }
}

/// A key that can't be accepted (`invalid_key`). What it says never echoes the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InvalidKey {
    reason: KeyReason,
    detail: Cow<'static, str>,
}

impl InvalidKey {
    pub(crate) fn new(reason: KeyReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn empty() -> Self {
        Self::new(KeyReason::Empty, "The key is empty.")
    }

    /// Why, for clients that branch on it.
    pub fn reason(&self) -> KeyReason {
        self.reason
    }

    /// Why, as a sentence for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// Why a key was not accepted: the `reason` of the problem `invalid_key` (PROTOCOL 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyReason {
    /// It is not spelled as a key.
    Syntax,
    /// There is more than one header line.
    Duplicate,
    /// There is nothing in it.
    Empty,
    /// It is longer than the rules allow.
    TooLong,
    /// It is not of the format that the rules name.
    Format,
    /// It was made too long ago: its record may be gone, so a retry could run again.
    Expired,
}

impl KeyReason {
    /// The reason as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Duplicate => "duplicate",
            Self::Empty => "empty",
            Self::TooLong => "too_long",
            Self::Format => "format",
            Self::Expired => "expired",
        }
    }
}

fn check_text(text: &str, max_length: usize) -> Result<(), InvalidKey> {
    if text.is_empty() {
        return Err(InvalidKey::empty());
    }
    if text.len() > max_length {
        return Err(InvalidKey::new(
            KeyReason::TooLong,
            format!("The key is longer than {max_length} bytes."),
        ));
    }
    if !all(text.as_bytes(), |byte| matches!(byte, 0x20..=0x7E)) {
        return Err(InvalidKey::new(
            KeyReason::Syntax,
            "The key must be visible ASCII and spaces.",
        ));
    }
    Ok(())
}

/// K2: the bytes of a bare key.
fn is_bare(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E) & (byte != b'"') & (byte != b',') & (byte != b';') & (byte != b'\\')
}

/// Whether this holds for all bytes. Without a way out at the first for which it does not: so the
/// processor looks at many at a time, and most keys are good ones.
fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & holds(*byte))
}

/// Takes off the white space that HTTP allows around any field value. RFC 9651 allows spaces there
/// as well.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
