//! `resound-load`: the command line, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    resound_load::cli::main()
}
