//! What a thread writes down: latencies, counts, and what became of every message.
//!
//! Start at [`Receiver`], which is told every message that arrives. Nothing here reads a clock: the time of
//! a receipt is the time of the read that brought it.

use std::collections::{BTreeSet, VecDeque};

use resound::proto::{Handler, Message, Opcode, Reply};

use super::integrity::{Arrived, Outstanding, Sent};
use super::publications::Publications;
use super::stamp::{self, Stamp};
use crate::result::recorder::{Metric, Slice};

/// A publication this far ahead of the last one cannot have been sent.
const AHEAD_MAX: u32 = 1 << 20;

/// One thread's records.
#[derive(Debug)]
pub(super) struct Book {
    /// Since the last hand-over.
    pub slice: Box<Slice>,
    /// What was intended earlier belongs to a part of the run that is over, and is not recorded any more.
    pub record_from_ns: u64,
    /// What is intended at this time or later belongs to the next part of the run, which has not begun.
    pub(crate) record_until_ns: u64,
    /// A message is intended when it is sent: there is no lag, and the service time is the response time.
    pub(crate) closed_loop: bool,
    /// Messages that were sent and are not accounted for.
    pub in_flight: i64,
    /// Broadcast: the publications on their way.
    pub publications: Publications,
    /// Broadcast: first deliveries, since the start.
    pub delivered: u64,
}

impl Book {
    /// An empty book.
    pub(super) fn new(publications: Publications, closed_loop: bool) -> Self {
        Self {
            slice: Box::default(),
            record_from_ns: 0,
            record_until_ns: u64::MAX,
            closed_loop,
            in_flight: 0,
            publications,
            delivered: 0,
        }
    }

    /// Whether what was intended at this time is recorded.
    #[inline]
    pub(super) fn records(&self, intended_ns: u64) -> bool {
        intended_ns >= self.record_from_ns
    }

    /// Notes that a message was due, whatever becomes of it.
    #[inline]
    pub(crate) fn scheduled(&mut self, due_ns: u64) {
        if self.records(due_ns) {
            self.slice.counts.scheduled += 1;
        }
    }

    /// Notes that `count` messages of `octets` in all are handed to the kernel, and that `expected` replies or
    /// deliveries of each are due.
    #[inline]
    pub(super) fn sent(&mut self, sent: Sent, count: u32, octets: u64, expected: u32) {
        self.in_flight += i64::from(count);
        if self.records(sent.intended_ns) {
            let counts = &mut self.slice.counts;
            counts.sent += u64::from(count);
            counts.expected += u64::from(count) * u64::from(expected);
            counts.payload_sent_octets += octets;
        }
    }

    /// Notes that `count` messages never came back. A loss counts wherever in the run it happened.
    pub(super) fn lost(&mut self, intended_ns: u64, count: u64) {
        let recorded = self.records(intended_ns);
        let counts = &mut self.slice.counts;
        counts.lost += count;
        if !recorded {
            counts.expected += count;
        }
    }
}

/// The messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// The connection's number: what its messages call their sender.
    pub number: u32,
    /// What it sent and has not got back.
    pub outstanding: Outstanding,
    /// Intended send times of messages that are due and not sent, oldest first.
    pub backlog: VecDeque<u64>,
    /// Closed loop: messages that may be sent at once.
    pub owed: u32,
}

/// What one subscriber of a broadcast got so far. It outlives its connection.
#[derive(Debug)]
pub(super) struct Subscriber {
    publishers: Box<[Deliveries]>,
    /// Arrived, but too damaged to say which one it was.
    unidentified: u64,
}

#[derive(Clone, Debug, Default)]
struct Deliveries {
    /// The number of the publication that is next.
    next: u32,
    /// Skipped over.
    missing: BTreeSet<u32>,
}

impl Subscriber {
    /// One that got nothing yet.
    pub(super) fn new(publishers: u32) -> Self {
        Self { publishers: vec![Deliveries::default(); publishers as usize].into(), unidentified: 0 }
    }

    /// How many publications it never got, given how many there were of each publisher.
    pub(super) fn lost(&self, published: impl Iterator<Item = u32>) -> u64 {
        let not_seen = |(deliveries, count): (&Deliveries, u32)| {
            u64::from(count.wrapping_sub(deliveries.next)) + deliveries.missing.len() as u64
        };
        self.publishers.iter().zip(published).map(not_seen).sum::<u64>().saturating_sub(self.unidentified)
    }
}

/// Takes the messages of one read on one connection. [`Receiver::finish`] is to be called at the end.
pub(super) struct Receiver<'a> {
    /// Where they are written down.
    pub book: &'a mut Book,
    /// The connection's messages.
    pub traffic: &'a mut Traffic,
    /// Broadcast: what this subscriber got so far.
    pub subscriber: Option<&'a mut Subscriber>,
    /// When the read returned.
    pub now_ns: u64,
    /// The kind of message that was sent.
    pub opcode: Opcode,
    /// Round trips that are not in the book yet.
    pub trips: Trips,
}

/// Round trips of one read that began together: recorded as one value with a count.
#[derive(Debug, Default)]
pub(super) struct Trips {
    /// When they began.
    sent: Sent,
    count: u32,
    /// The octets that came back.
    octets: u64,
}

impl Handler for Receiver<'_> {
    #[inline(always)]
    fn message(&mut self, message: Message<'_>) -> Reply {
        let payload = message.payload();
        let stamp = if message.opcode() == self.opcode { stamp::read(payload, self.opcode) } else { None };
        match (stamp, self.subscriber.is_some()) {
            (None, _) => self.damaged(payload.len()),
            (Some(stamp), false) => self.echoed(stamp, payload.len()),
            (Some(stamp), true) => self.delivered(stamp, payload.len()),
        }
        Reply::Nothing
    }
}

impl Receiver<'_> {
    #[inline]
    fn echoed(&mut self, stamp: Stamp, size: usize) {
        if stamp.sender != self.traffic.number {
            return self.not_ours();
        }
        match self.traffic.outstanding.arrived(stamp.sequence) {
            Arrived::Next { sent, skipped } => {
                self.traffic.owed += 1 + skipped;
                self.round_trip(sent, size);
            }
            Arrived::Reordered(sent) => {
                self.book.slice.counts.reordered += 1;
                self.round_trip(sent, size);
            }
            Arrived::Duplicate => self.book.slice.counts.duplicated += 1,
            Arrived::NeverSent => self.not_ours(),
        }
    }

    #[inline]
    fn round_trip(&mut self, sent: Sent, size: usize) {
        if sent != self.trips.sent {
            self.finish();
            self.trips.sent = sent;
        }
        self.trips.count += 1;
        self.trips.octets += size as u64;
    }

    /// Writes down what was held back to be recorded together.
    #[inline(never)]
    pub(super) fn finish(&mut self) {
        let Trips { sent, count, octets } = std::mem::take(&mut self.trips);
        self.book.in_flight -= i64::from(count);
        if count > 0 && self.book.records(sent.intended_ns) {
            let slice = &mut self.book.slice;
            slice.counts.received += u64::from(count);
            slice.counts.payload_received_octets += octets;
            // What the ring brought came before the time at which that was noticed, if by less than a turn.
            slice.record_n(Metric::Response, self.now_ns.saturating_sub(sent.intended_ns), count.into());
            if !self.book.closed_loop {
                slice.record_n(Metric::Service, self.now_ns.saturating_sub(sent.sent_ns), count.into());
            }
        }
    }

    #[inline(never)]
    fn delivered(&mut self, stamp: Stamp, size: usize) {
        let subscriber = self.subscriber.as_mut().expect("a delivery has a subscriber");
        let Some(deliveries) = subscriber.publishers.get_mut(stamp.sender as usize) else {
            return self.not_ours();
        };
        let ahead = stamp.sequence.wrapping_sub(deliveries.next);
        if ahead.cast_signed() < 0 {
            if !deliveries.missing.remove(&stamp.sequence) {
                self.book.slice.counts.duplicated += 1;
                return;
            }
            self.book.slice.counts.reordered += 1;
        } else if ahead > AHEAD_MAX {
            return self.not_ours();
        } else {
            for offset in 0..ahead {
                deliveries.missing.insert(deliveries.next.wrapping_add(offset));
            }
            deliveries.next = stamp.sequence.wrapping_add(1);
        }
        self.book.delivered += 1;
        if self.book.records(stamp.intended_ns) {
            let slice = &mut self.book.slice;
            slice.counts.received += 1;
            slice.counts.payload_received_octets += size as u64;
            slice.record(Metric::Delivery, self.now_ns.saturating_sub(stamp.intended_ns));
            self.book.publications.delivered(stamp.sender, stamp.sequence, self.now_ns);
        }
        if stamp.sender == self.traffic.number {
            self.own_publication(stamp.sequence);
        }
    }

    /// A publisher got its own publication.
    fn own_publication(&mut self, sequence: u32) {
        let (sent, passed) = match self.traffic.outstanding.arrived(sequence) {
            Arrived::Next { sent, skipped } => (sent, 1 + skipped),
            Arrived::Reordered(sent) => (sent, 0),
            Arrived::Duplicate | Arrived::NeverSent => return,
        };
        self.traffic.owed += passed;
        self.book.in_flight -= i64::from(passed);
        if self.book.records(sent.intended_ns) {
            self.book.slice.record(Metric::Service, self.now_ns - sent.sent_ns);
        }
    }

    /// A message that is intact and has no business here: whoever sent it will miss it.
    #[cold]
    fn not_ours(&mut self) {
        self.book.slice.counts.corrupted += 1;
    }

    #[cold]
    fn damaged(&mut self, size: usize) {
        let slice = &mut self.book.slice;
        slice.counts.corrupted += 1;
        slice.counts.received += 1;
        slice.counts.payload_received_octets += size as u64;
        if let Some(subscriber) = &mut self.subscriber {
            subscriber.unidentified += 1;
            self.book.delivered += 1;
        } else {
            self.traffic.outstanding.arrived_damaged();
            self.traffic.owed += 1;
            self.book.in_flight -= 1;
        }
    }
}
