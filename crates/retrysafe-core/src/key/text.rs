//! The text of a key.

use std::{
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// A short text is kept in place: a UUID, which most keys are, allocates nothing.
#[derive(Clone)]
pub(super) enum Text {
    Short { bytes: [u8; Text::SHORT], length: u8 },
    Long(Arc<str>),
}

impl Text {
    const SHORT: usize = 38;
}

impl Text {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { bytes, length } => &bytes[..usize::from(*length)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut bytes = [0; Self::SHORT];
        match bytes.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text.as_bytes());
                Self::Short { bytes, length: text.len() as u8 }
            }
            None => Self::Long(text.into()),
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Short { .. } => str::from_utf8(self.as_bytes())
                .unwrap_or_else(|_| unreachable!("it was copied from a text")),
            Self::Long(text) => text,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_reads_back() {
        for length in 0..100 {
            let text = "x".repeat(length);
            assert_eq!(&*Text::from(text.as_str()), text);
            assert!(Text::from(text.as_str()) == Text::from(text));
        }
    }
}
