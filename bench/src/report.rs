//! The table that is printed: Markdown, to be kept in `docs/benchmarks.md` as it is.

/// One measured thing and what it should be.
pub(crate) struct Row {
    pub(crate) target: &'static str,
    what: String,
    measured: String,
    wanted: String,
    verdict: &'static str,
}

impl Row {
    /// A number that should be `most` or less.
    pub(crate) fn at_most(
        target: &'static str,
        what: impl Into<String>,
        number: Number,
        most: f64,
    ) -> Self {
        let wanted = format!("at most {}", Number { value: most, ..number });
        Self::judged(target, what, number, wanted, number.value <= most)
    }

    /// A number that should be `least` or more.
    pub(crate) fn at_least(
        target: &'static str,
        what: impl Into<String>,
        number: Number,
        least: f64,
    ) -> Self {
        let wanted = format!("at least {}", Number { value: least, ..number });
        Self::judged(target, what, number, wanted, number.value >= least)
    }

    /// A number that should be exactly `wanted`.
    pub(crate) fn exactly(
        target: &'static str,
        what: impl Into<String>,
        number: Number,
        wanted: f64,
    ) -> Self {
        let text = Number { value: wanted, ..number }.to_string();
        Self::judged(target, what, number, text, number.value == wanted)
    }

    /// Something that should be true.
    pub(crate) fn holds(target: &'static str, what: impl Into<String>, holds: bool) -> Self {
        let measured = if holds { "yes" } else { "no" };
        Self::judged(target, what, measured, "yes".into(), holds)
    }

    /// Something that has no target of its own and helps to read the others.
    pub(crate) fn shown(
        target: &'static str,
        what: impl Into<String>,
        measured: impl ToString,
    ) -> Self {
        let (what, measured) = (what.into(), measured.to_string());
        Self { target, what, measured, wanted: String::new(), verdict: "" }
    }

    /// Something that could not be measured here, and why.
    pub(crate) fn skipped(target: &'static str, what: impl Into<String>, why: &str) -> Self {
        let measured = format!("not measured: {why}");
        Self { verdict: "?", ..Self::shown(target, what, measured) }
    }

    fn judged(
        target: &'static str,
        what: impl Into<String>,
        measured: impl ToString,
        wanted: String,
        met: bool,
    ) -> Self {
        let verdict = if met { "met" } else { "NOT met" };
        Self { wanted, verdict, ..Self::shown(target, what, measured) }
    }
}

/// A number and how it is written.
#[derive(Clone, Copy)]
pub(crate) struct Number {
    value: f64,
    decimals: usize,
    unit: &'static str,
}

impl Number {
    pub(crate) fn ratio(value: f64) -> Self {
        Self { value, decimals: 2, unit: "x" }
    }

    pub(crate) fn count(value: f64) -> Self {
        let decimals = if value.fract() == 0.0 { 0 } else { 1 };
        Self { value, decimals, unit: "" }
    }

    pub(crate) fn of(value: f64, decimals: usize, unit: &'static str) -> Self {
        Self { value, decimals, unit }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A limit of 12 is not "12.0".
        let decimals = if self.value.fract() == 0.0 { 0 } else { self.decimals };
        write!(f, "{:.decimals$}", self.value)?;
        if self.unit.is_empty() { Ok(()) } else { write!(f, " {}", self.unit) }
    }
}

/// Prints the table, columns aligned.
pub(crate) fn print(rows: &[Row]) {
    const HEADS: [&str; 5] = ["id", "what", "measured", "target", ""];
    let cells = |row: &Row| {
        [
            row.target.to_owned(),
            row.what.clone(),
            row.measured.clone(),
            row.wanted.clone(),
            row.verdict.to_owned(),
        ]
    };
    let lines: Vec<_> =
        std::iter::once(HEADS.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    for (number, line) in lines.iter().enumerate() {
        let padded: Vec<_> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("| {} |", padded.join(" | "));
        if number == 0 {
            println!("|-{}-|", widths.map(|width| "-".repeat(width)).join("-|-"));
        }
    }
}
