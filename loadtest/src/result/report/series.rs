//! From a result to the points of charts: spectra, timelines, density.

use super::super::model::{Interval, RunResult, Sample};
use super::super::recorder::{Metric, Recorder};
use super::super::sparse::Sparse;
use super::super::units;
use super::chart::{Mark, Point, Series};

/// Points on a timeline beyond which neighbouring intervals are drawn as one.
const TIMELINE_POINTS_MAX: usize = 300;

/// Steps of a spectrum for each factor of ten in 1/(1-p).
const SPECTRUM_STEPS_PER_DECADE: u32 = 24;

/// Cells of the density a factor of ten of latency.
const DENSITY_CELLS_PER_DECADE: f64 = 14.0;

/// The spectrum of a histogram: latency (ns) over 1/(1-p), from the median's left up to the last sample.
pub(super) fn spectrum(name: &str, class: &'static str, recorder: &Recorder) -> Series {
    let count = recorder.count() as f64;
    let steps = (count.max(1.0).log10() * f64::from(SPECTRUM_STEPS_PER_DECADE)).ceil() as u32;
    let point = |inverse: f64, quantile: f64| {
        let value_ns = recorder.quantile_ns(quantile);
        let x_label = if quantile >= 1.0 { "max".to_owned() } else { short_percentile(quantile) };
        Point { x: inverse, y: value_ns as f64, x_label, y_label: units::latency_ns(value_ns) }
    };
    let inverses =
        (0..=steps).map(|step| 10_f64.powf(f64::from(step) / f64::from(SPECTRUM_STEPS_PER_DECADE)));
    let mut points: Vec<Point> = inverses
        .filter(|inverse| *inverse < count)
        .map(|inverse| point(inverse, 1.0 - 1.0 / inverse))
        .collect();
    points.push(point(count.max(1.0), 1.0));
    Series { name: name.to_owned(), class, points }
}

/// A percentile with only the digits that tell it from its neighbours: p93.2, p99.93, p99.9968.
fn short_percentile(quantile: f64) -> String {
    let digits = (-(1.0 - quantile).log10()).floor().max(0.0) as usize;
    format!("p{:.*}", digits, quantile * 100.0)
}

/// The ticks of 1/(1-p): 0 %, 90 %, 99 % …
pub(super) fn percentile_ticks(max: f64) -> Vec<(f64, String)> {
    let mut ticks = vec![(1.0, "p0".to_owned()), (2.0, "p50".to_owned())];
    let mut inverse = 10.0;
    while inverse <= max {
        ticks.push((inverse, units::percentile(1.0 - 1.0 / inverse)));
        inverse *= 10.0;
    }
    ticks
}

/// The timeline, thinned to what a screen can show: neighbouring intervals of one phase become one.
pub(super) fn timeline(result: &RunResult) -> Vec<Interval> {
    let group = result.intervals.len().div_ceil(TIMELINE_POINTS_MAX).max(1);
    let phases = result.intervals.chunk_by(|a, b| a.phase == b.phase);
    phases.flat_map(|phase| phase.chunks(group)).map(joined).collect()
}

fn joined(intervals: &[Interval]) -> Interval {
    let mut joined = intervals[0].clone();
    for interval in &intervals[1..] {
        joined.length_ms += interval.length_ms;
        joined.counts.merge(&interval.counts);
        joined.in_flight = interval.in_flight;
        joined.connections_open = interval.connections_open;
        for (metric, held) in &interval.histograms {
            joined.histograms.entry(*metric).or_default().merge(held);
        }
        for (mine, other) in joined.thread_cpu_percent.iter_mut().zip(&interval.thread_cpu_percent) {
            *mine += other;
        }
        for (name, delta) in &interval.sample.kernel_deltas {
            *joined.sample.kernel_deltas.entry(name.clone()).or_insert(0) += delta;
        }
        let Sample { server_cpu_percent, server_rss_octets, kernel_levels, .. } = &interval.sample;
        let cpu = joined.sample.server_cpu_percent.zip(*server_cpu_percent);
        joined.sample.server_cpu_percent = cpu.map(|(mine, other)| mine + other);
        joined.sample.server_rss_octets = *server_rss_octets;
        joined.sample.kernel_levels.clone_from(kernel_levels);
    }
    let count = intervals.len() as f64;
    joined.thread_cpu_percent.iter_mut().for_each(|cpu| *cpu /= count);
    joined.sample.server_cpu_percent = joined.sample.server_cpu_percent.map(|cpu| cpu / count);
    joined
}

/// The middle of an interval, s.
pub(super) fn middle_s(interval: &Interval) -> f64 {
    (interval.start_ms as f64 + interval.length_ms as f64 / 2.0) / 1000.0
}

/// A line over time: a point for each interval that has a value.
pub(super) fn over_time(
    name: &str,
    class: &'static str,
    timeline: &[Interval],
    format: impl Fn(f64) -> String,
    value: impl Fn(&Interval) -> Option<f64>,
) -> Series {
    let points = timeline.iter().filter_map(|interval| {
        let y = value(interval).filter(|y| y.is_finite())?;
        let from = interval.start_ms as f64 / 1000.0;
        let x_label = format!("t = {from} … {} s", from + interval.length_ms as f64 / 1000.0);
        Some(Point { x: middle_s(interval), y, x_label, y_label: format(y) })
    });
    Series { name: name.to_owned(), class, points: points.collect() }
}

/// A metric's quantile in an interval, ns.
pub(super) fn quantile_of(interval: &Interval, metric: Metric, quantile: f64) -> Option<f64> {
    held(interval, metric).map(|held| held.quantile_ns(quantile) as f64)
}

fn held(interval: &Interval, metric: Metric) -> Option<&Sparse> {
    interval.histograms.get(&metric).filter(|held| !held.is_empty())
}

/// Where the values of each interval lie: cells over time and latency, the darker the more of them.
pub(super) fn density(timeline: &[Interval], metric: Metric) -> Vec<Mark> {
    let mut cells = Vec::new();
    let mut most = 1_u64;
    for interval in timeline {
        let Some(held) = held(interval, metric) else { continue };
        let mut counts = std::collections::BTreeMap::<i64, u64>::new();
        for (value_ns, count) in held.buckets() {
            let cell = (((*value_ns).max(1) as f64).log10() * DENSITY_CELLS_PER_DECADE).floor() as i64;
            *counts.entry(cell).or_insert(0) += count;
        }
        most = most.max(counts.values().copied().max().unwrap_or(0));
        let from_s = interval.start_ms as f64 / 1000.0;
        let x = (from_s, from_s + interval.length_ms as f64 / 1000.0);
        cells.extend(counts.into_iter().map(|(cell, count)| (x, cell, count)));
    }
    // Logarithmic, so that a handful of slow messages is still seen beside a hundred thousand fast ones.
    let opacity = |count: u64| 0.05 + 0.50 * ((count as f64).ln_1p() / (most as f64).ln_1p());
    let edge = |cell: i64| 10_f64.powf(cell as f64 / DENSITY_CELLS_PER_DECADE);
    cells
        .into_iter()
        .map(|(x, cell, count)| Mark::Cell { x, y: (edge(cell), edge(cell + 1)), opacity: opacity(count) })
        .collect()
}
