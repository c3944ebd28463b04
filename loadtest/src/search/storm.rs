//! `resound-load storm`: part of the connections is gone at once and comes back; how long until all is well?
//!
//! Three runs of the engine make it, so that a storm is measured as everything else is. *Those that stay* and *those that
//! go* carry their share of the load from the beginning; the latter end without a closing handshake; then *those that
//! come back* connect, at once or spread over a jitter, and carry that share again. Start at [`storm`].

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Command, ValueEnum};
use serde::Serialize;

use crate::engine::args::{self, Goodbye, Mode, RunArgs};
use crate::result::model::{Interval, Phase, RunResult, SloOutcome};
use crate::result::recorder::{Metric, Recorder};
use crate::result::slo::Slo;
use crate::result::{store, units, verdict};

/// The name of the summary in its directory.
pub const STORM_FILE: &str = "storm.json";
/// How much longer those that stay are watched than those that come back, for the time these take to connect.
const ALLOWANCE: Duration = Duration::from_secs(5);

/// How connections go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cut {
    /// Reset: the client's machine or network is gone
    #[default]
    Rst,
    /// FIN without a Close frame: the client's process is gone
    Fin,
}

/// The flags of `resound-load storm`.
#[derive(Clone, Debug, Args)]
pub struct StormArgs {
    /// Flags of the load.
    #[command(flatten)]
    pub load: RunArgs,
    /// The share of the connections that is dropped at once
    #[arg(long = "drop", value_name = "PERCENT", default_value = "30%", value_parser = share, help_heading = "Storm")]
    pub dropped: f64,
    /// How they go
    #[arg(long, value_enum, default_value_t, help_heading = "Storm")]
    pub cut: Cut,
    /// They come back spread evenly over this time; 0s: all at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = args::duration, help_heading = "Storm")]
    pub jitter: Duration,
    /// Load before the storm
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration, help_heading = "Storm")]
    pub before: Duration,
    /// The latency objective that tells when all is well again, such as p99<20ms
    #[arg(long, value_name = "EXPRESSION", default_value = "p99<100ms", help_heading = "Storm")]
    pub slo: Slo,
    /// Write storm.json and the results of those that stay, go and come back into this directory
    #[arg(long, value_name = "DIR", help_heading = "Storm")]
    pub out: Option<PathBuf>,
}

/// Bends the flags of `run` to those of a storm: `--duration` is the time after it.
pub fn of_a_storm(command: Command) -> Command {
    command.mut_arg("duration", |arg| {
        arg.long("after").default_value("10s").help("Load after the storm").help_heading("Storm")
    })
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match number {
        Some(percent) if percent > 0.0 && percent < 100.0 => Ok(percent / 100.0),
        _ => Err("a percentage above 0% and below 100% is needed, such as 30%".to_owned()),
    }
}

/// What a storm came to: what storm.json holds. Keys carry their units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storm {
    /// Connections before it.
    pub connections: u32,
    /// Connections dropped.
    pub dropped: u32,
    /// `rst` or `fin`.
    pub cut: String,
    /// Spread of the reconnects, s.
    pub jitter_s: f64,
    /// Connections that came back.
    pub back: u64,
    /// From the first reconnect until the last of them was upgraded, s; absent where not all came back.
    pub all_back_s: Option<f64>,
    /// From the first reconnect until the end of the last interval in which the objective was missed, s (0: it never
    /// was); absent where it was still missed at the end. To about a second, the length of an interval.
    pub within_slo_s: Option<f64>,
    /// The objective.
    pub slo: String,
    /// The worst interval's value of the objective's percentile after the drop, ns.
    pub worst_ns: u64,
    /// Kernel counters that rose from the drop on, by how much.
    pub kernel_deltas: std::collections::BTreeMap<String, u64>,
    /// Messages lost by those that stayed, which no storm may touch.
    pub lost_by_others: u64,
    /// Whether all came back, nothing was lost by the others, and the objective is met again.
    pub recovered: bool,
}

/// A storm with the results of its three runs.
pub struct Outcome {
    /// The summary.
    pub storm: Storm,
    /// Those that stayed.
    pub stayed: RunResult,
    /// Those that went.
    pub gone: RunResult,
    /// Those that came back.
    pub back: RunResult,
}

/// Makes a storm.
///
/// # Errors
/// One line about what cannot be meant, or about why one of the runs came to nothing.
pub fn storm(args: &StormArgs) -> Result<Outcome> {
    let quantile = check(args)?;
    let connections = args.load.connections;
    let dropped = ((f64::from(connections) * args.dropped).round() as u32).clamp(1, connections - 1);
    let part = |count: u32, flags: RunArgs| RunArgs {
        connections: count,
        rate: args.load.rate.map(|rate| rate * f64::from(count) / f64::from(connections)),
        quiet: true,
        ..flags
    };
    let length = args.before + args.load.warmup + args.jitter + args.load.duration + ALLOWANCE;
    let stay = part(connections - dropped, RunArgs { duration: length, ..args.load.clone() });
    let goodbye = if args.cut == Cut::Rst { Goodbye::Rst } else { Goodbye::Fin };
    let go = part(
        dropped,
        RunArgs {
            duration: args.before,
            drain: Duration::from_millis(200),
            goodbye,
            server_pid: None,
            ..args.load.clone()
        },
    );
    // Without a jitter all at once; nothing is waited for, so there is no warm-up.
    let ramp = if args.jitter.is_zero() { 0.0 } else { f64::from(dropped) / args.jitter.as_secs_f64() };
    let come = part(dropped, RunArgs { ramp, warmup: Duration::ZERO, server_pid: None, ..args.load.clone() });

    say(
        args,
        &format!(
            "{connections} connections, {dropped} of which go after {}",
            units::span_s(args.before.as_secs_f64())
        ),
    );
    let (stayed, gone, back) = thread::scope(|scope| {
        let staying = scope.spawn(|| crate::engine::run(&stay));
        let gone = crate::engine::run(&go);
        let back = gone.as_ref().ok().filter(|gone| !gone.interrupted).map(|_| {
            say(args, "they are gone, and come back");
            crate::engine::run(&come)
        });
        (staying.join(), gone, back)
    });
    let stayed = stayed.map_err(|_| anyhow!("a thread panicked"))?.context("those that stay")?;
    let gone = gone.context("those that go")?;
    let back = back.ok_or_else(|| anyhow!("ended before the storm"))?.context("those that come back")?;
    let mut outcome = Outcome { storm: judge(args, dropped, quantile, &stayed, &back), stayed, gone, back };
    for result in [&mut outcome.stayed, &mut outcome.gone, &mut outcome.back] {
        verdict::judge(result, std::slice::from_ref(&args.slo));
    }
    if let Some(dir) = &args.out {
        write(&outcome, dir)?;
    }
    Ok(outcome)
}

fn say(args: &StormArgs, what: &str) {
    if !args.load.quiet {
        eprintln!("{what}");
    }
}

/// The percentile of the objective.
fn check(args: &StormArgs) -> Result<f64> {
    if args.load.mode != Mode::Echo {
        bail!("--mode: a storm goes with --mode echo");
    }
    if args.load.connections < 2 {
        bail!("-c 1: some connections must go and some must stay, so it takes 2");
    }
    if args.load.churn > 0.0 || args.load.goodbye != Goodbye::Close {
        bail!("--churn and --goodbye do not go with a storm: it says itself who goes, and --cut says how");
    }
    match args.slo.quantile(Metric::Response) {
        Some((Metric::Response, quantile)) => Ok(quantile),
        _ => bail!("--slo {}: a percentile of response latency is needed, such as p99<20ms", args.slo),
    }
}

/// An interval with its place in real time, Unix ms.
struct Placed<'a> {
    start_ms: i64,
    end_ms: i64,
    interval: &'a Interval,
}

fn placed(result: &RunResult) -> impl Iterator<Item = Placed<'_>> {
    let zero_ms = result.manifest.started_unix_ms as i64;
    result.intervals.iter().map(move |interval| Placed {
        start_ms: zero_ms + interval.start_ms,
        end_ms: zero_ms + interval.start_ms + interval.length_ms as i64,
        interval,
    })
}

fn judge(args: &StormArgs, dropped: u32, quantile: f64, stayed: &RunResult, back: &RunResult) -> Storm {
    let began_ms = placed(back).map(|placed| placed.start_ms).min().unwrap_or(0);
    let ramp_end_ms = placed(back)
        .filter(|placed| placed.interval.phase == Phase::Ramp)
        .map(|placed| placed.end_ms)
        .max()
        .unwrap_or(began_ms);
    let opened = back.totals.upgrades;
    let all_back_s = (opened >= u64::from(dropped)).then(|| (ramp_end_ms - began_ms).max(0) as f64 / 1e3);
    // Each second of those that stayed from the storm on, together with what came back within it. The others are
    // watched for longer; after the returned ones end there is no storm to be seen.
    let end_ms = placed(back)
        .filter(|placed| placed.interval.phase == Phase::Measure)
        .map(|placed| placed.end_ms)
        .max();
    let end_ms = end_ms.unwrap_or(ramp_end_ms);
    let (mut worst_ns, mut last_miss_ms, mut still_missed) = (0, None, false);
    for second in placed(stayed).filter(|second| second.end_ms > began_ms && second.start_ms < end_ms) {
        let mut recorder = Recorder::new();
        let overlapping =
            placed(back).filter(|other| other.start_ms < second.end_ms && other.end_ms > second.start_ms);
        for interval in overlapping.map(|other| other.interval).chain([second.interval]) {
            if let Some(histogram) = interval.histograms.get(&Metric::Response) {
                recorder.merge(&histogram.recorder());
            }
        }
        if recorder.is_empty() {
            continue;
        }
        let value_ns = recorder.quantile_ns(quantile);
        worst_ns = worst_ns.max(value_ns);
        let limit_ns = args.slo.latency_limit_ns(Metric::Response, Metric::Response).unwrap_or(f64::MAX);
        still_missed = value_ns as f64 > limit_ns;
        if still_missed {
            last_miss_ms = Some(second.end_ms);
        }
    }
    let within_slo_s = match last_miss_ms {
        _ if still_missed => None,
        Some(missed_ms) => Some((missed_ms - began_ms) as f64 / 1e3),
        None => Some(0.0),
    };
    let mut kernel_deltas = std::collections::BTreeMap::new();
    for second in placed(stayed).filter(|second| second.end_ms > began_ms) {
        for (name, delta) in &second.interval.sample.kernel_deltas {
            if verdict::is_watched(name) {
                *kernel_deltas.entry(name.clone()).or_default() += delta;
            }
        }
    }
    let lost_by_others = stayed.totals.integrity_failures();
    Storm {
        connections: args.load.connections,
        dropped,
        cut: if args.cut == Cut::Rst { "rst".to_owned() } else { "fin".to_owned() },
        jitter_s: args.jitter.as_secs_f64(),
        back: opened,
        all_back_s,
        within_slo_s,
        slo: args.slo.to_string(),
        worst_ns,
        kernel_deltas,
        lost_by_others,
        recovered: all_back_s.is_some() && within_slo_s.is_some() && lost_by_others == 0,
    }
}

fn write(outcome: &Outcome, dir: &Path) -> Result<()> {
    for (name, result) in [("stayed", &outcome.stayed), ("gone", &outcome.gone), ("back", &outcome.back)] {
        store::write_dir(result, &dir.join(name))?;
    }
    let path = dir.join(STORM_FILE);
    let text = serde_json::to_string_pretty(&outcome.storm)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What it came to, for people.
pub fn text(outcome: &Outcome) -> String {
    let storm = &outcome.storm;
    let mut lines = vec![format!(
        "{}  {} of {} connections dropped ({}), jitter {}",
        if storm.recovered { "RECOVERED" } else { "NOT RECOVERED" },
        units::count(storm.dropped.into()),
        units::count(storm.connections.into()),
        storm.cut.to_uppercase(),
        units::span_s(storm.jitter_s)
    )];
    lines.push(match storm.all_back_s {
        Some(seconds) => format!("  all back       after {}", units::span_s(seconds)),
        None => {
            let (back, all) = (units::count(storm.back), units::count(storm.dropped.into()));
            format!("  all back       never: {back} of {all}")
        }
    });
    lines.push(match storm.within_slo_s {
        Some(0.0) => format!("  {:<14} held in every second", storm.slo),
        Some(seconds) => format!("  {:<14} again after {} (to a second)", storm.slo, units::span_s(seconds)),
        None => format!("  {:<14} still missed at the end: give more --after", storm.slo),
    });
    lines.push(format!("  worst second   {}", units::latency_ns(storm.worst_ns)));
    for (metric, name) in [(Metric::Connect, "TCP connect"), (Metric::Upgrade, "upgrade")] {
        if let Some(recorder) = outcome.back.recorder(metric) {
            let [p50, p99, max] =
                [0.5, 0.99, 1.0].map(|quantile| units::latency_ns(recorder.quantile_ns(quantile)));
            lines.push(format!("  {name:<14} p50 {p50}, p99 {p99}, max {max} of those that came back"));
        }
    }
    lines.push(format!("  the others     {} messages broken or lost", units::count(storm.lost_by_others)));
    let moved: Vec<String> =
        storm.kernel_deltas.iter().map(|(name, delta)| format!("{name} +{}", units::count(*delta))).collect();
    lines.push(format!(
        "  kernel         {}",
        if moved.is_empty() { "nothing dropped".to_owned() } else { moved.join(", ") }
    ));
    for (name, result) in [("stayed", &outcome.stayed), ("came back", &outcome.back)] {
        lines.push(format!("  {name:<14} {}: {}", result.verdict.kind.name(), result.verdict.cause));
    }
    let missed = outcome.stayed.slos.iter().filter(|slo| slo.outcome == SloOutcome::Fail);
    lines.extend(
        missed.map(|slo| format!("  over the whole run, those that stayed missed {}", slo.sentence())),
    );
    lines.push(String::new());
    lines.join("\n")
}
