//! Taking turns, and medians.

/// How long to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// For figures that are kept.
    Full,
    /// While working on the benchmark itself.
    Quick,
}

impl Effort {
    pub(crate) fn rounds(self, full: usize) -> usize {
        match self {
            Self::Full => full,
            Self::Quick => full.div_ceil(10),
        }
    }
}

/// One number for each of `N` variants, for each round.
pub(crate) struct Rounds<const N: usize>(Vec<[f64; N]>);

/// Measures the variants in turn, `rounds` times, each round beginning with another one.
pub(crate) fn in_turn<const N: usize>(
    rounds: usize,
    mut variant: impl FnMut(usize) -> crate::Outcome<f64>,
) -> crate::Outcome<Rounds<N>> {
    let mut all = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut numbers = [0.0; N];
        for turn in 0..N {
            let number = (round + turn) % N;
            numbers[number] = variant(number)?;
        }
        all.push(numbers);
    }
    Ok(Rounds(all))
}

impl<const N: usize> Rounds<N> {
    /// The median over the rounds of something that is computed within each.
    pub(crate) fn median(&self, of: impl Fn(&[f64; N]) -> f64) -> f64 {
        median(self.0.iter().map(of))
    }

    /// The median over the rounds of `this` divided by `that`.
    pub(crate) fn ratio(&self, this: usize, that: usize) -> f64 {
        self.median(|round| round[this] / round[that])
    }
}

pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<_> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => numbers[length / 2],
        length => f64::midpoint(numbers[length / 2 - 1], numbers[length / 2]),
    }
}
