//! The whole server in memory, over many seeds: see `resound::net::sim`.
//!
//! A failure prints its seed; `RESOUND_SEED=N` runs that seed alone, `RESOUND_SEEDS=N` more of them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use clap::Parser as _;
use resound::config::Config;
use resound::net::sim::Script;
use resound::server::Drive;

/// In so many turns everything has happened that can.
pub(crate) const TURNS_MAX: u32 = 1_000_000;

/// Receives are small, so that they are many.
pub(crate) fn config(flags: &[&str]) -> Config {
    Config::parse_from([&["resound", "--receive-buffer-bytes", "4096"], flags].concat())
}

/// Runs `test` with every seed, each driven by readiness and by a simulated ring.
pub(crate) fn each_seed(test: impl Fn(u64, Drive)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RESOUND_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RESOUND_SEEDS").unwrap_or(100),
    };
    for (seed, drive) in seeds.flat_map(|seed| [(seed, Drive::Readiness), (seed, Drive::Ring)]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed, drive))) {
            eprintln!("failed with RESOUND_SEED={seed}, driven by {drive:?}");
            resume_unwind(panic);
        }
    }
}

/// A peer that sends this, then FIN, and reads what comes.
pub(crate) fn script(sends: Vec<u8>) -> Script {
    Script { sends, fin: true, resets: false, capacity: 10_000, reads: true }
}
