//! The driver on epoll, through mio: edge-triggered, one read for each connection and visit.
//!
//! All connections share one receive buffer, so an idle one owns none. A read that fills less than it was given has
//! drained its socket, and the EAGAIN that would say so is not asked for. A read that fills it puts the connection at
//! the end of the line. The more connections have something, the less each is given at once.
//!
//! Start at [`EpollDriver::next`](Driver::next).

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::Socket;

use super::listen::Listener;
use super::socket;
use super::transport::{Driver, Entry, Event, Io, Links, Transport};
use super::{ACCEPT_PAUSE, ACCEPTS_MAX, LIGHT_LEN, LIGHT_TURNS, Wake, is_exhaustion};
use crate::memory::Meter;

const WAKER: Token = Token(usize::MAX);
/// Tokens from here on are listeners; those below are connections.
const LISTENERS: usize = usize::MAX - 1024;
const EVENTS_MAX: usize = 1024;
/// What all connections together are given to receive in a turn that is to be short, in octets, as far as [`BITE_MIN`]
/// allows. To cut long messages into small pieces where nobody waits would only cost more (50 connections with 16
/// messages of 16 KiB in flight each: 1.4 times the processor time).
const TURN_LEN: usize = 4 << 20;
/// The least that a connection is given to receive at once, in octets.
const BITE_MIN: usize = 64 << 10;

/// The backend on epoll.
pub type EpollBackend = Transport<EpollDriver>;

/// See the module.
pub struct EpollDriver {
    poll: Poll,
    waker: Arc<Waker>,
    events: Events,
    now: Instant,
    listeners: Vec<Acceptor>,
    /// Listeners that accept what has arrived, and are closed then.
    stopping: bool,
    accept_again: Option<Instant>,
    buffer: Box<[u8]>,
    /// How many octets of `buffer` a connection is given in this turn, and how many the last event has.
    bite: usize,
    received: usize,
    /// For so many turns, turns are to be short.
    light_turns: u32,
    /// What this turn still has to look at.
    work: VecDeque<Work>,
    /// Connections that may have more to read in the next turn.
    again: Vec<u32>,
}

#[derive(Debug)]
enum Work {
    Connection { token: usize, readable: bool, hangup: bool, writable: bool },
    Again(u32),
    Listener(usize),
    Woken,
}

struct Acceptor {
    socket: Accepting,
    /// The kernel may have more connections for us.
    ready: bool,
    budget: u32,
}

enum Accepting {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

impl Wake for Waker {
    fn wake(&self) {
        // It fails only if the backend is gone, and then there is nobody to wake.
        let _ = self.wake();
    }
}

/// What a connection is on epoll.
pub struct EpollIo {
    socket: Socket,
    /// The kernel may hold octets for us: an edge was reported and not drained yet.
    readable: bool,
    /// The peer's FIN or an error was seen: a short read does not mean that the socket is drained.
    hangup: bool,
    /// It stands in `again`.
    waits: bool,
    wants: Wants,
}

/// What a connection waits for beside octets to read. One octet: each connection has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Nothing,
    /// It is to be told when it can be written to.
    Writable,
    /// It is being connected.
    Connected,
}

impl Io for EpollIo {
    #[inline]
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send(&self.socket, pieces)
    }

    fn shutdown(&mut self) {
        // An error here is the peer's RST, which the next read reports.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn has_input(&self) -> bool {
        socket::has_input(&self.socket)
    }
}

impl EpollBackend {
    /// A backend that accepts from `listeners` and receives up to `receive_buffer_bytes` at a time. What waits in it
    /// is counted by `meter`. At most `handshakes_max` handshakes of TLS are in progress.
    ///
    /// # Errors
    /// epoll or eventfd could not be had, most likely because of the limit of open files.
    pub fn new(
        listeners: Vec<Listener>,
        receive_buffer_bytes: usize,
        handshakes_max: usize,
        meter: Meter,
    ) -> io::Result<Self> {
        let servers = listeners.iter().map(|listener| listener.tls.clone()).collect();
        let driver = EpollDriver::new(listeners, receive_buffer_bytes)?;
        Ok(Self::on(driver, meter).with_tls(servers, handshakes_max))
    }
}

impl EpollDriver {
    fn new(listeners: Vec<Listener>, receive_buffer_bytes: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut acceptors = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let token = Token(LISTENERS + index);
            assert!(token < WAKER, "at most 1023 listeners");
            let fd = OwnedFd::from(listener.socket);
            let socket = if listener.is_unix {
                let mut socket = mio::net::UnixListener::from_std(fd.into());
                poll.registry().register(&mut socket, token, Interest::READABLE)?;
                Accepting::Unix(socket)
            } else {
                let mut socket = mio::net::TcpListener::from_std(fd.into());
                poll.registry().register(&mut socket, token, Interest::READABLE)?;
                Accepting::Tcp(socket)
            };
            acceptors.push(Acceptor { socket, ready: true, budget: 0 });
        }
        Ok(Self {
            poll,
            waker,
            events: Events::with_capacity(EVENTS_MAX),
            now: Instant::now(),
            listeners: acceptors,
            stopping: false,
            accept_again: None,
            buffer: vec![0; receive_buffer_bytes].into_boxed_slice(),
            bite: receive_buffer_bytes,
            received: 0,
            light_turns: 0,
            work: VecDeque::new(),
            again: Vec::new(),
        })
    }

    fn do_work(&mut self, work: Work, links: &mut Links<EpollIo>) -> Option<Event<EpollIo>> {
        match work {
            Work::Connection { token, readable, hangup, writable } => {
                let (index, generation) = split(token);
                let entry = links.get_mut(index as usize)?;
                if entry.link.generation != generation || entry.link.ended {
                    return None;
                }
                let io = &mut entry.io;
                io.readable |= readable || hangup;
                io.hangup |= hangup;
                if io.wants == Wants::Connected && (writable || hangup) {
                    return self.connected(index, io);
                }
                if writable && io.wants == Wants::Writable {
                    io.wants = Wants::Nothing;
                    self.read_again(index, io);
                    return Some(Event::Writable(index));
                }
                if io.waits {
                    // It has its turn behind those who had none in the last one.
                    return None;
                }
                self.read(index, entry, true)
            }
            Work::Again(index) => {
                let entry = links.get_mut(index as usize)?;
                entry.io.waits = false;
                self.read(index, entry, false)
            }
            Work::Listener(index) => self.accept(index),
            Work::Woken => Some(Event::Woken),
        }
    }

    fn accept(&mut self, index: usize) -> Option<Event<EpollIo>> {
        loop {
            let acceptor = &mut self.listeners[index];
            if acceptor.budget == 0 {
                return None;
            }
            acceptor.budget -= 1;
            let accepted = match &acceptor.socket {
                Accepting::Tcp(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
                Accepting::Unix(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
            };
            match accepted {
                Ok(fd) => {
                    self.work.push_back(Work::Listener(index));
                    return Some(Event::Accepted(EpollIo::new(fd.into(), false), index));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.listeners[index].ready = false;
                    return None;
                }
                Err(error) if is_exhaustion(&error) => {
                    self.listeners[index].budget = 0;
                    self.accept_again = Some(self.now + ACCEPT_PAUSE);
                    return Some(Event::AcceptFailed(error));
                }
                // ECONNABORTED and the like: that peer is gone, the next may not be.
                Err(error) => tracing::debug!(%error, "a connection was lost before it was accepted"),
            }
        }
    }

    fn connected(&mut self, index: u32, io: &mut EpollIo) -> Option<Event<EpollIo>> {
        let event = match socket::is_connected(&io.socket) {
            Ok(true) => Event::Connected(index),
            // Another event will come.
            Ok(false) => return None,
            Err(error) => Event::Failed(index, error),
        };
        io.wants = Wants::Nothing;
        self.read_again(index, io);
        Some(event)
    }

    /// One read, if there may be something to read and it is wanted. What comes is the first for a while (`is_fresh`),
    /// or the rest of what came before.
    #[inline]
    fn read(&mut self, index: u32, entry: &mut Entry<EpollIo>, is_fresh: bool) -> Option<Event<EpollIo>> {
        let Entry { link, io } = entry;
        if !io.readable || link.eof || io.wants == Wants::Connected || !link.takes_input() {
            return None;
        }
        loop {
            match (&io.socket).read(&mut self.buffer[..self.bite]) {
                Ok(0) => {
                    io.readable = false;
                    return Some(Event::Eof(index));
                }
                Ok(len) => {
                    io.readable = len == self.bite || io.hangup;
                    if is_fresh && len < LIGHT_LEN {
                        self.light_turns = LIGHT_TURNS;
                    }
                    self.read_again(index, io);
                    self.received = len;
                    return Some(Event::Received(index));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    io.readable = false;
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Event::Failed(index, error)),
            }
        }
    }

    /// Has the connection read in the next turn, if there may be something to read.
    #[inline]
    fn read_again(&mut self, index: u32, io: &mut EpollIo) {
        if io.readable && !io.waits {
            io.waits = true;
            self.again.push(index);
        }
    }

    /// Begins a turn: what the kernel has reported, then who has more to read, then the listeners.
    fn begin_turn(&mut self) {
        for event in &self.events {
            let token = event.token();
            self.work.push_back(match token {
                WAKER => Work::Woken,
                Token(token) if token >= LISTENERS => {
                    if let Some(acceptor) = self.listeners.get_mut(token - LISTENERS) {
                        acceptor.ready = true;
                    }
                    continue;
                }
                Token(token) => Work::Connection {
                    token,
                    readable: event.is_readable(),
                    hangup: event.is_read_closed() || event.is_error(),
                    writable: event.is_writable() || event.is_write_closed() || event.is_error(),
                },
            });
        }
        self.work.extend(self.again.drain(..).map(Work::Again));
        self.light_turns = self.light_turns.saturating_sub(1);
        self.bite = match self.light_turns {
            0 => self.buffer.len(),
            _ => (TURN_LEN / self.work.len().max(1)).max(BITE_MIN).min(self.buffer.len()),
        };
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
        }
        if self.accept_again.is_none() {
            for (index, acceptor) in
                self.listeners.iter_mut().enumerate().filter(|(_, acceptor)| acceptor.ready)
            {
                acceptor.budget = ACCEPTS_MAX;
                self.work.push_back(Work::Listener(index));
            }
        }
    }
}

impl Driver for EpollDriver {
    type Io = EpollIo;

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn wait(&mut self, _: &mut Links<EpollIo>, timeout: Option<Duration>) -> io::Result<()> {
        debug_assert!(self.work.is_empty(), "the last turn's events were not all taken");
        let may_accept = self.accept_again.is_none();
        if self.stopping && !(may_accept && self.listeners.iter().any(|acceptor| acceptor.ready)) {
            self.listeners.clear();
            self.accept_again = None;
        }
        let accepts = may_accept && self.listeners.iter().any(|acceptor| acceptor.ready);
        let timeout = if accepts || !self.again.is_empty() {
            Some(Duration::ZERO)
        } else {
            let pause = self.accept_again.map(|at| at.saturating_duration_since(self.now));
            [timeout, pause].into_iter().flatten().min()
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        self.now = Instant::now();
        self.begin_turn();
        Ok(())
    }

    #[inline]
    fn next(&mut self, links: &mut Links<EpollIo>) -> Option<Event<EpollIo>> {
        loop {
            let work = self.work.pop_front()?;
            let event = self.do_work(work, links);
            if event.is_some() {
                return event;
            }
        }
    }

    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.received]
    }

    fn open(&mut self, entry: &mut Entry<EpollIo>, index: u32) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = Token(join(index, entry.link.generation));
        self.poll.registry().register(&mut SourceFd(&entry.io.socket.as_raw_fd()), token, interest)
    }

    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<EpollIo> {
        Ok(EpollIo::new(socket::connect(address, source)?, true))
    }

    fn receive(&mut self, entry: &mut Entry<EpollIo>, index: u32) {
        self.read_again(index, &mut entry.io);
    }

    fn stop_receiving(&mut self, _: &mut Entry<EpollIo>, _: u32) {
        // It is looked at before each read whether octets are wanted.
    }

    fn want_writable(&mut self, entry: &mut Entry<EpollIo>, _: u32) {
        if entry.io.wants == Wants::Nothing {
            entry.io.wants = Wants::Writable;
        }
    }

    fn end(&mut self, _: &mut Entry<EpollIo>, _: u32) -> bool {
        true
    }

    fn closed(&mut self) {
        // Closing the descriptor also took it out of epoll: nobody else has a copy of it.
        if self.accept_again.is_some() {
            self.accept_again = Some(self.now);
        }
    }

    fn stop_accepting(&mut self) {
        self.stopping = true;
        self.listeners.iter_mut().for_each(|acceptor| acceptor.ready = true);
    }
}

impl EpollIo {
    fn new(socket: Socket, connects: bool) -> Self {
        let wants = if connects { Wants::Connected } else { Wants::Nothing };
        Self { socket, readable: false, hangup: false, waits: false, wants }
    }
}

fn join(index: u32, generation: u32) -> usize {
    (generation as usize) << 32 | index as usize
}

fn split(token: usize) -> (u32, u32) {
    (token as u32, (token >> 32) as u32)
}
