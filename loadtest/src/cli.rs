//! The command line: subcommands, and what their exit codes mean.
//!
//! 0: all good; 1: the verdict is not VALID, or a comparison found what `--fail-if` forbids; 2: it could not be
//! done (bad flags, no server, an unreadable file), with one line that says why.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::engine::args::RunArgs;

/// Drive a WebSocket echo or broadcast server and record its latency.
#[derive(Debug, Parser)]
#[command(version, name = "resound-load")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Drive a server, and say what came of it.
    Run(RunCommand),
    /// Print a result again, and write its report.
    Report(ReportArgs),
    /// Make one result of several runs of the same plan.
    Merge(MergeArgs),
    /// Say whether new runs differ from base runs, with intervals.
    Compare(CompareArgs),
}

/// Flags of `run`: those of the engine, and what is done with the result.
#[derive(Debug, clap::Args)]
pub struct RunCommand {
    /// Flags of the engine.
    #[command(flatten)]
    pub load: RunArgs,
    /// Flags of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is done with a result.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// Write result.json, report.html, .hgrm and .hlog files into this directory.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// An objective, repeatable: p99.9<5ms, max<1s, mean<2ms, errors<0.1%, achieved>=99%.
    #[arg(long, value_name = "EXPRESSION")]
    pub slo: Vec<String>,
}

/// Flags of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// A result.json, or the directory that holds one.
    pub result: PathBuf,
}

/// Flags of `merge`.
#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// Results to merge: files, or directories that hold a result.json.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
}

/// Flags of `compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Base runs: files, or directories that hold a result.json.
    #[arg(required = true)]
    pub base: Vec<PathBuf>,
}

/// Parses the command line, does it, and returns the exit code.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(command) => crate::engine::run(&command.load).map(|_| ExitCode::SUCCESS),
        _ => Err(anyhow::anyhow!("not in this build")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("resound-load: {error:#}");
        ExitCode::from(2)
    })
}
