//! The run's one time axis: nanoseconds since its origin, monotonic, the same on every thread.

use std::time::{Duration, Instant, SystemTime};

/// Nanoseconds in a second.
pub(super) const SECOND_NS: u64 = 1_000_000_000;

/// Reads nanoseconds since the run's origin. Copies share the origin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    origin: Instant,
    /// The wall clock at the origin, for files that want a date.
    pub started_at: SystemTime,
}

impl Clock {
    /// A clock whose origin is now.
    pub(super) fn start() -> Self {
        Self { origin: Instant::now(), started_at: SystemTime::now() }
    }

    /// Nanoseconds since the origin. Costs one vDSO call (about 20 ns with a TSC clock source).
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        // 2^64 ns are 584 years.
        self.origin.elapsed().as_nanos() as u64
    }
}

/// A duration in nanoseconds, saturating.
pub(super) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
