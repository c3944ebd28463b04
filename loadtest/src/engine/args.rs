//! The flags of `resound-load run`: what may be said, not whether it can be done ([`super::plan`] checks that).

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use super::schedule::{Arrival, Late};
use super::size::Sizes;
use super::sources::SourceRange;

/// The length of an interval, unless something else is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the connections do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Every message comes back on the connection that sent it.
    #[default]
    Echo,
    /// Every message of a publisher comes back on every connection.
    Broadcast,
    /// Connections are opened at the given rate; each sends one message, gets it back, and is closed.
    Connect,
}

/// Which side closes the TCP connection first, and so keeps the TIME_WAIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CloseFirst {
    /// We do, as soon as the server has answered our Close frame.
    Client,
    /// The server does, after it has answered our Close frame (RFC 6455 §7.1.1); we wait for it.
    #[default]
    Server,
}

/// How the connections end when the run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Goodbye {
    /// With a closing handshake (RFC 6455 §7.1.2).
    #[default]
    Close,
    /// TCP is closed without a Close frame, as when a client's process ends (RFC 6455 §7.1.7).
    Fin,
    /// TCP is reset, as when a client's machine or its network is gone and comes back.
    Rst,
}

/// What load threads wait and receive with, and send with in a closed loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// io_uring for a closed loop (--max), where it can be used, else epoll.
    #[default]
    Auto,
    /// epoll, recv(2) and send(2).
    Epoll,
    /// io_uring (Linux 6.1 or newer): less CPU a message.
    Uring,
}

/// The flags of `resound-load run`.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("load").required(true).args(["rate", "max"])))]
pub struct RunArgs {
    /// The server: ws://HOST:PORT/PATH
    pub url: String,

    /// What the connections do
    #[arg(long, value_enum, default_value_t, help_heading = "Load")]
    pub mode: Mode,
    /// Connections to hold (with --mode connect: the most at a time)
    #[arg(short, long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=16_000_000),
          help_heading = "Load")]
    pub connections: u32,
    /// Open loop: messages (or connects) a second over all connections, on a schedule that waits for nothing
    #[arg(long, value_name = "PER_SECOND", value_parser = positive, help_heading = "Load")]
    pub rate: Option<f64>,
    /// Closed loop: a new message for every reply, as fast as they come; not the latency that users see
    #[arg(long, help_heading = "Load")]
    pub max: bool,
    /// Messages in flight on each connection of a closed loop
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "max",
          value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Load")]
    pub in_flight: u32,
    /// With --mode broadcast: how many of the connections publish
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Load")]
    pub publishers: u32,
    /// How the gaps of an open loop are distributed
    #[arg(long, value_enum, default_value_t, help_heading = "Load")]
    pub arrival: Arrival,
    /// What happens to messages of an open loop that the generator is too late for
    #[arg(long, value_enum, default_value_t, help_heading = "Load")]
    pub late: Late,
    /// The measured part
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Load")]
    pub duration: Duration,
    /// Load before the measured part, which does not count
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "Load")]
    pub warmup: Duration,
    /// How long to wait for outstanding replies at the end, before they count as lost
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Load")]
    pub drain: Duration,

    /// Octets of a message: 512, 64-1400, or weighted 64:9,16KiB:1
    #[arg(long, value_name = "OCTETS", default_value = "64", help_heading = "Messages")]
    pub size: Sizes,
    /// Text messages (at least 27 octets)
    #[arg(long, conflicts_with = "binary", help_heading = "Messages")]
    pub text: bool,
    /// Binary messages (at least 20 octets; the default)
    #[arg(long, help_heading = "Messages")]
    pub binary: bool,
    /// Offer permessage-deflate, and refuse a server that declines it. The filler of messages is random
    /// printable ASCII: alone it shrinks by a sixth, with context takeover much further
    #[arg(long, help_heading = "Messages")]
    pub deflate: bool,
    /// Seed of sizes, masking keys and Poisson arrivals
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Messages")]
    pub seed: u64,

    /// Connections to open a second before the load starts; 0: all at once
    #[arg(long, value_name = "PER_SECOND", default_value_t = 5000.0, value_parser = not_negative, help_heading = "Connections")]
    pub ramp: f64,
    /// Connections to close and replace a second while the load runs (echo only)
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0.0, value_parser = not_negative, help_heading = "Connections")]
    pub churn: f64,
    /// With --mode connect: which side closes the TCP connection first, and so keeps the TIME_WAIT
    #[arg(long, value_enum, default_value_t, help_heading = "Connections")]
    pub close_first: CloseFirst,
    /// How the connections end when the run does
    #[arg(long, value_enum, default_value_t, help_heading = "Connections")]
    pub goodbye: Goodbye,
    /// Addresses to connect from: A or A-B, repeatable (any of 127.0.0.0/8 works on loopback as it is)
    #[arg(long, value_name = "ADDRESS[-ADDRESS]", help_heading = "Connections")]
    pub source: Vec<SourceRange>,
    /// A subprotocol to ask for, repeatable
    #[arg(long, value_name = "NAME", help_heading = "Connections")]
    pub subprotocol: Vec<String>,
    /// A header for the upgrade request, repeatable
    #[arg(long, value_name = "NAME: VALUE", value_parser = header, help_heading = "Connections")]
    pub header: Vec<(String, String)>,
    /// How long a TCP connect and its upgrade may take together
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Connections")]
    pub connect_timeout: Duration,
    /// Closed loop: how long a reply may take before its place is given to a new message
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Connections")]
    pub reply_timeout: Duration,

    /// Threads that drive load; by default one for each CPU, or half of them if the server is on this machine
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Generator")]
    pub threads: Option<u32>,
    /// Pin the load threads, to these CPUs or to the last ones allowed: --pin, --pin=2,3
    #[arg(long, value_name = "CPUS", num_args = 0..=1, require_equals = true, value_delimiter = ',', help_heading = "Generator")]
    pub pin: Option<Vec<usize>>,
    /// What the load threads wait and receive with
    #[arg(long, value_enum, default_value_t, help_heading = "Generator")]
    pub io: Io,
    /// The server's process, to record its CPU and memory
    #[arg(long, value_name = "PID", help_heading = "Generator")]
    pub server_pid: Option<u32>,
    /// No live view
    #[arg(short, long, help_heading = "Generator")]
    pub quiet: bool,

    /// The length of an interval of the result. No flag: a storm wants it finer, and says so itself.
    #[arg(skip = INTERVAL)]
    pub interval: Duration,
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".into()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("a number of 0 or more is needed".into()),
    }
}

/// `10s`, `1m 30s`, `500ms`, or a plain number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("NAME: VALUE is needed")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
