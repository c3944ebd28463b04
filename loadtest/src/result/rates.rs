//! What a run achieved: rates of its measured part, and shares of what was offered.

use super::model::{Interval, Mode, Phase, Plan, Rates, RunResult};
use super::recorder::Counts;

impl RunResult {
    /// What the run is rated by, /s: replies in echo mode, deliveries in broadcast, upgrades in connect mode.
    pub fn achieved_per_s(&self) -> f64 {
        match self.plan.mode {
            Mode::Echo | Mode::Broadcast => self.rates.received_msgs_per_s,
            Mode::Connect => self.rates.upgrades_per_s,
        }
    }

    /// The achieved share of the offered rate; `None` in closed loop. In broadcast, of the deliveries due for it.
    pub fn achieved_ratio(&self) -> Option<f64> {
        let offered = self.rates.offered_msgs_per_s.filter(|rate| *rate > 0.0)?;
        let copies = match self.plan.mode {
            Mode::Broadcast if self.totals.sent > 0 => self.totals.expected as f64 / self.totals.sent as f64,
            _ => 1.0,
        };
        Some(self.achieved_per_s() / (offered * copies))
    }

    /// The share of the scheduled operations that the generator began; `None` in closed loop.
    pub fn sent_ratio(&self) -> Option<f64> {
        let offered = self.rates.offered_msgs_per_s.filter(|_| self.totals.scheduled > 0);
        let begun = if self.plan.mode == Mode::Connect { self.totals.connects } else { self.totals.sent };
        offered.map(|_| begun as f64 / self.totals.scheduled as f64)
    }
}

/// Rates of `totals` over `measured_s` seconds.
///
/// What was received *within* the measured part follows from what was due and from how the messages in flight
/// changed: replies that came after its end are in the totals, but were not achieved in time.
pub fn of(plan: &Plan, totals: &Counts, intervals: &[Interval], measured_s: f64) -> Rates {
    let per_s = |count: f64| if measured_s > 0.0 { count / measured_s } else { 0.0 };
    // What is lost stays in flight, unless its connection ended: it is not taken off twice.
    let grown = in_flight_growth(intervals).unwrap_or(0) as f64;
    let received = (totals.expected as f64 - grown.max(totals.lost as f64)).max(0.0);
    // The totals hold those of the ramp and of the warm-up too.
    let upgrades: u64 = measured(intervals).map(|interval| interval.counts.upgrades).sum();
    Rates {
        offered_msgs_per_s: plan.offered_msgs_per_s(),
        sent_msgs_per_s: per_s(totals.sent as f64),
        received_msgs_per_s: per_s(received),
        upgrades_per_s: per_s(upgrades as f64),
        payload_sent_octets_per_s: per_s(totals.payload_sent_octets as f64),
        payload_received_octets_per_s: per_s(totals.payload_received_octets as f64),
    }
}

/// By how many messages the load in flight grew (or, negative, shrank) over the measured part; `None` where the
/// timeline has no measured part. Without an interval before it, nothing was in flight at its start.
pub fn in_flight_growth(intervals: &[Interval]) -> Option<i64> {
    let first = intervals.iter().position(|interval| interval.phase == Phase::Measure)?;
    let last = intervals.iter().rfind(|interval| interval.phase == Phase::Measure)?;
    let before = first.checked_sub(1).map_or(0, |index| intervals[index].in_flight);
    Some(last.in_flight as i64 - before as i64)
}

/// The intervals of the measured part.
pub fn measured(intervals: &[Interval]) -> impl Iterator<Item = &Interval> {
    intervals.iter().filter(|interval| interval.phase == Phase::Measure)
}

/// The server's mean CPU over the measured part, percent of a core; `None` where it was not seen.
pub fn server_cpu_percent(result: &RunResult) -> Option<f64> {
    let seen: Vec<f64> =
        measured(&result.intervals).filter_map(|interval| interval.sample.server_cpu_percent).collect();
    (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::super::model::{Arrival, IntervalHistograms, Io, LatePolicy, Load, Sample};
    use super::*;

    fn interval(phase: Phase, in_flight: u64) -> Interval {
        Interval {
            phase,
            start_ms: 0,
            length_ms: 1_000,
            counts: Counts::default(),
            in_flight,
            connections_open: 0,
            histograms: IntervalHistograms::new(),
            thread_cpu_percent: Vec::new(),
            sample: Sample::default(),
        }
    }

    #[test]
    fn replies_after_the_end_or_lost_were_not_achieved_in_time() {
        let plan = Plan {
            url: String::new(),
            mode: Mode::Echo,
            load: Load::Open { arrival: Arrival::Fixed, offered_msgs_per_s: 1_000.0 },
            late: LatePolicy::CatchUp,
            connections: 1,
            publishers: 0,
            duration_s: 2.0,
            warmup_s: 1.0,
            ramp_connects_per_s: None,
            sizes: Vec::new(),
            text: false,
            threads: 1,
            io: Io::Epoll,
            sources: Vec::new(),
            churn_per_s: 0.0,
            deflate: false,
            subprotocol: None,
        };
        // 20 were in flight when it began and 520 when it ended, of which 100 never came; the drain brought the rest.
        let phases = [(Phase::Warmup, 20), (Phase::Measure, 300), (Phase::Measure, 520), (Phase::Drain, 0)];
        let intervals = phases.map(|(phase, in_flight)| interval(phase, in_flight));
        let totals = Counts { sent: 2_000, expected: 2_000, received: 1_900, lost: 100, ..Counts::default() };
        let rates = of(&plan, &totals, &intervals, 2.0);
        assert_eq!((rates.sent_msgs_per_s, rates.received_msgs_per_s), (1_000.0, 750.0));
        // Lost with their connections, which are gone, and so not in flight.
        let totals = Counts { lost: 600, received: 1_400, ..totals };
        assert_eq!(of(&plan, &totals, &intervals, 2.0).received_msgs_per_s, 700.0);
        assert_eq!(in_flight_growth(&intervals), Some(500));
        assert_eq!(in_flight_growth(&intervals[..1]), None);
    }
}
