//! What a search over load came to: the knee and its spread, what limited it, what a connection and a message cost,
//! and every step with its verdict.
//!
//! [`limit`] says what stopped a step; it only reads the step's result and what was seen of the machine meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{Mode, Phase, RunResult, VerdictKind};
use super::recorder::ErrorKind;
use super::units;
use super::usl::Fit;

/// A server whose busy threads use more than this share of their cores has no CPU left, percent.
pub const SERVER_BUSY_PERCENT: f64 = 90.0;
/// A machine busier than this has no CPU left, whoever uses it, percent.
pub const MACHINE_BUSY_PERCENT: f64 = 95.0;

/// One step of a search over load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// What was varied: `rate`, `connections`, `subscribers` or `in-flight`.
    pub over: String,
    /// Its value in this step (messages/s, or a count).
    pub load: f64,
    /// What was achieved, messages/s.
    pub achieved_msgs_per_s: f64,
    /// Exact percentiles of the headline metric, ns, by name (`p50`, `p99`, `p99.9`, `max`).
    pub latency_ns: BTreeMap<String, u64>,
    /// This step's verdict.
    pub verdict: VerdictKind,
    /// Why, in a sentence.
    pub cause: String,
    /// Whether every objective was met: the verdict is VALID, or it is for lateness that was met in spite of.
    #[serde(default)]
    pub good: bool,
    /// Whether it is the highest load found to be good.
    #[serde(default)]
    pub knee: bool,
    /// What it was for: `grow`, `bisect`, `confirm` or `sweep`.
    #[serde(default)]
    pub purpose: String,
    /// The repetition it belongs to, from 1.
    #[serde(default)]
    pub round: u32,
    /// Measured part, s.
    #[serde(default)]
    pub measured_s: f64,
    /// How long it was waited before it for TIME_WAIT and queues to drain, s.
    #[serde(default)]
    pub cooldown_s: f64,
    /// Connections held.
    #[serde(default)]
    pub connections: u64,
    /// What was seen of the machine in its measured part.
    #[serde(default)]
    pub seen: Seen,
    /// What stopped it, where something did.
    #[serde(default)]
    pub limit: Option<Limit>,
}

/// The machine in the measured part of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// CPU of the server's process, percent of one core.
    pub server_cpu_percent: Option<f64>,
    /// Threads of the server that did work: at least a fifth of what its busiest did.
    pub server_busy_threads: Option<u32>,
    /// CPU of the machine, whoever used it (or was given it by the hypervisor), percent of all its cores.
    pub machine_cpu_percent: Option<f64>,
    /// Resident memory of the server at its highest, octets.
    pub server_rss_octets: Option<u64>,
    /// The kernel's slabs of sockets, their inodes, files and epoll entries at their highest, octets; both ends of a
    /// connection when the server is on this machine.
    pub socket_slab_octets: Option<u64>,
}

impl Seen {
    /// How much of the cores that the server's busy threads could use was used, percent.
    pub fn server_busy_percent(&self) -> Option<f64> {
        let threads = self.server_busy_threads.filter(|threads| *threads > 0)?;
        Some(self.server_cpu_percent? / f64::from(threads))
    }
}

/// What stops a load from being higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// The server's threads have no CPU left.
    ServerCpu,
    /// All CPUs of the machine are in use, not by the server alone.
    MachineCpu,
    /// The machine stalled, or lost segments: neither is the server's doing.
    Machine,
    /// The load generator.
    Generator,
    /// A queue of the kernel was full.
    KernelQueue,
    /// Open descriptors.
    Descriptors,
    /// Kernel memory.
    Memory,
    /// Source ports.
    Ports,
    /// An objective was missed, and no resource was seen at its end.
    Objective,
}

impl LimitKind {
    /// As printed.
    pub fn title(self) -> &'static str {
        match self {
            LimitKind::ServerCpu => "server CPU",
            LimitKind::MachineCpu => "the machine's CPUs",
            LimitKind::Machine => "stalls or loss",
            LimitKind::Generator => "the generator",
            LimitKind::KernelQueue => "a kernel queue",
            LimitKind::Descriptors => "descriptors",
            LimitKind::Memory => "memory",
            LimitKind::Ports => "source ports",
            LimitKind::Objective => "the objective itself",
        }
    }

    /// Whether it says something about the server and the limits it runs under; otherwise what is above is unknown.
    pub fn is_of_the_server(self) -> bool {
        !matches!(self, LimitKind::Generator | LimitKind::Machine)
    }
}

/// What stopped a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Of which kind.
    pub kind: LimitKind,
    /// The evidence, in a sentence with numbers.
    pub cause: String,
    /// What to do about it.
    pub cure: String,
    /// The kernel's counter that moved, for a kernel queue.
    #[serde(default)]
    pub counter: Option<String>,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The knee was found and confirmed.
    Found,
    /// Even the highest load allowed was good.
    EndOfRange,
    /// Even the lowest load was bad.
    NeverGood,
    /// The generator or the machine was the limit; a knee is a lower bound.
    Unknown,
    /// No load could be confirmed.
    Unconfirmed,
    /// Every level of a sweep was driven.
    Swept,
    /// Ended early.
    Interrupted,
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// What was varied.
    pub over: String,
    /// How it ended.
    pub ending: Ending,
    /// The confirmed knee; where the search ended before that, the highest load that was good.
    pub knee: Option<f64>,
    /// The knee of each repetition.
    pub knees: Vec<f64>,
    /// How far the highest of them is above the lowest: 0.05 is 5 %; absent where there is none.
    #[serde(default)]
    pub spread_ratio: Option<f64>,
    /// Asked for: the lowest bad load is at most this share above a knee.
    pub precision_ratio: f64,
    /// What stops a higher load.
    pub limit: Option<Limit>,
    /// Messages/s for each core that the server used at the knee.
    pub msgs_per_s_per_server_core: Option<f64>,
    /// What a connection costs.
    pub connection: Option<ConnectionCost>,
    /// The law of closed-loop concurrency.
    pub law: Option<Fit>,
    /// Why there is no law.
    pub law_refused: Option<String>,
}

/// What a connection costs, from the step with the most connections against no connection at all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConnectionCost {
    /// Connections it was taken from.
    pub connections: u64,
    /// The server's own memory, octets a connection.
    pub server_octets: Option<f64>,
    /// The kernel's, octets for one end of a connection.
    pub kernel_octets: Option<f64>,
}

/// A counter of the kernel, and the knob of scripts/tune.sh that cures it.
const KNOBS: [(&str, &str); 9] = [
    ("TcpExt.ListenOverflows", "net.core.somaxconn and listen.backlog (resound --backlog)"),
    ("TcpExt.ListenDrops", "net.core.somaxconn and listen.backlog (resound --backlog)"),
    ("TcpExt.TCPReqQFullDrop", "net.ipv4.tcp_max_syn_backlog and listen.backlog (resound --backlog)"),
    ("TcpExt.TCPReqQFullDoCookies", "listen.backlog (resound --backlog)"),
    ("TcpExt.TCPTimeWaitOverflow", "net.ipv4.tcp_max_tw_buckets"),
    ("softnet.dropped", "net.core.netdev_max_backlog"),
    ("TcpExt.TCPBacklogDrop", "net.ipv4.tcp_rmem"),
    ("TcpExt.TCPRcvQDrop", "net.ipv4.tcp_rmem and net.ipv4.tcp_mem"),
    ("TcpExt.TCPAbortOnMemory", "net.ipv4.tcp_mem"),
];

/// What stopped a judged step; `None` if nothing did.
pub fn limit(result: &RunResult, seen: &Seen) -> Option<Limit> {
    let verdict = &result.verdict;
    let because = |kind, cure: String| Limit { kind, cause: verdict.cause.clone(), cure, counter: None };
    let with_tune = |knob: &str| {
        format!(
            "{}: {knob}, see scripts/tune.sh check --connections {}",
            verdict.cure, result.plan.connections
        )
    };
    match verdict.kind {
        VerdictKind::Valid => None,
        VerdictKind::GeneratorLimited => Some(because(LimitKind::Generator, verdict.cure.clone())),
        VerdictKind::EnvironmentLimited => {
            let errors = &result.totals.errors;
            if errors.of(ErrorKind::DescriptorsExhausted) > 0 {
                return Some(because(LimitKind::Descriptors, with_tune("RLIMIT_NOFILE")));
            }
            if errors.of(ErrorKind::AddressNotAvailable) > 0 {
                return Some(because(LimitKind::Ports, with_tune("net.ipv4.ip_local_port_range")));
            }
            if errors.of(ErrorKind::KernelMemory) > 0 {
                return Some(because(LimitKind::Memory, with_tune("net.ipv4.tcp_mem")));
            }
            // A finding about a counter begins with the counter's name.
            let moved =
                KNOBS.into_iter().find(|(counter, _)| verdict.cause.starts_with(&format!("{counter} ")));
            Some(match moved {
                Some((counter, knob)) => {
                    let memory = counter == "TcpExt.TCPAbortOnMemory";
                    let kind = if memory { LimitKind::Memory } else { LimitKind::KernelQueue };
                    Limit { counter: Some(counter.to_owned()), ..because(kind, with_tune(knob)) }
                }
                None => because(LimitKind::Machine, verdict.cure.clone()),
            })
        }
        VerdictKind::SloMiss | VerdictKind::TooFewSamples => Some(of_the_server(result, seen)),
    }
}

/// An objective was missed by the server: for want of what?
fn of_the_server(result: &RunResult, seen: &Seen) -> Limit {
    let missed = &result.verdict.cause;
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
        show_load(&self.over, load)
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
pub fn show_load(over: &str, load: f64) -> String {
    match over {
        "rate" => units::rate(load, "msg"),
        over => format!(
            "{} {}",
            units::count(load.round() as u64),
            if over == "in-flight" { "in flight" } else { over }
        ),
    }
}

/// A step of a search from its judged result.
pub fn step(over: &str, load: f64, result: &RunResult, seen: Seen) -> SearchStep {
    let seen =
        Seen { server_rss_octets: highest_rss(result), server_cpu_percent: server_cpu(result), ..seen };
    let recorder = result.recorder(result.plan.headline());
    let latency_ns = recorder.map_or_else(BTreeMap::new, |recorder| {
        let known = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
        known.map(|(name, quantile)| (name.to_owned(), recorder.quantile_ns(quantile))).into()
    });
    SearchStep {
        over: over.to_owned(),
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

/// The mean over the measured part, percent of a core.
pub fn server_cpu(result: &RunResult) -> Option<f64> {
    let measured = result.intervals.iter().filter(|interval| interval.phase == Phase::Measure);
    let seen: Vec<f64> = measured.filter_map(|interval| interval.sample.server_cpu_percent).collect();
    (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64)
}
