//! The backend in memory, for tests and fuzzing: peers follow a script, and a seed decides everything that
//! a kernel and a network would: how finely reads are cut, how little a send takes, what comes first, and
//! when a connection is reset. The same seed gives the same run.
//!
//! A [`Network`] is the test's side, a [`SimBackend`] the server's; [`super::uring::sim`] puts the driver of io_uring on
//! the same network. Time is the test's own: it passes only where [`Network::let_pass`] allows it, and only when nothing
//! else can happen.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::Wake;
use super::transport::{Driver, Entry, Event, Io, Links, Transport};
use crate::memory::Meter;

/// A small generator (SplitMix64): the simulator's only source of chance.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0; small ones are as likely as all others together.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = if self.number() & 1 == 0 { bound.min(16) } else { bound };
        (self.number() % bound as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.number().is_multiple_of(times)
    }
}

/// What a scripted peer does.
#[derive(Clone, Debug)]
pub struct Script {
    /// What it sends.
    pub sends: Vec<u8>,
    /// Whether it sends FIN after that, or keeps the connection until the server ends it.
    pub fin: bool,
    /// Whether it resets the connection at some time.
    pub resets: bool,
    /// How many octets of ours the connection holds that the peer has not read: its socket buffers.
    pub capacity: usize,
    /// Whether it reads at all.
    pub reads: bool,
}

/// A peer, by the order of [`Network::connect`].
pub type PeerId = usize;

#[derive(Debug)]
struct Peer {
    script: Script,
    /// Octets of `script.sends` that the server has read.
    sent: usize,
    /// Sent by the server, not read by the peer yet.
    in_flight: VecDeque<u8>,
    received: Vec<u8>,
    is_accepted: bool,
    /// The server has closed its end.
    is_closed: bool,
    end: End,
}

/// How the server's side of a connection ended, as its peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has not.
    No,
    /// FIN, after everything that the server sent.
    Fin,
    /// RST: what was in flight is lost.
    Reset,
}

/// The peers and all that lies between them and a [`SimBackend`].
#[derive(Clone, Debug)]
pub struct Network(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    now: Instant,
    chance: Chance,
    peers: Vec<Peer>,
    /// Whether anything has happened in this turn.
    moved: bool,
    /// Turns in a row in which nothing has.
    quiet_turns: u32,
    /// How much time may still pass.
    time_left: Duration,
}

/// After so many turns in a row without an event, chance alone is not what held them up.
const QUIET_TURNS: u32 = 20;

impl Network {
    /// A network without peers.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            now: Instant::now(),
            chance: Chance::new(seed),
            peers: Vec::new(),
            moved: false,
            quiet_turns: 0,
            time_left: Duration::ZERO,
        })))
    }

    /// Adds a peer that connects.
    pub fn connect(&self, script: Script) -> PeerId {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.quiet_turns = 0;
        inner.peers.push(Peer {
            script,
            sent: 0,
            in_flight: VecDeque::new(),
            received: Vec::new(),
            is_accepted: false,
            is_closed: false,
            end: End::No,
        });
        inner.peers.len() - 1
    }

    /// Has the peer send more, before its FIN.
    pub fn send(&self, peer: PeerId, octets: &[u8]) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.peers[peer].script.sends.extend_from_slice(octets);
    }

    /// Has the peer send FIN after what it sends.
    pub fn fin(&self, peer: PeerId) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.peers[peer].script.fin = true;
    }

    /// Lets a peer read no more.
    pub fn stop_reading(&self, peer: PeerId) {
        self.0.borrow_mut().peers[peer].script.reads = false;
    }

    /// Lets a peer read that did not.
    pub fn start_reading(&self, peer: PeerId) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.peers[peer].script.reads = true;
    }

    /// Has the peer read up to `len` octets of what has come, also if it reads nothing by itself.
    pub fn read(&self, peer: PeerId, len: usize) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        let peer = &mut inner.peers[peer];
        let len = len.min(peer.in_flight.len());
        peer.received.extend(peer.in_flight.drain(..len));
    }

    /// Everything that the peer has read so far.
    pub fn received(&self, peer: PeerId) -> Vec<u8> {
        self.0.borrow().peers[peer].received.clone()
    }

    /// How its connection ended.
    pub fn end(&self, peer: PeerId) -> End {
        self.0.borrow().peers[peer].end
    }

    /// Lets this much more time pass.
    pub fn let_pass(&self, time: Duration) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.time_left += time;
    }

    /// Whether nothing will happen any more unless a peer or time goes on.
    pub fn is_quiet(&self) -> bool {
        let inner = self.0.borrow();
        inner.quiet_turns > QUIET_TURNS && inner.time_left.is_zero()
    }
}

/// What the server's side of the simulation does, whatever it is driven by.
impl Network {
    pub(super) fn clock(&self) -> Instant {
        self.0.borrow().now
    }

    /// Something may be so, once in `times`.
    pub(super) fn one_in(&self, times: u64) -> bool {
        self.0.borrow_mut().chance.one_in(times)
    }

    /// Puts a list in an order of chance.
    pub(super) fn shuffle<T>(&self, list: &mut [T]) {
        let mut inner = self.0.borrow_mut();
        for end in (1..list.len()).rev() {
            list.swap(end, (inner.chance.number() % (end as u64 + 1)) as usize);
        }
    }

    /// Begins a turn: peers read, or reset, by chance, and time passes if nothing else has happened for long enough.
    pub(super) fn begin_turn(&self, timeout: Option<Duration>) {
        let mut inner = self.0.borrow_mut();
        let Inner { chance, peers, moved, .. } = &mut *inner;
        for peer in peers.iter_mut().filter(|peer| peer.is_accepted && !peer.is_closed) {
            if peer.script.resets && peer.end != End::Reset && chance.one_in(20) {
                peer.end = End::Reset;
                peer.in_flight.clear();
                *moved = true;
            }
            if peer.script.reads && !peer.in_flight.is_empty() {
                let len = 1 + chance.below(peer.in_flight.len());
                peer.received.extend(peer.in_flight.drain(..len));
                *moved = true;
            }
        }
        inner.quiet_turns = if std::mem::take(&mut inner.moved) { 0 } else { inner.quiet_turns + 1 };
        if inner.quiet_turns > QUIET_TURNS && !inner.time_left.is_zero() {
            let time = timeout.unwrap_or(Duration::MAX).max(Duration::from_millis(1)).min(inner.time_left);
            inner.time_left -= time;
            inner.quiet_turns = 0;
            inner.now += time;
        }
    }

    /// A turn in which work was left over is not a quiet one.
    pub(super) fn is_busy(&self) {
        self.0.borrow_mut().moved = true;
    }

    /// The next connection, if one waits and chance has it so.
    pub(super) fn accept(&self) -> Option<SimSocket> {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let peer = inner.peers.iter().position(|peer| !peer.is_accepted)?;
        if inner.chance.one_in(3) {
            return None;
        }
        inner.peers[peer].is_accepted = true;
        inner.moved = true;
        Some(SimSocket { network: self.clone(), peer, fin_sent: false, eof: false })
    }
}

/// The server's end of one connection.
#[derive(Debug)]
pub struct SimSocket {
    network: Network,
    pub(super) peer: PeerId,
    fin_sent: bool,
    eof: bool,
}

impl SimSocket {
    /// Octets of the peer, or 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.network.0.borrow_mut();
        let Inner { chance, peers, moved, .. } = &mut *inner;
        let peer = &mut peers[self.peer];
        if peer.end == End::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let left = peer.script.sends.len() - peer.sent;
        if chance.one_in(4) || self.eof || (left == 0 && !peer.script.fin) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        *moved = true;
        if left == 0 {
            self.eof = true;
            return Ok(0);
        }
        let len = 1 + chance.below(left.min(buffer.len()));
        buffer[..len].copy_from_slice(&peer.script.sends[peer.sent..peer.sent + len]);
        peer.sent += len;
        Ok(len)
    }

    /// Whether it takes octets.
    pub(super) fn has_room(&self) -> bool {
        let inner = self.network.0.borrow();
        let peer = &inner.peers[self.peer];
        peer.end == End::Reset || peer.in_flight.len() < peer.script.capacity
    }

    /// Whether octets of the peer, or its end, are there.
    pub(super) fn has_unread(&self) -> bool {
        let inner = self.network.0.borrow();
        let peer = &inner.peers[self.peer];
        peer.sent < peer.script.sends.len()
    }
}

impl Io for SimSocket {
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut inner = self.network.0.borrow_mut();
        let Inner { chance, peers, moved, .. } = &mut *inner;
        let peer = &mut peers[self.peer];
        assert!(!self.fin_sent, "sent after FIN");
        if peer.end == End::Reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let room = peer.script.capacity - peer.in_flight.len();
        let taken = match room.min(len) {
            0 => return Err(io::ErrorKind::WouldBlock.into()),
            _ if chance.one_in(8) => return Err(io::ErrorKind::WouldBlock.into()),
            most => 1 + chance.below(most),
        };
        *moved = true;
        peer.in_flight.extend(pieces.iter().flat_map(|piece| piece.iter().copied()).take(taken));
        Ok(taken)
    }

    fn shutdown(&mut self) {
        let mut inner = self.network.0.borrow_mut();
        self.fin_sent = true;
        inner.moved = true;
        if inner.peers[self.peer].end == End::No {
            inner.peers[self.peer].end = End::Fin;
        }
    }

    fn has_input(&self) -> bool {
        self.has_unread()
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut inner = self.network.0.borrow_mut();
        inner.moved = true;
        let peer = &mut inner.peers[self.peer];
        // As the kernel does: closing with octets unread, or without FIN, resets, and what is in flight is lost.
        peer.is_closed = true;
        if peer.end == End::Reset || peer.sent < peer.script.sends.len() || !self.fin_sent {
            peer.end = End::Reset;
            peer.in_flight.clear();
        } else {
            peer.received.extend(peer.in_flight.drain(..));
        }
    }
}

/// Wakes nothing: the simulation asks.
#[derive(Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, SeqCst);
    }
}

/// The backend on a simulated network, as readiness.
pub type SimBackend = Transport<SimDriver>;

/// See the module.
pub struct SimDriver {
    network: Network,
    waker: Arc<Flag>,
    is_accepting: bool,
    buffer: Vec<u8>,
    received: usize,
    work: Vec<(u32, Visit)>,
}

#[derive(Clone, Copy, Debug)]
enum Visit {
    Write,
    Read,
}

/// What a connection is in the simulation.
pub struct SimIo {
    socket: SimSocket,
    wants_writable: bool,
    failed: bool,
}

impl Io for SimIo {
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(pieces)
    }

    fn shutdown(&mut self) {
        self.socket.shutdown();
    }

    fn has_input(&self) -> bool {
        self.socket.has_input()
    }
}

impl SimBackend {
    /// A backend that accepts the peers of `network`.
    pub fn new(network: &Network, receive_buffer_bytes: usize, meter: Meter) -> Self {
        let driver = SimDriver {
            network: network.clone(),
            waker: Arc::default(),
            is_accepting: true,
            buffer: vec![0; receive_buffer_bytes],
            received: 0,
            work: Vec::new(),
        };
        Self::on(driver, meter)
    }
}

impl SimDriver {
    /// What can happen to one connection in a turn, by chance.
    fn visit(&mut self, index: u32, visit: Visit, entry: &mut Entry<SimIo>) -> Option<Event<SimIo>> {
        let Entry { link, io } = entry;
        match visit {
            Visit::Write => {
                if io.wants_writable && io.socket.has_room() && !self.network.one_in(4) {
                    io.wants_writable = false;
                    return Some(Event::Writable(index));
                }
            }
            Visit::Read if link.takes_input() && !link.eof && !io.failed => {
                match io.socket.read(&mut self.buffer) {
                    Ok(0) => return Some(Event::Eof(index)),
                    Ok(len) => {
                        self.received = len;
                        return Some(Event::Received(index));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        io.failed = true;
                        return Some(Event::Failed(index, error));
                    }
                }
            }
            Visit::Read => {}
        }
        None
    }
}

impl Driver for SimDriver {
    type Io = SimIo;

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn clock(&self) -> Instant {
        self.network.clock()
    }

    fn wait(&mut self, links: &mut Links<SimIo>, timeout: Option<Duration>) -> io::Result<()> {
        // What the worker does with the rest of the buffer must not matter.
        self.buffer.fill(0xDB);
        if timeout == Some(Duration::ZERO) {
            self.network.is_busy();
        }
        self.network.begin_turn(timeout);
        let visits = |(index, _)| [(index as u32, Visit::Write), (index as u32, Visit::Read)];
        self.work = links.iter().flat_map(visits).collect();
        self.network.shuffle(&mut self.work);
        Ok(())
    }

    fn next(&mut self, links: &mut Links<SimIo>) -> Option<Event<SimIo>> {
        if self.waker.take() {
            return Some(Event::Woken);
        }
        if self.is_accepting
            && let Some(socket) = self.network.accept()
        {
            return Some(Event::Accepted(SimIo { socket, wants_writable: false, failed: false }, 0));
        }
        while let Some((index, visit)) = self.work.pop() {
            let entry = links.get_mut(index as usize).filter(|entry| !entry.link.ended);
            if let Some(entry) = entry
                && let Some(event) = self.visit(index, visit, entry)
            {
                return Some(event);
            }
        }
        None
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.received]
    }

    fn open(&mut self, _: &mut Entry<SimIo>, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> io::Result<SimIo> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive(&mut self, _: &mut Entry<SimIo>, _: u32) {}

    fn stop_receiving(&mut self, _: &mut Entry<SimIo>, _: u32) {}

    fn want_writable(&mut self, entry: &mut Entry<SimIo>, _: u32) {
        entry.io.wants_writable = true;
    }

    fn end(&mut self, _: &mut Entry<SimIo>, _: u32) -> bool {
        true
    }

    fn stop_accepting(&mut self) {
        self.is_accepting = false;
    }
}
