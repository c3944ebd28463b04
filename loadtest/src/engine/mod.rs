//! The engine: everything that makes load and records what came of it.
//!
//! ```text
//! args -> plan -> preflight -> probe -> conductor ── threads ──> worker (one per thread)
//!                                           |                      |-- schedule   when what is due
//!            kernel, host, hiccup, live ────+                      |-- links      connections
//!                                                                  |-- stamp      what messages carry
//!                                                                  '-- book       what is written down
//! ```
//!
//! A load thread shares nothing while it runs: it hands a slice of records to the conductor once an interval (a second).
//! Start at [`run`], or at [`worker`] for the hot path.

pub mod args;
mod book;
mod clock;
mod conductor;
mod connection;
mod control;
mod error;
mod hiccup;
mod host;
mod integrity;
pub(crate) mod kernel;
mod links;
mod live;
mod plan;
pub(crate) mod preflight;
mod probe;
mod publications;
mod ring;
mod schedule;
pub mod size;
mod socket;
mod sources;
mod stamp;
mod target;
mod upgrade;
mod worker;

use std::path::Path;
use std::sync::Arc;

pub use self::error::{Before, RunError};
pub use self::preflight::{Shortage, ShortageKind};

use self::clock::Clock;
use self::control::Control;
use self::plan::Plan;
use self::preflight::Limits;
use self::upgrade::Upgrade;
use self::worker::Shared;
use crate::result::model::RunResult;

/// Whether the flags make sense; says nothing about what this machine can do.
///
/// # Errors
/// [`RunError::Flags`]: the flag that makes no sense, and why.
pub fn check(args: &args::RunArgs) -> Result<(), RunError> {
    Plan::new(args).map(drop).map_err(RunError::Flags)
}

/// Drives the server as the flags say. The result is not judged yet (no `slos`, no `verdict`).
///
/// # Errors
/// Why nothing could be measured: bad flags, no server, an impossible plan.
pub fn run(args: &args::RunArgs) -> Result<RunResult, RunError> {
    let plan = Plan::new(args).map_err(RunError::Flags)?;
    let limits = Limits::of_this_machine(Path::new("/proc"));
    let wanted = plan.wanted();
    let shortages = preflight::check(&wanted, &limits);
    if !shortages.is_empty() {
        return Err(RunError::Impossible(shortages));
    }
    preflight::raise_nofile(&limits, preflight::descriptors_needed(&wanted));
    let shared = Arc::new(Shared {
        clock: Clock::start(),
        control: Control::new(plan.threads, plan.publishers),
        upgrade: Upgrade::new(&plan.target, args).map_err(RunError::Flags)?,
        plan,
    });
    let found = probe::probe(&shared).map_err(RunError::Server)?;
    conductor::conduct(args, &shared, found)
}
