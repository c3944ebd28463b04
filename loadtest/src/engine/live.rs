//! What one sees while a run goes on: a line that renews itself on a terminal, a line a second elsewhere,
//! nothing with `--quiet`. It goes to standard error; standard output is the result's.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::result::model::{Interval, Phase};
use crate::result::recorder::Metric;

/// The view of a running run.
#[derive(Debug)]
pub(super) enum Live {
    /// Nothing is shown.
    Quiet,
    /// One line a second.
    Lines,
    /// A bar that renews itself.
    Bar(ProgressBar),
}

impl Live {
    /// A view of a run that takes `length` from the start of its warm-up to the end of its load.
    pub(super) fn new(quiet: bool, length: Duration) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new(length.as_millis() as u64);
        let style = ProgressStyle::with_template("{prefix:>8} [{bar:10}] {percent:>3}%  {wide_msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        bar.set_style(style);
        Self::Bar(bar)
    }

    /// Shows a second of the run. `done` is how much of its load is over; `headline` the metric to show.
    pub(super) fn show(&self, interval: &Interval, headline: Metric, done: Duration) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{:>8}  {}", phase(interval.phase), line(interval, headline)),
            Self::Bar(bar) => {
                bar.set_prefix(phase(interval.phase));
                bar.set_message(line(interval, headline));
                bar.set_position(done.as_millis() as u64);
            }
        }
    }

    /// Says something that stays.
    pub(super) fn say(&self, what: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{what}"),
            Self::Bar(bar) => bar.println(what),
        }
    }

    /// Ends the view.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Ramp => "ramp",
        Phase::Warmup => "warm-up",
        Phase::Measure => "measure",
        Phase::Drain => "drain",
    }
}

/// Rate, in flight, errors, and the latency of this one second.
fn line(interval: &Interval, headline: Metric) -> String {
    let per_s = |count: u64| count as f64 * 1000.0 / interval.length_ms.max(1) as f64;
    let counts = &interval.counts;
    let errors = counts.errors.total() + counts.integrity_failures();
    if interval.phase == Phase::Ramp {
        return format!(
            "{} open, {:.0} connects/s, {errors} errors",
            interval.connections_open,
            per_s(counts.upgrades)
        );
    }
    let latency = interval.histograms.get(&headline).map_or_else(String::new, |recorder| {
        let at = |quantile| short(recorder.quantile_ns(quantile));
        let max = short(recorder.max_ns());
        format!("p50 {} p99 {} p99.9 {} max {max}, ", at(0.5), at(0.99), at(0.999))
    });
    // The most telling comes first: a narrow terminal cuts off the end.
    format!(
        "{:.0} sent/s, {latency}{errors} errors, {} in flight, {:.0} received/s, {} open",
        per_s(counts.sent),
        interval.in_flight,
        per_s(counts.received),
        interval.connections_open
    )
}

/// A latency in three digits and a unit.
fn short(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_has_three_digits_and_a_unit() {
        let shown: Vec<_> = [7, 1_234, 12_345, 999_400, 5_000_000, 61_500_000_000].map(short).into();
        assert_eq!(shown, ["7 ns", "1.23 us", "12.3 us", "999 us", "5.00 ms", "61.5 s"]);
    }
}
