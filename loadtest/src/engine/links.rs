//! What a load thread does with one of its connections: open, upgrade, send, receive, close.
//!
//! One write for a connection and turn, however many messages are due on it, and one read for each event:
//! a read that did not fill the buffer has drained the socket, and the next octet brings a new event.

use std::io::{self, Read};
use std::os::fd::AsFd;

use mio::{Interest, Token};
use resound::proto::{Limits, State};

use super::args::{CloseFirst, Mode};
use super::book::{Receiver, Trips};
use super::clock::SECOND_NS;
use super::connection::{Conn, Stage};
use super::integrity::Sent;
use super::plan::Load;
use super::ring::{GENERATION_MASK, id};
use super::schedule::Late;
use super::socket;
use super::stamp::Stamp;
use super::worker::{Part, Worker};
use crate::result::recorder::{ErrorKind, Metric};

/// Octets composed for one write; more would not fit into a socket's buffer anyway.
const WRITE_LEN_MAX: usize = 128 << 10;
/// Messages longer than this, in octets, are not given to the ring: composing a turn of them takes longer than a send
/// should be early.
const SUBMIT_SIZE_MAX: usize = 16 << 10;
/// How long a closing handshake may take before the connection is cut.
const CLOSE_TIMEOUT_NS: u64 = 5 * SECOND_NS;
/// Messages are at most as long as those sent; what is longer is not one of ours.
const LIMITS: Limits = Limits {
    message_size_max: super::size::SIZE_MAX as u64,
    fragments_max: 1 << 20,
    inflate_octets_max: usize::MAX,
};

pub(super) fn token(slot: usize, generation: u32) -> Token {
    Token(slot | (generation as usize) << 32)
}

impl Worker {
    /// The slot that an event is about, unless its connection is gone.
    #[inline]
    pub(super) fn slot_of(&self, token: Token) -> Option<usize> {
        let slot = token.0 & 0xFFFF_FFFF;
        let generation = (token.0 >> 32) as u32;
        self.slots[slot].as_ref().is_some_and(|conn| conn.generation == generation).then_some(slot)
    }

    /// Begins to open a connection that was to be opened at `intended_ns`.
    pub(super) fn open(&mut self, slot: usize, intended_ns: u64) {
        let plan = &self.shared.plan;
        // In the order of the ramp these are the numbers by which schedules know the slots.
        let number = self.opened.wrapping_mul(plan.threads).wrapping_add(self.index);
        let source = match plan.sources.len() {
            0 => None,
            count => Some(plan.sources[number as usize % count]),
        };
        self.opened = self.opened.wrapping_add(1);
        let started_ns = self.shared.clock.now_ns();
        if plan.mode == Mode::Connect && self.book.records(intended_ns) {
            self.book.slice.record(Metric::Lag, started_ns - intended_ns);
        }
        let counts = &mut self.book.slice.counts;
        counts.connects += 1;
        let connected = socket::connect(plan.target.address, source).and_then(|mut stream| {
            let generation = (self.generations[slot] + 1) & GENERATION_MASK;
            self.generations[slot] = generation;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, token(slot, generation), interest)?;
            Ok(Conn::new(stream, generation, number, intended_ns, started_ns))
        });
        match connected {
            Ok(conn) => {
                self.connecting
                    .push_back((started_ns + plan.connect_timeout_ns, token(slot, conn.generation)));
                self.slots[slot] = Some(conn);
            }
            Err(error) => {
                counts.connect_failures += 1;
                self.count_error(socket::error_kind(&error), || format!("connect: {error}"));
                self.vacant.push(slot as u32);
            }
        }
    }

    /// A socket takes octets: its TCP handshake is done, or its buffer has room again.
    pub(super) fn writable(&mut self, token: Token) {
        let Some(slot) = self.slot_of(token) else { return };
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if matches!(conn.stage, Stage::Connecting) {
            return self.connected(slot);
        }
        if conn.is_blocked() {
            match conn.write_kept() {
                Ok(true) => self.flush(slot),
                Ok(false) => {}
                Err(error) => self.fail(slot, &error, "write"),
            }
        }
    }

    fn connected(&mut self, slot: usize) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        let error = match conn.stream.take_error() {
            Ok(None) => match conn.stream.peer_addr() {
                Ok(_) => None,
                // Not yet: another event will come.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => Some(error),
            },
            Ok(Some(error)) | Err(error) => Some(error),
        };
        if let Some(error) = error {
            self.book.slice.counts.connect_failures += 1;
            return self.fail(slot, &error, "connect");
        }
        let now_ns = self.shared.clock.now_ns();
        self.book.slice.record(Metric::Connect, now_ns - conn.started_ns);
        conn.stage_ns = now_ns;
        self.send_buffer.clear();
        let pending = self.shared.upgrade.begin(&mut self.rng, &mut self.send_buffer);
        conn.stage = Stage::Upgrading(Box::new(pending));
        if let Err(error) = conn.write(&self.send_buffer) {
            self.book.slice.counts.upgrade_failures += 1;
            self.fail(slot, &error, "upgrade request");
        }
    }

    /// A message is due on the thread's own connection `member`, or a connection is to be opened.
    #[inline]
    pub(super) fn enqueue(&mut self, member: u32, due_ns: u64) {
        self.book.scheduled(due_ns);
        let slot = match self.shared.plan.mode {
            Mode::Connect => {
                self.waiting.push_back(due_ns);
                return self.open_waiting();
            }
            Mode::Broadcast => Some(member as usize),
            // In the place of a connection that is being replaced, the next one sends.
            Mode::Echo if self.is_open(member as usize) => Some(member as usize),
            Mode::Echo => {
                let count = self.slots.len();
                (1..count).map(|step| (member as usize + step) % count).find(|slot| self.is_open(*slot))
            }
        };
        let Some(slot) = slot.filter(|slot| self.is_open(*slot)) else {
            // It is late from now on, and its latency says so.
            if self.is_replacing() {
                self.waiting.push_back(due_ns);
            }
            return;
        };
        let conn = self.slots[slot].as_mut().expect("an open slot has a connection");
        conn.traffic.backlog.push_back(due_ns);
        self.backlog_count += 1;
        self.queue(slot);
    }

    /// Whether a connection of an echo run that is not open now will be, as far as one can tell.
    pub(super) fn is_replacing(&self) -> bool {
        self.shared.plan.mode == Mode::Echo && self.slots.iter().any(Option::is_some)
    }

    /// Has the connection flushed in its turn.
    #[inline]
    pub(super) fn queue(&mut self, slot: usize) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if !conn.queued {
            conn.queued = true;
            self.to_flush.push_back(slot as u32);
        }
    }

    #[inline]
    fn is_open(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(Conn::is_open)
    }

    /// Connect mode: opens connections for which there is a slot.
    fn open_waiting(&mut self) {
        while !self.waiting.is_empty()
            && let Some(slot) = self.vacant.pop()
        {
            let intended_ns = self.waiting.pop_front().expect("somebody waits");
            self.open(slot as usize, intended_ns);
        }
    }

    /// Writes the messages that are due on a connection: in one write, unless they are very many.
    #[inline]
    pub(super) fn flush(&mut self, slot: usize) {
        let Some(conn) = self.slots[slot].as_mut() else { return };
        conn.queued = false;
        if conn.is_blocked() || !matches!(conn.stage, Stage::Open | Stage::Leaving) {
            return;
        }
        let plan = &self.shared.plan;
        let closed_loop = self.book.closed_loop && self.part == Part::Load && conn.is_open();
        let expected = if plan.mode == Mode::Broadcast { self.shared.control.subscribers() } else { 1 };
        let interval_ns = self.schedule.as_ref().map_or(u64::MAX, |schedule| schedule.interval_ns());
        // All that is submitted in a turn goes out at its end.
        let mut ring =
            self.ring.as_mut().filter(|_| closed_loop && conn.in_ring && plan.sizes.max() <= SUBMIT_SIZE_MAX);
        loop {
            self.send_buffer.clear();
            let sent_ns = if ring.is_some() { self.turn_ns } else { self.shared.clock.now_ns() };
            while self.send_buffer.len() < WRITE_LEN_MAX {
                let (intended_ns, due_count) = if let Some(intended_ns) = conn.traffic.backlog.pop_front() {
                    self.backlog_count -= 1;
                    if plan.late == Late::Skip && sent_ns - intended_ns > interval_ns {
                        if self.book.records(intended_ns) {
                            self.book.slice.counts.skipped += 1;
                        }
                        continue;
                    }
                    (intended_ns, 1)
                } else if closed_loop && conn.traffic.owed > 0 {
                    // A turn that began in the warm-up ends in it, too.
                    (sent_ns.min(self.book.record_until_ns - 1), conn.traffic.owed)
                } else {
                    break;
                };
                let sent = if plan.mode == Mode::Connect {
                    Sent { intended_ns: conn.intended_ns, sent_ns: conn.started_ns }
                } else {
                    if !self.book.closed_loop && self.book.records(intended_ns) {
                        self.book.slice.record(Metric::Lag, sent_ns - intended_ns);
                    }
                    Sent { intended_ns, sent_ns }
                };
                let (mut count, mut octets) = (0, 0);
                while count < due_count && self.send_buffer.len() < WRITE_LEN_MAX {
                    let size = plan.sizes.draw(&mut self.rng);
                    let stamp = Stamp {
                        intended_ns: sent.intended_ns,
                        sequence: conn.traffic.outstanding.next().wrapping_add(count),
                        sender: conn.traffic.number,
                    };
                    if conn.deflates {
                        self.plain.clear();
                        self.composer.payload(stamp, size, &mut self.plain);
                        let (codecs, target) = (&mut self.codecs, &mut self.send_buffer);
                        conn.protocol.send(plan.opcode, &self.plain, codecs, target);
                    } else {
                        self.composer.compose(stamp, size, &mut self.send_buffer);
                    }
                    count += 1;
                    octets += size as u64;
                }
                if self.book.closed_loop {
                    conn.traffic.owed -= count;
                    self.book.slice.counts.scheduled += u64::from(count);
                }
                conn.traffic.outstanding.sent(sent, count);
                self.book.sent(sent, count, octets, expected);
            }
            if self.send_buffer.is_empty() {
                return;
            }
            if let Some(ring) = &mut ring {
                let octets = std::mem::replace(&mut self.send_buffer, ring.spare());
                ring.send(id(slot, conn.generation), conn.stream.as_fd(), octets);
                conn.sending = true;
                return;
            }
            match conn.write(&self.send_buffer) {
                Ok(true) if conn.traffic.backlog.is_empty() && (conn.traffic.owed == 0 || !closed_loop) => {
                    return;
                }
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.fail(slot, &error, "write"),
            }
        }
    }

    /// A socket has octets, or, if it `is_closed`, its end behind them.
    #[inline]
    pub(super) fn readable(&mut self, token: Token, is_closed: bool) {
        let Some(slot) = self.slot_of(token) else { return };
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if matches!(conn.stage, Stage::Connecting) {
            self.connected(slot);
            if self.slot_of(token).is_none() {
                return;
            }
        }
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if conn.in_ring {
            // It says so itself, in the order in which things came.
            return;
        }
        let len = loop {
            match conn.stream.read(&mut self.receive_buffer) {
                Ok(0) => return self.ended(slot),
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(slot, &error, "read"),
            }
        };
        let is_upgrading = matches!(conn.stage, Stage::Upgrading(_));
        let now_ns = self.shared.clock.now_ns();
        // Another thread's publication may belong to the next part of the run already.
        self.cut(now_ns);
        if len == self.receive_buffer.len() || is_closed {
            // There is more, and no event will say so again.
            self.to_read.push_back(token);
        }
        let mut at = 0;
        if is_upgrading {
            match self.upgraded(slot, len, now_ns) {
                Some(taken) => at = taken,
                None => return,
            }
        }
        if at < len {
            let mut buffer = std::mem::take(&mut self.receive_buffer);
            self.received(slot, &mut buffer[..len], at, now_ns);
            self.receive_buffer = buffer;
        }
    }

    /// Takes in octets of an upgrade response: where the frames begin, once it is whole and good.
    fn upgraded(&mut self, slot: usize, len: usize, now_ns: u64) -> Option<usize> {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        let Stage::Upgrading(pending) = &mut conn.stage else { unreachable!("the caller has looked") };
        match self.shared.upgrade.receive(pending, &self.receive_buffer[..len]) {
            Ok(None) => None,
            Ok(Some(upgraded)) => {
                self.book.slice.record(Metric::Upgrade, now_ns - conn.stage_ns);
                self.book.slice.counts.upgrades += 1;
                self.open_count += 1;
                conn.stage = Stage::Open;
                conn.stage_ns = now_ns;
                if let Some(params) = upgraded.deflate {
                    conn.deflates = conn.protocol.agree_on_deflate(params, &self.codecs);
                    assert!(conn.deflates, "there is no limit of memory here");
                }
                let intended_ns = conn.intended_ns;
                if let Err(error) = self.move_to_ring(slot) {
                    self.fail(slot, &error, "epoll");
                    return None;
                }
                let conn = self.slots[slot].as_mut().expect("the slot has a connection");
                if self.shared.plan.mode == Mode::Connect {
                    conn.traffic.backlog.push_back(intended_ns);
                    self.backlog_count += 1;
                    self.flush(slot);
                } else if self.part == Part::Load
                    && let Load::Closed { in_flight } = self.shared.plan.load
                {
                    conn.traffic.owed = in_flight;
                    self.flush(slot);
                } else if !self.waiting.is_empty() {
                    self.backlog_count += self.waiting.len();
                    conn.traffic.backlog.append(&mut self.waiting);
                    self.flush(slot);
                }
                self.slots[slot].as_ref().map(|_| upgraded.taken)
            }
            Err(reason) => {
                self.book.slice.counts.upgrade_failures += 1;
                self.count_error(ErrorKind::UpgradeRejected, || format!("upgrade: {reason}"));
                self.remove(slot);
                None
            }
        }
    }

    /// Takes in frames.
    #[inline]
    pub(super) fn received(&mut self, slot: usize, octets: &mut [u8], at: usize, now_ns: u64) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        let mut receiver = Receiver {
            book: &mut self.book,
            traffic: &mut conn.traffic,
            subscriber: self.subscribers.get_mut(slot),
            now_ns,
            opcode: self.shared.plan.opcode,
            trips: Trips::default(),
        };
        let (codecs, replies) = (&mut self.codecs, &mut self.replies);
        let outcome = conn.protocol.receive(octets, at, &LIMITS, codecs, replies, &mut receiver);
        receiver.finish();
        if !self.replies.is_empty() {
            // If it fails, the read that follows says so.
            let _ = conn.write(&self.replies.to_vec(octets));
        }
        if let Err(error) = outcome {
            self.count_error(ErrorKind::Protocol, || format!("the server broke the protocol: {error}"));
            return self.remove(slot);
        }
        if conn.protocol.state() == State::Closed {
            return self.close_received(slot);
        }
        match conn.stage {
            Stage::Open if conn.traffic.owed > 0 => match self.shared.plan.mode {
                Mode::Connect => self.first_message(slot, now_ns),
                // When all that has come is read: a server that waits is woken once for all of it.
                _ if self.book.closed_loop => self.queue(slot),
                _ => conn.traffic.owed = 0,
            },
            Stage::Leaving if conn.traffic.outstanding.is_empty() && conn.traffic.backlog.is_empty() => {
                self.begin_close(slot, now_ns);
            }
            _ => {}
        }
    }

    /// Connect mode: the connection has done what it was opened for.
    fn first_message(&mut self, slot: usize, now_ns: u64) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if self.book.records(conn.intended_ns) {
            self.book.slice.record(Metric::FirstMessage, now_ns - conn.stage_ns);
        }
        self.begin_close(slot, now_ns);
    }

    /// Starts to close a connection on purpose.
    fn begin_close(&mut self, slot: usize, now_ns: u64) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        self.book.slice.counts.closes += 1;
        self.open_count -= 1;
        let token = token(slot, conn.generation);
        match conn.close(now_ns) {
            Ok(()) => self.closing.push_back((now_ns + CLOSE_TIMEOUT_NS, token)),
            Err(error) => self.fail(slot, &error, "close"),
        }
    }

    /// The server's Close arrived.
    fn close_received(&mut self, slot: usize) {
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        if !matches!(conn.stage, Stage::Closing) {
            self.count_error(ErrorKind::ClosedByServer, || "the server sent a Close".into());
            return self.remove(slot);
        }
        let we_are_first = match self.shared.plan.mode {
            Mode::Connect => self.shared.plan.close_first == CloseFirst::Client,
            // RFC 6455 §7.1.1: the server closes first, so that it and not we keeps the TIME_WAIT.
            _ => false,
        };
        if we_are_first {
            conn.shut();
            self.remove(slot);
        }
    }

    /// The server has closed the TCP connection.
    pub(super) fn ended(&mut self, slot: usize) {
        let conn = self.slots[slot].as_ref().expect("the slot has a connection");
        match conn.stage {
            Stage::Closing => {}
            Stage::Upgrading(_) => {
                self.book.slice.counts.upgrade_failures += 1;
                self.count_error(ErrorKind::ClosedByServer, || {
                    "the server closed instead of upgrading".into()
                });
            }
            _ => self.count_error(ErrorKind::ClosedByServer, || "the server closed the connection".into()),
        }
        self.remove(slot);
    }

    pub(super) fn fail(&mut self, slot: usize, error: &io::Error, doing: &str) {
        let conn = self.slots[slot].as_ref().expect("the slot has a connection");
        if !matches!(conn.stage, Stage::Closing) {
            self.count_error(socket::error_kind(error), || format!("{doing}: {error}"));
        }
        self.remove(slot);
    }

    pub(super) fn count_error(&mut self, kind: ErrorKind, what: impl FnOnce() -> String) {
        if matches!(self.part, Part::Farewell { .. }) {
            return;
        }
        self.book.slice.counts.errors.count(kind);
        self.shared.control.failed(kind, what);
    }

    /// Settles a connection's books: what has not come back is lost.
    pub(super) fn settle(&mut self, slot: usize) {
        let Some(conn) = &mut self.slots[slot] else { return };
        let outstanding = std::mem::take(&mut conn.traffic.outstanding);
        if self.shared.plan.mode == Mode::Broadcast {
            // At the end of the run a connection is settled, and settled again when it is gone: then nothing
            // is left to say, and another thread may not have read the count yet.
            if conn.traffic.number < self.shared.plan.publishers && outstanding.next() > 0 {
                self.shared.control.set_published(conn.traffic.number, outstanding.next());
            }
            return;
        }
        outstanding.close(|sent| {
            self.book.in_flight -= 1;
            self.book.lost(sent.intended_ns, 1);
        });
    }

    /// Lets a connection go, whatever it was doing.
    pub(super) fn remove(&mut self, slot: usize) {
        self.settle(slot);
        let Some(conn) = self.slots[slot].take() else { return };
        self.backlog_count -= conn.traffic.backlog.len();
        if matches!(conn.stage, Stage::Open | Stage::Leaving) {
            self.open_count -= 1;
        }
        let churned = conn.churned;
        self.close_socket(slot, conn);
        self.vacate(slot);
        if churned && self.part == Part::Load {
            let now_ns = self.shared.clock.now_ns();
            self.open(slot, now_ns);
        }
    }

    /// A slot has no connection any more.
    fn vacate(&mut self, slot: usize) {
        if self.shared.plan.mode == Mode::Connect {
            self.vacant.push(slot as u32);
            if matches!(self.part, Part::Load | Part::Drain) {
                self.open_waiting();
            }
        }
    }

    /// Replaces the connections whose turn it is.
    pub(super) fn replace_due(&mut self, now_ns: u64) -> bool {
        let mut worked = false;
        while let Some(churn) = self.churn.as_mut().filter(|churn| churn.due_ns() <= now_ns) {
            churn.advance();
            worked = true;
            let slot = self.churn_at;
            self.churn_at = (slot + 1) % self.slots.len();
            match &mut self.slots[slot] {
                None => self.open(slot, now_ns),
                Some(conn) if conn.is_open() => {
                    conn.churned = true;
                    conn.stage = Stage::Leaving;
                    let deadline_ns = now_ns + self.shared.plan.reply_timeout_ns;
                    if conn.traffic.outstanding.is_empty() && conn.traffic.backlog.is_empty() {
                        self.begin_close(slot, now_ns);
                    } else {
                        let token = token(slot, conn.generation);
                        self.leaving.push_back((deadline_ns, token));
                    }
                }
                // It is on its way in or out already.
                Some(_) => {}
            }
        }
        worked
    }

    /// Closed loop: gives the place of replies that take too long to new messages.
    pub(super) fn give_up_replies(&mut self, now_ns: u64) {
        if self.part != Part::Load || !self.book.closed_loop {
            return;
        }
        let sent_before_ns = now_ns.saturating_sub(self.shared.plan.reply_timeout_ns);
        for slot in 0..self.slots.len() {
            let Some(conn) = self.slots[slot].as_mut().filter(|conn| conn.is_open()) else { continue };
            if conn.traffic.outstanding.oldest().is_some_and(|sent| sent.sent_ns < sent_before_ns) {
                let count = conn.traffic.outstanding.give_up();
                conn.traffic.owed += count;
                self.book.slice.counts.errors.add(ErrorKind::ReplyTimeout, count.into());
                self.queue(slot);
            }
        }
    }

    /// Gives up what has taken too long.
    pub(super) fn expire(&mut self, now_ns: u64) {
        while let Some(&(deadline_ns, token)) = self.connecting.front() {
            let stage =
                self.slot_of(token).and_then(|slot| self.slots[slot].as_ref()).map(|conn| &conn.stage);
            let kind = match stage {
                Some(Stage::Connecting) => ErrorKind::ConnectTimeout,
                Some(Stage::Upgrading(_)) => ErrorKind::UpgradeTimeout,
                _ => {
                    self.connecting.pop_front();
                    continue;
                }
            };
            if deadline_ns > now_ns {
                break;
            }
            self.connecting.pop_front();
            self.timed_out_count += 1;
            let counts = &mut self.book.slice.counts;
            let what = if kind == ErrorKind::ConnectTimeout {
                counts.connect_failures += 1;
                "the server did not accept in time"
            } else {
                counts.upgrade_failures += 1;
                "the server did not answer the upgrade in time"
            };
            self.count_error(kind, || what.into());
            let slot = self.slot_of(token).expect("it was there just now");
            self.remove(slot);
        }
        while let Some(&(_, token)) = self.leaving.front().filter(|(deadline_ns, _)| *deadline_ns <= now_ns) {
            self.leaving.pop_front();
            if let Some(slot) = self.slot_of(token)
                && matches!(self.slots[slot].as_ref().map(|conn| &conn.stage), Some(Stage::Leaving))
            {
                self.count_error(ErrorKind::ReplyTimeout, || "a reply did not arrive in time".into());
                self.begin_close(slot, now_ns);
            }
        }
        while let Some(&(_, token)) = self.closing.front().filter(|(deadline_ns, _)| *deadline_ns <= now_ns) {
            self.closing.pop_front();
            if let Some(slot) = self.slot_of(token) {
                self.count_error(ErrorKind::ReplyTimeout, || "the server did not close in time".into());
                self.remove(slot);
            }
        }
    }
}
