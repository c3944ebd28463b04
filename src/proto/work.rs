//! How much one receive may do for compressed messages before others have their turn.
//!
//! Work is counted in octets inflated. What else takes long counts as the octets that could be inflated in
//! that time, so that a flood of tiny messages, or of windows to be told of, ends a receive as bombs do. The
//! numbers are from docs/deflate.md: a MiB of JSON is inflated in 0.6 ms.

/// The most that a message which has begun may go beyond what was to be done.
const OVER_MAX: usize = 960 * 1024;
/// A codec is reset for a message.
const RESET: usize = 512;
/// An octet is compressed in the time of so many inflated ones, at the default level.
const DEFLATED_OCTET: usize = 4;
/// A compressor clears its tables for a message.
const DEFLATER_RESET: usize = 4096;
/// A compressor is told of an octet that a message may refer to.
const DEFLATER_TOLD_OCTET: usize = 2;

/// What one receive may still do.
#[derive(Debug, Default)]
pub(super) struct Work {
    left: usize,
    /// The part of it that is only for a message that has begun.
    over: usize,
}

impl Work {
    /// Enough for `octets` and the rest of one message.
    pub(super) fn new(octets: usize) -> Self {
        let octets = octets.max(1); // so that every receive gets on
        let over = octets.min(OVER_MAX);
        Self { left: octets.saturating_add(over), over }
    }

    /// Work without end.
    #[cfg(test)]
    pub(super) fn endless() -> Self {
        Self::new(usize::MAX)
    }

    /// Whether no other message is to be begun.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.left <= self.over
    }

    /// How many octets may still be inflated of the message that has begun.
    #[inline]
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// So many octets were inflated.
    #[inline]
    pub(super) fn inflated(&mut self, octets: usize) {
        self.left = self.left.saturating_sub(octets);
    }

    /// A decompressor was reset, and told of so many octets.
    #[inline]
    pub(super) fn inflater_reset(&mut self, history_len: usize) {
        self.inflated(RESET + history_len);
    }

    /// A message was compressed that may refer to so many octets.
    #[inline]
    pub(super) fn deflated(&mut self, octets: usize, history_len: usize) {
        self.inflated(DEFLATER_RESET + DEFLATER_TOLD_OCTET * history_len + DEFLATED_OCTET * octets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_has_begun_may_go_over_and_no_other_begins() {
        let mut work = Work::new(1 << 20);
        assert!(!work.is_done());
        work.inflated(1 << 20);
        assert!(work.is_done());
        assert_eq!(work.left(), OVER_MAX);
        work.inflated(usize::MAX);
        assert_eq!(work.left(), 0);
    }

    #[test]
    fn there_is_always_something_that_may_be_done() {
        assert!(!Work::new(0).is_done() && Work::new(0).left() > 0);
        assert_eq!(Work::endless().left(), usize::MAX);
    }
}
