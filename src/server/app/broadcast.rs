//! Broadcast: every message goes to everyone in the room, its publisher included. A room is a path.

use super::{App, Context, Service};
use crate::proto::{Message, Reply};
use crate::server::hub::Membership;

struct Broadcast(Membership);

pub(super) const SERVICE: Service = Service {
    open: |path, encoding, context| Box::new(Broadcast(context.hub.join(path, context.conn, encoding))),
    uses_hub: true,
};

impl App for Broadcast {
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) -> Reply {
        context.hub.publish(&self.0, message.frame());
        Reply::Nothing
    }

    fn membership(&self) -> Option<&Membership> {
        Some(&self.0)
    }

    fn closed(self: Box<Self>, context: &mut Context<'_>) {
        context.hub.leave(self.0);
    }
}
