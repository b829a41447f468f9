//! Multipart bodies (RFC 2046), whatever their boundary.

use super::RequestHead;

/// The headers and contents of the parts, in order; `None` if the body is not multipart or is
/// written in a way that readers may differ on.
pub(super) fn canonical(head: &RequestHead<'_>, body: &[u8]) -> Option<Vec<u8>> {
    let content_type = head.content_type(|essence| {
        essence.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/"))
    })?;
    let delimiter = [b"\r\n--", boundary(content_type)?].concat();
    let mut canonical = Vec::with_capacity(body.len());
    // No preamble: the first delimiter has no line before it.
    let mut rest = body.strip_prefix(&delimiter[2..])?;
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return matches!(end, b"" | b"\r\n").then_some(canonical);
        }
        let end = find(rest, &delimiter)?;
        // Anything else after a delimiter: to some readers it is one, to others it is content.
        let (headers, content) = part_headers(rest[..end].strip_prefix(b"\r\n")?)?;
        canonical.extend_from_slice(&(headers.len() as u64).to_be_bytes());
        for (name, value) in headers {
            append(&mut canonical, &name.to_ascii_lowercase());
            append(&mut canonical, value);
        }
        append(&mut canonical, content);
        rest = &rest[end + delimiter.len()..];
    }
}

type Headers<'a> = Vec<(&'a [u8], &'a [u8])>;

/// The headers of a part, and what follows the empty line after them.
fn part_headers(mut part: &[u8]) -> Option<(Headers<'_>, &[u8])> {
    let mut headers = Vec::new();
    loop {
        let end = find(part, b"\r\n")?;
        let (line, rest) = (&part[..end], &part[end + 2..]);
        if line.is_empty() {
            return Some((headers, rest));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = &line[..colon];
        // A folded line has no name either.
        let is_token = |byte: &u8| byte.is_ascii_graphic() && !b"()<>@,;\\\"/[]?={}".contains(byte);
        if name.is_empty() || !name.iter().all(is_token) {
            return None;
        }
        headers.push((name, line[colon + 1..].trim_ascii()));
        part = rest;
    }
}

/// The `boundary` of a `Content-Type`, if it has one and it is well-formed.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let mut found = None;
    let start = content_type.iter().position(|byte| *byte == b';')?;
    let mut rest = &content_type[start..];
    while let Some(parameter) = rest.strip_prefix(b";") {
        let parameter = parameter.trim_ascii_start();
        if parameter.is_empty() {
            break;
        }
        let equals = parameter.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&parameter[..equals], &parameter[equals + 1..]);
        let (value, after) = match value.strip_prefix(b"\"") {
            Some(quoted) => {
                let end = quoted.iter().position(|byte| *byte == b'"')?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => {
                let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
                (value[..end].trim_ascii_end(), &value[end..])
            }
        };
        if name.eq_ignore_ascii_case(b"boundary") && found.replace(value).is_some() {
            return None;
        }
        rest = after.trim_ascii_start();
    }
    // RFC 2046, 5.1.1. It does not end with a space, and no escape is left in it.
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    found
        .filter(|_| rest.is_empty() || rest == b";")
        .filter(|value| matches!(value.len(), 1..=70) && value.iter().all(allowed))
        .filter(|value| !value.ends_with(b" "))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn append(canonical: &mut Vec<u8>, bytes: &[u8]) {
    canonical.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    canonical.extend_from_slice(bytes);
}
