//! Takes the steps of a search: cooldown, a run of the engine, its verdict. Where that decides nothing it is done again.
//!
//! A step that is limited by the generator or by a stall of the machine says nothing about the server: it is taken
//! again, and if that does not help, the search ends. One that meets every objective in spite of such lateness is good,
//! because the lateness is part of what was measured. Every attempt is kept with its verdict. Start at [`Driver::step`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::SearchArgs;
use super::hunt::{self, Purpose, Step, StepOutcome};
use super::watch::{self, Watch};
use crate::engine::args::{Mode, RunArgs};
use crate::engine::kernel::{Process, Snapshot};
use crate::engine::preflight::Limits;
use crate::engine::{RunError, Shortage, ShortageKind};
use crate::result::capacity;
use crate::result::model::{
    self, ConnectionCost, Ending, Limit, LimitKind, RunResult, SearchStep, Seen, SloOutcome, VerdictKind,
};
use crate::result::recorder::Metric;
use crate::result::slo::Slo;
use crate::result::usl;
use crate::result::{sufficiency, units, verdict};

/// How often a step is taken again whose numbers were the generator's or the machine's.
const RETRIES_MAX: u32 = 2;
/// How much longer a step is taken again whose samples did not suffice.
const LONGER: u32 = 4;
/// A step is stretched to have enough samples, up to this.
const STRETCHED_MAX: Duration = Duration::from_secs(60);
/// Samples for an upper bound, times this: with the bare minimum the bound is the maximum.
const SAMPLES_MARGIN: f64 = 3.0;
/// TIME_WAIT is waited for where it holds more than this share of the source ports.
const TIME_WAIT_SHARE_MAX: f64 = 0.25;
/// How long Linux keeps TIME_WAIT.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// The longest cooldown.
const COOLDOWN_MAX: Duration = Duration::from_secs(65);
/// How long socket buffers may take to drain.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Connections from which on a cost for each can be told from noise.
const COST_CONNECTIONS_MIN: u64 = 1_000;

/// The machine as several searches share it: one begins as cold as the first.
pub(super) struct Machine {
    interrupted: Arc<AtomicBool>,
    limits: Limits,
    before: Baseline,
    /// When runs ended, and how many connections they had opened.
    ended: Vec<(Instant, u64)>,
}

/// The machine before the first step of all.
struct Baseline {
    server_rss_octets: Option<u64>,
    socket_slab_octets: Option<u64>,
    socket_pages: u64,
}

impl Machine {
    /// As it is before the first step.
    ///
    /// # Errors
    /// There is no such server process, or signals cannot be caught.
    pub(super) fn new(server_pid: Option<u32>) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("signals")?;
        }
        let proc = Path::new("/proc");
        let server_rss_octets = server_pid
            .map(|pid| {
                let sample = Process::new(proc, pid).sample();
                sample
                    .map(|used| used.rss_octets)
                    .with_context(|| format!("--server-pid {pid}: there is no such process"))
            })
            .transpose()?;
        let before = Baseline {
            server_rss_octets,
            socket_slab_octets: watch::socket_slab_octets(proc),
            socket_pages: level(&Snapshot::read(proc), "sockstat.TCP.mem"),
        };
        Ok(Self { interrupted, limits: Limits::of_this_machine(proc), before, ended: Vec::new() })
    }

    /// Whether a signal asks for the end.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Takes steps, and keeps what they came to.
pub(super) struct Driver<'a> {
    args: &'a SearchArgs,
    machine: &'a mut Machine,
    /// Every attempt, in order.
    pub(super) steps: Vec<SearchStep>,
    /// For each step of the hunt, the attempt that decided it.
    pub(super) decisive: Vec<usize>,
    /// The last run, and the good ones with their steps: the report is about one of them.
    last: Option<RunResult>,
    good: Vec<(usize, RunResult)>,
    /// Why it could not go on.
    pub(super) error: Option<RunError>,
}

/// What one attempt at a step came to.
struct Attempt {
    verdict: VerdictKind,
    /// VALID, or good in spite of its verdict.
    good: bool,
}

impl<'a> Driver<'a> {
    pub(super) fn new(args: &'a SearchArgs, machine: &'a mut Machine) -> Self {
        Self {
            args,
            machine,
            steps: Vec::new(),
            decisive: Vec::new(),
            last: None,
            good: Vec::new(),
            error: None,
        }
    }

    /// Takes a step of the hunt, several times if it must be.
    pub(super) fn step(&mut self, step: Step) -> StepOutcome {
        let asked = match step.purpose {
            Purpose::Confirm => self.args.confirm_duration.unwrap_or(4 * self.args.load.duration),
            Purpose::Grow | Purpose::Bisect => self.args.load.duration,
        };
        let mut flags = self.args.step(step.load);
        flags.duration = asked.max(self.enough(&flags));
        let mut longer = false;
        let mut retries = 0;
        let outcome = loop {
            let Some(Attempt { verdict, good }) =
                self.attempt(&flags, step.load, step.purpose.into(), step.round)
            else {
                break if self.machine.interrupted() {
                    StepOutcome::Interrupted
                } else {
                    StepOutcome::Unknown
                };
            };
            let limit = self.steps.last().and_then(|step| step.limit.as_ref());
            let of_the_server = limit.is_none_or(|limit| limit.kind.is_of_the_server());
            if self.machine.interrupted() {
                break StepOutcome::Interrupted;
            }
            match verdict {
                _ if good => break StepOutcome::Good,
                // Too few once more: near the limit, and not shown to be within it.
                VerdictKind::TooFewSamples if !longer => {
                    longer = true;
                    flags.duration *= LONGER;
                }
                _ if of_the_server => break StepOutcome::Bad,
                _ if retries == RETRIES_MAX => break StepOutcome::Unknown,
                _ => retries += 1,
            }
        };
        self.decisive.push(self.steps.len().saturating_sub(1));
        if outcome == StepOutcome::Good
            && let Some(result) = self.last.clone()
        {
            self.good.push((self.steps.len() - 1, result));
        }
        outcome
    }

    /// Drives every level, doubling, as often as asked; levels in order, so that repetitions lie apart.
    pub(super) fn sweep(&mut self, aim: hunt::Aim) -> Ending {
        let levels = levels(aim.from, aim.to);
        for round in 1..=aim.rounds {
            for level in &levels {
                let flags = RunArgs { duration: self.args.load.duration, ..self.args.step(*level) };
                if self.attempt(&flags, *level, model::Purpose::Sweep, round).is_none()
                    || self.machine.interrupted()
                {
                    return if self.machine.interrupted() { Ending::Interrupted } else { Ending::Unknown };
                }
            }
        }
        Ending::Swept
    }

    /// One run at this load; `None` if it came to nothing, because it was interrupted or could not be done.
    fn attempt(
        &mut self,
        flags: &RunArgs,
        load: u64,
        purpose: model::Purpose,
        round: u32,
    ) -> Option<Attempt> {
        let cooldown_s = self.cool_down();
        if self.machine.interrupted() {
            return None;
        }
        let watch = match Watch::start(flags.server_pid) {
            Ok(watch) => watch,
            Err(error) => {
                self.error =
                    Some(RunError::System(Error::new(error).context("no thread to watch the machine")));
                return None;
            }
        };
        let run = crate::engine::run(flags);
        let seen = watch.stop(run.as_ref().ok());
        let over = self.args.over.into();
        let mut result = match run {
            Ok(result) => result,
            Err(_) if self.machine.interrupted() => return None,
            Err(RunError::Impossible(shortages)) => {
                return Some(self.impossible(&shortages, load, purpose, round));
            }
            Err(error) => {
                self.error = Some(error);
                return None;
            }
        };
        self.machine.ended.push((Instant::now(), result.totals.connects));
        verdict::judge(&mut result, &self.args.slo);
        let verdict = result.verdict.kind;
        let good = verdict == VerdictKind::Valid || good_in_spite(&result, &self.args.slo);
        let step = SearchStep {
            good,
            purpose: Some(purpose),
            round,
            cooldown_s,
            ..capacity::step(over, load as f64, &result, seen)
        };
        self.say(&step);
        self.steps.push(step);
        self.last = Some(result);
        Some(Attempt { verdict, good })
    }

    /// A run that this machine cannot do is a limit like any other, known without driving it.
    fn impossible(
        &mut self,
        shortages: &[Shortage],
        load: u64,
        purpose: model::Purpose,
        round: u32,
    ) -> Attempt {
        let [first, others @ ..] = shortages else { unreachable!("what is impossible has a reason") };
        let mut cause = first.arithmetic.clone();
        // The kind of the first is the limit's.
        for other in others {
            cause.push_str(&format!("; also {}: {}", other.kind.title(), other.arithmetic));
        }
        let cures: Vec<&str> = shortages.iter().map(|shortage| shortage.cure.as_str()).collect();
        let cure = format!(
            "{}; scripts/tune.sh check --role generator --connections {} says what else is in the way",
            cures.join("; "),
            load.max(1)
        );
        let kind = match first.kind {
            ShortageKind::Descriptors => LimitKind::Descriptors,
            ShortageKind::SourcePorts | ShortageKind::TimeWait => LimitKind::Ports,
            ShortageKind::Memory => LimitKind::Memory,
        };
        let step = SearchStep {
            over: self.args.over.into(),
            load: load as f64,
            purpose: Some(purpose),
            round,
            verdict: VerdictKind::EnvironmentLimited,
            cause: cause.clone(),
            limit: Some(Limit { kind, cause, cure, counter: None }),
            seen: Seen::default(),
            ..SearchStep::default()
        };
        self.say(&step);
        self.steps.push(step);
        Attempt { verdict: VerdictKind::EnvironmentLimited, good: false }
    }

    /// How long a step at this load must be for its objectives to be decidable.
    fn enough(&self, flags: &RunArgs) -> Duration {
        let Some(rate) = flags.rate else { return Duration::ZERO };
        let copies = if flags.mode == Mode::Broadcast { f64::from(flags.connections) } else { 1.0 };
        let quantiles = self.args.slo.iter().filter_map(|slo| slo.quantile(Metric::Response));
        let samples = quantiles.map(|(_, quantile)| sufficiency::samples_needed(quantile)).max().unwrap_or(0);
        let seconds = samples as f64 * SAMPLES_MARGIN / (rate * copies);
        Duration::try_from_secs_f64(seconds).unwrap_or(STRETCHED_MAX).min(STRETCHED_MAX)
    }

    /// Waits for what the last step left behind, and returns for how long, s.
    fn cool_down(&self) -> f64 {
        if self.machine.ended.is_empty() {
            return 0.0;
        }
        let began = Instant::now();
        let sources: u64 = self.args.load.source.iter().map(|range| range.addresses().count() as u64).sum();
        let ports = sources.max(1).saturating_mul(self.machine.limits.ports_count());
        // Where the kernel gives their ports away again they hold nothing.
        let reused = self.machine.limits.tw_reuse == 1
            || (self.machine.limits.tw_reuse == 2 && is_loopback(&self.args.load.url));
        while !self.machine.interrupted() {
            let (now, waited) = (Snapshot::read(Path::new("/proc")), began.elapsed());
            // The kernel's count is everybody's; ours are at most those that ended in the last minute.
            let ended = self.machine.ended.iter().filter(|(at, _)| at.elapsed() < TIME_WAIT);
            let ours: u64 = ended.map(|(_, connects)| connects).sum();
            let time_waits = level(&now, "sockstat.TCP.tw").min(ours) as f64;
            // Half as much again: other programs' sockets breathe, too.
            let drained = level(&now, "sockstat.TCP.mem") <= self.machine.before.socket_pages * 3 / 2 + 64;
            let freed = reused || time_waits <= TIME_WAIT_SHARE_MAX * ports as f64;
            if waited >= self.args.cooldown
                && (freed || waited >= COOLDOWN_MAX)
                && (drained || waited >= DRAIN_MAX)
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        began.elapsed().as_secs_f64()
    }

    /// From the step with the most connections that held them all.
    pub(super) fn connection_cost(&self) -> Option<ConnectionCost> {
        let good = self.steps.iter().filter(|step| step.good);
        let most = good.max_by_key(|step| step.connections)?;
        if most.connections < COST_CONNECTIONS_MIN {
            return None;
        }
        let each = |now: Option<u64>, before: Option<u64>| {
            Some((now? as f64 - before? as f64).max(0.0) / most.connections as f64)
        };
        // The slabs are this machine's: on loopback they hold both ends.
        let ends = if is_loopback(&self.args.load.url) { 2.0 } else { 1.0 };
        Some(ConnectionCost {
            connections: most.connections,
            server_octets: each(most.seen.server_rss_octets, self.machine.before.server_rss_octets),
            kernel_octets: each(most.seen.socket_slab_octets, self.machine.before.socket_slab_octets)
                .map(|all| all / ends),
        })
    }

    /// The run at the knee, or else the last one.
    pub(super) fn at_knee(&mut self, knee_step: Option<usize>) -> Option<RunResult> {
        let at = self.good.iter().position(|(index, _)| Some(*index) == knee_step);
        at.map(|at| self.good.swap_remove(at).1).or_else(|| self.last.take())
    }

    fn say(&self, step: &SearchStep) {
        if self.args.load.quiet {
            return;
        }
        let latency =
            step.latency_ns.get("p99").map_or(String::new(), |ns| format!("p99 {}", units::latency_ns(*ns)));
        let cpu = step.seen.server_cpu_percent.map_or(String::new(), |cpu| format!("server {cpu:.0} %"));
        let purpose = step.purpose.map_or("", model::Purpose::name);
        let load = capacity::show_load(step.over, step.load);
        let mut line = format!("{purpose:<8}{load:>18}  {:<19} {latency:<14} {cpu:<13}", step.verdict.name());
        if step.verdict != VerdictKind::Valid {
            if step.good {
                line.push_str("objectives met in spite of it: ");
            }
            line.push_str(&step.cause);
        }
        eprintln!("{}", line.trim_end());
    }
}

fn is_loopback(url: &str) -> bool {
    ["://127.", "://localhost", "://[::1]"].iter().any(|host| url.contains(host))
}

fn level(snapshot: &Snapshot, name: &str) -> u64 {
    snapshot.levels.get(name).copied().unwrap_or(0)
}

/// Whether every objective was met although the generator or the machine was late: what they are late by is part of the
/// headline's latency, so the server alone was faster. Not for a closed loop, nor for latencies without the lag,
/// nor where less was sent or answered than offered.
fn good_in_spite(result: &RunResult, slos: &[Slo]) -> bool {
    let headline = result.plan.headline();
    let has_the_lag = |slo: &Slo| {
        let others = Metric::ALL.into_iter().filter(|metric| *metric != headline);
        result.plan.mode != model::Mode::Connect
            && others.into_iter().all(|metric| slo.latency_limit_ns(metric, headline).is_none())
    };
    let enough = |ratio: Option<f64>| ratio.is_some_and(|ratio| ratio >= verdict::ACHIEVED_SHARE_MIN);
    let mut deciding = result.verdict.findings.iter().filter(|finding| finding.decides());
    let late_only = deciding
        .all(|finding| matches!(capacity::limit_kind(finding), LimitKind::Generator | LimitKind::Machine));
    late_only
        && enough(result.achieved_ratio())
        && enough(result.sent_ratio())
        && slos.iter().all(has_the_lag)
        && result.slos.iter().all(|slo| slo.outcome == SloOutcome::Pass)
}

/// Doubling from `from` to `to`; closer together where that makes too few for a law.
fn levels(from: u64, to: u64) -> Vec<u64> {
    let (low, high) = (from as f64, to as f64);
    let doublings = (high / low).log2().ceil() as usize + 1;
    let count = doublings.max(usl::LEVELS_MIN + 1);
    let mut levels: Vec<u64> = (0..count)
        .map(|index| (low * (high / low).powf(index as f64 / (count - 1) as f64)).round() as u64)
        .collect();
    levels.dedup();
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_double_and_are_enough_for_a_law_where_there_are_so_many() {
        assert_eq!(levels(1, 128), [1, 2, 4, 8, 16, 32, 64, 128]);
        assert_eq!(levels(4, 16), [4, 5, 6, 8, 10, 13, 16]);
        assert_eq!(levels(3, 3), [3]);
    }
}
