//! The life of one transport, without I/O: what waits to be sent, what was received and is not wanted yet, and how it
//! ends.
//!
//! Every backend keeps one [`Link`] for each connection and asks it what may be done; [`super::transport`] moves it
//! from one state to the next. A link is read from only while nothing waits in either direction: that is all there is
//! to backpressure.
//!
//! With TLS the queue keeps plaintext, so that whole messages can be dropped from it. What is sealed and not taken
//! yet stands beside it and goes first; nothing more is sealed before it is gone.

use std::collections::VecDeque;

use super::queue::SendQueue;
use super::tls::{TlsLink, TlsServer};
use crate::memory::{Lease, Meter};

/// The life of one transport.
pub(super) struct Link {
    pub(super) generation: u32,
    /// Octets that were submitted, and of which it is not known yet whether the socket took them.
    pub(super) in_flight: u32,
    /// The socket took octets which had waited, since that was asked for last.
    pub(super) has_taken: bool,
    pub(super) finish: Finish,
    /// The peer has ended. Reported once all that was held is.
    pub(super) eof: bool,
    /// Its driver asked for it not to be read from.
    pub(super) paused: bool,
    /// It is read from while octets wait to be sent: a client that did not would wait for a server that does not.
    pub(super) is_client: bool,
    /// It stands in the list of links to be resumed.
    pub(super) resumes: bool,
    /// It stands in the list of links to be flushed.
    pub(super) flushes: bool,
    /// Octets wait because the socket takes no more; and whether that was reported.
    pub(super) blocked: bool,
    pub(super) blocked_reported: bool,
    /// No completion but `Closed` is to come.
    pub(super) ended: bool,
    /// There only while something waits.
    backlog: Option<Box<Backlog>>,
    /// Opens what is received and seals what is sent.
    pub(super) tls: Option<Box<Secure>>,
}

/// What a link has for TLS.
pub(super) struct Secure {
    pub(super) tls: TlsLink,
    /// It counts among the handshakes in progress.
    pub(super) shakes: bool,
    lease: Lease,
}

/// How far a good end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    No,
    /// When the queue is empty, FIN.
    Asked,
    /// FIN is sent; the peer's end is awaited.
    FinSent,
}

/// What waits, in both directions. Never empty.
struct Backlog {
    queue: Option<Box<SendQueue>>,
    /// Sealed already, of which the socket has taken `sealed_done` octets; empty or not all taken.
    sealed: Vec<u8>,
    sealed_done: usize,
    /// Received and not wanted yet, oldest first.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    lease: Lease,
}

impl Link {
    pub(super) fn new(generation: u32, is_client: bool) -> Self {
        Self {
            generation,
            in_flight: 0,
            has_taken: false,
            finish: Finish::No,
            eof: false,
            paused: false,
            is_client,
            resumes: false,
            flushes: false,
            blocked: false,
            blocked_reported: false,
            ended: false,
            backlog: None,
            tls: None,
        }
    }

    /// Whether octets that arrive now are wanted now.
    #[inline]
    pub(super) fn takes_input(&self) -> bool {
        let is_free = match &self.backlog {
            None => true,
            Some(backlog) => (self.is_client || self.is_shaking()) && backlog.held.is_empty(),
        };
        is_free && !self.paused && !self.resumes && !self.ended
    }

    /// Whether nothing waits to be sent, so that octets may go to the socket at once.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.in_flight == 0 && self.is_flushed()
    }

    /// Whether nothing waits to be sent but what is in flight.
    #[inline]
    pub(super) fn is_flushed(&self) -> bool {
        self.backlog.as_ref().is_none_or(|backlog| backlog.queue.is_none() && backlog.sealed.is_empty())
    }

    /// Whether a handshake of TLS is in progress: what is queued meanwhile waits for its end.
    pub(super) fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|secure| secure.tls.is_handshaking())
    }

    /// Whether nothing comes after what is in flight: neither octets nor FIN.
    #[inline]
    pub(super) fn is_done_sending(&self) -> bool {
        self.is_flushed() && self.finish == Finish::No
    }

    /// What waits to be sent, as limits count it.
    pub(super) fn queued(&self) -> usize {
        let Some(backlog) = &self.backlog else { return self.in_flight as usize };
        self.sealed_left() + backlog.queue.as_ref().map_or(0, |queue| queue.weight())
    }

    /// What is no message of the queue any more and not taken by the socket yet, in octets.
    pub(super) fn sealed_left(&self) -> usize {
        let backlog = self.backlog.as_ref();
        self.in_flight as usize + backlog.map_or(0, |backlog| backlog.sealed.len() - backlog.sealed_done)
    }

    /// The memory that waits, in octets.
    pub(super) fn held_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.lease.octets())
            + self.tls.as_ref().map_or(0, |secure| secure.lease.octets())
    }

    /// Whether received octets wait here.
    pub(super) fn holds_input(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.held.is_empty())
    }

    /// Changes the queue, which is made if there is none and goes if it is empty afterwards.
    pub(super) fn with_queue<R>(
        &mut self,
        meter: &Meter,
        change: impl FnOnce(&mut Option<Box<SendQueue>>) -> R,
    ) -> R {
        let backlog = self.backlog.get_or_insert_with(|| Backlog::new(meter));
        let result = change(&mut backlog.queue);
        if backlog.queue.as_ref().is_some_and(|queue| queue.is_empty()) {
            backlog.queue = None;
        }
        self.recount();
        result
    }

    /// Appends octets that are sealed already.
    pub(super) fn push_sealed(&mut self, octets: &[u8], meter: &Meter) {
        let backlog = self.backlog.get_or_insert_with(|| Backlog::new(meter));
        backlog.sealed.extend_from_slice(octets);
        self.recount();
    }

    /// Sealed octets that go before everything else.
    pub(super) fn sealed(&self) -> &[u8] {
        self.backlog.as_ref().map_or(&[], |backlog| &backlog.sealed[backlog.sealed_done..])
    }

    /// The socket has taken so many of them.
    pub(super) fn advance_sealed(&mut self, count: usize) {
        let Some(backlog) = &mut self.backlog else { return };
        backlog.sealed_done += count;
        if backlog.sealed_done == backlog.sealed.len() {
            backlog.sealed = Vec::new();
            backlog.sealed_done = 0;
            self.recount();
        }
    }

    /// Keeps octets that were received before all that is held, or behind it.
    pub(super) fn hold(&mut self, held: Vec<u8>, meter: &Meter, is_first: bool) {
        let backlog = self.backlog.get_or_insert_with(|| Backlog::new(meter));
        backlog.held_bytes += held.capacity();
        if is_first {
            backlog.held.push_front(held);
        } else {
            backlog.held.push_back(held);
        }
        self.recount();
    }

    /// The oldest octets that are held.
    pub(super) fn take_held(&mut self) -> Option<Vec<u8>> {
        let backlog = self.backlog.as_mut()?;
        let held = backlog.held.pop_front()?;
        backlog.held_bytes -= held.capacity();
        self.recount();
        Some(held)
    }

    /// Nothing that was received is wanted any more.
    pub(super) fn drop_held(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.held = VecDeque::new();
            backlog.held_bytes = 0;
            self.recount();
        }
    }

    /// From here on every call that names the connection does nothing.
    pub(super) fn end(&mut self) {
        debug_assert!(!self.ended);
        self.ended = true;
        self.in_flight = 0;
        self.backlog = None;
        self.tls = None;
    }

    /// Has the meter know what the backlog takes now.
    fn recount(&mut self) {
        let Some(backlog) = &mut self.backlog else { return };
        let queue_bytes = backlog.queue.as_ref().map_or(0, |queue| queue.cost());
        if backlog.queue.is_none() && backlog.sealed.is_empty() && backlog.held.is_empty() {
            self.backlog = None;
        } else {
            let octets = queue_bytes + backlog.sealed.capacity() + backlog.held_bytes;
            backlog.lease.force(octets + size_of::<Backlog>());
        }
    }
}

impl Backlog {
    fn new(meter: &Meter) -> Box<Self> {
        Box::new(Self {
            queue: None,
            sealed: Vec::new(),
            sealed_done: 0,
            held: VecDeque::new(),
            held_bytes: 0,
            lease: meter.force(0),
        })
    }
}

/// What rustls takes for a handshake in progress beside what the link counts itself, and what an established link
/// owns, in octets. `tests/tls_memory.rs` measures the second.
const HANDSHAKE_COST: usize = 5 << 10;
const ESTABLISHED_COST: usize = 2 << 10;

impl Secure {
    pub(super) fn new(server: &TlsServer, meter: &Meter) -> Box<Self> {
        Box::new(Self { tls: server.link(), shakes: true, lease: meter.lease() })
    }

    /// Has the meter know what it takes now.
    pub(super) fn recount(&mut self) {
        let cost = if self.tls.is_handshaking() { HANDSHAKE_COST } else { ESTABLISHED_COST };
        let octets = cost + self.tls.held_octets();
        if octets != self.lease.octets() {
            self.lease.force(octets);
        }
    }
}
