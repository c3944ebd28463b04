//! What has arrived of a message that did not come whole, in memory that is leased before it is taken.

use super::super::frame::CONTROL_LEN_MAX;
use super::deflate::Inflating;
use super::{HEADROOM, ProtocolError};
use crate::memory::{Lease, Meter};

/// A message that arrives in pieces may take this much, or as much as has arrived, ahead of its octets. So
/// announcing a message takes no memory, and what is held is at most twice what came. To take seven times as much
/// ahead saves copies, but is slower for all that: 1 MiB in pieces of 64 KiB takes 70 us either way, 30 MiB 11 ms
/// instead of 31, because no pages are asked of the kernel that nobody needs.
const RESERVE_AHEAD: usize = 64 * 1024;

/// What has arrived of a message, or of a control frame inside it, that could not be handled in place.
#[derive(Debug)]
pub(super) struct Partial {
    /// [`HEADROOM`], then the message so far, as it came if it is compressed. Empty when there is none yet.
    pub(super) message: Vec<u8>,
    /// What the message so far inflates to, if it is compressed and there was memory to inflate it as it comes.
    pub(super) inflating: Option<Box<Inflating>>,
    /// For this, and for the message's capacity.
    lease: Lease,
    pub(super) control: [u8; CONTROL_LEN_MAX],
    pub(super) control_len: u8,
}

/// What is known of a message's length when a piece of it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Octets of this frame that come after the piece.
    pub(super) left: u64,
    /// No frame of the message follows this one.
    pub(super) is_last: bool,
}

impl Partial {
    /// So little that nobody is refused it.
    pub(super) fn new(meter: &Meter) -> Box<Self> {
        Box::new(Self {
            message: Vec::new(),
            inflating: None,
            lease: meter.force(size_of::<Self>()),
            control: [0; CONTROL_LEN_MAX],
            control_len: 0,
        })
    }

    /// The octets that are leased for all of it.
    pub(super) fn held_octets(&self) -> usize {
        self.lease.octets() + self.inflating.as_ref().map_or(0, |inflating| inflating.held_octets())
    }

    /// Makes room for a piece of `len` octets at the message's end, and for some of what follows it, and
    /// begins the message with its headroom.
    ///
    /// # Errors
    /// The meter or the allocator has no room.
    pub(super) fn reserve(&mut self, len: usize, ahead: Ahead) -> Result<(), ProtocolError> {
        let needed = self.message.len().max(HEADROOM) + len;
        if needed > self.message.capacity() {
            let left = usize::try_from(ahead.left).unwrap_or(usize::MAX).min(needed.max(RESERVE_AHEAD));
            // Of a message whose end is not in sight, twice as much as there is: else every fragment copied it.
            self.grow(needed + if ahead.is_last { left } else { left.max(needed) })?;
        }
        if self.message.is_empty() {
            self.message.resize(HEADROOM, 0);
        }
        Ok(())
    }

    /// Keeps `octets`, the next of a compressed message, if all so far are kept: they wait to be inflated, or
    /// can be the reply and are not much longer than what they stand for.
    pub(super) fn keep_octets(&mut self, octets: &[u8], ahead: Ahead) -> Result<(), ProtocolError> {
        if let Some(inflating) = &mut self.inflating
            && !inflating.keeps_octets(self.message.len().saturating_sub(HEADROOM) + octets.len())
        {
            self.drop_message();
            return Ok(());
        }
        self.reserve(octets.len(), ahead)?;
        self.message.extend_from_slice(octets);
        Ok(())
    }

    #[cold]
    fn grow(&mut self, capacity: usize) -> Result<(), ProtocolError> {
        let has_lease = self.lease.resize(size_of::<Self>() + capacity);
        if !has_lease || self.message.try_reserve_exact(capacity - self.message.len()).is_err() {
            return Err(ProtocolError::NoMemory);
        }
        Ok(())
    }

    /// What was kept of the message goes.
    pub(super) fn drop_message(&mut self) {
        self.message = Vec::new();
        self.lease.force(size_of::<Self>());
    }
}
