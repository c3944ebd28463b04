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
    /// Ticks since `start`.
    now: u32,
    /// By connection index.
    at: Vec<u32>,
    /// No deadline is earlier than this.
    earliest: u32,
}

/// A duration in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks(u32);

impl From<Duration> for Ticks {
    /// Rounded up, and one more for the tick that is already running: a deadline is never early.
    fn from(duration: Duration) -> Self {
        Self((duration.as_nanos().div_ceil(TICK.as_nanos()) as u32).saturating_add(1))
    }
}

impl Deadlines {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, now: 0, at: Vec::new(), earliest: NEVER }
    }

    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = (now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u32;
    }

    /// Sets the deadline of the connection, or with `None` clears it.
    #[inline]
    pub(super) fn set(&mut self, index: u32, after: Option<Ticks>) {
        let at = after.map_or(NEVER, |after| self.now + after.0);
        let index = index as usize;
        if index >= self.at.len() {
            self.at.resize(index + 1, NEVER);
        }
        self.at[index] = at;
        self.earliest = self.earliest.min(at);
    }

    /// How long until a deadline may be due.
    pub(super) fn timeout(&self, now: Instant) -> Option<Duration> {
        (self.earliest != NEVER).then(|| (self.start + TICK * self.earliest).saturating_duration_since(now))
    }

    /// Clears the deadlines that are due and appends their connections' indexes to `due`.
    pub(super) fn sweep(&mut self, due: &mut Vec<u32>) {
        if self.earliest > self.now {
            return;
        }
        let mut earliest = NEVER;
        for (index, at) in self.at.iter_mut().enumerate() {
            if *at <= self.now {
                *at = NEVER;
                due.push(index as u32);
            }
            earliest = earliest.min(*at);
        }
        self.earliest = earliest;
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
        deadlines.sweep(&mut due);
        assert_eq!(due, []);
        deadlines.set_now(start + wait);
        deadlines.sweep(&mut due);
        deadlines.sweep(&mut due);
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
        deadlines.sweep(&mut due);
        assert_eq!(due, []);
        deadlines.set(1, None);
        deadlines.set_now(start + TICK * 40);
        deadlines.sweep(&mut due);
        assert_eq!((due, deadlines.timeout(start)), (vec![], None));
    }
}
