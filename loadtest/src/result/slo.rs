//! Objectives: `p99.9<5ms`, `max<1s`, `errors<0.1%`, `achieved>=99%`, `upgrade:p99<50ms`.
//!
//! An objective passes only when the samples suffice to say so: for a percentile, the 95 % upper bound from the
//! rank interval must exist and be within the limit; for a share, its 95 % upper bound must be. A point
//! estimate beyond the limit fails. Between the two the outcome is TOO-FEW-SAMPLES: run longer.

use std::fmt;
use std::str::FromStr;

use super::model::{RunResult, SloOutcome, SloResult};
use super::recorder::{Counts, Metric};
use super::{sufficiency, units};

const EXAMPLES: &str =
    "p99.9<5ms, max<1s, mean<2ms, errors<0.1%, achieved>=99%, rate>=50000, upgrade:p99<50ms";

/// An objective as written, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    expression: String,
    metric: Option<Metric>,
    quantity: Quantity,
    comparison: Comparison,
    /// ns, a ratio, or messages/s, as the quantity has it.
    limit: f64,
}

/// What an objective is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    /// A quantile of the latency.
    Quantile(f64),
    /// The largest latency.
    Max,
    /// The mean latency.
    Mean,
    /// The share of operations that went wrong.
    Errors,
    /// The share of messages of one kind of failure.
    Failure(Failure),
    /// The achieved share of the offered rate.
    Achieved,
    /// Replies, deliveries or upgrades a second.
    Rate,
}

/// A kind of broken message. An objective about one replaces the implied "none at all".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Never came back.
    Lost,
    /// Came back again.
    Duplicated,
    /// Came back after a later one.
    Reordered,
    /// Came back changed.
    Corrupted,
}

impl Failure {
    /// Every kind.
    pub const ALL: [Failure; 4] =
        [Failure::Lost, Failure::Duplicated, Failure::Reordered, Failure::Corrupted];

    /// As written in an objective.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Lost => "lost",
            Failure::Duplicated => "duplicated",
            Failure::Reordered => "reordered",
            Failure::Corrupted => "corrupted",
        }
    }

    fn of(self, counts: &Counts) -> u64 {
        match self {
            Failure::Lost => counts.lost,
            Failure::Duplicated => counts.duplicated,
            Failure::Reordered => counts.reordered,
            Failure::Corrupted => counts.corrupted,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Comparison {
    fn holds(self, observed: f64, limit: f64) -> bool {
        match self {
            Comparison::Less => observed < limit,
            Comparison::AtMost => observed <= limit,
            Comparison::More => observed > limit,
            Comparison::AtLeast => observed >= limit,
        }
    }
}

/// Why an objective cannot be understood, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("objective '{expression}': {reason}")]
pub struct SloError {
    expression: String,
    reason: String,
}

impl FromStr for Slo {
    type Err = SloError;

    fn from_str(text: &str) -> Result<Self, SloError> {
        parse(text.trim()).map_err(|reason| SloError { expression: text.trim().to_owned(), reason })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression)
    }
}

fn parse(text: &str) -> Result<Slo, String> {
    let at = text
        .find(['<', '>'])
        .ok_or_else(|| format!("there is no comparison in it: use <, <=, > or >=, as in {EXAMPLES}"))?;
    let (left, right) = (text[..at].trim(), &text[at..]);
    let (comparison, right) = match right.as_bytes() {
        [b'<', b'=', ..] => (Comparison::AtMost, &right[2..]),
        [b'<', ..] => (Comparison::Less, &right[1..]),
        [b'>', b'=', ..] => (Comparison::AtLeast, &right[2..]),
        _ => (Comparison::More, &right[1..]),
    };
    let (metric, quantity) = match left.split_once(':') {
        Some((metric, quantity)) => (Some(parse_metric(metric.trim())?), parse_quantity(quantity.trim())?),
        None => (None, parse_quantity(left)?),
    };
    if metric.is_some() && !quantity.is_latency() {
        return Err(format!("'{left}' names a histogram, but only percentiles, max and mean have one"));
    }
    let upward = matches!(quantity, Quantity::Achieved | Quantity::Rate);
    if upward != matches!(comparison, Comparison::More | Comparison::AtLeast) {
        let right_way = if upward { ">=" } else { "<" };
        return Err(format!("'{left}' is good when {right_way} its limit, not the other way round"));
    }
    let limit = parse_limit(quantity, right.trim())?;
    Ok(Slo { expression: text.to_owned(), metric, quantity, comparison, limit })
}

fn parse_metric(name: &str) -> Result<Metric, String> {
    let known = || Metric::ALL.map(Metric::name).join(", ");
    let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
    found.ok_or_else(|| format!("there is no histogram '{name}': use one of {}", known()))
}

fn parse_quantity(name: &str) -> Result<Quantity, String> {
    if let Some(failure) = Failure::ALL.into_iter().find(|failure| failure.name() == name) {
        return Ok(Quantity::Failure(failure));
    }
    match name {
        "max" => return Ok(Quantity::Max),
        "mean" => return Ok(Quantity::Mean),
        "errors" => return Ok(Quantity::Errors),
        "achieved" => return Ok(Quantity::Achieved),
        "rate" => return Ok(Quantity::Rate),
        _ => {}
    }
    let Some(number) = name.strip_prefix('p').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    else {
        return Err(format!("'{name}' is no quantity: use {EXAMPLES}"));
    };
    if number.contains(',') {
        return Err(format!("the percentile '{name}' has a comma: write p{}", number.replace(',', ".")));
    }
    let percentile: f64 = number.parse().map_err(|_| format!("'{number}' is no number: write p99.9"))?;
    if percentile <= 0.0 || percentile >= 100.0 {
        return Err(format!("p{number} is not between 0 and 100: for the largest value write max"));
    }
    // Rounded, so that p99.9 is the same number as 0.999.
    Ok(Quantity::Quantile((percentile * 1e9).round() / 1e11))
}

fn parse_limit(quantity: Quantity, text: &str) -> Result<f64, String> {
    if text.is_empty() {
        return Err("the limit is missing after the comparison".to_owned());
    }
    if quantity.is_latency() {
        return units::parse_duration_ns(text);
    }
    if quantity == Quantity::Rate {
        let number = text.trim_end_matches("/s").trim_end_matches("msg").trim();
        return number.parse().map_err(|_| format!("'{text}' is no rate: write rate>=50000 (messages/s)"));
    }
    let Some(number) = text.strip_suffix('%') else {
        return Err(format!("'{text}' has no percent sign: write {text}%"));
    };
    let percent: f64 = number.trim().parse().map_err(|_| format!("'{number}' is no number: write 0.1%"))?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("{percent} % is not between 0 and 100"));
    }
    Ok(percent / 100.0)
}

impl Quantity {
    fn is_latency(self) -> bool {
        matches!(self, Quantity::Quantile(_) | Quantity::Max | Quantity::Mean)
    }

    fn unit(self) -> &'static str {
        match self {
            Quantity::Quantile(_) | Quantity::Max | Quantity::Mean => "ns",
            Quantity::Errors | Quantity::Failure(_) | Quantity::Achieved => "ratio",
            Quantity::Rate => "msgs_per_s",
        }
    }
}

impl Slo {
    /// The quantile asked for and the histogram it is asked of; `None` for anything but a percentile.
    pub fn quantile(&self, headline: Metric) -> Option<(Metric, f64)> {
        match self.quantity {
            Quantity::Quantile(quantile) => Some((self.metric.unwrap_or(headline), quantile)),
            _ => None,
        }
    }

    /// The limit, ns, when the objective is about the latency of `metric`.
    pub fn latency_limit_ns(&self, metric: Metric, headline: Metric) -> Option<f64> {
        (self.quantity.is_latency() && self.metric.unwrap_or(headline) == metric).then_some(self.limit)
    }

    /// What it came to.
    pub fn evaluate(&self, result: &RunResult) -> SloResult {
        match self.quantity {
            Quantity::Quantile(quantile) => self.evaluate_quantile(result, quantile),
            Quantity::Max | Quantity::Mean => self.evaluate_extent(result),
            Quantity::Errors | Quantity::Failure(_) => self.evaluate_share(result),
            Quantity::Achieved | Quantity::Rate => self.evaluate_rate(result),
        }
    }

    fn evaluate_quantile(&self, result: &RunResult, quantile: f64) -> SloResult {
        let metric = self.metric.unwrap_or(result.plan.headline());
        let Some(recorder) = result.recorder(metric) else { return self.nothing_recorded(metric) };
        let ranks = sufficiency::rank_interval(recorder.count(), quantile);
        let (low, high) = sufficiency::quantile_bounds_ns(recorder, quantile);
        let observed = recorder.quantile_ns(quantile) as f64;
        let name = units::percentile(quantile);
        let beyond =
            format!("{} of {} samples beyond", units::count(ranks.beyond), units::count(recorder.count()));
        let shown = format!("{name} is {}", units::latency(observed));
        let (outcome, why) = if !self.comparison.holds(observed, self.limit) {
            (SloOutcome::Fail, format!("{shown}, over {} ({beyond})", units::latency(self.limit)))
        } else if let Some(high) = high {
            let bound = units::latency_ns(high);
            if self.comparison.holds(high as f64, self.limit) {
                (SloOutcome::Pass, format!("{shown}, with 95 % confidence at most {bound} ({beyond})"))
            } else {
                let why = format!(
                    "{shown}, but its 95 % upper bound {bound} is over the limit ({beyond}): run longer"
                );
                (SloOutcome::TooFewSamples, why)
            }
        } else {
            let needed = units::count(sufficiency::samples_needed(quantile));
            let have = units::count(recorder.count());
            let why =
                format!("{name} has no 95 % upper bound with {have} samples: it takes at least {needed}");
            (SloOutcome::TooFewSamples, why)
        };
        let bounds = (low.map(|low| low as f64), high.map(|high| high as f64));
        SloResult {
            low: bounds.0,
            high: bounds.1,
            samples_beyond: Some(ranks.beyond),
            ..self.came_to(outcome, why, Some(observed))
        }
    }

    fn evaluate_extent(&self, result: &RunResult) -> SloResult {
        let metric = self.metric.unwrap_or(result.plan.headline());
        let Some(recorder) = result.recorder(metric) else { return self.nothing_recorded(metric) };
        let (name, observed) = match self.quantity {
            Quantity::Max => ("max", recorder.max_ns() as f64),
            _ => ("mean", recorder.mean_ns()),
        };
        let samples = units::count(recorder.count());
        let shown = format!("{name} of {samples} samples is {}", units::latency(observed));
        if self.comparison.holds(observed, self.limit) {
            self.came_to(SloOutcome::Pass, shown, Some(observed))
        } else {
            let why = format!("{shown}, over {}", units::latency(self.limit));
            self.came_to(SloOutcome::Fail, why, Some(observed))
        }
    }

    fn evaluate_share(&self, result: &RunResult) -> SloResult {
        let (what, failed, tried) = match self.quantity {
            Quantity::Failure(failure) => {
                (failure.name(), failure.of(&result.totals), result.totals.expected)
            }
            _ => ("errors", failed_operations(&result.totals), operations(&result.totals)),
        };
        if tried == 0 {
            return self.came_to(SloOutcome::TooFewSamples, format!("{what}: nothing was tried"), None);
        }
        let observed = failed as f64 / tried as f64;
        let bound = sufficiency::share_upper_bound(failed, tried);
        let shown = format!(
            "{what}: {} of {} ({})",
            units::count(failed),
            units::count(tried),
            units::percent(observed)
        );
        let (outcome, why) = if !self.comparison.holds(observed, self.limit) {
            (SloOutcome::Fail, format!("{shown}, over {}", units::percent(self.limit)))
        } else if self.limit == 0.0 || self.comparison.holds(bound, self.limit) {
            (SloOutcome::Pass, format!("{shown}, with 95 % confidence at most {}", units::percent(bound)))
        } else {
            let bound = units::percent(bound);
            (SloOutcome::TooFewSamples, format!("{shown}, but the 95 % upper bound is {bound}: run longer"))
        };
        SloResult { high: Some(bound), ..self.came_to(outcome, why, Some(observed)) }
    }

    fn evaluate_rate(&self, result: &RunResult) -> SloResult {
        let (observed, limit, shown) = match self.quantity {
            Quantity::Achieved => match result.achieved_ratio() {
                Some(ratio) => (
                    ratio,
                    units::percent(self.limit),
                    format!("achieved {} of the offered rate", units::percent(ratio)),
                ),
                None => {
                    let why =
                        "a closed loop offers no rate that could be achieved: use rate>=MSGS".to_owned();
                    return self.came_to(SloOutcome::Fail, why, None);
                }
            },
            _ => {
                let rate = result.achieved_per_s();
                (rate, units::rate(self.limit, "msg"), format!("achieved {}", units::rate(rate, "msg")))
            }
        };
        if self.comparison.holds(observed, self.limit) {
            self.came_to(SloOutcome::Pass, shown, Some(observed))
        } else {
            self.came_to(SloOutcome::Fail, format!("{shown}, under {limit}"), Some(observed))
        }
    }

    fn nothing_recorded(&self, metric: Metric) -> SloResult {
        let why = format!("no {} was recorded", metric.title());
        self.came_to(SloOutcome::TooFewSamples, why, None)
    }

    fn came_to(&self, outcome: SloOutcome, why: String, observed: Option<f64>) -> SloResult {
        SloResult {
            expression: self.expression.clone(),
            outcome,
            why,
            limit: self.limit,
            observed,
            low: None,
            high: None,
            samples_beyond: None,
            unit: self.quantity.unit().to_owned(),
        }
    }
}

impl SloResult {
    /// The objective and what it came to, in a sentence.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.expression, self.why)
    }
}

/// The implied objective: every message comes back once, in order and intact. A kind that an explicit objective
/// is about is left to that objective.
pub fn integrity(result: &RunResult, slos: &[Slo]) -> SloResult {
    let explicit = |failure| slos.iter().any(|slo| slo.quantity == Quantity::Failure(failure));
    let implied = || Failure::ALL.into_iter().filter(|failure| !explicit(*failure));
    let broken: u64 = implied().map(|failure| failure.of(&result.totals)).sum();
    let expected = result.totals.expected;
    let why = if broken == 0 {
        format!("all {} messages came back once, in order and intact", units::count(expected))
    } else {
        let each = implied().map(|failure| (failure.of(&result.totals), failure.name()));
        let parts: Vec<_> =
            each.filter(|(n, _)| *n > 0).map(|(n, name)| format!("{} {name}", units::count(n))).collect();
        format!("of {} messages {}", units::count(expected), parts.join(", "))
    };
    SloResult {
        expression: "integrity".to_owned(),
        outcome: if broken == 0 { SloOutcome::Pass } else { SloOutcome::Fail },
        why,
        limit: 0.0,
        observed: Some(if expected == 0 { 0.0 } else { broken as f64 / expected as f64 }),
        low: None,
        high: None,
        samples_beyond: None,
        unit: "ratio".to_owned(),
    }
}

/// What went wrong: broken messages and errors of every kind.
fn failed_operations(counts: &Counts) -> u64 {
    counts.integrity_failures() + counts.errors.total()
}

/// What could go wrong: replies expected, and connections tried.
fn operations(counts: &Counts) -> u64 {
    counts.expected + counts.connects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Slo {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_documented_form_is_understood() {
        assert_eq!(parsed("p99.9<5ms").quantity, Quantity::Quantile(0.999));
        assert_eq!(parsed("p99.9<5ms").limit, 5e6);
        assert_eq!(parsed(" max <= 1 s ").quantity, Quantity::Max);
        assert_eq!(parsed("errors<0.1%").limit, 0.001);
        assert_eq!(parsed("achieved>=99%").quantity, Quantity::Achieved);
        assert_eq!(parsed("rate>=50000/s").limit, 50_000.0);
        assert_eq!(parsed("lost<=0.5%").quantity, Quantity::Failure(Failure::Lost));
        assert_eq!(parsed("first-message:p99<50ms").metric, Some(Metric::FirstMessage));
        for example in EXAMPLES.split(", ") {
            parsed(example);
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_cause_and_cure() {
        let refused = |text: &str| text.parse::<Slo>().unwrap_err().to_string();
        for (text, cure) in [
            ("p99.9", "no comparison"),
            ("p99,9<5ms", "write p99.9"),
            ("p100<5ms", "write max"),
            ("p99<5", "no unit"),
            ("p99<", "limit is missing"),
            ("p99>5ms", "other way round"),
            ("achieved<99%", "other way round"),
            ("errors<0.1", "write 0.1%"),
            ("errors<200%", "between 0 and 100"),
            ("latency<5ms", "p99.9<5ms"),
            ("uprade:p99<5ms", "there is no histogram 'uprade'"),
            ("upgrade:errors<1%", "only percentiles"),
            ("p99<5 parsecs", "no unit of time"),
            ("rate>=fast", "write rate>=50000"),
        ] {
            let message = refused(text);
            assert!(message.contains(cure) && message.contains(text), "{text}: {message}");
        }
    }
}
