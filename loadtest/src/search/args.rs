//! The flags of `resound-load search`, and what they mean together.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Command, ValueEnum};

use super::hunt::Aim;
use crate::engine::args::{self, Mode, RunArgs};
use crate::engine::size::Sizes;
use crate::result::model;
use crate::result::slo::Slo;

/// The most connections of a step.
const CONNECTIONS_MAX: u64 = 16_000_000;
/// The most searches of a surface: a table that people can still read.
const CELLS_MAX: usize = 100;

/// What a search varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Over {
    /// Messages (with --mode connect: connects) a second
    Rate,
    /// Connections, at a fixed --rate or at --rate-each
    Connections,
    /// Connections that get every publication of a broadcast
    Subscribers,
    /// Closed loop: connections with one message in flight each; every level is driven, and the scalability
    /// law is fitted
    InFlight,
}

impl From<Over> for model::Over {
    fn from(over: Over) -> Self {
        match over {
            Over::Rate => model::Over::Rate,
            Over::Connections => model::Over::Connections,
            Over::Subscribers => model::Over::Subscribers,
            Over::InFlight => model::Over::InFlight,
        }
    }
}

/// The flags of `resound-load search`.
#[derive(Clone, Debug, Args)]
pub struct SearchArgs {
    /// Flags of each step.
    #[command(flatten)]
    pub load: RunArgs,

    /// What to vary
    #[arg(long, value_enum, help_heading = "Search")]
    pub over: Over,
    /// An objective, repeatable: p99.9<5ms, max<1s, errors<0.1%
    #[arg(long, value_name = "EXPRESSION", help_heading = "Search")]
    pub slo: Vec<Slo>,
    /// The first load; nothing below it is tried [default: 100 messages/s, 10 connections, 1 in flight]
    #[arg(long, value_name = "LOAD", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Search")]
    pub from: Option<u64>,
    /// The highest load tried [default: 10000000 messages/s, 1000000 connections, 128 in flight]
    #[arg(long, value_name = "LOAD", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Search")]
    pub to: Option<u64>,
    /// How close the lowest bad load must be above the knee
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = share, help_heading = "Search")]
    pub precision: f64,
    /// How often the knee is found (in flight: how often each level is driven)
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Search")]
    pub repeat: u32,
    /// The measured part of the step that confirms the knee [default: four times --step-duration]
    #[arg(long, value_name = "TIME", value_parser = args::duration, help_heading = "Search")]
    pub confirm_duration: Option<Duration>,
    /// The shortest wait between steps; it is longer while TIME_WAIT holds a material part of the ports
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = args::duration, help_heading = "Search")]
    pub cooldown: Duration,
    /// Over connections or subscribers: messages a second for each of them, so that the rate grows with them
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "rate", value_parser = args::positive, help_heading = "Search")]
    pub rate_each: Option<f64>,
    /// In flight: concurrency to predict the throughput at, repeatable
    #[arg(long, value_name = "COUNT", value_parser = args::positive, help_heading = "Search")]
    pub predict: Vec<f64>,
    /// Over the rate: search once for each of these counts of connections, in one run and one report: 50,500,2000
    #[arg(long, value_name = "COUNT,COUNT,…", conflicts_with = "connections", help_heading = "Search")]
    pub surface_connections: Option<String>,
    /// Over the rate: search once for each of these sizes of a message (for each count of connections): 20,1KiB,16KiB
    #[arg(long, value_name = "OCTETS,OCTETS,…", conflicts_with = "size", help_heading = "Search")]
    pub surface_size: Option<String>,
    /// Write result.json, report.html and the other files of the knee's run into this directory; of a surface also those
    /// of each combination, into DIR/cells
    #[arg(long, value_name = "DIR", help_heading = "Search")]
    pub out: Option<PathBuf>,
}

/// Turns the flags of `run` into those of a step: the search chooses the load, and `--duration` is a step's.
pub fn of_a_step(command: Command) -> Command {
    command
        .mut_group("load", |group| group.required(false))
        .mut_arg("duration", |arg| {
            arg.long("step-duration")
                .default_value("5s")
                .help("The measured part of a step")
                .help_heading("Search")
        })
        .mut_arg("max", |arg| arg.hide(true))
        .mut_arg("in_flight", |arg| arg.hide(true))
}

/// `5%`.
fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match number {
        Some(percent) if (0.1..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("a percentage between 0.1% and 100% is needed, such as 5%".to_owned()),
    }
}

/// A list whose entries differ, each with how it was written.
fn list<T: PartialEq>(
    flag: &str,
    text: &str,
    example: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Vec<(String, T)>> {
    let mut found: Vec<(String, T)> = Vec::new();
    for entry in text.split(',').map(str::trim) {
        if entry.is_empty() {
            bail!("{flag} '{text}': an entry is missing (write {example})");
        }
        let value = parse(entry).map_err(|why| anyhow!("{flag} '{text}': {why} (write {example})"))?;
        if let Some((twin, _)) = found.iter().find(|(_, other)| *other == value) {
            bail!("{flag} '{text}': {entry} is there already, as {twin}");
        }
        found.push((entry.to_owned(), value));
    }
    Ok(found)
}

fn count(entry: &str) -> Result<u32, String> {
    match entry.parse() {
        Ok(count) if (1..=CONNECTIONS_MAX).contains(&count) => Ok(count as u32),
        _ => Err(format!("'{entry}' is no count of connections between 1 and {CONNECTIONS_MAX}")),
    }
}

fn size(entry: &str) -> Result<Sizes, String> {
    match entry.parse()? {
        // Its commas would be those of the list.
        Sizes::Weighted(_) => Err(format!("'{entry}' is part of a mixture, which a list cannot hold")),
        size => Ok(size),
    }
}

impl SearchArgs {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// One line about the flags that do not go together.
    pub fn aim(&self) -> Result<Aim> {
        if self.load.max || self.load.in_flight > 1 {
            bail!("--max and --in-flight: use --over in-flight, which drives closed loops by itself");
        }
        if self.slo.is_empty() && self.over != Over::InFlight {
            bail!("--slo: say what must hold at the knee, such as --slo 'p99.9<5ms'");
        }
        match self.over {
            Over::Rate if self.load.rate.is_some() || self.rate_each.is_some() => {
                bail!(
                    "--rate and --rate-each: with --over rate the search chooses the rate (see --from and --to)"
                )
            }
            Over::InFlight if self.load.rate.is_some() || self.rate_each.is_some() => {
                bail!("--rate and --rate-each: --over in-flight drives a closed loop, which has no rate")
            }
            Over::Connections | Over::Subscribers if self.load.rate.is_none() && self.rate_each.is_none() => {
                bail!(
                    "--rate or --rate-each: say how many messages the {} carry",
                    model::Over::from(self.over).name()
                )
            }
            _ => {}
        }
        match (self.over, self.load.mode) {
            (Over::Subscribers, Mode::Broadcast) => {}
            (Over::Subscribers, _) => bail!("--over subscribers goes with --mode broadcast"),
            (Over::Connections | Over::InFlight, Mode::Connect) => {
                bail!("--mode connect goes with --over rate: it opens connections at a rate")
            }
            (Over::InFlight, Mode::Broadcast) => bail!("--over in-flight goes with --mode echo"),
            _ => {}
        }
        if self.over == Over::InFlight && self.load.churn > 0.0 {
            bail!("--churn does not go with --over in-flight");
        }
        let (from, to) = match self.over {
            Over::Rate => (100, 10_000_000),
            Over::Connections | Over::Subscribers => (10.max(self.load.publishers.into()), 1_000_000),
            Over::InFlight => (1, 128),
        };
        let aim = Aim {
            from: self.from.unwrap_or(from),
            to: self.to.unwrap_or(to),
            precision: self.precision,
            rounds: self.repeat,
        };
        if aim.from > aim.to {
            bail!("--from {} is above --to {}", aim.from, aim.to);
        }
        self.surface()?;
        if self.over != Over::Rate && aim.to > CONNECTIONS_MAX {
            bail!("--to {}: at most {CONNECTIONS_MAX} connections", aim.to);
        }
        Ok(aim)
    }

    /// The combinations of --surface-connections and --surface-size, each with the flags of its search, in the order in
    /// which they are written; none without these flags.
    ///
    /// # Errors
    /// One line about the flags that do not go together.
    pub fn surface(&self) -> Result<Vec<(String, SearchArgs)>> {
        if self.surface_connections.is_none() && self.surface_size.is_none() {
            return Ok(Vec::new());
        }
        if self.over != Over::Rate {
            bail!(
                "--surface-connections and --surface-size: they go with --over rate, which is the third axis"
            );
        }
        let connections = match &self.surface_connections {
            Some(text) => list("--surface-connections", text, "50,500,2000", count)?,
            None => vec![(String::new(), self.load.connections)],
        };
        let sizes = match &self.surface_size {
            Some(text) => list("--surface-size", text, "20,1KiB,16KiB", size)?,
            None => vec![(self.load.size.to_string(), self.load.size.clone())],
        };
        let count = connections.len() * sizes.len();
        if count > CELLS_MAX {
            bail!(
                "--surface-connections and --surface-size: {count} searches are more than {CELLS_MAX} in one run"
            );
        }
        let of = |connections: u32, size: &Sizes| SearchArgs {
            load: RunArgs { connections, size: size.clone(), ..self.load.clone() },
            ..self.clone()
        };
        let cells = connections.iter().flat_map(|(_, connections)| {
            sizes.iter().map(|(name, size)| (name.clone(), of(*connections, size)))
        });
        Ok(cells.collect())
    }

    /// The flags of a step at this load, without its duration.
    pub fn step(&self, load: u64) -> RunArgs {
        let mut step = RunArgs { quiet: true, ..self.load.clone() };
        match self.over {
            Over::Rate => step.rate = Some(load as f64),
            Over::Connections | Over::Subscribers => {
                step.connections = load as u32;
                step.publishers = step.publishers.min(step.connections);
                step.rate = self.rate_each.map(|each| each * load as f64).or(step.rate);
            }
            Over::InFlight => {
                (step.connections, step.in_flight, step.max) = (load as u32, 1, true);
            }
        }
        step
    }
}
