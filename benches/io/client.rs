//! A closed loop of connections on one thread: each keeps so many messages in flight, and sends the next
//! as replies arrive, as many in one write as came in one read.
//!
//! It must cost less than the server it drives, so messages are prepared once and replies are counted by
//! their length. One reply of each run is compared in full.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use resound::mask::{self, MaskingKey};
use resound::proto::{FrameHeader, Opcode};

const BUFFER_LEN: usize = 1 << 20;
/// A server that sends nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// What a connection sends and gets back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Octets, which come back.
    Raw,
    /// WebSocket messages, which come back.
    Echo,
    /// The first connection publishes, all connections get it.
    Broadcast,
}

pub(crate) struct Client {
    traffic: Traffic,
    in_flight: usize,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// As many messages as are in flight, and one more, so that a write may begin inside of any.
    messages: Vec<u8>,
    message_len: usize,
    reply_len: usize,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// Octets of a reply that has not all arrived.
    partial: usize,
    /// Octets that are to be sent and that the socket has not taken.
    unsent: usize,
    /// Where in a message the next octet to send is.
    at: usize,
}

impl Client {
    /// Opens `count` connections, each with `in_flight` messages of `payload_len` octets.
    pub(crate) fn connect(
        address: SocketAddr,
        traffic: Traffic,
        count: usize,
        payload_len: usize,
        in_flight: usize,
    ) -> anyhow::Result<Self> {
        let payload: Vec<u8> = (0..payload_len).map(|index| b'a' + (index % 26) as u8).collect();
        let (message, reply) = if traffic == Traffic::Raw {
            (payload.clone(), payload)
        } else {
            let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]); // RFC 6455 §5.7
            let mut message = header(payload_len, Some(key));
            mask::unmask_append(&mut message, &payload, key);
            (message, [header(payload_len, None), payload].concat())
        };
        let poll = Poll::new()?;
        let mut connections = Vec::new();
        for index in 0..count {
            let mut stream = StdStream::connect(address).context("connecting")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(STUCK))?;
            if traffic != Traffic::Raw {
                open(&mut stream, traffic)?;
            }
            if index == 0 {
                stream.write_all(&message)?;
                let mut got = vec![0; reply.len()];
                stream.read_exact(&mut got).context("reading the first reply")?;
                ensure!(got == reply, "the reply is not what was sent");
            }
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            connections.push(Connection { stream, partial: 0, unsent: 0, at: 0 });
        }
        Ok(Self {
            traffic,
            in_flight,
            poll,
            events: Events::with_capacity(1024),
            connections,
            messages: message.repeat(in_flight + 1),
            message_len: message.len(),
            reply_len: reply.len(),
            buffer: vec![0; BUFFER_LEN],
        })
    }

    /// Puts messages into flight.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let senders = if self.traffic == Traffic::Broadcast { 1 } else { self.connections.len() };
        (0..senders).try_for_each(|index| self.send(index, self.in_flight))
    }

    /// Takes back what is in flight, so that it fills no socket while others are measured, and returns how many
    /// messages that were.
    pub(crate) fn stop(&mut self) -> anyhow::Result<u64> {
        let in_flight = self.in_flight * self.connections.len();
        let mut missing = in_flight;
        while missing > 0 {
            self.poll.poll(&mut self.events, Some(STUCK))?;
            ensure!(!self.events.is_empty(), "no reply for {STUCK:?}");
            for (index, readable, writable) in events(&self.events) {
                if writable && self.connections[index].unsent > 0 {
                    self.send(index, 0)?;
                }
                if readable {
                    missing -= self.receive(index)?;
                }
            }
        }
        Ok(in_flight as u64)
    }

    /// Keeps going for `duration`, and returns how many messages came back and in what time.
    pub(crate) fn run(&mut self, duration: Duration) -> anyhow::Result<(u64, Duration)> {
        let (start, mut total, mut round) = (Instant::now(), 0u64, 0usize);
        let round_len = self.in_flight * self.connections.len();
        loop {
            self.poll.poll(&mut self.events, Some(STUCK))?;
            ensure!(!self.events.is_empty(), "no reply for {STUCK:?}");
            for (index, readable, writable) in events(&self.events) {
                if writable && self.connections[index].unsent > 0 {
                    self.send(index, 0)?;
                }
                if !readable {
                    continue;
                }
                let replies = self.receive(index)?;
                total += replies as u64;
                if self.traffic == Traffic::Broadcast {
                    round += replies;
                    if round == round_len {
                        round = 0;
                        self.send(0, self.in_flight)?;
                    }
                } else if replies > 0 {
                    self.send(index, replies)?;
                }
            }
            let elapsed = start.elapsed();
            // A broadcast ends with a whole round, so that the next run begins with one.
            if elapsed >= duration && (self.traffic != Traffic::Broadcast || round == 0) {
                return Ok((total, elapsed));
            }
        }
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<usize> {
        let connection = &mut self.connections[index];
        loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => anyhow::bail!("the server has closed a connection"),
                Ok(len) => {
                    connection.partial += len;
                    if len < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let replies = connection.partial / self.reply_len;
        connection.partial %= self.reply_len;
        Ok(replies)
    }

    /// Sends `count` more messages.
    fn send(&mut self, index: usize, count: usize) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        connection.unsent += count * self.message_len;
        while connection.unsent > 0 {
            let len = connection.unsent.min(self.messages.len() - connection.at);
            match connection.stream.write(&self.messages[connection.at..connection.at + len]) {
                Ok(sent) => {
                    connection.unsent -= sent;
                    connection.at = (connection.at + sent) % self.message_len;
                    if sent < len {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Which connections can be read and written.
fn events(events: &Events) -> Vec<(usize, bool, bool)> {
    events.iter().map(|event| (event.token().0, event.is_readable(), event.is_writable())).collect()
}

fn header(payload_len: usize, masking_key: Option<MaskingKey>) -> Vec<u8> {
    let header = FrameHeader { masking_key, ..FrameHeader::message(Opcode::Binary, payload_len) };
    let mut octets = [0; 14];
    let len = header.write(&mut octets);
    octets[..len].to_vec()
}

/// The opening handshake, with the key of RFC 6455 §1.3.
fn open(stream: &mut StdStream, traffic: Traffic) -> anyhow::Result<()> {
    let path = if traffic == Traffic::Broadcast { "/broadcast/bench" } else { "/echo" };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut octet = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut octet).context("reading the answer to the handshake")?;
        head.push(octet[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    Ok(())
}
