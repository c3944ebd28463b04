//! When all is well again after a storm, from made-up results.

mod common;

use std::collections::BTreeMap;

use common::Scenario;
use resound_load::result::model::{Interval, Phase, RunResult};
use resound_load::result::recorder::{Metric, Recorder};
use resound_load::result::report;
use resound_load::result::sparse::Sparse;
use resound_load::result::storm::{Asked, Storm, judge};

const MS: u64 = 1_000_000;
const ZERO_MS: u64 = 1_750_000_000_000;
/// Good, and beyond the objective.
const FAST_NS: u64 = MS;
const SLOW_NS: u64 = 80 * MS;

/// A tenth of a second: when it began (ms after the measured part), its replies, and what it opened.
struct Tenth {
    start_ms: i64,
    phase: Phase,
    replies: u64,
    value_ns: u64,
    upgrades: u64,
    open: u64,
}

fn run(started_unix_ms: u64, tenths: impl Iterator<Item = Tenth>) -> RunResult {
    let scenario = Scenario { measured_s: 1, rate_per_s: 10, started_unix_ms, ..Scenario::default() };
    let mut result = scenario.result();
    result.totals.upgrades = 0;
    result.intervals = tenths
        .map(|tenth| {
            let mut recorder = Recorder::new();
            recorder.record_n(tenth.value_ns, tenth.replies);
            let mut interval = Interval {
                phase: tenth.phase,
                start_ms: tenth.start_ms,
                length_ms: 100,
                connections_open: tenth.open,
                histograms: BTreeMap::from([(Metric::Response, Sparse::from(&recorder))]),
                ..result.intervals[0].clone()
            };
            interval.counts.upgrades = tenth.upgrades;
            result.totals.upgrades += tenth.upgrades;
            interval
        })
        .collect();
    result
}

/// A storm of 30 of 100 connections at second 5, of which 10 are back in each tenth from the second one on. From
/// `slow_ms` to `until_ms` after the first reconnect replies are slow; `replies` come in each tenth.
fn storm(replies: u64, slow_ms: i64, until_ms: i64) -> (Storm, String) {
    let slow = |start_ms: i64| (slow_ms..until_ms).contains(&start_ms);
    let value_ns = |start_ms| if slow(start_ms) { SLOW_NS } else { FAST_NS };
    let measure = |start_ms: i64, zero_ms: i64, replies, open| Tenth {
        start_ms,
        phase: Phase::Measure,
        replies,
        value_ns: value_ns(start_ms - zero_ms),
        upgrades: 0,
        open,
    };
    let stayed = run(ZERO_MS, (0..120).map(|at| measure(at * 100, 5_000, replies, 70)));
    let gone = run(ZERO_MS, (0..49).map(|at| measure(at * 100, 5_000, replies / 4, 30)));
    // Four tenths of a ramp, which lie before the measured part.
    let ramp = (0..4).map(|at| Tenth {
        start_ms: at * 100 - 400,
        phase: Phase::Ramp,
        replies: 0,
        value_ns: 0,
        upgrades: if at > 0 { 10 } else { 0 },
        open: at as u64 * 10,
    });
    let back = run(ZERO_MS + 5_400, ramp.chain((0..50).map(|at| measure(at * 100, -400, replies / 4, 30))));
    let asked = Asked {
        connections: 100,
        dropped: 30,
        cut: "rst",
        jitter_s: 0.0,
        slo: "p99<50ms".parse().expect("valid"),
        quantile: 0.99,
        interval_ms: 100,
    };
    let storm = judge(&asked, &stayed, &gone, &back);
    let html = report::storm_html(&storm, &stayed, &gone, &back);
    (storm, html)
}

#[test]
fn with_many_replies_the_moment_is_known_to_a_tenth_of_a_second() {
    let (storm, html) = storm(1_000, 300, 700);
    assert_eq!((storm.within_slo_s, storm.window_s), (Some(0.7), Some(0.1)));
    assert_eq!((storm.all_back_s, storm.back, storm.recovered), (Some(0.4), 30, true));
    assert_eq!(storm.dropped_at_s, -0.1);
    assert!((SLOW_NS..SLOW_NS + MS).contains(&storm.worst_ns));
    let missed: Vec<f64> =
        storm.windows.iter().filter(|window| window.missed).map(|window| window.from_s).collect();
    assert_eq!(missed, [0.3, 0.4, 0.5, 0.6]);
    // What was before the storm is there, too, and no window lies on both sides.
    assert_eq!(storm.windows[0].from_s, -5.0);
    assert!(storm.windows.iter().all(|window| window.until_s <= 0.0 || window.from_s >= 0.0));
    for words in ["dropped", "all back: 0.4 s", "p99&lt;50ms again: 0.7 s", "objective missed"] {
        assert!(html.contains(words), "{words}");
    }
    assert!(!html.contains("NaN") && !html.contains("inf\""));
}

#[test]
fn with_few_replies_the_window_is_as_wide_as_it_must_be_and_the_result_says_so() {
    // Fifty in a tenth: 299 take six of them.
    let (storm, _) = storm(40, 300, 700);
    assert_eq!(storm.samples_min, 299);
    let within_s = storm.within_slo_s.expect("it held again");
    let window_s = storm.window_s.expect("it was judged");
    assert!(window_s > 0.5 && within_s >= 0.7 && within_s - window_s <= 0.7, "{within_s} {window_s}");
    assert!(storm.windows.iter().all(|window| window.samples >= 299));
}

#[test]
fn too_few_replies_are_no_recovery_but_no_judgement() {
    let (storm, _) = storm(1, 0, 0);
    assert_eq!((storm.within_slo_s, storm.window_s, storm.recovered), (None, None, false));
}

#[test]
fn an_objective_that_is_missed_at_the_end_is_not_held_again() {
    let (storm, html) = storm(1_000, 300, 100_000);
    assert_eq!((storm.within_slo_s, storm.recovered), (None, false));
    assert!(html.contains("NOT RECOVERED") && html.contains("still missed at the end"));
}

#[test]
fn an_objective_that_always_held_held_in_windows_of_a_tenth() {
    let (storm, _) = storm(1_000, 0, 0);
    assert_eq!((storm.within_slo_s, storm.window_s, storm.recovered), (Some(0.0), Some(0.1), true));
}
