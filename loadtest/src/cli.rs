//! The command line: subcommands, and what their exit codes mean.
//!
//! 0: all good. 1: the verdict is not VALID, or a comparison found what `--fail-if` forbids. 2: it could not be done
//! (bad flags, no server, an unreadable file), with one line that says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::engine::args::RunArgs;
use crate::result::compare::{self, Condition, FailIf};
use crate::result::model::{Cell, Ending, RunResult, VerdictKind};
use crate::result::slo::Slo;
use crate::result::{merge, store, table, verdict};
use crate::search::args::{SearchArgs, of_a_step};
use crate::search::storm::{self, StormArgs, of_a_storm};

/// Drive a WebSocket echo or broadcast server, and record its latency.
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
    Run(Box<RunCommand>),
    /// Find the highest load that meets the objectives, and what stops it there.
    Search(Box<SearchArgs>),
    /// Drop part of the connections at once, let them come back, and say when all is well again.
    Storm(Box<StormArgs>),
    /// Print a result again, and write its report.
    Report(ReportArgs),
    /// Make one result of several: generators at once, or repetitions.
    Merge(MergeArgs),
    /// Say whether new runs differ from base runs, with intervals from repetitions.
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
    /// Write result.json, report.html, latency.hlog and .hgrm files into this directory.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// An objective, repeatable: p99.9<5ms, max<1s, mean<2ms, errors<0.1%, achieved>=99%, upgrade:p99<50ms.
    #[arg(long, value_name = "EXPRESSION")]
    pub slo: Vec<Slo>,
}

/// Flags of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// A result.json, or the directory that holds one.
    pub result: PathBuf,
    /// Another result, laid over this one in the report.
    #[arg(long, value_name = "RESULT")]
    pub baseline: Option<PathBuf>,
    /// Where the report goes [default: report.html beside the result].
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Judge by these objectives instead of those of the run; then the exit code is the verdict's.
    #[arg(long, value_name = "EXPRESSION")]
    pub slo: Vec<Slo>,
}

/// Flags of `merge`.
#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// Results to merge: files, directories that hold a result.json, or directories of such directories.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// Where the merged result goes.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Judge by these objectives instead of those of the runs.
    #[arg(long, value_name = "EXPRESSION")]
    pub slo: Vec<Slo>,
}

/// Flags of `compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Base runs: files, directories that hold a result.json, or directories of such directories.
    #[arg(required = true)]
    pub base: Vec<PathBuf>,
    /// New runs, given the same way.
    #[arg(long, required = true, num_args = 1..)]
    pub new: Vec<PathBuf>,
    /// Exit with 1 when a change beyond this is shown, repeatable: p99>+10%, rate<-5%.
    #[arg(long, value_name = "CONDITION")]
    pub fail_if: Vec<FailIf>,
    /// Compare also runs whose verdict is GENERATOR-LIMITED or ENVIRONMENT-LIMITED.
    #[arg(long)]
    pub accept_limited: bool,
    /// Write a report of the new runs with the base laid over it.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Parses the command line, does it, and returns the exit code.
pub fn main() -> ExitCode {
    let matches =
        Cli::command().mut_subcommand("search", of_a_step).mut_subcommand("storm", of_a_storm).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = match cli.command {
        Command::Run(command) => run(&command),
        Command::Search(args) => search(&args),
        Command::Storm(args) => make_storm(&args),
        Command::Report(args) => report(args),
        Command::Merge(args) => merge(args),
        Command::Compare(args) => compare(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("resound-load: {error:#}");
        ExitCode::from(2)
    })
}

fn run(command: &RunCommand) -> Result<ExitCode> {
    let mut result = crate::engine::run(&command.load)?;
    finish(&mut result, &command.output.slo, command.output.out.as_deref())?;
    Ok(exit_code(&result))
}

fn search(args: &SearchArgs) -> Result<ExitCode> {
    let result = crate::search::search(args)?;
    print_and_write(&result, args.out.as_deref())?;
    let is_answer = |ending| matches!(ending, Ending::Found | Ending::EndOfRange | Ending::Swept);
    let answered = result.capacity.is_some_and(|capacity| is_answer(capacity.ending))
        && result.surface.iter().all(Cell::is_answered)
        && result.surface.len() == args.surface()?.len();
    Ok(if answered { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn make_storm(args: &StormArgs) -> Result<ExitCode> {
    let outcome = storm::storm(args)?;
    anstream::print!("{}", storm::text(&outcome));
    if let Some(dir) = &args.out {
        anstream::println!("Report: {}", dir.join(store::REPORT_FILE).display());
    }
    Ok(if outcome.storm.recovered { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn report(args: ReportArgs) -> Result<ExitCode> {
    let mut result = store::read(&args.result)?;
    if !args.slo.is_empty() {
        verdict::judge(&mut result, &args.slo);
    }
    let baseline = args.baseline.as_deref().map(store::read).transpose()?;
    let html =
        args.html.unwrap_or_else(|| store::result_path(&args.result).with_file_name(store::REPORT_FILE));
    store::write_report(&result, baseline.as_ref(), &html)?;
    anstream::print!("{}", table::text(&result));
    anstream::println!("Report: {}", html.display());
    Ok(if args.slo.is_empty() { ExitCode::SUCCESS } else { exit_code(&result) })
}

fn merge(args: MergeArgs) -> Result<ExitCode> {
    let runs = read_runs(&args.results)?;
    let mut slos = args.slo;
    if slos.is_empty() {
        slos = slos_of(&runs);
    }
    let mut result = merge::merge(runs)?;
    finish(&mut result, &slos, Some(&args.out))?;
    Ok(exit_code(&result))
}

/// Every objective that any of the runs was judged by.
fn slos_of(runs: &[(PathBuf, RunResult)]) -> Vec<Slo> {
    let mut expressions: Vec<&str> =
        runs.iter().flat_map(|(_, run)| &run.slos).map(|slo| slo.expression.as_str()).collect();
    expressions.sort_unstable();
    expressions.dedup();
    expressions.into_iter().filter_map(|expression| expression.parse().ok()).collect()
}

/// Judges a result, writes it where asked, and prints it.
fn finish(result: &mut RunResult, slos: &[Slo], out: Option<&Path>) -> Result<()> {
    verdict::judge(result, slos);
    print_and_write(result, out)
}

fn print_and_write(result: &RunResult, out: Option<&Path>) -> Result<()> {
    anstream::print!("{}", table::text(result));
    if let Some(dir) = out {
        store::write_dir(result, dir)?;
        anstream::println!("Report: {}", dir.join(store::REPORT_FILE).display());
    }
    Ok(())
}

fn exit_code(result: &RunResult) -> ExitCode {
    if result.verdict.kind == VerdictKind::Valid { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let (base, new) = (read_runs(&args.base)?, read_runs(&args.new)?);
    let changes = compare::compare(&base, &new, args.accept_limited)?;
    anstream::print!("{}", table::changes(&changes, base.len(), new.len()));
    let mut failed = false;
    for condition in &args.fail_if {
        let (outcome, change) = condition
            .evaluate(&base, &new)
            .with_context(|| format!("condition '{condition}': a run has nothing to compare"))?;
        failed |= outcome == Condition::Failed;
        anstream::println!("{}", table::condition(condition, outcome, &change));
    }
    if let Some(html) = &args.html {
        let slos = slos_of(&new);
        let (base, mut new) = (merge::merge(base)?, merge::merge(new)?);
        verdict::judge(&mut new, &slos);
        store::write_report(&new, Some(&base), html)?;
        anstream::println!("Report: {}", html.display());
    }
    Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Reads runs: a file, a directory with a result.json, or every such directory in a directory, in order of names.
fn read_runs(paths: &[PathBuf]) -> Result<Vec<(PathBuf, RunResult)>> {
    let mut runs = Vec::new();
    for path in paths {
        if !path.is_dir() || path.join(store::RESULT_FILE).exists() {
            runs.push((path.clone(), store::read(path)?));
            continue;
        }
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.join(store::RESULT_FILE).exists())
            .collect();
        if found.is_empty() {
            bail!("there is no {} in {} or in the directories in it", store::RESULT_FILE, path.display());
        }
        found.sort();
        for path in found {
            let run = store::read(&path)?;
            runs.push((path, run));
        }
    }
    Ok(runs)
}
