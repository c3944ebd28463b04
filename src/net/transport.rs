//! A [`Backend`] out of a [`Driver`]: the life of every link, once for epoll, io_uring and the simulator.
//!
//! A driver says only how to accept, connect, receive and send. What waits, who has a turn and what ends when is
//! decided here, and kept in a [`Link`]. A turn is bounded: a link is received from once, flushed by its share, and
//! has one piece of what was held for it; the rest goes on in the next turn, in order.
//!
//! Start at [`Transport::next`]. What a driver does is in [`driver`]; what differs for a link with TLS is in [`secure`].

mod driver;
mod secure;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

pub use self::driver::{Driver, Entry, Event, Io, Links};
use super::link::{Finish, Link};
use super::queue::{Chunk, Flushed, SendQueue};
use super::{Backend, Completion, ConnId, Wake, sent};
use crate::memory::Meter;
use crate::replies::Replies;

/// Octets that links which catch up send in one turn, all together.
const FLUSH_TURN_LEN: usize = 1 << 20;
/// A reply in more pieces than this goes through the queue.
const PIECES_MAX: usize = 16;

/// What [`Backend::received`] is.
enum Current {
    Nothing,
    Buffer,
    Held(Vec<u8>),
    /// This range of the driver's buffer, opened. More may follow it there: see [`secure`].
    Opened {
        start: u32,
        end: u32,
    },
    /// Opened outside of the driver's buffer. The same.
    Kept(Vec<u8>),
}

/// See the module.
pub struct Transport<D: Driver> {
    driver: D,
    links: Links<D::Io>,
    generation: u32,
    now: Instant,
    meter: Meter,
    current: Current,
    /// Links that have octets held or an end to report: of this turn, and of the next one.
    resumed: VecDeque<u32>,
    resumed_next: VecDeque<u32>,
    /// Links whose socket may take more.
    to_flush: VecDeque<u32>,
    /// What links may still flush in this turn, in octets.
    flush_left: usize,
    /// Links whose octets began to wait, or do no more: to be reported.
    blocked: Vec<u32>,
    /// Links whose end is to be reported. Nothing is in flight for them.
    ended: VecDeque<u32>,
    /// Why, of links that have ended: not in the link, since nearly none of them has one.
    errors: HashMap<u32, io::Error>,
    secure: secure::Shared,
}

impl<D: Driver> Transport<D> {
    /// A backend on `driver`. What waits in it is counted by `meter`.
    pub(super) fn on(driver: D, meter: Meter) -> Self {
        Self {
            now: driver.clock(),
            driver,
            links: Slab::new(),
            generation: 0,
            meter,
            current: Current::Nothing,
            resumed: VecDeque::new(),
            resumed_next: VecDeque::new(),
            to_flush: VecDeque::new(),
            flush_left: 0,
            blocked: Vec::new(),
            ended: VecDeque::new(),
            errors: HashMap::new(),
            secure: secure::Shared::default(),
        }
    }

    pub(super) fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// What waits to be sent on any connection, as limits count it: the most.
    pub fn queued_max(&self) -> usize {
        self.links.iter().map(|(_, entry)| entry.link.queued()).max().unwrap_or(0)
    }

    /// The connection's entry, unless its end is only still to be reported.
    #[inline]
    fn live(&mut self, conn: ConnId) -> Option<&mut Entry<D::Io>> {
        let entry = &mut self.links[conn.index as usize];
        debug_assert_eq!(entry.link.generation, conn.generation, "a connection is used after it was closed");
        (!entry.link.ended).then_some(entry)
    }

    fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.links[index as usize].link.generation }
    }

    /// A connection that is there or on its way gets a slot.
    fn insert(&mut self, io: D::Io, is_client: bool) -> io::Result<ConnId> {
        self.generation = (self.generation + 1) & super::GENERATION_MASK;
        let generation = self.generation;
        let index = self.links.insert(Entry { link: Link::new(generation, is_client), io }) as u32;
        let opened = self.driver.open(&mut self.links[index as usize], index);
        if let Err(error) = opened {
            self.links.remove(index as usize);
            return Err(error);
        }
        Ok(ConnId { index, generation })
    }

    /// What the worker is told of an event; often that is nothing.
    #[inline]
    fn take(&mut self, event: Event<D::Io>) -> Option<Completion> {
        match event {
            Event::Received(index) => self.received_on(index),
            Event::Accepted(io, listener) => Some(self.accepted(io, listener)),
            event => self.take_rare(event),
        }
    }

    fn take_rare(&mut self, event: Event<D::Io>) -> Option<Completion> {
        match event {
            Event::Sent { index, rest, error } => self.sent_on(index, rest, error),
            Event::Writable(index) => self.flush_later(index),
            Event::Eof(index) => {
                let link = &mut self.links[index as usize].link;
                if link.tls.is_some() {
                    return self.tls_eof(index);
                }
                link.eof = true;
                if link.takes_input() {
                    return self.report_eof(index);
                }
            }
            Event::Connected(index) => return Some(Completion::Connected(self.id(index))),
            Event::Failed(index, error) => self.end(index, Some(error)),
            Event::Freed(index) => self.ended.push_back(index),
            Event::Starved(index) => return Some(Completion::ReceiveStarved(self.id(index))),
            Event::AcceptFailed(error) => return Some(Completion::AcceptFailed(error)),
            Event::Woken => return Some(Completion::Woken),
            Event::Received(_) | Event::Accepted(..) => unreachable!("the caller takes them"),
        }
        None
    }

    #[inline]
    fn received_on(&mut self, index: u32) -> Option<Completion> {
        let entry = &mut self.links[index as usize];
        if entry.link.tls.is_some() {
            return self.open(index, 0);
        }
        let is_wanted = entry.link.finish == Finish::No;
        if entry.link.takes_input() && is_wanted {
            self.current = Current::Buffer;
            return Some(Completion::Received(ConnId { index, generation: entry.link.generation }));
        }
        if is_wanted && !entry.link.ended {
            self.hold_buffer(index);
        }
        self.driver.release();
        None
    }

    /// Octets that the driver had on their way when they were not wanted any more.
    #[cold]
    fn hold_buffer(&mut self, index: u32) {
        let entry = &mut self.links[index as usize];
        entry.link.hold(self.driver.buffer().to_vec(), &self.meter, false);
        self.driver.stop_receiving(entry, index);
    }

    /// The peer has ended, and nothing that it sent waits.
    fn report_eof(&mut self, index: u32) -> Option<Completion> {
        match self.links[index as usize].link.finish {
            Finish::No => return Some(Completion::Eof(self.id(index))),
            Finish::Asked => {}
            Finish::FinSent => self.end(index, None),
        }
        None
    }

    /// A submitted send is done.
    fn sent_on(&mut self, index: u32, rest: Option<(Chunk, usize)>, error: Option<io::Error>) {
        let Self { links, driver, meter, .. } = self;
        let entry = &mut links[index as usize];
        entry.link.in_flight = 0;
        if let Some(error) = error {
            return self.end(index, Some(error));
        }
        match rest {
            None if entry.link.is_flushed() => self.flushed(index),
            None => self.flush(index),
            Some((chunk, done)) => {
                // Nothing was sent from the queue meanwhile, so this goes before all of it.
                entry.link.with_queue(meter, |queue| queue.get_or_insert_default().push_front(chunk, done));
                driver.want_writable(entry, index);
                self.report_blocked(index);
            }
        }
    }

    /// Has the link flushed in its turn.
    fn flush_later(&mut self, index: u32) {
        let link = &mut self.links[index as usize].link;
        if !link.flushes && !link.is_flushed() {
            link.flushes = true;
            self.to_flush.push_back(index);
        }
    }

    /// Sends what is queued, by the link's share; when all is sent, goes on with what waited for that.
    fn flush(&mut self, index: u32) {
        let Self { links, driver, meter, flush_left, .. } = self;
        let entry = &mut links[index as usize];
        if entry.link.tls.is_some() {
            return self.flush_sealed(index);
        }
        if entry.link.in_flight > 0 {
            // What is in flight goes first, and its completion comes back here.
            return;
        }
        let Entry { link, io } = &mut *entry;
        let mut taken = 0;
        let flushed = link.with_queue(meter, |queue| match queue {
            None => Ok(Flushed::All),
            Some(queue) => queue.flush(|slices| {
                let sent = io.send(slices)?;
                taken += sent;
                Ok(sent)
            }),
        });
        *flush_left = flush_left.saturating_sub(taken);
        link.has_taken |= taken > 0;
        match flushed {
            Ok(Flushed::All) => self.flushed(index),
            Ok(Flushed::Blocked) => driver.want_writable(entry, index),
            Ok(Flushed::Share) => self.flush_later(index),
            Err(error) => self.end(index, Some(error)),
        }
    }

    /// The queue is empty.
    fn flushed(&mut self, index: u32) {
        let link = &mut self.links[index as usize].link;
        if std::mem::replace(&mut link.blocked, false) {
            self.blocked.push(index);
        }
        if link.finish == Finish::Asked {
            if link.tls.is_some() && !self.says_goodbye(index) {
                return;
            }
            let Entry { link, io } = &mut self.links[index as usize];
            link.finish = Finish::FinSent;
            io.shutdown();
            if link.eof {
                return self.end(index, None);
            }
        }
        self.go_on(index);
    }

    /// Goes on with the link's input, if that is wanted again.
    fn go_on(&mut self, index: u32) {
        let entry = &mut self.links[index as usize];
        let link = &mut entry.link;
        if link.holds_input() || link.eof {
            if !link.resumes {
                link.resumes = true;
                self.resumed_next.push_back(index);
            }
        } else if link.takes_input() {
            self.driver.receive(entry, index);
        }
    }

    /// Its turn has come: the oldest octets that are held, or the peer's end.
    fn resume_now(&mut self, index: u32) -> Option<Completion> {
        let link = &mut self.links.get_mut(index as usize)?.link;
        if !std::mem::replace(&mut link.resumes, false) || link.ended {
            return None;
        }
        if link.paused || !(link.is_flushed() || link.is_client) {
            // It comes again when that is over.
            return None;
        }
        if let Some(held) = link.take_held() {
            // What follows waits for the next turn, even if it is only to be received.
            link.resumes = true;
            self.resumed_next.push_back(index);
            if link.finish != Finish::No {
                return None;
            }
            self.current = Current::Held(held);
            return Some(Completion::Received(self.id(index)));
        }
        if link.eof {
            return self.report_eof(index);
        }
        let entry = &mut self.links[index as usize];
        if entry.link.takes_input() {
            self.driver.receive(entry, index);
        }
        None
    }

    #[cold]
    fn report_blocked(&mut self, index: u32) {
        let link = &mut self.links[index as usize].link;
        if !link.blocked {
            link.blocked = true;
            // Even if the last time was not reported to be over: its driver may have seen octets in between.
            link.blocked_reported = false;
            self.blocked.push(index);
        }
    }

    /// Says whether octets wait now, if that has changed since it was said. The slot may be somebody else's by now.
    #[cold]
    fn report_change(&mut self, index: u32) -> Option<Completion> {
        let link = &mut self.links.get_mut(index as usize)?.link;
        if link.ended || link.blocked == link.blocked_reported {
            return None;
        }
        link.blocked_reported = link.blocked;
        let is_blocked = link.blocked;
        let conn = self.id(index);
        Some(if is_blocked { Completion::Blocked(conn) } else { Completion::Unblocked(conn) })
    }

    /// Octets were queued that nothing will send by itself.
    #[cold]
    fn wait_for_room(&mut self, index: u32) {
        let entry = &mut self.links[index as usize];
        if entry.link.in_flight == 0 && !entry.link.flushes {
            self.driver.want_writable(entry, index);
        }
        self.report_blocked(index);
    }

    /// From here on every call that names the connection does nothing.
    fn end(&mut self, index: u32, error: Option<io::Error>) {
        if self.links[index as usize].link.ended {
            return;
        }
        self.end_handshake(index);
        let entry = &mut self.links[index as usize];
        entry.link.end();
        if let Some(error) = error {
            self.errors.insert(index, error);
        }
        if self.driver.end(entry, index) {
            self.ended.push_back(index);
        }
    }

    fn report_end(&mut self, index: u32) -> Completion {
        let conn = self.id(index);
        let entry = self.links.remove(index as usize);
        drop(entry.io);
        self.driver.closed();
        Completion::Closed(conn, self.errors.remove(&index))
    }

    #[inline]
    fn release_current(&mut self) {
        match std::mem::replace(&mut self.current, Current::Nothing) {
            Current::Buffer => self.driver.release(),
            Current::Opened { .. } | Current::Kept(_) => {
                debug_assert!(false, "the last turn's completions were not all taken");
                self.driver.release();
            }
            Current::Nothing | Current::Held(_) => {}
        }
    }

    /// Queues what the socket did not take of replies, after `done` octets.
    #[cold]
    fn queue_replies(&mut self, index: u32, replies: &mut Replies, was_clear: bool, done: usize) {
        let Self { links, driver, meter, current, .. } = self;
        let link = &mut links[index as usize].link;
        let buffer = current.octets(driver);
        link.with_queue(meter, |queue| SendQueue::push_replies(queue, buffer, replies, done));
        if was_clear && done == 0 {
            // There may be too many pieces for one call, and room for them.
            self.flush(index);
        }
        if !self.links[index as usize].link.is_flushed() {
            self.wait_for_room(index);
        }
    }
}

impl<D: Driver> Backend for Transport<D> {
    fn waker(&self) -> Arc<dyn Wake> {
        self.driver.waker()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn clock(&self) -> Instant {
        self.driver.clock()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.release_current();
        self.resumed.append(&mut self.resumed_next);
        self.flush_left = FLUSH_TURN_LEN;
        let has_work = !self.resumed.is_empty()
            || !self.to_flush.is_empty()
            || !self.blocked.is_empty()
            || !self.ended.is_empty();
        self.driver.wait(&mut self.links, if has_work { Some(Duration::ZERO) } else { timeout })?;
        self.now = self.driver.clock();
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        match std::mem::replace(&mut self.current, Current::Nothing) {
            Current::Buffer => self.driver.release(),
            Current::Opened { .. } | Current::Kept(_) => {
                let completion = self.open_on();
                if completion.is_some() {
                    return completion;
                }
            }
            Current::Nothing | Current::Held(_) => {}
        }
        loop {
            if let Some(index) = self.ended.pop_front() {
                return Some(self.report_end(index));
            }
            if let Some(index) = self.blocked.pop() {
                if let Some(completion) = self.report_change(index) {
                    return Some(completion);
                }
                continue;
            }
            let completion = match self.resumed.pop_front() {
                Some(index) => self.resume_now(index),
                None => match self.driver.next(&mut self.links) {
                    Some(event) => self.take(event),
                    None if self.flush_left > 0 => {
                        let index = self.to_flush.pop_front()?;
                        if let Some(entry) = self.links.get_mut(index as usize)
                            && std::mem::replace(&mut entry.link.flushes, false)
                            && !entry.link.ended
                        {
                            self.flush(index);
                        }
                        None
                    }
                    None => return None,
                },
            };
            if completion.is_some() {
                return completion;
            }
        }
    }

    #[inline]
    fn received(&mut self) -> &mut [u8] {
        self.current.octets(&mut self.driver)
    }

    #[inline]
    fn reply(&mut self, conn: ConnId, replies: &mut Replies) {
        let Self { links, driver, current, .. } = self;
        let entry = &mut links[conn.index as usize];
        if replies.is_empty() || entry.link.ended {
            return;
        }
        if entry.link.tls.is_some() {
            return self.reply_sealed(conn.index, replies);
        }
        let is_clear = entry.link.is_clear();
        let mut done = 0;
        if is_clear {
            if matches!(current, Current::Buffer) && driver.submit_reply(entry, conn.index, replies) {
                entry.link.in_flight = replies.range().len() as u32;
                *current = Current::Nothing;
                return;
            }
            match sent(send_replies(&mut entry.io, current.octets(driver), replies)) {
                Ok(len) if replies.is_in_place() && len == replies.range().len() => return,
                Ok(len) => done = len,
                Err(error) => return self.end(conn.index, Some(error)),
            }
        }
        self.queue_replies(conn.index, replies, is_clear, done);
    }

    #[inline]
    fn hold(&mut self, conn: ConnId, from: usize) {
        let Self { links, driver, meter, current, resumed_next, .. } = self;
        let link = &mut links[conn.index as usize].link;
        if link.ended {
            return;
        }
        let held = current.octets(driver)[from..].to_vec();
        link.hold(held, meter, true);
        if !link.resumes {
            link.resumes = true;
            resumed_next.push_back(conn.index);
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        let Self { links, driver, meter, .. } = self;
        let entry = &mut links[conn.index as usize];
        debug_assert_eq!(entry.link.generation, conn.generation, "a connection is used after it was closed");
        if entry.link.ended {
            return;
        }
        if entry.link.tls.is_some() {
            return self.send_chunk_sealed(conn.index, chunk);
        }
        let (mut chunk, mut done) = (chunk, 0);
        if entry.link.is_clear() {
            let len = chunk.octets().len();
            chunk = match driver.submit(entry, conn.index, chunk) {
                None => {
                    entry.link.in_flight = len as u32;
                    return;
                }
                Some(chunk) => chunk,
            };
            match sent(entry.io.send(&[IoSlice::new(chunk.octets())])) {
                Ok(len) if len == chunk.octets().len() => return,
                Ok(len) => done = len,
                Err(error) => return self.end(conn.index, Some(error)),
            }
        }
        entry.link.with_queue(meter, |queue| queue.get_or_insert_default().push(chunk, done));
        self.wait_for_room(conn.index);
    }

    fn queued(&self, conn: ConnId) -> usize {
        self.links[conn.index as usize].link.queued()
    }

    fn held_bytes(&self, conn: ConnId) -> usize {
        self.links[conn.index as usize].link.held_bytes()
    }

    fn is_secure(&self, conn: ConnId) -> bool {
        self.links[conn.index as usize].link.tls.is_some()
    }

    fn is_blocked(&self, conn: ConnId) -> bool {
        self.links[conn.index as usize].link.blocked
    }

    fn has_taken(&mut self, conn: ConnId) -> bool {
        std::mem::take(&mut self.links[conn.index as usize].link.has_taken)
    }

    fn is_quiet(&self, conn: ConnId) -> bool {
        let Entry { link, io } = &self.links[conn.index as usize];
        link.ended || link.eof || !(link.holds_input() || link.resumes || io.has_input())
    }

    fn drop_oldest(&mut self, conn: ConnId, target: usize) -> u32 {
        // What is in flight or sealed is not in the queue: it counts as begun.
        let link = &mut self.links[conn.index as usize].link;
        if link.ended || link.is_flushed() {
            return 0;
        }
        let target = target.saturating_sub(link.sealed_left());
        let drop_oldest =
            |queue: &mut Option<Box<SendQueue>>| queue.as_mut().map_or(0, |queue| queue.drop_oldest(target));
        let dropped = link.with_queue(&self.meter, drop_oldest);
        if link.is_clear() {
            self.flushed(conn.index);
        }
        dropped
    }

    fn pause(&mut self, conn: ConnId) {
        if let Some(entry) = self.live(conn)
            && !std::mem::replace(&mut entry.link.paused, true)
        {
            let Self { links, driver, .. } = self;
            driver.stop_receiving(&mut links[conn.index as usize], conn.index);
        }
    }

    fn resume(&mut self, conn: ConnId) {
        let entry = self.links.get_mut(conn.index as usize);
        if let Some(entry) = entry.filter(|entry| entry.link.generation == conn.generation)
            && std::mem::replace(&mut entry.link.paused, false)
            && !entry.link.ended
        {
            self.go_on(conn.index);
        }
    }

    fn finish(&mut self, conn: ConnId) {
        let Some(entry) = self.live(conn) else { return };
        let link = &mut entry.link;
        if link.finish == Finish::No {
            link.finish = Finish::Asked;
            link.drop_held();
            // Its rest is read and dropped.
            link.paused = false;
            if link.is_clear() {
                self.flushed(conn.index);
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(entry) = self.live(conn) {
            if entry.link.tls.is_some() && entry.link.is_flushed() {
                self.says_goodbye(conn.index);
            }
            self.end(conn.index, None);
        }
    }

    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId> {
        let io = self.driver.connect(address, source)?;
        self.insert(io, true)
    }

    fn stop_accepting(&mut self) {
        self.driver.stop_accepting();
    }
}

impl Current {
    #[inline]
    fn octets<'a, D: Driver>(&'a mut self, driver: &'a mut D) -> &'a mut [u8] {
        match self {
            Self::Nothing => &mut [],
            Self::Buffer => driver.buffer(),
            Self::Held(held) | Self::Kept(held) => held,
            Self::Opened { start, end } => &mut driver.buffer()[*start as usize..*end as usize],
        }
    }
}

/// Sends replies before which nothing waits. Returns how many octets were taken: none if they are in too many pieces.
#[inline]
fn send_replies(io: &mut impl Io, buffer: &[u8], replies: &Replies) -> io::Result<usize> {
    if replies.is_in_place() {
        return io.send(&[IoSlice::new(&buffer[replies.range()])]);
    }
    if replies.owned_count() >= PIECES_MAX / 2 {
        return Ok(0);
    }
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(replies.pieces(buffer)) {
        *slice = IoSlice::new(piece);
        count += 1;
    }
    io.send(&slices[..count])
}
