//! One connection of a load thread: its socket, where it is in its life, and what waits to be written.

use std::io;
use std::net::Shutdown;

use mio::net::TcpStream;
use nix::libc::{MSG_DONTWAIT, MSG_NOSIGNAL};
use resound::proto::{CloseCode, Connection as Protocol};
use socket2::SockRef;

use super::book::Traffic;
use super::upgrade::Pending;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Stage {
    /// The TCP handshake is under way.
    Connecting,
    /// The upgrade request was sent.
    Upgrading(Box<Pending>),
    /// Messages flow.
    Open,
    /// Messages flow back only; it closes once they have.
    Leaving,
    /// We have sent a Close.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// Its socket, edge-triggered.
    pub stream: TcpStream,
    /// The thread's ring receives for it, and its socket is not O_NONBLOCK any more.
    pub in_ring: bool,
    /// Octets are in the ring, to be sent. Until it has said what became of them, nothing else is written.
    pub sending: bool,
    /// Which of the connections that had this slot it is.
    pub generation: u32,
    /// Where it is in its life.
    pub stage: Stage,
    /// Its protocol state, once it is open.
    pub protocol: Protocol,
    /// Messages may be compressed.
    pub deflates: bool,
    /// Its messages.
    pub traffic: Traffic,
    /// Connect mode: when it was to be opened, in ns.
    pub intended_ns: u64,
    /// When `connect` was called, in ns.
    pub started_ns: u64,
    /// When the stage that it is in began, in ns.
    pub stage_ns: u64,
    /// What the kernel refused to take. While there is something, nothing else is written.
    unwritten: Vec<u8>,
    /// It waits in the thread's list of connections to flush.
    pub queued: bool,
    /// It is one that is opened and closed on purpose while the load runs.
    pub churned: bool,
}

impl Conn {
    /// One that is being connected, for the connection number `number`.
    pub(super) fn new(
        stream: TcpStream,
        generation: u32,
        number: u32,
        intended_ns: u64,
        started_ns: u64,
    ) -> Self {
        Self {
            stream,
            in_ring: false,
            sending: false,
            generation,
            stage: Stage::Connecting,
            protocol: Protocol::client(number.wrapping_mul(0x9E37_79B9)),
            deflates: false,
            traffic: Traffic { number, ..Traffic::default() },
            intended_ns,
            started_ns,
            stage_ns: started_ns,
            unwritten: Vec::new(),
            queued: false,
            churned: false,
        }
    }

    /// Whether messages may be sent.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Whether octets that were to be written are not, so that others would overtake them.
    #[inline]
    pub(super) fn is_blocked(&self) -> bool {
        self.sending || !self.unwritten.is_empty()
    }

    /// Writes `octets`, or keeps what the kernel does not take. Returns whether it took everything.
    #[inline]
    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<bool> {
        if self.is_blocked() {
            self.unwritten.extend_from_slice(octets);
            return Ok(false);
        }
        let written = write_all(&self.stream, octets)?;
        if written < octets.len() {
            self.unwritten.extend_from_slice(&octets[written..]);
        }
        Ok(written == octets.len())
    }

    /// The ring has sent what it was given, but for `rest`.
    pub(super) fn sent(&mut self, mut rest: Vec<u8>) {
        self.sending = false;
        if !rest.is_empty() {
            rest.append(&mut self.unwritten);
            self.unwritten = rest;
        }
    }

    /// Writes what was kept. Returns whether nothing is left.
    pub(super) fn write_kept(&mut self) -> io::Result<bool> {
        if !self.sending {
            let written = write_all(&self.stream, &self.unwritten)?;
            self.unwritten.drain(..written);
            if self.unwritten.is_empty() {
                self.unwritten = Vec::new();
            }
        }
        Ok(!self.is_blocked())
    }

    /// Starts the closing handshake.
    pub(super) fn close(&mut self, now_ns: u64) -> io::Result<()> {
        let mut frame = Vec::new();
        self.protocol.close(CloseCode::NORMAL, "", &mut frame);
        self.stage = Stage::Closing;
        self.stage_ns = now_ns;
        self.write(&frame)?;
        Ok(())
    }

    /// Says that nothing more will be sent, so that the server sees the end of the stream at once.
    pub(super) fn shut(&mut self) {
        // It fails only if the server was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Writes until all is written or the kernel takes no more; how much it took.
#[inline]
fn write_all(stream: &TcpStream, octets: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < octets.len() {
        match SockRef::from(stream).send_with_flags(&octets[written..], MSG_DONTWAIT | MSG_NOSIGNAL) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
