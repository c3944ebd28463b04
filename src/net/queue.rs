//! The queue of one connection: octets that its socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use socket2::Socket;

/// Octets to be sent whole and in order.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// An allocation of the chunk's own, to be sent from `start` on.
    Owned {
        /// The octets.
        octets: Vec<u8>,
        /// How many at the front are not part of it.
        start: usize,
    },
    /// Octets that many connections send.
    Shared(Rc<Publication>),
}

/// What a room's members get in one turn.
#[derive(Debug)]
pub struct Publication {
    /// Whole frames. Shared between workers; each wraps it in its own [`Rc`].
    pub octets: Arc<Vec<u8>>,
    /// How many messages those are.
    pub messages: u32,
}

impl Chunk {
    /// What is to be sent.
    #[inline]
    pub fn octets(&self) -> &[u8] {
        match self {
            Self::Owned { octets, start } => &octets[*start..],
            Self::Shared(publication) => &publication.octets,
        }
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(octets: Vec<u8>) -> Self {
        Self::Owned { octets, start: 0 }
    }
}

/// The most chunks handed to the kernel in one call.
const SLICES_MAX: usize = 64;

/// What is still to be sent. Never empty: a connection with nothing to send has no queue.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    /// Oldest first. Only the front chunk may be partly sent.
    chunks: VecDeque<Chunk>,
    /// Octets of the front chunk already sent. Invariant: less than its length.
    progress: usize,
    /// Octets still to be sent, in all chunks.
    len: usize,
}

impl SendQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Appends a chunk of which `sent` octets have been sent already (only if the queue is empty).
    pub(super) fn push(&mut self, chunk: Chunk, sent: usize) {
        let left = chunk.octets().len() - sent;
        debug_assert!(sent == 0 || self.is_empty());
        if left > 0 {
            if self.is_empty() {
                self.progress = sent;
            }
            self.len += left;
            self.chunks.push_back(chunk);
        }
    }

    /// Puts a chunk before all others, none of which was begun. `sent` octets of it have been sent already,
    /// not all.
    pub(super) fn push_front(&mut self, chunk: Chunk, sent: usize) {
        debug_assert!(self.progress == 0 && sent < chunk.octets().len());
        self.len += chunk.octets().len() - sent;
        self.progress = sent;
        self.chunks.push_front(chunk);
    }

    /// Appends a reply of [`Backend`](super::Backend) of which `sent` octets have been sent already (only if
    /// there is no queue). Makes the queue, if anything is left.
    #[cold]
    pub(super) fn push_reply(
        queue: &mut Option<Box<Self>>,
        buffer: &[u8],
        range: Range<usize>,
        between: Vec<(usize, Chunk)>,
        mut sent: usize,
    ) {
        let mut keep = |chunk: Chunk| {
            let len = chunk.octets().len();
            if sent < len {
                queue.get_or_insert_default().push(chunk, sent);
            }
            sent = sent.saturating_sub(len);
        };
        let mut at = range.start;
        for (before, chunk) in between {
            keep(buffer[at..before].to_vec().into());
            keep(chunk);
            at = before;
        }
        keep(buffer[at..range.end].to_vec().into());
    }

    /// Hands the front of the queue to `send` until all of it is sent (`Ok(true)`) or no more is taken.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, octets) in slices.iter_mut().zip(self.slices()) {
                *slice = IoSlice::new(octets);
                count += 1;
            }
            match send(&slices[..count]) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut progress = self.progress;
        self.chunks.iter().map(move |chunk| &chunk.octets()[std::mem::take(&mut progress)..])
    }

    fn advance(&mut self, mut sent: usize) {
        self.len -= sent;
        while let Some(front) = self.chunks.front() {
            let left = front.octets().len() - self.progress;
            if sent < left {
                self.progress += sent;
                return;
            }
            sent -= left;
            self.progress = 0;
            self.chunks.pop_front();
        }
        debug_assert_eq!(sent, 0, "more sent than was queued");
    }

    /// See [`Backend::drop_oldest`](super::Backend::drop_oldest).
    pub(super) fn drop_oldest(&mut self, target: usize) -> u32 {
        let (mut messages, mut index) = (0, usize::from(self.progress > 0));
        while self.len > target && index < self.chunks.len() {
            match &self.chunks[index] {
                Chunk::Shared(publication) => {
                    messages += publication.messages;
                    self.len -= publication.octets.len();
                    self.chunks.remove(index);
                }
                Chunk::Owned { .. } => index += 1,
            }
        }
        messages
    }
}

/// A reply in more pieces than this goes through the queue.
const PIECES_MAX: usize = 16;

/// Sends a reply of [`Backend`](super::Backend) in one call. Returns how much of it was taken; nothing if it is in too
/// many pieces.
#[inline]
pub(super) fn send_reply(
    socket: &Socket,
    buffer: &[u8],
    range: &Range<usize>,
    between: &[(usize, Chunk)],
    flags: i32,
) -> io::Result<usize> {
    if between.is_empty() {
        return socket.send_with_flags(&buffer[range.clone()], flags);
    }
    if between.len() >= PIECES_MAX / 2 {
        return Ok(0);
    }
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(pieces(buffer, range, between)) {
        *slice = IoSlice::new(piece);
        count += 1;
    }
    socket.send_vectored_with_flags(&slices[..count], flags)
}

/// A reply of [`Backend`](super::Backend), piece by piece.
fn pieces<'a>(
    buffer: &'a [u8],
    range: &Range<usize>,
    between: &'a [(usize, Chunk)],
) -> impl Iterator<Item = &'a [u8]> {
    let (mut at, end) = (range.start, range.end);
    between
        .iter()
        .map(|(before, chunk)| (*before, chunk.octets()))
        .chain([(end, &[][..])])
        .flat_map(move |(before, octets)| [&buffer[std::mem::replace(&mut at, before)..before], octets])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shared(octets: &[u8]) -> Chunk {
        Chunk::Shared(Rc::new(Publication { octets: Arc::new(octets.to_vec()), messages: 1 }))
    }

    fn sent(queue: &mut SendQueue, budgets: &[usize]) -> Vec<u8> {
        let mut all = Vec::new();
        for &budget in budgets {
            let mut left = budget;
            let _ = queue.flush(|slices| {
                let before = all.len();
                for slice in slices {
                    let take = left.min(slice.len());
                    all.extend_from_slice(&slice[..take]);
                    left -= take;
                }
                if all.len() == before {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(all.len() - before)
                }
            });
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_queued_is_sent_once_and_in_order(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), any::<bool>()), 0..100),
            budgets in prop::collection::vec(0usize..40, 0..40),
            already in 0usize..20,
        ) {
            let mut queue = SendQueue::default();
            let mut expected = Vec::new();
            for (octets, is_shared) in &chunks {
                let sent = if queue.is_empty() { already.min(octets.len()) } else { 0 };
                expected.extend_from_slice(&octets[sent..]);
                queue.push(if *is_shared { shared(octets) } else { octets.clone().into() }, sent);
            }
            prop_assert_eq!(queue.len(), expected.len());
            let mut all = sent(&mut queue, &budgets);
            prop_assert_eq!(queue.len(), expected.len() - all.len());
            all.extend(sent(&mut queue, &[usize::MAX]));
            prop_assert!(queue.is_empty());
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn only_publications_that_were_not_begun_are_dropped() {
        let mut queue = SendQueue::default();
        queue.push(shared(b"begun"), 2);
        queue.push(Chunk::from(b"pong".to_vec()), 0);
        queue.push(shared(b"one"), 0);
        queue.push(shared(b"two"), 0);
        assert_eq!(queue.drop_oldest(10), 1);
        assert_eq!(queue.len(), 10);
        assert_eq!(sent(&mut queue, &[100]), b"gunpongtwo");
        queue.push(shared(b"one"), 0);
        assert_eq!((queue.drop_oldest(0), queue.len()), (1, 0));
    }
}
