//! Coarse timers: one deadline for each connection, in a dense array that is swept when the earliest is due.
//!
//! Moving a deadline is one store, which is all that a received message costs; a sweep over a million
//! connections reads 4 MB, at most once a tick.

use std::time::{Duration, Instant};

/// How exact a deadline is.
pub(crate) const TICK: Duration = Duration::from_millis(20);

const NEVER: u32 = u32::MAX;

pub(super) struct Deadlines {
    start: Instant,
    /// Ticks since `start`. Deadlines have its lower half, which wraps after 994 days: they are compared by how far
    /// they are from now.
    now: u64,
    /// By connection index.
    at: Vec<u32>,
    /// No deadline is earlier than this.
    earliest: Option<u32>,
}

/// A duration in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u32);

impl From<Duration> for Ticks {
    /// Rounded up, and one more for the tick that is already running: a deadline is never early.
    fn from(duration: Duration) -> Self {
        Self((duration.as_nanos().div_ceil(TICK.as_nanos()) as u32).saturating_add(1))
    }
}

impl Ticks {
    pub(super) fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// What is left of it when `passed` ticks have passed.
    pub(super) fn minus(self, passed: u32) -> Self {
        Self(self.0.saturating_sub(passed))
    }
}

impl Deadlines {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, now: 0, at: Vec::new(), earliest: None }
    }

    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = (now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u64;
    }

    /// The tick that is running. Wraps.
    #[inline]
    pub(super) fn now(&self) -> u32 {
        self.now as u32
    }

    /// How many ticks ahead of now a deadline is; not above 0 if it is due.
    fn ahead(&self, at: u32) -> i32 {
        at.wrapping_sub(self.now()).cast_signed()
    }

    /// Sets the deadline of the connection, or with `None` clears it.
    #[inline]
    pub(super) fn set(&mut self, index: u32, after: Option<Ticks>) {
        let at = match after.map(|after| self.now().wrapping_add(after.0)) {
            None => NEVER,
            Some(NEVER) => 0,
            Some(at) => at,
        };
        let index = index as usize;
        if index >= self.at.len() {
            self.at.resize(index + 1, NEVER);
        }
        self.at[index] = at;
        if after.is_some() && self.earliest.is_none_or(|earliest| self.ahead(at) < self.ahead(earliest)) {
            self.earliest = Some(at);
        }
    }

    /// How long until a deadline may be due.
    pub(super) fn timeout(&self, now: Instant) -> Option<Duration> {
        let ticks = self.now.saturating_add_signed(self.ahead(self.earliest?).into());
        let at = self.start + Duration::from_nanos(TICK.as_nanos() as u64 * ticks);
        Some(at.saturating_duration_since(now))
    }

    /// Clears the deadlines that are due, at most `count_max` of them, and appends their connections' indexes to `due`.
    /// The others are due still.
    pub(super) fn sweep(&mut self, count_max: usize, due: &mut Vec<u32>) {
        if self.earliest.is_none_or(|earliest| self.ahead(earliest) > 0) {
            return;
        }
        let now = self.now();
        let mut earliest: Option<i32> = None;
        for (index, at) in self.at.iter_mut().enumerate().filter(|(_, at)| **at != NEVER) {
            let ahead = at.wrapping_sub(now).cast_signed();
            if ahead <= 0 && due.len() < count_max {
                *at = NEVER;
                due.push(index as u32);
            } else {
                earliest = Some(earliest.map_or(ahead, |earliest| earliest.min(ahead)));
            }
        }
        self.earliest = earliest.map(|ahead| now.wrapping_add_signed(ahead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_due_once_never_early_and_at_most_two_ticks_late() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        let mut due = Vec::new();
        deadlines.set(3, Some(Duration::from_millis(100).into()));
        deadlines.set(1, Some(Duration::from_secs(1).into()));
        let wait = deadlines.timeout(start).unwrap();
        assert!(
            wait >= Duration::from_millis(100) && wait <= Duration::from_millis(100) + TICK * 2,
            "{wait:?}"
        );
        deadlines.set_now(start + Duration::from_millis(99));
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!(due, []);
        deadlines.set_now(start + wait);
        deadlines.sweep(usize::MAX, &mut due);
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!(due, [3]);
        assert!(deadlines.timeout(start).unwrap() > Duration::from_millis(900));
    }

    #[test]
    fn a_deadline_that_was_moved_or_cleared_is_not_due() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        let mut due = Vec::new();
        deadlines.set(0, Some(TICK.into()));
        deadlines.set(1, Some(TICK.into()));
        deadlines.set(0, None);
        deadlines.set(1, Some((TICK * 10).into()));
        deadlines.set_now(start + TICK * 4);
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!(due, []);
        deadlines.set(1, None);
        deadlines.set_now(start + TICK * 40);
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!((due, deadlines.timeout(start)), (vec![], None));
    }

    #[test]
    fn deadlines_hold_beyond_the_days_that_ticks_can_count() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        let mut due = Vec::new();
        let days = |days: u64| start + Duration::from_secs(days * 86_400);
        deadlines.set_now(days(994));
        deadlines.set(0, Some(Duration::from_secs(86_400).into()));
        deadlines.set(1, Some(Duration::from_secs(2 * 86_400).into()));
        deadlines.sweep(usize::MAX, &mut due);
        let wait = deadlines.timeout(days(994)).unwrap();
        assert!(wait >= Duration::from_secs(86_400) && wait < Duration::from_secs(86_401), "{wait:?}");
        deadlines.set_now(days(995) + TICK * 3);
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!(due, [0]);
        deadlines.set_now(days(997));
        deadlines.sweep(usize::MAX, &mut due);
        assert_eq!(due, [0, 1]);
    }

    #[test]
    fn of_many_deadlines_that_are_due_a_turn_meets_a_few() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        let mut due = Vec::new();
        (0..100).for_each(|index| deadlines.set(index, Some(TICK.into())));
        deadlines.set_now(start + TICK * 4);
        for turn in 1..=10 {
            assert_eq!(deadlines.timeout(start + TICK * 4), Some(Duration::ZERO));
            due.clear();
            deadlines.sweep(10, &mut due);
            assert_eq!((due.len(), due[0]), (10, (turn - 1) * 10));
        }
        assert_eq!(deadlines.timeout(start), None);
    }
}
