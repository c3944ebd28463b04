//! The backend on epoll, through mio: edge-triggered, one read for each connection and visit.
//!
//! All connections share one receive buffer, so an idle one owns none. A read that fills less than the
//! buffer has drained its socket, and the EAGAIN that would say so is not asked for. A read that fills it
//! puts the connection at the end of the line. A send is tried at once; only what the socket refuses is
//! queued, and while anything is queued the connection is not read from.
//!
//! Start at [`EpollBackend::next`].

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use socket2::Socket;

use super::queue::{SendQueue, send_reply};
use super::{ACCEPT_PAUSE, Backend, Chunk, Completion, ConnId, Listener, Wake, is_exhaustion, sent};

const WAKER: Token = Token(usize::MAX);
/// Tokens from here on are listeners; those below are connections.
const LISTENERS: usize = usize::MAX - 1024;
const EVENTS_MAX: usize = 1024;
/// Connections accepted from one listener in one turn, so that a storm of them does not stop the others.
const ACCEPTS_MAX: u32 = 64;
/// Generations have 31 bits, so that a token's top bit is clear: listeners and the waker are above.
const GENERATION_MASK: u32 = u32::MAX >> 1;
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;

/// See the module.
pub struct EpollBackend {
    poll: Poll,
    waker: Arc<Waker>,
    events: Events,
    now: Instant,
    connections: Slab<Connection>,
    generation: u32,
    listeners: Vec<Acceptor>,
    accept_again: Option<Instant>,
    buffer: Box<[u8]>,
    /// How many octets of `buffer` the last `Received` has.
    received: usize,
    /// What this turn still has to look at.
    work: VecDeque<Work>,
    /// Connections that may have more to read in the next turn.
    again: Vec<u32>,
    /// Connections whose end is still to be reported.
    ended: VecDeque<(u32, Option<io::Error>)>,
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

/// One connection's transport.
struct Connection {
    socket: Socket,
    generation: u32,
    /// The kernel may hold octets for us: an edge was reported and not drained yet.
    readable: bool,
    /// The peer's FIN or an error was seen: a short read does not mean that the socket is drained.
    hangup: bool,
    /// Everything the peer sent has been read.
    eof: bool,
    /// It stands in `again`.
    waits: bool,
    finish: Finish,
    /// Its end stands in `ended`.
    ended: bool,
    queue: Option<Box<SendQueue>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    No,
    /// When the queue is empty, FIN.
    Asked,
    /// FIN is sent; the peer's end is awaited.
    FinSent,
}

impl EpollBackend {
    /// A backend that accepts from `listeners` and receives up to `receive_buffer_bytes` at a time.
    ///
    /// # Errors
    /// epoll or eventfd could not be had, most likely because of the limit of open files.
    pub fn new(listeners: Vec<Listener>, receive_buffer_bytes: usize) -> io::Result<Self> {
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
            connections: Slab::new(),
            generation: 0,
            listeners: acceptors,
            accept_again: None,
            buffer: vec![0; receive_buffer_bytes].into_boxed_slice(),
            received: 0,
            work: VecDeque::new(),
            again: Vec::new(),
            ended: VecDeque::new(),
        })
    }

    /// The connection, unless its end is only still to be reported.
    fn live(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let connection = &mut self.connections[conn.index as usize];
        debug_assert_eq!(connection.generation, conn.generation, "a connection is used after it was closed");
        (!connection.ended).then_some(connection)
    }

    fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.connections[index as usize].generation }
    }

    fn do_work(&mut self, work: Work) -> Option<Completion> {
        match work {
            Work::Woken => Some(Completion::Woken),
            Work::Listener(index) => self.accept(index),
            Work::Again(index) => {
                let connection = self.connections.get_mut(index as usize)?;
                connection.waits = false;
                self.read(index)
            }
            Work::Connection { token, readable, hangup, writable } => {
                let (index, generation) = split(token);
                let connection = self.connections.get_mut(index as usize)?;
                if connection.generation != generation || connection.ended {
                    return None;
                }
                connection.readable |= readable || hangup;
                connection.hangup |= hangup;
                if writable && connection.queue.is_some() {
                    self.flush(index);
                }
                self.read(index)
            }
        }
    }

    fn accept(&mut self, index: usize) -> Option<Completion> {
        loop {
            // Gone if accepting was stopped in this turn.
            let acceptor = self.listeners.get_mut(index)?;
            if acceptor.budget == 0 {
                return None;
            }
            acceptor.budget -= 1;
            let accepted = match &acceptor.socket {
                Accepting::Tcp(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
                Accepting::Unix(socket) => socket.accept().map(|(stream, _)| OwnedFd::from(stream)),
            };
            match accepted.and_then(|fd| self.connect(Socket::from(fd))) {
                Ok(conn) => {
                    self.work.push_back(Work::Listener(index));
                    return Some(Completion::Accepted(conn));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.listeners[index].ready = false;
                    return None;
                }
                Err(error) if is_exhaustion(&error) => {
                    self.listeners[index].budget = 0;
                    self.accept_again = Some(self.now + ACCEPT_PAUSE);
                    return Some(Completion::AcceptFailed(error));
                }
                // ECONNABORTED and the like: that peer is gone, the next may not be.
                Err(error) => tracing::debug!(%error, "a connection was lost before it was accepted"),
            }
        }
    }

    fn connect(&mut self, socket: Socket) -> io::Result<ConnId> {
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let entry = self.connections.vacant_entry();
        let index = entry.key() as u32;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = Token(join(index, generation));
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, interest)?;
        entry.insert(Connection {
            socket,
            generation,
            readable: false,
            hangup: false,
            eof: false,
            waits: false,
            finish: Finish::No,
            ended: false,
            queue: None,
        });
        Ok(ConnId { index, generation })
    }

    /// One read, if there may be something to read and nothing to send.
    fn read(&mut self, index: u32) -> Option<Completion> {
        let connection = &mut self.connections[index as usize];
        if connection.ended || !connection.readable || connection.eof || connection.queue.is_some() {
            return None;
        }
        loop {
            match (&connection.socket).read(&mut self.buffer) {
                Ok(0) => {
                    connection.readable = false;
                    connection.eof = true;
                    if connection.finish == Finish::No {
                        return Some(Completion::Eof(self.id(index)));
                    }
                    self.end(index, None);
                    return None;
                }
                Ok(len) => {
                    connection.readable = len == self.buffer.len() || connection.hangup;
                    self.read_again(index);
                    let connection = &self.connections[index as usize];
                    if connection.finish != Finish::No {
                        return None;
                    }
                    self.received = len;
                    return Some(Completion::Received(self.id(index)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.end(index, Some(error));
                    return None;
                }
            }
        }
    }

    /// Has the connection read in the next turn, if there may be something to read.
    fn read_again(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.readable && !connection.waits {
            connection.waits = true;
            self.again.push(index);
        }
    }

    /// Sends what is queued; when all is sent, goes on with what waited for that.
    fn flush(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if let Some(queue) = &mut connection.queue {
            let socket = &connection.socket;
            match queue.flush(|slices| socket.send_vectored_with_flags(slices, SEND_FLAGS)) {
                Ok(true) => connection.queue = None,
                Ok(false) => return,
                Err(error) => return self.end(index, Some(error)),
            }
        }
        self.sent(index);
    }

    /// The queue is empty.
    fn sent(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.finish == Finish::Asked {
            connection.finish = Finish::FinSent;
            // An error here is the peer's RST, which the next read reports.
            let _ = connection.socket.shutdown(Shutdown::Write);
            if connection.eof {
                return self.end(index, None);
            }
        }
        self.read_again(index);
    }

    fn enqueue(&mut self, index: u32, chunk: Chunk, sent: usize) {
        self.connections[index as usize].queue.get_or_insert_default().push(chunk, sent);
    }

    /// From here on every call that names the connection does nothing.
    fn end(&mut self, index: u32, error: Option<io::Error>) {
        let connection = &mut self.connections[index as usize];
        debug_assert!(!connection.ended);
        connection.ended = true;
        connection.queue = None;
        self.ended.push_back((index, error));
    }

    fn report_end(&mut self) -> Option<Completion> {
        let (index, error) = self.ended.pop_front()?;
        let conn = self.id(index);
        // Closing the descriptor also takes it out of epoll: nobody else has a copy of it.
        self.connections.remove(index as usize);
        if self.accept_again.is_some() {
            self.accept_again = Some(self.now);
        }
        Some(Completion::Closed(conn, error))
    }
}

impl Backend for EpollBackend {
    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        debug_assert!(self.work.is_empty(), "the last turn's completions were not all taken");
        let accepts = self.accept_again.is_none() && self.listeners.iter().any(|acceptor| acceptor.ready);
        let timeout = if accepts || !self.again.is_empty() || !self.ended.is_empty() {
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
        for event in &self.events {
            let token = event.token();
            self.work.push_back(match token {
                WAKER => Work::Woken,
                Token(token) if token >= LISTENERS => {
                    self.listeners[token - LISTENERS].ready = true;
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
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        loop {
            if !self.ended.is_empty() {
                return self.report_end();
            }
            let work = self.work.pop_front()?;
            if let Some(completion) = self.do_work(work) {
                return Some(completion);
            }
        }
    }

    #[inline]
    fn received(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.received]
    }

    #[inline]
    fn reply(&mut self, conn: ConnId, range: Range<usize>, between: Vec<(usize, Chunk)>) {
        let connection = &mut self.connections[conn.index as usize];
        if connection.ended || (range.is_empty() && between.is_empty()) {
            return;
        }
        let (is_clear, mut done) = (connection.queue.is_none(), 0);
        if is_clear {
            match sent(send_reply(&connection.socket, &self.buffer, &range, &between, SEND_FLAGS)) {
                Ok(len) => done = len,
                Err(error) => return self.end(conn.index, Some(error)),
            }
            if between.is_empty() && done == range.len() {
                return;
            }
        }
        SendQueue::push_reply(&mut connection.queue, &self.buffer, range, between, done);
        if is_clear && done == 0 {
            // There are too many pieces for one call.
            self.flush(conn.index);
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        let Some(connection) = self.live(conn) else { return };
        let mut start = 0;
        if connection.queue.is_none() {
            match sent(connection.socket.send_with_flags(chunk.octets(), SEND_FLAGS)) {
                Ok(len) if len == chunk.octets().len() => return,
                Ok(len) => start = len,
                Err(error) => return self.end(conn.index, Some(error)),
            }
        }
        self.enqueue(conn.index, chunk, start);
    }

    fn queued(&self, conn: ConnId) -> usize {
        self.connections[conn.index as usize].queue.as_ref().map_or(0, |queue| queue.len())
    }

    fn drop_oldest(&mut self, conn: ConnId, target: usize) -> u32 {
        let Some(connection) = self.live(conn) else { return 0 };
        let Some(queue) = &mut connection.queue else { return 0 };
        let dropped = queue.drop_oldest(target);
        if queue.is_empty() {
            connection.queue = None;
            self.sent(conn.index);
        }
        dropped
    }

    fn finish(&mut self, conn: ConnId) {
        let Some(connection) = self.live(conn) else { return };
        if connection.finish == Finish::No {
            connection.finish = Finish::Asked;
            if connection.queue.is_none() {
                self.sent(conn.index);
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        if self.live(conn).is_some() {
            self.end(conn.index, None);
        }
    }

    fn stop_accepting(&mut self) {
        self.listeners.clear();
        self.accept_again = None;
    }
}

fn join(index: u32, generation: u32) -> usize {
    (generation as usize) << 32 | index as usize
}

fn split(token: usize) -> (u32, u32) {
    (token as u32, (token >> 32) as u32)
}
