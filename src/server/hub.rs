//! Rooms and the fan-out of broadcast.
//!
//! A message is framed once and copied once, into its room's batch. At the end of the turn a batch becomes
//! one shared buffer and one send for each member; workers that have members of the room get the buffer
//! through their inbox. A member that does not keep up meets the slow-consumer policy and never delays the
//! others.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use slab::Slab;

use super::inbox::{Inbox, Mail};
use super::metrics::Counters;
use crate::config::SlowConsumer;
use crate::net::{Backend, Chunk, ConnId, Publication};

/// Batches are sent before the end of the turn once they hold this many octets.
const BATCH_LEN_MAX: usize = 1 << 20;

/// Which workers have members of which rooms. Locked when a worker's first member joins a room or its last
/// one leaves, never for a message.
#[derive(Default)]
pub(super) struct Directory {
    rooms: Mutex<HashMap<Arc<str>, Arc<Presence>>>,
}

/// By worker: whether it has members.
type Presence = [AtomicBool];

/// One worker's rooms.
pub(crate) struct Hub {
    worker: usize,
    directory: Arc<Directory>,
    inboxes: Arc<[Inbox]>,
    counters: Arc<Counters>,
    policy: Policy,
    rooms: Slab<Room>,
    by_name: HashMap<Arc<str>, usize>,
    /// Rooms with something to send.
    dirty: Vec<usize>,
    /// Octets in all batches.
    batched: usize,
    /// Members to close with 1013.
    slow: Vec<ConnId>,
}

/// What happens to members that do not keep up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) slow_consumer: SlowConsumer,
    pub(super) send_queue_bytes_max: usize,
}

struct Room {
    name: Arc<str>,
    members: Slab<ConnId>,
    presence: Arc<Presence>,
    batch: Vec<u8>,
    messages: u32,
}

/// One connection's place in a room; given back with [`Hub::leave`].
#[derive(Debug)]
pub(crate) struct Membership {
    room: usize,
    member: usize,
}

impl Hub {
    pub(super) fn new(
        worker: usize,
        directory: Arc<Directory>,
        inboxes: Arc<[Inbox]>,
        counters: Arc<Counters>,
        policy: Policy,
    ) -> Self {
        Self {
            worker,
            directory,
            inboxes,
            counters,
            policy,
            rooms: Slab::new(),
            by_name: HashMap::new(),
            dirty: Vec::new(),
            batched: 0,
            slow: Vec::new(),
        }
    }

    /// Makes the connection a member of the room, which is made if there is none of that name.
    pub(crate) fn join(&mut self, name: &str, conn: ConnId) -> Membership {
        let room = match self.by_name.get(name) {
            Some(&room) => room,
            None => {
                let name: Arc<str> = name.into();
                let presence = self.directory.enter(&name, self.worker, self.inboxes.len());
                let members = Slab::with_capacity(1);
                let batch = Vec::new();
                let room =
                    self.rooms.insert(Room { name: name.clone(), members, presence, batch, messages: 0 });
                self.by_name.insert(name, room);
                room
            }
        };
        Membership { room, member: self.rooms[room].members.insert(conn) }
    }

    /// Ends a membership. What was published before is still sent to the others.
    pub(crate) fn leave(&mut self, membership: Membership) {
        let room = &mut self.rooms[membership.room];
        room.members.remove(membership.member);
        if room.members.is_empty() {
            if room.messages > 0 {
                self.post(membership.room);
            }
            let room = self.rooms.remove(membership.room);
            self.by_name.remove(&room.name);
            self.dirty.retain(|&dirty| dirty != membership.room);
            self.directory.leave(&room.name, self.worker);
        }
    }

    /// Publishes one message, given as a frame, to every member of the room, its publisher included.
    pub(crate) fn publish(&mut self, membership: &Membership, frame: &[u8]) {
        let room = &mut self.rooms[membership.room];
        if room.messages == 0 {
            self.dirty.push(membership.room);
        }
        room.batch.extend_from_slice(frame);
        room.messages += 1;
        self.batched += frame.len();
        self.counters.published_total.add(1);
    }

    /// Whether so much was published that it should not wait for the end of the turn.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.batched >= BATCH_LEN_MAX
    }

    /// Sends every batch to its room's members, here and on other workers. Returns the members that are to
    /// be closed for being slow.
    #[inline]
    pub(super) fn flush(&mut self, backend: &mut impl Backend) -> &mut Vec<ConnId> {
        while let Some(room) = self.dirty.pop() {
            let publication = self.post(room);
            self.deliver(backend, room, publication);
        }
        self.batched = 0;
        &mut self.slow
    }

    /// Delivers what another worker published.
    pub(super) fn receive(&mut self, backend: &mut impl Backend, mail: Mail) -> &mut Vec<ConnId> {
        // The last member may have left while the mail was on its way.
        if let Some(&room) = self.by_name.get(&mail.room) {
            self.deliver(backend, room, Publication { octets: mail.octets, messages: mail.messages });
        }
        &mut self.slow
    }

    /// Takes the room's batch and hands it to the other workers.
    fn post(&mut self, room: usize) -> Publication {
        let room = &mut self.rooms[room];
        let octets = Arc::new(std::mem::take(&mut room.batch));
        let messages = std::mem::take(&mut room.messages);
        for (worker, is_present) in room.presence.iter().enumerate() {
            if worker != self.worker && is_present.load(SeqCst) {
                let mail = Mail { room: room.name.clone(), octets: octets.clone(), messages };
                if !self.inboxes[worker].put(mail) {
                    self.counters.inbox_dropped_total.add(messages.into());
                }
            }
        }
        Publication { octets, messages }
    }

    fn deliver(&mut self, backend: &mut impl Backend, room: usize, publication: Publication) {
        let Policy { slow_consumer, send_queue_bytes_max } = self.policy;
        let (len, messages) = (publication.octets.len(), publication.messages);
        let publication = Rc::new(publication);
        let (mut delivered, mut dropped) = (0, 0);
        for (_, &conn) in &self.rooms[room].members {
            let queued = backend.queued(conn);
            if queued > 0 && queued + len > send_queue_bytes_max {
                match slow_consumer {
                    SlowConsumer::DropOldest => {
                        dropped +=
                            u64::from(backend.drop_oldest(conn, send_queue_bytes_max.saturating_sub(len)));
                    }
                    SlowConsumer::DropNewest => {}
                    SlowConsumer::Close => {
                        self.slow.push(conn);
                        continue;
                    }
                }
                let queued = backend.queued(conn);
                if queued > 0 && queued + len > send_queue_bytes_max {
                    dropped += u64::from(messages);
                    continue;
                }
            }
            delivered += u64::from(messages);
            backend.send(conn, Chunk::Shared(publication.clone()));
        }
        self.counters.delivered_total.add(delivered);
        self.counters.slow_consumer_dropped_total.add(dropped);
    }
}

impl Directory {
    fn enter(&self, name: &Arc<str>, worker: usize, workers: usize) -> Arc<Presence> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let presence = rooms
            .entry(name.clone())
            .or_insert_with(|| (0..workers).map(|_| AtomicBool::new(false)).collect::<Vec<_>>().into());
        presence[worker].store(true, SeqCst);
        presence.clone()
    }

    fn leave(&self, name: &Arc<str>, worker: usize) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let presence = &rooms[name];
        presence[worker].store(false, SeqCst);
        if presence.iter().all(|is_present| !is_present.load(SeqCst)) {
            rooms.remove(name);
        }
    }
}
