//! What a run was judged to be: objectives, findings, verdict. The judging is in [`crate::result::verdict`].

use serde::{Deserialize, Serialize};

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
    /// The finding that the verdict rests on; none for VALID.
    pub fn decisive(&self) -> Option<&Finding> {
        self.findings.first().filter(|finding| finding.decides())
    }

    /// What was noticed besides that and besides the objectives, which are listed on their own.
    pub fn also_noticed(&self) -> impl Iterator<Item = &Finding> {
        let rest = self.findings.iter().skip(usize::from(self.decisive().is_some()));
        rest.filter(|finding| !finding.kind.is_about_an_objective())
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

/// What was noticed. The names in files are stable; programs match these, people read the sentence beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Connects found no free source port.
    SourcePortsExhausted,
    /// Sockets could not be opened for want of descriptors.
    DescriptorsExhausted,
    /// The kernel had no memory for sockets.
    KernelMemoryExhausted,
    /// A watched counter of the kernel rose: [`Finding::counter`] says which.
    KernelEvent,
    /// The machine stopped running programs for a while.
    MachineStalled,
    /// A load thread used nearly all of its core.
    LoadThreadBusy,
    /// The generator sent late.
    ScheduleLag,
    /// The generator did not send all that was scheduled.
    ScheduleNotSent,
    /// The server answered less than was offered.
    ServerFellBehind,
    /// Fewer connections were open than asked for.
    ConnectionsMissing,
    /// An objective was missed: [`Finding::objective`] says which.
    ObjectiveMissed,
    /// The samples do not decide an objective: [`Finding::objective`] says which.
    ObjectiveUndecided,
    /// A closed loop was driven, so its latencies are not those of a steady rate.
    ClosedLoop,
    /// The run was ended early.
    EndedEarly,
    /// Latencies were above what a histogram holds.
    ValuesSaturated,
    /// A kind that a later version of this program wrote.
    #[serde(other)]
    Unknown,
}

impl FindingKind {
    /// Every kind that this version writes.
    pub const ALL: [FindingKind; 15] = [
        FindingKind::SourcePortsExhausted,
        FindingKind::DescriptorsExhausted,
        FindingKind::KernelMemoryExhausted,
        FindingKind::KernelEvent,
        FindingKind::MachineStalled,
        FindingKind::LoadThreadBusy,
        FindingKind::ScheduleLag,
        FindingKind::ScheduleNotSent,
        FindingKind::ServerFellBehind,
        FindingKind::ConnectionsMissing,
        FindingKind::ObjectiveMissed,
        FindingKind::ObjectiveUndecided,
        FindingKind::ClosedLoop,
        FindingKind::EndedEarly,
        FindingKind::ValuesSaturated,
    ];

    /// Whether it says what an objective came to.
    pub fn is_about_an_objective(self) -> bool {
        matches!(self, FindingKind::ObjectiveMissed | FindingKind::ObjectiveUndecided)
    }
}

/// One thing that was noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was noticed, for programs.
    pub kind: FindingKind,
    /// The verdict it speaks for; VALID for what is only worth knowing.
    pub verdict: VerdictKind,
    /// How much it weighs.
    pub weight: Weight,
    /// What was seen, in a sentence with numbers.
    pub cause: String,
    /// What to do about it; empty where nothing is to be done.
    pub cure: String,
    /// The kernel's counter that rose (`TcpExt.ListenOverflows`), for a [`FindingKind::KernelEvent`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<String>,
    /// The objective as written (`p99<5ms`, or `integrity`), for the kinds about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<String>,
}

impl Finding {
    /// Whether it decides the verdict, unless a weightier one does.
    pub fn decides(&self) -> bool {
        self.weight == Weight::Decides
    }
}
