//! The verdict: whether the numbers of a run are the server's, and what they say.
//!
//! The rules, and why each is as it is, are in docs/verdict.md; every threshold is a constant here. Findings are
//! gathered by one function a rule; the weightiest kind decides, in this order: ENVIRONMENT-LIMITED (a cause below
//! everything else), GENERATOR-LIMITED, SLO-MISS, TOO-FEW-SAMPLES, VALID. A rule compares shares of what is
//! reported, never absolute times: 50 µs of lag are nothing beside 5 ms and everything beside 60 µs.

use super::model::{
    Finding, Load, Mode, Phase, RunResult, SloOutcome, SloResult, Verdict, VerdictKind, Weight,
};
use super::rates;
use super::recorder::{ErrorKind, Metric};
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
        findings.iter().any(|f: &Finding| f.kind == VerdictKind::GeneratorLimited && f.decides());
    findings.extend(machine_stalls(result, &quantiles, generator_busy));
    findings.extend(schedule_lag(result, &quantiles));
    findings.extend(not_sent(result));
    findings.extend(server_fell_behind(result));
    findings.extend(connections_missing(result));
    findings.extend(came_to.iter().filter_map(objective));
    findings.extend(remarks(result));
    findings.sort_by_key(|finding| (finding.weight, rank(finding.kind)));
    match findings.first().filter(|finding| finding.decides()) {
        Some(decisive) => Verdict {
            kind: decisive.kind,
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

impl Verdict {
    /// What was noticed besides what decided the verdict and besides the objectives, which are listed on their own.
    pub fn also_noticed<'a>(&'a self, slos: &'a [SloResult]) -> impl Iterator<Item = &'a Finding> {
        let is_objective = |finding: &Finding| slos.iter().any(|slo| finding.cause == slo.sentence());
        self.findings.iter().filter(move |finding| finding.cause != self.cause && !is_objective(finding))
    }
}

impl Finding {
    fn new(kind: VerdictKind, weight: Weight, cause: String, cure: &str) -> Self {
        Finding { kind, weight, cause, cure: cure.to_owned() }
    }

    fn decides(&self) -> bool {
        self.weight == Weight::Decides
    }
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
    const LIMITS: [(ErrorKind, &str, &str); 3] = [
        (
            ErrorKind::AddressNotAvailable,
            "connects found no free source port (EADDRNOTAVAIL)",
            "give more source addresses (--source 127.0.0.1-127.0.0.40), or widen net.ipv4.ip_local_port_range",
        ),
        (
            ErrorKind::DescriptorsExhausted,
            "sockets could not be opened for want of descriptors (EMFILE or ENFILE)",
            "raise nofile (ulimit -n) above the connections wanted, and fs.nr_open and fs.file-max with it",
        ),
        (
            ErrorKind::KernelMemory,
            "socket operations were refused for want of kernel memory (ENOBUFS or ENOMEM)",
            "raise net.ipv4.tcp_mem, or hold fewer connections",
        ),
    ];
    let seen = LIMITS.into_iter().filter(|(kind, ..)| result.totals.errors.of(*kind) > 0);
    seen.map(|(kind, what, cure)| {
        let cause = format!("{} {what}", count(result.totals.errors.of(kind)));
        Finding::new(VerdictKind::EnvironmentLimited, Weight::Decides, cause, cure)
    })
    .collect()
}

/// What an event of the kernel costs.
#[derive(Clone, Copy, PartialEq)]
enum Costs {
    /// A connection attempt: a second or more until the SYN is sent again.
    Connect,
    /// A segment: a retransmission, for it and all behind it.
    Message,
    /// Connections that were up.
    Connection,
}

const KERNEL_EVENTS: [(&str, Costs, &str, &str); 11] = [
    (
        "TcpExt.ListenOverflows",
        Costs::Connect,
        "the server's accept queue was full",
        "raise the server's listen backlog and net.core.somaxconn, or accept faster",
    ),
    (
        "TcpExt.ListenDrops",
        Costs::Connect,
        "SYNs to a listener were dropped",
        "raise the server's listen backlog and net.core.somaxconn, or accept faster",
    ),
    (
        "TcpExt.TCPReqQFullDrop",
        Costs::Connect,
        "the SYN backlog was full and SYNs were dropped",
        "raise net.ipv4.tcp_max_syn_backlog and the listen backlog, or turn net.ipv4.tcp_syncookies on",
    ),
    (
        "TcpExt.TCPReqQFullDoCookies",
        Costs::Connect,
        "the SYN backlog was full and SYN cookies were sent",
        "raise net.ipv4.tcp_max_syn_backlog and the listen backlog",
    ),
    (
        "TcpExt.TCPTimeWaitOverflow",
        Costs::Connect,
        "TIME_WAIT sockets were beyond their limit",
        "raise net.ipv4.tcp_max_tw_buckets",
    ),
    (
        "TcpExt.TCPAbortOnMemory",
        Costs::Connection,
        "connections were aborted for want of TCP memory",
        "raise net.ipv4.tcp_mem, or hold fewer connections",
    ),
    (
        "softnet.dropped",
        Costs::Message,
        "packets were dropped because a CPU's backlog was full",
        "raise net.core.netdev_max_backlog, or spread receive work over more CPUs (RPS)",
    ),
    (
        "TcpExt.TCPBacklogDrop",
        Costs::Message,
        "segments were dropped because a socket's backlog was full",
        "raise net.ipv4.tcp_rmem and net.core.rmem_max",
    ),
    (
        "TcpExt.TCPRcvQDrop",
        Costs::Message,
        "segments were dropped because a receive queue was full",
        "raise net.ipv4.tcp_rmem and net.ipv4.tcp_mem",
    ),
    (
        "TcpExt.TCPTimeouts",
        Costs::Message,
        "retransmission timers expired",
        "look for loss on the path (ip -s link, ethtool -S), or lower the load",
    ),
    (
        "Tcp.RetransSegs",
        Costs::Message,
        "segments were sent again",
        "look for loss on the path (ip -s link, ethtool -S), or lower the load",
    ),
];

/// Whether a kernel counter is one that should stand still while load is driven.
pub fn is_watched(counter: &str) -> bool {
    KERNEL_EVENTS.iter().any(|(name, ..)| *name == counter)
}

/// Kernel counters that rose. They decide when they could make up a tenth of the samples beyond the strictest
/// percentile asked for (p99.9 unless an objective is stricter). The counters are the machine's, not the run's alone, so
/// a loss decides only where that many latencies are as long as a retransmission takes.
fn kernel_events(result: &RunResult, quantiles: &[f64]) -> Vec<Finding> {
    let strictest = quantiles.iter().copied().fold(0.999, f64::max);
    let share_decides = (1.0 - strictest) * EVENT_SHARE_OF_TAIL_DECIDES;
    let overflows = result.kernel.delta("TcpExt.ListenOverflows");
    let mut findings = Vec::new();
    for (name, costs, what, cure) in KERNEL_EVENTS {
        let moved = result.kernel.delta(name);
        // Every overflow of the accept queue is also counted as a drop.
        if moved == 0 || (name == "TcpExt.ListenDrops" && moved <= overflows) {
            continue;
        }
        let measured_connects = result.plan.mode == Mode::Connect || result.plan.churn_per_s > 0.0;
        let operations = match costs {
            Costs::Connect if measured_connects => result.totals.connects,
            Costs::Connect => u64::MAX,
            Costs::Connection => 0,
            Costs::Message => result.totals.sent + result.totals.expected,
        };
        let seen = costs != Costs::Message || slow_share(result) >= share_decides;
        let decides = seen && moved as f64 >= share_decides * operations as f64;
        let weight = if decides { Weight::Decides } else { Weight::Note };
        let cause = format!("{name} +{}{}: {what}", count(moved), peak(result, name));
        findings.push(Finding::new(VerdictKind::EnvironmentLimited, weight, cause, cure));
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
    let moved =
        |interval: &super::model::Interval| interval.sample.kernel_deltas.get(name).copied().unwrap_or(0);
    let measured = result.intervals.iter().filter(|interval| interval.phase == Phase::Measure);
    match measured.max_by_key(|interval| moved(interval)).filter(|interval| moved(interval) > 0) {
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
    let generator = VerdictKind::GeneratorLimited;
    if matches!(result.plan.load, Load::Closed { .. }) {
        if busiest.cpu_percent < THREAD_BUSY_DECIDES_PERCENT {
            return None;
        }
        let server = rates::server_cpu_percent(result);
        return Some(match server {
            Some(server) if server >= THREAD_BUSY_DECIDES_PERCENT => {
                let cause = format!("{busy}, and so was the server ({server:.0} % of a core)");
                Finding::new(generator, Weight::Note, cause, "")
            }
            Some(server) => {
                let cause = format!(
                    "{busy} while the server used {server:.0} % of a core: the rate is the generator's"
                );
                Finding::new(generator, Weight::Decides, cause, cure)
            }
            None => {
                let cause =
                    format!("{busy}, and nothing is known of the server: the rate may be the generator's");
                let cure = "show the server's CPU with --server-pid, or give the generator more --threads";
                Finding::new(generator, Weight::Decides, cause, cure)
            }
        });
    }
    let weight = match busiest.cpu_percent {
        busy if busy > THREAD_BUSY_DECIDES_PERCENT => Weight::Decides,
        busy if busy > THREAD_BUSY_NOTED_PERCENT => Weight::Note,
        _ => return None,
    };
    Some(Finding::new(generator, weight, format!("{busy}: it stamps what it receives late"), cure))
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
    Some(Finding::new(VerdictKind::EnvironmentLimited, weight, cause, cure))
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
    Some(Finding::new(VerdictKind::GeneratorLimited, weight, cause, cure))
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
    Some(Finding::new(VerdictKind::GeneratorLimited, Weight::Decides, cause, cure))
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
    Some(Finding::new(VerdictKind::SloMiss, Weight::Decides, cause, cure))
}

/// The server carried fewer connections than the plan says.
fn connections_missing(result: &RunResult) -> Option<Finding> {
    if result.plan.mode == Mode::Connect {
        return None;
    }
    let measured = result.intervals.iter().filter(|interval| interval.phase == Phase::Measure);
    let open = measured.map(|interval| interval.connections_open).max()?;
    if open as f64 >= ACHIEVED_SHARE_MIN * result.plan.connections as f64 {
        return None;
    }
    let errors: Vec<String> =
        result.totals.errors.iter().map(|(kind, n)| format!("{} {}", count(n), kind.name())).collect();
    let why = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join(", ")) };
    let cause =
        format!("only {} of {} connections were ever open{why}", count(open), count(result.plan.connections));
    let cure = "look at what the server says to the others, or ask for fewer with -c";
    Some(Finding::new(VerdictKind::SloMiss, Weight::Decides, cause, cure))
}

fn objective(slo: &SloResult) -> Option<Finding> {
    let cause = slo.sentence();
    match slo.outcome {
        SloOutcome::Pass => None,
        SloOutcome::Fail => {
            let cure = "the numbers are the server's: lower the load, or improve the server";
            Some(Finding::new(VerdictKind::SloMiss, Weight::Decides, cause, cure))
        }
        SloOutcome::TooFewSamples => {
            let cure = "run longer (-d), raise the rate, or merge several runs";
            Some(Finding::new(VerdictKind::TooFewSamples, Weight::Decides, cause, cure))
        }
    }
}

/// What a reader should know, whatever the verdict.
fn remarks(result: &RunResult) -> Vec<Finding> {
    let mut remarks = Vec::new();
    let mut note =
        |cause: String, cure: &str| remarks.push(Finding::new(VerdictKind::Valid, Weight::Note, cause, cure));
    if matches!(result.plan.load, Load::Closed { .. }) {
        let cause = "closed loop: each send waits for a reply, so a stall delays few messages; \
                     these latencies are not what users at a steady rate would see";
        note(cause.to_owned(), "for latency, drive an open loop with --rate");
    }
    if result.interrupted {
        note("the run was ended early".to_owned(), "");
    }
    for (metric, recorder) in &result.histograms {
        if recorder.saturated_count() > 0 {
            let saturated = count(recorder.saturated_count());
            note(format!("{saturated} values of {} were above 60 s and count as 60 s", metric.title()), "");
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
