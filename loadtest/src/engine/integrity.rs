//! Finds what was lost, duplicated or reordered on one connection, exactly and in constant time for every
//! message that is none of these.
//!
//! Reordered is what RFC 4737 §3.3 calls so: a message that arrives after a later one. A message that is
//! skipped over is *missing*; if it arrives after all it was reordered, and if it never does it is lost.
//! Only missing messages cost memory of their own.

use std::collections::BTreeMap;
use std::collections::VecDeque;

/// A message that was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// When it was to be sent, in ns.
    pub intended_ns: u64,
    /// When it was handed to the kernel, in ns.
    pub sent_ns: u64,
}

/// What an arrival turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// The one that was next, after `skipped` others that are missing now.
    Next {
        /// What was sent.
        sent: Sent,
        /// How many were skipped over.
        skipped: u32,
    },
    /// One that had been skipped over.
    Reordered(Sent),
    /// One that had arrived before.
    Duplicate,
    /// One that was never sent on this connection.
    NeverSent,
}

/// Messages in a row that were to be sent at the same time, and were.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    sent: Sent,
    /// How many of them have not arrived.
    count: u32,
}

/// The messages of one sender on one connection.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// The number of the next message to be sent, wrapping.
    next: u32,
    /// Sent and not arrived, without those that are missing: how many. The last one is `next - 1`.
    waiting: u32,
    /// The oldest of them; none if its count is 0. Often all, and then nobody looks into the queue's memory.
    oldest: Batch,
    /// The others, oldest first.
    queue: VecDeque<Batch>,
    /// Skipped over, by number. There is none in a run without faults.
    missing: BTreeMap<u32, Sent>,
    /// Arrived, but so damaged that nobody can say which one it was.
    unidentified: u32,
}

impl Outstanding {
    /// The number of the next message to be sent; also how many there were (wrapping).
    #[inline]
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Notes that the next `count` messages were sent in one write, all of them as `sent` says.
    #[inline]
    pub(super) fn sent(&mut self, sent: Sent, count: u32) {
        self.next = self.next.wrapping_add(count);
        self.waiting += count;
        let batch = Batch { sent, count };
        if self.oldest.count == 0 {
            self.oldest = batch;
        } else {
            self.queue.push_back(batch);
        }
    }

    /// The number of the oldest message that waits; if there is none, of the next message.
    #[inline]
    fn first(&self) -> u32 {
        self.next.wrapping_sub(self.waiting)
    }

    /// Takes out the oldest message that waits.
    #[inline]
    fn take_first(&mut self) -> Option<Sent> {
        let sent = self.oldest()?;
        self.waiting -= 1;
        self.oldest.count -= 1;
        if self.oldest.count == 0
            && let Some(batch) = self.queue.pop_front()
        {
            self.oldest = batch;
        }
        Some(sent)
    }

    /// Notes of the oldest message that waits that it is missing.
    fn skip_first(&mut self) {
        let number = self.first();
        let sent = self.take_first().expect("the caller knows how many there are");
        self.missing.insert(number, sent);
    }

    /// The oldest message that has neither arrived nor been skipped over.
    #[inline]
    pub(super) fn oldest(&self) -> Option<Sent> {
        (self.oldest.count > 0).then_some(self.oldest.sent)
    }

    /// Whether nothing is on its way, as far as one can tell.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Notes that message number `sequence` arrived intact.
    #[inline]
    pub(super) fn arrived(&mut self, sequence: u32) -> Arrived {
        if sequence == self.first()
            && let Some(sent) = self.take_first()
        {
            return Arrived::Next { sent, skipped: 0 };
        }
        self.arrived_out_of_order(sequence)
    }

    #[cold]
    fn arrived_out_of_order(&mut self, sequence: u32) -> Arrived {
        let ahead = sequence.wrapping_sub(self.first());
        if ahead < self.waiting {
            (0..ahead).for_each(|_| self.skip_first());
            let sent = self.take_first().expect("it is longer than what was skipped");
            Arrived::Next { sent, skipped: ahead }
        } else if ahead.cast_signed() >= 0 {
            Arrived::NeverSent
        } else {
            self.missing.remove(&sequence).map_or(Arrived::Duplicate, Arrived::Reordered)
        }
    }

    /// Notes that a message arrived that is too damaged to say which one it was.
    pub(super) fn arrived_damaged(&mut self) {
        self.unidentified += 1;
    }

    /// Gives up waiting for everything that is on its way: it is missing from now on. Returns how many.
    pub(super) fn give_up(&mut self) -> u32 {
        let count = self.waiting;
        (0..count).for_each(|_| self.skip_first());
        count
    }

    /// Ends the book: calls `lost` for each message that never arrived.
    pub(super) fn close(mut self, mut lost: impl FnMut(Sent)) {
        self.give_up();
        // Each damaged arrival was one of these; which of them makes no difference to their number.
        let identified = self.missing.len().saturating_sub(self.unidentified as usize);
        self.missing.values().rev().take(identified).copied().for_each(&mut lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(number: u64) -> Sent {
        Sent { intended_ns: number, sent_ns: number }
    }

    /// `count` messages, of which `together` are sent at a time.
    fn outstanding_in_batches(first: u32, count: u32, together: u32) -> Outstanding {
        let mut outstanding = Outstanding { next: first, ..Outstanding::default() };
        for number in (0..count).step_by(together as usize) {
            outstanding.sent(sent((number / together).into()), together.min(count - number));
        }
        outstanding
    }

    fn outstanding(first: u32, count: u32) -> Outstanding {
        outstanding_in_batches(first, count, 1)
    }

    fn lost(outstanding: Outstanding) -> usize {
        let mut count = 0;
        outstanding.close(|_| count += 1);
        count
    }

    #[test]
    fn a_skipped_message_that_comes_later_is_reordered_and_one_that_never_comes_is_lost() {
        let mut outstanding = outstanding(0, 5);
        assert_eq!(outstanding.arrived(0), Arrived::Next { sent: sent(0), skipped: 0 });
        assert_eq!(outstanding.arrived(3), Arrived::Next { sent: sent(3), skipped: 2 });
        assert_eq!(outstanding.arrived(2), Arrived::Reordered(sent(2)));
        assert_eq!(outstanding.arrived(2), Arrived::Duplicate);
        assert_eq!(outstanding.arrived(3), Arrived::Duplicate);
        assert_eq!(outstanding.arrived(9), Arrived::NeverSent);
        assert_eq!(outstanding.arrived(4), Arrived::Next { sent: sent(4), skipped: 0 });
        assert_eq!(lost(outstanding), 1);
    }

    #[test]
    fn a_damaged_message_is_not_lost_as_well() {
        let mut outstanding = outstanding(0, 3);
        outstanding.arrived_damaged();
        outstanding.arrived(1);
        outstanding.arrived(2);
        assert_eq!(lost(outstanding), 0);
    }

    #[test]
    fn what_was_given_up_can_still_arrive() {
        let mut outstanding = outstanding(0, 2);
        assert_eq!(outstanding.give_up(), 2);
        assert_eq!(outstanding.arrived(1), Arrived::Reordered(sent(1)));
        assert_eq!(lost(outstanding), 1);
    }

    proptest! {
        /// A server that drops, repeats and swaps, and one count for each of its faults; also across the
        /// place where the numbers wrap.
        #[test]
        fn every_fault_is_counted_exactly(first in prop_oneof![Just(0u32), Just(u32::MAX - 20)],
                                          together in 1u32..5,
                                          faults in prop::collection::vec(0u8..6, 1..60)) {
            let count = faults.len() as u32;
            let mut outstanding = outstanding_in_batches(first, count, together);
            let is_when_sent = |number: u32, when: Sent| when == sent((number.wrapping_sub(first) / together).into());
            let (mut dropped, mut repeated, mut swapped) = (0, 0, 0);
            let mut wire = Vec::new();
            let mut held = None;
            for (number, fault) in (0..count).zip(&faults) {
                let number = first.wrapping_add(number);
                match fault {
                    0 => dropped += 1,
                    1 => { wire.extend([number, number]); repeated += 1; }
                    2 if held.is_none() => { held = Some(number); continue }
                    _ => wire.push(number),
                }
                if *fault != 0 && let Some(held) = held.take() {
                    wire.push(held);
                    swapped += 1;
                }
            }
            // Held to the end: it arrives, and only after an earlier one if something was sent in between.
            wire.extend(held);
            let (mut duplicates, mut reordered) = (0, 0);
            for number in wire {
                match outstanding.arrived(number) {
                    Arrived::Next { sent, .. } => prop_assert!(is_when_sent(number, sent)),
                    Arrived::Reordered(sent) => {
                        prop_assert!(is_when_sent(number, sent));
                        reordered += 1;
                    }
                    Arrived::Duplicate => duplicates += 1,
                    Arrived::NeverSent => prop_assert!(false, "{} was sent", number),
                }
            }
            prop_assert_eq!((lost(outstanding), duplicates, reordered), (dropped, repeated, swapped));
        }
    }
}
