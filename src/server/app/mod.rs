//! What a path does with the messages that it gets. A new one is a file here and a line in [`RESERVED`].

mod broadcast;
mod echo;

use super::hub::Hub;
use crate::config::Mode;
use crate::net::ConnId;
use crate::proto::{Message, Reply};

/// What an application may reach outside of its own connection.
pub(crate) struct Context<'a> {
    pub(crate) conn: ConnId,
    pub(crate) hub: &'a mut Hub,
}

/// One connection's application.
pub(crate) trait App {
    /// A message arrived.
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) -> Reply;

    /// Our Close is sent, or the connection is gone: nothing may be sent any more. Called once.
    fn closed(self: Box<Self>, context: &mut Context<'_>) {
        let _ = context;
    }
}

type Open = fn(path: &str, &mut Context<'_>) -> Box<dyn App>;

/// Paths that mean the same in every mode, each with all that is below it.
const RESERVED: &[(&str, Open)] = &[("/echo", echo::open), ("/broadcast", broadcast::open)];

/// The application behind `path`.
pub(super) fn open(path: &str, mode: Mode, context: &mut Context<'_>) -> Box<dyn App> {
    let is_below =
        |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let open = match RESERVED.iter().find(|(base, _)| is_below(base)) {
        Some(&(_, open)) => open,
        None if mode == Mode::Broadcast => broadcast::open,
        None => echo::open,
    };
    open(path, context)
}
