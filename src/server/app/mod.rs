//! What a path does with the messages that it gets. A new one is a file here and a line in [`RESERVED`].

mod broadcast;
mod echo;

use super::hub::{Encoding, Hub, Membership};
use super::metrics::Counters;
use crate::config::Mode;
use crate::net::ConnId;
use crate::proto::{Message, Reply};

/// What an application may reach outside of its own connection.
pub(crate) struct Context<'a> {
    pub(crate) conn: ConnId,
    pub(crate) hub: &'a mut Hub,
    pub(crate) counters: &'a Counters,
}

/// One connection's application.
pub(crate) trait App {
    /// A message arrived.
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) -> Reply;

    /// Its place in a room, if it has one.
    fn membership(&self) -> Option<&Membership> {
        None
    }

    /// Our Close is sent, or the connection is gone: nothing may be sent any more. Called once.
    fn closed(self: Box<Self>, context: &mut Context<'_>) {
        let _ = context;
    }
}

/// What a path does, and what that asks of its connections.
pub(super) struct Service {
    /// Makes the application of one more connection, whose peer takes the hub's messages in this encoding.
    pub(super) open: fn(path: &str, Encoding, &mut Context<'_>) -> Box<dyn App>,
    /// Connections get messages through the hub, which compresses them once for all: on such a path none
    /// gets context takeover for what it is sent.
    pub(super) uses_hub: bool,
}

/// Paths that mean the same in every mode, each with all that is below it.
const RESERVED: &[(&str, &Service)] = &[("/echo", &echo::SERVICE), ("/broadcast", &broadcast::SERVICE)];

/// What `path` does.
pub(super) fn service(path: &str, mode: Mode) -> &'static Service {
    let is_below =
        |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match RESERVED.iter().find(|(base, _)| is_below(base)) {
        Some((_, service)) => service,
        None if mode == Mode::Broadcast => &broadcast::SERVICE,
        None => &echo::SERVICE,
    }
}
