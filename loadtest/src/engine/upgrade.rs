//! Our side of the opening handshake, connection by connection.

use super::plan::Plan;
use super::args::RunArgs;

/// What every upgrade request of the run has in common.
#[derive(Debug)]
pub struct Upgrade { head: String }

/// An upgrade that waits for its response.
#[derive(Debug, Default)]
pub struct Pending { head: Vec<u8> }

impl Upgrade {
    pub fn new(plan: &Plan, args: &RunArgs) -> anyhow::Result<Self> {
        let mut head = format!("GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", plan.target.resource, plan.target.authority);
        for (n, v) in &args.header { head.push_str(&format!("{n}: {v}\r\n")); }
        head.push_str("\r\n");
        Ok(Self { head })
    }
    /// Appends a request to `target`.
    pub fn begin(&self, _rng: &mut fastrand::Rng, target: &mut Vec<u8>) -> Pending {
        target.extend_from_slice(self.head.as_bytes());
        Pending::default()
    }
    /// Takes in what was received: how much of it belonged to the response, once that is whole.
    pub fn receive(&self, pending: &mut Pending, octets: &[u8]) -> Result<Option<usize>, String> {
        let before = pending.head.len();
        pending.head.extend_from_slice(octets);
        let Some(end) = pending.head.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
        if !pending.head.starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(&pending.head[..pending.head.iter().position(|b| *b == b'\r').unwrap()]).into_owned());
        }
        Ok(Some(end + 4 - before))
    }
}
