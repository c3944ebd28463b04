//! Flags, then [`Server`]; signals, then the drain; SIGHUP reads certificates again; what malloc does with
//! memory; nothing else.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use resound::config::Config;
use resound::server::{ProcessMemory, Server};
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

/// How often it is looked how much memory the process takes.
const MEMORY_PERIOD: Duration = Duration::from_millis(100);
/// After so many of these it is looked whether a peak is over,
const PEAK_PERIODS: u32 = 20;
/// and malloc gives back what it keeps if the ceiling is near.
const TIGHT_PERIODS: u32 = 5;

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

/// Tells the ceiling what the process really takes, and has malloc give back what it keeps: when the ceiling is near,
/// and when a peak is over. The echo of messages shorter than a receive buffer takes nothing from malloc, so it does not
/// wait for this.
fn look_after_memory(mut memory: ProcessMemory) {
    std::thread::spawn(move || {
        for period in 1_u32.. {
            std::thread::sleep(MEMORY_PERIOD);
            let is_tight = memory.set_resident(resident_octets());
            let is_peak_over = period % PEAK_PERIODS == 0 && memory.is_peak_over();
            if is_peak_over || (is_tight && period % TIGHT_PERIODS == 0) {
                #[cfg(target_env = "gnu")]
                // SAFETY: it takes malloc's own locks, and touches only what is free.
                unsafe {
                    libc::malloc_trim(0)
                };
                tracing::debug!(is_peak_over, is_tight, "gave free memory back to the system");
            }
        }
    });
}

/// Octets of the process that are in memory; 0 where /proc does not say.
fn resident_octets() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0_usize) * 1024
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

    look_after_memory(server.memory());
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
