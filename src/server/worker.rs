//! The loop of one core. A turn has a fixed order: inbox, wait, completions, deliveries, deadlines, memory, drain.
//!
//! A worker shares nothing on the echo path: it has its own listeners, connections, timers and counters. Every part of
//! a turn is bounded, whatever peers do: what is left over goes on in the next one.
//! Start at [`Worker::turn`]. What a worker does about memory is in [`memory`].

mod memory;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::app::Context;
use super::ceiling::Pressure;
use super::date::Date;
use super::deadlines::{Deadlines, Ticks};
use super::hub::{Hub, Mail, Policy};
use super::inbox::Inbox;
use super::metrics::Counters;
use super::session::{Awaits, NO_MESSAGE, Session, Step};
use crate::memory::Meter;
use crate::net::tls::TlsErrorKind;
use crate::net::{Backend, Completion, ConnId, TlsEvent};
use crate::proto::handshake::write_answer;
use crate::proto::{CloseCode, Codecs, Compressors, Replies};

/// How often a drain goes on with its next connections.
const DRAIN_STEP: Duration = Duration::from_millis(10);
/// How long a drain waits, after its time, for peers that have always sent more.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Connections that are told something in one turn, because their time is over or the server goes.
const TOLD_MAX: usize = 256;
/// A peer is looked at this many times in a stall timeout, so that it is cut off at most a part of it too late.
const STALL_PARTS: u8 = 4;
/// A closing peer that still reads what is owed to it has its close timeout anew, this many times.
const EXTENSIONS_MAX: u8 = 12;
/// What connections beyond a limit get.
const FULL: &str = "resound: this worker has as many connections as --connections-max\n";
const SHORT: &str = "resound: memory is short, as --memory-bytes-max has it\n";
/// What plain HTTP gets where TLS is spoken.
const PLAIN: &str = "resound: this port speaks TLS: connect to it with wss:// or https://\n";
/// The most connections beyond the limit that are answered at the same time; further ones are closed at once.
const REFUSED_MAX: usize = 1000;
/// The kernel's limits, and the ceiling of memory, are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Worker<B> {
    index: usize,
    shared: Arc<Shared>,
    backend: B,
    /// By connection index.
    sessions: Vec<Option<(ConnId, Session)>>,
    session_count: usize,
    /// Of these, the ones that were refused and are not closed yet.
    refused_count: usize,
    hub: Hub,
    deadlines: Deadlines,
    timeouts: Timeouts,
    counters: Arc<Counters>,
    /// What all of this worker's connections hold.
    meter: Meter,
    pressure: Pressure,
    /// Since when memory is short.
    short_since: Option<Instant>,
    /// The tick in which memory was looked at last, and what was held then.
    settled_at: u32,
    settled_bytes: usize,
    /// Connections that are not read from because memory is short.
    paused: Vec<ConnId>,
    drain: Option<Drain>,
    logged: Option<Instant>,
    date: Date,
    /// Kept from one use to the next for their memory.
    replies: Replies,
    codecs: Codecs,
    mail: Vec<Mail>,
    due: Vec<u32>,
}

struct Timeouts {
    handshake: Ticks,
    /// After half of the idle timeout a Ping goes out, after the other half the connection is closed.
    half_idle: Option<Ticks>,
    /// From the first octet of a message to its last.
    message: Option<Ticks>,
    /// A [`STALL_PARTS`]th of how long a socket may take nothing while something waits for it.
    stall_part: Option<Ticks>,
    close: Ticks,
}

struct Drain {
    /// The end of the first wait that began after the drain was asked for: until then the process may have been held
    /// up, and what arrived meanwhile is answered.
    start: Option<Instant>,
    /// Connections with an index below were looked at.
    at: usize,
    /// Those that had sent something which was not received yet, and are looked at again.
    late: Vec<ConnId>,
}

impl<B: Backend> Worker<B> {
    /// `meter` is the one that counts what waits in `backend`.
    pub(crate) fn new(index: usize, shared: Arc<Shared>, backend: B, meter: Meter) -> Self {
        let config = &shared.config;
        let counters = shared.counters[index].clone();
        shared.inboxes[index].set_waker(backend.waker());
        let policy = Policy {
            slow_consumer: config.slow_consumer,
            send_queue_bytes_max: config.send_queue_bytes_max(),
        };
        let compressors = Compressors::new(config.deflate_settings());
        let ms = |ms: u32| Ticks::from(Duration::from_millis(ms.into()));
        let optional = |time: u32| (time > 0).then(|| ms(time));
        let directory = shared.directory.clone();
        Self {
            index,
            hub: Hub::new(index, directory, counters.clone(), policy, compressors, meter.clone()),
            sessions: Vec::new(),
            session_count: 0,
            refused_count: 0,
            deadlines: Deadlines::new(backend.now()),
            timeouts: Timeouts {
                handshake: ms(config.handshake_timeout_ms),
                half_idle: config.idle_timeout().map(|timeout| Ticks::from(timeout / 2)),
                message: optional(config.message_timeout_ms),
                stall_part: optional(config.send_stall_timeout_ms.div_ceil(STALL_PARTS.into())),
                close: ms(config.close_timeout_ms),
            },
            counters,
            codecs: Codecs::with_meter(config.deflate_settings(), meter.clone()),
            meter,
            pressure: Pressure::None,
            short_since: None,
            settled_at: u32::MAX,
            settled_bytes: 0,
            paused: Vec::new(),
            drain: None,
            logged: None,
            date: Date::new(shared.wall_clock, backend.now()),
            replies: Replies::default(),
            mail: Vec::new(),
            due: Vec::new(),
            backend,
            shared,
        }
    }

    /// Serves until the drain is over.
    pub(crate) fn run(mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// One turn. Returns whether there will be another.
    pub(crate) fn turn(&mut self) -> io::Result<bool> {
        self.read_inbox();
        self.wait()?;
        while let Some(completion) = self.backend.next() {
            self.complete(completion);
        }
        self.hub.post_all();
        if self.hub.has_deliveries() {
            self.deliver();
        }
        self.meet_deadlines();
        self.mind_memory();
        Ok(!self.drained())
    }

    /// What peers make it hold, in octets.
    pub(super) fn memory_bytes(&self) -> usize {
        self.meter.used()
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    fn inbox(&self) -> &Inbox {
        &self.shared.inboxes[self.index]
    }

    fn read_inbox(&mut self) {
        if self.hub.takes_mail() {
            let mut mail = std::mem::take(&mut self.mail);
            self.inbox().take(&mut mail);
            mail.drain(..).for_each(|mail| self.hub.receive(mail));
            self.mail = mail;
        }
        if self.drain.is_none() && self.inbox().is_stopped() {
            self.backend.stop_accepting();
            self.drain = Some(Drain { start: None, at: 0, late: Vec::new() });
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        // Whoever drains knows already that it is to stop, which is what keeps others from parking.
        let may_wait = self.inbox().park() || self.drain.is_some();
        let timeout = if self.hub.has_deliveries() || !may_wait {
            Some(Duration::ZERO)
        } else {
            let drain = self.drain.as_ref().map(|_| DRAIN_STEP);
            [self.deadlines.timeout(self.backend.now()), drain].into_iter().flatten().min()
        };
        let result = self.backend.wait(timeout);
        self.inbox().unpark();
        self.deadlines.set_now(self.backend.now());
        self.date.set_now(self.backend.now());
        result
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Received(conn) => self.received(conn),
            Completion::Accepted(conn) => self.accepted(conn),
            Completion::Eof(conn) => {
                self.settle(conn);
                self.finish(conn);
            }
            Completion::Blocked(conn) => self.blocked(conn),
            Completion::Unblocked(conn) => self.unblocked(conn),
            Completion::Closed(conn, error) => self.closed(conn, error),
            Completion::AcceptFailed(error) => self.accept_failed(error),
            Completion::Tls(conn, event) => self.tls(conn, &event),
            Completion::HandshakeRefused => self.counters.tls_handshakes_refused_total.add(1),
            Completion::ReceiveStarved(_) => self.counters.receive_starved_total.add(1),
            Completion::Connected(_) | Completion::Woken => {}
        }
    }

    #[inline]
    fn received(&mut self, conn: ConnId) {
        let (_, session) =
            self.sessions[conn.index as usize].as_mut().expect("it was accepted and is not closed");
        let buffer = self.backend.received();
        let len = buffer.len();
        self.counters.received_bytes_total.add(len as u64);
        let mut context = Context { conn, hub: &mut self.hub, counters: &self.counters };
        let rules = &self.shared.rules;
        let (codecs, date) = (&mut self.codecs, &mut self.date);
        let (step, unread) = session.received(buffer, rules, &mut context, codecs, date, &mut self.replies);
        if unread > 0 {
            self.counters.receives_held_total.add(1);
            self.backend.hold(conn, len - unread);
        }
        if step == Step::Finish {
            // What it published before its Close is owed to it too, and goes before our Close.
            self.settle(conn);
        }
        self.backend.reply(conn, &mut self.replies);
        match step {
            Step::Wait => {}
            Step::Active => self.set_deadline(conn),
            Step::Partial { is_new } => self.set_message_deadline(conn, is_new),
            Step::Finish => self.finish(conn),
        }
        if self.hub.is_urgent() {
            self.hub.post_all();
            for conn in self.hub.take_crowded() {
                self.backend.pause(conn);
            }
        }
    }

    /// Delivers to a member of a room what it is owed: it is about to leave.
    fn settle(&mut self, conn: ConnId) {
        if let Some((_, session)) = &self.sessions[conn.index as usize]
            && let Some(membership) = session.membership()
        {
            self.hub.settle(&mut self.backend, membership);
        }
    }

    /// A turn's share of what was published.
    fn deliver(&mut self) {
        self.hub.deliver(&mut self.backend);
        for (worker, mail) in self.hub.outbox().drain(..) {
            let messages = mail.messages();
            if !self.shared.inboxes[worker].put(mail) {
                self.counters.inbox_dropped_total.add(messages.into());
            }
        }
        for conn in self.hub.take_relieved() {
            self.relieve(conn);
        }
        for conn in self.hub.take_slow() {
            self.close_slow(conn);
        }
    }

    /// Reads from a connection again, unless there is another reason not to.
    fn relieve(&mut self, conn: ConnId) {
        let session = self.sessions[conn.index as usize].as_ref();
        if session.is_some_and(|(id, session)| *id == conn && !session.is_paused) {
            self.backend.resume(conn);
        }
    }

    #[inline]
    fn set_deadline(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        session.message_since = NO_MESSAGE;
        let after = match session.awaits() {
            Awaits::Message => self.timeouts.half_idle,
            Awaits::Request => Some(self.timeouts.handshake),
            Awaits::End => Some(self.timeouts.close),
            Awaits::Nothing => None,
        };
        self.deadlines.set(conn.index, after);
    }

    /// A message has begun and is not complete: it has a time of its own.
    fn set_message_deadline(&mut self, conn: ConnId, is_new: bool) {
        let Some(message) = self.timeouts.message else { return self.set_deadline(conn) };
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        let now = self.deadlines.now();
        if is_new || session.message_since == NO_MESSAGE {
            session.message_since = now.min(NO_MESSAGE - 1);
        }
        let left = message.minus(now.wrapping_sub(session.message_since));
        let after = self.timeouts.half_idle.map_or(left, |half_idle| half_idle.min(left));
        self.deadlines.set(conn.index, Some(after));
    }

    /// Octets wait for a connection whose socket takes no more: from now on its time is that of a peer that stalls.
    #[cold]
    fn blocked(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        self.backend.has_taken(conn);
        if matches!(session.awaits(), Awaits::Message | Awaits::Nothing) {
            session.parts = 0;
            self.deadlines.set(conn.index, self.timeouts.stall_part);
        }
    }

    /// Nothing waits for it any more. Its silence counts from here: while something waited, nothing was read.
    #[cold]
    fn unblocked(&mut self, conn: ConnId) {
        let Some((_, session)) = &self.sessions[conn.index as usize] else { return };
        if matches!(session.awaits(), Awaits::Message | Awaits::Nothing) {
            self.set_deadline(conn);
        }
    }

    fn accepted(&mut self, conn: ConnId) {
        self.counters.accepted_total.add(1);
        let index = conn.index as usize;
        if index >= self.sessions.len() {
            self.sessions.resize_with(index + 1, || None);
        }
        debug_assert!(self.sessions[index].is_none(), "a slot is used again only after it was closed");
        let taken = self.session_count - self.refused_count;
        let refusal = match self.pressure {
            _ if taken >= self.shared.config.connections_max as usize => Some(FULL),
            Pressure::Full => Some(SHORT),
            Pressure::None | Pressure::Tight => None,
        };
        let session =
            if refusal.is_some() { Session::refused() } else { Session::new(self.shared.rules.mode) };
        let session = session.on(self.backend.is_secure(conn));
        self.sessions[index] = Some((conn, session));
        self.session_count += 1;
        self.set_deadline(conn);
        if let Some(reason) = refusal {
            self.refuse(conn, reason);
        }
        if let Some(drain) = &mut self.drain {
            drain.late.push(conn);
        }
    }

    fn refuse(&mut self, conn: ConnId, reason: &str) {
        self.counters.refused_total.add(1);
        self.refused_count += 1;
        if self.refused_count > REFUSED_MAX {
            self.counters.refused_at_once_total.add(1);
            return self.backend.close(conn);
        }
        let mut answer = Vec::new();
        write_answer(&mut answer, 503, self.date.text(), &[("Connection", "close")], reason, true);
        self.backend.send(conn, answer.into());
        self.backend.finish(conn);
    }

    /// Has the backend send what there is, and close in good order.
    fn finish(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        session.finish(&mut Context { conn, hub: &mut self.hub, counters: &self.counters });
        self.backend.finish(conn);
        self.set_deadline(conn);
    }

    /// Starts the closing handshake, or finishes where there is none to be had.
    fn close(&mut self, conn: ConnId, code: CloseCode, reason: &str) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        let mut context = Context { conn, hub: &mut self.hub, counters: &self.counters };
        match session.close(code, reason, &mut context) {
            Some(frame) => self.backend.send(conn, frame.into()),
            None => self.backend.finish(conn),
        }
        self.set_deadline(conn);
    }

    fn closed(&mut self, conn: ConnId, error: Option<io::Error>) {
        let (_, mut session) =
            self.sessions[conn.index as usize].take().expect("every connection closes once");
        session.finish(&mut Context { conn, hub: &mut self.hub, counters: &self.counters });
        self.session_count -= 1;
        self.refused_count -= usize::from(session.is_refused);
        self.deadlines.set(conn.index, None);
        self.counters.closed_total.add(1);
        if let Some(error) = error {
            if error.kind() == io::ErrorKind::QuotaExceeded {
                self.counters.tls_handshakes_refused_total.add(1);
            }
            self.counters.transport_errors_total.add(1);
            tracing::debug!(conn = conn.index, %error, "a connection broke");
        }
    }

    #[cold]
    fn tls(&mut self, conn: ConnId, event: &TlsEvent) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        let counters = &self.counters;
        match event {
            TlsEvent::Handshaken(handshaken) => {
                counters.tls_handshakes_total.add(1);
                counters.tls_resumed_total.add(handshaken.is_resumed.into());
                tracing::debug!(conn = conn.index, ?handshaken, "TLS");
                if session.handshaken() {
                    self.set_deadline(conn);
                }
            }
            TlsEvent::Failed { error, in_handshake } => {
                let counter = if *in_handshake {
                    &counters.tls_handshakes_failed_total
                } else {
                    &counters.tls_errors_total
                };
                counter.add(1);
                tracing::debug!(conn = conn.index, kind = ?error.kind(), %error, "TLS failed");
                if error.kind() == TlsErrorKind::PlainHttp {
                    let mut answer = Vec::new();
                    write_answer(&mut answer, 400, self.date.text(), &[("Connection", "close")], PLAIN, true);
                    self.backend.send(conn, answer.into());
                }
                self.finish(conn);
            }
            TlsEvent::Truncated => counters.tls_truncated_total.add(1),
        }
    }

    fn accept_failed(&mut self, error: io::Error) {
        self.counters.accept_pauses_total.add(1);
        let now = self.backend.now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_EVERY) {
            self.logged = Some(now);
            let cure = match error.raw_os_error() {
                Some(libc::EMFILE) => "raise the limit of open files (ulimit -n, LimitNOFILE)",
                Some(libc::ENFILE) => "raise fs.file-max",
                _ => "give the kernel more memory, or accept fewer connections",
            };
            let connections = self.session_count;
            tracing::warn!(worker = self.index, connections, %error, "accepting pauses; {cure}");
        }
    }

    fn meet_deadlines(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.deadlines.sweep(TOLD_MAX, &mut due);
        for index in due.drain(..) {
            if let Some((conn, session)) = &self.sessions[index as usize] {
                let (conn, awaits) = (*conn, session.awaits());
                match awaits {
                    Awaits::Message | Awaits::Nothing if self.backend.is_blocked(conn) => {
                        self.meet_stall(conn)
                    }
                    Awaits::Message => self.meet_silence(conn),
                    Awaits::Request => {
                        self.counters.handshake_timeouts_total.add(1);
                        self.backend.close(conn);
                    }
                    Awaits::End => self.meet_end(conn),
                    Awaits::Nothing => {}
                }
            }
        }
        self.due = due;
    }

    /// Something waited for a part of the stall timeout. Whoever has taken anything meanwhile is only slow.
    fn meet_stall(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        session.parts = if self.backend.has_taken(conn) { 0 } else { session.parts + 1 };
        if session.parts < STALL_PARTS {
            self.deadlines.set(conn.index, self.timeouts.stall_part);
        } else {
            self.counters.send_stalls_total.add(1);
            self.backend.close(conn);
        }
    }

    /// Nothing was received for half of the idle timeout, or a message did not come to its end.
    fn meet_silence(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        let passed = self.deadlines.now().wrapping_sub(session.message_since);
        if session.message_since != NO_MESSAGE
            && self.timeouts.message.is_some_and(|message| message.minus(passed).is_zero())
        {
            self.counters.message_timeouts_total.add(1);
            return self.fail(conn, CloseCode::POLICY_VIOLATION, "the message takes too long");
        }
        if session.is_paused {
            // It is we who do not read.
            return self.deadlines.set(conn.index, self.timeouts.half_idle);
        }
        if session.pinged {
            self.counters.idle_timeouts_total.add(1);
            return self.close(conn, CloseCode::GOING_AWAY, "idle");
        }
        if self.timeouts.half_idle.is_some() {
            let frame = session.ping();
            self.backend.send(conn, frame.into());
            let since = session.message_since;
            self.set_deadline(conn);
            if let Some((_, session)) = &mut self.sessions[conn.index as usize] {
                session.message_since = since;
            }
        }
    }

    /// The time of a closing connection is over, unless its peer still takes what is owed to it.
    fn meet_end(&mut self, conn: ConnId) {
        let Some((_, session)) = &mut self.sessions[conn.index as usize] else { return };
        let is_reading = self.backend.has_taken(conn) && self.backend.queued(conn) > 0;
        if is_reading && session.parts < EXTENSIONS_MAX {
            session.parts += 1;
            self.deadlines.set(conn.index, Some(self.timeouts.close));
        } else {
            self.counters.close_timeouts_total.add(1);
            self.backend.close(conn);
        }
    }

    /// Refuses to go on with a connection: a Close, then FIN, and nothing more is read.
    fn fail(&mut self, conn: ConnId, code: CloseCode, reason: &str) {
        // Behind a backlog the peer would not see it for long: what was not begun is not sent any more.
        self.backend.drop_oldest(conn, 0);
        self.close(conn, code, reason);
        self.finish(conn);
    }

    fn close_slow(&mut self, conn: ConnId) {
        // A member of several batches is named by each of them.
        let session = self.sessions[conn.index as usize].as_ref();
        if session.is_some_and(|(id, session)| *id == conn && session.awaits() == Awaits::Message) {
            self.counters.slow_consumer_closed_total.add(1);
            self.backend.drop_oldest(conn, 0);
            self.close(conn, CloseCode::TRY_AGAIN_LATER, "too slow for this room");
        }
    }

    /// Tells the next connections that the server goes; whether there are none left.
    fn drained(&mut self) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        let now = self.backend.now();
        let elapsed = now.duration_since(*drain.start.get_or_insert(now));
        let (total, time) = (self.sessions.len(), Duration::from_millis(self.shared.config.drain_ms.into()));
        let target = if elapsed >= time {
            total
        } else {
            (total as u128 * elapsed.as_micros() / time.as_micros()) as usize
        };
        let from = drain.at;
        drain.at = from.max(target.min(from + TOLD_MAX));
        let mut told = std::mem::take(&mut drain.late);
        let next = self.sessions[from..drain.at.min(total)].iter().flatten();
        told.extend(next.map(|(conn, _)| *conn));
        let is_patient = elapsed < time + DRAIN_GRACE;
        for conn in told {
            self.tell(conn, is_patient);
        }
        self.session_count == 0
    }

    /// Tells a connection that the server goes, once all that has arrived from it was answered.
    fn tell(&mut self, conn: ConnId, is_patient: bool) {
        let Some((_, session)) = self.sessions[conn.index as usize].as_ref().filter(|(id, _)| *id == conn)
        else {
            return;
        };
        match session.awaits() {
            Awaits::End => {}
            _ if is_patient && !self.backend.is_quiet(conn) => {
                if let Some(drain) = &mut self.drain {
                    drain.late.push(conn);
                }
            }
            _ => {
                self.settle(conn);
                self.close(conn, CloseCode::GOING_AWAY, "the server goes down");
            }
        }
    }
}
