//! The engine: everything that makes load and records what came of it.

pub mod args;

use crate::result::model::RunResult;

/// Drives the server as the flags say. The result is not judged yet (no `slos`, no `verdict`).
///
/// # Errors
/// One sentence that says why nothing could be measured (bad URL, no server, an impossible plan).
pub fn run(_args: &args::RunArgs) -> anyhow::Result<RunResult> {
    anyhow::bail!("this build has no engine")
}
