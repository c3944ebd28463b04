//! Attacks the server with all that peers may do, and shows what that does to those who behave.
//! `scripts/abuse.sh` runs it; `docs/limits.md` has what it printed.
//!
//! `latency` is about what others wait for, `memory` about what the server takes. Both start the servers that
//! they attack, on a free port of loopback.

mod attackers;
mod crowd;
mod floods;
mod hoards;
mod latency;
mod memory;
mod probe;
mod server;
mod wire;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// How long replies take beside attackers, against how long they take alone.
    Latency(latency::Arguments),
    /// How much memory attackers make the server take, and whether others notice.
    Memory(memory::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    resound::net::raise_nofile()?;
    let holds = match arguments.command {
        Task::Latency(arguments) => latency::run(&arguments)?,
        Task::Memory(arguments) => memory::run(&arguments)?,
    };
    Ok(ExitCode::from(u8::from(!holds)))
}

/// Tells who watches what is done now; the next call takes it back.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
