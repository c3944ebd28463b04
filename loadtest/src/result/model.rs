//! The data model of a result: what `result.json` holds, key by key.
//!
//! Start at [`RunResult`]. Keys carry their units; docs/result-json.md describes them for readers of the
//! file. A histogram is embedded whole (base64 of HdrHistogram's V2 deflate encoding), so reports and
//! merges need nothing but the file; the percentiles beside it are for human eyes and are recomputed on reading.
//! A change that a reader of an older file would misunderstand raises [`SCHEMA_VERSION`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::capacity::{Capacity, SearchStep};
use super::collector::Collected;
use super::recorder::{Counts, Metric, Recorder};
use super::sparse::Sparse;
use super::surface::Cell;

/// The value of `schema` in every result file.
pub const SCHEMA: &str = "resound-load/result";

/// The version this program writes, and the only one it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// Histograms by metric. A metric nothing was recorded for is absent.
pub type Recorders = BTreeMap<Metric, Recorder>;

/// Histograms of one interval, by metric.
pub type IntervalHistograms = BTreeMap<Metric, Sparse>;

/// Everything one run (or a merge of runs) found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always [`SCHEMA_VERSION`].
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
    /// A result of what the engine collected, not judged yet: `slos` and `verdict` are filled in by the command line.
    pub fn new(
        manifest: Manifest,
        plan: Plan,
        measured_s: f64,
        collected: Collected,
        generator_threads: Vec<ThreadUse>,
        kernel: KernelEvidence,
    ) -> Self {
        RunResult {
            schema: SCHEMA.to_owned(),
            schema_version: SCHEMA_VERSION,
            rates: Rates::of(&plan, &collected.totals, &collected.intervals, measured_s),
            manifest,
            plan,
            measured_s,
            interrupted: false,
            totals: collected.totals,
            histograms: collected.histograms,
            intervals: collected.intervals,
            generator_threads,
            kernel,
            slos: Vec::new(),
            verdict: Verdict::default(),
            search: Vec::new(),
            capacity: None,
            surface: Vec::new(),
        }
    }

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

impl Rates {
    /// Rates of `totals` over `measured_s` seconds.
    ///
    /// What was received *within* the measured part follows from what was due and from how the messages in flight
    /// changed: replies that came after its end are in the totals, but were not achieved in time.
    pub fn of(plan: &Plan, totals: &Counts, intervals: &[Interval], measured_s: f64) -> Self {
        let per_s = |count: f64| if measured_s > 0.0 { count / measured_s } else { 0.0 };
        // What is lost stays in flight, unless its connection ended: it is not taken off twice.
        let grown = in_flight_growth(intervals).unwrap_or(0) as f64;
        let received = (totals.expected as f64 - grown.max(totals.lost as f64)).max(0.0);
        // The totals hold those of the ramp and of the warm-up too.
        let measured = intervals.iter().filter(|interval| interval.phase == Phase::Measure);
        let upgrades: u64 = measured.map(|interval| interval.counts.upgrades).sum();
        Rates {
            offered_msgs_per_s: plan.offered_msgs_per_s(),
            sent_msgs_per_s: per_s(totals.sent as f64),
            received_msgs_per_s: per_s(received),
            upgrades_per_s: per_s(upgrades as f64),
            payload_sent_octets_per_s: per_s(totals.payload_sent_octets as f64),
            payload_received_octets_per_s: per_s(totals.payload_received_octets as f64),
        }
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

impl KernelEvidence {
    /// By how much a counter rose.
    pub fn delta(&self, name: &str) -> u64 {
        let before = self.counters_before.get(name).copied().unwrap_or(0);
        self.counters_after.get(name).map_or(0, |after| after.saturating_sub(before))
    }

    /// Every counter that moved, with by how much.
    pub fn deltas(&self) -> BTreeMap<&str, u64> {
        let moved = self.counters_after.keys().map(|name| (name.as_str(), self.delta(name)));
        moved.filter(|(_, delta)| *delta > 0).collect()
    }
}

/// What an objective came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SloOutcome {
    /// Met, and the samples suffice to say so.
    Pass,
    /// Missed.
    Fail,
    /// Not decidable with so few samples.
    TooFewSamples,
}

/// One objective and what it came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SloResult {
    /// As written: `p99.9<5ms`.
    pub expression: String,
    /// What it came to.
    pub outcome: SloOutcome,
    /// A sentence with the numbers.
    pub why: String,
    /// The limit, in `unit`.
    pub limit: f64,
    /// What was observed, in `unit`; absent where nothing was.
    pub observed: Option<f64>,
    /// Lower end of the 95 % rank interval, in `unit` (percentiles only).
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of the 95 % rank interval, in `unit`; absent where the samples give no upper bound.
    #[serde(default)]
    pub high: Option<f64>,
    /// Samples beyond the percentile asked for (percentiles only).
    #[serde(default)]
    pub samples_beyond: Option<u64>,
    /// `ns`, `ratio` or `msgs_per_s`.
    pub unit: String,
}

impl SloResult {
    /// The objective and what it came to, in a sentence.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.expression, self.why)
    }
}

/// Whether the numbers may be believed, and what they say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum VerdictKind {
    /// The numbers are the server's, and every objective was met.
    #[default]
    Valid,
    /// The generator, not the server, made these numbers.
    GeneratorLimited,
    /// The kernel or the machine, not the server, made these numbers.
    EnvironmentLimited,
    /// The numbers are the server's, and an objective was missed.
    SloMiss,
    /// The numbers are the server's, but too few to decide an objective.
    TooFewSamples,
}

impl VerdictKind {
    /// As printed: `GENERATOR-LIMITED`.
    pub fn name(self) -> &'static str {
        match self {
            VerdictKind::Valid => "VALID",
            VerdictKind::GeneratorLimited => "GENERATOR-LIMITED",
            VerdictKind::EnvironmentLimited => "ENVIRONMENT-LIMITED",
            VerdictKind::SloMiss => "SLO-MISS",
            VerdictKind::TooFewSamples => "TOO-FEW-SAMPLES",
        }
    }
}

/// The verdict: the weightiest finding, and all the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The verdict.
    pub kind: VerdictKind,
    /// Why, in a sentence with numbers.
    pub cause: String,
    /// What to do about it; empty for VALID.
    pub cure: String,
    /// Every finding, weightiest first, the deciding one included.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// What was noticed besides what decided the verdict and besides the objectives, which are listed on their own.
    pub fn also_noticed<'a>(&'a self, slos: &'a [SloResult]) -> impl Iterator<Item = &'a Finding> {
        let is_objective = |finding: &Finding| slos.iter().any(|slo| finding.cause == slo.sentence());
        self.findings.iter().filter(move |finding| finding.cause != self.cause && !is_objective(finding))
    }
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// It decides the verdict, unless a weightier kind does.
    Decides,
    /// Worth knowing; the verdict stands without it.
    Note,
}

/// One thing that was noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it speaks for.
    pub kind: VerdictKind,
    /// How much it weighs.
    pub weight: Weight,
    /// What was seen, in a sentence with numbers.
    pub cause: String,
    /// What to do about it.
    pub cure: String,
}

#[cfg(test)]
mod tests {
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
        let rates = Rates::of(&plan, &totals, &intervals, 2.0);
        assert_eq!((rates.sent_msgs_per_s, rates.received_msgs_per_s), (1_000.0, 750.0));
        // Lost with their connections, which are gone, and so not in flight.
        let totals = Counts { lost: 600, received: 1_400, ..totals };
        assert_eq!(Rates::of(&plan, &totals, &intervals, 2.0).received_msgs_per_s, 700.0);
        assert_eq!(in_flight_growth(&intervals), Some(500));
        assert_eq!(in_flight_growth(&intervals[..1]), None);
    }
}
