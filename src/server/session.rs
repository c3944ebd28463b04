//! One connection's life above its transport: plain HTTP until the handshake, then messages, then the end.
//!
//! A session is fed what its connection received and leaves its replies; it does no I/O, so its worker
//! decides when and how they are sent. Start at [`Session::received`].

use super::app::{self, App, Context};
use super::date::Date;
use super::http;
use super::hub::{Encoding, Membership};
use crate::config::Mode;
use crate::memory::{Lease, Meter};
use crate::proto::handshake::{HandshakeLimits, HeadScanner, Rejection, Request, UpgradePolicy};
use crate::proto::{
    CloseCode, Codecs, Connection, DeflateParams, DeflatePolicy, Handler, Limits, Message, Replies, Reply,
    State,
};

/// What sessions share, parsed once from the configuration.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) mode: Mode,
    pub(super) limits: Limits,
    pub(super) handshake: HandshakeLimits,
    pub(super) policy: UpgradePolicy,
    /// Whether and how to agree on permessage-deflate.
    pub(super) deflate: Option<DeflatePolicy>,
}

pub(super) struct Session {
    phase: Phase,
    /// When the message that is arriving began, in ticks; [`NO_MESSAGE`] if none is.
    pub(super) message_since: u32,
    /// How many parts of the stall timeout have passed without anything being taken; or, while it closes, how many
    /// close timeouts it had because it still reads.
    pub(super) parts: u8,
    /// There was no place for its connection, and it takes none.
    pub(super) is_refused: bool,
    /// A Ping was sent because the peer was silent, and it still is.
    pub(super) pinged: bool,
    /// It is not read from because memory is short.
    pub(super) is_paused: bool,
    /// Its transport speaks TLS; and its handshake is awaited.
    is_secure: bool,
    is_shaking: bool,
}

/// See [`Session::message_since`].
pub(super) const NO_MESSAGE: u32 = u32::MAX;

enum Phase {
    /// HTTP requests are awaited; there is a head if one was cut by a read.
    Http(Option<Box<Head>>),
    /// Messages flow.
    Open(Connection, Box<dyn App>),
    /// Our Close is sent, the peer's is awaited.
    Closing(Connection),
    /// No protocol: every octet goes back.
    Raw,
    /// Nothing is read any more; the backend finishes the connection.
    Finished,
}

/// A request head that has not all arrived.
#[derive(Default)]
struct Head {
    octets: Vec<u8>,
    scanner: HeadScanner,
    lease: Lease,
}

impl Head {
    /// Has the meter know what it takes. It cannot be refused: the limit of a head is small.
    fn count(&mut self, meter: &Meter) {
        if self.lease.octets() == 0 {
            self.lease = meter.lease();
        }
        self.lease.force(size_of::<Self>() + self.octets.capacity());
    }
}

/// What the worker has to do once the replies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Go on; the time that the peer has left runs on.
    Wait,
    /// Go on; the peer did what was awaited, and its time starts anew.
    Active,
    /// The same, and a message has begun that is not complete. `is_new`: since this receive.
    Partial {
        /// The last one was completed, or there was none.
        is_new: bool,
    },
    /// Finish the connection.
    Finish,
}

/// What the peer is given time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaits {
    Request,
    Message,
    End,
    Nothing,
}

impl Session {
    pub(super) fn new(mode: Mode) -> Self {
        let phase = if mode == Mode::Raw { Phase::Raw } else { Phase::Http(None) };
        Self::of(phase)
    }

    /// The session of a connection that there is no place for: it has nothing to say to its peer.
    pub(super) fn refused() -> Self {
        Self { is_refused: true, ..Self::of(Phase::Finished) }
    }

    fn of(phase: Phase) -> Self {
        Self {
            phase,
            message_since: NO_MESSAGE,
            parts: 0,
            is_refused: false,
            pinged: false,
            is_paused: false,
            is_secure: false,
            is_shaking: false,
        }
    }

    /// The same on a new transport, which may speak TLS.
    pub(super) fn on(self, is_secure: bool) -> Self {
        Self { is_secure, is_shaking: is_secure, ..self }
    }

    /// The handshake of TLS is done. Returns whether the peer's time for it ends here: that for a request goes on.
    pub(super) fn handshaken(&mut self) -> bool {
        self.is_shaking = false;
        matches!(self.phase, Phase::Raw)
    }

    /// Its application's place in a room, if it has one.
    pub(super) fn membership(&self) -> Option<&Membership> {
        match &self.phase {
            Phase::Open(_, app) => app.membership(),
            _ => None,
        }
    }

    /// The memory that it holds beside its slot, in octets.
    pub(super) fn held_octets(&self) -> usize {
        match &self.phase {
            Phase::Http(head) => head.as_ref().map_or(0, |head| head.lease.octets()),
            Phase::Open(connection, _) | Phase::Closing(connection) => connection.held_octets(),
            Phase::Raw | Phase::Finished => 0,
        }
    }

    #[inline]
    pub(super) fn awaits(&self) -> Awaits {
        match self.phase {
            Phase::Http(_) => Awaits::Request,
            Phase::Open(..) => Awaits::Message,
            Phase::Closing(_) | Phase::Finished => Awaits::End,
            Phase::Raw if self.is_shaking => Awaits::Request,
            Phase::Raw => Awaits::Nothing,
        }
    }

    /// Takes in what the connection received, and leaves in `replies` what goes back. Returns what is to be done, and
    /// how many octets at the end of `buffer` were not looked at: they are to come again, before all others.
    #[inline]
    pub(super) fn received(
        &mut self,
        buffer: &mut [u8],
        rules: &Rules,
        context: &mut Context<'_>,
        codecs: &mut Codecs,
        date: &mut Date,
        replies: &mut Replies,
    ) -> (Step, usize) {
        let result = match &mut self.phase {
            Phase::Open(connection, app) => {
                let before = context.counters.messages_total.value();
                let mut messages = Messages { app: &mut **app, context };
                let result = connection.receive(buffer, 0, &rules.limits, codecs, replies, &mut messages);
                if connection.state() == State::Open {
                    self.pinged = false;
                    let unread = result.unwrap_or(0);
                    if connection.is_in_message() {
                        return (
                            Step::Partial { is_new: context.counters.messages_total.value() != before },
                            unread,
                        );
                    }
                    return (Step::Active, unread);
                }
                result
            }
            Phase::Closing(connection) => {
                let result = connection.receive(buffer, 0, &rules.limits, codecs, replies, &mut Ignore);
                if connection.state() != State::Closed {
                    return (Step::Wait, result.unwrap_or(0));
                }
                result
            }
            Phase::Raw => {
                replies.clear(0);
                replies.extend(buffer.len());
                return (Step::Wait, 0);
            }
            Phase::Finished => {
                replies.clear(0);
                return (Step::Wait, 0);
            }
            Phase::Http(_) => return self.http(buffer, rules, context, codecs, date, replies),
        };
        if let Err(error) = result {
            context.counters.protocol_errors_total.add(1);
            tracing::debug!(conn = context.conn.index, %error, "the peer broke the protocol");
        }
        (Step::Finish, 0)
    }

    /// Answers plain requests, until one asks for a WebSocket connection.
    #[cold]
    fn http(
        &mut self,
        buffer: &mut [u8],
        rules: &Rules,
        context: &mut Context<'_>,
        codecs: &mut Codecs,
        date: &mut Date,
        replies: &mut Replies,
    ) -> (Step, usize) {
        let Phase::Http(head) = &mut self.phase else { unreachable!("only called while HTTP is spoken") };
        let mut head = head.take().map_or_else(Head::default, |head| *head);
        let (mut at, mut answers, mut step) = (0, Vec::new(), Step::Wait);
        while at < buffer.len() {
            let kept = head.octets.len();
            let octets = if kept == 0 {
                &buffer[at..]
            } else {
                // The parser does not look further than the limit.
                let len = (buffer.len() - at).min(rules.handshake.head_bytes_max - kept);
                head.octets.extend_from_slice(&buffer[at..at + len]);
                &head.octets
            };
            let outcome = match Request::parse(octets, &mut head.scanner, &rules.handshake) {
                Ok(None) => {
                    if kept == 0 {
                        head.octets = buffer[at..].to_vec();
                    }
                    head.count(codecs.meter());
                    self.phase = Phase::Http(Some(Box::new(head)));
                    break;
                }
                Ok(Some((request, len))) => {
                    at += len - kept;
                    if request.wants_upgrade() {
                        upgrade(&request, rules, context, codecs, &mut answers).map(Some)
                    } else {
                        context.counters.http_requests_total.add(1);
                        if !http::answer(&request, self.is_secure, date.text(), &mut answers) {
                            step = Step::Finish;
                            self.phase = Phase::Finished;
                            break;
                        }
                        Ok(None)
                    }
                }
                Err(rejection) => Err(rejection),
            };
            match outcome {
                Ok(None) => {
                    step = Step::Active;
                    head = Head::default();
                }
                Ok(Some((connection, app))) => {
                    self.phase = Phase::Open(connection, app);
                    // What follows the handshake is frames.
                    let rest = &mut buffer[at..];
                    let (step, unread) = self.received(rest, rules, context, codecs, date, replies);
                    // The answers go before everything else that there is to say.
                    replies.push_front(answers);
                    replies.advance(at);
                    return (step, unread);
                }
                Err(rejection) => {
                    context.counters.http_requests_total.add(1);
                    tracing::debug!(conn = context.conn.index, error = %rejection, "the handshake was refused");
                    rejection.write(date.text(), &mut answers);
                    step = Step::Finish;
                    self.phase = Phase::Finished;
                    break;
                }
            }
        }
        replies.clear(0);
        if !answers.is_empty() {
            replies.push(answers, 0);
        }
        (step, 0)
    }

    /// Starts the closing handshake, and returns the Close frame. With nothing to close politely, `None`:
    /// then the connection is to be finished.
    pub(super) fn close(
        &mut self,
        code: CloseCode,
        reason: &str,
        context: &mut Context<'_>,
    ) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Open(mut connection, app) => {
                app.closed(context);
                let mut frame = Vec::new();
                connection.close(code, reason, &mut frame);
                self.phase = Phase::Closing(connection);
                Some(frame)
            }
            _ => None,
        }
    }

    /// Asks a silent peer whether it is there.
    pub(super) fn ping(&mut self) -> Vec<u8> {
        let mut frame = Vec::new();
        if let Phase::Open(connection, _) = &mut self.phase {
            connection.ping(b"", &mut frame);
            self.pinged = true;
        }
        frame
    }

    /// Nothing is read or said any more. To be called before the session is dropped.
    pub(super) fn finish(&mut self, context: &mut Context<'_>) {
        if let Phase::Open(_, app) = std::mem::replace(&mut self.phase, Phase::Finished) {
            app.closed(context);
        }
    }
}

/// Accepts a request for a WebSocket connection, and appends the answer to `answers`.
fn upgrade(
    request: &Request<'_>,
    rules: &Rules,
    context: &mut Context<'_>,
    codecs: &Codecs,
    answers: &mut Vec<u8>,
) -> Result<(Connection, Box<dyn App>), Rejection> {
    let accepted = request.upgrade(&rules.policy)?;
    let service = app::service(request.path(), rules.mode);
    let mut connection = Connection::server();
    let mut encoding = Encoding::PLAIN;
    match agree_on_deflate(request, rules, service.uses_hub, &mut connection, codecs, context) {
        None => accepted.write(answers),
        Some(params) => {
            context.counters.deflate_agreed_total.add(1);
            accepted.with_extensions(&params.to_string()).write(answers);
            encoding = Encoding::deflate(params.server_window_bits());
        }
    }
    context.counters.upgraded_total.add(1);
    Ok((connection, (service.open)(request.path(), encoding, context)))
}

/// Agrees on permessage-deflate if the client offers what we can have: without context takeover where there
/// is no memory for it.
fn agree_on_deflate(
    request: &Request<'_>,
    rules: &Rules,
    uses_hub: bool,
    connection: &mut Connection,
    codecs: &Codecs,
    context: &Context<'_>,
) -> Option<DeflateParams> {
    let mut policy = rules.deflate?;
    policy.server_no_context_takeover |= uses_hub;
    let params = policy.answer(request.extension_offers().flatten())?;
    if connection.agree_on_deflate(params, codecs) {
        return Some(params);
    }
    context.counters.deflate_takeover_refused_total.add(1);
    policy.server_no_context_takeover = true;
    policy.client_no_context_takeover = true;
    let params = policy.answer(request.extension_offers().flatten())?;
    connection.agree_on_deflate(params, codecs).then_some(params)
}

/// Passes the connection's messages to its application.
struct Messages<'a, 'c> {
    app: &'a mut dyn App,
    context: &'a mut Context<'c>,
}

impl Handler for Messages<'_, '_> {
    #[inline]
    fn message(&mut self, message: Message<'_>) -> Reply {
        self.context.counters.messages_total.add(1);
        self.app.message(message, self.context)
    }
}

/// After our Close, messages are dropped; the connection does not even report them.
struct Ignore;

impl Handler for Ignore {
    fn message(&mut self, _: Message<'_>) -> Reply {
        Reply::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::config::SlowConsumer;
    use crate::net::ConnId;
    use crate::proto::{Compressors, DeflateSettings};
    use crate::server::date::WallClock;
    use crate::server::hub::{Directory, Hub, Policy};
    use crate::server::metrics::Counters;

    /// What is agreed on about compression when `offer` asks for `path`.
    fn agreed(
        deflate: Option<DeflatePolicy>,
        codecs: &mut Codecs,
        path: &str,
        offer: &str,
    ) -> Option<String> {
        let rules = Rules {
            mode: Mode::Echo,
            limits: Limits { message_size_max: 1000, ..Limits::default() },
            handshake: HandshakeLimits::default(),
            policy: UpgradePolicy::default(),
            deflate,
        };
        let policy = Policy { slow_consumer: SlowConsumer::Close, send_queue_bytes_max: 1000 };
        let (directory, counters) = (Arc::new(Directory::new(1)), Arc::<Counters>::default());
        let compressors = Compressors::default();
        let mut hub = Hub::new(0, directory, counters.clone(), policy, compressors, Meter::default());
        let conn = ConnId { index: 0, generation: 0 };
        let mut context = Context { conn, hub: &mut hub, counters: &counters };
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: {offer}\r\n\r\n"
        )
        .into_bytes();
        let (mut session, mut replies) = (Session::new(Mode::Echo), Replies::default());
        let mut date = Date::new(WallClock::System, Instant::now());
        session.received(&mut request, &rules, &mut context, codecs, &mut date, &mut replies);
        let answer = String::from_utf8(replies.to_vec(&request)).unwrap();
        session.finish(&mut context);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let value = answer.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        assert_eq!(counters.deflate_agreed_total.value(), u64::from(value.is_some()));
        value.map(str::to_owned)
    }

    const TAKEOVER: Option<DeflatePolicy> = Some(DeflatePolicy {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        window_bits_max: 15,
    });

    #[test]
    fn compression_is_agreed_on_only_where_it_is_on() {
        let mut codecs = Codecs::default();
        assert_eq!(agreed(None, &mut codecs, "/", "permessage-deflate"), None);
        assert_eq!(agreed(TAKEOVER, &mut codecs, "/", "permessage-deflate").unwrap(), "permessage-deflate");
        assert_eq!(agreed(TAKEOVER, &mut codecs, "/", "permessage-deflate; unknown"), None);
    }

    #[test]
    fn what_a_room_sends_refers_to_no_other_message() {
        let answer = agreed(TAKEOVER, &mut Codecs::default(), "/broadcast/a", "permessage-deflate").unwrap();
        assert_eq!(answer, "permessage-deflate; server_no_context_takeover");
    }

    #[test]
    fn where_memory_is_used_up_no_context_takeover_is_agreed_on() {
        let settings = DeflateSettings { memory_bytes_max: (64 << 10) - 1, ..DeflateSettings::default() };
        let answer = agreed(
            TAKEOVER,
            &mut Codecs::new(settings),
            "/",
            "permessage-deflate; server_max_window_bits=15",
        );
        assert_eq!(
            answer.unwrap(),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
        );
    }
}
