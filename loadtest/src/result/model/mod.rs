//! The data model of a result: what `result.json` holds, key by key.
//!
//! Start at [`RunResult`]. Keys carry their units; docs/result-json.md describes them for readers of the
//! file. A histogram is embedded whole (base64 of HdrHistogram's V2 deflate encoding), so reports and
//! merges need nothing but the file; the percentiles beside it are for human eyes and are recomputed on reading.
//! A change that a reader of older files would misunderstand raises [`SCHEMA_VERSION`].
//!
//! This is data: types, their names, and looking things up in them. The modules that compute something from a result use
//! this one, and it names none of them (tests/module_graph.rs).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::recorder::{Counts, Metric, Recorder};
use super::sparse::Sparse;

mod search;
mod verdict;

pub use self::search::{
    Capacity, Cell, ConnectionCost, Ending, Estimate, Fit, Law, Limit, LimitKind, Over, Point, Prediction,
    Purpose, SearchStep, Seen,
};
pub use self::verdict::{Finding, FindingKind, SloOutcome, SloResult, Verdict, VerdictKind, Weight};

/// The value of `schema` in every result file.
pub const SCHEMA: &str = "resound-load/result";

/// The version this program writes. Since 2 the findings of a verdict have kinds; before that `kind` was what is now
/// `verdict`.
pub const SCHEMA_VERSION: u32 = 2;

/// The oldest version this program reads.
pub const SCHEMA_VERSION_MIN: u32 = 1;

/// Histograms by metric. A metric nothing was recorded for is absent.
pub type Recorders = BTreeMap<Metric, Recorder>;

/// Histograms of one interval, by metric.
pub type IntervalHistograms = BTreeMap<Metric, Sparse>;

/// Everything one run (or a merge of runs) found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always [`SCHEMA_VERSION`]: what is older becomes that as it is read.
    pub schema_version: u32,
    /// Who ran what, where and when.
    pub manifest: Manifest,
    /// What was asked for.
    pub plan: Plan,
    /// How long the measured part really took, s, from its start to the last intended send.
    pub measured_s: f64,
    /// Whether the run was ended early (Ctrl-C).
    pub interrupted: bool,
    /// Counts of the measured part: messages *intended* within it, whenever their replies came.
    pub totals: Counts,
    /// Rates of the measured part.
    pub rates: Rates,
    /// Histograms of the measured part.
    pub histograms: Recorders,
    /// The timeline, oldest first, warm-up included (with negative offsets).
    pub intervals: Vec<Interval>,
    /// The generator's own threads over the measured part.
    pub generator_threads: Vec<ThreadUse>,
    /// The kernel's counters and levels before and after the measured part.
    pub kernel: KernelEvidence,
    /// What the objectives (`--slo`, and integrity, always) came to.
    pub slos: Vec<SloResult>,
    /// Whether these numbers may be believed, and what they say.
    pub verdict: Verdict,
    /// The steps of a search over load, when there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<SearchStep>,
    /// What a search came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// The searches of a surface connections x rate x size; `search` and `capacity` are then those of the cell that this
    /// run is of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub surface: Vec<Cell>,
}

impl RunResult {
    /// What a metric holds; `None` where nothing was recorded.
    pub fn recorder(&self, metric: Metric) -> Option<&Recorder> {
        self.histograms.get(&metric)
    }
}

/// Who ran what, where and when: enough to run it again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Version of `resound-load`.
    pub tool_version: String,
    /// The command line, program name first.
    pub argv: Vec<String>,
    /// The seed of sizes, payloads and Poisson arrivals.
    pub seed: u64,
    /// Start of the measured part, Unix time in ms.
    pub started_unix_ms: u64,
    /// The generator's machine.
    pub host: Host,
    /// What is known of the server.
    pub server: ServerInfo,
    /// Manifests of the runs a merged result was made from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub merged_from: Vec<Manifest>,
}

/// The generator's machine, as far as it matters to a latency.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// `uname -r`.
    pub kernel_release: String,
    /// `model name` of /proc/cpuinfo.
    pub cpu_model: String,
    /// Logical CPUs of the machine.
    pub cpu_count: u32,
    /// Logical CPUs this process may use (affinity and cgroup).
    pub cpu_allowed_count: u32,
    /// Scaling governor, where the machine has one.
    pub cpu_governor: Option<String>,
    /// Memory of the machine, octets.
    pub memory_octets: u64,
    /// Soft limit of open descriptors in force during the run.
    pub nofile_soft: u64,
    /// Hard limit of open descriptors.
    pub nofile_hard: u64,
    /// Virtualisation or container, where known (`kvm`, `docker`, …).
    pub virtualization: Option<String>,
    /// Sysctls that bear on the run, by name (`net.core.somaxconn`).
    pub sysctls: BTreeMap<String, String>,
}

/// What is known of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// The `Server` header of the upgrade response.
    pub header: Option<String>,
    /// The process given by `--server-pid`.
    pub pid: Option<u32>,
    /// Its command line.
    pub command: Option<String>,
}

/// What a run does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each message comes back on its own connection.
    Echo,
    /// Each message goes to every subscriber of the path.
    Broadcast,
    /// Connections are opened and closed at a rate.
    Connect,
}

/// What drives the load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Load {
    /// A schedule that does not wait for replies.
    Open {
        /// How sends are spread over time.
        arrival: Arrival,
        /// Offered rate over all connections, messages/s (in connect mode: connects/s).
        offered_msgs_per_s: f64,
    },
    /// As fast as replies come, with a fixed number of messages in flight a connection.
    Closed {
        /// Messages in flight a connection.
        in_flight: u32,
    },
}

/// How sends of an open loop are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// Equal gaps, staggered over the connections.
    Fixed,
    /// Exponential gaps, seeded.
    Poisson,
}

/// What a late generator does with the sends it missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LatePolicy {
    /// Sends them at once; their latency counts from the intended time.
    #[default]
    CatchUp,
    /// Gives them up and counts them as skipped.
    Skip,
}

/// What load threads wait and receive with, and send with in a closed loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Io {
    /// epoll, recv(2) and send(2).
    #[default]
    Epoll,
    /// io_uring.
    IoUring,
}

impl Io {
    /// The name a report prints.
    pub fn title(self) -> &'static str {
        match self {
            Io::Epoll => "epoll",
            Io::IoUring => "io_uring",
        }
    }
}

/// A share of the payload sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SizeShare {
    /// Smallest payload, octets.
    pub min_octets: u64,
    /// Largest payload, octets; drawn evenly from `min_octets..=max_octets`.
    pub max_octets: u64,
    /// Weight against the other shares.
    pub weight: f64,
}

/// What was asked for. Runs are alike, for merging and comparing, when their plans are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The server's URL.
    pub url: String,
    /// What the connections do.
    pub mode: Mode,
    /// What drives the load.
    pub load: Load,
    /// What happens to sends that were missed.
    #[serde(default)]
    pub late: LatePolicy,
    /// Connections held.
    pub connections: u64,
    /// Broadcast: how many of the connections publish (0 in other modes).
    #[serde(default)]
    pub publishers: u64,
    /// Measured part, s.
    pub duration_s: f64,
    /// Warm-up before it, s; not in the totals.
    pub warmup_s: f64,
    /// Rate at which connections are opened, connects/s.
    pub ramp_connects_per_s: Option<f64>,
    /// Payload sizes.
    pub sizes: Vec<SizeShare>,
    /// Whether messages are text (else binary).
    pub text: bool,
    /// Threads that drive load.
    pub threads: u32,
    /// What they wait and receive with.
    #[serde(default)]
    pub io: Io,
    /// Source addresses connections are bound to; empty: the kernel's choice.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Connections closed and replaced a second, /s.
    #[serde(default)]
    pub churn_per_s: f64,
    /// Whether permessage-deflate was offered.
    #[serde(default)]
    pub deflate: bool,
    /// Subprotocol asked for.
    #[serde(default)]
    pub subprotocol: Option<String>,
}

impl Plan {
    /// The offered rate, messages/s; `None` in closed loop.
    pub fn offered_msgs_per_s(&self) -> Option<f64> {
        match self.load {
            Load::Open { offered_msgs_per_s, .. } => Some(offered_msgs_per_s),
            Load::Closed { .. } => None,
        }
    }

    /// The metric this mode's objectives and headline are about.
    pub fn headline(&self) -> Metric {
        match self.mode {
            Mode::Echo => Metric::Response,
            Mode::Broadcast => Metric::Delivery,
            Mode::Connect => Metric::Upgrade,
        }
    }
}

/// Rates of the measured part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// What the schedule asked for, messages/s; `None` in closed loop.
    pub offered_msgs_per_s: Option<f64>,
    /// Messages handed to the kernel, messages/s.
    pub sent_msgs_per_s: f64,
    /// Replies or deliveries received within the measured part, messages/s.
    pub received_msgs_per_s: f64,
    /// Connections upgraded within the measured part, /s.
    pub upgrades_per_s: f64,
    /// Payload sent, octets/s.
    pub payload_sent_octets_per_s: f64,
    /// Payload received, octets/s.
    pub payload_received_octets_per_s: f64,
}

/// Which part of the run an interval belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connections are being opened.
    Ramp,
    /// Load runs, nothing counts.
    Warmup,
    /// What the totals are made of.
    Measure,
    /// Nothing more is sent; late replies to measured messages still count.
    Drain,
}

/// One stretch of the timeline, about a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Which part of the run.
    pub phase: Phase,
    /// Start, ms after the start of the measured part (negative before it).
    pub start_ms: i64,
    /// Length, ms.
    pub length_ms: u64,
    /// What happened in it.
    pub counts: Counts,
    /// Messages without a reply at its end.
    pub in_flight: u64,
    /// Connections open at its end.
    pub connections_open: u64,
    /// Histograms of values received in it.
    pub histograms: IntervalHistograms,
    /// CPU of each load thread, percent of one core.
    #[serde(default)]
    pub thread_cpu_percent: Vec<f64>,
    /// What else was sampled on the same clock.
    #[serde(default)]
    pub sample: Sample,
}

/// What the sampler saw at the end of an interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// CPU of the server, percent of one core (200 is two cores busy).
    pub server_cpu_percent: Option<f64>,
    /// Resident memory of the server, octets.
    pub server_rss_octets: Option<u64>,
    /// Kernel counters that moved in this interval, by how much (`TcpExt.ListenOverflows`).
    pub kernel_deltas: BTreeMap<String, u64>,
    /// Kernel levels (`sockstat.TCP.tw`).
    pub kernel_levels: BTreeMap<String, u64>,
}

/// One of the generator's threads over the measured part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ThreadUse {
    /// Its name (`load-0`).
    pub name: String,
    /// CPU time, percent of one core, without the time spent polling for nothing.
    pub cpu_percent: f64,
}

/// The kernel's view before and after the measured part. Names are `Group.Counter` as in /proc.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelEvidence {
    /// Counters (they only rise) before.
    pub counters_before: BTreeMap<String, u64>,
    /// Counters after.
    pub counters_after: BTreeMap<String, u64>,
    /// Levels (they rise and fall) before.
    pub levels_before: BTreeMap<String, u64>,
    /// Levels after.
    pub levels_after: BTreeMap<String, u64>,
}
