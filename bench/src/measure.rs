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

/// What was measured of each of `N` variants, for each round.
pub(crate) struct Rounds<const N: usize, T = f64>(Vec<[T; N]>);

/// Measures the variants in turn, `rounds` times, each round beginning with another one.
pub(crate) fn in_turn<const N: usize>(
    rounds: usize,
    variant: impl FnMut(usize) -> crate::Outcome<f64>,
) -> crate::Outcome<Rounds<N>> {
    all_in_turn(rounds, variant)
}

/// The same where more than one number is measured at a time.
pub(crate) fn all_in_turn<T: Copy + Default, const N: usize>(
    rounds: usize,
    mut variant: impl FnMut(usize) -> crate::Outcome<T>,
) -> crate::Outcome<Rounds<N, T>> {
    let mut all = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut measured = [T::default(); N];
        for turn in 0..N {
            let number = (round + turn) % N;
            measured[number] = variant(number)?;
        }
        all.push(measured);
    }
    Ok(Rounds(all))
}

impl<const N: usize, T> Rounds<N, T> {
    /// The median over the rounds of something that is computed within each.
    pub(crate) fn median(&self, of: impl Fn(&[T; N]) -> f64) -> f64 {
        median(self.0.iter().map(of))
    }
}

impl<const N: usize> Rounds<N> {
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
