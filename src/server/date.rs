//! The date of HTTP answers (RFC 9110 §6.6.1). It is formatted at most once a second, and only where somebody
//! is answered; no message pays for it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time of day comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum WallClock {
    /// The system's clock, which may be set at any time.
    System,
    /// It says this when the worker starts, and goes on as the backend's clock does: the same in every run.
    Simulated(SystemTime),
}

/// The time of day as one worker's answers say it.
pub(super) struct Date {
    clock: WallClock,
    start: Instant,
    now: Instant,
    /// Until when `text` says the right second.
    until: Option<Instant>,
    text: String,
}

impl Date {
    pub(super) fn new(clock: WallClock, now: Instant) -> Self {
        Self { clock, start: now, now, until: None, text: String::new() }
    }

    /// To be called once a turn.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// The value of a `Date` header field.
    pub(super) fn text(&mut self) -> &str {
        if self.until.is_none_or(|until| self.now >= until) {
            let time = match self.clock {
                WallClock::System => SystemTime::now(),
                WallClock::Simulated(start) => start + (self.now - self.start),
            };
            // A clock that stands before 1970 is not worth a panic.
            let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.text = httpdate::fmt_http_date(UNIX_EPOCH + time);
            let into_second = Duration::from_nanos(time.subsec_nanos().into());
            self.until = Some(self.now + (Duration::from_secs(1) - into_second));
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_changes_with_the_second_and_not_before() {
        // RFC 9110 §5.6.7, a quarter of a second later.
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let wall = UNIX_EPOCH + Duration::from_secs(784_111_777) + ms(250);
        let mut date = Date::new(WallClock::Simulated(wall), start);
        for (after_ms, second) in [(0, 37), (749, 37), (750, 38), (1749, 38), (1750, 39), (9_800, 47)] {
            date.set_now(start + ms(after_ms));
            assert_eq!(date.text(), format!("Sun, 06 Nov 1994 08:49:{second} GMT"), "after {after_ms} ms");
        }
    }

    #[test]
    fn a_clock_before_1970_does_not_end_the_server() {
        let mut date = Date::new(WallClock::Simulated(UNIX_EPOCH - Duration::from_secs(1)), Instant::now());
        assert_eq!(date.text(), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
