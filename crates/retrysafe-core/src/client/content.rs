//! Keys made from what a request says (C2).

use sha2::{Digest as _, Sha256};

use super::{
    NoKey, Operation,
    answer::is_json,
    key_source::{uuid_key, uuid_v8},
};
use crate::{ConfigError, IdempotencyKey, JsonPointer, canonical_json, json};

/// Members that usually differ between a request and the same request made again. None of them is
/// left out of a content key unless it is asked for: `content.exclude_all(VOLATILE_FIELDS)`.
pub const VOLATILE_FIELDS: [&str; 4] = ["/timestamp", "/trace_id", "/request_id", "/retry_count"];

/// Makes the key from the content of a request: the method, the URL, a salt, and the body.
///
/// A JSON body counts in its canonical form (RFC 8785), so that neither white space nor the order of
/// members matters; any other counts byte by byte. The key is `idem_` and the SHA-256 in hex, unless
/// something else is asked for.
///
/// **Two intended identical requests have one key**, and the second gets the answer of the first. Put
/// something into the body or the salt that tells them apart, or use another source.
///
/// ```
/// use retrysafe_core::client::{ContentKey, KeySource, VOLATILE_FIELDS};
///
/// let content = ContentKey::builder()
///     .salt("nightly-2026-11-22")
///     .exclude_all(VOLATILE_FIELDS)
///     .build()?;
/// let source = KeySource::Content(content);
/// assert_eq!(source.longest(), 69);
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ContentKey {
    prefix: String,
    salt: String,
    excluded: Vec<JsonPointer>,
    included: Vec<JsonPointer>,
    spelling: Spelling,
}

/// How a content key is spelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spelling {
    /// The prefix and 64 hex digits.
    #[default]
    Hex,
    /// A UUID of version 8, for servers that take no longer key. It has no prefix.
    Uuid,
}

impl ContentKey {
    /// Made from everything that a request says.
    pub fn builder() -> ContentKeyBuilder {
        ContentKeyBuilder::default()
    }

    pub(super) fn length(&self) -> usize {
        match self.spelling {
            Spelling::Hex => self.prefix.len() + 64,
            Spelling::Uuid => uuid::fmt::Hyphenated::LENGTH,
        }
    }

    /// The key of an operation.
    ///
    /// # Errors
    ///
    /// If the body is a stream, has no canonical form although it is JSON (or pointers are listed), or
    /// has nothing where a listed pointer looks.
    pub fn key(&self, operation: &Operation<'_>) -> Result<IdempotencyKey, NoKey> {
        let body = operation.body.ok_or(NoKey::StreamedBody)?;
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(b"retrysafe/1/content");
        part(operation.method.as_bytes());
        part(operation.url.as_bytes());
        part(self.salt.as_bytes());
        let listed = !self.excluded.is_empty() || !self.included.is_empty();
        if body.is_empty() && !listed {
            part(b"empty");
        } else if !self.included.is_empty() {
            part(b"members");
            for pointer in &self.included {
                let found = json::find(body, pointer).ok_or(NoKey::NotCanonical)?;
                let text = found.ok_or_else(|| NoKey::NothingAt(pointer.clone()))?;
                let value = canonical_json(text.as_bytes(), &[]).ok_or(NoKey::NotCanonical)?;
                part(pointer.to_string().as_bytes());
                part(&value);
            }
        } else if listed || is_json(operation.content_type) {
            // `double_counts`: two amounts that a double can't tell apart get no key at all.
            part(b"json");
            part(&canonical_json(body, &self.excluded).ok_or(NoKey::NotCanonical)?);
        } else {
            part(b"bytes");
            part(operation.content_type.map_or(b"", |it| it.as_bytes()));
            part(body);
        }
        let digest = hash.finalize();
        if self.spelling == Spelling::Uuid {
            return Ok(uuid_key(uuid_v8(&digest)));
        }
        let mut key = String::with_capacity(self.length());
        key.push_str(&self.prefix);
        for byte in digest {
            key.push(hex_digit(byte >> 4));
            key.push(hex_digit(byte & 0xf));
        }
        Ok(IdempotencyKey::new(&key)?)
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or_default()
}

/// Builds a [`ContentKey`].
#[derive(Clone, Debug)]
pub struct ContentKeyBuilder {
    prefix: String,
    salt: String,
    excluded: Vec<String>,
    included: Vec<String>,
    spelling: Spelling,
    sample: Option<Vec<u8>>,
}

impl Default for ContentKeyBuilder {
    fn default() -> Self {
        Self {
            prefix: "idem_".to_owned(),
            salt: String::new(),
            excluded: Vec::new(),
            included: Vec::new(),
            spelling: Spelling::default(),
            sample: None,
        }
    }
}

impl ContentKeyBuilder {
    /// What comes before the digits. `idem_`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// What tells these operations from identical ones that are meant to be others: a tenant, a
    /// batch, a day.
    pub fn salt(mut self, salt: impl Into<String>) -> Self {
        self.salt = salt.into();
        self
    }

    /// Leaves out what a JSON Pointer names. A body that has nothing there is as good.
    pub fn exclude(mut self, pointer: impl Into<String>) -> Self {
        self.excluded.push(pointer.into());
        self
    }

    /// Leaves out what these JSON Pointers name: [`VOLATILE_FIELDS`], for instance.
    pub fn exclude_all<P: Into<String>>(self, pointers: impl IntoIterator<Item = P>) -> Self {
        pointers.into_iter().fold(self, Self::exclude)
    }

    /// Makes the key from what the listed JSON Pointers name and from nothing else of the body. Every
    /// body has to have something there.
    pub fn include(mut self, pointer: impl Into<String>) -> Self {
        self.included.push(pointer.into());
        self
    }

    /// How the key is spelled.
    pub fn spelling(mut self, spelling: Spelling) -> Self {
        self.spelling = spelling;
        self
    }

    /// A body as they will be. Every pointer has to name something in it: a pointer with a slip of
    /// the pen in it is then found when the client is built, not when two keys differ.
    pub fn sample(mut self, json: impl Into<Vec<u8>>) -> Self {
        self.sample = Some(json.into());
        self
    }

    /// The source.
    ///
    /// # Errors
    ///
    /// If a pointer is malformed, names the whole body, or names nothing in the
    /// [`sample`](Self::sample); if pointers are both listed to be left out and to be kept; or if the
    /// prefix can't be part of a key.
    pub fn build(self) -> Result<ContentKey, ConfigError> {
        if !self.excluded.is_empty() && !self.included.is_empty() {
            let problem = "list what is left out, or what is kept, not both";
            return Err(ConfigError::new("included", problem));
        }
        let read = |setting, list: &[String]| {
            list.iter().map(|text| self.pointer(setting, text)).collect::<Result<Vec<_>, _>>()
        };
        let excluded = read("excluded", &self.excluded)?;
        let included = read("included", &self.included)?;
        let sample_key = "x".repeat(self.prefix.len() + 64);
        if IdempotencyKey::new(&sample_key).is_err()
            || !self.prefix.bytes().all(|byte| matches!(byte, 0x20..=0x7E))
        {
            let problem = "must be visible ASCII and spaces, and leave room for 64 digits";
            return Err(ConfigError::new("key_prefix", problem));
        }
        let Self { prefix, salt, spelling, .. } = self;
        Ok(ContentKey { prefix, salt, excluded, included, spelling })
    }

    fn pointer(&self, setting: &'static str, text: &str) -> Result<JsonPointer, ConfigError> {
        let error = |problem: String| ConfigError::new(setting, problem);
        let pointer: JsonPointer = text.parse().map_err(|it: ConfigError| error(it.to_string()))?;
        if pointer.is_whole() {
            return Err(error("the empty pointer names the whole body".to_owned()));
        }
        if let Some(sample) = &self.sample {
            let found = json::find(sample, &pointer)
                .ok_or_else(|| error("the sample is not JSON with distinct members".to_owned()))?;
            found.ok_or_else(|| error(format!("{text} names nothing in the sample")))?;
        }
        Ok(pointer)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    static JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

    fn operation(body: &str) -> Operation<'_> {
        Operation {
            method: "POST",
            url: "https://api.example/orders",
            content_type: Some(&JSON),
            body: Some(body.as_bytes()),
        }
    }

    fn key(content: &ContentKey, body: &str) -> String {
        content.key(&operation(body)).unwrap().as_str().to_owned()
    }

    fn all() -> ContentKey {
        ContentKey::builder().build().unwrap()
    }

    #[test]
    fn c2_the_key_is_a_prefix_and_64_digits_and_never_changes() {
        let key = key(&all(), r#"{"item":"book","amount":1999}"#);
        // Keys outlive a release: this one must come out for ever.
        assert_eq!(key, "idem_db0c58ae74825d7696ae886b493688610e5aa4637274dab7c11fe1d8a9a1a5e7");
    }

    #[test]
    fn c2_the_same_content_in_another_spelling_is_the_same_key() {
        let expected = key(&all(), r#"{"a":1,"b":[true,"é"],"c":{"x":1,"y":2}}"#);
        for same in [
            r#"{"b":[true,"é"],"a":1,"c":{"y":2,"x":1}}"#,
            "{ \"a\": 1.0,\n \"b\": [true, \"\\u00e9\"], \"c\": {\"x\": 1e0, \"y\": 2} }",
        ] {
            assert_eq!(key(&all(), same), expected, "{same}");
        }
        for other in [
            r#"{"a":2,"b":[true,"é"],"c":{"x":1,"y":2}}"#,
            r#"{"a":1,"b":["é",true],"c":{"x":1,"y":2}}"#,
            r#"{"a":"1","b":[true,"é"],"c":{"x":1,"y":2}}"#,
        ] {
            assert_ne!(key(&all(), other), expected, "{other}");
        }
    }

    #[test]
    fn c2_rfc_8785_vectors() {
        // 3.2.3, sorted by UTF-16 units; 3.2.4 and appendix B, numbers. Each pair is one key.
        let sorted = "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\
                      \"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\
                      \"😀\":\"Emoji: Grinning Face\",\
                      \"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}";
        let unsorted = r#"{
            "\u20ac": "Euro Sign", "\r": "Carriage Return",
            "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
            "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis"
        }"#;
        assert_eq!(key(&all(), sorted), key(&all(), unsorted));
        for (written, canonical) in [
            ("[-0]", "[0]"),
            ("[4.50, 2e-3, 1E30]", "[4.5,0.002,1e+30]"),
            ("[0.000000000000000000000000001]", "[1e-27]"),
            ("[333333333.3333333]", "[333333333.3333333]"),
            (
                r#"["\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/"]"#,
                r#"["€$\u000f\nA'B\"\\\\\"/"]"#,
            ),
        ] {
            assert_eq!(key(&all(), written), key(&all(), canonical), "{written}");
        }
    }

    #[test]
    fn double_counts() {
        // The lesson: two amounts above 2^53 canonicalised to the same number. Here there is no key.
        for body in [r#"{"amount":9007199254740993}"#, r#"{"a":1,"a":2}"#, "{", ""] {
            let refused =
                ContentKey::builder().exclude("/x").build().unwrap().key(&operation(body));
            assert_eq!(refused, Err(NoKey::NotCanonical), "{body}");
        }
    }

    #[test]
    fn c2_other_excluded_fields_same_key() {
        let bare = all();
        let volatile = ContentKey::builder().exclude_all(VOLATILE_FIELDS).build().unwrap();
        let first = r#"{"amount":1,"timestamp":1,"trace_id":"a","retry_count":0}"#;
        let again = r#"{"retry_count":1,"amount":1,"timestamp":12345678901234567890}"#;
        assert_eq!(key(&volatile, first), key(&volatile, again));
        assert_eq!(key(&volatile, first), key(&volatile, r#"{"amount":1}"#));
        // No field is left out by default.
        assert_ne!(key(&bare, first), key(&bare, r#"{"amount":1}"#));
    }

    #[test]
    fn c2_included_members_have_to_be_there() {
        let content =
            ContentKey::builder().include("/order/id").include("/amount").build().unwrap();
        let one = key(&content, r#"{"order":{"id":7},"amount":1,"note":"a"}"#);
        assert_eq!(one, key(&content, r#"{"note":"b","amount":1.0,"order":{"id":7}}"#));
        assert_ne!(one, key(&content, r#"{"order":{"id":8},"amount":1}"#));
        let refused = content.key(&operation(r#"{"amount":1}"#));
        assert_eq!(refused, Err(NoKey::NothingAt("/order/id".parse().unwrap())));
    }

    #[test]
    fn c2_method_url_and_salt_are_part_of_it() {
        let one = operation("{}");
        let salted = ContentKey::builder().salt("b").build().unwrap();
        let keys = [
            all().key(&one),
            all().key(&Operation { method: "PATCH", ..one }),
            all().key(&Operation { url: "https://api.example/payments", ..one }),
            all().key(&Operation { content_type: None, ..one }),
            all().key(&operation("")),
            salted.key(&one),
        ];
        let distinct: std::collections::HashSet<_> =
            keys.iter().map(|it| it.clone().unwrap()).collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(all().key(&Operation { body: None, ..one }), Err(NoKey::StreamedBody));
    }

    #[test]
    fn a_pointer_that_matches_nothing_is_found_when_it_is_built() {
        let sample = r#"{"amount":1,"timestamp":2}"#;
        let built = |change: fn(ContentKeyBuilder) -> ContentKeyBuilder| {
            change(ContentKey::builder().sample(sample)).build()
        };
        assert!(built(|it| it.exclude("/timestamp")).is_ok());
        assert!(built(|it| it.include("/amount")).is_ok());
        for (refused, setting, says) in [
            (built(|it| it.exclude("/timestmp")), "excluded", "/timestmp names nothing"),
            (built(|it| it.include("/order")), "included", "/order names nothing"),
            (built(|it| it.exclude("timestamp")), "excluded", "must start with a slash"),
            (built(|it| it.exclude("")), "excluded", "the whole body"),
            (built(|it| it.exclude("/amount").include("/amount")), "included", "not both"),
            (built(|it| it.prefix("é")), "key_prefix", "visible ASCII"),
            (built(|it| it.prefix("x".repeat(192))), "key_prefix", "room"),
            (built(|it| it.sample("{").exclude("/a")), "excluded", "not JSON"),
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.setting(), setting);
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }

    #[test]
    fn c2_as_a_uuid_it_fits_where_a_digest_does_not() {
        let content = ContentKey::builder().spelling(Spelling::Uuid).build().unwrap();
        let key = key(&content, "{}");
        assert_eq!(uuid::Uuid::parse_str(&key).unwrap().get_version_num(), 8);
        assert_eq!(key.len(), content.length());
    }
}
