//! Memory that peers can make grow: counted by whoever holds it, and bounded by who owns the count.
//!
//! A [`Meter`] counts octets and knows how many there may be. Who wants memory takes a [`Lease`] first, and
//! holds it as long as the memory. One mechanism counts everything, so that one number is the truth:
//! partial messages, what is inflated, windows, send queues.
//!
//! One thread owns a meter: only it takes leases, changes them and drops them. So counting is a load and a
//! store, and no locked operation. Any thread may read the count; it sees the owner's changes within a turn.
//!
//! A lease says nothing of the allocator. Who holds one must still use `try_reserve` for what can be long.
//!
//! Start at [`Meter::take`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A lease of at most so many octets is a small one: [`Meter::set_kept_for_small`].
pub const SMALL_OCTETS_MAX: usize = 16 * 1024;

/// How many octets are held, and how many may be. Clones are the same meter.
#[derive(Clone)]
pub struct Meter(Arc<Counts>);

struct Counts {
    used: AtomicUsize,
    used_max: AtomicUsize,
    kept_for_small: AtomicUsize,
    /// What is taken here is taken there, too.
    whole: Option<Meter>,
}

impl Meter {
    /// A meter of which `octets` may be taken in all.
    pub fn new(octets: usize) -> Self {
        Self::with_whole(octets, None)
    }

    /// A share of this meter: of it `octets` may be taken in all, and each of them counts in both. A lease
    /// needs room in both.
    pub fn share(&self, octets: usize) -> Self {
        Self::with_whole(octets, Some(self.clone()))
    }

    fn with_whole(used_max: usize, whole: Option<Meter>) -> Self {
        Self(Arc::new(Counts {
            used: AtomicUsize::new(0),
            used_max: AtomicUsize::new(used_max),
            kept_for_small: AtomicUsize::new(0),
            whole,
        }))
    }

    /// Octets that are held now. Any thread may ask.
    #[inline]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// How many more octets may be taken now; 0 if more are held than may be.
    #[inline]
    pub fn free(&self) -> usize {
        self.0.used_max.load(Relaxed).saturating_sub(self.used())
    }

    /// From now on `octets` more may be taken. What is given back later may be taken again. This is how an
    /// owner hands out what many meters have in common: once a turn, as much as is left in all.
    pub fn set_free(&self, octets: usize) {
        self.0.used_max.store(self.used().saturating_add(octets), Relaxed);
    }

    /// The last `octets` of what may be taken are only for leases of at most [`SMALL_OCTETS_MAX`], so that
    /// the large ones are refused first. 0 until this is called.
    pub fn set_kept_for_small(&self, octets: usize) {
        self.0.kept_for_small.store(octets, Relaxed);
    }

    /// A lease of `octets`, or `None` if there is no room for them.
    pub fn take(&self, octets: usize) -> Option<Lease> {
        let mut lease = self.lease();
        lease.resize(octets).then_some(lease)
    }

    /// A lease of `octets`, whether there is room or not: for small things that cannot be refused.
    pub fn force(&self, octets: usize) -> Lease {
        let mut lease = self.lease();
        lease.force(octets);
        lease
    }

    /// A lease of nothing, to grow later.
    pub fn lease(&self) -> Lease {
        Lease { meter: Some(self.clone()), octets: 0 }
    }

    /// Whether a lease may grow by `more` octets to `octets`.
    fn has_room(&self, more: usize, octets: usize) -> bool {
        let kept = if octets > SMALL_OCTETS_MAX { self.0.kept_for_small.load(Relaxed) } else { 0 };
        more <= self.free().saturating_sub(kept)
            && self.0.whole.as_ref().is_none_or(|whole| whole.has_room(more, octets))
    }

    fn add(&self, octets: usize) {
        self.0.used.store(self.used() + octets, Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.add(octets);
        }
    }

    fn give_back(&self, octets: usize) {
        self.0.used.store(self.used() - octets, Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.give_back(octets);
        }
    }
}

impl Default for Meter {
    /// A meter that counts and refuses nothing.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("used", &self.used())
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

/// Octets that somebody holds, until this is dropped. It may outlive whoever made the meter.
///
/// The default is a lease of no meter: it grows as it likes and counts nowhere.
#[derive(Debug, Default)]
pub struct Lease {
    meter: Option<Meter>,
    octets: usize,
}

impl Lease {
    /// How many octets it is for.
    #[inline]
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Makes it a lease of `octets`. To shrink is always possible. Returns whether there was room to grow;
    /// if not, nothing has changed.
    #[must_use]
    pub fn resize(&mut self, octets: usize) -> bool {
        if octets > self.octets
            && let Some(meter) = &self.meter
            && !meter.has_room(octets - self.octets, octets)
        {
            return false;
        }
        self.force(octets);
        true
    }

    /// Makes it a lease of `octets`, whether there is room or not: where growth must not fail. The meter
    /// then holds more than it may, and refuses everybody else until that is over.
    pub fn force(&mut self, octets: usize) {
        if let Some(meter) = &self.meter {
            if octets >= self.octets {
                meter.add(octets - self.octets);
            } else {
                meter.give_back(self.octets - octets);
            }
        }
        self.octets = octets;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.force(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leases_add_up_to_the_limit_and_end_when_dropped() {
        let meter = Meter::new(100);
        let (first, second) = (meter.take(60), meter.take(40));
        assert!(first.is_some() && second.is_some() && meter.take(1).is_none());
        assert_eq!((meter.used(), meter.free()), (100, 0));
        drop(first);
        assert_eq!((meter.used(), meter.free()), (40, 60));
        assert!(meter.take(60).is_some());
        drop(meter);
        drop(second);
    }

    #[test]
    fn a_lease_that_may_not_grow_stays_as_it_is() {
        let meter = Meter::new(100);
        let mut lease = meter.take(60).unwrap();
        assert!(!lease.resize(101));
        assert_eq!((lease.octets(), meter.used()), (60, 60));
        assert!(lease.resize(100) && lease.resize(1));
        assert_eq!(meter.used(), 1);
    }

    #[test]
    fn what_is_forced_counts_and_leaves_nothing_for_others() {
        let meter = Meter::new(100);
        let mut lease = meter.force(150);
        assert_eq!((meter.used(), meter.free()), (150, 0));
        assert!(meter.take(1).is_none() && meter.take(0).is_some());
        assert!(lease.resize(120), "it may shrink, also to more than is allowed");
        lease.force(10);
        assert_eq!(meter.free(), 90);
    }

    #[test]
    fn what_is_free_is_set_from_now_on_and_given_back_octets_are_free_again() {
        let meter = Meter::default();
        let lease = meter.take(70).unwrap();
        meter.set_free(30);
        assert!(meter.take(31).is_none());
        drop(lease);
        assert_eq!(meter.free(), 100);
        meter.set_free(usize::MAX);
        assert!(meter.take(usize::MAX).is_some());
        let _lease = meter.take(5);
        meter.set_free(usize::MAX);
        assert_eq!(meter.free(), usize::MAX - 5);
    }

    #[test]
    fn a_share_counts_in_the_whole_and_needs_room_in_both() {
        let whole = Meter::new(100);
        let share = whole.share(60);
        let lease = share.take(50).unwrap();
        assert_eq!((share.used(), whole.used()), (50, 50));
        assert!(share.take(11).is_none(), "the share is used up");
        let _other = whole.take(45).unwrap();
        assert!(share.take(6).is_none(), "the whole is used up");
        assert_eq!((share.used(), whole.used()), (50, 95), "a refusal takes nothing from either");
        drop(lease);
        assert_eq!((share.used(), whole.used()), (0, 45));
    }

    #[test]
    fn the_last_octets_are_kept_for_small_leases() {
        let meter = Meter::new(1 << 20);
        meter.set_kept_for_small(100_000);
        let mut large = meter.take((1 << 20) - 100_000).unwrap();
        let length = large.octets();
        assert!(!large.resize(length + 1) && meter.take(SMALL_OCTETS_MAX + 1).is_none());
        let mut small = meter.take(SMALL_OCTETS_MAX).unwrap();
        assert!(!small.resize(SMALL_OCTETS_MAX + 1), "it would not be small any more");
    }

    #[test]
    fn a_lease_of_no_meter_counts_nowhere() {
        let mut lease = Lease::default();
        assert!(lease.resize(usize::MAX) && lease.resize(0));
    }

    proptest! {
        #[test]
        fn the_count_is_the_sum_of_the_leases_and_within_the_limit_unless_forced(
            steps in prop::collection::vec((0usize..6, 0usize..80, any::<bool>()), 0..60),
        ) {
            let whole = Meter::new(150);
            let share = whole.share(90);
            let mut leases: Vec<Lease> = (0..6).map(|at| [&whole, &share][at % 2].lease()).collect();
            let mut is_forced = false;
            for (at, octets, forces) in steps {
                if forces {
                    is_forced = true;
                    leases[at].force(octets);
                } else {
                    let before = leases[at].octets();
                    let is_done = leases[at].resize(octets);
                    prop_assert_eq!(leases[at].octets(), if is_done { octets } else { before });
                    prop_assert!(is_done || octets > before);
                }
                let sum = |from: usize| leases.iter().skip(from).step_by(2).map(Lease::octets).sum::<usize>();
                prop_assert_eq!((whole.used(), share.used()), (sum(0) + sum(1), sum(1)));
                prop_assert!(is_forced || (whole.used() <= 150 && share.used() <= 90));
            }
            drop(leases);
            prop_assert_eq!((whole.used(), share.used()), (0, 0));
        }
    }
}
