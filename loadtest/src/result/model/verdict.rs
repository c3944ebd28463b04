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
