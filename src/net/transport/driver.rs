//! What is different from one interface of the kernel to the next: [`Driver`].

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::net::Wake;
use crate::net::link::Link;
use crate::net::queue::Chunk;
use crate::replies::Replies;

/// One connection: its life, and what its driver keeps for it.
pub struct Entry<Io> {
    pub(in crate::net) link: Link,
    pub(in crate::net) io: Io,
}

/// All connections of a driver.
pub type Links<Io> = Slab<Entry<Io>>;

/// What has happened, as a driver sees it.
pub enum Event<Io> {
    /// A connection is there, of the listener with this index.
    Accepted(Io, usize),
    /// Nothing can be accepted for now.
    AcceptFailed(io::Error),
    /// A connection that was asked for is there.
    Connected(u32),
    /// Octets arrived: they are the driver's buffer.
    Received(u32),
    /// The peer will send no more.
    Eof(u32),
    /// The connection has failed.
    Failed(u32, io::Error),
    /// The socket takes octets again.
    Writable(u32),
    /// What was submitted is done. `rest` was not taken: a chunk, and how many octets of it were.
    Sent {
        /// The link.
        index: u32,
        /// What was not taken.
        rest: Option<(Chunk, usize)>,
        /// Why, if the socket was not just full.
        error: Option<io::Error>,
    },
    /// Nothing is in flight any more for a link that has ended.
    Freed(u32),
    /// There was no buffer for what has arrived. It is received when there is one.
    Starved(u32),
    /// Another thread has called.
    Woken,
}

/// What a driver keeps for one connection: its socket above all.
pub trait Io {
    /// Sends as much of the pieces as the socket takes at once.
    ///
    /// # Errors
    /// The connection has failed; or its socket is full.
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends FIN.
    fn shutdown(&mut self);

    /// Whether octets of the peer wait in the kernel.
    fn has_input(&self) -> bool;
}

/// How to accept, connect, receive and send.
///
/// Every call is about an entry whose link has not ended, unless it says otherwise.
pub trait Driver {
    /// What it keeps for one connection.
    type Io: Io;

    /// For waking it from other threads.
    fn waker(&self) -> Arc<dyn Wake>;

    /// The time.
    fn clock(&self) -> Instant;

    /// Waits until something has happened or `timeout` has passed.
    ///
    /// # Errors
    /// The interface itself failed.
    fn wait(&mut self, links: &mut Links<Self::Io>, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of this turn.
    fn next(&mut self, links: &mut Links<Self::Io>) -> Option<Event<Self::Io>>;

    /// The octets of the [`Event::Received`] that `next` returned last, until [`Driver::release`].
    fn buffer(&mut self) -> &mut [u8];

    /// They are not needed any more.
    fn release(&mut self) {}

    /// The entry is in its place: from now on it is received from.
    ///
    /// # Errors
    /// The kernel refused, and the connection is to be dropped.
    fn open(&mut self, entry: &mut Entry<Self::Io>, index: u32) -> io::Result<()>;

    /// Begins to connect. The entry made of it is opened as an accepted one is.
    ///
    /// # Errors
    /// What the kernel refused at once.
    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self::Io>;

    /// Its input is wanted again.
    fn receive(&mut self, entry: &mut Entry<Self::Io>, index: u32);

    /// Its input is not wanted for now.
    fn stop_receiving(&mut self, entry: &mut Entry<Self::Io>, index: u32);

    /// Submits a part of the driver's buffer to be sent, if that is worth it. Returns whether it did.
    #[inline]
    fn submit_reply(&mut self, entry: &mut Entry<Self::Io>, index: u32, replies: &Replies) -> bool {
        let _ = (entry, index, replies);
        false
    }

    /// Submits a chunk to be sent, if that is worth it. If not, it comes back.
    #[inline]
    fn submit(&mut self, entry: &mut Entry<Self::Io>, index: u32, chunk: Chunk) -> Option<Chunk> {
        let _ = (entry, index);
        Some(chunk)
    }

    /// Has [`Event::Writable`] come once the socket takes more.
    fn want_writable(&mut self, entry: &mut Entry<Self::Io>, index: u32);

    /// The link has ended. Returns whether nothing is in flight for it; if not, [`Event::Freed`] comes.
    fn end(&mut self, entry: &mut Entry<Self::Io>, index: u32) -> bool;

    /// A slot was given back, its descriptor closed.
    fn closed(&mut self) {}

    /// Accepts nothing more, once all that waits to be accepted now was.
    fn stop_accepting(&mut self);
}
