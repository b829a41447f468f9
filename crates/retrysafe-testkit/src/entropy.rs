//! Randomness that a seed repeats.

use std::sync::atomic::{AtomicU64, Ordering};

use retrysafe_core::Entropy;

/// Random numbers that are the same for the same seed (SplitMix64). For tests: an
/// [`Owner`](retrysafe_core::Owner) made of them can be guessed.
///
/// ```
/// use retrysafe_core::Entropy as _;
/// use retrysafe_testkit::SeededEntropy;
///
/// assert_eq!(SeededEntropy::new(7).next_u128(), SeededEntropy::new(7).next_u128());
/// ```
#[derive(Debug)]
pub struct SeededEntropy {
    state: AtomicU64,
}

impl SeededEntropy {
    /// The sequence that a seed stands for.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut bits = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A random number less than `bound`.
    pub fn below(&self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        usize::try_from(self.next_u64() % bound).unwrap_or(0)
    }

    /// One of the choices.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn choose<'a, T>(&self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

impl Entropy for SeededEntropy {
    fn next_u128(&self) -> u128 {
        u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())
    }
}
