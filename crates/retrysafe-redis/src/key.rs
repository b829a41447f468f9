//! The name of a record's key, which is also the channel on which its changes are told.

use retrysafe_core::OperationId;

/// `prefix` and 64 hex digits, of which the logs show the first 16.
pub(crate) fn name(prefix: &str, id: &OperationId) -> String {
    let mut name = String::with_capacity(prefix.len() + 64);
    name.push_str(prefix);
    id.push_hex(&mut name);
    name
}

/// The operation that a key is named after; `None` if the key is somebody else's.
pub(crate) fn operation(prefix: &str, name: &[u8]) -> Option<OperationId> {
    let digits = name.strip_prefix(prefix.as_bytes())?;
    let mut id = [0; 32];
    if digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| match pair[at] {
            digit @ b'0'..=b'9' => Some(digit - b'0'),
            digit @ b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        *byte = (digit(0)? << 4) | digit(1)?;
    }
    Some(OperationId::from_bytes(id))
}

/// The pattern that all keys match.
pub(crate) fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back() {
        let id = OperationId::from_bytes(std::array::from_fn(|at| at as u8 * 8));
        let name = name("a*:", &id);
        assert_eq!(name.len(), 67);
        assert_eq!(operation("a*:", name.as_bytes()), Some(id));
        assert_eq!(operation("b*:", name.as_bytes()), None);
        assert_eq!(operation("a*:", &name.as_bytes()[..66]), None);
        assert_eq!(operation("a*:", name.to_uppercase().as_bytes()), None);
        assert_eq!(pattern("a*:"), "a\\*:*");
    }
}
