//! One configuration for a client, from TOML or from the environment.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use http::{HeaderName, Method};
use retrysafe_core::{
    ConfigError, Methods, Quoting,
    client::{ContentKey, Dialect, KeyPlacement, KeySource, Spelling},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::{ClientBuilder, Settings, ShareAnswers};

/// The settings of a client as people write them. Every key is optional; what is not named is what the
/// preset says, and the default otherwise.
///
/// ```
/// use retrysafe_client::{Client, ClientConfig};
///
/// let config = ClientConfig::from_toml(r#"
///     preset = "stripe"
///     key = "content"
///     excluded = ["/metadata/sent_at"]
///     deadline = "5m"
///     attempts = 5
/// "#)?;
/// // RETRYSAFE_CLIENT_ATTEMPTS and the like win over the file.
/// let client = Client::builder().config(&config.with_env()?)?.build()?;
/// assert_eq!(client.settings().retries.attempts, 5);
/// # Ok::<(), retrysafe_client::ConfigError>(())
/// ```
///
/// Durations are `250ms`, `60s`, `24h`; sizes are bytes or `64KiB`, `4MiB`; lists are arrays, or texts
/// with commas.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ClientConfig {
    /// `draft07` (default), `stripe`, `adyen`, `paypal`, `square`, `aip155`, `openai_compatible`.
    preset: Option<Text<String>>,
    /// The header that carries the key.
    header: Option<Text<HeaderName>>,
    /// The member of a JSON body that carries the key: `/request_id`.
    key_in_body: Option<Text<String>>,
    /// Whether keys in a header are quoted.
    quote: Option<Text<bool>>,
    /// The methods whose requests get a key.
    methods: Option<List>,
    /// The longest key that the server takes.
    max_key_length: Option<Text<usize>>,
    /// How long the server remembers a key at least.
    retention: Option<Text<Span>>,
    /// `uuid-v4` (default), `uuid-v7` or `content`.
    key: Option<Text<KeyKind>>,
    /// What content keys begin with.
    key_prefix: Option<Text<String>>,
    /// What tells these content keys from others.
    salt: Option<Text<String>>,
    /// JSON Pointers of what content keys leave out.
    excluded: Option<List>,
    /// JSON Pointers of what content keys are made of.
    included: Option<List>,
    /// Whether content keys are spelled as UUIDs.
    key_as_uuid: Option<Text<bool>>,
    attempts: Option<Text<u32>>,
    deadline: Option<Text<Span>>,
    attempt_timeout: Option<Text<Span>>,
    backoff_transient: Option<Text<Span>>,
    backoff_throttled: Option<Text<Span>>,
    backoff_cap: Option<Text<Span>>,
    max_retry_after: Option<Text<Span>>,
    /// How many tokens the retry budget has.
    retry_budget: Option<Text<u32>>,
    max_whole_answer: Option<Text<Size>>,
    max_repeatable_body: Option<Text<Size>>,
    /// Whether calls of this process share answers.
    share_answers: Option<Text<bool>>,
    cache_ttl: Option<Text<Span>>,
    cache_capacity: Option<Text<u64>>,
}

/// What the environment variables begin with.
const PREFIX: &str = "RETRYSAFE_CLIENT_";

impl ClientConfig {
    /// Reads TOML.
    ///
    /// # Errors
    ///
    /// If it is not TOML, has a key that is none of these, or a value that can't be read: with its line.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::new("client", error.to_string()))
    }

    /// What the environment names, over what is here: `RETRYSAFE_CLIENT_DEADLINE` and so on.
    ///
    /// # Errors
    ///
    /// If a variable of that prefix is none of these, or its value can't be read.
    pub fn with_env(self) -> Result<Self, ConfigError> {
        self.with_variables(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            Some((name, value.to_string_lossy().into_owned()))
        }))
    }

    /// The same for variables that are given.
    ///
    /// # Errors
    ///
    /// If a variable of that prefix is none of these, or its value can't be read.
    pub fn with_variables(
        self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let named = variables.into_iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
            Some((key, value))
        });
        let mut merged = self;
        for (key, value) in named.collect::<BTreeMap<_, _>>() {
            // One by one, so that an error names its variable.
            let table = toml::Table::from_iter([(key.clone(), toml::Value::String(value))]);
            let one: Self = table.try_into().map_err(|error: toml::de::Error| {
                let variable = format!("{PREFIX}{}", key.to_ascii_uppercase());
                ConfigError::new("environment", format!("{variable}: {}", error.message()))
            })?;
            merged = one.or(merged);
        }
        Ok(merged)
    }

    fn or(self, other: Self) -> Self {
        macro_rules! either {
            ($($field:ident),* $(,)?) => { Self { $($field: self.$field.or(other.$field)),* } };
        }
        either!(
            preset,
            header,
            key_in_body,
            quote,
            methods,
            max_key_length,
            retention,
            key,
            key_prefix,
            salt,
            excluded,
            included,
            key_as_uuid,
            attempts,
            deadline,
            attempt_timeout,
            backoff_transient,
            backoff_throttled,
            backoff_cap,
            max_retry_after,
            retry_budget,
            max_whole_answer,
            max_repeatable_body,
            share_answers,
            cache_ttl,
            cache_capacity,
        )
    }

    /// The settings that it stands for.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings { dialect: self.dialect()?, ..Settings::default() };
        settings.keys = self.keys()?;
        let retries = &mut settings.retries;
        set(&mut retries.attempts, &self.attempts);
        set_span(&mut retries.deadline, &self.deadline);
        set_span(&mut retries.attempt_timeout, &self.attempt_timeout);
        set_span(&mut retries.backoff.transient, &self.backoff_transient);
        set_span(&mut retries.backoff.throttled, &self.backoff_throttled);
        set_span(&mut retries.backoff.cap, &self.backoff_cap);
        set_span(&mut retries.max_retry_after, &self.max_retry_after);
        set(&mut retries.budget.capacity, &self.retry_budget);
        set_size(&mut settings.max_whole_answer, &self.max_whole_answer);
        set_size(&mut settings.max_repeatable_body, &self.max_repeatable_body);
        let named = self.cache_ttl.is_some() || self.cache_capacity.is_some();
        if self.share_answers.as_ref().map_or(named, |it| it.0) {
            let mut share = ShareAnswers::default();
            set_span(&mut share.ttl, &self.cache_ttl);
            set(&mut share.capacity, &self.cache_capacity);
            settings.shared_answers = Some(share);
        }
        settings.validate()?;
        Ok(settings)
    }

    fn dialect(&self) -> Result<Dialect, ConfigError> {
        let mut dialect = match &self.preset {
            None => Dialect::draft07(),
            Some(Text(name)) => Dialect::by_name(name).ok_or_else(|| {
                let names: Vec<_> = Dialect::presets().map(|it| it.name).collect();
                let names = names.join(", ");
                ConfigError::new("preset", format!("there is no `{name}`: choose one of {names}"))
            })?,
        };
        match (&self.header, &self.key_in_body) {
            (Some(_), Some(_)) => {
                let problem = "the key goes into a header or into the body, not both";
                return Err(ConfigError::new("key_in_body", problem));
            }
            (Some(header), None) => dialect.placement = KeyPlacement::Header(header.0.clone()),
            (None, Some(pointer)) => {
                let pointer = pointer.0.parse().map_err(|error: ConfigError| {
                    ConfigError::new("key_in_body", error.to_string())
                })?;
                dialect.placement = KeyPlacement::Body(pointer);
            }
            (None, None) => {}
        }
        if let Some(Text(true)) = self.quote {
            dialect.quoting = Quoting::Always;
        }
        if let Some(List(names)) = &self.methods {
            let method = |name: &String| {
                Method::from_bytes(name.to_ascii_uppercase().as_bytes())
                    .map_err(|_| ConfigError::new("methods", format!("`{name}` is no method")))
            };
            let methods: Vec<_> = names.iter().map(method).collect::<Result<_, _>>()?;
            dialect.methods = Methods::from_iter(methods);
        }
        set(&mut dialect.max_key_length, &self.max_key_length);
        set_span(&mut dialect.retention, &self.retention);
        Ok(dialect)
    }

    fn keys(&self) -> Result<KeySource, ConfigError> {
        let of_content = [
            ("key_prefix", self.key_prefix.is_some()),
            ("salt", self.salt.is_some()),
            ("excluded", self.excluded.is_some()),
            ("included", self.included.is_some()),
            ("key_as_uuid", self.key_as_uuid.is_some()),
        ];
        match self.key.as_ref().map(|it| it.0) {
            Some(KeyKind::Content) => {}
            other => {
                // Set, and without effect: somebody thinks that keys come from content.
                if let Some((setting, _)) = of_content.iter().find(|(_, named)| *named) {
                    return Err(ConfigError::new(setting, "is for `key = \"content\"`"));
                }
                return Ok(match other {
                    Some(KeyKind::UuidV7) => KeySource::UuidV7,
                    _ => KeySource::UuidV4,
                });
            }
        }
        let mut content = ContentKey::builder();
        if let Some(Text(prefix)) = &self.key_prefix {
            content = content.prefix(prefix);
        }
        if let Some(Text(salt)) = &self.salt {
            content = content.salt(salt);
        }
        if let Some(Text(true)) = self.key_as_uuid {
            content = content.spelling(Spelling::Uuid);
        }
        let pointers = |list: &Option<List>| list.clone().map(|it| it.0).unwrap_or_default();
        content = content.exclude_all(pointers(&self.excluded));
        content = pointers(&self.included).into_iter().fold(content, |it, one| it.include(one));
        Ok(KeySource::Content(content.build()?))
    }
}

impl ClientBuilder {
    /// All settings of a configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn config(self, config: &ClientConfig) -> Result<Self, ConfigError> {
        Ok(self.settings(config.settings()?))
    }
}

fn set<T: Copy>(setting: &mut T, value: &Option<Text<T>>) {
    if let Some(Text(value)) = value {
        *setting = *value;
    }
}

fn set_span(setting: &mut Duration, value: &Option<Text<Span>>) {
    if let Some(Text(Span(value))) = value {
        *setting = *value;
    }
}

fn set_size(setting: &mut usize, value: &Option<Text<Size>>) {
    if let Some(Text(Size(value))) = value {
        *setting = *value;
    }
}

/// A value that is read from a text, a number or a truth value, so that the environment and the file
/// say the same.
#[derive(Clone, Debug)]
struct Text<T>(T);

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr<Err: fmt::Display>,
{
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let texts = reader.deserialize_any(Texts)?;
        let [text] = &texts[..] else {
            return Err(de::Error::custom("one value was expected, not a list"));
        };
        let wrong = |error: T::Err| de::Error::custom(format!("`{text}`: {error}"));
        text.trim().parse().map(Self).map_err(wrong)
    }
}

/// An array, or a text with commas.
#[derive(Clone, Debug)]
struct List(Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let texts = reader.deserialize_any(Texts)?;
        let items = texts.iter().flat_map(|it| it.split(',')).map(str::trim);
        Ok(Self(items.filter(|it| !it.is_empty()).map(str::to_owned).collect()))
    }
}

struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a truth value or a list of texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<String>, E> {
        Ok(vec![number.to_string()])
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Vec<String>, E> {
        Ok(vec![number.to_string()])
    }

    fn visit_bool<E: de::Error>(self, truth: bool) -> Result<Vec<String>, E> {
        Ok(vec![truth.to_string()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

#[derive(Clone, Copy, Debug)]
enum KeyKind {
    UuidV4,
    UuidV7,
    Content,
}

impl FromStr for KeyKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "uuid-v4" => Ok(Self::UuidV4),
            "uuid-v7" => Ok(Self::UuidV7),
            "content" => Ok(Self::Content),
            _ => Err("choose uuid-v4, uuid-v7 or content"),
        }
    }
}

/// A duration with its unit.
#[derive(Clone, Copy, Debug)]
struct Span(Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let read = humantime::parse_duration(text);
        read.map(Self).map_err(|_| "write a number and a unit, such as `60s`")
    }
}

/// A number of bytes, with or without a unit.
#[derive(Clone, Copy, Debug)]
struct Size(usize);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const BAD: &str = "write bytes or a unit, such as `4MiB`";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor: usize = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(BAD),
        };
        let number: usize = number.parse().map_err(|_| BAD)?;
        number.checked_mul(factor).map(Self).ok_or(BAD)
    }
}
