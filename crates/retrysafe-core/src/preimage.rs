//! What is digested, put together before it is: a hash function takes one long piece in a fraction of
//! the time of many short ones.

use smallvec::SmallVec;

/// Bytes to digest. Those of a usual key, or of a usual request's head, allocate nothing.
#[derive(Default)]
pub(crate) struct Preimage(SmallVec<[u8; 256]>);

impl Preimage {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn number(&mut self, number: usize) {
        self.bytes(&(number as u64).to_be_bytes());
    }

    /// Bytes with their length before them, so that nothing can move from one part to the next.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.bytes(bytes);
    }

    /// The same, in lower case.
    pub(crate) fn lower_case_part(&mut self, bytes: &[u8]) {
        self.part(bytes);
        let start = self.0.len() - bytes.len();
        self.0[start..].make_ascii_lowercase();
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
