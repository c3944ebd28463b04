//! `resound-load storm`: part of the connections is gone at once and comes back; how long until all is well?
//!
//! Three runs of the engine make it, so that a storm is measured as everything else is. *Those that stay* and *those that
//! go* carry their share of the load from the beginning; the latter end without a closing handshake; then *those that
//! come back* connect, at once or spread over a jitter, and carry that share again. What they come to is judged in
//! [`crate::result::storm`]. Start at [`storm()`].

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Command, ValueEnum};

use crate::engine::RunError;
use crate::engine::args::{self, Goodbye, Mode, RunArgs};
use crate::result::model::{RunResult, SloOutcome};
use crate::result::recorder::Metric;
use crate::result::slo::Slo;
use crate::result::storm::{self, Asked, Storm};
use crate::result::{report, store, units, verdict};

/// The name of the summary in its directory.
pub const STORM_FILE: &str = "storm.json";
/// The length of an interval: how finely a storm is seen.
const INTERVAL: Duration = Duration::from_millis(100);
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
    /// Write storm.json, report.html and the results of those that stay, go and come back into this directory
    #[arg(long, value_name = "DIR", help_heading = "Storm")]
    pub out: Option<PathBuf>,
}

/// Turns the flags of `run` into those of a storm: `--duration` is the time after it.
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
/// One line about flags that do not go together, or about why one of the runs came to nothing.
pub fn storm(args: &StormArgs) -> Result<Outcome> {
    let quantile = check(args)?;
    let connections = args.load.connections;
    let dropped = ((f64::from(connections) * args.dropped).round() as u32).clamp(1, connections - 1);
    let part = |count: u32, flags: RunArgs| RunArgs {
        connections: count,
        rate: args.load.rate.map(|rate| rate * f64::from(count) / f64::from(connections)),
        quiet: true,
        interval: INTERVAL,
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
    let stayed = stayed.map_err(|_| anyhow!("a thread panicked"))?;
    // Ctrl-C reaches all that run at that time, and is nobody's failure.
    if [Some(&stayed), Some(&gone), back.as_ref()].into_iter().flatten().any(is_ended_early) {
        bail!("ended before the storm was over");
    }
    let (stayed, gone) = (stayed.context("those that stay")?, gone.context("those that go")?);
    let back = back.ok_or_else(|| anyhow!("ended before the storm"))?.context("those that come back")?;
    let asked = Asked {
        connections,
        dropped,
        cut: if args.cut == Cut::Rst { "rst" } else { "fin" },
        jitter_s: args.jitter.as_secs_f64(),
        slo: args.slo.clone(),
        quantile,
        interval_ms: INTERVAL.as_millis() as u64,
    };
    let mut outcome = Outcome { storm: storm::judge(&asked, &stayed, &gone, &back), stayed, gone, back };
    for result in [&mut outcome.stayed, &mut outcome.gone, &mut outcome.back] {
        verdict::judge(result, std::slice::from_ref(&args.slo));
    }
    if let Some(dir) = &args.out {
        write(&outcome, dir)?;
    }
    Ok(outcome)
}

fn is_ended_early(run: &Result<RunResult, RunError>) -> bool {
    matches!(run, Err(RunError::EndedEarly(_)))
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

fn write(outcome: &Outcome, dir: &Path) -> Result<()> {
    for (name, result) in [("stayed", &outcome.stayed), ("gone", &outcome.gone), ("back", &outcome.back)] {
        store::write_dir(result, &dir.join(name))?;
    }
    let path = dir.join(STORM_FILE);
    let text = serde_json::to_string_pretty(&outcome.storm)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let path = dir.join(store::REPORT_FILE);
    let page = report::storm_html(&outcome.storm, &outcome.stayed, &outcome.gone, &outcome.back);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// What it came to, for people.
pub fn text(outcome: &Outcome) -> String {
    let storm = &outcome.storm;
    let mut lines = vec![format!("{}  {}", storm.verdict(), storm.sentence())];
    let found = storm.lines(&outcome.stayed, &outcome.back);
    lines.extend(found.into_iter().map(|(name, value)| format!("  {name:<14} {value}")));
    let missed = outcome.stayed.slos.iter().filter(|slo| slo.outcome == SloOutcome::Fail);
    lines.extend(
        missed.map(|slo| format!("  over the whole run, those that stayed missed {}", slo.sentence())),
    );
    lines.push(String::new());
    lines.join("\n")
}
