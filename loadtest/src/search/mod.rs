//! `resound-load search`: the highest load that meets the objectives, and what stops it there.
//!
//! ```text
//! args -> hunt (which load next) -> driver: cooldown, engine::run, verdict, result::capacity::limit
//!                                           '-- watch (the server's threads, the machine, kernel memory)
//! ```
//!
//! Percentiles are those of the measured part, never of a ramp. Start at [`search`].

pub mod args;
mod driver;
pub mod hunt;
pub mod storm;
mod surface;
mod watch;

use anyhow::{Error, Result, bail};

use self::args::{Over, SearchArgs};
use self::driver::{Driver, Machine};
use crate::engine::RunError;
use crate::result::model::{Capacity, Ending, Fit, Point, RunResult, SearchStep, VerdictKind};
use crate::result::{capacity, usl};

/// Searches, and returns the run at the knee (without one: the last) with all steps and what they came to; of a surface
/// the run at its highest knee, with all its cells.
///
/// # Errors
/// One line, if no step could be taken at all.
pub fn search(args: &SearchArgs) -> Result<RunResult> {
    let aim = args.aim()?;
    let cells = args.surface()?;
    if !cells.is_empty() {
        return surface::drive(args, aim, &cells);
    }
    let mut machine = Machine::new(args.load.server_pid)?;
    let found = seek(args, aim, &mut machine);
    match (found.run, found.error) {
        (None, Some(error)) => Err(error.into()),
        (None, None) => match found.steps.last() {
            Some(refused) => bail!("not even the first load is possible here: {}", refused.cause),
            None => bail!("ended before a step was done"),
        },
        (Some(run), error) => {
            if let Some(error) = error {
                eprintln!("resound-load: the search ends here: {:#}", Error::from(error));
            }
            Ok(RunResult { search: found.steps, capacity: Some(found.capacity), ..run })
        }
    }
}

/// What one search came to.
struct Found {
    capacity: Capacity,
    /// Every attempt, in order.
    steps: Vec<SearchStep>,
    /// The run at the knee, or else the last one; none where no step could be taken.
    run: Option<RunResult>,
    /// Why it could not go on.
    error: Option<RunError>,
}

/// One search, from cold to its answer.
fn seek(args: &SearchArgs, aim: hunt::Aim, machine: &mut Machine) -> Found {
    let mut driver = Driver::new(args, machine);
    let (quarry, ending) = if args.over == Over::InFlight {
        (None, driver.sweep(aim))
    } else {
        let quarry = hunt::hunt(aim, |step| driver.step(step));
        let ending = ending_of(quarry.ending);
        (Some(quarry), ending)
    };
    let knee_step = quarry.as_ref().and_then(|quarry| quarry.knee_step).map(|taken| driver.decisive[taken]);
    let stopped = match &quarry {
        Some(quarry) if ending != Ending::Unknown => quarry.bad_step.map(|taken| driver.decisive[taken]),
        _ => driver.steps.len().checked_sub(1),
    };
    if let Some(index) = knee_step {
        driver.steps[index].knee = true;
    }
    let fitted = (args.over == Over::InFlight).then(|| fit(&driver.steps, &args.predict, args.load.seed));
    let (law, law_refused) = match fitted {
        Some(Ok(fit)) => (Some(fit), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let knee = knee_step.map(|index| &driver.steps[index]);
    let knees = quarry.map_or_else(Vec::new, |quarry| quarry.knees.iter().map(|knee| *knee as f64).collect());
    let capacity = Capacity {
        over: args.over.into(),
        ending,
        knee: knee.map(|step| step.load),
        spread_ratio: capacity::spread_ratio(&knees),
        knees,
        precision_ratio: aim.precision,
        limit: stopped.and_then(|index| driver.steps[index].limit.clone()),
        msgs_per_s_per_server_core: knee.and_then(|step| {
            let cores = step.seen.server_cpu_percent.filter(|percent| *percent > 0.0)? / 100.0;
            Some(step.achieved_msgs_per_s / cores)
        }),
        connection: driver.connection_cost(),
        law,
        law_refused,
    };
    let run = driver.at_knee(knee_step);
    Found { capacity, run, error: driver.error, steps: driver.steps }
}

fn ending_of(ending: hunt::Ending) -> Ending {
    match ending {
        hunt::Ending::Found => Ending::Found,
        hunt::Ending::EndOfRange => Ending::EndOfRange,
        hunt::Ending::NeverGood => Ending::NeverGood,
        hunt::Ending::Unknown => Ending::Unknown,
        hunt::Ending::Unconfirmed => Ending::Unconfirmed,
        hunt::Ending::Interrupted => Ending::Interrupted,
    }
}

/// The law of closed-loop concurrency, from the steps whose numbers are the server's.
fn fit(steps: &[SearchStep], predict: &[f64], seed: u64) -> Result<Fit, String> {
    let valid = steps.iter().filter(|step| step.verdict == VerdictKind::Valid);
    let points: Vec<Point> =
        valid.map(|step| Point { n: step.load, x_msgs_per_s: step.achieved_msgs_per_s }).collect();
    let left_out = steps.len() - points.len();
    usl::fit(&points, predict, seed).map_err(|why| match left_out {
        0 => why,
        some => format!("{why} ({some} of {} steps were not VALID and are left out)", steps.len()),
    })
}
