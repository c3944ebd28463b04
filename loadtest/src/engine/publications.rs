//! Broadcast: when the first and the last subscriber got each publication, and whether all did.
//!
//! Each thread follows the latest publications of each publisher in a bounded window. One that all of the
//! thread's subscribers have got, or that the window has no room for any more, is finished here; where
//! several threads have subscribers, [`Gathering`] puts their parts together, off the load threads.

use std::collections::BTreeMap;

/// Publications of all publishers that a thread follows at a time.
const WINDOW_LEN: usize = 1 << 16;
/// Publications that wait for the other threads' parts; more than that means that a thread has stopped.
const GATHERING_LEN_MAX: usize = 1 << 20;

/// What is known of the deliveries of one publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Who published it.
    pub publisher: u32,
    /// Its number among the publisher's.
    pub sequence: u32,
    /// First delivery, in ns.
    pub first_ns: u64,
    /// Last delivery, in ns.
    pub last_ns: u64,
    /// Deliveries; 0: nothing is known.
    pub count: u32,
}

/// The publications that one thread follows.
#[derive(Debug)]
pub(super) struct Publications {
    /// `per_publisher` places for each publisher, by sequence number.
    window: Vec<Seen>,
    per_publisher: usize,
    /// Subscribers of this thread.
    subscribers: u32,
    /// Finished here, for [`Gathering`].
    pub finished: Vec<Seen>,
}

impl Publications {
    /// Follows `publishers` publishers for a thread that has `subscribers` subscribers.
    pub(super) fn new(publishers: u32, subscribers: u32) -> Self {
        let per_publisher = match publishers {
            0 => 0,
            count => (WINDOW_LEN / count as usize).next_power_of_two().max(16),
        };
        Self {
            window: vec![Seen::default(); per_publisher * publishers as usize],
            per_publisher,
            subscribers,
            finished: Vec::new(),
        }
    }

    /// Notes one delivery. Each must be noted once only.
    #[inline]
    pub(super) fn delivered(&mut self, publisher: u32, sequence: u32, now_ns: u64) {
        let place = publisher as usize * self.per_publisher + (sequence as usize & (self.per_publisher - 1));
        let seen = &mut self.window[place];
        if seen.count > 0 && seen.sequence != sequence {
            if sequence.wrapping_sub(seen.sequence).cast_signed() < 0 {
                // Its place went to a later publication: it was given up then.
                return;
            }
            self.finished.push(*seen);
            seen.count = 0;
        }
        if seen.count == 0 {
            *seen = Seen { publisher, sequence, first_ns: now_ns, last_ns: now_ns, count: 0 };
        }
        seen.count += 1;
        seen.last_ns = now_ns;
        if seen.count == self.subscribers {
            self.finished.push(*seen);
            seen.count = 0;
        }
    }
}

/// Puts the threads' parts together.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    parts: BTreeMap<(u32, u32), Seen>,
}

impl Gathering {
    /// Takes in one thread's part; the first-to-last spread in ns, once all `subscribers` have got it.
    pub(super) fn add(&mut self, part: &Seen, subscribers: u32) -> Option<u64> {
        if part.count == subscribers {
            return Some(part.last_ns - part.first_ns);
        }
        if self.parts.len() >= GATHERING_LEN_MAX {
            self.parts.pop_first();
        }
        let key = (part.publisher, part.sequence);
        let whole = self.parts.entry(key).or_insert(Seen { count: 0, ..*part });
        whole.first_ns = whole.first_ns.min(part.first_ns);
        whole.last_ns = whole.last_ns.max(part.last_ns);
        whole.count += part.count;
        if whole.count < subscribers {
            return None;
        }
        let spread_ns = whole.last_ns - whole.first_ns;
        self.parts.remove(&key);
        Some(spread_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_from_the_first_to_the_last_delivery_over_all_threads() {
        let mut threads = [Publications::new(1, 2), Publications::new(1, 3)];
        for (thread, now_ns) in [(0, 100), (1, 90), (1, 120), (0, 110), (1, 150)] {
            threads[thread].delivered(0, 7, now_ns);
        }
        let mut gathering = Gathering::default();
        assert_eq!(gathering.add(&threads[0].finished[0], 5), None);
        assert_eq!(gathering.add(&threads[1].finished[0], 5), Some(60));
        assert!(gathering.parts.is_empty());
    }

    #[test]
    fn the_window_is_bounded_and_gives_up_the_oldest() {
        let mut publications = Publications::new(1 << 14, 2);
        let per_publisher = publications.per_publisher as u32;
        publications.delivered(3, 0, 1);
        publications.delivered(3, per_publisher, 2);
        assert_eq!(publications.finished.len(), 1, "the incomplete one made room");
        publications.delivered(3, 0, 3);
        assert_eq!(publications.finished.len(), 1, "what was given up is not followed again");
        publications.delivered(3, per_publisher, 9);
        assert_eq!(
            publications.finished[1],
            Seen { publisher: 3, sequence: per_publisher, first_ns: 2, last_ns: 9, count: 2 }
        );
    }
}
