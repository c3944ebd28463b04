//! Sockets behind one completion-shaped interface, [`Backend`].
//!
//! A backend owns every socket, all receive memory and the queues of what could not be sent yet. It reports
//! what has happened, one [`Completion`] at a time; its driver answers by calling back. A readiness API
//! ([`epoll`]) does the I/O when it may and reports it done, [`uring`] is completion-shaped itself, and the
//! simulator ([`sim`]) does it in memory. Each of them is a [`transport::Driver`], which says only how to accept,
//! connect, receive and send; what waits, and who has a turn, is in [`transport`], once.
//! Nothing here knows what the octets mean.
//!
//! Backpressure is the backend's: a connection with anything left in its send queue is not read from.

pub mod epoll;
mod link;
mod listen;
mod queue;
pub mod sim;
mod socket;
pub mod tls;
pub mod transport;
#[allow(unsafe_code)]
pub mod uring;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::replies::Replies;

pub use listen::{Bound, Claim, Endpoint, Listener, bind, raise_nofile};
pub use queue::{Chunk, Publication};
use tls::{Handshaken, TlsError};

/// Names one connection of one backend, for as long as it lives. `index` counts from 0, is small, and is
/// used again after [`Completion::Closed`]; `generation` then differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// The slot.
    pub index: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// What a backend reports.
#[derive(Debug)]
pub enum Completion {
    /// A connection is there; nothing was read from it yet.
    Accepted(ConnId),
    /// Octets arrived: see [`Backend::received`].
    Received(ConnId),
    /// The peer will send no more. Its connection can still be written to.
    Eof(ConnId),
    /// The connection is gone, in good order or by an error, and its slot is free again. Reported exactly
    /// once for every [`Completion::Accepted`].
    Closed(ConnId, Option<io::Error>),
    /// A connection that [`Backend::connect`] began is there.
    Connected(ConnId),
    /// Octets began to wait because the socket takes no more. See [`Backend::has_taken`].
    Blocked(ConnId),
    /// Nothing waits any more.
    Unblocked(ConnId),
    /// Nothing can be accepted for now (EMFILE, ENFILE, ENOBUFS, ENOMEM): the backend pauses and tries again.
    AcceptFailed(io::Error),
    /// Octets of this connection wait because the backend had no buffer for them; it receives them when it
    /// has. Only to be counted.
    ReceiveStarved(ConnId),
    /// Something has happened to the connection's TLS.
    Tls(ConnId, Box<TlsEvent>),
    /// A connection was closed at once, before it had a name: too many TLS handshakes are in progress.
    HandshakeRefused,
    /// [`Wake::wake`] was called.
    Woken,
}

/// What [`Completion::Tls`] tells.
#[derive(Debug)]
pub enum TlsEvent {
    /// The handshake is done: octets flow.
    Handshaken(Handshaken),
    /// TLS cannot go on. The alert that says why is on its way to the peer, and the connection is being finished as by
    /// [`Backend::finish`]. Not so after [`TlsErrorKind::PlainHttp`](tls::TlsErrorKind::PlainHttp): what is sent from
    /// now on goes in plain text, and the driver answers and finishes.
    Failed {
        /// Why.
        error: TlsError,
        /// Whether it was the handshake that failed.
        in_handshake: bool,
    },
    /// The peer has ended without close_notify: what it sent last may have been cut off. `Eof` follows.
    Truncated,
}

/// Ends another thread's [`Backend::wait`].
pub trait Wake: Send + Sync {
    /// Makes the backend's `wait` return soon, and report [`Completion::Woken`].
    fn wake(&self);
}

/// Sockets, receive memory and send queues of one worker. Not shared between threads.
///
/// Calls that name a connection that has failed, or is being closed, do nothing: its
/// [`Completion::Closed`] is on its way.
pub trait Backend {
    /// For waking this backend from other threads.
    fn waker(&self) -> Arc<dyn Wake>;

    /// The time, read once in each `wait`.
    fn now(&self) -> Instant;

    /// The time, read anew.
    fn clock(&self) -> Instant;

    /// Waits until something has happened or `timeout` has passed; begins a turn.
    ///
    /// # Errors
    /// The interface itself failed, which ends the worker. No peer can cause that.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next completion of this turn.
    fn next(&mut self) -> Option<Completion>;

    /// The octets of the [`Completion::Received`] that `next` returned last; valid until `next` or `reply` is
    /// called. Theirs to overwrite.
    fn received(&mut self) -> &mut [u8];

    /// Sends `replies`, which stand in [`received`](Self::received) but for their owned pieces. What the socket does
    /// not take at once is kept and sent when it does.
    fn reply(&mut self, conn: ConnId, replies: &mut Replies);

    /// Keeps `received()[from..]`, which comes again in the next turn, before anything else. To be called before
    /// [`reply`](Self::reply), which may give the octets away.
    fn hold(&mut self, conn: ConnId, from: usize);

    /// Sends `chunk` after all that was sent before. What the socket does not take at once is kept.
    fn send(&mut self, conn: ConnId, chunk: Chunk);

    /// What waits in the connection's send queue, in octets: those to be sent, and for each chunk what keeping it takes.
    fn queued(&self, conn: ConnId) -> usize;

    /// The memory that waits for the connection in either direction, in octets.
    fn held_bytes(&self, conn: ConnId) -> usize;

    /// Whether the connection speaks TLS.
    fn is_secure(&self, conn: ConnId) -> bool {
        let _ = conn;
        false
    }

    /// Whether octets wait because the socket takes no more.
    fn is_blocked(&self, conn: ConnId) -> bool;

    /// Whether the socket has taken octets that had waited, since this was asked last: so a slow peer can be told from
    /// one that stands still.
    fn has_taken(&mut self, conn: ConnId) -> bool;

    /// Whether all that the peer has sent so far was received.
    fn is_quiet(&self, conn: ConnId) -> bool;

    /// Takes publications that were not begun out of the connection's queue, oldest first, until at most
    /// `target` octets wait or there are none. Returns how many messages that were.
    fn drop_oldest(&mut self, conn: ConnId, target: usize) -> u32;

    /// Receives nothing more from the connection for now.
    fn pause(&mut self, conn: ConnId);

    /// Receives again. The connection may be gone.
    fn resume(&mut self, conn: ConnId);

    /// Closes in good order: sends all that is queued, then FIN, reads to the peer's end without reporting
    /// it, and closes. So no reply is lost to a RST, as long as the peer ends; if it may not, `close`.
    fn finish(&mut self, conn: ConnId);

    /// Closes at once; what is queued is dropped.
    fn close(&mut self, conn: ConnId);

    /// Begins to connect. [`Completion::Connected`] or [`Completion::Closed`] follows.
    ///
    /// # Errors
    /// What the kernel refused at once.
    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId>;

    /// Accepts what has arrived so far, then closes the listeners.
    fn stop_accepting(&mut self);
}

/// Generations have 28 bits, which is what the number of an operation leaves of a completion's user data on io_uring.
const GENERATION_MASK: u32 = u32::MAX >> 4;
/// Connections accepted from one listener in one turn, so that a storm of them does not stop the others.
const ACCEPTS_MAX: u32 = 64;
/// A connection that has so little, in octets, is likely to wait for its reply: while such are there, those that have
/// much are given less at once, so that a turn is short.
const LIGHT_LEN: usize = 4 << 10;
/// For so many turns after one was seen.
const LIGHT_TURNS: u32 = 256;
/// How long accepting rests after the process or system ran out of what it needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much of a send was taken: a full socket takes nothing.
#[inline]
fn sent(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}

/// Errors of accept(2) that say nothing about the connection and will be there again at the next call.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC)
    )
}
