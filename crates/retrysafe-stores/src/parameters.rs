//! What a URL says behind the `?`.

use crate::OpenError;

/// The parameters of a URL. Each store asks for those that it has; what nobody asked for is an error.
pub(crate) struct Parameters<'a> {
    scheme: &'a str,
    given: Vec<(&'a str, &'a str)>,
    asked: Vec<&'static str>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn of(scheme: &'a str, query: &'a str) -> Result<Self, OpenError> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if given.iter().any(|(other, _)| *other == name) {
                return Err(OpenError::url(format!("the store's URL says `{name}` twice")));
            }
            given.push((name, value));
        }
        Ok(Self { scheme, given, asked: Vec::new() })
    }

    /// A parameter as it was written.
    fn raw(&mut self, name: &'static str) -> Option<&'a str> {
        self.asked.push(name);
        let at = self.given.iter().position(|(given, _)| *given == name)?;
        Some(self.given.swap_remove(at).1)
    }

    /// A parameter, if it is given and `read` understands it.
    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OpenError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let value = decode(raw)?;
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(OpenError::url(format!("{name}={value} in the store's URL: it is {expected}")))
            }
        }
    }

    /// Parameters that are the driver's, as they were written; `mode` is one of `modes`.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn passed_on(
        &mut self,
        (mode, modes): (&'static str, &[&'static str]),
        others: &[&'static str],
    ) -> Result<String, OpenError> {
        let expected = format!("one of {}", modes.join(", "));
        let known = |said: &str| modes.iter().find(|known| **known == said).copied();
        let said = self.value(mode, &expected, known)?;
        let mut query: String = said.map(|said| format!("?{mode}={said}")).unwrap_or_default();
        for name in others {
            if let Some(raw) = self.raw(name) {
                let mark = if query.is_empty() { '?' } else { '&' };
                query.push_str(&format!("{mark}{name}={raw}"));
            }
        }
        Ok(query)
    }

    /// Refuses what nobody asked for. `hint` is said as well.
    pub(crate) fn nothing_else(self, hint: &str) -> Result<(), OpenError> {
        let Some((name, _)) = self.given.first() else { return Ok(()) };
        let (scheme, asked) = (self.scheme, self.asked.join(", "));
        Err(OpenError::url(format!(
            "the store `{scheme}:` has no setting `{name}`; it has {asked}{hint}"
        )))
    }
}

/// Decodes `%XX`.
pub(crate) fn decode(text: &str) -> Result<String, OpenError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let byte = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(|byte| *byte != 0)
            .ok_or_else(|| {
                OpenError::url("a `%` in a store's URL is followed by two hex digits, and is itself written %25")
            })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| OpenError::url("a name in the store's URL is not UTF-8"))
}
