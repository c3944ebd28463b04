//! TLS of links: what is received is opened before anybody sees it, and what leaves the queue is sealed.
//!
//! Octets are opened where they were received, a range of plaintext at a time. They are sealed when they are about to
//! go to the socket, at most [`SEAL_LEN_MAX`] at once, and what it does not take of them goes before everything that
//! is sealed later: records have an order. So what waits is plaintext but for one piece, and messages can be dropped
//! from it.
//!
//! Start at [`Transport::open`].

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Current, Driver, Entry, Io, Transport};
use crate::net::link::{Finish, Secure};
use crate::net::queue::{Chunk, FLUSH_LEN_MAX, SLICES_MAX};
use crate::net::tls::{Opened, TlsError, TlsErrorKind, TlsServer};
use crate::net::{Backend as _, Completion, ConnId, TlsEvent, sent};
use crate::replies::Replies;

/// The most plaintext that is sealed at once: what a socket does not take of it is kept, and cannot be dropped.
const SEAL_LEN_MAX: usize = 64 << 10;
/// When there are too many handshakes, one that is older than this is closed for a new one.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

/// What all TLS links of a transport share.
pub(super) struct Shared {
    /// By listener.
    servers: Vec<Option<TlsServer>>,
    /// How many handshakes may be in progress, and how many are.
    handshakes_max: usize,
    handshakes: usize,
    /// Their connections, in order; some are done already.
    begun: VecDeque<(Instant, ConnId)>,
    /// Sealed octets on their way to a socket. Kept for its memory.
    scratch: Vec<u8>,
    /// What TLS itself has to send. The same.
    control: Vec<u8>,
    /// Whose octets stand in the driver's buffer, and from where on they are to be opened.
    index: u32,
    at: usize,
    /// The octets around [`Current::Opened`] that nobody needs any more.
    room: Range<usize>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            handshakes_max: usize::MAX,
            handshakes: 0,
            begun: VecDeque::new(),
            scratch: Vec::new(),
            control: Vec::new(),
            index: 0,
            at: 0,
            room: 0..0,
        }
    }
}

/// What became of a flush.
enum Step {
    All,
    Blocked,
    Share,
    /// What waits does so for the end of the handshake.
    Shaking,
}

impl<D: Driver> Transport<D> {
    /// Has connections of the listeners that have a server speak TLS. No more than `handshakes_max` handshakes are in
    /// progress at the same time.
    #[must_use]
    pub fn with_tls(mut self, servers: Vec<Option<TlsServer>>, handshakes_max: usize) -> Self {
        self.secure.servers = servers;
        self.secure.handshakes_max = handshakes_max;
        self
    }

    /// A connection was accepted.
    pub(super) fn accepted(&mut self, io: D::Io, listener: usize) -> Completion {
        let secure = match self.secure.servers.get(listener) {
            Some(Some(server)) => Some(Secure::new(server, &self.meter)),
            _ => None,
        };
        if secure.is_some() && !self.makes_room() {
            drop(io);
            self.driver.closed();
            return Completion::HandshakeRefused;
        }
        match self.insert(io, false) {
            Ok(conn) => {
                if secure.is_some() {
                    self.links[conn.index as usize].link.tls = secure;
                    self.secure.handshakes += 1;
                    self.secure.begun.push_back((self.now, conn));
                }
                Completion::Accepted(conn)
            }
            Err(error) => Completion::AcceptFailed(error),
        }
    }

    /// Whether there is room for one more handshake. There is if the oldest one stands still: it is closed then.
    /// So those who only connect cannot keep out those who go on.
    fn makes_room(&mut self) -> bool {
        let Self { secure, links, .. } = self;
        let shakes = |conn: &ConnId| {
            links.get(conn.index as usize).is_some_and(|entry| {
                entry.link.generation == conn.generation
                    && entry.link.tls.as_ref().is_some_and(|secure| secure.shakes)
            })
        };
        if secure.begun.len() > secure.handshakes_max.saturating_mul(2).max(64) {
            secure.begun.retain(|(_, conn)| shakes(conn));
        }
        while secure.begun.front().is_some_and(|(_, conn)| !shakes(conn)) {
            secure.begun.pop_front();
        }
        if secure.handshakes < secure.handshakes_max {
            return true;
        }
        match secure.begun.front() {
            Some(&(since, conn)) if self.now.duration_since(since) > HANDSHAKE_GRACE => {
                let reason = "too many TLS handshakes are in progress";
                self.end(conn.index, Some(io::Error::new(io::ErrorKind::QuotaExceeded, reason)));
                true
            }
            _ => false,
        }
    }

    /// The link's handshake is over, if it was not.
    pub(super) fn end_handshake(&mut self, index: u32) {
        if let Some(secure) = &mut self.links[index as usize].link.tls
            && mem::replace(&mut secure.shakes, false)
        {
            self.secure.handshakes -= 1;
        }
    }

    /// Octets of a TLS link are in the driver's buffer: those from `at` on are opened, until something is to be told.
    pub(super) fn open(&mut self, index: u32, mut at: usize) -> Option<Completion> {
        let told = loop {
            let Self { links, driver, secure: shared, .. } = self;
            let Some(secure) = &mut links[index as usize].link.tls else { break None };
            let opened = secure.tls.open(driver.buffer(), &mut at, &mut shared.control);
            if !shared.control.is_empty() {
                self.send_control(index);
            }
            match opened {
                Ok(Opened::Plaintext { plaintext, room }) => {
                    if self.wants(index) {
                        self.current =
                            Current::Opened { start: plaintext.start as u32, end: plaintext.end as u32 };
                        self.secure.room = room;
                        return Some(self.more_to_open(index, at));
                    }
                    self.hold_opened(index, |buffer| buffer[plaintext].to_vec());
                }
                Ok(Opened::Kept { mut octets, plaintext }) => {
                    octets.truncate(plaintext.end);
                    octets.drain(..plaintext.start);
                    if self.wants(index) {
                        self.current = Current::Kept(octets);
                        return Some(self.more_to_open(index, at));
                    }
                    self.hold_opened(index, |_| octets);
                }
                Ok(Opened::Handshaken(handshaken)) => {
                    self.end_handshake(index);
                    self.count(index);
                    self.flush_waiting(index);
                    self.current = Current::Opened { start: 0, end: 0 };
                    self.more_to_open(index, at);
                    return Some(Completion::Tls(self.id(index), Box::new(TlsEvent::Handshaken(handshaken))));
                }
                // What comes behind it does not count.
                Ok(Opened::PeerClosed) => break Some(Ok(())),
                Ok(Opened::Drained) => break None,
                Err(error) => break Some(Err(error)),
            }
        };
        self.driver.release();
        self.count(index);
        match told? {
            Ok(()) => self.eof(index),
            Err(error) => self.tls_failed(index, error),
        }
    }

    /// Goes on behind the range of plaintext that was told last.
    pub(super) fn open_on(&mut self) -> Option<Completion> {
        self.open(self.secure.index, self.secure.at)
    }

    fn more_to_open(&mut self, index: u32, at: usize) -> Completion {
        self.secure.index = index;
        self.secure.at = at;
        Completion::Received(self.id(index))
    }

    /// Whether plaintext is wanted now.
    fn wants(&self, index: u32) -> bool {
        let link = &self.links[index as usize].link;
        link.takes_input() && link.finish == Finish::No
    }

    /// Keeps plaintext that is not wanted yet; or drops it, if it never will be.
    #[cold]
    fn hold_opened(&mut self, index: u32, octets: impl FnOnce(&[u8]) -> Vec<u8>) {
        let Self { links, driver, meter, .. } = self;
        let entry = &mut links[index as usize];
        if entry.link.finish == Finish::No && !entry.link.ended {
            entry.link.hold(octets(driver.buffer()), meter, false);
            driver.stop_receiving(entry, index);
        }
    }

    /// Has the meter know what the link takes.
    fn count(&mut self, index: u32) {
        if let Some(secure) = &mut self.links[index as usize].link.tls {
            secure.recount();
        }
    }

    /// What was queued while the handshake was in progress.
    fn flush_waiting(&mut self, index: u32) {
        let link = &self.links[index as usize].link;
        if !link.ended && !link.is_flushed() {
            self.flush(index);
        }
    }

    /// The peer has come to its end, by close_notify or, if that did not come, by FIN.
    fn eof(&mut self, index: u32) -> Option<Completion> {
        let link = &mut self.links[index as usize].link;
        if link.ended || mem::replace(&mut link.eof, true) || !link.takes_input() {
            return None;
        }
        self.report_eof(index)
    }

    /// The peer's FIN came.
    pub(super) fn tls_eof(&mut self, index: u32) -> Option<Completion> {
        let link = &mut self.links[index as usize].link;
        let secure = link.tls.as_ref().filter(|_| !link.eof)?;
        match secure.tls.eof() {
            Ok(()) => self.eof(index),
            Err(error) if secure.tls.is_handshaking() => {
                link.eof = true;
                self.tls_failed(index, error)
            }
            Err(_) => {
                link.eof = true;
                if link.takes_input() {
                    // It is told next.
                    link.resumes = true;
                    self.resumed.push_back(index);
                }
                Some(Completion::Tls(self.id(index), Box::new(TlsEvent::Truncated)))
            }
        }
    }

    /// TLS cannot go on. Its alert is on its way; FIN follows.
    fn tls_failed(&mut self, index: u32, error: TlsError) -> Option<Completion> {
        let Self { links, meter, .. } = self;
        let link = &mut links[index as usize].link;
        if link.ended {
            return None;
        }
        let in_handshake = link.tls.as_ref().is_some_and(|secure| secure.shakes);
        if !link.is_flushed() {
            // It cannot be sealed any more.
            link.with_queue(meter, |queue| *queue = None);
        }
        self.end_handshake(index);
        let conn = self.id(index);
        if error.kind() == TlsErrorKind::PlainHttp {
            self.links[index as usize].link.tls = None;
        } else {
            self.finish(conn);
        }
        Some(Completion::Tls(conn, Box::new(TlsEvent::Failed { error, in_handshake })))
    }

    /// Sends what TLS itself has to say.
    fn send_control(&mut self, index: u32) {
        let mut control = mem::take(&mut self.secure.control);
        self.send_sealed(index, &control);
        control.clear();
        self.secure.control = control;
    }

    /// Sends octets that are sealed already, behind those that were sealed before.
    fn send_sealed(&mut self, index: u32, octets: &[u8]) {
        let Self { links, meter, .. } = self;
        let Entry { link, io } = &mut links[index as usize];
        if link.ended {
            return;
        }
        let mut done = 0;
        if link.sealed().is_empty() {
            match sent(io.send(&[IoSlice::new(octets)])) {
                Ok(len) => done = len,
                Err(error) => return self.end(index, Some(error)),
            }
        }
        if done < octets.len() {
            link.push_sealed(&octets[done..], meter);
            self.wait_for_room(index);
        }
    }

    /// Sends what was sealed to `scratch`.
    fn send_scratch(&mut self, index: u32, result: Result<(), TlsError>) {
        match result {
            Ok(()) => {
                let scratch = mem::take(&mut self.secure.scratch);
                self.send_sealed(index, &scratch);
                self.secure.scratch = scratch;
            }
            Err(error) => self.not_sealed(index, error),
        }
    }

    /// Keys are used up, or a failure is about to be told: then there is nobody to send to.
    #[cold]
    fn not_sealed(&mut self, index: u32, error: TlsError) {
        let Self { links, secure: shared, .. } = self;
        if error.kind() == TlsErrorKind::KeysExhausted
            && let Some(secure) = &mut links[index as usize].link.tls
        {
            secure.tls.close(&mut shared.control);
            self.send_control(index);
            self.end(index, Some(io::Error::other(error)));
        }
    }

    /// [`Backend::reply`](crate::net::Backend::reply) on a TLS link that has not ended.
    pub(super) fn reply_sealed(&mut self, index: u32, replies: &mut Replies) {
        let Self { links, driver, secure: shared, current, .. } = self;
        let Entry { link, io } = &mut links[index as usize];
        let is_clear = link.is_clear();
        let owned = replies.owned.iter().map(|owned| owned.octets.len() - owned.start).sum::<usize>();
        let is_short =
            replies.range().len() + owned <= SEAL_LEN_MAX && 2 * replies.owned_count() + 2 <= SLICES_MAX;
        let Some(secure) = link.tls.as_mut().filter(|_| is_clear && is_short) else {
            return self.queue_replies(index, replies, is_clear, 0);
        };
        if let Current::Opened { start, .. } = *current
            && replies.is_in_place()
        {
            let (range, start) = (replies.range(), start as usize);
            let (plaintext, room) = (start + range.start..start + range.end, shared.room.clone());
            let buffer = driver.buffer();
            if let Some(sealed) = secure.tls.seal_in_place(buffer, plaintext, room) {
                *current = Current::Opened { start: 0, end: 0 };
                let octets = &buffer[sealed];
                let done = match sent(io.send(&[IoSlice::new(octets)])) {
                    Ok(len) if len == octets.len() => return,
                    Ok(len) => len,
                    Err(error) => return self.end(index, Some(error)),
                };
                link.push_sealed(&octets[done..], &self.meter);
                return self.wait_for_room(index);
            }
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(replies.pieces(current.octets(driver))) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        shared.scratch.clear();
        let result = secure.tls.seal(&slices[..count], &mut shared.scratch);
        self.send_scratch(index, result);
    }

    /// [`Backend::send`](crate::net::Backend::send) on a TLS link that has not ended.
    pub(super) fn send_chunk_sealed(&mut self, index: u32, chunk: Chunk) {
        let Self { links, meter, secure: shared, .. } = self;
        let link = &mut links[index as usize].link;
        let (is_clear, is_shaking) = (link.is_clear(), link.is_shaking());
        if let Some(secure) = &mut link.tls
            && is_clear
            && !is_shaking
            && chunk.octets().len() <= SEAL_LEN_MAX
        {
            shared.scratch.clear();
            let result = secure.tls.seal(&[chunk.octets()], &mut shared.scratch);
            return self.send_scratch(index, result);
        }
        link.with_queue(meter, |queue| queue.get_or_insert_default().push(chunk, 0));
        if is_shaking {
            return;
        }
        if is_clear {
            self.flush(index);
        }
        if !self.links[index as usize].link.is_flushed() {
            self.wait_for_room(index);
        }
    }

    /// [`Transport::flush`] on a TLS link.
    pub(super) fn flush_sealed(&mut self, index: u32) {
        let mut taken = 0;
        let step = loop {
            match self.flush_some(index, &mut taken) {
                Ok(None) => {}
                Ok(Some(step)) => break Ok(step),
                Err(error) => break Err(error),
            }
        };
        let Self { links, driver, flush_left, .. } = self;
        let entry = &mut links[index as usize];
        if entry.link.ended {
            return;
        }
        *flush_left = flush_left.saturating_sub(taken);
        entry.link.has_taken |= taken > 0;
        match step {
            Ok(Step::All) => self.flushed(index),
            Ok(Step::Blocked) => driver.want_writable(entry, index),
            Ok(Step::Share) => self.flush_later(index),
            Ok(Step::Shaking) => {}
            Err(error) => self.end(index, Some(error)),
        }
    }

    /// Sends what is sealed, or seals what is next. `None`: there may be more to do.
    fn flush_some(&mut self, index: u32, taken: &mut usize) -> io::Result<Option<Step>> {
        let Self { links, meter, secure: shared, .. } = self;
        let Entry { link, io } = &mut links[index as usize];
        let sealed = link.sealed();
        if !sealed.is_empty() {
            return match io.send(&[IoSlice::new(sealed)]) {
                Ok(0) => Ok(Some(Step::Blocked)),
                Ok(len) => {
                    *taken += len;
                    link.advance_sealed(len);
                    Ok(None)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(Step::Blocked)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                Err(error) => Err(error),
            };
        }
        if link.is_flushed() {
            return Ok(Some(Step::All));
        }
        if link.is_shaking() {
            return Ok(Some(Step::Shaking));
        }
        if *taken >= FLUSH_LEN_MAX {
            return Ok(Some(Step::Share));
        }
        let Some(mut secure) = link.tls.take() else { return Ok(Some(Step::Blocked)) };
        shared.scratch.clear();
        let result = link.with_queue(meter, |queue| {
            let Some(waiting) = queue else { return Ok(()) };
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut count, mut len) = (0, 0);
            for (slice, octets) in slices.iter_mut().zip(waiting.slices()) {
                let octets = &octets[..octets.len().min(SEAL_LEN_MAX - len)];
                *slice = IoSlice::new(octets);
                len += octets.len();
                count += 1;
                if len == SEAL_LEN_MAX {
                    break;
                }
            }
            let result = secure.tls.seal(&slices[..count], &mut shared.scratch);
            match result {
                Ok(()) => waiting.advance(len),
                Err(_) => *queue = None,
            }
            result
        });
        link.tls = Some(secure);
        if let Err(error) = result {
            self.not_sealed(index, error);
            return Ok(Some(Step::All));
        }
        let done = sent(io.send(&[IoSlice::new(&shared.scratch)]))?;
        *taken += done;
        if done < shared.scratch.len() {
            // The next pass finds out whether the socket was full.
            link.push_sealed(&shared.scratch[done..], meter);
        }
        Ok(None)
    }

    /// All that was queued is sent, and FIN is to follow. close_notify goes before it; returns whether it is sent.
    pub(super) fn says_goodbye(&mut self, index: u32) -> bool {
        let Self { links, secure: shared, .. } = self;
        let Some(secure) = &mut links[index as usize].link.tls else { return true };
        secure.tls.close(&mut shared.control);
        self.end_handshake(index);
        if !self.secure.control.is_empty() {
            self.send_control(index);
        }
        let link = &self.links[index as usize].link;
        !link.ended && link.is_flushed()
    }
}
