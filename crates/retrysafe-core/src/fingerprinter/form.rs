//! URL-encoded forms, whatever the order of their fields.

use super::RequestHead;

/// The form's pairs, decoded, in an order that does not depend on that of the fields; `None` if the
/// body is not such a form, or can't be decoded without losing bytes.
///
/// Whoever writes a form from a hash map sends the fields in any order, and whoever reads one looks
/// them up by name. But the pairs of one field must keep their order: the first, the last or the
/// list of them is what counts, and `items[][id]=1&items[][id]=2&items[][qty]=3` is not the order of
/// `items[][id]=1&items[][qty]=3&items[][id]=2`. So pairs are ordered by the field alone, the name
/// up to its first bracket.
pub(super) fn canonical(head: &RequestHead<'_>, body: &[u8]) -> Option<Vec<u8>> {
    head.content_type(|essence| {
        essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    })?;
    let mut pairs: Vec<_> = form_urlencoded::parse(body).collect();
    // What is not UTF-8 decodes to this character: two such values would look the same.
    let lossy = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    if pairs.iter().any(|(name, value)| lossy(name) || lossy(value)) {
        return None;
    }
    pairs.sort_by(|(one, _), (other, _)| field(one).cmp(field(other)));
    let mut canonical = Vec::with_capacity(body.len() + 16 * pairs.len());
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        canonical.extend_from_slice(&(text.len() as u64).to_be_bytes());
        canonical.extend_from_slice(text.as_bytes());
    }
    Some(canonical)
}

fn field(name: &str) -> &str {
    name.split('[').next().unwrap_or_default()
}
