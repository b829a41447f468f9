//! RFC 9651 String items: the quoted spelling of a key (K2).
//!
//! Our own parser, because it must borrow, and because it is the first thing that reads what a
//! stranger sends. A property test and a fuzz target compare it with the `sfv` crate.

use std::borrow::Cow;

/// The string of a String item, whose parameters must be well-formed and are ignored; `None` if the
/// value is anything else.
pub(super) fn parse_string(value: &[u8]) -> Option<Cow<'_, str>> {
    let mut input = Input(value);
    let text = input.string()?;
    input.parameters()?;
    input.0.is_empty().then_some(text)
}

/// The text as a String item, without parameters.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        if matches!(char, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(char);
    }
    quoted.push('"');
    quoted
}

/// What is left to read. Every method takes what it names off the front, or says `None`.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, expected: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == expected).then(|| self.0 = rest)
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take_while(&mut self, belongs: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.0.iter().position(|byte| !belongs(*byte)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    /// 4.2.5: borrowed unless something in it is escaped.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.take(b'"')?;
        let mut text = Cow::Borrowed("");
        loop {
            let plain = self
                .take_while(|byte| matches!(byte, 0x20..=0x7E) && !matches!(byte, b'"' | b'\\'));
            let plain = std::str::from_utf8(plain).ok()?;
            if text.is_empty() {
                text = Cow::Borrowed(plain);
            } else {
                text.to_mut().push_str(plain);
            }
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => match self.next()? {
                    escaped @ (b'"' | b'\\') => text.to_mut().push(char::from(escaped)),
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    /// 4.2.3.2
    fn parameters(&mut self) -> Option<()> {
        while self.take(b';').is_some() {
            self.take_while(|byte| byte == b' ');
            self.parameter_name()?;
            if self.take(b'=').is_some() {
                self.bare_item()?;
            }
        }
        Some(())
    }

    /// 4.2.3.3
    fn parameter_name(&mut self) -> Option<()> {
        matches!(self.0.first()?, b'a'..=b'z' | b'*').then_some(())?;
        self.take_while(
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'),
        );
        Some(())
    }

    /// 4.2.3.1
    fn bare_item(&mut self) -> Option<()> {
        match self.0.first()? {
            b'"' => self.string().map(drop),
            b'-' | b'0'..=b'9' => self.number().map(drop),
            b'a'..=b'z' | b'A'..=b'Z' | b'*' => {
                self.take_while(|byte| {
                    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
                });
                Some(())
            }
            b':' => self.byte_sequence(),
            b'?' => {
                self.next();
                matches!(self.next()?, b'0' | b'1').then_some(())
            }
            b'@' => {
                self.next();
                (self.number()? == Number::Integer).then_some(())
            }
            b'%' => self.display_string(),
            _ => None,
        }
    }

    /// 4.2.4
    fn number(&mut self) -> Option<Number> {
        let _ = self.take(b'-');
        let whole = self.take_while(|byte| byte.is_ascii_digit()).len();
        if self.take(b'.').is_none() {
            return matches!(whole, 1..=15).then_some(Number::Integer);
        }
        let fraction = self.take_while(|byte| byte.is_ascii_digit()).len();
        (matches!(whole, 1..=12) && matches!(fraction, 1..=3)).then_some(Number::Decimal)
    }

    /// 4.2.7: padding may be missing, and what it hides need not be zero.
    fn byte_sequence(&mut self) -> Option<()> {
        self.take(b':')?;
        let symbols =
            self.take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
        let padding = self.take_while(|byte| byte == b'=').len();
        self.take(b':')?;
        match symbols.len() % 4 {
            0 => padding == 0,
            1 => false,
            odd => odd + padding <= 4,
        }
        .then_some(())
    }

    /// 4.2.10
    fn display_string(&mut self) -> Option<()> {
        self.take(b'%')?;
        self.take(b'"')?;
        let mut decoded = Vec::new();
        loop {
            match self.next()? {
                b'"' => return std::str::from_utf8(&decoded).ok().map(drop),
                b'%' => {
                    let high = lower_hex(self.next()?)?;
                    decoded.push(high << 4 | lower_hex(self.next()?)?);
                }
                plain @ 0x20..=0x7E => decoded.push(plain),
                _ => return None,
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Number {
    Integer,
    Decimal,
}

fn lower_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
