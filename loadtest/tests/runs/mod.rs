//! Runs of the engine from within a test, one at a time.

use std::sync::{Mutex, PoisonError};

use clap::Parser;
use resound_load::engine::{self, args::RunArgs};
use resound_load::result::model::RunResult;

/// A run has the machine for itself: two at a time would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

/// The flags of `run`, as on the command line.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the engine with these flags.
pub(crate) fn try_run(url: &str, flags: &str) -> anyhow::Result<RunResult> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let words = ["run", url, "--quiet"].into_iter().chain(flags.split_whitespace());
    Ok(engine::run(&Flags::try_parse_from(words)?.run)?)
}
