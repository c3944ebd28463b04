//! What a connection is on a ring.

use std::io::{self, IoSlice};

use super::ring::RingSocket;
use crate::net::transport::Io;

/// What a connection is on a ring. Every operation is told to it when it is pushed and when its last completion is
/// taken, so that it is known when nothing refers to the slot any more.
pub struct UringIo<S> {
    pub(super) socket: S,
    pub(super) receive: Receive,
    /// The poll for writability is in flight.
    pub(super) polls: bool,
    /// It is being connected.
    pub(super) connects: bool,
    /// A send is in flight.
    pub(super) sends: bool,
    /// It had so much in its last turn that it receives once at a time.
    pub(super) is_greedy: bool,
    /// The last turn in which it had a receive buffer, which wraps, and the octets that it had in it.
    pub(super) fed_in: u32,
    pub(super) fed_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing is in flight.
    Off,
    On,
    /// In flight, and so is its cancellation.
    Cancelled,
    /// Nothing is in flight, and the connection stands in `starved`.
    Starved,
}

impl<S: RingSocket> Io for UringIo<S> {
    #[inline]
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(pieces)
    }

    fn shutdown(&mut self) {
        self.socket.shutdown();
    }

    fn has_input(&self) -> bool {
        // What it receives into was looked at: only what waits for a buffer is in the kernel.
        self.socket.has_input()
    }
}

impl<S> UringIo<S> {
    pub(super) fn new(socket: S, connects: bool) -> Self {
        Self {
            socket,
            receive: Receive::Off,
            polls: false,
            connects,
            sends: false,
            is_greedy: false,
            fed_in: 0,
            fed_len: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.receive, Receive::Off | Receive::Starved) && !self.polls && !self.sends
    }
}
