//! One result of several: histograms and counts are added, percentiles never.
//!
//! Two things are called a merge, and the clocks tell them apart. Runs that overlap in time were one load from
//! several generators: rates and connections add up, intervals are laid over each other. Runs one after the other
//! were one load repeated: durations add up, rates stay. Anything between is refused.

use std::path::PathBuf;

use super::collector::Collected;
use super::model::{
    Interval, KernelEvidence, Load, Manifest, Plan, Rates, Recorders, RunResult, Sample, ThreadUse,
};
use super::recorder::Counts;
use super::units::span_s;

/// Why runs cannot be merged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("these runs cannot be merged: there are none")]
    NoRuns,
    /// Two of them are not of the same thing.
    #[error("these runs cannot be merged: {} and {} differ in {difference}", .first.display(), .other.display())]
    Differ {
        /// One of them.
        first: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What they differ in.
        difference: Difference,
    },
    /// They overlap too little to be one load, and too much to be repetitions.
    #[error(
        "these runs cannot be merged: they overlap in time by {} of {}: runs are either one load from several generators \
         (and overlap by nine tenths at least) or repetitions one after the other",
        span_s(*.common_s), span_s(*.shortest_s)
    )]
    PartOverlap {
        /// How long all of them ran at once, s.
        common_s: f64,
        /// The length of the shortest, s.
        shortest_s: f64,
    },
}

/// What two plans differ in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({a} and {b})")]
pub struct Difference {
    /// The part of the plan: `sizes`, `connections`.
    pub what: &'static str,
    /// The one.
    pub a: String,
    /// The other.
    pub b: String,
}

/// How runs lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Together {
    /// At once, from several generators.
    Parallel,
    /// One after the other.
    Repeated,
}

/// Merges runs, named for messages. The result is not judged yet.
///
/// # Errors
/// The two runs that do not fit, and what differs.
pub fn merge(mut runs: Vec<(PathBuf, RunResult)>) -> Result<RunResult, MergeError> {
    runs.sort_by_key(|(_, run)| run.manifest.started_unix_ms);
    let (first_name, first) = runs.first().ok_or(MergeError::NoRuns)?;
    let together = together(&runs)?;
    for (name, run) in &runs[1..] {
        let ignore_scale = together == Together::Parallel;
        if let Some(difference) = differs(&first.plan, &run.plan, ignore_scale) {
            return Err(MergeError::Differ { first: first_name.clone(), other: name.clone(), difference });
        }
    }
    let manifest = Manifest {
        merged_from: runs.iter().map(|(_, run)| run.manifest.clone()).collect(),
        ..first.manifest.clone()
    };
    let plan = merged_plan(&runs, together);
    let measured: Vec<f64> = runs.iter().map(|(_, run)| run.measured_s).collect();
    let measured_s = match together {
        Together::Parallel => measured.iter().copied().fold(0.0, f64::max),
        Together::Repeated => measured.iter().sum(),
    };
    let mut collected =
        Collected { totals: Counts::default(), histograms: Recorders::new(), intervals: Vec::new() };
    let mut threads = Vec::new();
    for (index, (_, run)) in runs.iter().enumerate() {
        collected.totals.merge(&run.totals);
        add(&mut collected.histograms, &run.histograms);
        for thread in &run.generator_threads {
            let name = format!("{}/{}", index + 1, thread.name);
            threads.push(ThreadUse { name, ..thread.clone() });
        }
    }
    collected.intervals = match together {
        Together::Parallel => overlaid(&runs),
        Together::Repeated => chained(&runs),
    };
    let kernel = merged_kernel(&runs, together);
    let interrupted = runs.iter().any(|(_, run)| run.interrupted);
    let rates = rates(&runs, together);
    let merged = collected.into_result(manifest, plan, measured_s, threads, kernel);
    Ok(RunResult { interrupted, rates, ..merged })
}

/// Rates add up over generators, and are averaged by time over repetitions.
fn rates(runs: &[(PathBuf, RunResult)], together: Together) -> Rates {
    let total_s: f64 = runs.iter().map(|(_, run)| run.measured_s).sum();
    let weight = |run: &RunResult| match together {
        Together::Parallel => 1.0,
        Together::Repeated => run.measured_s / total_s.max(f64::MIN_POSITIVE),
    };
    let sum = |of: fn(&Rates) -> f64| runs.iter().map(|(_, run)| of(&run.rates) * weight(run)).sum();
    let open = runs.iter().all(|(_, run)| run.rates.offered_msgs_per_s.is_some());
    Rates {
        offered_msgs_per_s: open.then(|| sum(|rates| rates.offered_msgs_per_s.unwrap_or(0.0))),
        sent_msgs_per_s: sum(|rates| rates.sent_msgs_per_s),
        received_msgs_per_s: sum(|rates| rates.received_msgs_per_s),
        upgrades_per_s: sum(|rates| rates.upgrades_per_s),
        payload_sent_octets_per_s: sum(|rates| rates.payload_sent_octets_per_s),
        payload_received_octets_per_s: sum(|rates| rates.payload_received_octets_per_s),
    }
}

/// Start and end of the measured part, s of Unix time.
fn span(run: &RunResult) -> (f64, f64) {
    let start = run.manifest.started_unix_ms as f64 / 1000.0;
    (start, start + run.measured_s)
}

fn together(runs: &[(PathBuf, RunResult)]) -> Result<Together, MergeError> {
    let spans: Vec<(f64, f64)> = runs.iter().map(|(_, run)| span(run)).collect();
    if spans.windows(2).all(|pair| pair[0].1 <= pair[1].0) {
        return Ok(Together::Repeated);
    }
    let begins = spans.iter().map(|span| span.0).fold(f64::MIN, f64::max);
    let ends = spans.iter().map(|span| span.1).fold(f64::MAX, f64::min);
    let shortest = spans.iter().map(|span| span.1 - span.0).fold(f64::MAX, f64::min);
    let longest = spans.iter().map(|span| span.1 - span.0).fold(0.0, f64::max);
    let common = (ends - begins).max(0.0);
    if common >= 0.9 * longest {
        return Ok(Together::Parallel);
    }
    Err(MergeError::PartOverlap { common_s: common, shortest_s: shortest })
}

/// What two plans differ in, so that their histograms are not of the same thing; scale (rate, connections, threads)
/// may differ between generators of one load, not between repetitions.
pub(super) fn differs(a: &Plan, b: &Plan, ignore_scale: bool) -> Option<Difference> {
    let told = |what, a: String, b: String| (a != b).then_some(Difference { what, a, b });
    let load = |plan: &Plan| match plan.load {
        Load::Open { arrival, .. } if ignore_scale => format!("open loop, {arrival:?} arrivals"),
        other => format!("{other:?}"),
    };
    let scale = |a: f64, b: f64, what| {
        if ignore_scale { None } else { told(what, a.to_string(), b.to_string()) }
    };
    told("mode", format!("{:?}", a.mode), format!("{:?}", b.mode))
        .or_else(|| told("load", load(a), load(b)))
        .or_else(|| told("sizes", format!("{:?}", a.sizes), format!("{:?}", b.sizes)))
        .or_else(|| told("text or binary", a.text.to_string(), b.text.to_string()))
        .or_else(|| told("compression", a.deflate.to_string(), b.deflate.to_string()))
        .or_else(|| told("io", a.io.title().into(), b.io.title().into()))
        .or_else(|| told("late policy", format!("{:?}", a.late), format!("{:?}", b.late)))
        .or_else(|| scale(a.connections as f64, b.connections as f64, "connections"))
        .or_else(|| scale(a.publishers as f64, b.publishers as f64, "publishers"))
        .or_else(|| scale(a.churn_per_s, b.churn_per_s, "churn"))
}

fn merged_plan(runs: &[(PathBuf, RunResult)], together: Together) -> Plan {
    let first = &runs[0].1.plan;
    let plans = || runs.iter().map(|(_, run)| &run.plan);
    if together == Together::Repeated {
        return Plan { duration_s: plans().map(|plan| plan.duration_s).sum(), ..first.clone() };
    }
    let load = match first.load {
        Load::Open { arrival, .. } => {
            let offered_msgs_per_s = plans().filter_map(Plan::offered_msgs_per_s).sum();
            Load::Open { arrival, offered_msgs_per_s }
        }
        closed @ Load::Closed { .. } => closed,
    };
    Plan {
        load,
        connections: plans().map(|plan| plan.connections).sum(),
        publishers: plans().map(|plan| plan.publishers).sum(),
        threads: plans().map(|plan| plan.threads).sum(),
        churn_per_s: plans().map(|plan| plan.churn_per_s).sum(),
        sources: plans().flat_map(|plan| plan.sources.clone()).collect(),
        ..first.clone()
    }
}

fn add(into: &mut Recorders, from: &Recorders) {
    for (metric, recorder) in from {
        into.entry(*metric).or_default().merge(recorder);
    }
}

/// Timelines of generators at once: intervals that begin in the same second of the same phase become one.
fn overlaid(runs: &[(PathBuf, RunResult)]) -> Vec<Interval> {
    let mut merged: Vec<Interval> = runs[0].1.intervals.clone();
    for (_, run) in &runs[1..] {
        for interval in &run.intervals {
            let same = |mine: &&mut Interval| {
                mine.phase == interval.phase
                    && mine.start_ms.abs_diff(interval.start_ms) * 2 < mine.length_ms.max(1)
            };
            match merged.iter_mut().find(same) {
                Some(mine) => absorb(mine, interval),
                None => merged.push(interval.clone()),
            }
        }
    }
    merged.sort_by_key(|interval| interval.start_ms);
    merged
}

fn absorb(mine: &mut Interval, other: &Interval) {
    mine.counts.merge(&other.counts);
    mine.in_flight += other.in_flight;
    mine.connections_open += other.connections_open;
    for (metric, held) in &other.histograms {
        mine.histograms.entry(*metric).or_default().merge(held);
    }
    mine.thread_cpu_percent.extend(&other.thread_cpu_percent);
    let Sample { server_cpu_percent, server_rss_octets, kernel_deltas, kernel_levels } = &other.sample;
    // The server is one process however many generators look at it; a kernel may be the same or another.
    mine.sample.server_cpu_percent = mine.sample.server_cpu_percent.or(*server_cpu_percent);
    mine.sample.server_rss_octets = mine.sample.server_rss_octets.or(*server_rss_octets);
    for (into, from) in
        [(&mut mine.sample.kernel_deltas, kernel_deltas), (&mut mine.sample.kernel_levels, kernel_levels)]
    {
        for (name, value) in from {
            let seen = into.entry(name.clone()).or_insert(0);
            *seen = (*seen).max(*value);
        }
    }
}

/// Timelines of repetitions, one after the other, without the time between them.
fn chained(runs: &[(PathBuf, RunResult)]) -> Vec<Interval> {
    let mut chained = Vec::new();
    let mut end_ms = 0;
    for (_, run) in runs {
        let begin_ms = run.intervals.iter().map(|interval| interval.start_ms).min().unwrap_or(0);
        let shift_ms = if chained.is_empty() { 0 } else { end_ms - begin_ms };
        for interval in &run.intervals {
            let start_ms = interval.start_ms + shift_ms;
            end_ms = end_ms.max(start_ms + interval.length_ms as i64);
            chained.push(Interval { start_ms, ..interval.clone() });
        }
    }
    chained
}

/// Generators at once may share a kernel, so the largest rise counts; over repetitions rises add up.
fn merged_kernel(runs: &[(PathBuf, RunResult)], together: Together) -> KernelEvidence {
    let mut merged = runs[0].1.kernel.clone();
    if let Some((_, last)) = runs.last() {
        merged.levels_after.clone_from(&last.kernel.levels_after);
    }
    let names: std::collections::BTreeSet<&String> =
        runs.iter().flat_map(|(_, run)| run.kernel.counters_after.keys()).collect();
    for name in names {
        let rises = runs.iter().map(|(_, run)| run.kernel.delta(name));
        let rise = match together {
            Together::Parallel => rises.max().unwrap_or(0),
            Together::Repeated => rises.sum(),
        };
        let before = *merged.counters_before.entry(name.clone()).or_insert(0);
        merged.counters_after.insert(name.clone(), before + rise);
    }
    merged
}
