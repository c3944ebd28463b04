//! Memory for one message that grows as the message is made, counted and never taken where there is none.

use crate::memory::{Lease, Meter};

use super::frame::HEADER_LEN_MAX;
use super::{FrameHeader, Opcode, ProtocolError};

/// A buffer grows by as much as there is of it, and by this many octets at least.
pub(super) const GROW_LEN_MIN: usize = 16 * 1024;
/// A shared buffer that has grown beyond this many octets is counted, and given back after the message.
pub(super) const BUFFER_KEPT_MAX: usize = 1 << 20;

/// A message with room for a frame header in front of it, in memory that is cleared once and then used again.
///
/// The default counts nowhere.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// The room, the message, and what is free.
    octets: Vec<u8>,
    /// The message's length.
    len: usize,
    /// For all of `octets`, if these are more than `uncounted_max`.
    lease: Lease,
    uncounted_max: usize,
}

impl Buffer {
    /// One that all connections of a worker use in turn. What every worker has anyway is not counted.
    pub(super) fn shared(meter: &Meter) -> Self {
        Self { lease: meter.lease(), uncounted_max: BUFFER_KEPT_MAX, ..Self::default() }
    }

    /// One that a connection owns.
    pub(super) fn owned(meter: &Meter) -> Self {
        Self { lease: meter.lease(), ..Self::default() }
    }

    pub(super) fn message(&self) -> &[u8] {
        match self.len {
            0 => &[],
            len => &self.octets[HEADER_LEN_MAX..HEADER_LEN_MAX + len],
        }
    }

    /// The message's length in octets.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Begins a new message.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// The octets that are counted for it.
    #[inline]
    pub(super) fn leased(&self) -> usize {
        self.lease.octets()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.octets.capacity()
    }

    /// What may be written behind the message: at least one octet, and no more than `limit`.
    #[inline]
    pub(super) fn free(&mut self, limit: usize) -> Result<&mut [u8], ProtocolError> {
        let end = HEADER_LEN_MAX + self.len;
        if self.octets.len() <= end {
            self.grow(end + self.len.max(GROW_LEN_MIN).min(limit))?;
        }
        let end_max = self.octets.len().min(end.saturating_add(limit));
        Ok(&mut self.octets[end..end_max])
    }

    /// The first `len` octets of what [`free`](Self::free) returned are the message's next.
    #[inline]
    pub(super) fn advance(&mut self, len: usize) {
        self.len += len;
    }

    /// Takes the last `len` octets of the message off again.
    pub(super) fn cut_off(&mut self, len: usize) {
        self.len -= len;
    }

    pub(super) fn append(&mut self, octets: &[u8]) -> Result<(), ProtocolError> {
        let end = HEADER_LEN_MAX + self.len + octets.len();
        if self.octets.len() < end {
            self.grow(end)?;
        }
        self.octets[end - octets.len()..end].copy_from_slice(octets);
        self.len += octets.len();
        Ok(())
    }

    #[cold]
    fn grow(&mut self, len: usize) -> Result<(), ProtocolError> {
        let before = self.lease.octets();
        if !self.lease.resize(if len > self.uncounted_max { len } else { 0 }) {
            return Err(ProtocolError::NoMemory);
        }
        if self.octets.try_reserve_exact(len - self.octets.len()).is_err() {
            self.lease.force(before);
            return Err(ProtocolError::NoMemory);
        }
        self.octets.resize(len, 0);
        Ok(())
    }

    /// Gives back what an unusually long message has left behind.
    #[inline]
    pub(super) fn trim(&mut self) {
        if self.octets.len() > BUFFER_KEPT_MAX {
            self.octets = Vec::new();
            self.len = 0;
            self.lease.force(0);
        }
    }

    /// The message as one unmasked frame, and the length of its header.
    pub(super) fn frame(&mut self, opcode: Opcode, is_deflated: bool) -> (&[u8], usize) {
        if self.octets.is_empty() {
            // So little that it is always to be had, and what is shared has it anyway.
            self.octets.resize(HEADER_LEN_MAX, 0);
        }
        let header = FrameHeader { rsv1: is_deflated, ..FrameHeader::message(opcode, self.len) };
        let header_len = header.encoded_len();
        let start = HEADER_LEN_MAX - header_len;
        header.write(&mut self.octets[start..]);
        (&self.octets[start..HEADER_LEN_MAX + self.len], header_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_owns_is_counted_to_the_octet_and_refused_at_the_limit() {
        let meter = Meter::new(100_000);
        let mut buffer = Buffer::owned(&meter);
        loop {
            match buffer.free(usize::MAX).map(|free| free.len()) {
                Ok(len) => buffer.advance(len),
                Err(error) => {
                    assert_eq!(error, ProtocolError::NoMemory);
                    break;
                }
            }
            assert_eq!((meter.used(), buffer.leased()), (buffer.octets.capacity(), buffer.octets.len()));
        }
        assert!(buffer.len() > 32 * 1024, "it doubled until there was no more");
        drop(buffer);
        assert_eq!(meter.used(), 0);
    }

    #[test]
    fn what_is_shared_is_counted_while_it_is_long() {
        let meter = Meter::default();
        let mut buffer = Buffer::shared(&meter);
        buffer.append(&[7; 1000]).unwrap();
        assert_eq!(meter.used(), 0);
        buffer.append(&[7; BUFFER_KEPT_MAX]).unwrap();
        assert_eq!(meter.used(), buffer.octets.capacity());
        assert!(buffer.message().iter().all(|octet| *octet == 7));
        buffer.trim();
        assert_eq!((meter.used(), buffer.octets.capacity(), buffer.len()), (0, 0, 0));
    }

    #[test]
    fn what_the_allocator_refuses_is_not_counted() {
        let meter = Meter::default();
        let mut buffer = Buffer::owned(&meter);
        buffer.append(b"here").unwrap();
        let used = meter.used();
        assert_eq!(buffer.grow(isize::MAX as usize), Err(ProtocolError::NoMemory));
        assert_eq!((meter.used(), buffer.message()), (used, &b"here"[..]));
    }
}
