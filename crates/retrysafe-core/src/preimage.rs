//! What is digested, put together before it is: a hash function takes one long piece in a fraction of
//! the time of many short ones.

/// Bytes to digest. Those of a usual key, or of a usual request's head, allocate nothing.
pub(crate) struct Preimage {
    short: [u8; Self::SHORT],
    length: usize,
    /// All of them, once there are more.
    long: Vec<u8>,
}

impl Preimage {
    const SHORT: usize = 256;

    pub(crate) fn new() -> Self {
        Self { short: [0; Self::SHORT], length: 0, long: Vec::new() }
    }

    #[inline]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.short.get_mut(self.length..end) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.bytes_of_long(bytes),
        }
        self.length = end;
    }

    #[cold]
    fn bytes_of_long(&mut self, bytes: &[u8]) {
        if self.long.is_empty() {
            self.long.extend_from_slice(&self.short[..self.length]);
        }
        self.long.extend_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn number(&mut self, number: usize) {
        self.bytes(&(number as u64).to_be_bytes());
    }

    /// Bytes with their length before them, so that nothing can move from one part to the next.
    #[inline]
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.bytes(bytes);
    }

    /// The same, in lower case.
    pub(crate) fn lower_case_part(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        for piece in bytes.chunks(64) {
            let mut buffer = [0; 64];
            let lower = &mut buffer[..piece.len()];
            lower.copy_from_slice(piece);
            lower.make_ascii_lowercase();
            self.bytes(lower);
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self.short.get(..self.length) {
            Some(short) => short,
            None => &self.long,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_kept() {
        for length in [0, 1, 7, 60, 119, 120, 121, 248, 249, 300, 1000] {
            let (part, mut preimage) = (vec![b'X'; length], Preimage::new());
            preimage.part(&part);
            preimage.lower_case_part(&part);
            let number = (length as u64).to_be_bytes();
            let lower = part.to_ascii_lowercase();
            assert_eq!(preimage.as_bytes(), [&number[..], &part, &number, &lower].concat());
        }
    }
}
