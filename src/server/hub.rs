//! Rooms and the fan-out of broadcast.
//!
//! A message is framed once and copied once, into its room's batch. At the end of the turn a batch becomes one shared
//! buffer, which is delivered by one send to each member; workers that have members of the room get the buffer
//! through their inbox. For members that agreed on compression the whole batch is compressed, once for each size of
//! window that anybody in the room has, by the worker where it was published.
//!
//! Delivering has a share of each turn, and goes on in the next one where it stopped, so that a room of any size does
//! not hold its worker. While much is still to be delivered, the room's publishers are not read from.
//! A member that does not keep up meets the slow-consumer policy and never delays the others.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use slab::Slab;

use super::metrics::Counters;
use crate::config::SlowConsumer;
use crate::memory::{Lease, Meter};
use crate::net::{Backend, Chunk, ConnId, Publication};
use crate::proto::{Compressors, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// Batches are posted before the end of the turn once they hold this many octets.
const BATCH_LEN_MAX: usize = 1 << 20;
/// A room that still has so many octets to deliver takes no more from its publishers.
const BACKLOG_LEN_MAX: usize = 1 << 20;
/// With so many octets to deliver on this worker, what other workers publish stays in the inbox, which has a limit.
const PENDING_LEN_MAX: usize = 8 << 20;
/// What is delivered in one turn, and to one room before others have theirs, in units of work: a send is
/// [`SEND_WORK`] and its octets.
const TURN_WORK: usize = 2 << 20;
const ROOM_WORK: usize = 256 << 10;
const SEND_WORK: usize = 2 << 10;
/// The most sizes of windows that a room's messages are compressed for: each costs as much as all others together.
const WINDOWS_MAX: u32 = 2;
/// What a room takes in memory beside its name, in octets.
const ROOM_COST: usize = 512;

/// Which workers have members of which rooms. Locked when a worker's first member joins a room or its last
/// one leaves, never for a message.
pub(super) struct Directory {
    workers: usize,
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

    /// The encoding for one more member of a room that has the encodings in `bits` already: the one that it `wants`,
    /// unless that would be one window too many. A smaller window can always be read.
    fn for_member(wants: Self, bits: u8) -> Self {
        let deflated = bits & !Self::PLAIN.bit();
        if wants == Self::PLAIN || bits & wants.bit() != 0 || deflated.count_ones() < WINDOWS_MAX {
            return wants;
        }
        (1..wants.0).rev().map(Self).find(|smaller| bits & smaller.bit() != 0).unwrap_or(Self::PLAIN)
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

    /// Adds the encodings whose bits are in `bits`, if it is not too long to be compressed.
    fn encode(&mut self, bits: u8, compressors: &mut Compressors) {
        let [Some(plain), encoded @ ..] = &mut self.octets else { unreachable!("the plain one is there") };
        for (window_bits, encoded) in (WINDOW_BITS_MIN..).zip(encoded) {
            if bits & Encoding::deflate(window_bits).bit() != 0 {
                *encoded = compressors.recode(window_bits, plain).map(Arc::new);
            }
        }
    }

    /// For this worker's members, by encoding. Somebody may have joined after the batch was encoded: the
    /// plain one stands in for what is missing.
    fn publications(self, meter: &Meter) -> [Rc<Publication>; ENCODING_COUNT] {
        let messages = self.messages;
        let publication = |octets: Arc<Vec<u8>>| {
            Rc::new(Publication { messages, lease: meter.force(octets.capacity()), octets })
        };
        let [Some(plain), encoded @ ..] = self.octets else { unreachable!("the plain one is there") };
        let plain = publication(plain);
        let mut publications = std::array::from_fn(|_| plain.clone());
        for (target, octets) in publications[1..].iter_mut().zip(encoded) {
            if let Some(octets) = octets {
                *target = publication(octets);
            }
        }
        publications
    }
}

/// One worker's rooms.
pub(crate) struct Hub {
    worker: usize,
    directory: Arc<Directory>,
    /// Batches for other workers, to be put into their inboxes.
    outbox: Vec<(usize, Mail)>,
    counters: Arc<Counters>,
    policy: Policy,
    compressors: Compressors,
    meter: Meter,
    rooms: Slab<Room>,
    by_name: HashMap<Arc<str>, usize>,
    /// Rooms with something to post.
    dirty: Vec<usize>,
    /// Rooms with something to deliver, in the order of their turns.
    delivering: VecDeque<usize>,
    /// Octets in all batches, and in all that is to be delivered.
    batched: usize,
    pending: usize,
    /// Publishers that are to be read from no more for now, and those that are to be again.
    crowded: Vec<ConnId>,
    relieved: Vec<ConnId>,
    /// Members to close with 1013.
    slow: Vec<ConnId>,
}

/// What is published to a room on one worker, for the members on another.
#[derive(Debug)]
pub(super) struct Mail {
    room: Arc<str>,
    batch: Batch,
}

impl Mail {
    #[cfg(test)]
    pub(super) fn of(room: &str, octets: Vec<u8>) -> Self {
        Self { room: room.into(), batch: Batch::plain(octets, 1) }
    }

    /// Its octets, in all encodings.
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    /// How many messages it has.
    pub(super) fn messages(&self) -> u32 {
        self.batch.messages
    }
}

/// What happens to members that do not keep up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) slow_consumer: SlowConsumer,
    pub(super) send_queue_bytes_max: usize,
}

struct Room {
    name: Arc<str>,
    members: Slab<Member>,
    /// How many members take each encoding.
    counts: [u32; ENCODING_COUNT],
    presence: Arc<Presence>,
    batch: Vec<u8>,
    messages: u32,
    /// Posted, and not delivered to every member yet; oldest first.
    deliveries: VecDeque<Delivery>,
    /// How many batches were posted here.
    posted: u64,
    /// Octets in the batch and in `deliveries`.
    backlog: usize,
    /// Publishers that are not read from.
    waiting: Vec<ConnId>,
    _lease: Lease,
}

struct Member {
    conn: ConnId,
    encoding: Encoding,
    /// It is owed the deliveries from this number on.
    since: u64,
}

/// A batch on its way to the members of its room.
struct Delivery {
    number: u64,
    publications: [Rc<Publication>; ENCODING_COUNT],
    /// Its share of the room's backlog, in octets.
    len: usize,
    /// The member that is next.
    at: usize,
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
        counters: Arc<Counters>,
        policy: Policy,
        compressors: Compressors,
        meter: Meter,
    ) -> Self {
        Self {
            worker,
            directory,
            outbox: Vec::new(),
            counters,
            policy,
            compressors,
            meter,
            rooms: Slab::new(),
            by_name: HashMap::new(),
            dirty: Vec::new(),
            delivering: VecDeque::new(),
            batched: 0,
            pending: 0,
            crowded: Vec::new(),
            relieved: Vec::new(),
            slow: Vec::new(),
        }
    }

    /// Makes the connection a member of the room, which is made if there is none of that name. It is owed what is
    /// published from now on.
    pub(crate) fn join(&mut self, name: &str, conn: ConnId, wants: Encoding) -> Membership {
        let room = match self.by_name.get(name) {
            Some(&room) => room,
            None => self.open(name, wants),
        };
        // What was published in this turn, before it came, it is not owed.
        self.post(room);
        let Room { members, counts, presence, posted, .. } = &mut self.rooms[room];
        let encoding = Encoding::for_member(wants, all_bits(presence));
        counts[encoding.index()] += 1;
        presence[self.worker].fetch_or(encoding.bit(), SeqCst);
        Membership { room, member: members.insert(Member { conn, encoding, since: *posted }) }
    }

    fn open(&mut self, name: &str, wants: Encoding) -> usize {
        let name: Arc<str> = name.into();
        let presence = self.directory.enter(&name, self.worker, wants);
        let room = self.rooms.insert(Room {
            members: Slab::with_capacity(1),
            counts: [0; ENCODING_COUNT],
            presence,
            batch: Vec::new(),
            messages: 0,
            deliveries: VecDeque::new(),
            posted: 0,
            backlog: 0,
            waiting: Vec::new(),
            // The directory has the name, too, and so has the index.
            _lease: self.meter.force(ROOM_COST + name.len()),
            name: name.clone(),
        });
        self.by_name.insert(name, room);
        room
    }

    /// Ends a membership. What was published before is still sent to the others.
    pub(crate) fn leave(&mut self, membership: Membership) {
        let room = &mut self.rooms[membership.room];
        let Member { encoding, .. } = room.members.remove(membership.member);
        room.counts[encoding.index()] -= 1;
        if room.counts[encoding.index()] == 0 && !room.members.is_empty() {
            room.presence[self.worker].fetch_and(!encoding.bit(), SeqCst);
        }
        if room.members.is_empty() {
            self.post(membership.room);
            let room = self.rooms.remove(membership.room);
            self.pending -= room.deliveries.iter().map(|delivery| delivery.len).sum::<usize>();
            self.by_name.remove(&room.name);
            self.dirty.retain(|&dirty| dirty != membership.room);
            self.delivering.retain(|&delivering| delivering != membership.room);
            self.relieved.extend(room.waiting);
            self.directory.leave(&room.name, self.worker);
            if self.by_name.len() < self.by_name.capacity() / 8 {
                self.by_name.shrink_to(self.by_name.len() * 2);
                self.rooms.shrink_to_fit();
            }
        }
    }

    /// Publishes one message, given as a frame, to every member of the room, its publisher included.
    #[inline]
    pub(crate) fn publish(&mut self, membership: &Membership, frame: &[u8]) {
        let room = &mut self.rooms[membership.room];
        if room.messages == 0 {
            self.dirty.push(membership.room);
        }
        room.batch.extend_from_slice(frame);
        room.messages += 1;
        room.backlog += frame.len();
        self.batched += frame.len();
        self.counters.published_total.add(1);
        if room.backlog >= BACKLOG_LEN_MAX {
            self.crowd(membership);
        }
    }

    /// The room has much to deliver: its publisher is to wait.
    #[cold]
    fn crowd(&mut self, membership: &Membership) {
        let room = &mut self.rooms[membership.room];
        let conn = room.members[membership.member].conn;
        if !room.waiting.contains(&conn) {
            room.waiting.push(conn);
            self.crowded.push(conn);
        }
    }

    /// Whether something is not to wait for the end of the turn: [`Hub::post_all`], [`Hub::take_crowded`].
    #[inline]
    pub(super) fn is_urgent(&self) -> bool {
        self.batched >= BATCH_LEN_MAX || !self.crowded.is_empty()
    }

    /// Publishers that are to be read from no more until they are [relieved](Self::take_relieved).
    pub(super) fn take_crowded(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.crowded)
    }

    /// Publishers that may be read from again.
    pub(super) fn take_relieved(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.relieved)
    }

    /// Members that are to be closed for being slow.
    pub(super) fn take_slow(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.slow)
    }

    /// Whether anything is still to be delivered.
    #[inline]
    pub(super) fn has_deliveries(&self) -> bool {
        !self.delivering.is_empty()
    }

    /// Whether it takes what other workers have published.
    pub(super) fn takes_mail(&self) -> bool {
        self.pending < PENDING_LEN_MAX
    }

    /// Takes in what another worker has published.
    pub(super) fn receive(&mut self, mail: Mail) {
        // The last member may have left while the mail was on its way.
        if let Some(&room) = self.by_name.get(&mail.room) {
            self.deliver_later(room, mail.batch);
        }
    }

    /// Batches for other workers, each with its worker's index.
    pub(super) fn outbox(&mut self) -> &mut Vec<(usize, Mail)> {
        &mut self.outbox
    }

    /// Posts every batch: from now on it is to be delivered.
    #[inline]
    pub(super) fn post_all(&mut self) {
        while let Some(room) = self.dirty.pop() {
            self.post(room);
        }
        self.batched = 0;
    }

    /// Takes the room's batch, encodes it, and has it delivered here and by other workers.
    fn post(&mut self, index: usize) {
        let room = &mut self.rooms[index];
        if room.messages == 0 {
            return;
        }
        let messages = std::mem::take(&mut room.messages);
        let octets = std::mem::take(&mut room.batch);
        room.backlog -= octets.len();
        let mut batch = Batch::plain(octets, messages);
        batch.encode(all_bits(&room.presence), &mut self.compressors);
        for (worker, encodings) in room.presence.iter().enumerate() {
            if worker != self.worker && encodings.load(SeqCst) != 0 {
                self.outbox.push((worker, Mail { room: room.name.clone(), batch: batch.clone() }));
            }
        }
        self.deliver_later(index, batch);
    }

    fn deliver_later(&mut self, index: usize, batch: Batch) {
        let room = &mut self.rooms[index];
        let (number, len) = (room.posted, batch.len());
        room.posted += 1;
        room.backlog += len;
        self.pending += len;
        if room.deliveries.is_empty() {
            self.delivering.push_back(index);
        }
        room.deliveries.push_back(Delivery {
            number,
            publications: batch.publications(&self.meter),
            len,
            at: 0,
        });
    }

    /// Delivers a turn's share of what was posted, room by room.
    #[inline]
    pub(super) fn deliver(&mut self, backend: &mut impl Backend) {
        let mut work = TURN_WORK;
        while work > 0
            && let Some(index) = self.delivering.pop_front()
        {
            let share = ROOM_WORK.min(work);
            work -= share - self.deliver_room(backend, index, share).min(share);
            if !self.rooms[index].deliveries.is_empty() {
                self.delivering.push_back(index);
            }
        }
    }

    /// Goes on with what a room has to deliver. Returns how much of the `work` is left.
    fn deliver_room(&mut self, backend: &mut impl Backend, index: usize, mut work: usize) -> usize {
        let Self { rooms, policy, counters, slow, pending, relieved, .. } = self;
        let room = &mut rooms[index];
        let mut outcome = Outcome::default();
        while work > 0
            && let Some(delivery) = room.deliveries.front_mut()
        {
            let end = room.members.capacity();
            while work > 0 && delivery.at < end {
                if let Some(member) = room.members.get(delivery.at) {
                    let len = deliver_to(member, delivery, backend, *policy, slow, &mut outcome);
                    work = work.saturating_sub(SEND_WORK + len);
                }
                delivery.at += 1;
            }
            if delivery.at < end {
                break;
            }
            room.backlog -= delivery.len;
            *pending -= delivery.len;
            room.deliveries.pop_front();
        }
        if !room.waiting.is_empty() && room.backlog <= BACKLOG_LEN_MAX / 2 {
            relieved.append(&mut room.waiting);
        }
        counters.delivered_total.add(outcome.delivered);
        counters.slow_consumer_dropped_total.add(outcome.dropped);
        work
    }

    /// Delivers to one member all that it is owed, out of its turn: it is about to leave.
    pub(super) fn settle(&mut self, backend: &mut impl Backend, membership: &Membership) {
        self.post(membership.room);
        let Self { rooms, policy, counters, slow, .. } = self;
        let room = &mut rooms[membership.room];
        let member = &mut room.members[membership.member];
        let mut outcome = Outcome::default();
        for delivery in room.deliveries.iter().filter(|delivery| delivery.at <= membership.member) {
            deliver_to(member, delivery, backend, *policy, slow, &mut outcome);
        }
        member.since = room.posted;
        counters.delivered_total.add(outcome.delivered);
        counters.slow_consumer_dropped_total.add(outcome.dropped);
    }
}

/// Messages, counted for each member.
#[derive(Default)]
struct Outcome {
    delivered: u64,
    dropped: u64,
}

/// Delivers a batch to one member, if it is owed it. Returns how many octets were sent.
#[inline]
fn deliver_to(
    member: &Member,
    delivery: &Delivery,
    backend: &mut impl Backend,
    policy: Policy,
    slow: &mut Vec<ConnId>,
    outcome: &mut Outcome,
) -> usize {
    if delivery.number < member.since {
        return 0;
    }
    let publication = &delivery.publications[member.encoding.index()];
    let (conn, len, messages) = (member.conn, publication.octets.len(), u64::from(publication.messages));
    let queued = backend.queued(conn);
    if queued > 0 && queued + len > policy.send_queue_bytes_max {
        match policy.slow_consumer {
            SlowConsumer::DropOldest => {
                let target = policy.send_queue_bytes_max.saturating_sub(len);
                outcome.dropped += u64::from(backend.drop_oldest(conn, target));
            }
            SlowConsumer::DropNewest => {}
            SlowConsumer::Close => {
                slow.push(conn);
                return 0;
            }
        }
        let queued = backend.queued(conn);
        if queued > 0 && queued + len > policy.send_queue_bytes_max {
            outcome.dropped += messages;
            return 0;
        }
    }
    outcome.delivered += messages;
    backend.send(conn, Chunk::Shared(publication.clone()));
    len
}

/// The encodings that members take, on all workers.
fn all_bits(presence: &Presence) -> u8 {
    presence.iter().fold(0, |bits, worker| bits | worker.load(SeqCst))
}

impl Directory {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, rooms: Mutex::default() }
    }

    /// This worker has the room's first member here, which wants this encoding.
    fn enter(&self, name: &Arc<str>, worker: usize, wants: Encoding) -> Arc<Presence> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || (0..self.workers).map(|_| AtomicU8::new(0)).collect::<Vec<_>>().into();
        let presence = rooms.entry(name.clone()).or_insert_with(none);
        // At once: a room that nobody seems to have is removed.
        presence[worker].store(Encoding::for_member(wants, all_bits(presence)).bit(), SeqCst);
        presence.clone()
    }

    fn leave(&self, name: &Arc<str>, worker: usize) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let presence = &rooms[name];
        presence[worker].store(0, SeqCst);
        if presence.iter().all(|encodings| encodings.load(SeqCst) == 0) {
            rooms.remove(name);
            if rooms.len() < rooms.capacity() / 8 {
                let len = rooms.len();
                rooms.shrink_to(len * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{DeflateSettings, FrameHeader, Opcode};

    pub(crate) fn hub(policy: Policy) -> Hub {
        let directory = Arc::new(Directory::new(1));
        Hub::new(0, directory, Arc::default(), policy, Compressors::default(), Meter::default())
    }

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
        let meter = Meter::default();
        let (here, there) = (batch.publications(&meter), mail.publications(&meter));
        assert!(Arc::ptr_eq(&here[at].octets, &there[at].octets), "other workers share it");
        assert!(here[at].octets[0] == 0xC1 && here[at].octets.len() < 50);
    }

    #[test]
    fn an_encoding_that_is_missing_is_replaced_by_the_plain_one() {
        let publications = batch(b"hello").publications(&Meter::default());
        for publication in &publications {
            assert_eq!(publication.octets[..], publications[0].octets[..]);
        }
        assert_eq!(publications[Encoding::deflate(12).index()].octets[0], 0x81);
    }

    #[test]
    fn a_room_knows_which_encodings_its_members_take() {
        let policy = Policy { slow_consumer: SlowConsumer::DropNewest, send_queue_bytes_max: 1 << 20 };
        let mut hub = hub(policy);
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
