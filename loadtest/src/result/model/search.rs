//! What a search over load came to: every step with its verdict, what limited it, and the answer. The judging is in
//! [`crate::result::capacity`], the words for a surface are in [`crate::result::surface`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::VerdictKind;

/// What a search varies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Messages (in connect mode: connects) a second.
    #[default]
    Rate,
    /// Connections.
    Connections,
    /// Connections that get every publication of a broadcast.
    Subscribers,
    /// Messages in flight of a closed loop.
    InFlight,
}

impl Over {
    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Over::Rate => "rate",
            Over::Connections => "connections",
            Over::Subscribers => "subscribers",
            Over::InFlight => "in-flight",
        }
    }
}

/// What a step of a search is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Growing until an objective is missed.
    Grow,
    /// Between a good and a bad load.
    Bisect,
    /// Longer, at the knee.
    Confirm,
    /// One of the levels that are all driven.
    Sweep,
}

impl Purpose {
    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Grow => "grow",
            Purpose::Bisect => "bisect",
            Purpose::Confirm => "confirm",
            Purpose::Sweep => "sweep",
        }
    }
}

/// One step of a search over load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchStep {
    /// What was varied.
    pub over: Over,
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
    /// Whether every objective was met: the verdict is VALID, or it is about lateness in spite of which they were met.
    #[serde(default)]
    pub good: bool,
    /// Whether it is the highest load found to be good.
    #[serde(default)]
    pub knee: bool,
    /// What it was for; early versions did not say.
    #[serde(default)]
    pub purpose: Option<Purpose>,
    /// The repetition it belongs to, from 1.
    #[serde(default)]
    pub round: u32,
    /// Measured part, s.
    #[serde(default)]
    pub measured_s: f64,
    /// How long the search waited before it, for TIME_WAIT to end and queues to drain, s.
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
    /// The kernel's counter that rose, where it is about one.
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
    pub over: Over,
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

/// One search of a surface. Keys carry their units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Connections held (with --mode connect: the most at a time).
    pub connections: u64,
    /// The size of a message as it was asked for: `1KiB`, `64-1400`.
    pub size: String,
    /// The smallest message, octets.
    pub min_octets: u64,
    /// The largest message, octets.
    pub max_octets: u64,
    /// What the search came to.
    pub capacity: Capacity,
    /// Its steps, in the order in which they were taken.
    pub steps: Vec<SearchStep>,
    /// Why it could not go on, where that was neither a verdict nor an interrupt: the server had gone, for one.
    #[serde(default)]
    pub error: Option<String>,
}

/// A measured point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Messages in flight.
    pub n: f64,
    /// Throughput, messages/s.
    pub x_msgs_per_s: f64,
}

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The best fit.
    pub value: f64,
    /// 2.5 % of the resamples are below.
    pub low: f64,
    /// 2.5 % of the resamples are above.
    pub high: f64,
}

/// The law's three parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// Throughput of one message in flight, messages/s.
    pub gamma_msgs_per_s: f64,
    /// Contention, 0 to 1: the share that is serial.
    pub alpha: f64,
    /// Coherence, 0 to 1: the cost of agreeing, by pairs.
    pub beta: f64,
}

/// A law that the points bear out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The best fit.
    pub law: Law,
    /// Interval of gamma, messages/s.
    pub gamma_msgs_per_s: Estimate,
    /// Interval of alpha.
    pub alpha: Estimate,
    /// Interval of beta.
    pub beta: Estimate,
    /// Root mean square of the residuals, as a share of X.
    pub residual_ratio: f64,
    /// Chance that a straight line makes such a bend.
    pub curvature_p: f64,
    /// Throughput at the concurrencies asked for.
    pub predictions: Vec<Prediction>,
    /// What it was fitted to.
    pub points: Vec<Point>,
}

/// What the law says about a concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Messages in flight.
    pub n: f64,
    /// Throughput there, messages/s.
    pub x_msgs_per_s: Estimate,
}
