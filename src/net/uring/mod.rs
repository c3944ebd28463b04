//! The backend on io_uring: one ring, one call into the kernel for each turn.
//!
//! Accepting and receiving are multishot: armed once, they complete again and again, each receive in a
//! buffer of its own. Short replies and publications are submissions, so that a turn costs one call however
//! many there are; long replies are sent at once, while they are in the cache (`docs/io-uring.md` has the
//! measurements behind that). No send ever waits in the kernel: what a socket
//! does not take is queued, and a poll says when it takes more. So the only memory that the kernel uses
//! while nobody looks are the receive buffers and, until the end of the next `wait`, what was submitted.
//!
//! While anything is queued for a connection, what it received is set aside, and the receive is cancelled
//! at the first octets of that kind: they are what one pass of the kernel brought, at most 32 buffers.
//!
//! A slot is used again, and its descriptor closed, only after the last completion of every operation on
//! it. Start at [`UringBackend::next`].

mod buffers;
pub mod client;
mod connection;
mod ring;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::cqueue;
use slab::Slab;
use socket2::Socket;

use self::buffers::{Buffer, Buffers, Starved};
use self::connection::{Connection, Finish, Submitted};
use self::ring::Ring;
use super::queue::{SendQueue, send_reply};
use super::{ACCEPT_PAUSE, Backend, Chunk, Completion, ConnId, Listener, Wake, is_exhaustion, sent};

/// Generations have 28 bits, which is what an operation's number leaves of a completion's user data.
const GENERATION_MASK: u32 = u32::MAX >> OP_BITS;
const OP_BITS: u32 = 4;
/// No connection's index.
const NOBODY: u32 = u32::MAX;
/// See [`Submit::All`].
const SUBMIT_LEN_MAX: usize = 4096;
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
/// How long the kernel may take to bring one octet from one end of a socket pair to the other.
const SELF_TEST_WAIT: Duration = Duration::from_secs(1);

/// What a worker's ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Receive buffers, a power of two up to 32768.
    pub buffer_count: u16,
    /// Octets in each of them.
    pub buffer_bytes: u32,
    /// Completions that fit the ring. The kernel keeps what does not, at the price of ending multishots.
    /// Half as many where locked memory is short, down to 512.
    pub completions: u32,
    /// What is submitted, instead of being sent by a call of its own.
    pub submit: Submit,
}

/// Which sends are submissions. One submission is cheaper than one call, but its octets have to stay where
/// they are until it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Submit {
    /// None.
    Nothing,
    /// Those of publications, whose octets stay anyway.
    Publications,
    /// Replies of up to 4 KiB too: a receive buffer goes back to the kernel only when its reply is sent. A
    /// longer one is sent while it is in the cache, which is worth more than the call.
    All,
}

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
#[error("io_uring cannot be used: {operation}: {source}{}", hint(source))]
pub struct Unavailable {
    operation: &'static str,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (a seccomp filter, or kernel.io_uring_disabled, forbids it)",
        Some(libc::ENOSYS) => " (this kernel was built without it)",
        Some(libc::EINVAL) => " (Linux 6.1 is the first that has all it takes)",
        Some(libc::ENOMEM) => " (the limit of locked memory, ulimit -l, is too low)",
        _ => "",
    }
}

/// See the module.
pub struct UringBackend {
    // Before `buffers`, so that the ring is closed first.
    ring: Ring,
    buffers: Buffers,
    waker: Arc<EventFd>,
    submit: Submit,
    now: Instant,
    connections: Slab<Connection>,
    generation: u32,
    acceptors: Vec<Acceptor>,
    accept_again: Option<Instant>,
    current: Current,
    /// Connections whose queue is empty again, and that have octets set aside or an end to report.
    resumed: VecDeque<u32>,
    /// Connections that are not received from because there was no buffer.
    starved: Starved<u32>,
    /// Connections whose end is still to be reported. No operation is in flight on them.
    ended: VecDeque<u32>,
}

/// What an operation does, in the top bits of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Receive,
    Send,
    Writable,
    Accept,
    Wake,
    Cancel,
}

/// What [`Backend::received`] is.
enum Current {
    Nothing,
    Buffer(Buffer),
    SetAside(Vec<u8>),
}

struct Acceptor {
    /// `None` once accepting was stopped and its operation has ended.
    socket: Option<Socket>,
    state: Accepting,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// The operation is in flight.
    Yes,
    /// It has ended and is to be started again.
    No,
    /// It was cancelled for good.
    Stopped,
}

/// Wakes a ring from any thread.
struct EventFd(File);

impl Wake for EventFd {
    fn wake(&self) {
        // It fails only if the counter is at its limit, and then the wake-up is on its way.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }
}

impl UringBackend {
    /// A backend for the calling thread. Every operation that it needs has been tried when this returns.
    ///
    /// # Errors
    /// io_uring cannot be used here.
    pub fn new(options: &UringOptions) -> Result<Self, Unavailable> {
        let failed = |operation| move |source| Unavailable { operation, source };
        let mut ring = Ring::new(options.completions).map_err(failed("io_uring_setup"))?;
        let bytes = options.buffer_bytes as usize;
        // SAFETY: `buffers` is declared after `ring` in this function's result, and here is dropped without
        // any operation in flight on it but the self-test's, which ends with its ring.
        let buffers = unsafe { Buffers::new(&ring, options.buffer_count, bytes) };
        let mut buffers = buffers.map_err(failed("io_uring_register, provided buffers"))?;
        self_test(&mut ring, &mut buffers).map_err(failed("a multishot receive"))?;
        let waker = Arc::new(event_fd().map_err(failed("eventfd"))?);
        ring.poll_readable(waker.0.as_raw_fd(), join(Op::Wake, 0, 0));
        Ok(Self {
            ring,
            buffers,
            waker,
            submit: options.submit,
            now: Instant::now(),
            connections: Slab::new(),
            generation: 0,
            acceptors: Vec::new(),
            accept_again: None,
            current: Current::Nothing,
            resumed: VecDeque::new(),
            starved: Starved::new(),
            ended: VecDeque::new(),
        })
    }

    /// Accepts from `listeners` from the next turn on. To be called once at most.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn listen(&mut self, listeners: Vec<Listener>) -> io::Result<()> {
        assert!(self.acceptors.is_empty(), "listeners have one index for the life of the backend");
        for listener in listeners {
            // With O_NONBLOCK an operation fails where it should wait.
            listener.socket.set_nonblocking(false)?;
            self.acceptors.push(Acceptor { socket: Some(listener.socket), state: Accepting::No });
        }
        self.arm_acceptors();
        Ok(())
    }

    fn arm_acceptors(&mut self) {
        for (index, acceptor) in self.acceptors.iter_mut().enumerate() {
            if let (Accepting::No, Some(socket)) = (acceptor.state, &acceptor.socket) {
                acceptor.state = Accepting::Yes;
                self.ring.accept(socket.as_raw_fd(), join(Op::Accept, index as u32, 0));
            }
        }
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

    fn complete(&mut self, completion: &cqueue::Entry) -> Option<Completion> {
        let (op, index, generation) = split(completion.user_data());
        debug_assert!(
            !matches!(op, Op::Receive | Op::Send | Op::Writable)
                || self.connections[index as usize].generation == generation,
            "a slot is used again only after every operation on it has ended"
        );
        match op {
            Op::Receive => self.received_on(index, completion),
            Op::Send => {
                self.sent_on(index, completion.result());
                None
            }
            Op::Writable => {
                self.connections[index as usize].polls = false;
                if self.connections[index as usize].ended {
                    self.settle(index)
                } else {
                    self.flush(index)
                }
                None
            }
            Op::Accept => self.accepted(index as usize, completion),
            Op::Wake => {
                let _ = (&self.waker.0).read(&mut [0; 8]);
                if !cqueue::more(completion.flags()) {
                    self.ring.poll_readable(self.waker.0.as_raw_fd(), join(Op::Wake, 0, 0));
                }
                Some(Completion::Woken)
            }
            Op::Cancel => {
                if completion.result() < 0 {
                    self.not_cancelled(index, generation);
                }
                None
            }
        }
    }

    fn accepted(&mut self, index: usize, completion: &cqueue::Entry) -> Option<Completion> {
        let accepted = accepted_socket(completion);
        let acceptor = &mut self.acceptors[index];
        let goes_on = cqueue::more(completion.flags());
        if acceptor.state == Accepting::Stopped {
            if !goes_on {
                acceptor.socket = None;
            }
            return None;
        }
        if !goes_on {
            acceptor.state = Accepting::No;
        }
        let completion = match accepted {
            Ok(socket) => Some(Completion::Accepted(self.connect(socket))),
            Err(error) if is_exhaustion(&error) => {
                self.accept_again = Some(self.now + ACCEPT_PAUSE);
                return Some(Completion::AcceptFailed(error));
            }
            Err(error) => {
                // ECONNABORTED and the like: that peer is gone, the next may not be.
                tracing::debug!(%error, "a connection was lost before it was accepted");
                None
            }
        };
        if !goes_on && self.accept_again.is_none() {
            self.arm_acceptors();
        }
        completion
    }

    #[inline]
    fn release_current(&mut self) {
        if let Current::Buffer(buffer) = std::mem::replace(&mut self.current, Current::Nothing) {
            self.buffers.release(buffer);
        }
    }
}

impl Backend for UringBackend {
    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        debug_assert!(!self.ring.is_ahead(), "the last turn's completions were not all taken");
        self.release_current();
        self.buffers.post();
        let starved_count = self.starved.begin_turn();
        if starved_count > 0 {
            self.feed(starved_count);
        }
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
            self.arm_acceptors();
        }
        let timeout = if !self.ended.is_empty() || !self.resumed.is_empty() {
            Some(Duration::ZERO)
        } else {
            let pause = self.accept_again.map(|at| at.saturating_duration_since(self.now));
            [timeout, pause].into_iter().flatten().min()
        };
        self.ring.enter(timeout)?;
        self.now = Instant::now();
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        self.release_current();
        loop {
            if let Some(index) = self.ended.pop_front() {
                return Some(self.report_end(index));
            }
            let completion = match self.resumed.pop_front() {
                Some(index) => self.resume_now(index),
                None => {
                    let completion = self.ring.next()?;
                    self.complete(&completion)
                }
            };
            if completion.is_some() {
                return completion;
            }
        }
    }

    #[inline]
    fn received(&mut self) -> &mut [u8] {
        match &mut self.current {
            Current::Nothing => &mut [],
            Current::Buffer(buffer) => self.buffers.octets(buffer),
            Current::SetAside(octets) => octets,
        }
    }

    #[inline]
    fn reply(&mut self, conn: ConnId, range: Range<usize>, between: Vec<(usize, Chunk)>) {
        let connection = &mut self.connections[conn.index as usize];
        if connection.ended || (range.is_empty() && between.is_empty()) {
            return;
        }
        let (is_clear, mut done) = (connection.is_clear(), 0);
        if self.submit == Submit::All && is_clear && between.is_empty() && range.len() <= SUBMIT_LEN_MAX {
            match std::mem::replace(&mut self.current, Current::Nothing) {
                Current::Buffer(buffer) => {
                    let octets: *const [u8] = &self.buffers.octets(&buffer)[range.clone()];
                    let (start, len) = (range.start as u32, range.len() as u32);
                    connection.submitted = Submitted::Reply { buffer, start, len };
                    let fd = connection.socket.as_raw_fd();
                    // SAFETY: the buffer is given back, and its octets may change, only when the completion
                    // was taken.
                    unsafe { self.ring.send(fd, octets, join(Op::Send, conn.index, conn.generation)) };
                    return;
                }
                current => self.current = current,
            }
        }
        let octets: &[u8] = match &mut self.current {
            Current::Nothing => &[],
            Current::Buffer(buffer) => self.buffers.octets(buffer),
            Current::SetAside(octets) => octets,
        };
        if is_clear {
            match sent(send_reply(&connection.socket, octets, &range, &between, SEND_FLAGS)) {
                Ok(len) => done = len,
                Err(error) => return self.end(conn.index, Some(error)),
            }
            if between.is_empty() && done == range.len() {
                return;
            }
        }
        SendQueue::push_reply(&mut connection.queue, octets, range, between, done);
        if is_clear && done == 0 {
            // There are too many pieces for one call.
            return self.flush(conn.index);
        }
        self.poll(conn.index);
    }

    #[inline]
    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        let submits = self.submit != Submit::Nothing;
        let Some(connection) = self.live(conn) else { return };
        let mut start = 0;
        if connection.is_clear() {
            match chunk {
                Chunk::Shared(publication) if submits => {
                    let octets: *const [u8] = publication.octets.as_slice();
                    connection.submitted = Submitted::Publication(publication);
                    let fd = connection.socket.as_raw_fd();
                    let user_data = join(Op::Send, conn.index, conn.generation);
                    // SAFETY: the connection keeps the publication, whose octets nobody can change, until
                    // the completion was taken.
                    unsafe { self.ring.send(fd, octets, user_data) };
                    return;
                }
                _ => match sent(connection.socket.send_with_flags(chunk.octets(), SEND_FLAGS)) {
                    Ok(len) if len == chunk.octets().len() => return,
                    Ok(len) => start = len,
                    Err(error) => return self.end(conn.index, Some(error)),
                },
            }
        }
        connection.queue.get_or_insert_default().push(chunk, start);
        self.poll(conn.index);
    }

    fn queued(&self, conn: ConnId) -> usize {
        let connection = &self.connections[conn.index as usize];
        let submitted = match &connection.submitted {
            Submitted::Nothing => 0,
            Submitted::Publication(publication) => publication.octets.len(),
            Submitted::Reply { len, .. } => *len as usize,
        };
        submitted + connection.queue.as_ref().map_or(0, |queue| queue.len())
    }

    fn drop_oldest(&mut self, conn: ConnId, target: usize) -> u32 {
        // What is submitted is not in the queue: it counts as begun.
        let in_queue = self.connections[conn.index as usize].queue.as_ref().map_or(0, |queue| queue.len());
        let target = target.saturating_sub(self.queued(conn) - in_queue);
        let Some(connection) = self.live(conn) else { return 0 };
        let Some(queue) = &mut connection.queue else { return 0 };
        let dropped = queue.drop_oldest(target);
        if queue.is_empty() {
            connection.queue = None;
            if connection.is_clear() {
                self.sent(conn.index);
            }
        }
        dropped
    }

    fn finish(&mut self, conn: ConnId) {
        let Some(connection) = self.live(conn) else { return };
        if connection.finish == Finish::No {
            connection.finish = Finish::Asked;
            connection.set_aside = VecDeque::new();
            if connection.is_clear() {
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
        self.accept_again = None;
        for (index, acceptor) in self.acceptors.iter_mut().enumerate() {
            if acceptor.state == Accepting::Yes {
                self.ring.cancel(join(Op::Accept, index as u32, 0), join(Op::Cancel, NOBODY, 0));
            } else {
                acceptor.socket = None;
            }
            acceptor.state = Accepting::Stopped;
        }
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        let ended = self.ring.cancel_all(|completion| {
            if split(completion.user_data()).0 == Op::Accept {
                drop(accepted_socket(&completion));
            }
        });
        if !ended {
            // The kernel may still read or write this memory, however long that takes.
            tracing::error!("operations of io_uring do not end: their memory is not freed");
            self.buffers.leak();
            std::mem::forget(std::mem::take(&mut self.connections));
        }
    }
}

/// The socket that an accept completed with.
fn accepted_socket(completion: &cqueue::Entry) -> io::Result<Socket> {
    let result = completion.result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just opened it for us, and each completion is taken once.
    Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(result) }))
}

/// Receives one octet and an end, as the backend will.
fn self_test(ring: &mut Ring, buffers: &mut Buffers) -> io::Result<()> {
    let (receiver, mut sender) = UnixStream::pair()?;
    ring.receive(receiver.as_raw_fd(), buffers::GROUP, join(Op::Receive, 0, 0));
    sender.write_all(b"x")?;
    let mut sender = Some(sender);
    for expected in [1, 0] {
        ring.enter(Some(SELF_TEST_WAIT))?;
        let completion = ring.next().ok_or(io::ErrorKind::TimedOut)?;
        if let Some(buffer) = buffers.take(&completion) {
            buffers.release(buffer);
        }
        match completion.result() {
            result if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
            // One shot only, or not into our buffers.
            result if result != expected || cqueue::more(completion.flags()) != (expected == 1) => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            _ => sender = None,
        }
    }
    drop(sender);
    Ok(())
}

fn event_fd() -> io::Result<EventFd> {
    // SAFETY: no address is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(EventFd(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
}

fn join(op: Op, index: u32, generation: u32) -> u64 {
    (op as u64) << (64 - OP_BITS) | u64::from(generation) << 32 | u64::from(index)
}

fn split(user_data: u64) -> (Op, u32, u32) {
    let op = match user_data >> (64 - OP_BITS) {
        0 => Op::Receive,
        1 => Op::Send,
        2 => Op::Writable,
        3 => Op::Accept,
        4 => Op::Wake,
        _ => Op::Cancel,
    };
    (op, user_data as u32, (user_data >> 32) as u32 & GENERATION_MASK)
}

#[cfg(test)]
mod tests;
