//! A peer that behaves: one message in flight, and how long its reply took.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use resound::proto::Opcode;

use crate::wire;

/// How long a reply is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A ping is due this long after the last one. Pauses leave the core to the attackers; and a reply that took
/// longer stands for all pings that were due meanwhile.
const INTERVAL: Duration = Duration::from_millis(1);
const PAYLOAD_LEN: usize = 20;

pub(crate) struct Probe {
    stream: TcpStream,
    count: u64,
}

/// Latencies in nanoseconds, as a message that comes at any time would meet them.
pub(crate) type Latencies = Histogram<u64>;

pub(crate) fn latencies() -> Latencies {
    Histogram::new_with_bounds(1_000, 1_000_000_000_000, 3).expect("valid bounds")
}

impl Probe {
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(&wire::request("/echo", None))?;
        let (mut head, mut octet) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut octet).context("the answer to the handshake")?;
            head.push(octet[0]);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Ok(Self { stream, count: 0 })
    }

    /// One message and its reply, which must be the same.
    pub(crate) fn ping(&mut self, payload_len: usize) -> anyhow::Result<Duration> {
        self.count += 1;
        let payload: Vec<u8> = self.count.to_be_bytes().iter().copied().cycle().take(payload_len).collect();
        let octets = wire::message(Opcode::Binary, &payload);
        let mut reply = vec![0; wire::reply_len(payload_len)];
        let start = Instant::now();
        self.stream.write_all(&octets).context("a ping")?;
        self.stream.read_exact(&mut reply).context("its reply")?;
        let took = start.elapsed();
        ensure!(reply.ends_with(&payload), "another message came back than was sent");
        Ok(took)
    }

    /// Pings for `duration`, one in flight. What failed is an error, and the time it took is recorded.
    pub(crate) fn measure(&mut self, duration: Duration, target: &mut Latencies) -> anyhow::Result<()> {
        let (start, interval) = (Instant::now(), INTERVAL.as_nanos() as u64);
        while start.elapsed() < duration {
            let begun = Instant::now();
            let result = self.ping(PAYLOAD_LEN);
            let took = *result.as_ref().unwrap_or(&begun.elapsed());
            target.record_correct(took.as_nanos() as u64, interval)?;
            result?;
            std::thread::sleep(INTERVAL.saturating_sub(took));
        }
        Ok(())
    }

    /// Waits until replies come quickly again: what was done to the server is over.
    pub(crate) fn calm(&mut self) -> anyhow::Result<()> {
        let (start, mut quick) = (Instant::now(), 0);
        while quick < 50 && start.elapsed() < PATIENCE {
            quick = if self.ping(PAYLOAD_LEN)? < Duration::from_millis(2) { quick + 1 } else { 0 };
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }
}
