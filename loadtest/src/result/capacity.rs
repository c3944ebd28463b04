//! What a search over load came to: the knee and its spread, what limited it, what a connection and a message cost,
//! and every step with its verdict.
//!
//! [`limit`] says what stopped a step; it only reads the step's result and what was seen of the machine meanwhile.

use std::collections::BTreeMap;

use super::model::{
    Capacity, Ending, Finding, FindingKind, Limit, LimitKind, Mode, Over, RunResult, SearchStep, Seen,
};
use super::{kernel_events, rates, units};

/// A server whose busy threads use more than this share of their cores has no CPU left, percent.
pub const SERVER_BUSY_PERCENT: f64 = 90.0;
/// A machine busier than this has no CPU left, whoever uses it, percent.
pub const MACHINE_BUSY_PERCENT: f64 = 95.0;

impl Seen {
    /// How much of the cores that the server's busy threads could use was used, percent.
    pub fn server_busy_percent(&self) -> Option<f64> {
        let threads = self.server_busy_threads.filter(|threads| *threads > 0)?;
        Some(self.server_cpu_percent? / f64::from(threads))
    }
}

/// The kind of limit that a finding is about; an objective's may turn out to be a resource of the server.
pub fn limit_kind(finding: &Finding) -> LimitKind {
    match finding.kind {
        FindingKind::SourcePortsExhausted
        | FindingKind::DescriptorsExhausted
        | FindingKind::KernelMemoryExhausted
        | FindingKind::KernelEvent => {
            kernel_events::of_finding(finding).map_or(LimitKind::Machine, |event| event.limit)
        }
        FindingKind::MachineStalled => LimitKind::Machine,
        FindingKind::LoadThreadBusy | FindingKind::ScheduleLag | FindingKind::ScheduleNotSent => {
            LimitKind::Generator
        }
        FindingKind::ServerFellBehind
        | FindingKind::ConnectionsMissing
        | FindingKind::ObjectiveMissed
        | FindingKind::ObjectiveUndecided
        | FindingKind::ClosedLoop
        | FindingKind::EndedEarly
        | FindingKind::ValuesSaturated
        | FindingKind::Unknown => LimitKind::Objective,
    }
}

/// What stopped a judged step; `None` if nothing did.
pub fn limit(result: &RunResult, seen: &Seen) -> Option<Limit> {
    let decisive = result.verdict.decisive()?;
    let kind = limit_kind(decisive);
    if kind == LimitKind::Objective {
        return Some(of_the_server(&decisive.cause, seen));
    }
    let knobs = kernel_events::of_finding(decisive).map_or(&[][..], |event| event.knobs);
    let cure = if knobs.is_empty() {
        decisive.cure.clone()
    } else {
        format!(
            "{}; scripts/tune.sh check --connections {} shows {}",
            decisive.cure,
            result.plan.connections,
            knobs.join(" and ")
        )
    };
    Some(Limit { kind, cause: decisive.cause.clone(), cure, counter: decisive.counter.clone() })
}

/// An objective was missed by the server: for want of what?
fn of_the_server(missed: &str, seen: &Seen) -> Limit {
    let limit = |kind, cause: String, cure: &str| Limit { kind, cause, cure: cure.to_owned(), counter: None };
    let machine = seen.machine_cpu_percent.unwrap_or(0.0);
    let of_machine = match seen.machine_cpu_percent {
        Some(machine) => format!("the machine's CPUs were {machine:.0} % busy"),
        None => "nothing is known of the machine's CPUs".to_owned(),
    };
    match (seen.server_busy_percent(), seen.server_cpu_percent, seen.server_busy_threads) {
        (Some(busy), Some(cpu), Some(threads)) if busy >= SERVER_BUSY_PERCENT => limit(
            LimitKind::ServerCpu,
            format!("{missed}; the server used {cpu:.0} % of a core with {threads} busy threads"),
            "give the server more cores (--workers), or make its messages cheaper",
        ),
        (_, Some(cpu), _) if machine >= MACHINE_BUSY_PERCENT => limit(
            LimitKind::MachineCpu,
            format!("{missed}; {of_machine}, and the server had {cpu:.0} % of a core of that"),
            "give the server cores of its own: generate from another machine, and stop what else runs",
        ),
        (_, None, _) if machine >= MACHINE_BUSY_PERCENT => limit(
            LimitKind::MachineCpu,
            format!("{missed}; {of_machine}; nothing is known of the server"),
            "show the server's CPU with --server-pid, and generate from another machine",
        ),
        (_, cpu, _) => {
            let server = cpu.map_or("nothing is known of its CPU".to_owned(), |cpu| {
                format!("the server used {cpu:.0} % of a core")
            });
            limit(
                LimitKind::Objective,
                format!("{missed}; {server}, {of_machine}, and no queue of the kernel was full"),
                "no resource is at its end: the latency itself is the limit",
            )
        }
    }
}

impl Capacity {
    /// The load with its unit.
    pub fn load(&self, load: f64) -> String {
        show_load(self.over, load)
    }

    /// The answer in a sentence.
    pub fn answer(&self) -> String {
        let knee = self.knee.map(|knee| self.load(knee));
        match (self.ending, knee) {
            (Ending::Found, Some(knee)) => format!("{knee}, confirmed"),
            (Ending::EndOfRange, Some(knee)) => {
                format!("at least {knee}, where the range (--to) ends, confirmed")
            }
            (Ending::Unknown, Some(knee)) => {
                format!("at least {knee}; what is above could not be measured from here")
            }
            (Ending::Interrupted, Some(knee)) => format!("ended early; {knee} was good"),
            (Ending::NeverGood, _) => "not even the lowest load of the range meets the objectives".to_owned(),
            (Ending::Unconfirmed, _) => {
                "no load could be confirmed: short steps and long ones contradict each other".to_owned()
            }
            (Ending::Swept, _) => "every level was driven".to_owned(),
            (Ending::Interrupted, None) => "ended early, before any load was good".to_owned(),
            (_, None) => "nothing could be measured from here".to_owned(),
        }
    }

    /// The lowest and the highest knee.
    fn range(&self) -> Option<(f64, f64)> {
        let low = self.knees.iter().copied().reduce(f64::min)?;
        Some((low, self.knees.iter().copied().reduce(f64::max)?))
    }

    /// What it came to, line by line: a name and its value.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("capacity", self.answer())];
        if let (Some((low, high)), Some(spread)) = (self.range(), spread_ratio(&self.knees)) {
            let percent = units::percent(spread);
            let (count, low, high) = (self.knees.len(), self.load(low), self.load(high));
            lines.push(("knees", format!("{count} found, {low} to {high} (spread {percent})")));
        }
        if let Some(limit) = &self.limit {
            lines.push(("limited by", format!("{}: {}", limit.kind.title(), limit.cause)));
            lines.push(("what to do", limit.cure.clone()));
        }
        if let Some(per_core) = self.msgs_per_s_per_server_core {
            lines.push((
                "each core",
                format!("{} for each core that the server used", units::rate(per_core, "msg")),
            ));
        }
        if let Some(cost) = &self.connection {
            let octets = |octets: Option<f64>| {
                octets.map_or("unseen".to_owned(), |octets| format!("{octets:.0} octets"))
            };
            lines.push((
                "a connection",
                format!(
                    "{} of the server and {} of the kernel for its end (from {} connections)",
                    octets(cost.server_octets),
                    octets(cost.kernel_octets),
                    units::count(cost.connections)
                ),
            ));
        }
        if let Some(fit) = &self.law {
            lines.push((
                "law",
                format!(
                    "X(N) = {:.0} N / (1 + {:.4} (N-1) + {:.3e} N (N-1)) msg/s; alpha {:.4} to {:.4}, beta {:.2e} to {:.2e} \
                     (95 %), residuals {}",
                    fit.law.gamma_msgs_per_s,
                    fit.law.alpha,
                    fit.law.beta,
                    fit.alpha.low,
                    fit.alpha.high,
                    fit.beta.low,
                    fit.beta.high,
                    units::percent(fit.residual_ratio)
                ),
            ));
            for prediction in &fit.predictions {
                let x = prediction.x_msgs_per_s;
                let shown = [x.value, x.low, x.high].map(|x| units::rate(x, "msg"));
                let text =
                    format!("at N = {}: {} ({} to {}, 95 %)", prediction.n, shown[0], shown[1], shown[2]);
                lines.push(("prediction", text));
            }
        }
        if let Some(why) = &self.law_refused {
            lines.push(("no law", why.clone()));
        }
        lines
    }
}

/// How far the highest of some knees is above the lowest; none without a knee.
pub fn spread_ratio(knees: &[f64]) -> Option<f64> {
    let low = knees.iter().copied().reduce(f64::min).filter(|low| *low > 0.0)?;
    Some(knees.iter().copied().fold(low, f64::max) / low - 1.0)
}

/// A load with its unit.
pub fn show_load(over: Over, load: f64) -> String {
    let count = units::count(load.round() as u64);
    match over {
        Over::Rate => units::rate(load, "msg"),
        Over::Connections => format!("{count} connections"),
        Over::Subscribers => format!("{count} subscribers"),
        Over::InFlight => format!("{count} in flight"),
    }
}

/// A step of a search from its judged result.
pub fn step(over: Over, load: f64, result: &RunResult, seen: Seen) -> SearchStep {
    let seen = Seen {
        server_rss_octets: highest_rss(result),
        server_cpu_percent: rates::server_cpu_percent(result),
        ..seen
    };
    let recorder = result.recorder(result.plan.headline());
    let latency_ns = recorder.map_or_else(BTreeMap::new, |recorder| {
        let known = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
        known.map(|(name, quantile)| (name.to_owned(), recorder.quantile_ns(quantile))).into()
    });
    SearchStep {
        over,
        load,
        achieved_msgs_per_s: result.achieved_per_s(),
        latency_ns,
        verdict: result.verdict.kind,
        cause: result.verdict.cause.clone(),
        measured_s: result.measured_s,
        connections: if result.plan.mode == Mode::Connect { 0 } else { result.plan.connections },
        limit: limit(result, &seen),
        seen,
        ..SearchStep::default()
    }
}

fn highest_rss(result: &RunResult) -> Option<u64> {
    result.intervals.iter().filter_map(|interval| interval.sample.server_rss_octets).max()
}
