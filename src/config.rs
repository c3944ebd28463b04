//! Every flag and limit: its unit, its default and the reason for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::net::Endpoint;
use crate::net::tls::{PLAINTEXT_LEN_MAX, SelfSigned, TlsOptions};
use crate::net::uring::{Submit, UringOptions};
use crate::proto::handshake::{PolicyError, UpgradePolicy};
use crate::proto::{DeflatePolicy, DeflateSettings, Limits, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// A WebSocket echo and broadcast server to point tools at.
///
/// ws://ADDRESS/ echoes (see --mode), /echo always echoes, /broadcast/ROOM sends every message to everyone
/// in the room, /healthz answers plain HTTP.
#[derive(Clone, Debug, Parser)]
#[command(name = "resound", version, max_term_width = 100, args_override_self = true)]
pub struct Config {
    /// Where to listen: ADDRESS:PORT (IPv6 in brackets), wss://ADDRESS:PORT (TLS), or unix:PATH. Repeatable. Port
    /// 0 takes a free port, and the line printed at start says which. On a PATH, only a socket that nobody listens on is replaced.
    #[arg(long, value_name = "ENDPOINT", default_value = "127.0.0.1:9001", help_heading = "Serving")]
    pub listen: Vec<Endpoint>,

    /// A certificate with its chain, in PEM, for wss. Repeatable, each with its --tls-key: the client's SNI picks one
    /// by the names in them, and the first is for all other clients. SIGHUP has all files read again.
    #[arg(long = "tls-cert", value_name = "FILE", help_heading = "TLS")]
    pub tls_certs: Vec<PathBuf>,

    /// The private key of the certificate at the same place, in PEM. Repeatable.
    #[arg(long = "tls-key", value_name = "FILE", help_heading = "TLS")]
    pub tls_keys: Vec<PathBuf>,

    /// Make a certificate at start, keep it in memory, and print its SHA-256 fingerprint: the quickest way to
    /// try wss.
    #[arg(long, help_heading = "TLS")]
    pub tls_self_signed: bool,

    /// A host name or IP address for the self-signed certificate. Repeatable. Default: localhost, 127.0.0.1, ::1.
    #[arg(long = "tls-name", value_name = "NAME", help_heading = "TLS")]
    pub tls_names: Vec<String>,

    /// Require clients to show a certificate of one of the CAs in this PEM file.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_client_ca: Option<PathBuf>,

    /// The most TLS handshakes in progress for each worker, because each takes about 5 KiB and a signature. Beyond
    /// it the oldest is closed if it is older than 1 s, otherwise the newest.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..), help_heading = "TLS")]
    pub tls_handshakes_max: u32,

    /// What paths that are not reserved do.
    #[arg(long, value_enum, default_value_t = Mode::Echo, help_heading = "Serving")]
    pub mode: Mode,

    /// The interface to the kernel.
    #[arg(long, value_enum, default_value_t = Io::Auto, help_heading = "Serving")]
    pub io: Io,

    /// Worker threads, each with its own listener, connections and memory. Default: one for each core this
    /// process may run on.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Serving")]
    pub workers: Option<u16>,

    /// Let workers run on any core, instead of pinning each to its own.
    #[arg(long, help_heading = "Serving")]
    pub no_pin: bool,

    /// The listen backlog, in connections; the kernel caps it at net.core.somaxconn. Large, because a load
    /// generator opens connections in bursts.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(i32).range(1..), help_heading = "Serving")]
    pub backlog: i32,

    /// A subprotocol to agree to, in the client's order of preference. Repeatable.
    #[arg(long = "subprotocol", value_name = "NAME", help_heading = "Serving")]
    pub subprotocols: Vec<String>,

    /// An Origin to accept: scheme://host, scheme://host:port, or null. same-host accepts the pages of the host
    /// and port that the client asks for. Others get 403; clients that send none are accepted. Repeatable. With
    /// none given all are accepted, so that web pages of any site can connect through a visitor's browser.
    #[arg(long = "allow-origin", value_name = "ORIGIN", help_heading = "Serving")]
    pub allow_origins: Vec<String>,

    /// What to log to standard error: error, warn, info, debug, or a filter such as resound::server=debug.
    #[arg(long, value_name = "FILTER", default_value = "info", help_heading = "Serving")]
    pub log: String,

    /// The longest message in octets; a longer one is refused with 1009, from its header alone.
    #[arg(long, value_name = "OCTETS", default_value_t = 32 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 40), help_heading = "Limits")]
    pub message_size_max: u64,

    /// The most frames a message may be cut into; more are refused with 1008. The default lets 32 MiB arrive
    /// 32 octets at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub fragments_max: u32,

    /// The most octets that may wait to be sent on one connection. An echo stops reading long before; a
    /// slow member of a room meets --slow-consumer. At least the longest message and one receive buffer.
    /// Default: the longest message and 4 MiB.
    #[arg(long, value_name = "OCTETS", help_heading = "Limits")]
    pub send_queue_bytes_max: Option<usize>,

    /// What happens to a room's member whose send queue is full; always counted.
    #[arg(long, value_enum, default_value_t = SlowConsumer::DropNewest, help_heading = "Limits")]
    pub slow_consumer: SlowConsumer,

    /// The most octets of publications from other workers that one worker keeps for its next turn; beyond
    /// it they are dropped and counted.
    #[arg(long, value_name = "OCTETS", default_value_t = 64 << 20, help_heading = "Limits")]
    pub inbox_bytes_max: usize,

    /// The most memory that peers can make the process take, in octets, over all workers: partial messages, inflated
    /// octets, send queues, request heads, rooms. Near it nothing more is read from those who hold most; then they are
    /// closed with 1013, and new connections get 503. What the kernel's socket buffers take is not in it. Default: half
    /// of what the machine, the cgroup or the limit of address space (ulimit -v) has.
    #[arg(long, value_name = "OCTETS", help_heading = "Limits")]
    pub memory_bytes_max: Option<usize>,

    /// The most connections for each worker; further ones get 503, or are closed without an answer while 1000
    /// others are being refused.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub connections_max: u32,

    /// The longest request head in octets; a longer one gets 431, and a request line over it 414.
    #[arg(long, value_name = "OCTETS", default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(64..=1 << 20), help_heading = "Limits")]
    pub header_bytes_max: u32,

    /// The most header fields in a request; more get 431.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(8..=1000), help_heading = "Limits")]
    pub headers_max: u16,

    /// The most octets received from a connection at once. On epoll the size of the one receive buffer that
    /// a worker's connections share, on io_uring the size of each of --receive-buffers. The default fits a
    /// core's second-level cache and holds a burst of pipelined messages.
    #[arg(long, value_name = "OCTETS", default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(1024..=1 << 28), help_heading = "Limits")]
    pub receive_buffer_bytes: u32,

    /// Whether to agree on compression (permessage-deflate) with clients that offer it. Off, because they
    /// all do, browsers and most libraries, and whoever measures a server means to measure something else
    /// than zlib.
    #[arg(long, value_enum, default_value_t = Switch::Off, value_name = "off|on", hide_possible_values = true, help_heading = "Compression")]
    pub deflate: Switch,

    /// How hard to compress: 1 is fast, 9 is small. The default, because 6 takes two to four times as long
    /// to save a third of the octets.
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9), help_heading = "Compression")]
    pub deflate_level: u8,

    /// How much memory the compressors of each worker take for their work: 1 is little, 9 is much.
    #[arg(long, value_name = "LEVEL", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=9), help_heading = "Compression")]
    pub deflate_memory_level: u8,

    /// The largest window, as a power of two: our own, and that of clients that can be told. Default: 15, and
    /// with --deflate-takeover 11, because a compressor is told as much of earlier messages each time.
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(i64::from(WINDOW_BITS_MIN)..=i64::from(WINDOW_BITS_MAX)), help_heading = "Compression")]
    pub deflate_window_bits: Option<u8>,

    /// Let messages refer to earlier ones (context takeover), except in rooms. They get smaller, and each
    /// connection keeps two windows' octets: 4 KiB, or 64 KiB with the largest. By default we compress each
    /// message by itself, and tell clients to.
    #[arg(long, help_heading = "Compression")]
    pub deflate_takeover: bool,

    /// Send messages with fewer octets as they are: they would hardly become shorter.
    #[arg(long, value_name = "OCTETS", default_value_t = 64, help_heading = "Compression")]
    pub deflate_min_octets: u32,

    /// Send messages with more octets as they are, too: nobody else on the worker is served while one is
    /// compressed, 2 to 10 ms for each MiB.
    #[arg(long, value_name = "OCTETS", default_value_t = 1 << 20, help_heading = "Compression")]
    pub deflate_max_octets: u32,

    /// The most that a compressed message may inflate to, as a multiple of its length, beyond its first MiB;
    /// more is refused with 1009. 0: any; then --message-size-max and --memory-bytes-max are what bounds it.
    /// Text rarely passes 50, and DEFLATE ends at 1032. Bombs are in between, and so are the messages of one
    /// repeated octet that load generators like to send: a server for them leaves this at 0.
    #[arg(long, value_name = "RATIO", default_value_t = 0, help_heading = "Compression")]
    pub deflate_ratio_max: u32,

    /// The most octets that the connections of one worker may own for compression: windows, and for every
    /// compressed message that is still arriving 47 KiB and what it inflates to. When they are used up, new
    /// connections get no context takeover, compressed messages that arrive in pieces wait to be complete
    /// before they are looked at, and those that inflate to more than 960 KiB may get 1013.
    #[arg(long, value_name = "OCTETS", default_value_t = 256 << 20, help_heading = "Compression")]
    pub deflate_memory_bytes_max: usize,

    /// Compress every echo anew. Without this, a message that its sender compressed by itself is inflated
    /// and checked, and then goes back in the octets in which it came.
    #[arg(long, help_heading = "Compression")]
    pub deflate_recompress: bool,

    /// Which sends are submitted to the ring instead of being a call each (io_uring only).
    #[arg(long, value_enum, default_value_t = Submit::All, help_heading = "Serving")]
    pub uring_submit: Submit,

    /// How many receive buffers each worker's ring has: a power of two up to 32768 (io_uring only). Every
    /// connection that has sent something needs one in the same turn, or costs a receive more. Memory is used
    /// only as far as messages have filled them; beyond 16 KiB 64 of them keep it.
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = power_of_two, help_heading = "Limits")]
    pub receive_buffers: u16,

    /// How long a new connection may take to finish its handshakes, TLS and HTTP together, and an idle HTTP connection may stay.
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=MS_MAX), help_heading = "Timeouts")]
    pub handshake_timeout_ms: u32,

    /// How long a WebSocket peer may be silent; halfway a Ping asks whether it is there. 0: for
    /// ever, as in raw mode; then TCP keepalive finds a host that vanished, in 2 minutes.
    #[arg(long, value_name = "MS", default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(0..=MS_MAX), help_heading = "Timeouts")]
    pub idle_timeout_ms: u32,

    /// How long a message may take from its first octet to its last; then the connection is closed with 1008. The
    /// default lets 32 MiB come at 2.3 Mbit/s. 0: for ever.
    #[arg(long, value_name = "MS", default_value_t = 120_000, value_parser = clap::value_parser!(u32).range(0..=MS_MAX), help_heading = "Timeouts")]
    pub message_timeout_ms: u32,

    /// How long a peer may take nothing of what waits for it; then the connection is cut off. One that takes octets,
    /// however slowly, is not. 0: for ever.
    #[arg(long, value_name = "MS", default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(0..=MS_MAX), help_heading = "Timeouts")]
    pub send_stall_timeout_ms: u32,

    /// How long a closing connection may take: the peer's Close, the rest of our replies, the peer's FIN.
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=MS_MAX), help_heading = "Timeouts")]
    pub close_timeout_ms: u32,

    /// Over how long SIGTERM and SIGINT spread the Close frames (1001), so that clients do not all come
    /// back at once.
    #[arg(long, value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=MS_MAX), help_heading = "Timeouts")]
    pub drain_ms: u32,
}

/// The window's default with context takeover, as a power of two: docs/deflate.md has the times.
const WINDOW_BITS_TAKEOVER: u8 = 11;

/// The longest timeout: 12 days, so that sums of ticks stay small.
const MS_MAX: i64 = 1 << 30;

/// What a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Every message goes back to its sender.
    Echo,
    /// Every message goes to everyone on the same path.
    Broadcast,
    /// No WebSocket at all: TCP echo on the same loop, the speed of light for the other modes.
    Raw,
}

/// Something to have or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Not.
    Off,
    /// To have.
    On,
}

/// The interface to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// The best that works here; the log says which and why.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring (Linux 6.1 or newer).
    Uring,
}

fn power_of_two(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(count) if count.is_power_of_two() => Ok(count),
        _ => Err("expected a power of two up to 32768".into()),
    }
}

/// What happens to a room's member that does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlowConsumer {
    /// It misses what is published now.
    DropNewest,
    /// It misses what has waited longest.
    DropOldest,
    /// It is closed with 1013.
    Close,
}

impl Config {
    /// What clap cannot check: flags against each other.
    ///
    /// # Errors
    /// One line that names the flag, the cause and the cure.
    pub fn check(&self) -> Result<(), String> {
        // A record of TLS that more than one receive brought is answered at once.
        let record = if self.tls_options().is_some() { PLAINTEXT_LEN_MAX as u64 } else { 0 };
        let received = u64::from(self.receive_buffer_bytes).max(record);
        let least = self.message_size_max.saturating_add(received) + 1024;
        if (self.send_queue_bytes_max() as u64) < least {
            return Err(format!(
                "--send-queue-bytes-max {} cannot hold the reply to the longest message: use at least {least}, \
                 or lower --message-size-max",
                self.send_queue_bytes_max()
            ));
        }
        self.upgrade_policy()?;
        self.check_tls()
    }

    fn check_tls(&self) -> Result<(), String> {
        let (certs, keys) = (self.tls_certs.len(), self.tls_keys.len());
        if certs != keys {
            return Err(format!(
                "--tls-cert is given {certs} times and --tls-key {keys} times: give them in pairs"
            ));
        }
        if !self.tls_self_signed && !self.tls_names.is_empty() {
            return Err("--tls-name names a self-signed certificate: add --tls-self-signed".into());
        }
        let listener = self.listen.iter().find(|endpoint| matches!(endpoint, Endpoint::Tls(_)));
        let flag = [
            (certs > 0, "--tls-cert"),
            (self.tls_self_signed, "--tls-self-signed"),
            (self.tls_client_ca.is_some(), "--tls-client-ca"),
        ];
        match (listener, flag.iter().find(|(is_given, _)| *is_given)) {
            (None, Some((_, flag))) => {
                Err(format!("{flag}: nothing listens with TLS: add --listen wss://ADDRESS:PORT"))
            }
            (Some(listener), _) if certs == 0 && !self.tls_self_signed => Err(format!(
                "--listen {listener}: wss needs a certificate: --tls-cert FILE --tls-key FILE, or --tls-self-signed"
            )),
            _ => Ok(()),
        }
    }

    /// What TLS is made of, if anything listens with it.
    pub fn tls_options(&self) -> Option<TlsOptions> {
        let has_tls = self.listen.iter().any(|endpoint| matches!(endpoint, Endpoint::Tls(_)));
        let names = || match self.tls_names.as_slice() {
            [] => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
            names => names.to_vec(),
        };
        has_tls.then(|| TlsOptions {
            certs: self.tls_certs.iter().cloned().zip(self.tls_keys.iter().cloned()).collect(),
            client_ca: self.tls_client_ca.clone(),
            self_signed: self.tls_self_signed.then(|| SelfSigned { names: names() }),
        })
    }

    /// The flag that named `file`, or that of names if there is none.
    pub fn tls_flag(&self, file: Option<&Path>) -> &'static str {
        match file {
            None => "--tls-name",
            file if file == self.tls_client_ca.as_deref() => "--tls-client-ca",
            Some(file) if self.tls_keys.iter().any(|key| key == file) => "--tls-key",
            Some(_) => "--tls-cert",
        }
    }

    /// The limit of a connection's send queue in octets.
    pub fn send_queue_bytes_max(&self) -> usize {
        self.send_queue_bytes_max
            .unwrap_or(self.message_size_max as usize + (4 << 20) + self.receive_buffer_bytes as usize)
    }

    /// The memory that a worker's receive buffers keep, in octets: on io_uring, which is the most.
    pub fn receive_buffers_kept(&self) -> usize {
        crate::net::uring::buffers_kept(self.receive_buffers, self.receive_buffer_bytes as usize)
    }

    /// What each worker's ring is made of.
    pub fn uring_options(&self) -> UringOptions {
        UringOptions {
            buffer_count: self.receive_buffers,
            buffer_bytes: self.receive_buffer_bytes,
            completions: 8192,
            submit: self.uring_submit,
        }
    }

    /// The limits that the protocol core applies.
    pub fn limits(&self) -> Limits {
        Limits {
            message_size_max: self.message_size_max,
            fragments_max: self.fragments_max,
            ..Limits::default()
        }
    }

    /// Which origins and subprotocols are accepted.
    ///
    /// # Errors
    /// One line that names the flag and the cause.
    pub fn upgrade_policy(&self) -> Result<UpgradePolicy, String> {
        UpgradePolicy::new(&self.allow_origins, &self.subprotocols).map_err(|error| match error {
            PolicyError::Origin(_) => format!("--allow-origin: {error}"),
            PolicyError::Subprotocol(_) => format!("--subprotocol: {error}"),
        })
    }

    /// What to agree on about compression, if it is on.
    pub fn deflate_policy(&self) -> Option<DeflatePolicy> {
        (self.deflate == Switch::On).then_some(DeflatePolicy {
            server_no_context_takeover: !self.deflate_takeover,
            client_no_context_takeover: !self.deflate_takeover,
            window_bits_max: self.deflate_window_bits.unwrap_or(if self.deflate_takeover {
                WINDOW_BITS_TAKEOVER
            } else {
                WINDOW_BITS_MAX
            }),
        })
    }

    /// How to compress.
    pub fn deflate_settings(&self) -> DeflateSettings {
        DeflateSettings {
            level: self.deflate_level,
            memory_level: self.deflate_memory_level,
            message_len_min: self.deflate_min_octets as usize,
            message_len_max: self.deflate_max_octets as usize,
            memory_bytes_max: self.deflate_memory_bytes_max,
            ratio_max: self.deflate_ratio_max as usize,
            recompress: self.deflate_recompress,
        }
    }

    /// The idle timeout, if there is one.
    pub fn idle_timeout(&self) -> Option<Duration> {
        (self.idle_timeout_ms > 0).then(|| Duration::from_millis(self.idle_timeout_ms.into()))
    }
}

impl Default for Config {
    /// What no flags at all mean.
    fn default() -> Self {
        Self::parse_from(["resound"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent_and_their_defaults_pass() {
        Config::command().debug_assert();
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn a_send_queue_shorter_than_a_message_is_refused() {
        let config = Config::parse_from(["resound", "--send-queue-bytes-max", "1048576"]);
        assert!(config.check().unwrap_err().contains("--send-queue-bytes-max"));
        Config::parse_from(["resound", "--send-queue-bytes-max", "1048576", "--message-size-max", "65536"])
            .check()
            .unwrap();
    }

    #[test]
    fn a_subprotocol_must_be_a_token() {
        assert!(Config::parse_from(["resound", "--subprotocol", "a b"]).check().is_err());
    }
}
