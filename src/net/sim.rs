//! The backend in memory, for tests and fuzzing: peers follow a script, and a seed decides everything that
//! a kernel and a network would: how finely reads are cut, how little a send takes, what comes first, and
//! when a connection is reset. The same seed gives the same run.
//!
//! A [`Network`] is the test's side, a [`SimBackend`] the server's. Time is the test's own: it passes only
//! where [`Network::let_pass`] allows it, and only when nothing else can happen.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use slab::Slab;

use super::queue::SendQueue;
use super::{Backend, Chunk, Completion, ConnId, Wake};

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
        let (chance, peers) = (Chance::new(seed), Vec::new());
        let time_left = Duration::ZERO;
        Self(Rc::new(RefCell::new(Inner { chance, peers, moved: false, quiet_turns: 0, time_left })))
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

    /// Lets a peer read that did not.
    pub fn start_reading(&self, peer: PeerId) {
        let mut inner = self.0.borrow_mut();
        inner.moved = true;
        inner.peers[peer].script.reads = true;
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

/// See the module.
pub struct SimBackend {
    network: Network,
    waker: Arc<Flag>,
    now: Instant,
    connections: Slab<Connection>,
    generation: u32,
    is_accepting: bool,
    buffer: Vec<u8>,
    received: usize,
    work: Vec<u32>,
    ended: VecDeque<(u32, Option<io::Error>)>,
    receive_buffer_bytes: usize,
}

struct Connection {
    peer: PeerId,
    generation: u32,
    eof: bool,
    is_finishing: bool,
    fin_sent: bool,
    ended: bool,
    queue: Option<Box<SendQueue>>,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, SeqCst);
    }
}

impl SimBackend {
    /// A backend that accepts the peers of `network`.
    pub fn new(network: &Network, receive_buffer_bytes: usize) -> Self {
        Self {
            network: network.clone(),
            waker: Arc::default(),
            now: Instant::now(),
            connections: Slab::new(),
            generation: 0,
            is_accepting: true,
            buffer: vec![0; receive_buffer_bytes],
            received: 0,
            work: Vec::new(),
            ended: VecDeque::new(),
            receive_buffer_bytes,
        }
    }

    /// The most octets that wait in any connection's send queue.
    pub fn queued_max(&self) -> usize {
        self.connections
            .iter()
            .filter_map(|(_, connection)| connection.queue.as_ref())
            .map(|queue| queue.len())
            .max()
            .unwrap_or(0)
    }

    fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.connections[index as usize].generation }
    }

    fn accept(&mut self) -> Option<Completion> {
        let mut network = self.network.0.borrow_mut();
        let network = &mut *network;
        let waiting = network.peers.iter().position(|peer| !peer.is_accepted)?;
        if !self.is_accepting || network.chance.one_in(3) {
            return None;
        }
        network.peers[waiting].is_accepted = true;
        network.moved = true;
        self.generation += 1;
        let generation = self.generation;
        let index = self.connections.insert(Connection {
            peer: waiting,
            generation,
            eof: false,
            is_finishing: false,
            fin_sent: false,
            ended: false,
            queue: None,
        });
        Some(Completion::Accepted(ConnId { index: index as u32, generation }))
    }

    /// Everything that can happen to one connection in a turn, each by chance.
    fn visit(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections.get_mut(index as usize).filter(|connection| !connection.ended)?;
        {
            let mut network = self.network.0.borrow_mut();
            let Inner { chance, peers, moved, .. } = &mut *network;
            let peer = &mut peers[connection.peer];
            if peer.script.resets && chance.one_in(20) {
                peer.end = End::Reset;
                *moved = true;
                drop(network);
                self.end(index, Some(io::ErrorKind::ConnectionReset.into()));
                return None;
            }
            if peer.script.reads && !peer.in_flight.is_empty() {
                let len = 1 + chance.below(peer.in_flight.len());
                peer.received.extend(peer.in_flight.drain(..len));
                *moved = true;
            }
        }
        if connection.queue.is_some() && self.flush(index) {
            return None;
        }
        self.read(index)
    }

    fn read(&mut self, index: u32) -> Option<Completion> {
        let connection = &mut self.connections[index as usize];
        if connection.queue.is_some() || connection.eof || connection.ended {
            return None;
        }
        let mut network = self.network.0.borrow_mut();
        let Inner { chance, peers, moved, .. } = &mut *network;
        let peer = &mut peers[connection.peer];
        let left = peer.script.sends.len() - peer.sent;
        if chance.one_in(4) || (left == 0 && !peer.script.fin) {
            return None;
        }
        *moved = true;
        if left == 0 {
            connection.eof = true;
            drop(network);
            if !connection.is_finishing {
                return Some(Completion::Eof(self.id(index)));
            }
            if connection.fin_sent {
                self.end(index, None);
            }
            return None;
        }
        let len = 1 + chance.below(left.min(self.receive_buffer_bytes));
        self.buffer[..len].copy_from_slice(&peer.script.sends[peer.sent..peer.sent + len]);
        peer.sent += len;
        if connection.is_finishing {
            return None;
        }
        self.received = len;
        drop(network);
        Some(Completion::Received(self.id(index)))
    }

    /// Whether the connection has ended over it.
    fn flush(&mut self, index: u32) -> bool {
        let connection = &mut self.connections[index as usize];
        let Some(queue) = &mut connection.queue else { return false };
        let mut network = self.network.0.borrow_mut();
        let Inner { chance, peers, moved, .. } = &mut *network;
        let peer = &mut peers[connection.peer];
        let flushed = queue.flush(|slices| {
            let len: usize = slices.iter().map(|slice| slice.len()).sum();
            let taken = take(chance, peer, len)?;
            *moved = true;
            let octets = slices.iter().flat_map(|slice| slice.iter().copied());
            peer.in_flight.extend(octets.take(taken));
            Ok(taken)
        });
        drop(network);
        if flushed.is_ok_and(|all| all) {
            connection.queue = None;
            self.sent(index);
        }
        self.connections[index as usize].ended
    }

    fn sent(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.is_finishing && !connection.fin_sent {
            connection.fin_sent = true;
            let mut network = self.network.0.borrow_mut();
            network.moved = true;
            network.peers[connection.peer].end = End::Fin;
            drop(network);
            if connection.eof {
                self.end(index, None);
            }
        }
    }

    fn end(&mut self, index: u32, error: Option<io::Error>) {
        let connection = &mut self.connections[index as usize];
        debug_assert!(!connection.ended);
        connection.ended = true;
        connection.queue = None;
        let mut network = self.network.0.borrow_mut();
        network.moved = true;
        let peer = &mut network.peers[connection.peer];
        // As the kernel does: closing with octets unread, or without FIN, resets, and what is in flight is lost.
        if peer.sent < peer.script.sends.len() || !connection.fin_sent {
            peer.end = End::Reset;
            peer.in_flight.clear();
        } else {
            peer.received.extend(peer.in_flight.drain(..));
        }
        drop(network);
        self.ended.push_back((index, error));
    }

    fn live(&self, conn: ConnId) -> bool {
        let connection = &self.connections[conn.index as usize];
        assert_eq!(connection.generation, conn.generation, "a connection is used after it was closed");
        !connection.ended
    }
}

/// How many of `len` octets the connection takes.
fn take(chance: &mut Chance, peer: &Peer, len: usize) -> io::Result<usize> {
    let room = peer.script.capacity - peer.in_flight.len();
    match room.min(len) {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ if chance.one_in(8) => Err(io::ErrorKind::WouldBlock.into()),
        most => Ok(1 + chance.below(most)),
    }
}

impl Backend for SimBackend {
    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut network = self.network.0.borrow_mut();
        network.quiet_turns = if std::mem::take(&mut network.moved) { 0 } else { network.quiet_turns + 1 };
        if network.quiet_turns > QUIET_TURNS && !network.time_left.is_zero() {
            let time = timeout.unwrap_or(Duration::MAX).max(Duration::from_millis(1)).min(network.time_left);
            network.time_left -= time;
            network.quiet_turns = 0;
            self.now += time;
        }
        self.work = self.connections.iter().map(|(index, _)| index as u32).collect();
        for end in (1..self.work.len()).rev() {
            self.work.swap(end, (network.chance.number() % (end as u64 + 1)) as usize);
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some((index, error)) = self.ended.pop_front() {
                let conn = self.id(index);
                self.connections.remove(index as usize);
                return Some(Completion::Closed(conn, error));
            }
            if self.waker.0.swap(false, SeqCst) {
                return Some(Completion::Woken);
            }
            if let Some(completion) = self.accept() {
                return Some(completion);
            }
            let Some(index) = self.work.pop() else {
                if self.ended.is_empty() {
                    return None;
                }
                continue;
            };
            if let Some(completion) = self.visit(index) {
                return Some(completion);
            }
        }
    }

    fn received(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.received]
    }

    fn reply(&mut self, conn: ConnId, range: Range<usize>, between: Vec<(usize, Chunk)>) {
        let mut at = range.start;
        for (before, chunk) in between {
            self.send(conn, self.buffer[at..before].to_vec().into());
            self.send(conn, chunk);
            at = before;
        }
        self.send(conn, self.buffer[at..range.end].to_vec().into());
        // What the worker does with the rest of the buffer must not matter.
        self.buffer.fill(0xDB);
    }

    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        if !self.live(conn) || chunk.octets().is_empty() {
            return;
        }
        let connection = &mut self.connections[conn.index as usize];
        assert!(!connection.fin_sent, "sent after FIN");
        let had_queue = connection.queue.is_some();
        connection.queue.get_or_insert_default().push(chunk, 0);
        if !had_queue {
            self.flush(conn.index);
        }
    }

    fn queued(&self, conn: ConnId) -> usize {
        self.connections[conn.index as usize].queue.as_ref().map_or(0, |queue| queue.len())
    }

    fn drop_oldest(&mut self, conn: ConnId, target: usize) -> u32 {
        if !self.live(conn) {
            return 0;
        }
        let connection = &mut self.connections[conn.index as usize];
        let Some(queue) = &mut connection.queue else { return 0 };
        let dropped = queue.drop_oldest(target);
        if queue.is_empty() {
            connection.queue = None;
            self.sent(conn.index);
        }
        dropped
    }

    fn finish(&mut self, conn: ConnId) {
        if self.live(conn) {
            let connection = &mut self.connections[conn.index as usize];
            connection.is_finishing = true;
            if connection.queue.is_none() {
                self.sent(conn.index);
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        if self.live(conn) {
            self.end(conn.index, None);
        }
    }

    fn stop_accepting(&mut self) {
        self.is_accepting = false;
    }
}
