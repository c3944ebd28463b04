//! One connection before all others: is there a server, does it upgrade, does it send a message back?
//! A run against one that does not would measure nothing, and say so in ten thousand errors.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use resound::proto::{Codecs, Connection, DeflateParams, Handler, Limits, Message, Replies, Reply, State};

use super::socket;
use super::stamp::{Composer, Stamp};
use super::worker::Shared;

/// What the server told about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its Server header.
    pub server_header: Option<String>,
}

/// Who the probe's message is from: no connection of the run has this number.
const SENDER: u32 = u32::MAX;
/// The probe's message carries a stamp like any other.
const LIMITS: Limits = Limits {
    message_size_max: super::size::SIZE_MAX as u64,
    fragments_max: 1 << 20,
    inflate_octets_max: usize::MAX,
};

/// Connects, upgrades, sends one message and waits until something comes back, all within the connect
/// timeout; then closes.
///
/// # Errors
/// One line that says what the server did instead.
pub(super) fn probe(shared: &Shared) -> anyhow::Result<Found> {
    let plan = &shared.plan;
    let address = plan.target.address;
    let timeout = Duration::from_nanos(plan.connect_timeout_ns);
    let deadline = Instant::now() + timeout;
    let mut stream = match TcpStream::connect_timeout(&address, timeout) {
        Ok(stream) => stream,
        Err(error) => {
            let hint = socket::hint(socket::error_kind(&error));
            bail!("no connection to {address}: {error}{}{hint}", if hint.is_empty() { "" } else { "; " });
        }
    };
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let mut found = Found::default();
    let mut buffer = vec![0; 64 << 10];
    let (mut frames, deflate) = upgrade(shared, &mut stream, deadline, &mut buffer, &mut found)?;

    let mut protocol = Connection::client(1);
    let mut codecs = Codecs::default();
    if let Some(params) = deflate {
        assert!(protocol.agree_on_deflate(params, &codecs), "there is memory for one connection");
    }
    let (mut payload, mut send) = (Vec::new(), Vec::new());
    let stamp = Stamp { intended_ns: 0, sequence: 0, sender: SENDER };
    Composer::new(plan.opcode, plan.sizes.min(), plan.seed).payload(stamp, plan.sizes.min(), &mut payload);
    protocol.send(plan.opcode, &payload, &mut codecs, &mut send);
    stream.write_all(&send).with_context(|| format!("{address} took the upgrade, but no message"))?;
    let mut replies = Replies::default();
    let mut messages = Count(0);
    loop {
        let octets = &mut buffer[frames.clone()];
        let outcome = protocol.receive(octets, 0, &LIMITS, &mut codecs, &mut replies, &mut messages);
        if let Err(error) = outcome {
            bail!("{address} does not speak RFC 6455: {error}");
        }
        if messages.0 > 0 {
            break;
        }
        if protocol.state() != State::Open {
            bail!("{address} closed the connection instead of sending a message back");
        }
        let len = read(&mut stream, deadline, &mut buffer).map_err(|stopped| match stopped {
            Stopped::Ended => anyhow::anyhow!("{address} closed the connection instead of sending a message back"),
            Stopped::TooLate => anyhow::anyhow!(
                "{address} took a message, but sent none back within {timeout:?}: is {} an echo or broadcast path?",
                plan.target.resource
            ),
            Stopped::Failed(error) => anyhow::anyhow!("{address}: {error}"),
        })?;
        frames = 0..len;
    }
    // Politeness; the run does not depend on it.
    send.clear();
    protocol.close(resound::proto::CloseCode::NORMAL, "", &mut send);
    let _ = stream.write_all(&send);
    while protocol.state() != State::Closed
        && let Ok(len) = read(&mut stream, Instant::now() + Duration::from_secs(1), &mut buffer)
    {
        let _ = protocol.receive(&mut buffer[..len], 0, &LIMITS, &mut codecs, &mut replies, &mut messages);
    }
    Ok(found)
}

/// Upgrades; returns where in `buffer` frames have arrived already, and what was agreed about compression.
fn upgrade(
    shared: &Shared,
    stream: &mut TcpStream,
    deadline: Instant,
    buffer: &mut [u8],
    found: &mut Found,
) -> anyhow::Result<(std::ops::Range<usize>, Option<DeflateParams>)> {
    let address = shared.plan.target.address;
    let mut send = Vec::new();
    let mut rng = fastrand::Rng::with_seed(shared.plan.seed ^ 3);
    let mut pending = shared.upgrade.begin(&mut rng, &mut send);
    stream
        .write_all(&send)
        .with_context(|| format!("{address} took the connection, but no upgrade request"))?;
    loop {
        let len = match read(stream, deadline, buffer) {
            Ok(len) => len,
            Err(Stopped::Ended) => bail!("{address} closed the connection instead of answering the upgrade"),
            Err(Stopped::TooLate) => {
                bail!("{address} took the connection, but did not answer the upgrade in time")
            }
            Err(Stopped::Failed(error)) => bail!("{address}: {error} instead of an answer to the upgrade"),
        };
        let outcome = shared.upgrade.read(&mut pending, &buffer[..len], |response| {
            let header = response.header_values("server").next();
            found.server_header = header.map(|value| String::from_utf8_lossy(value).into_owned());
        });
        match outcome {
            Ok(Some(upgraded)) => return Ok((upgraded.taken..len, upgraded.deflate)),
            Ok(None) => {}
            Err(reason) => bail!("{}: {reason}", shared.plan.target.url),
        }
    }
}

/// Counts messages.
struct Count(u64);

impl Handler for Count {
    fn message(&mut self, _: Message<'_>) -> Reply {
        self.0 += 1;
        Reply::Nothing
    }
}

/// Why nothing was read.
enum Stopped {
    Ended,
    TooLate,
    Failed(std::io::Error),
}

fn read(stream: &mut TcpStream, deadline: Instant, buffer: &mut [u8]) -> Result<usize, Stopped> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stopped::TooLate);
        }
        stream.set_read_timeout(Some(left)).map_err(Stopped::Failed)?;
        match stream.read(buffer) {
            Ok(0) => return Err(Stopped::Ended),
            Ok(len) => return Ok(len),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It closed with something of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(Stopped::Ended),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(Stopped::TooLate);
            }
            Err(error) => return Err(Stopped::Failed(error)),
        }
    }
}
