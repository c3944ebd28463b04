//! The driver on io_uring: one ring, one call into the kernel for each turn.
//!
//! Accepting and receiving are multishot: armed once, they complete again and again, each receive in a buffer of its
//! own. A connection that always has more than it was given would take all buffers that way, so it receives once at a
//! time, when its turn has come. Short replies and publications are submissions, so that a turn costs one call however
//! many there are; long replies are sent at once, while they are in the cache (`docs/io-uring.md` has the measurements
//! behind that). No send ever waits in the kernel: what a socket does not take is queued, and a poll says when it
//! takes more. So the only memory that the kernel uses while nobody looks are the receive buffers and, until the end
//! of the next `wait`, what was submitted.
//!
//! A slot is used again, and its descriptor closed, only after the last completion of every operation on it. Start at
//! [`UringDriver::next`](Driver::next).

mod buffers;
pub mod client;
mod options;
mod ring;
mod self_test;
pub mod sim;
mod slot;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::buffers::{Buffer, Buffers, Starved};
pub use self::options::{Submit, Unavailable, UringOptions, buffers_kept};
use self::ring::{Done, KernelRing, Ring, RingSocket as _};
use self::slot::Receive;
pub use self::slot::UringIo;
use super::transport::{Driver, Entry, Event, Links, Transport};
use super::{
    ACCEPT_PAUSE, ACCEPTS_MAX, Chunk, GENERATION_MASK, LIGHT_LEN, LIGHT_TURNS, Listener, Wake, is_exhaustion,
};
use crate::memory::Meter;
use crate::replies::Replies;

/// An operation's number stands in the top bits of its user data.
const OP_BITS: u32 = 4;
/// No connection's index.
const NOBODY: u32 = u32::MAX;
/// See [`Submit::All`].
const SUBMIT_LEN_MAX: usize = 4096;
/// What connections that receive once at a time are given in one turn, all together and each at least, in octets.
const TURN_LEN: usize = 1 << 20;
const BITE_MIN: usize = 24 << 10;
/// A connection that receives so many octets in one turn is likely to have more.
const GREEDY_LEN: u32 = 64 << 10;

/// The backend on io_uring.
pub type UringBackend = Transport<UringDriver<KernelRing>>;

/// See the module.
pub struct UringDriver<R: Ring> {
    // Before `buffers` and `submitted`, so that the ring is closed first.
    ring: R,
    buffers: Buffers,
    /// By link: the one send that may be in flight.
    submitted: Vec<Submitted>,
    waker: Arc<dyn Wake>,
    submit: Submit,
    now: Instant,
    acceptors: Vec<Acceptor<R::Socket>>,
    accept_again: Option<Instant>,
    /// Connections that the ring has accepted, each with its listener, and whose turn comes, so many in this turn.
    accepted: VecDeque<(R::Socket, usize)>,
    accepts_left: u32,
    current: Option<Buffer>,
    /// Connections that are not received from because there was no buffer, or because they receive once at a time.
    starved: Starved<u32>,
    /// Connections that had much in this turn, and whose receive goes on.
    greedy: Vec<u32>,
    /// See [`GREEDY_LEN`]; less where buffers are small.
    greedy_len: u32,
    /// For so many turns, turns are to be short.
    light_turns: u32,
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

struct Acceptor<S> {
    /// `None` once accepting was stopped and its operation has ended.
    socket: Option<S>,
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

/// The one send that may be in flight.
enum Submitted {
    Nothing,
    Chunk(Chunk),
    /// From `start` on.
    Reply {
        buffer: Buffer,
        start: u32,
        len: u32,
    },
}

impl UringBackend {
    /// A backend for the calling thread. Every operation that it needs has been tried when this returns. What waits in
    /// it is counted by `meter`.
    ///
    /// # Errors
    /// io_uring cannot be used here.
    pub fn new(options: &UringOptions, meter: Meter) -> Result<Self, Unavailable> {
        let failed = |operation| move |source| Unavailable { operation, source };
        let ring = KernelRing::new(options.completions).map_err(failed("io_uring_setup"))?;
        let mut driver =
            UringDriver::on(ring, options).map_err(failed("io_uring_register, provided buffers"))?;
        driver.self_test().map_err(failed("a multishot receive"))?;
        Ok(Self::on(driver, meter))
    }

    /// The same, and accepts from `listeners` from the next turn on. At most `handshakes_max` handshakes of TLS are in
    /// progress. To be called once at most.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn listen(mut self, listeners: Vec<Listener>, handshakes_max: usize) -> io::Result<Self> {
        let (mut sockets, mut servers) = (Vec::new(), Vec::new());
        for listener in listeners {
            servers.push(listener.tls);
            // With O_NONBLOCK an operation fails where it should wait.
            listener.socket.set_nonblocking(false)?;
            sockets.push(listener.socket);
        }
        self.driver_mut().listen(sockets);
        Ok(self.with_tls(servers, handshakes_max))
    }
}

impl<R: Ring> UringDriver<R> {
    fn on(mut ring: R, options: &UringOptions) -> io::Result<Self> {
        // SAFETY: `buffers` is declared after `ring` in this function's result, and here is dropped without
        // any operation in flight on it.
        let buffers =
            unsafe { Buffers::new(&mut ring, options.buffer_count, options.buffer_bytes as usize) }?;
        Ok(Self {
            waker: ring.waker(join(Op::Wake, 0, 0)),
            buffers,
            submitted: Vec::new(),
            submit: options.submit,
            now: ring.clock(),
            acceptors: Vec::new(),
            accept_again: None,
            accepted: VecDeque::new(),
            accepts_left: 0,
            current: None,
            starved: Starved::new(),
            greedy: Vec::new(),
            greedy_len: GREEDY_LEN.min(options.buffer_bytes),
            light_turns: 0,
            ring,
        })
    }

    fn listen(&mut self, sockets: Vec<R::Socket>) {
        assert!(self.acceptors.is_empty(), "listeners have one index for the life of the backend");
        let acceptor = |socket| Acceptor { socket: Some(socket), state: Accepting::No };
        self.acceptors = sockets.into_iter().map(acceptor).collect();
        self.arm_acceptors();
    }

    fn arm_acceptors(&mut self) {
        for (index, acceptor) in self.acceptors.iter_mut().enumerate() {
            if let (Accepting::No, Some(socket)) = (acceptor.state, &acceptor.socket) {
                acceptor.state = Accepting::Yes;
                self.ring.accept(socket, join(Op::Accept, index as u32, 0));
            }
        }
    }

    fn take(
        &mut self,
        done: &Done,
        links: &mut Links<UringIo<R::Socket>>,
    ) -> Option<Event<UringIo<R::Socket>>> {
        let (op, index, generation) = split(done.user_data);
        debug_assert!(
            !matches!(op, Op::Receive | Op::Send | Op::Writable)
                || links[index as usize].link.generation == generation,
            "a slot is used again only after every operation on it has ended"
        );
        match op {
            Op::Receive => self.received_on(index, done, &mut links[index as usize]),
            Op::Send => self.sent_on(index, done.result, &mut links[index as usize]),
            Op::Writable => self.writable_on(index, &mut links[index as usize]),
            Op::Accept => self.accepted_on(index as usize, done),
            Op::Wake => {
                self.ring.woken(done);
                Some(Event::Woken)
            }
            Op::Cancel => {
                if done.result < 0 && index != NOBODY {
                    let entry = links.get_mut(index as usize);
                    if let Some(entry) = entry.filter(|entry| entry.link.generation == generation) {
                        self.not_cancelled(index, entry);
                    }
                }
                None
            }
        }
    }

    #[inline]
    fn received_on(
        &mut self,
        index: u32,
        done: &Done,
        entry: &mut Entry<UringIo<R::Socket>>,
    ) -> Option<Event<UringIo<R::Socket>>> {
        let buffer = self.buffers.take(done);
        let Entry { link, io } = &mut *entry;
        if !done.more {
            io.receive = Receive::Off;
        }
        if done.result <= 0 || link.ended {
            return self.received_nothing(index, done.result, buffer, entry);
        }
        let buffer = buffer.expect("octets come in a buffer");
        let turn = self.starved.turn();
        if (buffer.len as usize) < LIGHT_LEN && io.fed_in != turn && !io.is_greedy {
            self.light_turns = LIGHT_TURNS;
        }
        io.fed_len = if io.fed_in == turn { io.fed_len.saturating_add(buffer.len) } else { buffer.len };
        io.fed_in = turn;
        io.is_greedy = io.fed_len >= self.greedy_len;
        if io.is_greedy && done.more {
            self.greedy.push(index);
        }
        self.current = Some(buffer);
        if io.receive == Receive::Off {
            self.receive(entry, index);
        }
        Some(Event::Received(index))
    }

    /// The peer's end, errors, and what arrives for who has ended.
    #[cold]
    fn received_nothing(
        &mut self,
        index: u32,
        result: i32,
        buffer: Option<Buffer>,
        entry: &mut Entry<UringIo<R::Socket>>,
    ) -> Option<Event<UringIo<R::Socket>>> {
        if let Some(buffer) = buffer {
            self.buffers.release(buffer);
        }
        if entry.link.ended {
            return settle(index, entry);
        }
        match -result {
            0 => Some(Event::Eof(index)),
            libc::ENOBUFS => {
                entry.io.receive = Receive::Starved;
                if entry.io.is_greedy {
                    self.starved.push_greedy(index);
                } else {
                    self.starved.push(index, entry.io.fed_in);
                }
                Some(Event::Starved(index))
            }
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                if entry.io.receive == Receive::Off && entry.link.takes_input() {
                    self.receive(entry, index);
                }
                None
            }
            error => Some(Event::Failed(index, io::Error::from_raw_os_error(error))),
        }
    }

    /// A submitted send has completed.
    #[inline]
    fn sent_on(
        &mut self,
        index: u32,
        result: i32,
        entry: &mut Entry<UringIo<R::Socket>>,
    ) -> Option<Event<UringIo<R::Socket>>> {
        entry.io.sends = false;
        let submitted = std::mem::replace(&mut self.submitted[index as usize], Submitted::Nothing);
        let done = result.max(0) as usize;
        let len = match &submitted {
            Submitted::Nothing => unreachable!("a send that completes was submitted"),
            Submitted::Chunk(chunk) => chunk.octets().len(),
            Submitted::Reply { len, .. } => *len as usize,
        };
        let mut rest = None;
        match submitted {
            Submitted::Reply { buffer, start, .. } => {
                if done < len && !entry.link.ended {
                    let reply = start as usize + done..start as usize + len;
                    rest = Some((Chunk::from(self.buffers.octets(&buffer)[reply].to_vec()), 0));
                }
                self.buffers.release(buffer);
            }
            Submitted::Chunk(chunk) if done < len => rest = Some((chunk, done)),
            _ => {}
        }
        if entry.link.ended {
            return settle(index, entry);
        }
        if done == len && entry.link.is_done_sending() {
            entry.link.in_flight = 0;
            return None;
        }
        let is_passing = matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED);
        let error = (result < 0 && !is_passing).then(|| io::Error::from_raw_os_error(-result));
        Some(Event::Sent { index, rest, error })
    }

    fn writable_on(
        &mut self,
        index: u32,
        entry: &mut Entry<UringIo<R::Socket>>,
    ) -> Option<Event<UringIo<R::Socket>>> {
        entry.io.polls = false;
        if entry.link.ended {
            return settle(index, entry);
        }
        if !entry.io.connects {
            return Some(Event::Writable(index));
        }
        match entry.io.socket.is_connected() {
            Ok(true) => {
                entry.io.connects = false;
                self.receive(entry, index);
                Some(Event::Connected(index))
            }
            Ok(false) => {
                self.want_writable(entry, index);
                None
            }
            Err(error) => Some(Event::Failed(index, error)),
        }
    }

    fn accepted_on(&mut self, index: usize, done: &Done) -> Option<Event<UringIo<R::Socket>>> {
        let accepted = self.ring.accepted(done);
        let acceptor = &mut self.acceptors[index];
        let failed = match accepted {
            Ok(socket) => {
                self.accepted.push_back((socket, index));
                None
            }
            Err(_) if acceptor.state == Accepting::Stopped => None,
            Err(error) if is_exhaustion(&error) => {
                self.accept_again = Some(self.now + ACCEPT_PAUSE);
                Some(Event::AcceptFailed(error))
            }
            Err(error) => {
                // ECONNABORTED and the like: that peer is gone, the next may not be.
                tracing::debug!(%error, "a connection was lost before it was accepted");
                None
            }
        };
        if done.more {
            return failed;
        }
        if acceptor.state == Accepting::Stopped {
            // What has arrived until now is accepted still; then the listener is closed.
            if let Some(listener) = acceptor.socket.take() {
                let waiting = std::iter::from_fn(|| listener.accept_waiting());
                self.accepted.extend(waiting.map(|socket| (socket, index)));
            }
        } else {
            acceptor.state = Accepting::No;
            if self.accept_again.is_none() {
                self.arm_acceptors();
            }
        }
        failed
    }

    /// An operation was not there to be cancelled, or just at work. Whichever it was, if it has not ended it is to.
    #[cold]
    fn not_cancelled(&mut self, index: u32, entry: &mut Entry<UringIo<R::Socket>>) {
        if entry.io.receive == Receive::Cancelled {
            entry.io.receive = Receive::On;
            if entry.link.ended || !entry.link.takes_input() {
                self.stop_receiving(entry, index);
            }
        }
        if entry.link.ended && entry.io.polls {
            self.cancel(Op::Writable, index, entry.link.generation);
        }
    }

    fn cancel(&mut self, op: Op, index: u32, generation: u32) {
        self.ring.cancel(join(op, index, generation), join(Op::Cancel, index, generation));
    }

    /// Has those receive that wait for a buffer, as many as there are buffers, in order. One that always has more
    /// receives once, so that it does not take the buffers of those behind it.
    fn feed(&mut self, links: &mut Links<UringIo<R::Socket>>) {
        let mut greedy = std::mem::take(&mut self.greedy);
        let waiting = self.starved.len();
        if waiting > 0 {
            // They would take the next buffers, too, before anybody who waits.
            for index in greedy.drain(..) {
                if let Some(entry) = links.get_mut(index as usize)
                    && !entry.link.ended
                    && entry.io.is_greedy
                    && entry.io.receive == Receive::On
                {
                    self.stop_receiving(entry, index);
                }
            }
        }
        greedy.clear();
        self.greedy = greedy;
        if waiting == 0 {
            return;
        }
        let least = BITE_MIN.min(self.buffers.len());
        let bite = match self.light_turns {
            0 => self.buffers.len(),
            _ => (TURN_LEN / waiting).clamp(least, self.buffers.len()),
        };
        let posted = self.buffers.posted_count();
        // Those who are known to have much leave some for whoever has something now and did not wait.
        let mut buffers = if self.starved.has_greedy() { posted - posted / 4 } else { posted };
        while buffers > 0
            && let Some(index) = self.starved.pop()
        {
            // Another connection may have the slot by now, or the same one stand here twice.
            let entry = links.get_mut(index as usize);
            let Some(entry) = entry.filter(|entry| entry.io.receive == Receive::Starved) else { continue };
            entry.io.receive = Receive::Off;
            if entry.link.ended || entry.link.eof || !entry.link.takes_input() {
                continue;
            }
            entry.io.receive = Receive::On;
            buffers -= 1;
            let user_data = join(Op::Receive, index, entry.link.generation);
            if entry.io.is_greedy {
                self.ring.receive_once(&entry.io.socket, bite as u32, user_data);
            } else {
                self.ring.receive(&entry.io.socket, user_data);
            }
        }
    }

    fn slot(&mut self, index: u32) -> &mut Submitted {
        let index = index as usize;
        if index >= self.submitted.len() {
            self.submitted.resize_with(index + 1, || Submitted::Nothing);
        }
        &mut self.submitted[index]
    }
}

/// An ended connection is gone once the last of its operations is.
fn settle<S>(index: u32, entry: &Entry<UringIo<S>>) -> Option<Event<UringIo<S>>> {
    debug_assert!(entry.link.ended);
    entry.io.is_idle().then_some(Event::Freed(index))
}

impl<R: Ring> Driver for UringDriver<R> {
    type Io = UringIo<R::Socket>;

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn clock(&self) -> Instant {
        self.ring.clock()
    }

    fn wait(&mut self, links: &mut Links<Self::Io>, timeout: Option<Duration>) -> io::Result<()> {
        // SAFETY: it is the ring that they were made with.
        unsafe { self.buffers.post(&mut self.ring, self.light_turns > 0) };
        self.light_turns = self.light_turns.saturating_sub(1);
        self.starved.begin_turn();
        self.feed(links);
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
            self.arm_acceptors();
        }
        self.accepts_left = ACCEPTS_MAX;
        // Who still waits for a buffer has it in the next turn, whatever becomes of those before.
        let timeout = if self.starved.len() > 0 || !self.accepted.is_empty() {
            Some(Duration::ZERO)
        } else {
            let pause = self.accept_again.map(|at| at.saturating_duration_since(self.now));
            [timeout, pause].into_iter().flatten().min()
        };
        self.ring.enter(timeout)?;
        self.now = self.ring.clock();
        Ok(())
    }

    #[inline]
    fn next(&mut self, links: &mut Links<Self::Io>) -> Option<Event<Self::Io>> {
        while let Some(done) = self.ring.next() {
            let event = self.take(&done, links);
            if event.is_some() {
                return event;
            }
        }
        self.accepts_left = self.accepts_left.checked_sub(1)?;
        let (socket, listener) = self.accepted.pop_front()?;
        Some(Event::Accepted(UringIo::new(socket, false), listener))
    }

    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        match &self.current {
            Some(buffer) => self.buffers.octets(buffer),
            None => &mut [],
        }
    }

    #[inline]
    fn release(&mut self) {
        if let Some(buffer) = self.current.take() {
            self.buffers.release(buffer);
        }
    }

    fn open(&mut self, entry: &mut Entry<Self::Io>, index: u32) -> io::Result<()> {
        self.slot(index);
        if entry.io.connects {
            self.want_writable(entry, index);
        } else {
            self.receive(entry, index);
        }
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self::Io> {
        Ok(UringIo::new(self.ring.connect(address, source)?, true))
    }

    #[inline]
    fn receive(&mut self, entry: &mut Entry<Self::Io>, index: u32) {
        let Entry { link, io } = entry;
        if io.receive != Receive::Off || link.eof || io.connects {
            return;
        }
        if io.is_greedy {
            io.receive = Receive::Starved;
            return self.starved.push_greedy(index);
        }
        io.receive = Receive::On;
        self.ring.receive(&io.socket, join(Op::Receive, index, link.generation));
    }

    fn stop_receiving(&mut self, entry: &mut Entry<Self::Io>, index: u32) {
        match entry.io.receive {
            Receive::On => {
                entry.io.receive = Receive::Cancelled;
                self.cancel(Op::Receive, index, entry.link.generation);
            }
            Receive::Starved => entry.io.receive = Receive::Off,
            Receive::Off | Receive::Cancelled => {}
        }
    }

    #[inline]
    fn submit_reply(&mut self, entry: &mut Entry<Self::Io>, index: u32, replies: &Replies) -> bool {
        let range = replies.range();
        if self.submit != Submit::All || !replies.is_in_place() || range.len() > SUBMIT_LEN_MAX {
            return false;
        }
        let Some(buffer) = self.current.take() else { return false };
        let octets: *const [u8] = &self.buffers.octets(&buffer)[range.clone()];
        self.submitted[index as usize] =
            Submitted::Reply { buffer, start: range.start as u32, len: range.len() as u32 };
        entry.io.sends = true;
        let user_data = join(Op::Send, index, entry.link.generation);
        // SAFETY: the buffer is given back, and its octets may change, only when the completion was taken.
        unsafe { self.ring.send(&entry.io.socket, octets, user_data) };
        true
    }

    #[inline]
    fn submit(&mut self, entry: &mut Entry<Self::Io>, index: u32, chunk: Chunk) -> Option<Chunk> {
        let is_worth_it = match &chunk {
            Chunk::Shared(_) => self.submit != Submit::Nothing,
            Chunk::Owned { .. } | Chunk::Merged { .. } => self.submit == Submit::All,
        };
        if !is_worth_it {
            return Some(chunk);
        }
        let octets: *const [u8] = chunk.octets();
        self.submitted[index as usize] = Submitted::Chunk(chunk);
        entry.io.sends = true;
        let user_data = join(Op::Send, index, entry.link.generation);
        // SAFETY: `submitted` keeps the chunk, whose octets nobody changes, until the completion was taken. They stand
        // in an allocation of their own, which does not move with the chunk.
        unsafe { self.ring.send(&entry.io.socket, octets, user_data) };
        None
    }

    fn want_writable(&mut self, entry: &mut Entry<Self::Io>, index: u32) {
        if !std::mem::replace(&mut entry.io.polls, true) {
            let user_data = join(Op::Writable, index, entry.link.generation);
            self.ring.poll_writable(&entry.io.socket, user_data);
        }
    }

    fn end(&mut self, entry: &mut Entry<Self::Io>, index: u32) -> bool {
        if entry.io.polls {
            self.cancel(Op::Writable, index, entry.link.generation);
        }
        self.stop_receiving(entry, index);
        entry.io.is_idle()
    }

    fn closed(&mut self) {
        if self.accept_again.is_some() {
            self.accept_again = Some(self.now);
        }
    }

    fn stop_accepting(&mut self) {
        self.accept_again = None;
        for (index, acceptor) in self.acceptors.iter_mut().enumerate() {
            match std::mem::replace(&mut acceptor.state, Accepting::Stopped) {
                Accepting::Yes => {
                    self.ring.cancel(join(Op::Accept, index as u32, 0), join(Op::Cancel, NOBODY, 0));
                }
                Accepting::No => acceptor.socket = None,
                Accepting::Stopped => {}
            }
        }
    }
}

impl<R: Ring> Drop for UringDriver<R> {
    fn drop(&mut self) {
        if !self.ring.cancel_all(|user_data| split(user_data).0 == Op::Accept) {
            // The kernel may still read or write this memory, however long that takes.
            tracing::error!("operations of io_uring do not end: their memory is not freed");
            self.buffers.leak();
            std::mem::forget(std::mem::take(&mut self.submitted));
        }
    }
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
