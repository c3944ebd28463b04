//! Puts the slices of all threads together: the timeline, and the totals of the measured part.
//!
//! One collector runs beside the load, on a thread that drives none. Each second the engine gives it every
//! thread's [`Slice`], what the sampler saw, and [`Collector::close_interval`] makes an [`Interval`] of it.
//!
//! **What counts.** Slices of [`Phase::Measure`] and [`Phase::Drain`] go into the totals, those of the ramp and the
//! warm-up only into the timeline. So a load thread records into its slice what was *intended* in the
//! current part; a reply in the measured part to a message of the warm-up is not recorded at all.
//! `Metric::Connect`, `Upgrade` and `FirstMessage` are the exception: connections are opened in the ramp, so
//! their histograms and their connect counts go into the totals from every phase.

use super::model::{
    Interval, KernelEvidence, Manifest, Phase, Plan, Recorders, RunResult, SCHEMA, SCHEMA_VERSION, Sample,
    ThreadUse, Verdict,
};
use super::rates;
use super::recorder::{Counts, Metric, Recorder, Slice};
use super::sparse::Sparse;

impl Phase {
    /// Whether what was recorded of a metric in this phase goes into the totals.
    pub fn counts_for(self, metric: Metric) -> bool {
        matches!(self, Phase::Measure | Phase::Drain)
            || matches!(metric, Metric::Connect | Metric::Upgrade | Metric::FirstMessage)
    }
}

/// The timeline and the totals so far.
#[derive(Debug)]
pub struct Collector {
    totals: Slice,
    current: Slice,
    thread_cpu_ns: Vec<u64>,
    intervals: Vec<Interval>,
}

/// What a collector ends with.
#[derive(Debug)]
pub struct Collected {
    /// Counts of the measured part.
    pub totals: Counts,
    /// Histograms of the measured part.
    pub histograms: Recorders,
    /// The timeline.
    pub intervals: Vec<Interval>,
}

impl Collected {
    /// The result of a run, not judged yet: `slos` and `verdict` are for [`super::verdict::judge`] to fill in.
    pub fn into_result(
        self,
        manifest: Manifest,
        plan: Plan,
        measured_s: f64,
        generator_threads: Vec<ThreadUse>,
        kernel: KernelEvidence,
    ) -> RunResult {
        RunResult {
            schema: SCHEMA.to_owned(),
            schema_version: SCHEMA_VERSION,
            rates: rates::of(&plan, &self.totals, &self.intervals, measured_s),
            manifest,
            plan,
            measured_s,
            interrupted: false,
            totals: self.totals,
            histograms: self.histograms,
            intervals: self.intervals,
            generator_threads,
            kernel,
            slos: Vec::new(),
            verdict: Verdict::default(),
            search: Vec::new(),
            capacity: None,
            surface: Vec::new(),
        }
    }
}

impl Collector {
    /// For `threads` load threads.
    pub fn new(threads: usize) -> Self {
        Collector {
            totals: Slice::new(),
            current: Slice::new(),
            thread_cpu_ns: vec![0; threads],
            intervals: Vec::new(),
        }
    }

    /// Takes in what load thread `thread` (from 0) handed over for the interval that is being closed.
    pub fn absorb(&mut self, thread: usize, slice: &Slice) {
        self.current.merge(slice);
        self.thread_cpu_ns[thread] += slice.cpu_ns;
    }

    /// Takes in what a thread that drives no load recorded (the hiccup meter).
    pub fn absorb_beside(&mut self, slice: &Slice) {
        self.current.merge(slice);
    }

    /// Ends the interval that began `start_ms` after the start of the measured part, and returns it for the live view.
    pub fn close_interval(
        &mut self,
        phase: Phase,
        start_ms: i64,
        length_ms: u64,
        sample: Sample,
    ) -> &Interval {
        if matches!(phase, Phase::Measure | Phase::Drain) {
            self.totals.merge(&self.current);
        } else {
            self.totals.merge_connection_part(&self.current);
        }
        let length_ns = (length_ms * 1_000_000).max(1);
        let percent = |cpu_ns: u64| 100.0 * cpu_ns as f64 / length_ns as f64;
        self.intervals.push(Interval {
            phase,
            start_ms,
            length_ms,
            counts: self.current.counts,
            in_flight: self.current.in_flight,
            connections_open: self.current.connections_open,
            histograms: held(&self.current).map(|(metric, held)| (metric, Sparse::from(held))).collect(),
            thread_cpu_percent: self.thread_cpu_ns.iter().map(|ns| percent(*ns)).collect(),
            sample,
        });
        self.current.reset();
        self.thread_cpu_ns.fill(0);
        self.intervals.last().expect("an interval was just pushed")
    }

    /// The totals so far, for the live view.
    pub fn totals(&self) -> &Slice {
        &self.totals
    }

    /// Adds to the totals what only the end of the run can know: messages that never came back.
    pub fn count_lost(&mut self, lost: u64) {
        self.totals.counts.lost += lost;
    }

    /// Ends the collection.
    pub fn finish(self) -> Collected {
        Collected {
            totals: self.totals.counts,
            histograms: held(&self.totals).map(|(metric, held)| (metric, held.clone())).collect(),
            intervals: self.intervals,
        }
    }
}

/// The recorders of a slice that hold something.
fn held(slice: &Slice) -> impl Iterator<Item = (Metric, &Recorder)> {
    Metric::ALL
        .into_iter()
        .map(|metric| (metric, slice.recorder(metric)))
        .filter(|(_, held)| !held.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second in which `messages` were sent and answered, and one connection was opened.
    fn second(messages: u64) -> Slice {
        let mut slice = Slice::new();
        (0..messages).for_each(|_| slice.record(Metric::Response, 1_000));
        slice.record(Metric::Connect, 2_000);
        (slice.counts.sent, slice.counts.connects, slice.cpu_ns) = (messages, 1, 250_000_000);
        slice
    }

    #[test]
    fn the_totals_are_of_the_measured_part_but_connections_count_from_the_ramp_on() {
        let mut collector = Collector::new(2);
        let phases = [(Phase::Ramp, -2), (Phase::Warmup, -1), (Phase::Measure, 0), (Phase::Drain, 1)];
        for (messages, (phase, start_s)) in [1, 10, 100, 1_000].into_iter().zip(phases) {
            collector.absorb(1, &second(messages));
            let interval = collector.close_interval(phase, start_s * 1_000, 1_000, Sample::default());
            assert_eq!(
                (interval.counts.sent, interval.histograms[&Metric::Response].count()),
                (messages, messages)
            );
            assert_eq!(interval.thread_cpu_percent, [0.0, 25.0]);
        }
        collector.count_lost(3);
        let collected = collector.finish();
        assert_eq!((collected.totals.sent, collected.totals.connects, collected.totals.lost), (1_100, 4, 3));
        assert_eq!(collected.histograms[&Metric::Response].count(), 1_100);
        assert_eq!(collected.histograms[&Metric::Connect].count(), 4);
        assert_eq!(collected.intervals.len(), 4);
    }
}
