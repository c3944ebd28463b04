//! io_uring for a client that measures: what [`super::UringBackend`] is for a server, but the sockets stay their
//! owner's, and there are no queues and no backpressure. A client that stops to read while its own octets wait would
//! wait for a server that does the same.
//!
//! Receiving is multishot, each time into a buffer of its own. A send takes its octets along, and brings back what
//! the socket did not take. Start at [`ClientRing::next_event`].

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use slab::Slab;
use socket2::SockRef;

use super::buffers::{Buffer, Buffers, Starved};
use super::ring::{Done, KernelRing, Ring as _};
use super::{GENERATION_MASK, Op, Submit, Unavailable, UringDriver, UringOptions, join, split};
pub use crate::net::ConnId;
use crate::net::sent;

/// Receive buffers, and octets in each of them: as the server's, by default.
const BUFFER_COUNT: u16 = 512;
const BUFFER_LEN: usize = 64 << 10;
const COMPLETIONS: u32 = 8192;
/// Send buffers that are kept to be used again.
const SPARE_MAX: usize = 1024;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Octets arrived: see [`ClientRing::received`].
    Received(ConnId),
    /// Nothing more will be received: the peer has ended, or the connection has failed.
    Ended(ConnId, Option<io::Error>),
    /// A send is done. What the socket did not take comes back; mostly that is nothing.
    Sent(ConnId, io::Result<Vec<u8>>),
    /// The descriptor given to [`ClientRing::watch`] has something to read.
    Readable,
}

/// Receives and sends for the sockets of one thread. See the module.
pub struct ClientRing {
    // Before what its operations use, so that it is closed first.
    ring: KernelRing,
    buffers: Buffers,
    /// Octets in flight, which nobody looks at until they have come back.
    sends: Slab<(ConnId, Vec<u8>)>,
    /// By the index of the connection: what is received from.
    receiving: Vec<Option<Receiving>>,
    current: Option<Buffer>,
    starved: Starved<ConnId>,
    watched: Option<RawFd>,
    /// Closed after the next submission: until then their numbers may be in the ring.
    closing: Vec<OwnedFd>,
    spare: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Receiving {
    generation: u32,
    fd: RawFd,
    /// The last turn in which it had a receive buffer. Wraps.
    fed_in: u32,
}

impl ClientRing {
    /// A ring for the calling thread, which alone may use it. Every operation that it needs has been tried when
    /// this returns.
    ///
    /// # Errors
    /// io_uring cannot be used here.
    pub fn new() -> Result<Self, Unavailable> {
        let failed = |operation| move |source| Unavailable { operation, source };
        let options = UringOptions {
            buffer_count: BUFFER_COUNT,
            buffer_bytes: BUFFER_LEN as u32,
            completions: COMPLETIONS,
            submit: Submit::All,
        };
        let ring = KernelRing::new(COMPLETIONS).map_err(failed("io_uring_setup"))?;
        let mut driver =
            UringDriver::on(ring, &options).map_err(failed("io_uring_register, provided buffers"))?;
        driver.self_test().map_err(failed("a multishot receive"))?;
        drop(driver);
        let mut ring = KernelRing::new(COMPLETIONS).map_err(failed("io_uring_setup"))?;
        // SAFETY: `buffers` is declared after `ring` in this function's result.
        let buffers = unsafe { Buffers::new(&mut ring, BUFFER_COUNT, BUFFER_LEN) };
        let buffers = buffers.map_err(failed("io_uring_register, provided buffers"))?;
        Ok(Self {
            ring,
            buffers,
            sends: Slab::new(),
            receiving: Vec::new(),
            current: None,
            starved: Starved::new(),
            watched: None,
            closing: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Reports whenever `fd` becomes readable, as an edge. It is to stay open as long as the ring.
    pub fn watch(&mut self, fd: RawFd) {
        self.watched = Some(fd);
        self.ring.poll_readable_of(fd, join(Op::Wake, 0, 0));
    }

    /// Receives from `socket`, which must not be O_NONBLOCK, until [`close`](Self::close). Of the generation 28 bits
    /// come back.
    pub fn receive(&mut self, conn: ConnId, socket: BorrowedFd<'_>) {
        let index = conn.index as usize;
        if self.receiving.len() <= index {
            self.receiving.resize(index + 1, None);
        }
        let generation = conn.generation & GENERATION_MASK;
        let receiving = Receiving { generation, fd: socket.as_raw_fd(), fed_in: 0 };
        self.receiving[index] = Some(receiving);
        self.arm(conn.index, receiving);
    }

    fn arm(&mut self, index: u32, receiving: Receiving) {
        // SAFETY: its owner closes it by `close` only.
        let socket = unsafe { BorrowedFd::borrow_raw(receiving.fd) };
        self.ring.receive(&SockRef::from(&socket), join(Op::Receive, index, receiving.generation));
    }

    /// An empty buffer for octets to send, with the memory of one that was sent if there is one.
    #[inline]
    pub fn spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Sends as many of `octets` as the socket takes at once, in the next [`wait`](Self::wait).
    #[inline]
    pub fn send(&mut self, conn: ConnId, socket: BorrowedFd<'_>, octets: Vec<u8>) {
        let entry = self.sends.vacant_entry();
        let user_data = join(Op::Send, entry.key() as u32, 0);
        let (_, octets) = entry.insert((conn, octets));
        let octets: *const [u8] = octets.as_slice();
        // SAFETY: `sends` keeps them, and changes nothing about them, until the completion was taken.
        unsafe { self.ring.send(&SockRef::from(&socket), octets, user_data) };
    }

    /// Stops to receive from a connection, and closes it once nothing in the ring refers to it.
    pub fn close(&mut self, conn: ConnId, socket: OwnedFd) {
        if let Some(receiving) = self.receiving.get_mut(conn.index as usize)
            && receiving.is_some_and(|receiving| receiving.generation == conn.generation & GENERATION_MASK)
        {
            *receiving = None;
            let target = join(Op::Receive, conn.index, conn.generation & GENERATION_MASK);
            self.ring.cancel(target, join(Op::Cancel, 0, 0));
        }
        self.closing.push(socket);
    }

    /// Submits what was asked for, and waits until something has happened or `timeout` has passed.
    ///
    /// # Errors
    /// The interface itself failed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.release_current();
        // SAFETY: it is the ring that they were made with.
        unsafe { self.buffers.post(&mut self.ring, false) };
        self.starved.begin_turn();
        for _ in 0..self.starved.len().min(self.buffers.posted_count()) {
            let conn = self.starved.pop().expect("there are this many");
            if let Some(&mut receiving) = self.receiving_of(conn.index, conn.generation) {
                self.arm(conn.index, receiving);
            }
        }
        self.ring.enter(timeout)?;
        self.closing.clear();
        Ok(())
    }

    /// What has happened next. `None` if nothing else had when the last [`wait`](Self::wait) returned.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        self.release_current();
        loop {
            let completion = self.ring.next()?;
            let (op, index, generation) = split(completion.user_data);
            let event = match op {
                Op::Receive => self.received_on(index, generation, &completion),
                Op::Send => Some(self.sent_on(index, completion.result)),
                Op::Wake => {
                    if let Some(fd) = self.watched.filter(|_| !completion.more) {
                        self.ring.poll_readable_of(fd, join(Op::Wake, 0, 0));
                    }
                    Some(Event::Readable)
                }
                _ => None,
            };
            if event.is_some() {
                return event;
            }
        }
    }

    /// The octets of the [`Event::Received`] that `next_event` returned last; valid until it is called again. Theirs to
    /// overwrite.
    #[inline]
    pub fn received(&mut self) -> &mut [u8] {
        match &self.current {
            Some(buffer) => self.buffers.octets(buffer),
            None => &mut [],
        }
    }

    fn receiving_of(&mut self, index: u32, generation: u32) -> Option<&mut Receiving> {
        let receiving = self.receiving.get_mut(index as usize)?.as_mut();
        receiving.filter(|receiving| receiving.generation == generation)
    }

    #[inline]
    fn received_on(&mut self, index: u32, generation: u32, completion: &Done) -> Option<Event> {
        let buffer = self.buffers.take(completion);
        let turn = self.starved.turn();
        let Some(receiving) = self.receiving_of(index, generation) else {
            // It was closed on our side in the meantime.
            if let Some(buffer) = buffer {
                self.buffers.release(buffer);
            }
            return None;
        };
        let conn = ConnId { index, generation };
        let result = completion.result;
        let again = *receiving;
        if result > 0 {
            receiving.fed_in = turn;
            if !completion.more {
                self.arm(index, again);
            }
            self.current = buffer;
            return Some(Event::Received(conn));
        }
        if let Some(buffer) = buffer {
            self.buffers.release(buffer);
        }
        match -result {
            0 => self.ended(conn, None),
            libc::ENOBUFS => {
                self.starved.push(conn, again.fed_in);
                None
            }
            libc::EINTR | libc::EAGAIN => {
                self.arm(index, again);
                None
            }
            error => self.ended(conn, Some(io::Error::from_raw_os_error(error))),
        }
    }

    fn ended(&mut self, conn: ConnId, error: Option<io::Error>) -> Option<Event> {
        self.receiving[conn.index as usize] = None;
        Some(Event::Ended(conn, error))
    }

    #[inline]
    fn sent_on(&mut self, key: u32, result: i32) -> Event {
        let (conn, mut octets) = self.sends.remove(key as usize);
        let result =
            if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
        let rest =
            sent(result).map(|len| if len == octets.len() { Vec::new() } else { octets.split_off(len) });
        if self.spare.len() < SPARE_MAX {
            octets.clear();
            self.spare.push(octets);
        }
        Event::Sent(conn, rest)
    }

    #[inline]
    fn release_current(&mut self) {
        if let Some(buffer) = self.current.take() {
            self.buffers.release(buffer);
        }
    }
}

impl Drop for ClientRing {
    fn drop(&mut self) {
        if !self.ring.cancel_all(|_| false) {
            // The kernel may still read or write this memory, however long that takes.
            self.buffers.leak();
            std::mem::forget(std::mem::take(&mut self.sends));
        }
    }
}

#[cfg(test)]
mod tests;
