//! The verdict: whether the numbers of a run are the server's, and what they say.
//!
//! The rules, and why each is as it is, are in docs/verdict.md; every threshold is a constant here. Findings are
//! gathered by one function a rule; the weightiest kind decides, in this order: ENVIRONMENT-LIMITED (a cause below
//! everything else), GENERATOR-LIMITED, SLO-MISS, TOO-FEW-SAMPLES, VALID. A rule compares shares of what is
//! reported, never absolute times: 50 µs of lag are nothing beside 5 ms and everything beside 60 µs.

use super::kernel_events::{Costs, EVENTS, Sign};
use super::model::{
    Finding, FindingKind, Interval, Load, Mode, RunResult, SloOutcome, SloResult, Verdict, VerdictKind,
    Weight,
};
use super::rates;
use super::recorder::Metric;
use super::slo::{self, Slo};
use super::units::{count, latency_ns, percent, percentile, rate};

/// Schedule lag decides when it is this share of the reported latency, at the same percentile.
pub const LAG_SHARE_DECIDES: f64 = 0.25;
/// Schedule lag is noted from this share on.
pub const LAG_SHARE_NOTED: f64 = 0.10;
/// The machine's stalls decide when they are this share of the reported latency: not every stall meets a message.
pub const STALL_SHARE_DECIDES: f64 = 0.50;
/// The machine's stalls are noted from this share on.
pub const STALL_SHARE_NOTED: f64 = 0.25;
/// A load thread busier than this (percent of a core) stamps receipts late without any lag showing.
pub const THREAD_BUSY_DECIDES_PERCENT: f64 = 90.0;
/// A load thread busier than this is noted.
pub const THREAD_BUSY_NOTED_PERCENT: f64 = 75.0;
/// The share of the offered load that must have been sent, and answered in time.
pub const ACHIEVED_SHARE_MIN: f64 = 0.99;
/// Kernel events decide when they are this share of the samples beyond the strictest percentile asked for.
pub const EVENT_SHARE_OF_TAIL_DECIDES: f64 = 0.10;
/// What a lost segment costs at least: TCP's smallest retransmission timeout, unless faster recovery hides it, ns.
pub const RETRANSMISSION_TIMEOUT_MIN_NS: u64 = 200_000_000;
/// Samples beyond a percentile below which it is not used as evidence.
const EVIDENCE_SAMPLES_MIN: f64 = 10.0;

/// Judges a result: fills in its `slos` and its `verdict`.
pub fn judge(result: &mut RunResult, slos: &[Slo]) {
    let mut came_to = vec![slo::integrity(result, slos)];
    came_to.extend(slos.iter().map(|slo| slo.evaluate(result)));
    result.verdict = verdict(result, slos, &came_to);
    result.slos = came_to;
}

fn verdict(result: &RunResult, slos: &[Slo], came_to: &[SloResult]) -> Verdict {
    let quantiles = quantiles_of_interest(result, slos);
    let mut findings = Vec::new();
    findings.extend(exhausted_limits(result));
    findings.extend(kernel_events(result, &quantiles));
    findings.extend(busy_threads(result));
    let generator_busy =
        findings.iter().any(|f: &Finding| f.kind == FindingKind::LoadThreadBusy && f.decides());
    findings.extend(machine_stalls(result, &quantiles, generator_busy));
    findings.extend(schedule_lag(result, &quantiles));
    findings.extend(not_sent(result));
    findings.extend(server_fell_behind(result));
    findings.extend(connections_missing(result));
    findings.extend(came_to.iter().filter_map(objective));
    findings.extend(remarks(result));
    findings.sort_by_key(|finding| (finding.weight, rank(finding.verdict)));
    match findings.first().filter(|first| first.decides()) {
        Some(decisive) => Verdict {
            kind: decisive.verdict,
            cause: decisive.cause.clone(),
            cure: decisive.cure.clone(),
            findings,
        },
        None => Verdict {
            kind: VerdictKind::Valid,
            cause: why_valid(result, came_to),
            cure: String::new(),
            findings,
        },
    }
}

/// The order in which kinds decide: a cause below another explains it.
fn rank(kind: VerdictKind) -> u8 {
    match kind {
        VerdictKind::EnvironmentLimited => 0,
        VerdictKind::GeneratorLimited => 1,
        VerdictKind::SloMiss => 2,
        VerdictKind::TooFewSamples => 3,
        VerdictKind::Valid => 4,
    }
}

/// The verdict that a kind of finding speaks for.
fn speaks_for(kind: FindingKind) -> VerdictKind {
    match kind {
        FindingKind::SourcePortsExhausted
        | FindingKind::DescriptorsExhausted
        | FindingKind::KernelMemoryExhausted
        | FindingKind::KernelEvent
        | FindingKind::MachineStalled => VerdictKind::EnvironmentLimited,
        FindingKind::LoadThreadBusy | FindingKind::ScheduleLag | FindingKind::ScheduleNotSent => {
            VerdictKind::GeneratorLimited
        }
        FindingKind::ServerFellBehind | FindingKind::ConnectionsMissing | FindingKind::ObjectiveMissed => {
            VerdictKind::SloMiss
        }
        FindingKind::ObjectiveUndecided => VerdictKind::TooFewSamples,
        FindingKind::ClosedLoop
        | FindingKind::EndedEarly
        | FindingKind::ValuesSaturated
        | FindingKind::Unknown => VerdictKind::Valid,
    }
}

fn finding(kind: FindingKind, weight: Weight, cause: String, cure: &str) -> Finding {
    let (verdict, cure) = (speaks_for(kind), cure.to_owned());
    Finding { kind, verdict, weight, cause, cure, counter: None, objective: None }
}

/// p99 and every percentile an objective asks of the headline metric.
fn quantiles_of_interest(result: &RunResult, slos: &[Slo]) -> Vec<f64> {
    let headline = result.plan.headline();
    let asked = slos.iter().filter_map(|slo| slo.quantile(headline));
    let mut quantiles: Vec<f64> = asked.filter(|(metric, _)| *metric == headline).map(|(_, q)| q).collect();
    quantiles.push(0.99);
    quantiles.sort_by(f64::total_cmp);
    quantiles.dedup();
    quantiles
}

/// Errors that say a limit of this machine was reached: the plan was not carried out, whatever the numbers say.
fn exhausted_limits(result: &RunResult) -> Vec<Finding> {
    let limits = EVENTS.iter().filter_map(|event| match event.sign {
        Sign::Error(kind) => Some((event, result.totals.errors.of(kind))),
        Sign::Counter(_) => None,
    });
    let reached = limits.filter(|(_, times)| *times > 0);
    reached
        .map(|(event, times)| {
            let cause = format!("{} {}", count(times), event.what);
            finding(event.kind, Weight::Decides, cause, event.cure)
        })
        .collect()
}

/// Kernel counters that rose. They decide when they could make up a tenth of the samples beyond the strictest
/// percentile asked for (p99.9 unless an objective is stricter). The counters are the machine's, and other programs move
/// them too: a loss decides only where that many latencies are as long as a retransmission takes.
fn kernel_events(result: &RunResult, quantiles: &[f64]) -> Vec<Finding> {
    let strictest = quantiles.iter().copied().fold(0.999, f64::max);
    let share_decides = (1.0 - strictest) * EVENT_SHARE_OF_TAIL_DECIDES;
    let overflows = result.kernel.delta("TcpExt.ListenOverflows");
    let measured_connects = result.plan.mode == Mode::Connect || result.plan.churn_per_s > 0.0;
    let mut findings = Vec::new();
    for event in EVENTS {
        let Sign::Counter(name) = event.sign else { continue };
        let moved = result.kernel.delta(name);
        // Every overflow of the accept queue is also counted as a drop.
        if moved == 0 || (name == "TcpExt.ListenDrops" && moved <= overflows) {
            continue;
        }
        let operations = match event.costs {
            Costs::Connect if measured_connects => result.totals.connects,
            Costs::Connect => u64::MAX,
            Costs::Connection => 0,
            Costs::Message => result.totals.sent + result.totals.expected,
        };
        let seen = event.costs != Costs::Message || slow_share(result) >= share_decides;
        let decides = seen && moved as f64 >= share_decides * operations as f64;
        let weight = if decides { Weight::Decides } else { Weight::Note };
        let cause = format!("{name} +{}{}: {}", count(moved), peak(result, name), event.what);
        let counter = Some(name.to_owned());
        findings.push(Finding { counter, ..finding(event.kind, weight, cause, event.cure) });
    }
    findings
}

/// The share of messages that took as long as a retransmission.
fn slow_share(result: &RunResult) -> f64 {
    let Some(recorder) = result.recorder(result.plan.headline()) else { return 0.0 };
    let histogram = recorder.histogram();
    let slow = histogram.count_between(RETRANSMISSION_TIMEOUT_MIN_NS, recorder.max_ns());
    if recorder.max_ns() < RETRANSMISSION_TIMEOUT_MIN_NS {
        0.0
    } else {
        slow as f64 / recorder.count() as f64
    }
}

/// Where on the timeline most of a counter's rise was.
fn peak(result: &RunResult, name: &str) -> String {
    let moved = |interval: &Interval| interval.sample.kernel_deltas.get(name).copied().unwrap_or(0);
    let highest = rates::measured(&result.intervals).max_by_key(|interval| moved(interval));
    match highest.filter(|interval| moved(interval) > 0) {
        Some(interval) => {
            format!(" (+{} at t = {} s)", count(moved(interval)), interval.start_ms as f64 / 1000.0)
        }
        None => String::new(),
    }
}

/// Open loop: a busy thread stamps receipts late. Closed loop: a busy generator measures itself, unless the
/// server was seen to be at least as busy.
fn busy_threads(result: &RunResult) -> Option<Finding> {
    let threads = result.generator_threads.iter();
    let busiest = threads.max_by(|a, b| a.cpu_percent.total_cmp(&b.cpu_percent))?;
    let busy = format!("load thread {} was {:.0} % busy", busiest.name, busiest.cpu_percent);
    let cure = "give it more --threads and cores of its own, or generate from a second machine and merge";
    let busy_thread = FindingKind::LoadThreadBusy;
    if matches!(result.plan.load, Load::Closed { .. }) {
        if busiest.cpu_percent < THREAD_BUSY_DECIDES_PERCENT {
            return None;
        }
        let server = rates::server_cpu_percent(result);
        return Some(match server {
            Some(server) if server >= THREAD_BUSY_DECIDES_PERCENT => {
                let cause = format!("{busy}, and so was the server ({server:.0} % of a core)");
                finding(busy_thread, Weight::Note, cause, "")
            }
            Some(server) => {
                let cause = format!(
                    "{busy} while the server used {server:.0} % of a core: the rate is the generator's"
                );
                finding(busy_thread, Weight::Decides, cause, cure)
            }
            None => {
                let cause =
                    format!("{busy}, and nothing is known of the server: the rate may be the generator's");
                let cure = "show the server's CPU with --server-pid, or give the generator more --threads";
                finding(busy_thread, Weight::Decides, cause, cure)
            }
        });
    }
    let weight = match busiest.cpu_percent {
        busy if busy > THREAD_BUSY_DECIDES_PERCENT => Weight::Decides,
        busy if busy > THREAD_BUSY_NOTED_PERCENT => Weight::Note,
        _ => return None,
    };
    Some(finding(busy_thread, weight, format!("{busy}: it stamps what it receives late"), cure))
}

/// A metric's quantile, where enough samples lie beyond it to be evidence.
fn evident_quantile_ns(result: &RunResult, metric: Metric, quantile: f64) -> Option<u64> {
    let recorder = result.recorder(metric)?;
    let beyond = recorder.count() as f64 * (1.0 - quantile);
    (beyond >= EVIDENCE_SAMPLES_MIN).then(|| recorder.quantile_ns(quantile))
}

/// The worst share that `part` has of the headline latency over the quantiles: (share, quantile, part, whole).
fn worst_share(
    result: &RunResult,
    quantiles: &[f64],
    part: impl Fn(f64) -> Option<u64>,
) -> Option<(f64, f64, u64, u64)> {
    let headline = result.plan.headline();
    let shares = quantiles.iter().filter_map(|quantile| {
        let whole = evident_quantile_ns(result, headline, *quantile)?;
        let part = part(*quantile)?;
        Some((part as f64 / whole.max(1) as f64, *quantile, part, whole))
    });
    shares.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// The machine stopped running programs for a while: a thread that only sleeps woke late, beyond its usual lateness.
fn machine_stalls(result: &RunResult, quantiles: &[f64], generator_busy: bool) -> Option<Finding> {
    let usual_ns = result.recorder(Metric::Hiccup)?.quantile_ns(0.5);
    let stall =
        |quantile| Some(evident_quantile_ns(result, Metric::Hiccup, quantile)?.saturating_sub(usual_ns));
    let (share, quantile, stall_ns, whole_ns) = worst_share(result, quantiles, stall)?;
    if share < STALL_SHARE_NOTED {
        return None;
    }
    // A generator that takes whole cores stalls the meter itself.
    let decides = share >= STALL_SHARE_DECIDES && !generator_busy;
    let cause = format!(
        "the machine stalled: a sleeping thread woke {} late at {}, {} of the {} {} reported",
        latency_ns(stall_ns),
        percentile(quantile),
        percent(share),
        result.plan.headline().title(),
        latency_ns(whole_ns),
    );
    let cure =
        "leave a core free (fewer --threads), stop what else runs, and look at CPU quotas and steal time";
    let weight = if decides { Weight::Decides } else { Weight::Note };
    Some(finding(FindingKind::MachineStalled, weight, cause, cure))
}

/// What the generator was late by is part of the latency it reports.
fn schedule_lag(result: &RunResult, quantiles: &[f64]) -> Option<Finding> {
    result.plan.offered_msgs_per_s()?;
    let lag = |quantile| evident_quantile_ns(result, Metric::Lag, quantile);
    let (share, quantile, lag_ns, whole_ns) = worst_share(result, quantiles, lag)?;
    if share < LAG_SHARE_NOTED {
        return None;
    }
    let name = percentile(quantile);
    let cause = format!(
        "schedule lag {name} {} is {} of the {} {name} {} reported",
        latency_ns(lag_ns),
        percent(share),
        result.plan.headline().title(),
        latency_ns(whole_ns),
    );
    let cure = "give the generator more --threads and cores of its own, or lower --rate; the service time is not affected";
    let weight = if share >= LAG_SHARE_DECIDES { Weight::Decides } else { Weight::Note };
    Some(finding(FindingKind::ScheduleLag, weight, cause, cure))
}

/// The generator did not send what the schedule asked for.
fn not_sent(result: &RunResult) -> Option<Finding> {
    let ratio = result.sent_ratio().filter(|ratio| *ratio < ACHIEVED_SHARE_MIN)?;
    let totals = &result.totals;
    let skipped = match totals.skipped {
        0 => String::new(),
        skipped => format!(", {} skipped because it was late", count(skipped)),
    };
    let begun = if result.plan.mode == Mode::Connect { totals.connects } else { totals.sent };
    let cause = format!(
        "the generator sent {} of {} scheduled ({}){skipped}",
        count(begun),
        count(totals.scheduled),
        percent(ratio)
    );
    let cure = "give it more --threads, or lower --rate";
    Some(finding(FindingKind::ScheduleNotSent, Weight::Decides, cause, cure))
}

/// Everything was sent, but not answered in time: the latencies then say how long the run was, not how the server is.
fn server_fell_behind(result: &RunResult) -> Option<Finding> {
    let achieved = result.achieved_ratio().filter(|ratio| *ratio < ACHIEVED_SHARE_MIN)?;
    if result.sent_ratio().is_some_and(|sent| sent < ACHIEVED_SHARE_MIN) {
        return None;
    }
    let growth = rates::in_flight_growth(&result.intervals).unwrap_or(0);
    let grown = match growth {
        1.. => format!(", and messages in flight grew by {}", count(growth.unsigned_abs())),
        _ => String::new(),
    };
    let offered = result.plan.offered_msgs_per_s().unwrap_or(0.0);
    let cause = format!(
        "the server did not keep up: it achieved {} of {} offered{grown}; its percentiles grow with the run",
        percent(achieved),
        rate(offered, "msg"),
    );
    let cure = "lower --rate below what the server can do, or find that point with search";
    Some(finding(FindingKind::ServerFellBehind, Weight::Decides, cause, cure))
}

/// The server carried fewer connections than the plan says.
fn connections_missing(result: &RunResult) -> Option<Finding> {
    if result.plan.mode == Mode::Connect {
        return None;
    }
    let open = rates::measured(&result.intervals).map(|interval| interval.connections_open).max()?;
    if open as f64 >= ACHIEVED_SHARE_MIN * result.plan.connections as f64 {
        return None;
    }
    let errors: Vec<String> =
        result.totals.errors.iter().map(|(kind, n)| format!("{} {}", count(n), kind.name())).collect();
    let why = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join(", ")) };
    let cause =
        format!("only {} of {} connections were ever open{why}", count(open), count(result.plan.connections));
    let cure = "look at what the server says to the others, or ask for fewer with -c";
    Some(finding(FindingKind::ConnectionsMissing, Weight::Decides, cause, cure))
}

fn objective(slo: &SloResult) -> Option<Finding> {
    let (kind, cure) = match slo.outcome {
        SloOutcome::Pass => return None,
        SloOutcome::Fail => (
            FindingKind::ObjectiveMissed,
            "the numbers are the server's: lower the load, or improve the server",
        ),
        SloOutcome::TooFewSamples => {
            (FindingKind::ObjectiveUndecided, "run longer (-d), raise the rate, or merge several runs")
        }
    };
    let objective = Some(slo.expression.clone());
    Some(Finding { objective, ..finding(kind, Weight::Decides, slo.sentence(), cure) })
}

/// What a reader should know, whatever the verdict.
fn remarks(result: &RunResult) -> Vec<Finding> {
    let mut remarks = Vec::new();
    let mut note = |kind, cause: String, cure: &str| remarks.push(finding(kind, Weight::Note, cause, cure));
    if matches!(result.plan.load, Load::Closed { .. }) {
        let cause = "closed loop: each send waits for a reply, so a stall delays few messages; \
                     these latencies are not what users at a steady rate would see";
        note(FindingKind::ClosedLoop, cause.to_owned(), "for latency, drive an open loop with --rate");
    }
    if result.interrupted {
        note(FindingKind::EndedEarly, "the run was ended early".to_owned(), "");
    }
    for (metric, recorder) in &result.histograms {
        let saturated = recorder.saturated_count();
        if saturated > 0 {
            let values = if saturated == 1 { "value" } else { "values" };
            let title = metric.title();
            let cause = format!("{} {values} of {title} above 60 s, recorded as 60 s", count(saturated));
            note(FindingKind::ValuesSaturated, cause, "");
        }
    }
    remarks
}

fn why_valid(result: &RunResult, came_to: &[SloResult]) -> String {
    let mut reasons = Vec::new();
    let headline = result.plan.headline();
    let lag = result.plan.offered_msgs_per_s().and_then(|_| evident_quantile_ns(result, Metric::Lag, 0.99));
    if let (Some(lag_ns), Some(whole_ns)) = (lag, evident_quantile_ns(result, headline, 0.99)) {
        let (lag, whole) = (latency_ns(lag_ns), latency_ns(whole_ns));
        reasons.push(format!(
            "the generator kept its schedule (lag p99 {lag} beside a {} p99 of {whole})",
            headline.title()
        ));
    }
    let busiest = result.generator_threads.iter().map(|thread| thread.cpu_percent);
    if let Some(busiest) = busiest.max_by(f64::total_cmp) {
        reasons.push(format!("its threads were at most {busiest:.0} % busy"));
    }
    if !result.kernel.counters_after.is_empty() {
        reasons.push("no kernel counter says otherwise".to_owned());
    }
    match came_to.len() {
        0 => {}
        1 => reasons.push(came_to[0].why.clone()),
        all => reasons.push(format!("all {all} objectives were met")),
    }
    reasons.join(", ")
}
