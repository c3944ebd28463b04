//! The surface connections x rate x size: the same search over the rate for each combination, one after the other.
//!
//! Each begins as cold as the first. One that cannot be measured says so and ends no other; an interrupt ends all, and
//! keeps those so far. Start at [`drive`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail};

use super::args::SearchArgs;
use super::driver::Machine;
use super::hunt::Aim;
use super::{Found, seek};
use crate::engine;
use crate::result::model::{Cell, RunResult};
use crate::result::store;
use crate::result::surface::title;

/// The directory of the cells in that of the surface.
const CELLS_DIR: &str = "cells";

/// Searches for each of `cells`, and returns the run at the highest knee, with all cells.
///
/// # Errors
/// One line, if the flags of a combination make no sense (before any is driven), or if no step of any could be taken.
pub(super) fn drive(args: &SearchArgs, aim: Aim, cells: &[(String, SearchArgs)]) -> Result<RunResult> {
    for (size, of_a_cell) in cells {
        let load = of_a_cell.step(aim.from);
        engine::check(&load).with_context(|| title(load.connections.into(), size))?;
    }
    let mut machine = Machine::new(args.load.server_pid)?;
    let mut surface: Vec<Cell> = Vec::new();
    let mut best: Option<RunResult> = None;
    for (index, (size, of_a_cell)) in cells.iter().enumerate() {
        let load = &of_a_cell.load;
        let (connections, name) = (u64::from(load.connections), title(load.connections.into(), size));
        say(args, &format!("cell {} of {}: {name}", index + 1, cells.len()));
        let Found { capacity, steps, run, error } = seek(of_a_cell, aim, &mut machine);
        if steps.is_empty() && machine.interrupted() {
            break;
        }
        let cell = Cell {
            connections,
            size: size.clone(),
            min_octets: load.size.min() as u64,
            max_octets: load.size.max() as u64,
            capacity,
            steps,
            error: error.map(|error| format!("{:#}", Error::from(error))),
        };
        say(args, &format!("{name}: {}", cell.answer()));
        if let Some(run) = run {
            let run = RunResult { search: cell.steps.clone(), capacity: Some(cell.capacity.clone()), ..run };
            if let Some(dir) = &args.out {
                keep(&run, &dir_of(&cell, dir));
            }
            if best.as_ref().is_none_or(|best| knee(&run) > knee(best)) {
                best = Some(run);
            }
        }
        surface.push(cell);
        if machine.interrupted() {
            break;
        }
    }
    match (best, surface.first()) {
        (Some(run), _) => Ok(RunResult { surface, ..run }),
        (None, Some(first)) => bail!("no combination could be driven; {}: {}", first.title(), first.answer()),
        (None, None) => bail!("ended before a step was done"),
    }
}

fn knee(run: &RunResult) -> Option<f64> {
    run.capacity.as_ref().and_then(|capacity| capacity.knee)
}

/// `DIR/cells/c50-s1KiB`.
fn dir_of(cell: &Cell, dir: &Path) -> PathBuf {
    let size = cell.size.replace([':', ','], "_");
    dir.join(CELLS_DIR).join(format!("c{}-s{size}", cell.connections))
}

/// Writes a cell as it ends, so that hours of measuring do not hang on the last minute. Where it cannot be written, the
/// others still can be measured.
fn keep(run: &RunResult, dir: &Path) {
    if let Err(error) = store::write_dir(run, dir) {
        eprintln!("resound-load: {error:#}");
    }
}

fn say(args: &SearchArgs, what: &str) {
    if !args.load.quiet {
        eprintln!("{what}");
    }
}
