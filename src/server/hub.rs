//! Rooms and the fan-out of broadcast.
//!
//! A message is framed once and copied once, into its room's batch. At the end of the turn a batch becomes
//! one shared buffer and one send for each member; workers that have members of the room get the buffer
//! through their inbox. For members that agreed on compression the whole batch is compressed, once for each
//! size of window that anybody in the room has, by the worker where it was published.
//! A member that does not keep up meets the slow-consumer policy and never delays the
//! others.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use slab::Slab;

use super::inbox::{Inbox, Mail};
use super::metrics::Counters;
use crate::config::SlowConsumer;
use crate::net::{Backend, Chunk, ConnId, Publication};
use crate::proto::{Compressors, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// Batches are sent before the end of the turn once they hold this many octets.
const BATCH_LEN_MAX: usize = 1 << 20;

/// Which workers have members of which rooms. Locked when a worker's first member joins a room or its last
/// one leaves, never for a message.
#[derive(Default)]
pub(super) struct Directory {
    rooms: Mutex<HashMap<Arc<str>, Arc<Presence>>>,
}

/// By worker: which encodings its members take, one bit for each. None: it has no members.
type Presence = [AtomicU8];

/// How a member takes what is published: as it is, or compressed for a certain window, each message by
/// itself. Who agreed on compression can still read what is not compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding(u8);

/// How many encodings there are: a bit for each fits in one octet.
const ENCODING_COUNT: usize = 2 + (WINDOW_BITS_MAX - WINDOW_BITS_MIN) as usize;

impl Encoding {
    /// As it is.
    pub(crate) const PLAIN: Self = Self(0);

    /// Compressed for a window of two to the power of `window_bits` octets.
    pub(crate) fn deflate(window_bits: u8) -> Self {
        assert!((WINDOW_BITS_MIN..=WINDOW_BITS_MAX).contains(&window_bits), "nothing else is agreed to");
        Self(1 + window_bits - WINDOW_BITS_MIN)
    }

    fn index(self) -> usize {
        self.0.into()
    }

    fn bit(self) -> u8 {
        1 << self.0
    }
}

/// What was published to a room in one turn: whole frames, in every encoding that somebody in it takes.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// By encoding. Invariant: the plain one is there.
    octets: [Option<Arc<Vec<u8>>>; ENCODING_COUNT],
    messages: u32,
}

impl Batch {
    pub(super) fn plain(octets: Vec<u8>, messages: u32) -> Self {
        let mut batch = Self { octets: Default::default(), messages };
        batch.octets[Encoding::PLAIN.index()] = Some(Arc::new(octets));
        batch
    }

    /// The length of all encodings in octets.
    pub(super) fn len(&self) -> usize {
        self.octets.iter().flatten().map(|octets| octets.len()).sum()
    }

    /// Adds the encodings whose bits are in `bits`.
    fn encode(&mut self, bits: u8, compressors: &mut Compressors) {
        let [Some(plain), encoded @ ..] = &mut self.octets else { unreachable!("the plain one is there") };
        for (window_bits, encoded) in (WINDOW_BITS_MIN..).zip(encoded) {
            if bits & Encoding::deflate(window_bits).bit() != 0 {
                let mut octets = Vec::with_capacity(plain.len() / 2);
                compressors.recode(window_bits, plain, &mut octets);
                *encoded = Some(Arc::new(octets));
            }
        }
    }

    /// For this worker's members, by encoding. Somebody may have joined after the batch was encoded: the
    /// plain one stands in for what is missing.
    fn publications(self) -> [Rc<Publication>; ENCODING_COUNT] {
        let messages = self.messages;
        let [Some(plain), ..] = &self.octets else { unreachable!("the plain one is there") };
        let plain = Rc::new(Publication { octets: plain.clone(), messages });
        self.octets.map(|octets| match octets {
            Some(octets) => Rc::new(Publication { octets, messages }),
            None => plain.clone(),
        })
    }
}

/// One worker's rooms.
pub(crate) struct Hub {
    worker: usize,
    directory: Arc<Directory>,
    inboxes: Arc<[Inbox]>,
    counters: Arc<Counters>,
    policy: Policy,
    compressors: Compressors,
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
    members: Slab<(ConnId, Encoding)>,
    /// How many members take each encoding.
    counts: [u32; ENCODING_COUNT],
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
        compressors: Compressors,
    ) -> Self {
        Self {
            worker,
            directory,
            inboxes,
            counters,
            policy,
            compressors,
            rooms: Slab::new(),
            by_name: HashMap::new(),
            dirty: Vec::new(),
            batched: 0,
            slow: Vec::new(),
        }
    }

    /// Makes the connection a member of the room, which is made if there is none of that name.
    pub(crate) fn join(&mut self, name: &str, conn: ConnId, encoding: Encoding) -> Membership {
        let room = match self.by_name.get(name) {
            Some(&room) => room,
            None => {
                let name: Arc<str> = name.into();
                let presence = self.directory.enter(&name, self.worker, self.inboxes.len(), encoding);
                let members = Slab::with_capacity(1);
                let room = self.rooms.insert(Room {
                    name: name.clone(),
                    members,
                    counts: [0; ENCODING_COUNT],
                    presence,
                    batch: Vec::new(),
                    messages: 0,
                });
                self.by_name.insert(name, room);
                room
            }
        };
        let Room { members, counts, presence, .. } = &mut self.rooms[room];
        counts[encoding.index()] += 1;
        presence[self.worker].fetch_or(encoding.bit(), SeqCst);
        Membership { room, member: members.insert((conn, encoding)) }
    }

    /// Ends a membership. What was published before is still sent to the others.
    pub(crate) fn leave(&mut self, membership: Membership) {
        let room = &mut self.rooms[membership.room];
        let (_, encoding) = room.members.remove(membership.member);
        room.counts[encoding.index()] -= 1;
        if room.counts[encoding.index()] == 0 && !room.members.is_empty() {
            room.presence[self.worker].fetch_and(!encoding.bit(), SeqCst);
        }
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
            let batch = self.post(room);
            self.deliver(backend, room, batch);
        }
        self.batched = 0;
        &mut self.slow
    }

    /// Delivers what another worker published.
    pub(super) fn receive(&mut self, backend: &mut impl Backend, mail: Mail) -> &mut Vec<ConnId> {
        // The last member may have left while the mail was on its way.
        if let Some(&room) = self.by_name.get(&mail.room) {
            self.deliver(backend, room, mail.batch);
        }
        &mut self.slow
    }

    /// Takes the room's batch, encodes it and hands it to the other workers.
    fn post(&mut self, room: usize) -> Batch {
        let room = &mut self.rooms[room];
        let messages = std::mem::take(&mut room.messages);
        let mut batch = Batch::plain(std::mem::take(&mut room.batch), messages);
        let encodings = room.presence.iter().fold(0, |bits, worker| bits | worker.load(SeqCst));
        batch.encode(encodings, &mut self.compressors);
        for (worker, encodings) in room.presence.iter().enumerate() {
            if worker != self.worker && encodings.load(SeqCst) != 0 {
                let mail = Mail { room: room.name.clone(), batch: batch.clone() };
                if !self.inboxes[worker].put(mail) {
                    self.counters.inbox_dropped_total.add(messages.into());
                }
            }
        }
        batch
    }

    fn deliver(&mut self, backend: &mut impl Backend, room: usize, batch: Batch) {
        let Policy { slow_consumer, send_queue_bytes_max } = self.policy;
        let messages = batch.messages;
        let publications = batch.publications();
        let (mut delivered, mut dropped) = (0, 0);
        for (_, &(conn, encoding)) in &self.rooms[room].members {
            let publication = &publications[encoding.index()];
            let len = publication.octets.len();
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
    fn enter(&self, name: &Arc<str>, worker: usize, workers: usize, encoding: Encoding) -> Arc<Presence> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let presence = rooms
            .entry(name.clone())
            .or_insert_with(|| (0..workers).map(|_| AtomicU8::new(0)).collect::<Vec<_>>().into());
        presence[worker].store(encoding.bit(), SeqCst);
        presence.clone()
    }

    fn leave(&self, name: &Arc<str>, worker: usize) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let presence = &rooms[name];
        presence[worker].store(0, SeqCst);
        if presence.iter().all(|encodings| encodings.load(SeqCst) == 0) {
            rooms.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{DeflateSettings, FrameHeader, Opcode};

    fn batch(message: &[u8]) -> Batch {
        let header = FrameHeader::message(Opcode::Text, message.len());
        let mut frame = vec![0; header.encoded_len()];
        header.write(&mut frame);
        frame.extend_from_slice(message);
        Batch::plain(frame, 1)
    }

    #[test]
    fn a_batch_is_compressed_once_for_each_window_that_somebody_has() {
        let mut batch = batch(&[b'a'; 500]);
        let bits = Encoding::PLAIN.bit() | Encoding::deflate(9).bit() | Encoding::deflate(15).bit();
        batch.encode(bits, &mut Compressors::new(DeflateSettings::default()));
        let is_there: Vec<_> = batch.octets.iter().map(Option::is_some).collect();
        assert_eq!(is_there, [true, true, false, false, false, false, false, true]);
        let mail = batch.clone();
        let at = Encoding::deflate(9).index();
        let (here, there) = (batch.publications(), mail.publications());
        assert!(Arc::ptr_eq(&here[at].octets, &there[at].octets), "other workers share it");
        assert!(here[at].octets[0] == 0xC1 && here[at].octets.len() < 50);
    }

    #[test]
    fn an_encoding_that_is_missing_is_replaced_by_the_plain_one() {
        let publications = batch(b"hello").publications();
        for publication in &publications {
            assert_eq!(publication.octets[..], publications[0].octets[..]);
        }
        assert_eq!(publications[Encoding::deflate(12).index()].octets[0], 0x81);
    }

    #[test]
    fn a_room_knows_which_encodings_its_members_take() {
        let policy = Policy { slow_consumer: SlowConsumer::DropNewest, send_queue_bytes_max: 1 << 20 };
        let inboxes: Arc<[Inbox]> = [Inbox::new(1 << 20)].into();
        let mut hub = Hub::new(0, Arc::default(), inboxes, Arc::default(), policy, Compressors::default());
        let conn = |index| ConnId { index, generation: 0 };
        let (small, large) = (Encoding::deflate(9), Encoding::deflate(15));
        let first = hub.join("/room", conn(0), small);
        let second = hub.join("/room", conn(1), small);
        let third = hub.join("/room", conn(2), large);
        let presence = hub.rooms[first.room].presence.clone();
        let bits = || presence[0].load(SeqCst);
        assert_eq!(bits(), small.bit() | large.bit());
        hub.leave(first);
        assert_eq!(bits(), small.bit() | large.bit());
        hub.leave(second);
        assert_eq!(bits(), large.bit());
        hub.leave(third);
        assert_eq!(bits(), 0);
    }
}
