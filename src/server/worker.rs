//! The loop of one core. A turn has a fixed order: inbox, wait, completions, deadlines, outbox, drain.
//!
//! A worker shares nothing on the echo path: it has its own listeners, connections, timers and counters.
//! Start at [`Worker::turn`].

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::app::Context;
use super::deadlines::{Deadlines, Ticks};
use super::hub::{Hub, Policy};
use super::inbox::{Inbox, Mail};
use super::metrics::Counters;
use super::session::{Awaits, Session, Step};
use crate::net::{Backend, Completion, ConnId};
use crate::proto::{CloseCode, Codecs, Compressors, Replies};

/// How often a drain goes on with its next connections.
const DRAIN_STEP: Duration = Duration::from_millis(10);
/// What connections beyond the limit get.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n\
    Content-Length: 66\r\n\r\nresound: this worker has as many connections as --connections-max\n";
/// The kernel's limits are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Worker<B> {
    index: usize,
    shared: Arc<Shared>,
    backend: B,
    /// By connection index.
    sessions: Vec<Option<(ConnId, Session)>>,
    session_count: usize,
    hub: Hub,
    deadlines: Deadlines,
    timeouts: Timeouts,
    counters: Arc<Counters>,
    drain: Option<Drain>,
    logged: Option<Instant>,
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
    close: Ticks,
}

struct Drain {
    start: Instant,
    /// Connections with an index below have been told.
    told: usize,
}

impl<B: Backend> Worker<B> {
    pub(crate) fn new(index: usize, shared: Arc<Shared>, backend: B) -> Self {
        let config = &shared.config;
        let counters = shared.counters[index].clone();
        shared.inboxes[index].set_waker(backend.waker());
        let policy = Policy {
            slow_consumer: config.slow_consumer,
            send_queue_bytes_max: config.send_queue_bytes_max(),
        };
        let inboxes = shared.inboxes.clone();
        let compressors = Compressors::new(config.deflate_settings());
        let ms = |ms: u32| Ticks::from(Duration::from_millis(ms.into()));
        Self {
            index,
            hub: Hub::new(index, shared.directory.clone(), inboxes, counters.clone(), policy, compressors),
            sessions: Vec::new(),
            session_count: 0,
            deadlines: Deadlines::new(backend.now()),
            timeouts: Timeouts {
                handshake: ms(config.handshake_timeout_ms),
                half_idle: config.idle_timeout().map(|timeout| Ticks::from(timeout / 2)),
                close: ms(config.close_timeout_ms),
            },
            counters,
            drain: None,
            logged: None,
            replies: Replies::default(),
            codecs: Codecs::new(config.deflate_settings()),
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
        self.meet_deadlines();
        self.flush_hub();
        Ok(!self.drained())
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    fn inbox(&self) -> &Inbox {
        &self.shared.inboxes[self.index]
    }

    fn read_inbox(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.inbox().take(&mut mail);
        for mail in mail.drain(..) {
            let slow = std::mem::take(self.hub.receive(&mut self.backend, mail));
            self.close_slow(slow);
        }
        self.mail = mail;
        if self.drain.is_none() && self.inbox().is_stopped() {
            self.backend.stop_accepting();
            self.drain = Some(Drain { start: self.backend.now(), told: 0 });
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let timeout = if self.drain.is_some() {
            Some(DRAIN_STEP)
        } else if self.inbox().park() {
            self.deadlines.timeout(self.backend.now())
        } else {
            Some(Duration::ZERO)
        };
        let result = self.backend.wait(timeout);
        self.inbox().unpark();
        self.deadlines.set_now(self.backend.now());
        result
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Received(conn) => self.received(conn),
            Completion::Accepted(conn) => self.accepted(conn),
            Completion::Eof(conn) => {
                // A publisher that has just half-closed is owed its own message too.
                self.flush_hub();
                self.finish(conn);
            }
            Completion::Closed(conn, error) => self.closed(conn, error),
            Completion::AcceptFailed(error) => self.accept_failed(error),
            Completion::ReceiveStarved(_) => self.counters.receive_starved_total.add(1),
            Completion::Connected(_) | Completion::Blocked(_) | Completion::Woken => {}
        }
    }

    #[inline]
    fn received(&mut self, conn: ConnId) {
        let (_, session) =
            self.sessions[conn.index as usize].as_mut().expect("it was accepted and is not closed");
        let buffer = self.backend.received();
        self.counters.received_bytes_total.add(buffer.len() as u64);
        let mut context = Context { conn, hub: &mut self.hub, counters: &self.counters };
        let rules = &self.shared.rules;
        let step = session.received(buffer, rules, &mut context, &mut self.codecs, &mut self.replies);
        if step == Step::Finish {
            // What it published before its Close is owed to it too, and goes before our Close.
            self.flush_hub();
        }
        self.backend.reply(conn, &mut self.replies);
        match step {
            Step::Wait => {}
            Step::Active => self.set_deadline(conn),
            Step::Finish => self.finish(conn),
        }
        if self.hub.is_full() {
            self.flush_hub();
        }
    }

    #[inline]
    fn set_deadline(&mut self, conn: ConnId) {
        let Some((_, session)) = &self.sessions[conn.index as usize] else { return };
        let after = match session.awaits() {
            Awaits::Message => self.timeouts.half_idle,
            Awaits::Request => Some(self.timeouts.handshake),
            Awaits::End => Some(self.timeouts.close),
            Awaits::Nothing => None,
        };
        self.deadlines.set(conn.index, after);
    }

    fn accepted(&mut self, conn: ConnId) {
        self.counters.accepted_total.add(1);
        let index = conn.index as usize;
        if index >= self.sessions.len() {
            self.sessions.resize_with(index + 1, || None);
        }
        debug_assert!(self.sessions[index].is_none(), "a slot is used again only after it was closed");
        let is_full = self.session_count >= self.shared.config.connections_max as usize;
        let session = if is_full { Session::finished() } else { Session::new(self.shared.rules.mode) };
        self.sessions[index] = Some((conn, session));
        self.session_count += 1;
        self.set_deadline(conn);
        if is_full {
            self.counters.refused_total.add(1);
            self.backend.send(conn, FULL.to_vec().into());
            self.backend.finish(conn);
        }
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
        self.deadlines.set(conn.index, None);
        self.counters.closed_total.add(1);
        if let Some(error) = error {
            self.counters.transport_errors_total.add(1);
            tracing::debug!(conn = conn.index, %error, "a connection broke");
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
        self.deadlines.sweep(&mut due);
        for index in due.drain(..) {
            if let Some((conn, session)) = &mut self.sessions[index as usize] {
                let (conn, awaits) = (*conn, session.awaits());
                match awaits {
                    Awaits::Message if session.pinged => {
                        self.counters.idle_timeouts_total.add(1);
                        self.close(conn, CloseCode::GOING_AWAY, "idle");
                    }
                    Awaits::Message => {
                        let frame = session.ping();
                        self.backend.send(conn, frame.into());
                        self.set_deadline(conn);
                    }
                    Awaits::Request => {
                        self.counters.handshake_timeouts_total.add(1);
                        self.backend.close(conn);
                    }
                    Awaits::End => {
                        self.counters.close_timeouts_total.add(1);
                        self.backend.close(conn);
                    }
                    Awaits::Nothing => {}
                }
            }
        }
        self.due = due;
    }

    #[inline]
    fn flush_hub(&mut self) {
        let slow = self.hub.flush(&mut self.backend);
        if !slow.is_empty() {
            let slow = std::mem::take(slow);
            self.close_slow(slow);
        }
    }

    fn close_slow(&mut self, slow: Vec<ConnId>) {
        for conn in slow {
            // A member of several batches is named by each of them.
            let is_open = |session: &Session| session.awaits() == Awaits::Message;
            if self.sessions[conn.index as usize]
                .as_ref()
                .is_some_and(|(id, session)| *id == conn && is_open(session))
            {
                self.counters.slow_consumer_closed_total.add(1);
                self.close(conn, CloseCode::TRY_AGAIN_LATER, "too slow for this room");
            }
        }
    }

    /// Tells the next connections that the server goes; whether there are none left.
    fn drained(&mut self) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        let elapsed = self.backend.now().duration_since(drain.start).as_millis();
        let total = self.sessions.len();
        let drain_ms = u128::from(self.shared.config.drain_ms);
        let target = if elapsed >= drain_ms { total } else { (total as u128 * elapsed / drain_ms) as usize };
        let told = drain.told;
        drain.told = told.max(target);
        for index in told..target {
            if let Some((conn, session)) = &self.sessions[index] {
                let conn = *conn;
                if session.awaits() != Awaits::End {
                    self.close(conn, CloseCode::GOING_AWAY, "the server goes down");
                }
            }
        }
        self.session_count == 0
    }
}
