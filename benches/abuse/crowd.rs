//! Many connections on one thread, each with a plan: what it says, what it hears, how long it stays.
//!
//! The octets are made before, sockets are visited in turn and with a bounded bite, so that an attacker costs
//! less than what it attacks. Start at [`Plan`], then [`Crowd::run`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, SockRef, Socket, Type};

use crate::wire;

/// The most octets that one visit reads, and writes. It writes more than it reads, so that there is always
/// more before the server than it can take.
const BITE: usize = 256 << 10;
const WRITE_BITE: usize = 4 << 20;
/// How many connections are opened at a time.
const OPENING_MAX: usize = 64;
/// How exact what is done by the clock is.
const TICK: Duration = Duration::from_millis(1);
/// Who was cut off comes back after this long.
const ABSENCE: Duration = Duration::from_millis(100);

/// What one connection does.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Sent first: mostly the request.
    pub(crate) head: Arc<[u8]>,
    /// Sent over and over, as far as `then` goes.
    pub(crate) octets: Arc<[u8]>,
    /// How many octets it says at once after the handshake.
    pub(crate) first: usize,
    pub(crate) then: Then,
    pub(crate) hears: Hears,
    pub(crate) stays: Stays,
    /// The size of its receive buffer in the kernel, if it is not the usual one.
    pub(crate) receive_buffer: Option<usize>,
}

/// When a connection goes on to speak.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Stop,
    /// As soon as the socket takes it.
    Always,
    /// So many octets each time.
    Every(Duration, usize),
    /// So many octets each time that it has heard so many: others' messages count too, and once only.
    InTurn {
        say: usize,
        hear: usize,
    },
}

/// What a connection reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hears {
    All,
    Nothing,
    /// So many octets each time.
    Every(Duration, usize),
    /// Nothing for so long, then all for so long.
    Bursts(Duration),
}

/// How long a connection stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    Always,
    /// Until its handshake is answered; then it comes anew.
    UntilOpen,
    /// Until it is connected; then it comes anew.
    UntilConnected,
    /// Its request has no end and gets no answer.
    Unanswered,
}

impl Plan {
    /// A connection at `path` that says nothing and hears all.
    pub(crate) fn at(path: &str) -> Self {
        Self::with(path, None)
    }

    /// The same that offers `extensions`.
    pub(crate) fn with(path: &str, extensions: Option<&str>) -> Self {
        Self {
            head: wire::request(path, extensions).into(),
            octets: Arc::default(),
            first: 0,
            then: Then::Stop,
            hears: Hears::All,
            stays: Stays::Always,
            receive_buffer: None,
        }
    }

    /// Says `octets`, then over and over.
    pub(crate) fn says(self, octets: &Arc<[u8]>, then: Then) -> Self {
        Self { octets: octets.clone(), first: octets.len(), then, ..self }
    }

    /// Hears only so much, with a small buffer in the kernel.
    pub(crate) fn hears(self, hears: Hears) -> Self {
        Self { hears, receive_buffer: Some(4096), ..self }
    }
}

/// What a crowd has done so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Octets after the handshake.
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Connections that did what they open for.
    pub(crate) opened: AtomicU64,
    /// Connections that the server has ended or refused.
    pub(crate) cut_off: AtomicU64,
    /// Connections that have said what they say at once.
    pub(crate) said: AtomicU64,
}

/// What becomes of those that were cut off, and of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manners {
    /// They come back.
    pub(crate) come_back: bool,
    /// Once all are there they stay so long, leave all at once, and come again.
    pub(crate) waves: Option<Duration>,
}

pub(crate) struct Crowd<'a> {
    address: SocketAddr,
    plans: Vec<Plan>,
    manners: Manners,
    tally: &'a Tally,
    poll: Poll,
    /// One for each plan, while it is connected.
    peers: Vec<Option<Peer>>,
    /// Who is to be connected, and when.
    absent: VecDeque<(Instant, usize)>,
    opening: usize,
    /// Who may have something to do.
    ready: VecDeque<usize>,
    /// Whose plan goes by the clock.
    timed: Vec<usize>,
    /// Since when all have been there.
    complete: Option<Instant>,
    buffer: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    phase: Phase,
    readable: bool,
    writable: bool,
    is_ready: bool,
    /// Where in what it says it is, and how many octets it will say.
    at: usize,
    owed: usize,
    has_said: bool,
    /// How many octets it will hear.
    credit: usize,
    /// Octets heard since it last spoke.
    heard: usize,
    since: Instant,
    due_say: Instant,
    due_hear: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Upgrading,
    Open,
}

/// What a visit has led to.
enum Visit {
    Stay,
    /// It did what it came for.
    Done,
    Gone,
}

impl<'a> Crowd<'a> {
    pub(crate) fn new(
        address: SocketAddr,
        plans: Vec<Plan>,
        manners: Manners,
        tally: &'a Tally,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let is_timed = |plan: &Plan| {
            matches!(plan.then, Then::Every(..)) || matches!(plan.hears, Hears::Every(..) | Hears::Bursts(_))
        };
        Ok(Self {
            address,
            manners,
            tally,
            poll: Poll::new()?,
            peers: plans.iter().map(|_| None).collect(),
            absent: (0..plans.len()).map(|index| (now, index)).collect(),
            opening: 0,
            ready: VecDeque::new(),
            timed: (0..plans.len()).filter(|&index| is_timed(&plans[index])).collect(),
            complete: None,
            buffer: vec![0; BITE],
            plans,
        })
    }

    /// Goes on until `is_over`. Dropping the crowd closes every connection.
    pub(crate) fn run(&mut self, is_over: impl Fn() -> bool) -> io::Result<()> {
        let (mut events, mut ticked) = (Events::with_capacity(1024), Instant::now());
        while !is_over() {
            let now = Instant::now();
            self.come_and_go(now)?;
            let timeout = if self.ready.is_empty() { TICK } else { Duration::ZERO };
            self.poll.poll(&mut events, Some(timeout))?;
            for event in &events {
                if let Some(peer) = &mut self.peers[event.token().0] {
                    peer.readable |= event.is_readable() || event.is_error();
                    peer.writable |= event.is_writable();
                    if !peer.is_ready {
                        peer.is_ready = true;
                        self.ready.push_back(event.token().0);
                    }
                }
            }
            if now - ticked >= TICK {
                ticked = now;
                self.tick(now);
            }
            for _ in 0..self.ready.len() {
                let index = self.ready.pop_front().expect("it was counted");
                self.visit(index, now)?;
            }
        }
        Ok(())
    }

    fn come_and_go(&mut self, now: Instant) -> io::Result<()> {
        if let (Some(stay), Some(since)) = (self.manners.waves, self.complete)
            && now - since >= stay
        {
            for index in 0..self.peers.len() {
                self.remove(index);
                self.absent.push_back((now, index));
            }
            self.complete = None;
        }
        while self.opening < OPENING_MAX
            && let Some(&(when, index)) = self.absent.front()
            && when <= now
        {
            self.absent.pop_front();
            self.peers[index] = Some(self.connect(index, now)?);
            self.opening += 1;
        }
        if self.complete.is_none() && self.opening == 0 && self.absent.is_empty() {
            self.complete = Some(now);
        }
        Ok(())
    }

    fn connect(&self, index: usize, now: Instant) -> io::Result<Peer> {
        let plan = &self.plans[index];
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(octets) = plan.receive_buffer {
            socket.set_recv_buffer_size(octets)?;
        }
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Peer {
            stream,
            phase: Phase::Connecting,
            readable: false,
            writable: false,
            is_ready: false,
            at: 0,
            owed: plan.head.len(),
            has_said: false,
            credit: if matches!(plan.hears, Hears::All) { usize::MAX } else { 0 },
            heard: 0,
            since: now,
            due_say: now,
            due_hear: now,
        })
    }

    fn remove(&mut self, index: usize) {
        if let Some(peer) = self.peers[index].take() {
            if peer.is_opening(&self.plans[index]) {
                self.opening -= 1;
            }
            // With a reset: no port stays in TIME_WAIT, of which storms would use up all.
            if self.manners.waves.is_none() {
                let _ = SockRef::from(&peer.stream).set_linger(Some(Duration::ZERO));
            }
        }
    }

    /// What is due by the clock.
    fn tick(&mut self, now: Instant) {
        for &index in &self.timed {
            let Some(peer) = &mut self.peers[index] else { continue };
            if peer.phase != Phase::Open {
                continue;
            }
            let plan = &self.plans[index];
            if let Then::Every(every, octets) = plan.then
                && peer.due_say <= now
            {
                peer.due_say = now.max(peer.due_say + every);
                // What the socket does not take is not said twice.
                peer.owed = peer.owed.max(octets);
            }
            match plan.hears {
                Hears::Every(every, octets) if peer.due_hear <= now => {
                    peer.due_hear = now + every;
                    peer.credit = octets;
                }
                Hears::Bursts(each) => {
                    let is_awake = ((now - peer.since).as_nanos() / each.as_nanos()) % 2 == 1;
                    peer.credit = if is_awake { usize::MAX } else { 0 };
                }
                _ => {}
            }
            if peer.has_work() && !peer.is_ready {
                peer.is_ready = true;
                self.ready.push_back(index);
            }
        }
    }

    fn visit(&mut self, index: usize, now: Instant) -> io::Result<()> {
        let Some(peer) = &mut self.peers[index] else { return Ok(()) };
        peer.is_ready = false;
        let plan = &self.plans[index];
        let was_opening = peer.is_opening(plan);
        let visit = peer.visit(plan, &mut self.buffer, self.tally, now);
        if was_opening && !peer.is_opening(plan) {
            self.opening -= 1;
        }
        match visit {
            Ok(Visit::Stay) => {
                if peer.has_work() {
                    peer.is_ready = true;
                    self.ready.push_back(index);
                }
            }
            Ok(Visit::Done) => {
                self.remove(index);
                self.absent.push_back((now, index));
            }
            Ok(Visit::Gone) | Err(_) => {
                self.remove(index);
                self.tally.cut_off.fetch_add(1, Relaxed);
                if self.manners.come_back {
                    self.absent.push_back((now + ABSENCE, index));
                }
            }
        }
        Ok(())
    }
}

impl Peer {
    /// Whether it counts against [`OPENING_MAX`].
    fn is_opening(&self, plan: &Plan) -> bool {
        match plan.stays {
            Stays::Unanswered => self.phase == Phase::Connecting || self.owed > 0,
            _ => self.phase != Phase::Open,
        }
    }

    fn has_work(&self) -> bool {
        (self.readable && self.credit > 0) || (self.writable && self.owed > 0)
    }

    fn visit(&mut self, plan: &Plan, buffer: &mut [u8], tally: &Tally, now: Instant) -> io::Result<Visit> {
        if self.phase == Phase::Connecting {
            if !self.writable {
                return Ok(Visit::Stay);
            }
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            if plan.stays == Stays::UntilConnected {
                tally.opened.fetch_add(1, Relaxed);
                return Ok(Visit::Done);
            }
            self.phase = Phase::Upgrading;
        }
        if self.phase == Phase::Upgrading {
            self.write(&plan.head)?;
            if plan.stays == Stays::Unanswered && self.owed == 0 {
                self.has_said_all(tally);
            }
            if !self.readable {
                return Ok(Visit::Stay);
            }
            // The answer to a request comes whole on loopback, and nothing is sent before it is here.
            let len = match self.stream.read(&mut buffer[..512]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(Visit::Stay);
                }
                result => result?,
            };
            if !buffer[..len].starts_with(b"HTTP/1.1 101 ") {
                return Ok(Visit::Gone);
            }
            tally.opened.fetch_add(1, Relaxed);
            if plan.stays == Stays::UntilOpen {
                return Ok(Visit::Done);
            }
            self.phase = Phase::Open;
            (self.at, self.owed) = (0, plan.first);
            self.since = now;
            if let Then::Every(every, _) = plan.then {
                self.due_say = now + every;
            }
        }
        tally.sent.fetch_add(self.write(&plan.octets)? as u64, Relaxed);
        if self.owed == 0 {
            self.has_said_all(tally);
        }
        self.read(plan, buffer, tally)
    }

    fn has_said_all(&mut self, tally: &Tally) {
        if !std::mem::replace(&mut self.has_said, true) {
            tally.said.fetch_add(1, Relaxed);
        }
    }

    /// Writes what is owed of `octets`, until it has written a bite.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let mut total = 0;
        while self.writable && self.owed > 0 && total < WRITE_BITE {
            let len = self.owed.min(octets.len() - self.at);
            match self.stream.write(&octets[self.at..self.at + len]) {
                Ok(sent) => {
                    total += sent;
                    self.owed -= sent;
                    self.at = (self.at + sent) % octets.len();
                    if sent < len {
                        self.writable = false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Reads what it wants to hear, at most a bite, and owes what it says to that.
    fn read(&mut self, plan: &Plan, buffer: &mut [u8], tally: &Tally) -> io::Result<Visit> {
        let mut heard = 0;
        if self.readable && self.credit > 0 {
            let len = self.credit.min(buffer.len());
            match self.stream.read(&mut buffer[..len]) {
                Ok(0) => return Ok(Visit::Gone),
                Ok(len) => heard = len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Err(error),
            }
        }
        if self.credit != usize::MAX {
            self.credit -= heard;
        }
        tally.received.fetch_add(heard as u64, Relaxed);
        match plan.then {
            Then::Always => self.owed = usize::MAX,
            Then::InTurn { say, hear } => {
                self.heard += heard;
                if self.heard >= hear {
                    (self.heard, self.owed) = (0, self.owed + say);
                }
            }
            Then::Stop | Then::Every(..) => {}
        }
        Ok(Visit::Stay)
    }
}
