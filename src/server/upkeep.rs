//! The memory of the process, looked at from outside of the workers: what it really takes is told to the ceiling, and
//! what malloc keeps goes back to the system when the ceiling is near or a peak is over.
//!
//! Start at [`Upkeep::look`].

use std::time::Duration;

use super::ceiling::Ceiling;

/// How often to look.
pub(super) const PERIOD: Duration = Duration::from_millis(100);
/// The ends of peaks are looked for once in so many looks, and while the ceiling is far the process is only looked at
/// then: reading that from /proc takes 0.1 ms.
const PEAK_LOOKS: u32 = 20;
/// While the ceiling is near, malloc gives back once in so many looks at most: that takes time if it keeps much.
const REST_LOOKS: u32 = 5;
/// A peak that rises less than this above what comes after it is not worth it, in octets.
const PEAK_MIN: usize = 16 << 20;

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    looks: u32,
    /// The first look at which malloc may give back again because the ceiling is near.
    rested: u32,
    peak: Peak,
}

impl Upkeep {
    /// Looks once, every [`PERIOD`], at `resident` octets that the process has in memory. `give_back` has malloc give back what it keeps;
    /// what is left after that is what the ceiling learns, so that nobody is paused or closed for memory that is free.
    pub(super) fn look(&mut self, ceiling: &Ceiling, resident: impl Fn() -> usize, give_back: impl Fn()) {
        self.looks = self.looks.wrapping_add(1);
        let is_rare = self.looks.is_multiple_of(PEAK_LOOKS);
        if ceiling.is_far() && !is_rare {
            return;
        }
        let mut octets = resident();
        let is_peak_over = is_rare && self.peak.is_over(ceiling.take_highest());
        if is_peak_over || (ceiling.is_near_with(octets) && self.looks >= self.rested) {
            give_back();
            octets = resident();
            self.rested = self.looks.saturating_add(REST_LOOKS);
        }
        ceiling.set_resident(octets);
    }
}

/// Notices when a peak is over.
#[derive(Debug, Default)]
struct Peak {
    highest: usize,
    lower_times: u32,
}

impl Peak {
    /// Takes the most that was held since the last call. True once it has been less than half of the peak, and
    /// [`PEAK_MIN`] less, at two calls in a row.
    fn is_over(&mut self, highest: usize) -> bool {
        if highest > self.highest / 2 || self.highest - highest < PEAK_MIN {
            self.lower_times = 0;
            self.highest = self.highest.max(highest);
            return false;
        }
        self.lower_times += 1;
        if self.lower_times < 2 {
            return false;
        }
        *self = Self { highest, lower_times: 0 };
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::memory::{Lease, Meter};
    use crate::server::ceiling::Pressure;

    const MIB: usize = 1 << 20;

    fn hold(ceiling: &Ceiling, meter: &Meter, mib: usize) -> Lease {
        let lease = meter.take(mib * MIB).unwrap();
        ceiling.settle(0, 0, meter);
        lease
    }

    #[test]
    fn a_peak_is_over_when_it_stays_over_and_once() {
        let mut peak = Peak::default();
        let mut is_over = |highest: usize| peak.is_over(highest * MIB);
        assert!([10, 1000, 400, 600, 400, 1000, 10].into_iter().all(|highest| !is_over(highest)));
        assert!(is_over(10), "the second time in a row");
        assert!([10, 10, 24, 10, 10].into_iter().all(|highest| !is_over(highest)), "14 MiB are kept");
        assert!([200, 0].into_iter().all(|highest| !is_over(highest)));
        assert!(is_over(0), "the next peak counts by itself");
    }

    #[test]
    fn nobody_pays_for_memory_that_malloc_can_give_back() {
        let (ceiling, meter, mut upkeep) =
            (Ceiling::new(1024 * MIB, 1, MIB), Meter::default(), Upkeep::default());
        let _lease = hold(&ceiling, &meter, 300);
        let (resident, given_back) = (Cell::new(950 * MIB), Cell::new(0));
        let give_back = || {
            given_back.set(given_back.get() + 1);
            resident.set(350 * MIB);
        };
        upkeep.look(&ceiling, || resident.get(), give_back);
        assert_eq!((given_back.get(), ceiling.settle(0, 0, &meter)), (1, Pressure::None));
    }

    #[test]
    fn what_malloc_cannot_give_back_counts_and_is_not_asked_for_at_each_look() {
        let (ceiling, meter, mut upkeep) =
            (Ceiling::new(1024 * MIB, 1, MIB), Meter::default(), Upkeep::default());
        let lease = hold(&ceiling, &meter, 300);
        let given_back = Cell::new(0);
        for _ in 0..10 {
            upkeep.look(&ceiling, || 950 * MIB, || given_back.set(given_back.get() + 1));
            assert_eq!(ceiling.settle(0, 0, &meter), Pressure::Full);
        }
        assert_eq!(given_back.get(), 2);
        drop(lease);
        upkeep.look(&ceiling, || 50 * MIB, || panic!("the ceiling is far"));
        assert_eq!(ceiling.settle(0, 0, &meter), Pressure::None);
        let looks = Cell::new(0);
        for _ in 0..2 * PEAK_LOOKS {
            upkeep.look(&ceiling, || looks.replace(looks.get() + 1), || ());
        }
        assert!((2..6).contains(&looks.get()), "{}", looks.get());
    }

    #[test]
    fn what_is_held_is_not_what_malloc_keeps() {
        let (ceiling, meter, mut upkeep) =
            (Ceiling::new(1024 * MIB, 1, MIB), Meter::default(), Upkeep::default());
        let _lease = hold(&ceiling, &meter, 850);
        for _ in 0..10 {
            upkeep.look(&ceiling, || 880 * MIB, || panic!("there is next to nothing to give back"));
        }
    }
}
