//! What a storm came to, from the results of those that stayed, those that went and those that came back.
//!
//! Time is counted from the first reconnect. Recovery is judged in *windows*: as many intervals as it takes to have the
//! samples without which the objective's percentile has no upper bound. That is one interval where traffic is dense, and
//! more where it is thin. Nothing is known more finely than the window it was seen in, and the result says how long that
//! was.
//! Start at [`judge`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::{Interval, Phase, RunResult};
use super::recorder::Metric;
use super::slo::Slo;
use super::sparse::Sparse;
use super::{kernel_events, sufficiency, units};

/// The value of `schema` in storm.json.
pub const SCHEMA: &str = "resound-load/storm";
/// The version this program writes.
pub const SCHEMA_VERSION: u32 = 1;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Connections before it.
    pub connections: u32,
    /// Connections dropped.
    pub dropped: u32,
    /// `rst` or `fin`.
    pub cut: &'static str,
    /// Spread of the reconnects, s.
    pub jitter_s: f64,
    /// The objective.
    pub slo: Slo,
    /// Its percentile, 0 to 1.
    pub quantile: f64,
    /// The length of an interval, ms.
    pub interval_ms: u64,
}

/// What a storm came to: what storm.json holds. Keys carry their units; times count from the first reconnect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storm {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Connections before it.
    pub connections: u32,
    /// Connections dropped.
    pub dropped: u32,
    /// `rst` or `fin`.
    pub cut: String,
    /// Spread of the reconnects, s.
    pub jitter_s: f64,
    /// When the connections were dropped, s (negative: before the first reconnect).
    pub dropped_at_s: f64,
    /// Connections that came back.
    pub back: u64,
    /// Until the last of them was upgraded, s; absent where not all came back. To `interval_s`.
    pub all_back_s: Option<f64>,
    /// Until the end of the last window in which the objective was missed, s (0: in none); absent where it was missed
    /// in the last one, or where there were too few samples for any.
    pub within_slo_s: Option<f64>,
    /// What `within_slo_s` is known to, s: the length of that window; where none was missed, of the longest one.
    pub window_s: Option<f64>,
    /// What `all_back_s` is known to, and the shortest window there can be, s.
    pub interval_s: f64,
    /// The objective.
    pub slo: String,
    /// Samples that a window must have.
    pub samples_min: u64,
    /// The objective's percentile in the worst window from the first reconnect on, ns.
    pub worst_ns: u64,
    /// The windows, those before the storm included.
    pub windows: Vec<Window>,
    /// Kernel counters that rose from the first reconnect on, by how much.
    pub kernel_deltas: BTreeMap<String, u64>,
    /// Messages lost by those that stayed, which a storm must not touch.
    pub lost_by_others: u64,
    /// Whether all came back, nothing was lost by the others, and the objective is met again.
    pub recovered: bool,
}

/// A stretch of time with enough samples to judge the percentile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// Its start, s.
    pub from_s: f64,
    /// Its end, s.
    pub until_s: f64,
    /// Replies received in it.
    pub samples: u64,
    /// The objective's percentile, ns.
    pub value_ns: u64,
    /// Whether that is beyond the objective.
    pub missed: bool,
}

/// An interval with its place in real time, Unix ms.
pub(super) struct Placed<'a> {
    pub(super) start_ms: i64,
    pub(super) end_ms: i64,
    pub(super) interval: &'a Interval,
}

/// The timeline of a run in real time.
pub(super) fn placed(result: &RunResult) -> impl Iterator<Item = Placed<'_>> {
    let zero_ms = result.manifest.started_unix_ms as i64;
    result.intervals.iter().map(move |interval| Placed {
        start_ms: zero_ms + interval.start_ms,
        end_ms: zero_ms + interval.start_ms + interval.length_ms as i64,
        interval,
    })
}

/// The first reconnect, Unix ms.
pub(super) fn first_reconnect_ms(back: &RunResult) -> i64 {
    placed(back).map(|placed| placed.start_ms).min().unwrap_or(0)
}

/// Judges a storm by its three runs.
pub fn judge(asked: &Asked, stayed: &RunResult, gone: &RunResult, back: &RunResult) -> Storm {
    let zero_ms = first_reconnect_ms(back);
    let since_s = |unix_ms: i64| (unix_ms - zero_ms) as f64 / 1e3;
    let opened = back.totals.upgrades;
    let mut so_far = 0;
    let last_back = placed(back).find(|placed| {
        so_far += placed.interval.counts.upgrades;
        so_far >= u64::from(asked.dropped)
    });
    let all_back_s = last_back.map(|placed| since_s(placed.end_ms));
    let dropped_ms = placed(gone).map(|placed| placed.end_ms).max().unwrap_or(zero_ms).min(zero_ms);

    // After the returned ones end there is no storm to be seen; the others are watched for longer.
    let of_the_load = |placed: &Placed<'_>| matches!(placed.interval.phase, Phase::Measure | Phase::Drain);
    let end_ms = placed(back).filter(of_the_load).map(|placed| placed.end_ms).max().unwrap_or(zero_ms);
    let begin_ms = stayed.manifest.started_unix_ms.max(gone.manifest.started_unix_ms) as i64;
    let runs = [stayed, gone, back];
    let limit_ns = asked.slo.latency_limit_ns(Metric::Response, Metric::Response).unwrap_or(f64::MAX);
    let judged = |from_ms, until_ms| {
        let bins = bins(&runs, from_ms, until_ms, asked.interval_ms);
        windows(&bins, asked.quantile).into_iter().map(move |(first, end, held)| {
            let value_ns = held.quantile_ns(asked.quantile);
            let at_s = |bin: usize| since_s(from_ms + bin as i64 * asked.interval_ms as i64);
            let missed = value_ns as f64 > limit_ns;
            Window { from_s: at_s(first), until_s: at_s(end), samples: held.count(), value_ns, missed }
        })
    };
    // Whole intervals before the first reconnect, so that no window lies on both sides of it.
    let whole = (zero_ms - begin_ms).max(0) / asked.interval_ms as i64 * asked.interval_ms as i64;
    let before: Vec<Window> = judged(zero_ms - whole, zero_ms).collect();
    let after: Vec<Window> = judged(zero_ms, end_ms).collect();
    let (within_slo_s, window_s) = within(&after);
    let lost_by_others = stayed.totals.integrity_failures();
    Storm {
        schema: SCHEMA,
        schema_version: SCHEMA_VERSION,
        connections: asked.connections,
        dropped: asked.dropped,
        cut: asked.cut.to_owned(),
        jitter_s: asked.jitter_s,
        dropped_at_s: since_s(dropped_ms),
        back: opened,
        all_back_s,
        within_slo_s,
        window_s,
        interval_s: asked.interval_ms as f64 / 1e3,
        slo: asked.slo.to_string(),
        samples_min: sufficiency::samples_needed(asked.quantile),
        worst_ns: after.iter().map(|window| window.value_ns).max().unwrap_or(0),
        windows: before.into_iter().chain(after).collect(),
        kernel_deltas: kernel_deltas(stayed, zero_ms),
        lost_by_others,
        recovered: all_back_s.is_some() && within_slo_s.is_some() && lost_by_others == 0,
    }
}

/// The replies of all runs, in stretches of `length_ms`. An interval belongs where its middle is.
fn bins(runs: &[&RunResult], from_ms: i64, until_ms: i64, length_ms: u64) -> Vec<Sparse> {
    let count = (until_ms - from_ms).max(0).cast_unsigned().div_ceil(length_ms) as usize;
    let mut bins = vec![Sparse::default(); count];
    for placed in runs.iter().flat_map(|run| placed(run)) {
        let middle_ms = i64::midpoint(placed.start_ms, placed.end_ms) - from_ms;
        let Ok(place) = u64::try_from(middle_ms) else { continue };
        if let Some(bin) = bins.get_mut((place / length_ms) as usize)
            && let Some(replies) = placed.interval.histograms.get(&Metric::Response)
        {
            bin.merge(replies);
        }
    }
    bins
}

/// Neighbouring bins put together until there are samples enough for the quantile: first bin, end, what they hold.
fn windows(bins: &[Sparse], quantile: f64) -> Vec<(usize, usize, Sparse)> {
    let needed = sufficiency::samples_needed(quantile);
    let mut windows: Vec<(usize, usize, Sparse)> = Vec::new();
    let (mut first, mut held) = (0, Sparse::default());
    for (index, bin) in bins.iter().enumerate() {
        held.merge(bin);
        if held.count() >= needed {
            windows.push((first, index + 1, std::mem::take(&mut held)));
            first = index + 1;
        }
    }
    // What is left over is too little for a window of its own, and not to be lost.
    if let Some((_, end, last)) = windows.last_mut().filter(|_| !held.is_empty()) {
        *end = bins.len();
        last.merge(&held);
    }
    windows
}

/// When the objective held again, and what that is known to, s.
fn within(after: &[Window]) -> (Option<f64>, Option<f64>) {
    // To a millisecond, as both ends are.
    let length = |window: &Window| ((window.until_s - window.from_s) * 1e3).round() / 1e3;
    match after.iter().rposition(|window| window.missed) {
        None => (after.first().map(|_| 0.0), after.iter().map(length).reduce(f64::max)),
        Some(last) if last + 1 == after.len() => (None, Some(length(&after[last]))),
        Some(last) => (Some(after[last].until_s), Some(length(&after[last]))),
    }
}

fn kernel_deltas(stayed: &RunResult, from_ms: i64) -> BTreeMap<String, u64> {
    let mut deltas = BTreeMap::new();
    for placed in placed(stayed).filter(|placed| placed.end_ms > from_ms) {
        for (name, delta) in &placed.interval.sample.kernel_deltas {
            if kernel_events::of_counter(name).is_some() {
                *deltas.entry(name.clone()).or_default() += delta;
            }
        }
    }
    deltas
}

impl Storm {
    /// `RECOVERED` or `NOT RECOVERED`.
    pub fn verdict(&self) -> &'static str {
        if self.recovered { "RECOVERED" } else { "NOT RECOVERED" }
    }

    /// What happened, in a sentence.
    pub fn sentence(&self) -> String {
        format!(
            "{} of {} connections dropped ({}), jitter {}",
            units::count(self.dropped.into()),
            units::count(self.connections.into()),
            self.cut.to_uppercase(),
            units::span_s(self.jitter_s)
        )
    }

    /// What it came to, line by line: a name and its value.
    pub fn lines(&self, stayed: &RunResult, back: &RunResult) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
        let interval = units::span_s(self.interval_s);
        line(
            "all back",
            match self.all_back_s {
                Some(seconds) => format!("after {} (to {interval})", units::span_s(seconds)),
                None => {
                    format!("never: {} of {}", units::count(self.back), units::count(self.dropped.into()))
                }
            },
        );
        let window = self.window_s.map_or(String::new(), units::span_s);
        let samples = units::count(self.samples_min);
        line(
            &self.slo,
            match (self.within_slo_s, self.window_s) {
                (_, None) => format!("not judged: {samples} replies are needed, give more --rate or --after"),
                (None, _) => "still missed at the end: give more --after".to_owned(),
                (Some(0.0), _) => {
                    format!("held in every window (at most {window} long, {samples} samples or more)")
                }
                (Some(seconds), _) => format!(
                    "again after {} (to {window}: a window with {samples} samples or more)",
                    units::span_s(seconds)
                ),
            },
        );
        let worst =
            self.windows.iter().find(|window| window.from_s >= 0.0 && window.value_ns == self.worst_ns);
        if let Some(worst) = worst {
            let (value, from, until) =
                (units::latency_ns(worst.value_ns), worst.from_s, units::span_s(worst.until_s));
            line("worst window", format!("{value}, from {} to {until}", units::span_s(from)));
        }
        for (metric, name) in [(Metric::Connect, "TCP connect"), (Metric::Upgrade, "upgrade")] {
            if let Some(recorder) = back.recorder(metric) {
                let [p50, p99, max] =
                    [0.5, 0.99, 1.0].map(|quantile| units::latency_ns(recorder.quantile_ns(quantile)));
                line(name, format!("p50 {p50}, p99 {p99}, max {max} of those that came back"));
            }
        }
        line("the others", format!("{} messages broken or lost", units::count(self.lost_by_others)));
        let moved = self.kernel_deltas.iter().map(|(name, delta)| {
            let meaning = kernel_events::of_counter(name).map_or("", |event| event.what);
            format!("{name} +{}: {meaning}", units::count(*delta))
        });
        let moved: Vec<String> = moved.collect();
        line("kernel", if moved.is_empty() { "nothing dropped".to_owned() } else { moved.join("; ") });
        for (name, result) in [("stayed", stayed), ("came back", back)] {
            line(name, format!("{}: {}", result.verdict.kind.name(), result.verdict.cause));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::result::recorder::Recorder;

    /// A bin of `count` replies that took as long.
    fn bin(count: u64, value_ns: u64) -> Sparse {
        let mut recorder = Recorder::new();
        recorder.record_n(value_ns, count);
        Sparse::from(&recorder)
    }

    #[test]
    fn a_window_is_one_interval_where_samples_suffice_and_wider_where_not() {
        assert_eq!(sufficiency::samples_needed(0.99), 299);
        let spans = |bins: &[Sparse]| -> Vec<(usize, usize)> {
            windows(bins, 0.99).into_iter().map(|(first, end, _)| (first, end)).collect()
        };
        assert_eq!(spans(&[bin(299, 1), bin(500, 1), bin(299, 1)]), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(spans(&vec![bin(100, 1); 6]), [(0, 3), (3, 6)]);
        // Nobody answered for a while: the window reaches to those that tell of it.
        assert_eq!(spans(&[bin(299, 1), bin(0, 1), bin(0, 1), bin(900, 1)]), [(0, 1), (1, 4)]);
        assert_eq!(spans(&[bin(299, 1), bin(200, 1)]), [(0, 2)]);
        assert_eq!(spans(&[bin(298, 1)]), []);
    }

    #[test]
    fn the_objective_holds_again_from_the_end_of_the_last_window_that_missed_it() {
        let window =
            |from_s: f64, until_s: f64, missed| Window { from_s, until_s, samples: 300, value_ns: 1, missed };
        let (good, bad) = (window(0.0, 0.5, false), window(0.5, 0.75, true));
        let late = window(0.75, 1.0, false);
        assert_eq!(within(&[good.clone(), bad.clone(), late.clone()]), (Some(0.75), Some(0.25)));
        assert_eq!(within(&[good.clone(), late]), (Some(0.0), Some(0.5)));
        assert_eq!(within(&[good, bad]), (None, Some(0.25)));
        assert_eq!(within(&[]), (None, None));
    }

    proptest! {
        #[test]
        fn windows_follow_each_other_and_lose_no_sample(
            counts in proptest::collection::vec(0_u64..400, 0..60), quantile in 0.5_f64..0.995,
        ) {
            let bins: Vec<Sparse> = counts.iter().map(|count| bin(*count, 1_000)).collect();
            let needed = sufficiency::samples_needed(quantile);
            let windows = windows(&bins, quantile);
            let all: u64 = counts.iter().sum();
            prop_assert_eq!(windows.is_empty(), all < needed);
            if !windows.is_empty() {
                prop_assert_eq!(windows.iter().map(|(.., held)| held.count()).sum::<u64>(), all);
                prop_assert_eq!(windows[0].0, 0);
            }
            for (first, end, held) in &windows {
                prop_assert!(first < end && held.count() >= needed);
            }
            prop_assert!(windows.windows(2).all(|pair| pair[0].1 == pair[1].0));
        }
    }
}
