//! What has to be known of gRPC's framing and of protobuf's wire format: enough to find one field, and
//! to answer with one message.

use std::fmt;

use bytes::{Buf, Bytes};

/// What is in front of every message: whether it is compressed, and how long it is.
pub(crate) const PREFIX: usize = 5;

/// The length that a prefix announces.
pub(crate) fn length_of(prefix: &[u8; PREFIX]) -> usize {
    let [_, length @ ..] = *prefix;
    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)
}

/// A message as it is sent, uncompressed. One of 4 GiB can't be, and none is made.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

/// Why a key can't be looked for in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The message is compressed.
    Compressed,
    /// There is not exactly one message.
    NotOne,
    /// It is not protobuf, or not of this type.
    Malformed,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compressed => {
                "The message is compressed, and the key may be in it: send it uncompressed."
            }
            Self::NotOne => "The request is not exactly one message, and the key may be in it.",
            Self::Malformed => "The message can't be read, and the key may be in it.",
        })
    }
}

/// The one message of a unary request.
pub(crate) fn only(body: &[u8]) -> Result<&[u8], Unreadable> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>().ok_or(Unreadable::NotOne)?;
    if length_of(prefix) != message.len() {
        return Err(Unreadable::NotOne);
    }
    match prefix[0] {
        0 => Ok(message),
        _ => Err(Unreadable::Compressed),
    }
}

/// The string field with this number; the last one counts, and an empty one is none.
pub(crate) fn string_field(message: &[u8], number: u32) -> Result<Option<&str>, Unreadable> {
    let mut rest = message;
    let mut found = None;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let (field, wire_type) = (tag >> 3, tag & 7);
        if field == 0 || field > u64::from(u32::MAX >> 3) {
            return Err(Unreadable::Malformed);
        }
        let ours = field == u64::from(number);
        match wire_type {
            2 => {
                let length = usize::try_from(varint(&mut rest)?).unwrap_or(usize::MAX);
                let value = take(&mut rest, length)?;
                if ours {
                    let text = std::str::from_utf8(value).map_err(|_| Unreadable::Malformed)?;
                    found = Some(text).filter(|text| !text.is_empty());
                }
            }
            // What is of another type is not the field that we know.
            _ if ours => return Err(Unreadable::Malformed),
            0 => drop(varint(&mut rest)?),
            1 => drop(take(&mut rest, 8)?),
            5 => drop(take(&mut rest, 4)?),
            3 => skip_group(&mut rest, field)?,
            _ => return Err(Unreadable::Malformed),
        }
    }
    Ok(found)
}

/// Skips a group, which ends where it says so; groups may be in each other.
fn skip_group(rest: &mut &[u8], field: u64) -> Result<(), Unreadable> {
    let mut open = vec![field];
    while let Some(&innermost) = open.last() {
        let tag = varint(rest)?;
        match tag & 7 {
            0 => drop(varint(rest)?),
            1 => drop(take(rest, 8)?),
            2 => {
                let length = usize::try_from(varint(rest)?).unwrap_or(usize::MAX);
                take(rest, length)?;
            }
            3 if open.len() < DEEPEST => open.push(tag >> 3),
            4 if tag >> 3 == innermost => drop(open.pop()),
            5 => drop(take(rest, 4)?),
            _ => return Err(Unreadable::Malformed),
        }
    }
    Ok(())
}

/// As deep as protobuf's libraries go.
const DEEPEST: usize = 100;

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Unreadable> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Unreadable::Malformed)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Unreadable> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.try_get_u8().map_err(|_| Unreadable::Malformed)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unreadable::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g2_one_uncompressed_message() {
        assert_eq!(only(&framed(&[8, 1])), Ok(&[8, 1][..]));
        assert_eq!(only(&[0, 0, 0, 0, 2, 8, 1]), Ok(&[8, 1][..]));
        assert_eq!(only(&[0, 0, 0, 0, 0]), Ok(&[][..]));
        assert_eq!(only(&[1, 0, 0, 0, 2, 8, 1]), Err(Unreadable::Compressed));
        for bad in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 2, 8], &[0, 0, 0, 0, 0, 0]] {
            assert_eq!(only(bad), Err(Unreadable::NotOne), "{bad:?}");
        }
    }

    #[test]
    fn g2_a_field_is_found_among_others() {
        let message = [
            &[0x08, 0x96, 0x01][..],                           // 1: varint
            &[0x11, 1, 2, 3, 4, 5, 6, 7, 8],                   // 2: fixed64
            &[0x1b, 0x08, 0x01, 0x1b, 0x1c, 0x22, 1, 9, 0x1c], // 3: a group in a group
            &[0x25, 1, 2, 3, 4],                               // 4: fixed32
            &[0x2a, 3, b'o', b'n', b'e'],                      // 5: a string
            &[0x2a, 3, b't', b'w', b'o'],                      // 5 again
        ]
        .concat();
        assert_eq!(string_field(&message, 5), Ok(Some("two")));
        assert_eq!(string_field(&message, 6), Ok(None));
        assert_eq!(string_field(&message, 1), Err(Unreadable::Malformed));
        assert_eq!(string_field(&[], 5), Ok(None));
        assert_eq!(string_field(&[0x2a, 0], 5), Ok(None));
        for cut in [1, 2, 4, 11, 20, 25, message.len() - 1] {
            assert_eq!(string_field(&message[..cut], 6), Err(Unreadable::Malformed), "{cut}");
        }
    }

    #[test]
    fn g2_what_is_not_protobuf_has_no_key() {
        for bad in [
            &[0x00][..],
            &[0x2a, 1, 0xff],
            &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x0c],
            &[0x0e, 0],
            &[0x0b; 300],
            b"{\"request_id\":\"1\"}",
        ] {
            assert_eq!(string_field(bad, 5), Err(Unreadable::Malformed), "{bad:?}");
        }
    }
}
