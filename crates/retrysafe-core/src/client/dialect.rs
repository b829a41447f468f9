//! What a server understands: where the key goes and what its answers mean.

use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName};

use super::NoKey;
use crate::{
    ConfigError, IdempotencyKey, InvalidKey, JsonPointer, KeyRules, Methods, Quoting, json,
};

/// What a server understands. There is one for each of the well-known APIs
/// ([`draft07`](Self::draft07), [`stripe`](Self::stripe), ...), and any of its settings can be
/// changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dialect {
    /// The dialect's name, in metrics and configuration.
    pub name: &'static str,
    /// Where the key goes.
    pub placement: KeyPlacement,
    /// How a key in a header is spelled.
    pub quoting: Quoting,
    /// The methods whose requests get a key.
    pub methods: Methods,
    /// The longest key that the server takes, in bytes.
    pub max_key_length: usize,
    /// How long the server remembers a key at least, from the first request with it (C5).
    pub retention: Duration,
    /// The header that marks a replay.
    pub replay_marker: Option<HeaderName>,
    /// The header by which the server says whether a retry makes sense: `true` or `false`.
    pub advice: Option<HeaderName>,
    /// What a 409 means that says nothing more.
    pub conflict: Conflict,
    /// What the body of a 409 says while another attempt is in progress: a pointer and the text there.
    pub in_progress: &'static [(&'static str, &'static str)],
    /// Whether the server executes a request with a known key no second time. Where it does not, a
    /// request that may have been received is not sent again.
    pub keeps_keys: bool,
}

/// Where the key goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyPlacement {
    /// Into a header.
    Header(HeaderName),
    /// Into a member of the JSON body, at its top.
    Body(JsonPointer),
}

/// What a 409 means that says nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// It is the application's own answer.
    Final,
    /// The same, unless there is a `Retry-After`: then another attempt is in progress.
    InProgressIfToldWhen,
    /// Another attempt is in progress.
    InProgress,
}

/// A key that has been put into a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// The caller's own key was there, and stays.
    Own(IdempotencyKey),
    /// The body with the key in it.
    Put(Vec<u8>),
}

impl Dialect {
    /// Checks that the settings fit together, and that keys of this length can be sent.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn validate(&self, longest_key: usize) -> Result<(), ConfigError> {
        if longest_key > self.max_key_length {
            let (name, most) = (self.name, self.max_key_length);
            let problem = format!(
                "keys of {longest_key} bytes are longer than {name} takes ({most}): choose UUIDs"
            );
            return Err(ConfigError::new("key", problem));
        }
        if self.retention.is_zero() {
            return Err(ConfigError::new("retention", "must be longer than zero"));
        }
        if let KeyPlacement::Body(pointer) = &self.placement
            && pointer.tokens().len() != 1
        {
            let problem = "the key can only be a member of the body's top, such as /request_id";
            return Err(ConfigError::new("key_in_body", problem));
        }
        Ok(())
    }

    /// The key that the caller has put into the headers, if that is where keys go. It is kept (C1).
    ///
    /// # Errors
    ///
    /// If it is not exactly one good key: a request with a bad key is not sent.
    pub fn own_key(&self, headers: &HeaderMap) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let KeyPlacement::Header(name) = &self.placement else { return Ok(None) };
        if !headers.contains_key(name) {
            return Ok(None);
        }
        let rules = KeyRules::default().header(name.clone()).max_length(self.max_key_length);
        // Keys of any format are read, so that nobody asks for the time.
        rules.read(headers, Duration::default)
    }

    /// Whether a key of the caller's can be sent to this server.
    ///
    /// # Errors
    ///
    /// If it is too long.
    pub fn check(&self, key: &IdempotencyKey) -> Result<(), InvalidKey> {
        let rules = KeyRules::default().max_length(self.max_key_length);
        rules.check(key.as_str(), Duration::default).map(drop)
    }

    /// Puts the key into a JSON body, at the place that [`KeyPlacement::Body`] names; every other byte
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// If the body is not a JSON object, or has a key of its own that is none.
    pub fn place_in_body(
        &self,
        pointer: &JsonPointer,
        body: &[u8],
        key: impl FnOnce() -> Result<IdempotencyKey, NoKey>,
    ) -> Result<(IdempotencyKey, Placed), NoKey> {
        if let Some(own) = pointer.key_text(body)? {
            let rules = KeyRules::default().max_length(self.max_key_length);
            let own = rules.check(&own, Duration::default)?;
            return Ok((own.clone(), Placed::Own(own)));
        }
        let found = json::find(body, pointer).ok_or(NoKey::NotAnObject)?;
        let start = body.iter().position(|byte| !byte.is_ascii_whitespace());
        let (Some(start), [name]) = (start, pointer.tokens()) else {
            return Err(NoKey::NotAnObject);
        };
        if body[start] != b'{' {
            return Err(NoKey::NotAnObject);
        }
        let key = key()?;
        let text = |text: &str| Cow::Owned::<str>(serde_json::Value::from(text).to_string());
        let (until, put, from) = match found {
            // `null` stands where the key belongs.
            Some(null) => {
                let at = null.as_ptr() as usize - body.as_ptr() as usize;
                (at, text(key.as_str()), at + null.len())
            }
            None => {
                let rest = &body[start + 1..];
                let empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
                let comma = if empty { "" } else { "," };
                let member = format!("{}:{}{comma}", text(name), text(key.as_str()));
                (start + 1, Cow::Owned(member), start + 1)
            }
        };
        let placed = [&body[..until], put.as_bytes(), &body[from..]].concat();
        Ok((key, Placed::Put(placed)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::KeyReason;

    fn key() -> Result<IdempotencyKey, NoKey> {
        Ok(IdempotencyKey::new("k-1")?)
    }

    fn placed(body: &str) -> Result<String, NoKey> {
        let pointer = "/request_id".parse().unwrap();
        match Dialect::aip155().place_in_body(&pointer, body.as_bytes(), key)? {
            (_, Placed::Put(body)) => Ok(String::from_utf8(body).unwrap()),
            (key, Placed::Own(_)) => Ok(format!("own {}", key.as_str())),
        }
    }

    #[test]
    fn c2_a_key_in_the_body_leaves_every_other_byte_alone() {
        for (body, expected) in [
            ("{}", r#"{"request_id":"k-1"}"#),
            (" { } ", r#" {"request_id":"k-1" } "#),
            (r#"{"a":9007199254740993}"#, r#"{"request_id":"k-1","a":9007199254740993}"#),
            (r#"{"a": 1, "request_id": null}"#, r#"{"a": 1, "request_id": "k-1"}"#),
            (r#"{"a":1,"request_id":"mine"}"#, "own mine"),
        ] {
            assert_eq!(placed(body).unwrap(), expected);
        }
        for bad in ["[]", "1", ""] {
            assert_eq!(placed(bad), Err(NoKey::NotAnObject), "{bad}");
        }
        assert!(matches!(placed("{"), Err(NoKey::Invalid(_))));
        assert!(matches!(placed(r#"{"request_id":[]}"#), Err(NoKey::Invalid(_))));
    }

    #[test]
    fn c1_the_callers_own_key_is_read_by_the_dialects_rules() {
        let own = |dialect: &Dialect, name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            dialect.own_key(&headers)
        };
        let draft = Dialect::draft07();
        assert_eq!(draft.own_key(&HeaderMap::new()), Ok(None));
        let key = own(&draft, "idempotency-key", "\"mine\"").unwrap().unwrap();
        assert_eq!(key.as_str(), "mine");
        let long: &'static str = "x".repeat(65).leak();
        let refused = own(&Dialect::adyen(), "idempotency-key", long).unwrap_err();
        assert_eq!(refused.reason(), KeyReason::TooLong);
        let refused = own(&draft, "idempotency-key", "a,b").unwrap_err();
        assert_eq!(refused.reason(), KeyReason::Syntax);
    }

    #[test]
    fn what_does_not_fit_is_found_when_it_is_built() {
        assert!(Dialect::stripe().validate(69).is_ok());
        let refused = Dialect::adyen().validate(69).unwrap_err();
        assert_eq!(refused.setting(), "key");
        let mut nested = Dialect::aip155();
        nested.placement = KeyPlacement::Body("/a/b".parse().unwrap());
        assert_eq!(nested.validate(36).unwrap_err().setting(), "key_in_body");
    }
}
