//! Echo: every message goes back to its sender.

use super::{App, Context, Service};
use crate::proto::{Message, Reply};

struct Echo;

pub(super) const SERVICE: Service = Service { open: |_, _, _| Box::new(Echo), uses_hub: false };

impl App for Echo {
    fn message(&mut self, _: Message<'_>, _: &mut Context<'_>) -> Reply {
        Reply::Echo
    }
}
