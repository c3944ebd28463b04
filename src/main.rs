//! Flags, then [`Server`]; signals, then the drain; SIGHUP reads certificates again; what malloc does with
//! memory; nothing else.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use resound::config::Config;
use resound::server::Server;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The server could not start: a bad flag, a port in use, …
const EXIT_START: u8 = 2;
/// A worker failed while serving.
const EXIT_FAILED: u8 = 1;
/// A second signal ended the drain.
const EXIT_IMPATIENT: i32 = 130;

/// The longest block that malloc takes from the heap instead of mapping it anew: the longest that glibc allows.
const MALLOC_MAP_BYTES: i32 = 32 << 20;
/// So much at the end of a heap is kept when it is free.
const MALLOC_KEEP_BYTES: i32 = 2 * MALLOC_MAP_BYTES;

fn main() -> ExitCode {
    keep_large_blocks();
    let config = Config::parse();
    let server = match start(config) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("resound: {error:#}");
            return ExitCode::from(EXIT_START);
        }
    };
    match server.join() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("resound: a worker failed: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Has malloc use the memory of one large message for the next, instead of giving it back to the kernel and taking it
/// from there again page by page. These are the limits to which glibc moves by itself once a block of 32 MiB was freed.
fn keep_large_blocks() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, MALLOC_MAP_BYTES), (libc::M_TRIM_THRESHOLD, MALLOC_KEEP_BYTES)]
    {
        // SAFETY: it sets a number of malloc's, before there is another thread. If it fails, all works as before.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Has malloc give back to the system what it keeps for later. The echo of messages shorter than a receive buffer takes
/// nothing from malloc, so it does not wait for this.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes malloc's own locks, and touches only what is free.
    unsafe {
        libc::malloc_trim(0)
    };
    tracing::debug!("gave free memory back to the system");
}

fn start(config: Config) -> anyhow::Result<Server> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals")?;
    if config.tls_options().is_some() {
        signals.add_signal(SIGHUP).context("signals")?;
    }
    // Its message says the cause already: no chain.
    let server = Server::start(config.clone()).map_err(|error| anyhow::anyhow!("{error}"))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let flags: Vec<String> = std::env::args().skip(1).collect();
    let (version, workers) = (env!("CARGO_PKG_VERSION"), server.worker_count());
    let (io, nofile, kernel, flags) = (server.io(), server.nofile(), kernel.trim_end(), flags.join(" "));
    tracing::info!(version, kernel, ?io, workers, nofile, flags, "serving");
    tracing::debug!(?config);

    server.look_after_memory(give_back_memory);
    let (stop, reload) = (server.stopper(), server.reloader());
    std::thread::spawn(move || {
        let mut drains = false;
        for signal in signals.forever() {
            match (signal, &reload) {
                (SIGHUP, Some(reload)) => reload(),
                (SIGHUP, None) => {}
                _ if drains => std::process::exit(EXIT_IMPATIENT),
                _ => {
                    drains = true;
                    let drain_ms = config.drain_ms;
                    tracing::info!(signal, drain_ms, "draining; a second signal ends at once");
                    stop();
                }
            }
        }
    });

    let mut stdout = std::io::stdout().lock();
    for url in server.urls() {
        // Nobody may be reading: that is no reason not to serve.
        let _ = writeln!(stdout, "listening on {url}");
    }
    if let Some(fingerprint) = server.fingerprint() {
        let _ = writeln!(stdout, "certificate SHA-256 fingerprint: {fingerprint}");
    }
    let _ = stdout.flush();
    Ok(server)
}
