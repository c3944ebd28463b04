//! Whether new runs differ from base runs: the change of each quantity with a 95 % interval from the repetitions.
//!
//! The runs are the samples, never the messages within one: messages of a run share its luck (placement, clocks,
//! neighbours), and a test over millions of them finds every difference significant. Latencies and rates are compared as
//! logarithms, so a change is a ratio, by Welch's t interval; shares of failures are compared as they are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::merge::{Difference, differs};
use super::model::{RunResult, VerdictKind};
use super::units;

/// Fewest runs a side: with two, the interval is so wide that it says nothing.
pub const RUNS_MIN: usize = 3;

/// Two-sided confidence of the intervals.
const CONFIDENCE: f64 = 0.95;

/// What a histogram cannot tell apart: half its resolution at 3 digits, on either side.
const RESOLUTION: f64 = 0.001;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    /// A quantile of the headline latency (ns).
    Quantile(f64),
    /// Its largest value (ns).
    Max,
    /// Its mean (ns).
    Mean,
    /// The achieved rate (/s).
    Rate,
    /// The share of operations that failed.
    Errors,
}

/// What a comparison shows.
pub const MEASURES: [Measure; 7] = [
    Measure::Quantile(0.5),
    Measure::Quantile(0.99),
    Measure::Quantile(0.999),
    Measure::Max,
    Measure::Mean,
    Measure::Rate,
    Measure::Errors,
];

impl Measure {
    /// As written in `--fail-if` and in tables.
    pub fn name(self) -> String {
        match self {
            Measure::Quantile(quantile) => units::percentile(quantile),
            Measure::Max => "max".to_owned(),
            Measure::Mean => "mean".to_owned(),
            Measure::Rate => "rate".to_owned(),
            Measure::Errors => "errors".to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Measure> {
        match name {
            "max" => Some(Measure::Max),
            "mean" => Some(Measure::Mean),
            "rate" => Some(Measure::Rate),
            "errors" => Some(Measure::Errors),
            _ => {
                let percentile: f64 = name.strip_prefix('p')?.parse().ok()?;
                let inside = percentile > 0.0 && percentile < 100.0;
                inside.then(|| Measure::Quantile((percentile * 1e9).round() / 1e11))
            }
        }
    }

    fn of(self, run: &RunResult) -> Option<f64> {
        let recorder = || run.recorder(run.plan.headline()).filter(|recorder| !recorder.is_empty());
        match self {
            Measure::Quantile(quantile) => recorder().map(|recorder| recorder.quantile_ns(quantile) as f64),
            Measure::Max => recorder().map(|recorder| recorder.max_ns() as f64),
            Measure::Mean => recorder().map(super::recorder::Recorder::mean_ns),
            Measure::Rate => Some(run.achieved_per_s()),
            Measure::Errors => {
                let tried = run.totals.expected + run.totals.connects;
                let failed = run.totals.integrity_failures() + run.totals.errors.total();
                (tried > 0).then(|| failed as f64 / tried as f64)
            }
        }
    }

    fn is_ratio(self) -> bool {
        self != Measure::Errors
    }

    /// A value with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Measure::Rate => units::rate(value, "msg"),
            Measure::Errors => units::percent(value),
            _ => units::latency(value),
        }
    }
}

/// One quantity's change.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What changed.
    pub measure: Measure,
    /// Mean over the base runs (geometric for latencies and rates).
    pub base: f64,
    /// Mean over the new runs.
    pub new: f64,
    /// The change: a ratio less one (0.1 is +10 %), or for errors a difference of shares.
    pub change: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of its 95 % interval.
    pub high: f64,
}

impl Change {
    /// Whether the interval leaves out "no change".
    pub fn is_shown(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// Why runs cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// Too few repetitions to tell a change from chance.
    #[error(
        "these runs cannot be compared: {base} base and {new} new: how much runs differ by chance shows only in \
         repetitions, so it takes at least {RUNS_MIN} of each (for a picture of two runs: report NEW --baseline BASE)"
    )]
    TooFewRuns {
        /// Base runs.
        base: usize,
        /// New runs.
        new: usize,
    },
    /// Two of them are not of the same thing.
    #[error("these runs cannot be compared: {} and {} differ in {difference}", .first.display(), .other.display())]
    Differ {
        /// One of them.
        first: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What they differ in.
        difference: Difference,
    },
    /// The numbers of one are the generator's or the environment's.
    #[error(
        "these runs cannot be compared: {} is {} ({cause}), so its numbers are not the server's: leave it out, or pass \
         --accept-limited",
        .run.display(), .verdict.name()
    )]
    Limited {
        /// Which one.
        run: PathBuf,
        /// Its verdict.
        verdict: VerdictKind,
        /// The cause of that.
        cause: String,
    },
}

/// Compares runs, named for messages; `accept_limited` takes runs whose verdict says the numbers are not the server's.
///
/// # Errors
/// Too few runs, runs of different plans, or runs not to be believed.
pub fn compare(
    base: &[(PathBuf, RunResult)],
    new: &[(PathBuf, RunResult)],
    accept_limited: bool,
) -> Result<Vec<Change>, CompareError> {
    if base.len() < RUNS_MIN || new.len() < RUNS_MIN {
        return Err(CompareError::TooFewRuns { base: base.len(), new: new.len() });
    }
    let (first_name, first) = &base[0];
    for (name, run) in base.iter().chain(new) {
        if let Some(difference) = differs(&first.plan, &run.plan, false) {
            return Err(CompareError::Differ { first: first_name.clone(), other: name.clone(), difference });
        }
        let limited =
            matches!(run.verdict.kind, VerdictKind::GeneratorLimited | VerdictKind::EnvironmentLimited);
        if limited && !accept_limited {
            let (verdict, cause) = (run.verdict.kind, run.verdict.cause.clone());
            return Err(CompareError::Limited { run: name.clone(), verdict, cause });
        }
    }
    Ok(MEASURES.into_iter().filter_map(|measure| change(measure, base, new)).collect())
}

fn change(measure: Measure, base: &[(PathBuf, RunResult)], new: &[(PathBuf, RunResult)]) -> Option<Change> {
    let values = |runs: &[(PathBuf, RunResult)]| -> Option<Vec<f64>> {
        let values = runs.iter().map(|(_, run)| measure.of(run));
        values
            .map(|value| if measure.is_ratio() { value.filter(|v| *v > 0.0).map(f64::ln) } else { value })
            .collect()
    };
    let (base, new) = (values(base)?, values(new)?);
    let ((base_mean, base_error2), (new_mean, new_error2)) = (mean_and_error2(&base), mean_and_error2(&new));
    let difference = new_mean - base_mean;
    let error2 = base_error2 + new_error2;
    let mut half = if error2 > 0.0 {
        // Welch and Satterthwaite's degrees of freedom.
        let part = |error2: f64, count: usize| error2 * error2 / (count as f64 - 1.0);
        let freedom = error2 * error2 / (part(base_error2, base.len()) + part(new_error2, new.len()));
        let t = StudentsT::new(0.0, 1.0, freedom).ok()?;
        t.inverse_cdf(f64::midpoint(1.0, CONFIDENCE)) * error2.sqrt()
    } else {
        0.0
    };
    if matches!(measure, Measure::Quantile(_) | Measure::Max) {
        half += RESOLUTION;
    }
    Some(if measure.is_ratio() {
        Change {
            measure,
            base: base_mean.exp(),
            new: new_mean.exp(),
            change: difference.exp_m1(),
            low: (difference - half).exp_m1(),
            high: (difference + half).exp_m1(),
        }
    } else {
        Change {
            measure,
            base: base_mean,
            new: new_mean,
            change: difference,
            low: difference - half,
            high: difference + half,
        }
    })
}

/// The mean, and the square of its standard error.
fn mean_and_error2(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, variance / count)
}

/// A condition under which a comparison fails: `p99>+10%`, `rate<-5%`.
#[derive(Debug, Clone, PartialEq)]
pub struct FailIf {
    expression: String,
    measure: Measure,
    rises: bool,
    limit: f64,
}

impl fmt::Display for FailIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression)
    }
}

impl FromStr for FailIf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: String| format!("condition '{text}': {reason}; write p99>+10% or rate<-5%");
        let at = text.find(['<', '>']).ok_or_else(|| wrong("there is no < or > in it".to_owned()))?;
        let (name, rises) = (text[..at].trim(), text[at..].starts_with('>'));
        let measure = Measure::parse(name).ok_or_else(|| {
            wrong(format!("'{name}' is none of p50, p99, p99.9 (or any percentile), max, mean, rate, errors"))
        })?;
        let limit = text[at + 1..]
            .trim()
            .strip_suffix('%')
            .ok_or_else(|| wrong("its limit has no % sign".to_owned()))?;
        let limit: f64 = limit.trim().parse().map_err(|_| wrong(format!("'{limit}' is no number")))?;
        if (rises && limit < 0.0) || (!rises && limit > 0.0) {
            return Err(wrong("a rise has a positive limit and a fall a negative one".to_owned()));
        }
        Ok(FailIf { expression: text.to_owned(), measure, rises, limit: limit / 100.0 })
    }
}

/// What a condition came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The change is not beyond the limit, and the interval does not reach there.
    Clear,
    /// The change is beyond the limit, and not by chance: its interval leaves out "no change".
    Failed,
    /// The runs do not decide it.
    Undecided,
}

impl FailIf {
    /// Evaluates it; `None` where the quantity was not compared.
    pub fn evaluate(
        &self,
        base: &[(PathBuf, RunResult)],
        new: &[(PathBuf, RunResult)],
    ) -> Option<(Condition, Change)> {
        let change = change(self.measure, base, new)?;
        let beyond = |value: f64| if self.rises { value > self.limit } else { value < self.limit };
        let condition = if beyond(change.change) && change.is_shown() {
            Condition::Failed
        } else if beyond(change.low) || beyond(change.high) {
            Condition::Undecided
        } else {
            Condition::Clear
        };
        Some((condition, change))
    }
}

/// A change as text: `+3.1 %`.
pub fn signed_percent(ratio: f64) -> String {
    format!("{:+.1} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_understood_or_refused_with_the_cure() {
        let condition: FailIf = "p99>+10%".parse().expect("documented");
        assert_eq!(
            (condition.measure, condition.rises, condition.limit),
            (Measure::Quantile(0.99), true, 0.1)
        );
        let condition: FailIf = "rate<-5%".parse().expect("documented");
        assert_eq!((condition.measure, condition.rises, condition.limit), (Measure::Rate, false, -0.05));
        for wrong in ["p99", "p99>10", "p99>-10%", "rate<5%", "speed>10%", "p0>1%", "p99>x%"] {
            let message = wrong.parse::<FailIf>().unwrap_err();
            assert!(message.contains(wrong) && message.contains("write p99>+10%"), "{message}");
        }
    }

    #[test]
    fn the_interval_is_welchs() {
        // A textbook example of unequal variances: 24.99 degrees of freedom where Student's test has 28.
        let a = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4];
        let b = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4];
        let ((a_mean, a_error2), (b_mean, b_error2)) = (mean_and_error2(&a), mean_and_error2(&b));
        assert!((a_mean - 20.82).abs() < 1e-9 && (b_mean - 22.986_666).abs() < 1e-5);
        let error2 = a_error2 + b_error2;
        let freedom = error2 * error2 / (a_error2 * a_error2 / 14.0 + b_error2 * b_error2 / 14.0);
        assert!((freedom - 24.988_5).abs() < 0.001, "{freedom}");
        let t = StudentsT::new(0.0, 1.0, 5.0).expect("5 degrees of freedom").inverse_cdf(0.975);
        assert!((t - 2.570_582).abs() < 1e-4, "{t}");
    }
}
