//! JSON as fingerprints and keys need it: strict, and only where its canonical form says all that
//! the text says.
//!
//! `serde_json` alone can't read it: it keeps the last of two members of one name, it rounds
//! numbers without telling, and what it does with numbers depends on the features that other
//! crates of the build turn on.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use crate::JsonPointer;

/// The canonical form (RFC 8785) of a JSON text, without the members that the pointers name (F2).
///
/// Two texts with the same canonical form say the same. Where that could not be promised, there is
/// none: `None` if the text is not JSON, if an object has two members of one name, if a number is
/// not the one that a double prints as (`9007199254740993`, `1e400`), or if it is nested deeper than
/// 128 levels. Numbers within what is left out may be anything.
///
/// A pointer names a place in the text as it came: leaving out `/0` does not move what `/1` names.
/// One that names nothing is no error.
///
/// ```
/// use retrysafe_core::canonical_json;
///
/// let text = br#"{ "b": 1.0, "a": "\u00e9", "sent_at": 12345678901234567890 }"#;
/// let canonical = canonical_json(text, &["/sent_at".parse()?]);
/// assert_eq!(canonical.as_deref(), Some(r#"{"a":"é","b":1}"#.as_bytes()));
/// assert_eq!(canonical_json(text, &[]), None);
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
pub fn canonical_json(json: &[u8], without: &[JsonPointer]) -> Option<Vec<u8>> {
    let (value, _) = read(json, without, Numbers::HeldByADouble)?;
    serde_json_canonicalizer::to_vec(&value).ok()
}

/// The text of the value that a pointer names, as it came; the outer `None` if this is not JSON, or
/// has two members of one name.
pub(crate) fn find<'a>(json: &'a [u8], pointer: &JsonPointer) -> Option<Option<&'a str>> {
    let (_, left_out) = read(json, std::slice::from_ref(pointer), Numbers::Any)?;
    Some(left_out.first().copied())
}

/// The string that a JSON string token stands for.
pub(crate) fn unescape(token: &str) -> Option<String> {
    serde_json::from_str(token).ok()
}

/// Which numbers a text may have outside of what is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// Those whose canonical form says the same.
    HeldByADouble,
    /// Any: their values are not wanted.
    Any,
}

fn read<'a>(
    json: &'a [u8],
    without: &[JsonPointer],
    numbers: Numbers,
) -> Option<(Value, Vec<&'a str>)> {
    let text = std::str::from_utf8(json).ok()?;
    let mut reader = Reader { text, at: 0, left_out: Vec::new(), numbers };
    let tokens: Vec<_> = without.iter().map(JsonPointer::tokens).collect();
    let value = reader.value(Place { pointers: &tokens, depth: 0, kept: true })?;
    reader.white_space();
    (reader.at == json.len()).then_some((value, reader.left_out))
}

/// RFC 8259, one method for each of its rules. Each reads what it names, or says `None`.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    left_out: Vec<&'a str>,
    numbers: Numbers,
}

/// Where in the text a value is.
#[derive(Clone, Copy)]
struct Place<'p> {
    /// What is left of the pointers that lead to this value.
    pointers: &'p [&'p [String]],
    depth: usize,
    kept: bool,
}

const MAX_DEPTH: usize = 128;

impl<'a> Reader<'a> {
    /// The value at a place. What is left out is read as strictly, but for its numbers, and comes
    /// back as something that is thrown away.
    fn value(&mut self, mut place: Place<'_>) -> Option<Value> {
        self.white_space();
        let start = self.at;
        let named = place.pointers.iter().any(|tokens| tokens.is_empty());
        place.kept &= !named;
        let value = match self.peek()? {
            b'{' => self.object(place).map(Value::Object),
            b'[' => self.array(place).map(Value::Array),
            b'"' => self.string().map(Value::String),
            b'-' | b'0'..=b'9' => self.number(place.kept && self.numbers == Numbers::HeldByADouble),
            b't' => self.literal("true").map(|()| Value::Bool(true)),
            b'f' => self.literal("false").map(|()| Value::Bool(false)),
            b'n' => self.literal("null").map(|()| Value::Null),
            _ => None,
        };
        if named {
            self.left_out.push(&self.text[start..self.at]);
        }
        value
    }

    fn object(&mut self, place: Place<'_>) -> Option<Map<String, Value>> {
        let mut members = Map::new();
        let mut left_out = Vec::new();
        self.list(b'{', b'}', place.depth, |reader, _| {
            reader.white_space();
            let name = reader.string()?;
            reader.white_space();
            reader.take(b':')?;
            let pointers = step(place.pointers, &name);
            let value = reader.value(place.within(&pointers))?;
            if pointers.iter().any(|tokens| tokens.is_empty()) {
                left_out.push(name.clone());
            }
            // A second member of one name: readers differ on which of them counts.
            members.insert(name, value).is_none().then_some(())
        })?;
        for name in left_out {
            members.remove(&name);
        }
        Some(members)
    }

    fn array(&mut self, place: Place<'_>) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        self.list(b'[', b']', place.depth, |reader, index| {
            let pointers = match place.pointers {
                [] => Vec::new(),
                pointers => step(pointers, &index.to_string()),
            };
            let value = reader.value(place.within(&pointers))?;
            if !pointers.iter().any(|tokens| tokens.is_empty()) {
                values.push(value);
            }
            Some(())
        })?;
        Some(values)
    }

    fn list(
        &mut self,
        open: u8,
        close: u8,
        depth: usize,
        mut read_one: impl FnMut(&mut Self, usize) -> Option<()>,
    ) -> Option<()> {
        (depth < MAX_DEPTH).then_some(())?;
        self.take(open)?;
        self.white_space();
        if self.take(close).is_some() {
            return Some(());
        }
        for index in 0.. {
            read_one(self, index)?;
            self.white_space();
            if self.take(b',').is_none() {
                break;
            }
        }
        self.take(close)
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            match self.next()? {
                b'"' => break,
                b'\\' => drop(self.next()?),
                _ => {}
            }
        }
        let token = &self.text[start..self.at];
        let inner = &token[1..token.len() - 1];
        if inner.bytes().any(|byte| byte == b'\\' || byte < 0x20) {
            return unescape(token);
        }
        Some(inner.to_owned())
    }

    fn number(&mut self, kept: bool) -> Option<Value> {
        let start = self.at;
        let _ = self.take(b'-');
        let leading_zero = self.peek() == Some(b'0');
        let whole = self.digits()?;
        if leading_zero && whole > 1 {
            return None;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if self.take(b'e').or_else(|| self.take(b'E')).is_some() {
            let _ = self.take(b'+').or_else(|| self.take(b'-'));
            self.digits()?;
        }
        if !kept {
            return Some(Value::Null);
        }
        let double = held_by_a_double(&self.text[start..self.at])?;
        Number::from_f64(double).map(Value::Number)
    }

    fn digits(&mut self) -> Option<usize> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(self.at - start)
    }

    fn literal(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        (self.peek()? == expected).then(|| self.at += 1)
    }
}

impl<'p> Place<'p> {
    fn within<'q>(self, pointers: &'q [&'q [String]]) -> Place<'q> {
        // Within what is left out, nothing more is.
        let pointers = if self.kept { pointers } else { &[] };
        Place { pointers, depth: self.depth + 1, kept: self.kept }
    }
}

/// What is left of those pointers that go on with this token.
fn step<'p>(pointers: &[&'p [String]], token: &str) -> Vec<&'p [String]> {
    pointers
        .iter()
        .filter_map(|tokens| tokens.split_first())
        .filter_map(|(first, rest)| (first == token).then_some(rest))
        .collect()
}

/// The double that stands for a number, if nothing is lost: what RFC 8785 prints for the double is
/// the number itself. So two numbers with the same canonical text are the same number
/// (`double_counts`), and `0.1` is held although no double is exactly a tenth.
fn held_by_a_double(number: &str) -> Option<f64> {
    let double: f64 = number.parse().ok()?;
    // Any decimal of fifteen digits survives a double; without an exponent it is also in range.
    if number.len() <= 15 && !number.contains(['e', 'E']) {
        return Some(double);
    }
    let printed = serde_json_canonicalizer::to_string(&double).ok()?;
    (Decimal::parse(number)? == Decimal::parse(&printed)?).then_some(double)
}

/// The value of a number: `0.DIGITS` times ten to `exponent`, with no zero at either end of the
/// digits. The sign is left to the double; zero has no digits, and no sign in RFC 8785.
#[derive(PartialEq, Eq)]
struct Decimal<'a> {
    digits: Cow<'a, str>,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn parse(number: &'a str) -> Option<Self> {
        let number = number.strip_prefix('-').unwrap_or(number);
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = match fraction {
            "" => Cow::Borrowed(whole),
            fraction => Cow::Owned([whole, fraction].concat()),
        };
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() {
            return Some(Self { digits: Cow::Borrowed(""), exponent: 0 });
        }
        let leading_zeros = digits.len() - significant.len();
        let point = whole.len() as i64 - leading_zeros as i64;
        let exponent = exponent.parse::<i64>().ok()?.checked_add(point)?;
        Some(Self { digits: significant.trim_end_matches('0').to_owned().into(), exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> Option<String> {
        canonical_json(json.as_bytes(), &[]).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn without(json: &str, pointers: &[&str]) -> Option<String> {
        let pointers: Vec<_> = pointers.iter().map(|text| text.parse().unwrap()).collect();
        canonical_json(json.as_bytes(), &pointers).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn f2_rfc_8785_example() {
        let input = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        // The RFC's first number has a digit more than its double prints, so that it stands for
        // another number: with it the text has no canonical form here.
        assert_eq!(canonical(input), None);
        let input = input.replace("333333333.33333329", "333333333.3333333");
        let expected = concat!(
            r#"{"literals":[null,true,false],"#,
            r#""numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
            r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#,
        );
        assert_eq!(canonical(&input).as_deref(), Some(expected));
    }

    #[test]
    fn f2_rfc_8785_sorts_by_utf_16_units() {
        let input = r#"{
            "\u20ac": "Euro Sign",
            "\r": "Carriage Return",
            "\ufb33": "Hebrew Letter Dalet With Dagesh",
            "1": "One",
            "\ud83d\ude00": "Emoji: Grinning Face",
            "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis"
        }"#;
        let sorted = canonical(input).unwrap();
        let places: Vec<_> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
            .map(|word| sorted.find(word).unwrap())
            .into();
        assert!(places.is_sorted(), "{sorted}");
    }

    #[test]
    fn f2_rfc_8785_numbers() {
        // Appendix B, those that their double prints as.
        for (written, printed) in [
            ("0", "0"),
            ("-0", "0"),
            ("0e99999999999999999999", "0"),
            ("5e-324", "5e-324"),
            ("-5e-324", "-5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("-1.7976931348623157E+308", "-1.7976931348623157e+308"),
            ("9007199254740992", "9007199254740992"),
            ("-9007199254740992.0", "-9007199254740992"),
            ("295147905179352830000", "295147905179352830000"),
            ("9.999999999999997e22", "9.999999999999997e+22"),
            ("100000000000000000000000", "1e+23"),
            ("1.0000000000000001e+23", "1.0000000000000001e+23"),
            ("999999999999999700000", "999999999999999700000"),
            ("1000000000000000000000", "1e+21"),
            ("9.999999999999997e-7", "9.999999999999997e-7"),
            ("0.0000010", "0.000001"),
            ("333333333.33333325", "333333333.33333325"),
            ("-0.0000033333333333333333", "-0.0000033333333333333333"),
            ("1424953923781206.2", "1424953923781206.2"),
            ("0.1", "0.1"),
            ("19.90", "19.9"),
            ("123456789012345", "123456789012345"),
            ("1.5e1", "15"),
        ] {
            assert_eq!(canonical(written).as_deref(), Some(printed), "{written}");
        }
    }

    #[test]
    fn double_counts() {
        for lost in [
            "9007199254740993",
            "-9007199254740993",
            "9007199254740993.0",
            "9.007199254740993e15",
            "12345678901234567890",
            "123456789012345.678",
            "0.1000000000000000055511151231257827",
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            assert_eq!(canonical(lost), None, "{lost}");
            assert_eq!(canonical(&format!(r#"{{"a":[{lost}]}}"#)), None, "{lost}");
        }
    }

    #[test]
    fn f2_a_member_twice_has_no_canonical_form() {
        assert_eq!(canonical(r#"{"a":1,"a":1}"#), None);
        assert_eq!(canonical(r#"{"a":1,"\u0061":2}"#), None);
        assert_eq!(canonical(r#"[{"x":{"a":1,"b":2,"a":3}}]"#), None);
        // Neither does one within what is left out: readers differ on where it ends.
        assert_eq!(without(r#"{"x":{"a":1,"a":2}}"#, &["/x"]), None);
        assert_eq!(without(r#"{"x":1,"x":2}"#, &["/x"]), None);
        assert!(canonical(r#"[{"a":1},{"a":2}]"#).is_some());
    }

    #[test]
    fn f2_what_is_not_json_has_no_canonical_form() {
        for bad in [
            "",
            " ",
            "nul",
            "nulls",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e",
            "'a'",
            "\"a",
            "\"\n\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "[1 2]",
            "{\"a\" 1}",
            "1 2",
            "\u{feff}1",
            "NaN",
            "Infinity",
            "[,1]",
            "{,}",
            "\"\\",
            "/**/1",
        ] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
        assert_eq!(canonical_json(b"\"\xff\"", &[]), None);
    }

    #[test]
    fn f2_depth_is_bounded() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(canonical(&nested(MAX_DEPTH)).is_some());
        assert_eq!(canonical(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(canonical(&"[".repeat(1 << 16)), None);
    }

    #[test]
    fn f2_pointers_leave_out_what_they_name() {
        let order = r#"{"id":7,"meta":{"trace":18446744073709551615,"by":"a"},"items":[1,2,3]}"#;
        for (pointers, expected) in [
            (&["/meta/trace"][..], r#"{"id":7,"items":[1,2,3],"meta":{"by":"a"}}"#),
            (&["/meta", "/items/0", "/items/1"], r#"{"id":7,"items":[3]}"#),
            (
                &["/meta", "/meta/by", "/nowhere", "/items/9", "/items/-"],
                r#"{"id":7,"items":[1,2,3]}"#,
            ),
            (&["/meta/trace", "/id", "/items"], r#"{"meta":{"by":"a"}}"#),
        ] {
            assert_eq!(without(order, pointers).as_deref(), Some(expected), "{pointers:?}");
        }
        assert_eq!(without(order, &["/items/01", "/meta/by"]), None);
    }
}
