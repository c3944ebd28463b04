//! Echo: every message goes back to its sender.

use super::{App, Context};
use crate::proto::{Message, Reply};

struct Echo;

pub(super) fn open(_: &str, _: &mut Context<'_>) -> Box<dyn App> {
    Box::new(Echo)
}

impl App for Echo {
    fn message(&mut self, _: Message<'_>, _: &mut Context<'_>) -> Reply {
        Reply::Echo
    }
}
