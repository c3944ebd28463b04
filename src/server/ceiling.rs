//! One ceiling for the memory that peers can make grow, over all workers.
//!
//! Each worker says what it holds and gets its share of what is left, which its [`Meter`] hands out. Long before
//! nothing is left, the largest holders are read from no more, and then closed; the small ones never notice.
//! Start at [`Ceiling::settle`].

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::memory::Meter;

/// What a connection takes in memory while nothing waits for it, in octets: its slots, and what malloc adds.
pub(super) const CONNECTION_COST: usize = 512;
/// What the process takes before anybody connects, and each worker without its receive buffers, in octets.
const PROCESS_COST: usize = 16 << 20;
const WORKER_COST: usize = 4 << 20;
/// A worker is not refused less than this at once: otherwise nothing could be served.
const SHARE_MIN: usize = 64 << 10;

/// How near the ceiling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Far.
    None,
    /// Over 3/4: the largest holders are to hold no more.
    Tight,
    /// Over 7/8: the largest holders are to give back what they hold, and nobody new is let in.
    Full,
}

/// What all workers together may hold.
#[derive(Debug)]
pub(super) struct Ceiling {
    bytes_max: usize,
    /// By worker: what it holds.
    held: Box<[Held]>,
    /// What each worker's receive buffers keep.
    buffers_bytes: usize,
    /// What the process had in memory beyond what is counted, when [`Ceiling::set_resident`] was last told: what malloc
    /// keeps, and its gaps.
    uncounted: AtomicUsize,
}

/// What a worker holds, in octets. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Held {
    now: AtomicUsize,
    /// The most since [`Ceiling::take_highest`].
    highest: AtomicUsize,
}

impl Ceiling {
    /// A ceiling of `bytes_max` octets for `workers` workers, each of which has `buffers_bytes` of receive buffers.
    pub(super) fn new(bytes_max: usize, workers: usize, buffers_bytes: usize) -> Self {
        Self {
            bytes_max,
            held: (0..workers).map(|_| Held::default()).collect(),
            buffers_bytes,
            uncounted: AtomicUsize::new(0),
        }
    }

    /// The least that `workers` workers can be run with, in octets.
    pub(super) fn least(workers: usize, buffers_bytes: usize) -> usize {
        4 * (PROCESS_COST + workers * (WORKER_COST + buffers_bytes)) / 3
    }

    /// What a worker with so many connections holds, in octets.
    #[inline]
    pub(super) fn held_by(meter: &Meter, connections: usize) -> usize {
        meter.used() + connections * CONNECTION_COST
    }

    /// What is held in all, and what the process takes beside, in octets.
    pub(super) fn held(&self) -> usize {
        self.counted() + self.uncounted.load(Relaxed)
    }

    /// Whether less than a quarter is taken.
    pub(super) fn is_far(&self) -> bool {
        self.held() < self.bytes_max / 4
    }

    /// Whether the ceiling is near, with `resident` octets of the process in memory, and a good part of them is not what
    /// is held.
    pub(super) fn is_near_with(&self, resident: usize) -> bool {
        resident > self.bytes_max / 4 * 3 && resident.saturating_sub(self.counted()) > self.bytes_max / 32
    }

    /// Takes in how many octets of the process are in memory.
    pub(super) fn set_resident(&self, octets: usize) {
        self.uncounted.store(octets.saturating_sub(self.counted()), Relaxed);
    }

    /// What the workers say that they hold, and what there is before anybody connects.
    fn counted(&self) -> usize {
        let workers = self.held.len();
        let fixed = PROCESS_COST + workers * (WORKER_COST + self.buffers_bytes);
        fixed + self.held.iter().map(|held| held.now.load(Relaxed)).sum::<usize>()
    }

    /// Takes in what a worker holds now, and lets its meter hand out its share of what is left.
    pub(super) fn settle(&self, worker: usize, connections: usize, meter: &Meter) -> Pressure {
        let (own, now) = (&self.held[worker], Self::held_by(meter, connections));
        own.now.store(now, Relaxed);
        if now > own.highest.load(Relaxed) {
            own.highest.store(now, Relaxed);
        }
        let held = self.held();
        let left = self.bytes_max.saturating_sub(held);
        let share = left / self.held.len();
        meter.set_free(share.max(SHARE_MIN));
        // Of what is left at the end, nothing is for large leases.
        meter.set_kept_for_small((self.bytes_max / 16 / self.held.len()).min(share));
        match held {
            held if held > self.bytes_max / 8 * 7 => Pressure::Full,
            held if held > self.bytes_max / 4 * 3 => Pressure::Tight,
            _ => Pressure::None,
        }
    }

    /// The most that the workers held since the last call, in octets, each at its own time.
    pub(super) fn take_highest(&self) -> usize {
        self.held.iter().map(|held| held.highest.swap(held.now.load(Relaxed), Relaxed)).sum()
    }

    /// How many octets are to be given back for the ceiling to be far again.
    pub(super) fn excess(&self) -> usize {
        self.held().saturating_sub(self.bytes_max / 4 * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_takes_beside_counts_too() {
        let (ceiling, meter) = (Ceiling::new(1 << 30, 1, 1 << 20), Meter::default());
        let _lease = meter.take(600 << 20).unwrap();
        assert_eq!(ceiling.settle(0, 0, &meter), Pressure::None);
        ceiling.set_resident(640 << 20);
        assert_eq!(ceiling.settle(0, 0, &meter), Pressure::None);
        ceiling.set_resident(950 << 20);
        assert_eq!(ceiling.settle(0, 0, &meter), Pressure::Full);
        ceiling.set_resident(500 << 20);
        assert_eq!(ceiling.settle(0, 0, &meter), Pressure::None, "what was never touched is not in memory");
    }

    #[test]
    fn what_workers_hold_adds_up_and_what_is_left_is_shared() {
        let ceiling = Ceiling::new(1 << 30, 2, 1 << 20);
        let (first, second) = (Meter::default(), Meter::default());
        assert_eq!(ceiling.settle(0, 0, &first), Pressure::None);
        let lease = first.take(400 << 20).unwrap();
        assert!(first.take(200 << 20).is_none(), "the other half is for the other worker");
        assert_eq!(ceiling.settle(0, 0, &first), Pressure::None);
        let _other = second.force(400 << 20);
        assert_eq!(ceiling.settle(1, 0, &second), Pressure::Tight);
        assert_eq!(ceiling.settle(0, 300_000, &first), Pressure::Full);
        assert!(first.take(100 << 20).is_none());
        assert!(ceiling.excess() > 200 << 20, "{}", ceiling.excess());
        drop(lease);
        assert_eq!(ceiling.settle(0, 0, &first), Pressure::None);
        assert_eq!(ceiling.excess(), 0);
        assert!(ceiling.take_highest() > 900 << 20, "what was held for a moment is known");
        assert_eq!(ceiling.take_highest(), 400 << 20);
    }
}
